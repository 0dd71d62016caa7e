"""tune: the lowest threshold that keeps the accuracy, exactly, on the chain as it is deployed."""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.bundle.manifest import Policy
from edgekit.check import chain_of
from edgekit.data import Split, load_splits
from edgekit.errors import CheckError, RecipeError
from edgekit.models.exits import Exits, eager_logits
from edgekit.models.load import load_model, user_code
from edgekit.recipe import Goal, Recipe, load_recipe
from edgekit.runtime.criteria import CRITERIA, Walk, decide, scaled
from edgekit.stages import Network, Segments, Tuned
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.split import Split as SplitStage
from edgekit.stages.tune import Tune
from edgekit.target import load_target
from edgekit.tuning.certificate import p_value, parted
from edgekit.tuning.goal import Costs, choose, fit, least_correct
from edgekit.tuning.seen import Seen
from edgekit.tuning.temperature import LEAST, fit_temperature, nll, reliability
from tests.conftest import write_tiny_recipe
from tests.stages.test_contract import SOUND


def silent(text: str) -> None:
    pass


@given(
    st.integers(1, 100_000),
    st.data(),
    st.integers(0, 10_000).map(lambda n: n / 10_000) | st.floats(0, 1),
)
def test_the_goal_is_counted_in_whole_samples(samples, more, drop):
    correct = more.draw(st.integers(0, samples))
    least = least_correct(correct, samples, drop)
    written = Fraction(repr(drop))
    assert Fraction(correct - least, samples) <= written
    assert least == 0 or Fraction(correct - (least - 1), samples) > written


@pytest.mark.parametrize(
    ("correct", "samples", "drop", "least"),
    [(100, 100, 0.29, 71), (297, 300, 0.01, 294), (93, 100, 0.07, 86), (5, 300, 0.5, 0)],
)
def test_a_share_that_floats_cannot_hold_costs_no_sample(correct, samples, drop, least):
    assert least_correct(correct, samples, drop) == least


@dataclasses.dataclass
class World:
    """A recipe's network lowered, and what PyTorch says of its tuning split."""

    recipe: Recipe
    tuning: Split
    logits: list[np.ndarray]
    segments: Segments[bytes]

    def tune(self, policy: dict, tuning="its own", logits="its own", segments=None):
        """Run the stage on a recipe with another policy."""
        recipe = Recipe.model_validate({**self.recipe.model_dump(), "policy": policy})
        tuning = self.tuning if tuning == "its own" else tuning
        logits = self.logits[-1] if isinstance(logits, str) else logits
        stage = Tune(recipe, tuning, logits, self.chain_for)
        result = stage(segments or self.segments, silent)
        assert result.artifact.problems() == []
        return result

    def chain_for(self, segments: Segments[bytes], policy: Policy | None = None):
        policy = policy or Policy("max_prob", (1.0,) * (len(segments.exits) - 1))
        source = self.recipe.manifest_inputs(segments.inputs)
        labels = self.recipe.labels or ()
        return chain_of(segments, segments.chain, source, labels, policy, load_target("host"))

    def accuracy(self, policy: Policy) -> float:
        """Of the runtime itself, one sample at a time."""
        chain = self.chain_for(self.segments, policy)
        found = [
            chain.one(self.tuning.tensor(row, chain.spec.inputs)).class_index
            for row in range(len(self.tuning))
        ]
        return float(np.mean(found == self.tuning.labels))


def world(path: str) -> World:
    recipe = load_recipe(path)
    with user_code(recipe.folder):
        tuning = load_splits(recipe)["tuning"]
        module = Exits(load_model(recipe), recipe.exits).eval()
        batches = list(tuning.batches(recipe.manifest_inputs({})))
        network = Network(module, recipe.exits, torch.from_numpy(batches[0][:2]))
        graphs = SplitStage()(Export()(network, silent).artifact, silent).artifact
    lower = Lower(OnnxRuntimeBackend(), load_target("host"), network.sample)
    logits = [
        np.concatenate(one) for one in zip(*(eager_logits(module, b) for b in batches), strict=True)
    ]
    return World(recipe, tuning, logits, lower(graphs, silent).artifact)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> World:
    return world(str(write_tiny_recipe(tmp_path_factory.mktemp("tune") / "tiny")))


