import itertools
import math
import typing
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgekit.bundle.manifest import GIVEN, Policy
from edgekit.recipe import Policy as RecipePolicy
from edgekit.runtime.criteria import (
    COMBINATIONS,
    CRITERIA,
    OTHERWISE,
    PATIENCE,
    Answers,
    Walk,
    decide,
    unknown,
)

Array = npt.NDArray[Any]

# Everything that a float32 logit can be but NaN and +inf: ties and subnormals, too.
LOGITS = (
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.floats(-20, 20, width=32)
    | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45, 3e38, -3e38, -np.inf])
)


def batches(least_classes: int = 2) -> st.SearchStrategy[Array]:
    shapes = st.tuples(st.integers(1, 5), st.integers(least_classes, 40))
    return arrays(np.float32, shapes, elements=LOGITS)


def confidence(criterion: str, logits: Array) -> Array:
    with np.errstate(all="ignore"):
        return CRITERIA[criterion](logits)


def reference(criterion: str, logits: Array) -> Array:
    """The criteria's definitions, word for word, in PyTorch's float64."""
    probabilities = torch.from_numpy(logits.astype(np.float64)).softmax(-1)
    if criterion == "max_prob":
        return probabilities.amax(-1).numpy()
    if criterion == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return (first - second).numpy()
    entropy = torch.special.entr(probabilities).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).numpy()


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("criterion", (*CRITERIA, PATIENCE, GIVEN)),
        ("combine", COMBINATIONS),
        ("otherwise", OTHERWISE),
    ],
)
def test_a_recipe_may_name_what_the_runtime_has(key: str, names: tuple[str, ...]) -> None:
    assert typing.get_args(RecipePolicy.model_fields[key].annotation) == names
    for name in names:
        assert unknown(Policy(**{"criterion": "margin", "thresholds": (), key: name})) is None
    assert "no " in (unknown(Policy(**{"criterion": "margin", "thresholds": (), key: "x"})) or "")


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(logits=batches())
def test_a_criterion_is_its_definition(criterion: str, logits: Array) -> None:
    np.testing.assert_allclose(
        confidence(criterion, logits), reference(criterion, logits), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_type_is_computed_in_float64(criterion: str, dtype: type) -> None:
    logits = np.array([[1.5, -0.25, 0.5], [4, 4, 4]], dtype)
    found = confidence(criterion, logits)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, confidence(criterion, logits.astype(np.float64)))


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(logits=batches(least_classes=1))
def test_a_confidence_lies_in_its_range(criterion: str, logits: Array) -> None:
    finite = np.isfinite(logits).any(axis=1)
    found = confidence(criterion, logits)[finite]
    least = 1 / logits.shape[1] if criterion == "max_prob" else 0
    assert (found >= least - 1e-12).all()
    assert (found <= 1 + 1e-12).all()


@pytest.mark.parametrize(
    ("criterion", "sure", "unsure"),
    [("max_prob", 1.0, 0.25), ("margin", 1.0, 0.0), ("entropy", 1.0, 0.0)],
)
@pytest.mark.parametrize("far", [1000.0, np.inf])
def test_the_ends_of_the_range_are_met(
    criterion: str, sure: float, unsure: float, far: float
) -> None:
    assert confidence(criterion, np.array([-far, 5, -far, -far])) == sure
    for all_alike in (0.0, 1e30, -1e30, 5e-324):
        assert confidence(criterion, np.full(4, all_alike)) == pytest.approx(unsure, abs=1e-15)


