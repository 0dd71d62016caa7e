"""The points that travel, whatever was asked for."""

import itertools
from typing import Any

import numpy as np
import pytest

from edgekit.recipe import Recipe, load_recipe
from edgekit.tuning.certificate import parted
from edgekit.tuning.goal import Costs, settle
from edgekit.tuning.seen import Seen
from tests.conftest import ROOT

EXITS = ("exit1", "exit2", "exit3", "final")


def drawn(seed: int, samples: int = 1000) -> Seen:
    """Four exits, the deeper the more often right, and sure where they are."""
    generator = np.random.default_rng(seed)
    hard = generator.random(samples)
    labels = generator.integers(0, 10, samples)
    depth = np.arange(1, 5)[:, None] / 4
    right = generator.random((4, samples)) < 1 - 0.4 * hard * (1.2 - depth)
    classes = np.where(right, labels, (labels + 1) % 10)
    sure = 1 - hard * (1 - 0.5 * depth) * generator.random((4, samples))
    return Seen(np.where(right, sure, 0.8 * sure), classes, classes[-1], labels)


def recipe(policy: dict[str, Any]) -> Recipe:
    overrides = {f"policy.{key}": value for key, value in policy.items()}
    return load_recipe(str(ROOT / "recipes/digits/recipe.yaml"), overrides)


GOALS: list[dict[str, Any]] = [
    {"thresholds": 0.7},
    {"thresholds": None, "tune": {"max_accuracy_drop": 0.01}},
    {"thresholds": None, "tune": {"max_accuracy_drop": 0.01, "search": "per_exit"}},
    {"thresholds": None, "tune": {"mean_plus_std": 0.5}},
    {"thresholds": None, "tune": {"certificate": {"risk": 0.2}}},
    {"thresholds": None, "tune": {"certificate": {"risk": 0.2, "of": "accuracy_loss"}}},
]


@pytest.mark.parametrize("policy", GOALS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_points_rise_in_cost_up_to_where_nobody_leaves(policy, seed):
    seen = drawn(seed)
    costs = Costs("MACs", np.array([1.0, 2.0, 3.0, 4.0]))
    right = int(seen.right()[-1].sum())
    tuning = settle(recipe(policy), EXITS, seen, costs, right).tuning
    each = [point.cost for point in tuning.points]
    assert all(one < dearer for one, dearer in itertools.pairwise(each))
    assert [one.count for one in tuning.points[-1].left] == [0, 0, 0, seen.samples]
    assert tuning.points[-1].right == right
    # Beside the chosen one and the last, each is right more often than all that cost less.
    front = [
        point.right for place, point in enumerate(tuning.points[:-1]) if place != tuning.chosen
    ]
    assert front == sorted(set(front))


def test_what_is_certified_stays_below_the_risk_on_what_it_was_tested_on():
    seen = drawn(0, 4000)
    asked = recipe({"thresholds": None, "tune": {"certificate": {"risk": 0.1}}})
    found = settle(asked, EXITS, seen, Costs("MACs", np.arange(1.0, 5.0)), None)
    agrees, (_, tested) = seen.right("disagreement"), parted(seen.samples)
    for point in found.tuning.points:
        taken = seen.taken(point.thresholds)
        assert np.mean(~agrees[taken[tested], tested]) < 0.1


@pytest.mark.parametrize("limit", [1.5, 2.2, 3.0, 3.9])
def test_the_p95_of_a_mixture_is_that_of_samples_drawn_from_it(limit):
    generator = np.random.default_rng(0)
    times = generator.lognormal(np.log([[1.0], [2.0], [4.0]]), 0.1, (3, 20_000))
    quantiles = np.quantile(times, np.linspace(0, 1, 41), axis=1).T
    mean_ms = times.mean(axis=1)
    costs = Costs("ms", mean_ms, mean_ms, quantiles)
    rates = np.array([0.6, 0.3, 0.1])
    mixed = np.concatenate(
        [one[: int(20_000 * rate)] for one, rate in zip(times, rates, strict=True)]
    )
    assert costs.p95_ms(rates) == pytest.approx(np.quantile(mixed, 0.95), rel=0.02)
    assert rates @ costs.share_within(limit) == pytest.approx(np.mean(mixed <= limit), abs=0.01)
