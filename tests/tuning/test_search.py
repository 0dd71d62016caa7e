"""Every search against a plain loop over the samples, and the front against all points."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.bundle.manifest import Policy
from edgekit.runtime.criteria import CRITERIA, decide
from edgekit.tuning.search import (
    Observed,
    between,
    by_rates,
    centred,
    descend,
    evaluate,
    front,
    grid,
    search,
    shared,
    thresholds_at,
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


@dataclasses.dataclass
class Lowest:
    """The lowest shared threshold that keeps enough right; the highest of all if none does."""

    threshold: float
    correct: int
    met: bool


def lowest(confidences, correct, least: int) -> Lowest:
    points = shared(Observed(confidences, correct, np.arange(1.0, len(correct) + 1)))
    enough = np.flatnonzero(points.right >= least)
    row = int(enough[0]) if len(enough) else len(points) - 1
    return Lowest(float(points.thresholds[row, 0]), int(points.right[row]), len(enough) > 0)


def plain_count(confidences, correct, threshold: float) -> int:
    """How many samples are right under the threshold, by the rule's own words."""
    count = 0
    for sample in range(correct.shape[1]):
        for exit in range(len(correct)):
            if exit == len(confidences) or confidences[exit, sample] >= threshold:
                break
        count += int(correct[exit, sample])
    return count


@st.composite
def measured(draw) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and correctness of one to nine samples; many ties, NaN, infinities, neighbours.

    Two in three times of the kind that a network gives.
    """
    exits, samples = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    usual = st.floats(0, 1)
    few = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nextafter(1.0, 0), 5e-324, 1e-323])
    odd = st.sampled_from([np.nan, np.inf, -np.inf, -0.0, 1e300, -1e300, 2.0**60, 0.5])
    elements = draw(st.sampled_from([usual, few, few | odd]))
    confidences = draw(arrays(np.float64, (exits, samples), elements=elements))
    return confidences, draw(arrays(bool, (exits + 1, samples)))


@settings(deadline=None, max_examples=400)
@given(measured(), st.data())
def test_the_threshold_is_the_lowest_of_all_that_keep_enough(data, more):
    confidences, correct = data
    least = more.draw(st.integers(0, correct.shape[1] + 1))
    found = lowest(confidences, correct, least)
    levels = sorted({one for one in confidences.ravel().tolist() if math.isfinite(one)})
    # At a level itself, that level and those above are sure; beyond the last, none is.
    above = math.nextafter(levels[-1], math.inf) if levels else 0.0
    counts = [plain_count(confidences, correct, one) for one in (*levels, above)]
    enough = [index for index, count in enumerate(counts) if count >= least]
    index = enough[0] if enough else len(levels)
    assert found.met == bool(enough)
    assert found.correct == counts[index]
    assert math.isfinite(found.threshold)
    assert plain_count(confidences, correct, found.threshold) == found.correct
    assert index == len(levels) or found.threshold <= levels[index]
    assert index == 0 or found.threshold > levels[index - 1]


def test_a_threshold_lies_midway_and_far_from_the_outermost_confidences():
    confidences = np.array([[0.2, 0.4, 0.8]])
    final_wins = np.array([[True, False, True], [True, True, True]])
    assert lowest(confidences, final_wins, 3).threshold == pytest.approx(0.6)
    assert lowest(confidences, final_wins, 2).threshold < 0.1
    final_wins[0] = False
    nobody = lowest(confidences, final_wins, 3)
    assert nobody.threshold > 1.1
    assert nobody.met
    assert not lowest(confidences, final_wins, 4).met


def test_neighbouring_floats_are_still_told_apart():
    low = 0.75
    for pair in itertools.pairwise([low, math.nextafter(low, 1), math.nextafter(low, 0), low]):
        confidences = np.array([pair])
        early_is_right_for_the_surer = np.array([confidences[0] == max(pair), [True, True]])
        found = lowest(confidences, early_is_right_for_the_surer, 2)
        assert min(pair) < found.threshold <= max(pair)


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=100)
@given(more=st.data())
def test_the_runtimes_rule_counts_the_same(criterion, more):
    exits, samples, classes = (more.draw(st.integers(*ends)) for ends in ((2, 4), (1, 8), (1, 4)))
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 30.0, np.nan, -np.inf]) | st.floats(
        -5, 5, width=32
    )
    logits = [
        more.draw(arrays(np.float32, (samples, classes), elements=values)) for _ in range(exits)
    ]
    labels = more.draw(arrays(np.int64, samples, elements=st.integers(0, classes - 1)))
    confidences = np.stack([CRITERIA[criterion](one) for one in logits[:-1]])
    correct = np.stack([one.argmax(axis=1) == labels for one in logits])
    found = lowest(confidences, correct, more.draw(st.integers(0, samples)))
    chosen = decide(logits, Policy(criterion, (found.threshold,) * (exits - 1))).classes
    assert int(np.sum(chosen == labels)) == found.correct


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


@given(observed(exits=(2, 4)), st.data())
def test_centred_thresholds_decide_alike(given, more):
    count = len(given.confidences)
    start = np.array(more.draw(st.lists(st.floats(-2, 2), min_size=count, max_size=count)))
    found = centred(start, given.confidences)
    assert given.taken(found).tolist() == given.taken(start).tolist()


def test_rates_go_as_the_ratio_says():
    four = random(4, 4000)
    counts = by_rates(four, [0.5]).counts[0]
    assert counts == pytest.approx(4000 * np.array([8, 4, 2, 1]) / 15, abs=2)


def test_a_network_of_very_many_exits_is_searched_without_a_grid():
    many = random(25, 200)
    hold(many, search(many))


def test_points_are_evaluated_in_the_order_given():
    three = random(3, 100)
    given = np.array([[0.2, 0.9], [2.0, 2.0]])
    points = evaluate(three, given)
    assert points.thresholds.tolist() == given.tolist()
    assert points.counts[1].tolist() == [0, 0, 100]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_as_many_leave_as_were_asked_for_where_all_confidences_differ(data: st.DataObject) -> None:
    exits, samples = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    confidences = rng.permutation(exits * samples).reshape(exits, samples) - exits * samples / 2
    leaving = data.draw(
        st.lists(st.integers(0, samples), min_size=exits, max_size=exits).filter(
            lambda counts: sum(counts) <= samples
        )
    )
    found = thresholds_at(confidences, [one / samples for one in leaving])
    assert np.isfinite(found).all()
    stay = np.ones(samples, bool)
    for row, threshold, count in zip(confidences, found, leaving, strict=True):
        assert threshold not in row[stay]
        assert np.sum(stay & (row >= threshold)) == count
        stay &= row < threshold


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_confidence_that_is_none_never_counts_among_those_that_leave(bad: float) -> None:
    confidences = np.array([[0.1, bad, 0.2, bad, 0.3, 0.4]])
    (threshold,) = thresholds_at(confidences, [0.5])
    assert 0.1 < threshold <= 0.2
    assert thresholds_at(np.full((1, 4), bad), [0.5]).tolist() == [1.0]
