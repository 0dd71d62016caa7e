"""The thresholds of a cascade over widths: what is lost, what is saved, and what answers then."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.ladder import PROFILE_NAME, Cascade, Fixed, read_ladder, read_variant
from edgekit.bundle.manifest import Policy
from edgekit.errors import CheckError, RecipeError
from edgekit.ladder import retune_ladder
from edgekit.recipe import Goal
from edgekit.runtime import choose
from edgekit.runtime.profile import Latency, Measured, seal_profile
from edgekit.tuning.cascade import fit_cascade, seen_of_variants
from edgekit.tuning.goal import least_correct
from edgekit.tuning.seen import Seen
from tests.conftest import Ended
from tests.ladders import NARROW, WIDE

NAMES = ["a", "b", "c"]


def drawn(seed: int, samples: int, variants: int = 3, *, labelled: bool = True) -> Seen:
    """Variants that are sure and right the more often, the wider they are."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, samples)
    skill = np.linspace(0.6, 0.95, variants)[:, None]
    right = rng.random((variants, samples)) < skill
    classes = np.where(right, labels, (labels + 1) % 4)
    confidences = np.clip(0.5 + 0.3 * right + 0.2 * rng.standard_normal(right.shape), 0, 1)
    return Seen(confidences, classes, classes[-1], labels if labelled else None)


def answered(seen: Seen, thresholds: tuple[float, ...]) -> list[int]:
    """Which variant answers each sample, as the device decides it."""
    policy, variants = Cascade(thresholds), len(seen.classes)
    places = []
    for sample in range(seen.samples):
        for place in range(variants):
            classes = seen.classes[: place + 1, sample].tolist()
            if choose.stands(policy, variants, classes, float(seen.confidences[place, sample])):
                places.append(place)
                break
    return places


@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.02, 0.1]),
    st.sampled_from([None, "per_exit"]),
)
def test_no_more_is_lost_than_allowed_and_the_figures_are_the_devices(seed, samples, drop, search):
    seen = drawn(seed, samples)
    costs = np.random.default_rng(seed).uniform(0.5, 1.5, (3, samples)) * [[1], [3], [9]]
    goal = Goal(max_accuracy_drop=drop, search=search)
    found = fit_cascade(goal, NAMES, seen, costs, "ms")
    places = answered(seen, found.thresholds)
    right = seen.classes[places, np.arange(samples)] == seen.labels
    assert right.sum() >= least_correct(int((seen.classes[-1] == seen.labels).sum()), samples, drop)
    assert found.accuracy == pytest.approx(right.mean())
    assert found.rates == pytest.approx(np.bincount(places, minlength=3) / samples)
    spent = [costs[: place + 1, sample].sum() for sample, place in enumerate(places)]
    assert found.mean_cost == pytest.approx(np.mean(spent))
    assert found.widest_cost == pytest.approx(costs[-1].mean())


def test_without_labels_the_widest_says_what_is_right():
    seen = drawn(1, 40, labelled=False)
    costs = np.ones((3, 40))
    found = fit_cascade(Goal(min_exit_rate=0.5), NAMES, seen, costs, "MACs")
    assert sum(found.rates[:-1]) >= 0.5
    places = answered(seen, found.thresholds)
    assert found.accuracy == pytest.approx(np.mean(seen.classes[places, range(40)] == seen.final))
    with pytest.raises(RecipeError, match="no labels"):
        fit_cascade(Goal(max_accuracy_drop=0.1), NAMES, seen, costs, "MACs")


def test_shares_are_asked_for_by_the_variants_names():
    seen, costs = drawn(2, 50), np.ones((3, 50))
    found = fit_cascade(Goal(exit_rates={"a": 0.5, "b": 0.3}), NAMES, seen, costs, "MACs")
    assert found.rates == pytest.approx((0.5, 0.3, 0.2), abs=0.05)
    with pytest.raises(RecipeError, match="but the widest: a, b"):
        fit_cascade(Goal(exit_rates={"a": 0.5}), NAMES, seen, costs, "MACs")


def test_a_goal_that_nothing_meets_is_refused_by_its_place():
    with pytest.raises(CheckError, match=r"variants\.tune asks for"):
        seen = dataclasses.replace(drawn(3, 50), labels=np.full(50, 9))
        goal = Goal(max_accuracy_drop=0.0, min_class_accuracy=0.5)
        fit_cascade(goal, NAMES, seen, np.ones((3, 50)), "MACs")