@pytest.fixture(scope="module")
def digits() -> World:
    return world("recipes/digits/recipe.yaml")


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.03, 0.2])
def test_a_real_chain_loses_no_more_than_the_goal_and_is_not_slower_than_it_must(digits, drop):
    result = digits.tune({"tune": {"max_accuracy_drop": drop}})
    policy, notes = result.artifact.policy, result.notes
    assert len(set(policy.thresholds)) == 1
    assert len(policy.thresholds) == 3
    final = float(np.mean(digits.logits[-1].argmax(axis=1) == digits.tuning.labels))
    assert notes["pytorch_accuracy"] == final
    assert notes["accuracy"] == digits.accuracy(policy) >= final - drop - 1e-9
    assert notes["exit_rates"]["exit1"] > 0.3
    assert sum(notes["exit_rates"].values()) == pytest.approx(1)
    assert notes["samples"] == len(digits.tuning)
    # One confidence lower, and every threshold below: each loses too much.
    confidences = np.stack([CRITERIA["max_prob"](one) for one in digits.logits[:-1]])
    lower = np.unique(confidences[confidences < policy.thresholds[0]])[::-1]
    least = least_correct(int(final * len(digits.tuning) + 0.5), len(digits.tuning), drop)
    for threshold in lower[:50]:
        classes = decide(digits.logits, Policy("max_prob", (float(threshold),) * 3)).classes
        assert np.sum(classes == digits.tuning.labels) < least


def test_a_larger_drop_never_lets_fewer_leave_early(digits):
    finals = [
        digits.tune({"tune": {"max_accuracy_drop": drop}}).notes["exit_rates"]["final"]
        for drop in (0.0, 0.005, 0.01, 0.05, 1.0)
    ]
    assert finals == sorted(finals, reverse=True)
    assert finals[-1] == 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_is_tuned_as_the_runtime_reads_it(tiny, criterion):
    result = tiny.tune({"criterion": criterion, "tune": {"max_accuracy_drop": 0.05}})
    assert result.artifact.policy.criterion == criterion
    assert result.notes["accuracy"] == tiny.accuracy(result.artifact.policy)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("combine", "weighted"),
    [("last", False), *itertools.product(["sum", "geometric"], [False, True])],
)
@pytest.mark.parametrize("otherwise", ["last", "max_confidence"])
def test_thresholds_are_tuned_to_what_the_policy_looks_at(
    tiny, criterion, combine, otherwise, weighted
):
    policy = {"criterion": criterion, "combine": combine, "otherwise": otherwise}
    if weighted:
        policy["weights"] = {"first": 1.0, "second": 3.0, "last": 2.0}
    result = tiny.tune({**policy, "tune": {"max_accuracy_drop": 0.1}})
    found, notes = result.artifact.policy, result.notes
    assert (found.criterion, found.combine, found.otherwise) == (criterion, combine, otherwise)
    assert found.weights == ((1.0, 3.0, 2.0) if weighted else None)
    assert notes["accuracy"] == tiny.accuracy(found)
    final = float(np.mean(tiny.logits[-1].argmax(axis=1) == tiny.tuning.labels))
    assert notes["accuracy"] >= final - 0.1 - 1e-9
    depths = decide(tiny.logits, found).depths
    assert list(notes["exit_rates"].values()) == [np.mean(depths == k) for k in range(3)]
    # It is the lowest: under every lower one that decides otherwise too few are right.
    least = least_correct(round(final * len(tiny.tuning)), len(tiny.tuning), 0.1)
    looks = Walk(found)
    seen = np.unique([looks.look(one).confidences for one in tiny.logits[:-1]])
    for threshold in seen[seen < found.thresholds[0]]:
        lower = dataclasses.replace(found, thresholds=(float(threshold),) * 2)
        assert np.sum(decide(tiny.logits, lower).classes == tiny.tuning.labels) < least