@pytest.mark.parametrize("criterion", ["max_prob", "margin"])
def test_two_classes_by_hand(criterion: str) -> None:
    first = 1 / (1 + math.exp(-1.5))
    expected = first if criterion == "max_prob" else 2 * first - 1
    assert confidence(criterion, np.array([2.0, 0.5])) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [np.inf, np.inf], [np.nan, np.inf, -np.inf]])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_nan_and_plus_infinity_are_never_sure(
    criterion: str, bad: list[float], data: st.DataObject
) -> None:
    logits = data.draw(arrays(np.float32, st.integers(len(bad), 20), elements=LOGITS))
    for place, value in enumerate(bad):
        logits[place] = value
    logits = data.draw(st.permutations(logits.tolist()).map(np.array))
    for threshold in (-np.inf, 0.0, 0.5, 1.0):
        assert not confidence(criterion, logits) >= threshold


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_row_of_nothing_but_minus_infinity_is_never_sure(criterion: str) -> None:
    assert not confidence(criterion, np.full(4, -np.inf)) >= -np.inf


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_row_leaves_the_others_alone(criterion: str, bad: float) -> None:
    logits = np.array([[1.0, 2.0, 3.0], [bad, bad, bad], [3.0, 2.0, 0.0]])
    found = confidence(criterion, logits)
    assert np.isnan(found[1])
    for row in (0, 2):
        assert found[row] == confidence(criterion, logits[row])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_class_is_certain(criterion: str) -> None:
    np.testing.assert_array_equal(confidence(criterion, np.array([[3.0], [-1e38], [0.0]])), 1.0)
    assert not confidence(criterion, np.array([np.nan])) >= -np.inf


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(logits=batches(least_classes=1))
def test_a_row_alone_is_the_same_to_the_last_bit_as_in_a_batch(
    criterion: str, logits: Array
) -> None:
    together = confidence(criterion, logits)
    alone = np.array([confidence(criterion, row) for row in logits])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=25)
