"""Every search against a plain loop over the samples, and the front against all points."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.tuning.search import (
    Observed,
    between,
    by_rates,
    descend,
    evaluate,
    front,
    grid,
    mean_plus_std,
    search,
    shared,
)

SPECIAL = [np.nan, np.inf, -np.inf, 5e-324, 1e300, -1e300]
CONFIDENCE = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.5000000000000001, 1.0]),
    st.sampled_from(SPECIAL),
    st.floats(0, 1),
)


@st.composite
def observed(draw, exits=(1, 4), samples=(1, 12)):
    count, of = draw(st.integers(*exits)), draw(st.integers(*samples))
    rows = st.lists(CONFIDENCE, min_size=of, max_size=of)
    confidences = draw(st.lists(rows, min_size=count - 1, max_size=count - 1))
    flags = st.lists(st.booleans(), min_size=of, max_size=of)
    right = draw(st.lists(flags, min_size=count, max_size=count))
    costs = np.cumsum(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
    return Observed(
        np.array(confidences).reshape(count - 1, of), np.array(right), costs.astype(float)
    )


def plainly(observed: Observed, thresholds):
    """Counts, right ones and mean cost under thresholds, by a loop."""
    counts, right, cost = [0] * len(observed.right), 0, 0.0
    for sample in range(observed.samples):
        depth = next(
            (
                depth
                for depth, threshold in enumerate(thresholds)
                if observed.confidences[depth, sample] >= threshold
            ),
            len(thresholds),
        )
        counts[depth] += 1
        right += bool(observed.right[depth, sample])
        cost += observed.costs[depth]
    return counts, right, cost / observed.samples


def hold(observed: Observed, points):
    assert np.isfinite(points.thresholds).all()
    for row in range(len(points)):
        counts, right, cost = plainly(observed, points.thresholds[row])
        assert points.counts[row].tolist() == counts
        assert points.right[row] == right
        assert points.costs[row] == pytest.approx(cost)


@given(observed())
def test_every_search_counts_as_a_loop_over_the_samples_does(given):
    for points in (shared(given), grid(given, 200), by_rates(given, [0.5, 1, 2]), search(given)):
        hold(given, points)


@given(observed(exits=(2, 3), samples=(1, 6)))
def test_a_fine_grid_holds_the_best_of_all_thresholds(given):
    values = [sorted({*one[np.isfinite(one)]}) for one in given.confidences]
    tried = [
        [between(low, high) for low, high in zip([None, *one], [*one, None], strict=True)]
        for one in values
    ]
    everything = [plainly(given, one) for one in itertools.product(*tried)]
    found = grid(given)
    for least in range(given.samples + 1):
        costs = [cost for _, right, cost in everything if right >= least]
        ours = found.costs[found.right >= least]
        assert len(ours) > 0 or not costs
        if costs:
            assert ours.min() == pytest.approx(min(costs))


@given(observed())
def test_nothing_beats_a_point_of_the_front_and_everything_else_is_beaten(given):
    points = shared(given)
    chosen = front(points)
    assert (np.diff(chosen.costs) > 0).all()
    assert (np.diff(chosen.right) > 0).all()
    for right, cost in zip(points.right, points.costs, strict=True):
        assert ((chosen.right >= right) & (chosen.costs <= cost)).any()


@given(observed(exits=(2, 4)), st.data())
def test_descending_never_costs_more_nor_loses_what_was_enough(given, more):
    start = more.draw(
        st.lists(st.floats(0, 1), min_size=len(given.right) - 1, max_size=len(given.right) - 1)
    )
    least = more.draw(st.integers(0, given.samples))
    (_, right, cost), (_, right_after, cost_after) = (
        plainly(given, one) for one in (start, descend(given, start, least))
    )
    assert right_after >= min(right, least)
    if right >= least:
        assert cost_after <= cost + 1e-9


def random(exits: int, samples: int, seed: int = 0) -> Observed:
    """Confidences that rise with depth and say something of who is right."""
    generator = np.random.default_rng(seed)
    difficulty = generator.random(samples)
    depth = np.arange(1, exits + 1)[:, None] / exits
    sure = 1 / (1 + np.exp(8 * (difficulty - depth) + generator.normal(size=(exits, samples))))
    right = generator.random((exits, samples)) < 0.4 + 0.6 * sure
    return Observed(sure[:-1], right, np.arange(1.0, exits + 1))


def test_beyond_what_a_grid_covers_descending_improves_on_it():
    seven = random(7, 3000)
    points, coarse = search(seven), front(grid(seven))
    hold(seven, points.of(np.arange(0, len(points), 5)))
    gained = []
    for row in range(0, len(coarse), max(1, len(coarse) // 40)):
        same = points.costs[points.right >= coarse.right[row]]
        assert same.min() <= coarse.costs[row]
        gained.append(coarse.costs[row] - same.min())
    assert max(gained) > 0.05


def test_thresholds_of_their_own_are_faster_than_a_shared_one():
    three = random(3, 3000)
    own, common = search(three), front(shared(three))
    for right in np.linspace(common.right[0], common.right[-1], 9):
        assert own.costs[own.right >= right].min() <= common.costs[common.right >= right].min()


def test_rates_go_as_the_ratio_says():
    four = random(4, 4000)
    counts = by_rates(four, [0.5]).counts[0]
    assert counts == pytest.approx(4000 * np.array([8, 4, 2, 1]) / 15, abs=2)


def test_mean_plus_std_is_that_of_each_exit():
    three = random(3, 500)
    assert mean_plus_std(three, 0.5) == pytest.approx(
        three.confidences.mean(axis=1) + three.confidences.std(axis=1) / 2
    )


def test_points_are_evaluated_in_the_order_given():
    three = random(3, 100)
    given = np.array([[0.2, 0.9], [2.0, 2.0]])
    points = evaluate(three, given)
    assert points.thresholds.tolist() == given.tolist()
    assert points.counts[1].tolist() == [0, 0, 100]