def test_patience_is_measured_and_handed_on(tiny):
    result = tiny.tune({"criterion": "patience", "thresholds": 1})
    assert result.artifact.policy == Policy("patience", (1.0, 1.0))
    assert result.notes["accuracy"] == tiny.accuracy(result.artifact.policy)
    assert result.notes["exit_rates"]["first"] == 0 < result.notes["exit_rates"]["second"]


def cost(world: World, result) -> float:
    """The mean share of the MACs that a sample costs, by the exit rates of the stage."""
    macs = np.cumsum([part.macs for part in world.segments.chain])
    return float(list(result.notes["exit_rates"].values()) @ macs / macs[-1])


@pytest.mark.parametrize("drop", [0.0, 0.01, 0.05])
def test_thresholds_of_their_own_cost_no_more_than_a_shared_one(digits, drop):
    goal = {"max_accuracy_drop": drop}
    common = digits.tune({"tune": goal})
    own = digits.tune({"tune": {**goal, "search": "per_exit"}})
    assert cost(digits, own) <= cost(digits, common)
    policy = own.artifact.policy
    assert own.notes["accuracy"] == digits.accuracy(policy)
    assert own.notes["accuracy"] >= own.notes["pytorch_accuracy"] - drop - 1e-9


def test_a_certificate_needs_no_labels_and_counts_disagreement_by_default(digits):
    unlabelled = dataclasses.replace(digits.tuning, labels=None)
    goal = {"certificate": {"risk": 0.05}}
    result = digits.tune({"tune": goal}, unlabelled)
    promised = result.notes["certificate"]
    assert promised["of"] == "disagreement"
    assert (promised["risk"], promised["confidence"], promised["tested"]) == (0.05, 0.9, 180)
    assert p_value(promised["errors"], 180, 0.05) == promised["p_value"] <= 0.1
    taken = decide(digits.logits, result.artifact.policy).classes
    assert result.notes["agreement"] == np.mean(taken == digits.logits[-1].argmax(axis=1))
    assert result.notes["agreement"] > 0.95
    assert "accuracy" not in result.notes
    assert cost(digits, result) < 0.6


def test_what_a_certificate_is_tested_on_says_nothing_about_who_is_calibrated_with(digits):
    """Only the half that is searched on may choose, or the test would be of its own making."""
    goal = {"tune": {"certificate": {"risk": 0.05}}}
    recipe = Recipe.model_validate({**digits.recipe.model_dump(), "policy": goal})
    searched, tested = parted(len(digits.tuning))
    assert sorted([*searched, *tested]) == list(range(len(digits.tuning)))
    found = fit(recipe, digits.logits, [], None)
    assert (decide(digits.logits, found).depths[searched] < 3).mean() > 0.5
    scrambled = [one.copy() for one in digits.logits]
    for one in scrambled:
        one[tested] = one[tested][::-1, ::-1]
    assert fit(recipe, scrambled, [], None) == found


def test_a_certificate_of_accuracy_counts_labels(digits):
    goal = {"certificate": {"risk": 0.05, "of": "accuracy_loss"}}
    assert digits.tune({"tune": goal}).notes["certificate"]["of"] == "accuracy_loss"
    with pytest.raises(RecipeError, match="no labels"):
        digits.tune({"tune": goal}, dataclasses.replace(digits.tuning, labels=None))


def test_too_few_samples_for_a_certificate_are_refused_with_how_many_are_needed(digits):
    goal = {"certificate": {"risk": 0.01, "confidence": 0.9}}
    with pytest.raises(CheckError, match=r"needs 230 samples.*found 360 in all: give 460"):
        digits.tune({"tune": goal})


def test_an_exit_rate_is_reached_with_most_answers_right(tiny):
    result = tiny.tune({"tune": {"min_exit_rate": 0.5, "search": "per_exit"}})
    assert result.notes["exit_rates"]["last"] <= 0.5
    unlabelled = dataclasses.replace(tiny.tuning, labels=None)
    again = tiny.tune({"tune": {"min_exit_rate": 0.5}}, unlabelled)
    assert again.notes["exit_rates"]["last"] <= 0.5
    assert again.notes["agreement"] > 0.5