@given(shape=array_shapes(min_dims=1, max_dims=4, max_side=4))
def test_the_last_axis_is_that_of_the_classes(criterion: str, shape: tuple[int, ...]) -> None:
    assert np.shape(confidence(criterion, np.zeros(shape))) == shape[:-1]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_logits_are_left_as_they_were(criterion: str, dtype: type) -> None:
    logits = np.array([[1.0, 2.0], [4.0, -3.0]], dtype)
    before = logits.copy()
    confidence(criterion, logits)
    np.testing.assert_array_equal(logits, before)


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Array], tuple[float, ...]]:
    """All exits' logits for some samples, NaN among them, and thresholds."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 4)))
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, np.nan, -np.inf, np.inf])
    exits = draw(st.integers(1, 4))
    logits = [draw(arrays(np.float32, shape, elements=values)) for _ in range(exits)]
    threshold = st.floats(0, 1) | st.sampled_from([np.inf, -np.inf])
    return logits, tuple(draw(threshold) for _ in range(exits - 1))


POLICIES = [
    Policy(criterion, (), combine, weights, otherwise)
    for criterion in (*CRITERIA, PATIENCE)
    for combine, weights in (
        ("last", None),
        ("sum", None),
        ("sum", (0.5, 2.0, 1.0, 3.0)),
        ("geometric", None),
        ("geometric", (0.5, 2.0, 1.0, 3.0)),
    )
    for otherwise in OTHERWISE
]
"""Every kind of policy for four exits, but for thresholds and temperatures."""

TEMPERED = [replace(one, temperatures=(0.5, 1.7, 0.9, 4.0)) for one in POLICIES]
"""The same with a temperature for each exit."""


def policy_id(policy: Policy) -> str:
    weighted = "weighted " if policy.weights else ""
    tempered = ", tempered" if policy.temperatures else ""
    return f"{policy.criterion}, {weighted}{policy.combine}, {policy.otherwise}{tempered}"


def for_exits(policy: Policy, thresholds: tuple[float, ...]) -> Policy:
    """The policy for as many exits as these thresholds are for, four at most."""
    exits = len(thresholds) + 1
    return replace(
        policy,
        thresholds=thresholds,
        weights=policy.weights and policy.weights[:exits],
        temperatures=policy.temperatures and policy.temperatures[:exits],
    )


def thresholds_of(policy: Policy) -> tuple[float, ...]:
    """Such that many samples leave at each exit of four, and on no confidence."""
    return {
        "max_prob": (0.913579, 0.886421, 0.871357),
        "margin": (0.813579, 0.786421, 0.771357),
        "entropy": (0.613579, 0.586421, 0.571357),
        PATIENCE: (1.0, 1.0, 1.0),
    }[policy.criterion]


def said(
    policy: Policy, logits: list[Array]
) -> tuple[list[Array], list[npt.NDArray[np.int64]], list[Array]]:
    """Per exit what the policy looks at, in PyTorch and by definition: scores, classes, confidence.

    An exit's are worked out from the logits of all exits up to it, anew.
    """
    every = torch.from_numpy(np.stack(logits).astype(np.float64))
    if policy.temperatures is not None:
        every = every / torch.tensor(policy.temperatures, dtype=torch.float64)[:, None, None]
    weights = torch.tensor(policy.weights or (1.0,) * len(every), dtype=torch.float64)
    scores, classes, confidences = [], [], []
    for k in range(len(every)):
        seen, weight = every[: k + 1], weights[: k + 1, None, None]
        if policy.combine == "last":
            looked_at = every[k]
        elif policy.combine == "sum":
            looked_at = (weight * seen).sum(0)
        else:
            looked_at = (weight * seen.log_softmax(-1)).sum(0) / weight.sum()
        chosen = looked_at.numpy().argmax(axis=1)
        if policy.criterion == PATIENCE:
            count = np.zeros(len(chosen))
            if k:
                agree = (chosen == classes[-1]) & ~np.isnan(confidences[-1])
                count = np.where(agree, confidences[-1] + 1, 0.0)
            count[looked_at.softmax(-1).isnan().any(-1).numpy()] = np.nan
            confidences.append(count)
        else:
            confidences.append(reference(policy.criterion, looked_at.numpy()))
        scores.append(looked_at.numpy())
        classes.append(chosen)
    return scores, classes, confidences


def plain(policy: Policy, confidences: list[float]) -> tuple[int, int]:
    """Which exit answers, and how deep the sample came, by a plain loop."""
    for depth, confidence in enumerate(confidences):
        if depth == len(policy.thresholds) or confidence >= policy.thresholds[depth]:
            break
    if depth < len(policy.thresholds) or policy.otherwise == "last":
        return depth, depth
    best = depth
    for exit in reversed(range(depth)):
        if math.isnan(confidences[best]) or confidences[exit] > confidences[best]:
            best = best if math.isnan(confidences[exit]) else exit
    return best, depth


@pytest.fixture(scope="module")
def many_logits() -> list[Array]:
    """Four exits' logits of 10,000 samples, half of them odd in some way."""
    rng = np.random.default_rng(0)
    exits, samples, classes = 4, 10_000, 6
    logits = (2.5 * rng.standard_normal((exits, samples, classes))).astype(np.float32)
    logits += 2 * rng.standard_normal((samples, classes)).astype(np.float32)

    def some() -> Array:
        return rng.choice(samples, 700, replace=False)

    for odd in (np.nan, np.inf, -np.inf, 3e38, -3e38):
        logits[rng.integers(0, exits, 700), some(), rng.integers(0, classes, 700)] = odd
    logits[:, some(), rng.integers(0, classes, 700)] = -np.inf  # A class masked at all exits.
    logits[rng.integers(0, exits, 200), some()[:200]] = -np.inf  # All classes at one exit.
    tied = some()
    logits[:, tied, 3] = logits[:, tied, 1] = logits[:, tied].max(axis=-1)
    small = some()
    logits[:, small] = rng.choice([0.0, -0.0, 1e-45, -1e-45, 1e-40], (exits, 700, classes))
    return list(logits)