@pytest.mark.parametrize(
    "goal",
    [
        {"certificate": {"risk": 0.05}},
        {"max_latency_ms": 5},
        {"max_accuracy_drop": 0.1, "energy_mj": {"a": 1, "b": 2, "c": 3}},
    ],
)
def test_what_is_for_exits_alone_is_refused(goal):
    with pytest.raises(RecipeError, match="for the exits of a chain"):
        fit_cascade(Goal(**goal), NAMES, drawn(7, 50), np.ones((3, 50)), "MACs")


def test_variants_that_saw_other_samples_make_no_cascade():
    policy = Policy("max_prob", ())
    one, other = drawn(4, 20, 1), drawn(5, 20, 1)
    with pytest.raises(RecipeError, match="different samples"):
        seen_of_variants([policy, policy], [one, other])


def test_a_variant_says_what_its_chain_says_under_its_policy():
    seen = drawn(6, 30)
    joint, left = seen_of_variants([Policy("max_prob", (0.7, 0.7))] * 2, [seen, seen])
    places = answered(seen, (0.7, 0.7))
    assert left[0].tolist() == left[1].tolist() == places
    assert joint.classes[0].tolist() == seen.classes[places, range(30)].tolist()
    assert joint.confidences[1].tolist() == seen.confidences[places, range(30)].tolist()


def test_a_built_ladder_is_tuned_without_running_anything(
    built_ladder: Path, tmp_path: Path
) -> None:
    document = read_ladder(built_ladder)
    out = tmp_path / "tuned"
    goal = Goal(max_accuracy_drop=0.5)
    shown = retune_ladder(built_ladder, document, out, goal=goal, policy=None, dry_run=True)
    assert not out.exists()
    found = retune_ladder(built_ladder, document, out, goal=goal, policy=None)
    assert found == shown == read_ladder(out)
    assert found.policy == Cascade()
    assert found.cascade is not None
    assert found.cascade.goal == {"max_accuracy_drop": 0.5}
    for name in (NARROW, WIDE):
        assert read_variant(out, found, name).manifest == (
            read_variant(built_ladder, document, name).manifest
        )
    again = retune_ladder(out, found, tmp_path / "again", goal=None, policy=None)
    assert (again.cascade, again.ladder_id) == (found.cascade, found.ladder_id)


def test_the_command_tunes_a_ladder_to_a_devices_times(
    built_ladder: Path, tmp_path: Path, cli: Callable[..., Ended]
) -> None:
    ladder, out = Path(shutil.copytree(built_ladder, tmp_path / "ladder")), tmp_path / "out"
    goal = "--set", "variants.tune.max_accuracy_drop=0.5"
    refused = cli("tune", ladder)
    assert refused.code == 1
    assert "variants.tune.max_accuracy_drop=0.01" in refused.err
    document = read_ladder(ladder)
    times = {
        one.name: Measured(one.bundle_id, Latency(ms, ms, ms), None)
        for one, ms in zip(document.variants, (2.0, 5.0), strict=True)
    }
    (ladder / PROFILE_NAME).write_bytes(seal_profile("onnxruntime", "onnxruntime 1", 1, times))
    ended = cli("tune", ladder, *goal, "--output", out, "--json", "-")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["cascade"]["unit"] == "ms"
    assert found["cascade"]["widest_cost"] == 5.0
    assert read_ladder(out).policy == Cascade()
    # What was tuned once says what to tune to.
    assert cli("tune", out, "--dry-run").code == 0
    fixed = json.dumps({"kind": "fixed", "variant": NARROW})
    ended = cli("tune", out, "--set", f"variants.policy={fixed}", "--output", tmp_path / "fixed")
    assert ended.code == 0, ended.err
    assert read_ladder(tmp_path / "fixed").policy == Fixed(NARROW)
    stray = cli("tune", ladder, "--set", "policy.criterion=margin")
    assert stray.code == 1
    assert "edgekit build" in stray.err
    old = {**times, WIDE: dataclasses.replace(times[WIDE], bundle_id="0" * 64)}
    (ladder / PROFILE_NAME).write_bytes(seal_profile("onnxruntime", "onnxruntime 1", 1, old))
    stale = cli("tune", ladder, *goal, "--dry-run")
    assert stale.code == 1
    assert "--profile measures these" in stale.err


def test_a_variant_is_not_tuned_into_its_ladder(
    tiny_ladder: Path, cli: Callable[..., Ended]
) -> None:
    goal = "--set", "policy.tune.max_accuracy_drop=1.0"
    ended = cli("tune", tiny_ladder / NARROW, *goal, "--dry-run")
    assert ended.code == 1
    assert "lies in a ladder; give another --output" in ended.err