def test_an_exit_rate_is_counted_in_whole_samples(tiny):
    """0.9 of 10 are 9; in floats, what may stay is a little less than 1."""
    confidences = np.concatenate([np.ones(9), [0.0]])[None].repeat(3, axis=0)
    seen = Seen(confidences, np.zeros((3, 10), int), np.zeros(10, int), None)
    goal = Goal(min_exit_rate=0.9)
    thresholds = choose(goal, seen, Costs("MACs", np.arange(1.0, 4.0)), None).thresholds
    assert seen.observed("disagreement", np.ones(3)).taken(thresholds).tolist().count(2) <= 1


def test_no_class_is_let_die_for_the_average(tiny):
    """Every sample may be lost on average, and no class as a whole."""
    goal = {"max_accuracy_drop": 1.0, "min_class_accuracy": 0.4, "search": "per_exit"}
    labels = tiny.logits[-1].argmax(axis=1)
    tuning = dataclasses.replace(tiny.tuning, labels=labels)
    policy = tiny.tune({"tune": goal}, tuning).artifact.policy
    right = decide(tiny.logits, policy).classes == labels
    floor = min(np.mean(right[labels == one]) for one in np.unique(labels))
    loose = tiny.tune({"tune": {"max_accuracy_drop": 1.0}}, tuning).artifact.policy
    fast = decide(tiny.logits, loose).classes == labels
    assert min(np.mean(fast[labels == one]) for one in np.unique(labels)) < 0.4 <= floor


def test_goals_that_nothing_meets_are_refused_with_what_was_asked(tiny):
    tuning = dataclasses.replace(tiny.tuning, labels=tiny.logits[-1].argmax(axis=1))
    goal = {"max_accuracy_drop": 0.0, "min_exit_rate": 1.0}
    words = r"no thresholds keep .*max_accuracy_drop: 0\.0, min_exit_rate: 1\.0"
    with pytest.raises(CheckError, match=words):
        tiny.tune({"tune": goal}, tuning)


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({}, "needs one of max_accuracy_drop, min_exit_rate, max_latency_ms, weigh"),
        ({"min_class_accuracy": 0.5}, "needs one of max_accuracy_drop"),
        ({"energy_mj": {"first": 1, "second": 2, "last": 3}}, "needs one of max_accuracy_drop"),
        ({"mean_plus_std": 1, "min_exit_rate": 0.5}, "mean_plus_std says where every sample"),
        (
            {"mean_plus_std": 1, "exit_rates": {"first": 0.5, "second": 0.1}},
            "exit_rates says where every sample",
        ),
        ({"max_latency_ms": {}}, "needs mean, p95 or both"),
        ({"weigh": {"error": 1}}, "Field required"),
        ({"weigh": {"cost": 1}, "energy_mj": {"first": 1, "last": 3}}, "none for second"),
        ({"certificate": {"risk": 0.1}, "search": "shared"}, "a search of its own"),
        ({"certificate": {"risk": 0}}, "greater than 0"),
        ({"exit_rates": {"first": 0.5, "second": 0.1}, "max_accuracy_drop": 0.1}, "no other goal"),
        ({"exit_rates": {"first": 0.5, "second": 0.1}, "search": "shared"}, "no other goal"),
    ],
)
def test_a_goal_that_says_too_little_or_too_much_is_refused(tiny, goal, words):
    with pytest.raises(ValueError, match=words):
        tiny.tune({"tune": goal})


def test_given_thresholds_are_handed_on_and_measured(tiny):
    given = {"first": 0.30, "second": 0.29}
    result = tiny.tune({"thresholds": given})
    assert result.artifact.policy.thresholds == (0.30, 0.29)
    assert result.notes["thresholds"] == given
    assert result.notes["accuracy"] == tiny.accuracy(result.artifact.policy)
    exits = decide(tiny.logits, Policy("max_prob", (0.30, 0.29))).exits
    assert list(result.notes["exit_rates"].values()) == [np.mean(exits == k) for k in range(3)]
    assert 0 < result.notes["exit_rates"]["first"] < 1