@pytest.mark.parametrize("policy", POLICIES + TEMPERED, ids=policy_id)
def test_every_policy_is_its_definition_in_pytorch(
    policy: Policy, many_logits: list[Array]
) -> None:
    policy = replace(policy, thresholds=thresholds_of(policy))
    scores, classes, confidences = said(policy, many_logits)
    # Where the last bit could decide, two right programs may differ: leave out those few samples.
    close = np.zeros(len(classes[0]), bool)
    for looked_at in scores:
        with np.errstate(invalid="ignore"):
            gap = np.diff(np.sort(looked_at, axis=1)[:, -2:], axis=1)[:, 0]
        close |= (gap > 0) & (gap < 1e-12)
    if policy.criterion != PATIENCE and policy.otherwise == "max_confidence":
        pairs = zip(confidences, policy.thresholds, strict=False)
        unsure = np.all([~(one >= threshold) for one, threshold in pairs], axis=0)
        for one, other in itertools.combinations(confidences, 2):
            close |= unsure & (np.abs(one - other) < 1e-12)
    assert close.mean() < 0.15
    walk = Walk(policy)
    for depth, one in enumerate(many_logits):
        found = walk.look(one)
        np.testing.assert_allclose(found.confidences, confidences[depth], rtol=0, atol=1e-12)
        assert (found.exits == depth).all()
        finite = np.isfinite(confidences[depth]) & ~close
        np.testing.assert_array_equal(found.classes[finite], classes[depth][finite])
    found = decide(many_logits, policy)
    expected = [plain(policy, column.tolist()) for column in np.stack(confidences).T]
    exits, depths = np.array(expected).T
    rows = np.flatnonzero(~close)
    np.testing.assert_array_equal(found.exits[rows], exits[rows])
    np.testing.assert_array_equal(found.depths[rows], depths[rows])
    sound = rows[np.isfinite(found.confidences[rows])]
    np.testing.assert_array_equal(found.classes[sound], np.stack(classes)[exits[sound], sound])
    np.testing.assert_allclose(
        found.confidences[rows], np.stack(confidences)[exits[rows], rows], rtol=0, atol=1e-12
    )
    # What the test rests on: all exits are taken, and some samples are NaN to the end.
    early = {1, 2, 3} if policy.criterion == PATIENCE else {0, 1, 2, 3}
    assert set(depths.tolist()) == early
    assert np.isnan(found.confidences).any() or policy.otherwise == "max_confidence"


@pytest.mark.parametrize("policy", POLICIES + TEMPERED[::3], ids=policy_id)
@settings(deadline=None, max_examples=40)
@given(network=networks())
def test_a_sample_alone_and_one_among_others_that_leave_are_decided_alike(
    policy: Policy, network: tuple[list[Array], tuple[float, ...]]
) -> None:
    logits, thresholds = network
    policy = for_exits(policy, thresholds)
    together = decide(logits, policy)
    walk, going = Walk(policy), np.arange(len(logits[0]))
    for depth, one in enumerate(logits):
        answers = walk.look(one[going])
        leaves = np.ones(len(going), bool)
        if depth < len(thresholds):
            leaves = answers.confidences >= thresholds[depth]
        else:
            answers = walk.otherwise()
        left = going[leaves]
        for mine, all_of in zip(answers, together, strict=False):
            np.testing.assert_array_equal(mine[leaves], all_of[left])
        assert (together.depths[left] == depth).all()
        walk.keep(np.flatnonzero(~leaves))
        going = going[~leaves]
    for row in range(len(logits[0])):
        alone = decide([one[row : row + 1] for one in logits], policy)
        for mine, all_of in zip(alone, together, strict=True):
            np.testing.assert_array_equal(mine, all_of[row : row + 1])