@pytest.mark.parametrize("labels", [True, False], ids=["no split", "no labels"])
def test_given_thresholds_need_no_labels_but_tuning_does(tiny, labels):
    tuning = None if labels else dataclasses.replace(tiny.tuning, labels=None)
    result = tiny.tune({"thresholds": 0.5}, tuning, None)
    assert result.artifact.policy.thresholds == (0.5, 0.5)
    assert result.notes.get("agreement") == (None if tuning is None else 1.0)
    assert (result.artifact.tuning is None) == (tuning is None)
    recipe = tiny.recipe.model_copy(
        update={"policy": type(tiny.recipe.policy)(tune={"max_accuracy_drop": 0.01})}
    )
    with pytest.raises(RecipeError, match=r"data\.tuning has no labels.*policy\.thresholds"):
        Tune(recipe, tuning, None, tiny.chain_for)


def test_a_chain_whose_final_exit_lost_too_much_is_refused_with_remedies(digits):
    """As a badly calibrated one would have: here its labels are not what it says."""
    labels = digits.tuning.labels.copy()
    wrong = dataclasses.replace(digits.tuning, labels=(labels + 1) % 10)
    logits = np.eye(10, dtype=np.float32)[wrong.labels]
    words = (
        r"chain's final exit is right on 0\.\d\d% of the 360 tuning samples, PyTorch's on 100\.00%"
        r".*max_accuracy_drop=0\.01 asks for 99\.17% at least.*quantize\.samples.*fp32"
    )
    with pytest.raises(CheckError, match=words):
        digits.tune({"tune": {"max_accuracy_drop": 0.01}}, wrong, logits)


def test_early_exits_that_never_help_raise_a_doubt(tiny):
    """Labels that the final exit alone knows."""
    final = tiny.logits[-1].argmax(axis=1)
    early = [one.argmax(axis=1) for one in tiny.logits[:-1]]
    differs = np.flatnonzero((early[0] != final) & (early[1] != final))
    hard = Split("tuning", [tiny.tuning.raw[row] for row in differs], final[differs])
    assert len(hard) > 2
    goal = {"tune": {"max_accuracy_drop": 0.0}}
    result = tiny.tune(goal, hard, tiny.logits[-1][differs])
    assert result.notes["exit_rates"] == {"first": 0.0, "second": 0.0, "last": 1.0}
    assert "no sample of the tuning split leaves early" in result.notes["warning"]
    assert "policy.tune.max_accuracy_drop" in result.notes["warning"]
    high = tiny.tune({"thresholds": 1.0}).notes["warning"]
    assert "lower policy.thresholds" in high


def test_later_segments_that_never_run_raise_a_doubt(tiny):
    tuned = tiny.tune({"tune": {"max_accuracy_drop": 1.0}})
    assert tuned.artifact.policy.thresholds == (0.0, 0.0)
    assert "leaves at the first exit" in tuned.notes["warning"]
    assert "harder samples" in tuned.notes["warning"]
    low = tiny.tune({"thresholds": 0.0}).notes["warning"]
    assert "higher policy.thresholds" in low


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [((), "0 thresholds for 1"), ((0.5, 0.5), "2 thresholds for 1"), ((math.inf,), "finite")],
)
def test_a_policy_that_does_not_fit_the_chain_is_a_problem(thresholds, words):
    (problem,) = Tuned(SOUND, Policy("max_prob", thresholds)).problems()
    assert words in problem
    assert Tuned(SOUND, Policy("max_prob", (0.5,))).problems() == []


def test_a_build_does_not_guess_how_long_a_device_takes(tiny):
    with pytest.raises(RecipeError, match="edgekit tune BUNDLE --profile FILE"):
        tiny.tune({"tune": {"max_latency_ms": 5}})