@pytest.mark.parametrize("policy", POLICIES, ids=policy_id)
@settings(deadline=None, max_examples=25)
@given(network=networks())
def test_more_exits_change_nothing_of_what_was_said_before_them(
    policy: Policy, network: tuple[list[Array], tuple[float, ...]]
) -> None:
    # What a deadline rests on: it ends a walk, and cannot be foreseen.
    whole, short = Walk(policy), Walk(policy)
    logits = [one.copy() for one in network[0]]
    before = [Answers(*(part.copy() for part in whole.look(one))) for one in logits]
    for one, expected in zip(network[0], before, strict=True):
        for mine, theirs in zip(short.look(one), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    for one, given_ in zip(network[0], logits, strict=True):
        np.testing.assert_array_equal(one, given_)


@pytest.mark.parametrize("policy", POLICIES, ids=policy_id)
@settings(deadline=None, max_examples=25)
@given(network=networks(), data=st.data())
def test_a_temperature_is_as_if_the_exit_had_said_so_itself(
    policy: Policy, network: tuple[list[Array], tuple[float, ...]], data: st.DataObject
) -> None:
    logits, thresholds = network
    policy = for_exits(policy, thresholds)
    temperatures = tuple(data.draw(st.floats(0.05, 20)) for _ in logits)
    cooled = [
        one.astype(np.float64) / temperature
        for one, temperature in zip(logits, temperatures, strict=True)
    ]
    found = decide(logits, replace(policy, temperatures=temperatures))
    for mine, theirs in zip(found, decide(cooled, policy), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("criterion", [*CRITERIA, PATIENCE])
@pytest.mark.parametrize("temperature", [1e-200, 0.3, 7.0, 1e300])
@settings(deadline=None, max_examples=25)
@given(network=networks())
def test_a_temperature_leaves_the_class_of_an_exit_alone(
    criterion: str, network: tuple[list[Array], tuple[float, ...]], temperature: float
) -> None:
    policy = Policy(criterion, (math.inf,) * 9)
    plain, tempered = Walk(policy), Walk(replace(policy, temperatures=(temperature,) * 9))
    # Two logits that a large temperature makes the same.
    near = np.array([[1e-40, 2e-40, -np.inf]] * len(network[0][0]), np.float32)
    for logits in [*network[0], near]:
        expected, found = plain.look(logits), tempered.look(logits)
        np.testing.assert_array_equal(found.classes, expected.classes)
        if criterion == PATIENCE:
            # And so nothing of a count of classes.
            np.testing.assert_array_equal(found.confidences, expected.confidences)


@pytest.mark.parametrize("combine", ["sum", "geometric"])
def test_a_temperature_weighs_an_exit_that_is_combined_so_patience_counts_otherwise(
    combine: str,
) -> None:
    logits = [2.0, 0.0], [0.0, 1.0]
    cold = Policy(PATIENCE, (9.0,), combine)
    assert answers(cold, *logits)[1:3] == (0, 1.0)
    assert answers(replace(cold, temperatures=(4.0, 1.0)), *logits)[1:3] == (1, 0.0)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_two_classes_at_a_temperature_by_hand(temperature: float) -> None:
    policy = Policy("max_prob", (), temperatures=(temperature,))
    expected = 1 / (1 + math.exp(-1.5 / temperature))
    assert answers(policy, [2.0, 0.5]) == (0, 0, pytest.approx(expected, abs=1e-15), 0)


def answers(policy: Policy, *logits: list[float]) -> tuple[int, int, float, int]:
    """What is decided on one sample."""
    exit, index, confidence, depth = decide([np.array([one]) for one in logits], policy)
    return int(exit[0]), int(index[0]), float(confidence[0]), int(depth[0])


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_two_exits_by_hand(combine: str) -> None:
    """Logits (2, 0) and (0, 1) with weights 1 and 3: the second wins, by how much depends."""
    policy = Policy("max_prob", (1.1,), combine, None if combine == "last" else (1.0, 3.0))
    lead = {"last": 1.0, "sum": 3 * 1.0 - 2.0, "geometric": (3 * 1.0 - 2.0) / 4}[combine]
    found = answers(policy, [2.0, 0.0], [0.0, 1.0])
    assert found == (1, 1, pytest.approx(1 / (1 + math.exp(-lead)), abs=1e-15), 1)


def test_the_geometric_mean_is_one_of_probabilities() -> None:
    # Between (1/2, 1/2) and (9/10, 1/10) lies (3/4, 1/4): their products' roots are 3 to 1.
    found = answers(Policy("max_prob", (2.0,), "geometric"), [5.0, 5.0], [math.log(9), 0.0])
    assert found[2] == pytest.approx(0.75, abs=1e-15)


@pytest.mark.parametrize(
    ("classes", "patience", "exit"),
    [
        ([0, 0, 0, 0], 1, 1),
        ([0, 0, 0, 0], 2, 2),
        ([0, 0, 0, 0], 3, 3),
        ([0, 1, 1, 0], 1, 2),
        ([0, 1, 1, 1], 2, 3),
        ([0, 1, 0, 1, 1, 1], 2, 5),
        ([0, 1, 0, 1, 0, 1], 1, 5),
    ],
)
def test_patience_is_how_often_in_a_row_an_exit_agrees_with_the_one_before(
    classes: list[int], patience: int, exit: int
) -> None:
    logits = [[1.0, 0.0] if one == 0 else [0.0, 1.0] for one in classes]
    policy = Policy(PATIENCE, (float(patience),) * (len(classes) - 1))
    found = answers(policy, *logits)
    assert (found[0], found[1], found[3]) == (exit, classes[exit], exit)


def test_an_exit_that_overflowed_breaks_patience() -> None:
    policy = Policy(PATIENCE, (9.0,) * 4)
    counts = [
        Walk(policy).look(np.array([one])).confidences[0]
        for one in ([1.0, 0.0], [np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf])
    ]
    np.testing.assert_array_equal(counts, [0, np.nan, np.nan, np.nan])
    walk = Walk(policy)
    exits = [[1.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [1.0, 0.0], [1.0, -np.inf]]
    counts = [walk.look(np.array([one])).confidences[0] for one in exits]
    np.testing.assert_array_equal(counts, [0, 1, np.nan, 0, 1])


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3])
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_nan_stays_in_a_combination_and_passes_where_an_exit_is_alone(
    combine: str, bad: list[float]
) -> None:
    policy = Policy("max_prob", (0.5, -math.inf, 0.5), combine)
    exit, index, confidence, depth = answers(policy, [0, 0, 0], bad, [9.0, 0, 0], [0, 9.0, 0])
    if combine == "last":
        assert (exit, index, depth) == (2, 0, 2)
    else:
        assert (exit, depth) == (3, 3)
        assert math.isnan(confidence)
    best = answers(replace(policy, otherwise="max_confidence"), [0, 0, 1], bad, [0.0] * 3, bad)
    assert best[:2] == (0, 2)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_a_class_that_one_exit_masks_is_masked_from_there_on_in_a_combination(
    criterion: str, combine: str
) -> None:
    policy = Policy(criterion, (2.0,), combine)
    _, index, confidence, _ = answers(policy, [-np.inf, 1.0, 0.0], [9.0, 0.5, 0.0])
    assert index == (0 if combine == "last" else 1)
    assert 0 < confidence < 1


@pytest.mark.parametrize("criterion", [*CRITERIA, PATIENCE])
def test_of_equally_confident_exits_the_deepest_answers(criterion: str) -> None:
    policy = Policy(criterion, (9.0, 9.0, 9.0), otherwise="max_confidence")
    sure, other, unsure = [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.1]
    expected = (3, 2) if criterion == PATIENCE else (1, 1)
    assert answers(policy, sure, other, unsure, [0.0, 0.0, 0.05])[:2] == expected
    assert answers(policy, *[[np.nan, 0.0, 0.0]] * 4)[0] == 3


def test_a_confidence_on_its_threshold_leaves() -> None:
    logits = [np.zeros((1, 4)), np.ones((1, 4))]
    found = decide(logits, Policy("max_prob", (0.25,)))
    assert (found.exits.tolist(), found.confidences.tolist()) == ([0], [0.25])


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_given_confidences_are_looked_at_as_they_are(data: st.DataObject) -> None:
    exits, samples = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    values = st.sampled_from([-2.0, 0.0, 0.25, 7.0, math.inf, -math.inf, math.nan])
    rows = st.lists(values, min_size=samples, max_size=samples)
    known = exits - data.draw(st.integers(0, 1))  # The final exit may give none.
    given_ = [np.array(data.draw(rows), np.float32) for _ in range(known)]
    maps = [np.zeros((samples, 2, depth + 1, 3), np.float32) for depth in range(exits)]
    thresholds = tuple(
        data.draw(values.filter(lambda one: not math.isnan(one))) for _ in range(exits - 1)
    )
    found = decide(maps, Policy(GIVEN, thresholds), given_)
    for row in range(samples):
        depth, confidence = exits - 1, math.nan
        if known == exits:
            confidence = float(given_[-1][row])
        for index, threshold in enumerate(thresholds):
            if float(given_[index][row]) >= threshold:
                depth, confidence = index, float(given_[index][row])
                break
        assert (found.exits[row], found.depths[row], found.classes[row]) == (depth, depth, -1)
        np.testing.assert_equal(found.confidences[row], confidence)