@pytest.mark.parametrize(
    "policy",
    [
        {"thresholds": 0.3},
        {"tune": {"max_accuracy_drop": 0.1}},
        {"tune": {"max_accuracy_drop": 1.0, "min_class_accuracy": 0.1, "search": "per_exit"}},
        {"tune": {"exit_rates": {"first": 0.3, "second": 0.3}}},
        {"tune": {"certificate": {"risk": 0.6, "confidence": 0.9}}},
        {"criterion": "patience", "thresholds": 1},
        {"temperature": True, "combine": "sum", "tune": {"max_accuracy_drop": 0.1}},
    ],
    ids=["given", "drop", "class floor", "rates", "certificate", "patience", "temperature"],
)
def test_the_front_that_travels_is_what_a_chain_does(tiny, policy):
    result = tiny.tune(policy)
    tuning, chosen = result.artifact.tuning, result.artifact.policy
    assert tuning.points[tuning.chosen].thresholds == chosen.thresholds
    assert [point.cost for point in tuning.points] == sorted({x.cost for x in tuning.points})
    assert tuning.costs[-1] == sum(part.macs for part in tiny.segments.chain)
    labels = tiny.tuning.labels
    for point in tuning.points:
        found = decide(tiny.logits, dataclasses.replace(chosen, thresholds=point.thresholds))
        counts = np.bincount(found.depths, minlength=3)
        assert [one.count for one in point.left] == counts.tolist()
        assert point.right == np.sum(found.classes == labels)
        assert point.cost == pytest.approx(counts @ tuning.costs / len(labels))
        for depth, left in enumerate(point.left):
            confidences = found.confidences[found.depths == depth]
            assert (
                sum(confidences >= left.edges[-1] if left.edges else confidences >= 0)
                == (left.counts[-1])
            )
    assert (tuning.certificate is not None) == ("certificate" in policy.get("tune", {}))


def test_another_point_that_is_no_better_and_dearer_does_not_travel(tiny):
    tuning = tiny.tune({"thresholds": 0.3}).artifact.tuning
    others = [point for place, point in enumerate(tuning.points) if place != tuning.chosen]
    *front, nobody = others
    assert len(front) > 2
    assert [one.right for one in front] == sorted({one.right for one in front})
    assert [one.count for one in nobody.left][:-1] == [0, 0]


def test_what_is_cheapest_depends_on_what_an_error_weighs(tiny):
    costs = [
        tiny.tune({"tune": {"weigh": {"cost": cost}, "search": "per_exit"}}).artifact.tuning
        for cost in (1e-6, 0.3, 1e6)
    ]
    chosen = [one.points[one.chosen] for one in costs]
    assert chosen[0].cost >= chosen[1].cost >= chosen[2].cost == costs[0].costs[0]
    assert chosen[0].right == max(point.right for point in costs[0].points)


def test_energy_is_saved_where_the_recipe_says_what_it_is(tiny):
    energy_mj = {"first": 1.0, "second": 2.0, "last": 50.0}
    goal = {"weigh": {"cost": 1e6}, "energy_mj": energy_mj}
    tuning = tiny.tune({"tune": goal}).artifact.tuning
    assert tuning.unit == "mJ"
    assert tuning.costs == (1.0, 2.0, 50.0)
    assert tuning.points[tuning.chosen].cost == 1.0


def test_a_build_has_no_energy_that_a_device_measured(tiny):
    goal = {"weigh": {"cost": 1}, "energy_mj": "measured"}
    with pytest.raises(RecipeError, match="edgekit tune BUNDLE --profile FILE --set"):
        tiny.tune({"tune": goal})


def test_thresholds_by_mean_and_deviation_are_those(tiny):
    policy = tiny.tune({"tune": {"mean_plus_std": 0.5}}).artifact.policy
    confidences = [CRITERIA["max_prob"](one) for one in tiny.logits[:-1]]
    wanted = [one.mean() + 0.5 * one.std() for one in confidences]
    assert policy.thresholds == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("criterion", ["max_prob", "margin"])
def test_temperatures_are_fitted_to_the_chain_and_say_what_they_mend(digits, criterion):
    policy = {"criterion": criterion, "temperature": True, "tune": {"max_accuracy_drop": 0.01}}
    result = digits.tune(policy)
    chosen, notes = result.artifact.policy, result.notes["temperature"]
    labels = digits.tuning.labels
    batches = digits.tuning.batches(digits.recipe.manifest_inputs({}))
    chain = digits.chain_for(digits.segments)
    every = [list(chain.logits(batch).values()) for batch in batches]
    logits = [np.concatenate(one) for one in zip(*every, strict=True)]
    assert chosen.temperatures == tuple(fit_temperature(one, labels) for one in logits)
    assert max(chosen.temperatures) > 1.01 or min(chosen.temperatures) < 0.99
    assert list(notes) == list(digits.segments.exits)
    for one, found, temperature in zip(logits, notes.values(), chosen.temperatures, strict=True):
        right = one.argmax(axis=1) == labels
        assert found["temperature"] == temperature
        assert (found["nll_before"], found["nll_after"]) == (
            nll(one, labels),
            nll(one, labels, temperature),
        )
        for when, divisor in (("before", 1.0), ("after", temperature)):
            told = reliability(CRITERIA["max_prob"](scaled(one, divisor)), right)
            assert found[f"ece_{when}"] == told.ece
            assert found[f"bins_{when}"] == [dataclasses.asdict(part) for part in told.bins]
    # What was searched is what the runtime looks at.
    found = digits.chain_for(digits.segments, chosen).many(
        digits.tuning.tensor(7, chain.spec.inputs)[None]
    )
    seen = result.artifact.seen
    assert found[0].confidence in seen.confidences[:, 7]
    assert result.notes["accuracy"] == digits.accuracy(chosen)
    # The first exit is right on all of this split: no temperature is cold enough.
    assert chosen.temperatures[0] == LEAST
    assert "policy.temperature: that of exit1 is at a bound" in result.notes["warning"]
    plain = digits.tune({**policy, "temperature": False}).artifact.policy
    assert plain.temperatures is None


def test_given_thresholds_are_of_confidences_at_their_temperature(tiny):
    result = tiny.tune({"thresholds": {"first": 0.30, "second": 0.29}, "temperature": True})
    chosen = result.artifact.policy
    assert chosen.thresholds == (0.30, 0.29)
    assert chosen.temperatures == pytest.approx(
        [fit_temperature(one, tiny.tuning.labels) for one in tiny.logits], rel=1e-3
    )
    depths = decide(tiny.logits, chosen).depths
    shares = [np.mean(depths == depth) for depth in range(3)]
    assert list(result.notes["exit_rates"].values()) == shares
    plain = decide(tiny.logits, dataclasses.replace(chosen, temperatures=None)).depths
    assert (plain != depths).any()


@pytest.mark.parametrize("tuning", [True, False], ids=["no labels", "no split"])
def test_a_temperature_without_labels_is_refused(tiny, tuning):
    split = dataclasses.replace(tiny.tuning, labels=None) if tuning else None
    with pytest.raises(RecipeError, match=r"policy\.temperature: data\.tuning has no labels"):
        tiny.tune({"thresholds": 0.5, "temperature": True}, split, None)


def test_what_a_certificate_tests_on_has_no_part_in_a_temperature(tiny):
    goal = {"certificate": {"risk": 0.6, "confidence": 0.9}}
    tested = parted(len(tiny.tuning))[1]
    other = tiny.tuning.labels.copy()
    other[tested] = (other[tested] + 1) % 4
    split = dataclasses.replace(tiny.tuning, labels=other)
    policy = {"temperature": True, "tune": goal}
    found, again = (tiny.tune(policy, one).artifact.policy for one in (tiny.tuning, split))
    assert found.temperatures == again.temperatures
    uncertified = {"temperature": True, "tune": {"min_exit_rate": 0.1}}
    found, again = (tiny.tune(uncertified, one).artifact.policy for one in (tiny.tuning, split))
    assert found.temperatures != again.temperatures
    # Nor in PyTorch, where it decides who reaches a segment while it is quantized.
    recipe = Recipe.model_validate({**tiny.recipe.model_dump(), "policy": policy})
    found, again = (fit(recipe, tiny.logits, (), one) for one in (tiny.tuning.labels, other))
    assert found.temperatures == again.temperatures is not None


def test_who_reaches_a_segment_is_decided_at_a_temperature(tiny):
    policy = {"temperature": True, "thresholds": 0.3}
    recipe = Recipe.model_validate({**tiny.recipe.model_dump(), "policy": policy})
    found = fit(recipe, tiny.logits, (), tiny.tuning.labels)
    assert found.thresholds == (0.3, 0.3)
    wanted = [fit_temperature(one, tiny.tuning.labels) for one in tiny.logits]
    assert found.temperatures == tuple(wanted)
