import math
import warnings
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgekit.bundle.manifest import Drift, Left, Point, Tuning
from edgekit.bundle.reader import Bundle
from edgekit.errors import InputError
from edgekit.runtime import Chain, DriftDetector, DriftWarning, Metrics
from edgekit.runtime.drift import Comparison, Window, chi_square_sf, compare

Array = npt.NDArray[Any]

SECOND = 1_000_000_000
THRESHOLDS = ((0.0, 0.0), (0.30, 0.29), (1.0, 1.0))
"""The front of the tiny chain: everyone leaves first, some do, nobody does."""


def tuning_of(chain: Chain, samples: Array, drift: Drift | None = None) -> Tuning:
    """What tuning would say of the tiny chain, counted on these samples."""
    points = []
    for thresholds, cost in zip(THRESHOLDS, (1.0, 2.0, 3.0), strict=True):
        other = chain.with_policy(replace(chain.spec.policy, thresholds=thresholds))
        exits: dict[str, list[float]] = {one.exits[-1].name: [] for one in chain.spec.segments}
        for found in other.many(samples):
            exits[found.exit].append(found.confidence)
        left = []
        for confidences in exits.values():
            edges = tuple(map(float, np.quantile(confidences or [0.5], [0.25, 0.5, 0.75])))
            bins = [bisect_right(edges, one) for one in confidences]
            left.append(Left(edges, tuple(bins.count(place) for place in range(4))))
        points.append(Point(thresholds, None, cost, tuple(left)))
    drift = drift or Drift(60, 1e-4, False)
    costs = (1.0, 2.0, 3.0)
    return Tuning(
        len(samples), None, "MACs", costs, tuple(points), 1, None, drift, None, True, "seen.npz"
    )


@pytest.fixture(scope="module")
def pool(bundle: Bundle) -> Array:
    """Samples like those of the tiny recipe, enough to tune on and to draw streams of."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (600, 8, 8), dtype=np.uint8)
    return ((pixels / 255 - 0.5) / 0.25).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def tuning(loaded: Chain, pool: Array) -> Tuning:
    return tuning_of(Chain(loaded.spec, loaded.engines), pool[:400])


# The test itself.


@given(
    x=st.floats(0, 1e5, allow_subnormal=False),
    degrees=st.integers(1, 300),
)
@settings(max_examples=500)
def test_the_tail_is_scipys(x: float, degrees: int) -> None:
    expected = float(stats.chi2.sf(x, degrees))
    assert chi_square_sf(x, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 2001, 2002])
def test_the_tail_neither_overflows_nor_vanishes_early(degrees: int) -> None:
    # e^(-x/2) alone is zero beyond 1,490: with many degrees of freedom the tail is then still 1.
    for x in (0.0, 5e-324, 1e-12, 1.0, 700.0, 1500.0, 2000.0, 2500.0, 1e6):
        expected = float(stats.chi2.sf(x, degrees))
        assert chi_square_sf(x, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-300), x


def cells(*counts: tuple[int, ...]) -> tuple[Left, ...]:
    return tuple(Left(tuple(np.arange(len(one) - 1) / 10), one) for one in counts)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=300)
def test_the_statistic_is_scipys_over_the_cells_that_are_large_enough(
    exits: list[list[tuple[int, int]]],
) -> None:
    tuned = cells(*(tuple(a for a, _ in one) for one in exits))
    counts = [[b for _, b in one] for one in exits]
    found = compare(tuned, counts)
    every = np.array([pair for one in exits for pair in one]).T
    totals = every.sum(axis=1)
    if min(totals) == 0:
        assert found == Comparison(1.0, 0.0, 0)
        return
    expected = every.sum(axis=0) * totals[:, None] / totals.sum()
    if expected.min() >= 5:
        ours = stats.chi2_contingency(every, correction=False)
        assert found.degrees == ours.dof == every.shape[1] - 1
        assert found.statistic == pytest.approx(ours.statistic)
        assert found.p_value == pytest.approx(ours.pvalue, rel=1e-6, abs=1e-300)
    # However cells are merged, so much is expected in each that the smaller total has 5 of each.
    assert found.degrees + 1 <= max(min(totals) / 5, 1)
    mirrored = compare(cells(*map(tuple, counts)), [[a for a, _ in one] for one in exits])
    assert mirrored == pytest.approx(found)


def test_small_cells_are_merged_within_their_exit() -> None:
    # 3 bins of the first exit are too small; its last joins the one before, not the next exit.
    left = cells((2, 2, 2, 40, 1), (50, 50), (1, 0))
    found = compare(left, [[2, 2, 2, 40, 1], [50, 50], [1, 0]])
    assert found == Comparison(1.0, 0.0, 3)
    assert compare(cells((40, 3), (50,)), [[43, 0], [50]]) == Comparison(1.0, 0.0, 1)
    # The first three bins together say what none of them could alone.
    left = cells((4, 4, 4, 40, 1), (50, 50), (1, 0))
    shifted = compare(left, [[0, 0, 0, 52, 1], [50, 50], [1, 0]])
    assert shifted.degrees == 3
    assert shifted.p_value < 0.01


def test_too_few_samples_tell_nothing() -> None:
    assert compare(cells((5, 0), (3, 1)), [[0, 0], [0, 4]]) == Comparison(1.0, 0.0, 0)
    assert compare(cells((500, 500)), [[0, 4]]).p_value == 1.0
    assert compare(cells((500, 500)), [[0, 0]]).p_value == 1.0


def test_a_window_with_one_exit_only_is_compared() -> None:
    left = cells((50, 50), (50, 50))
    assert compare(left, [[50, 50], [0, 0]]).p_value < 1e-6
    assert compare(cells((100, 100), (0, 0)), [[50, 50], [0, 0]]).p_value == 1.0


def fires(shift: float, p_value: float, windows: int, seed: int) -> int:
    """How many windows of 300 samples drift from tuning splits of 1,000, each drawn anew."""
    generator = np.random.default_rng(seed)
    usual = generator.dirichlet(np.ones(18))
    now = (1 - shift) * usual + shift * generator.dirichlet(np.ones(18))
    count = 0
    for _ in range(windows):
        tuned = generator.multinomial(1000, usual).tolist()
        seen = generator.multinomial(300, now).tolist()
        left = cells(tuple(tuned[:6]), tuple(tuned[6:12]), tuple(tuned[12:]))
        count += compare(left, [seen[:6], seen[6:12], seen[12:]]).p_value < p_value
    return count


@pytest.mark.parametrize("p_value", [0.05, 0.01])
def test_a_stream_like_the_tuning_split_raises_no_more_alarms_than_promised(p_value: float) -> None:
    windows = 4000
    alarms = fires(0.0, p_value, windows, seed=1)
    # So many or more of a rate of p_value come once in a million.
    assert alarms < stats.binom.isf(1e-6, windows, p_value)
    assert alarms > stats.binom.ppf(1e-6, windows, p_value / 2), "it would never fire"


def test_a_clear_shift_is_seen_in_nearly_every_window() -> None:
    assert fires(0.5, 1e-3, 200, seed=2) >= 198


# Where a confidence is counted.


def test_a_confidence_is_counted_where_the_tuning_split_was() -> None:
    window = Window((Left((0.5, 0.5, 0.9), (9, 0, 9, 9)),), 9)
    for confidence in (0.1, 0.5, 0.5, 0.89, 0.9, 1.0, math.inf, math.nan):
        assert window.add(0, confidence) is None
    assert window._counts == [[1, 0, 3, 4]]
    assert window.add(0, -math.nan) is not None
    assert window._counts == [[0, 0, 0, 0]]


@given(
    st.lists(st.floats(allow_nan=False), max_size=9).map(sorted),
    st.floats(allow_nan=True),
)
def test_a_bin_holds_what_is_from_its_edge_up_to_the_next(
    edges: list[float], confidence: float
) -> None:
    window = Window((Left(tuple(edges), (1,) * (len(edges) + 1)),), 2)
    window.add(0, confidence)
    place = window._counts[0].index(1)
    if math.isnan(confidence):
        assert place == len(edges)
    else:
        assert place == sum(edge <= confidence for edge in edges)


# At a chain.


def test_a_stream_like_the_tuning_split_does_not_drift(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    with DriftDetector(chain, tuning) as detector:
        for sample in pool[400:]:
            chain.one(sample)
        chain.many(pool[400:])
    assert (detector.windows, detector.count) == (400 // 60, 0)
    assert detector.last is not None
    assert detector.last.p_value > 1e-4


@pytest.mark.parametrize("batch", [False, True])
def test_another_stream_drifts_in_its_first_window(
    chain: Chain, tuning: Tuning, pool: Array, batch: bool
) -> None:
    noted: list[Comparison] = []
    detector = DriftDetector(chain, tuning, on_drift=noted.append)
    darker = pool[400:520] * 0.2 - 1
    with pytest.warns(DriftWarning, match="60 samples differ") as given_once:
        if batch:
            chain.many(darker)
        else:
            for sample in darker:
                chain.one(sample)
    assert len(given_once) == 1
    assert detector.count == detector.windows == len(noted) == 2
    assert noted[-1] == detector.last
    assert not detector.held


def test_where_it_is_warned_is_the_callers_line(chain: Chain, tuning: Tuning, pool: Array) -> None:
    DriftDetector(chain, tuning)
    with pytest.warns(DriftWarning) as given_once:
        for sample in pool[400:460] * 0.2 - 1:
            chain.one(sample)
    assert Path(given_once[0].filename) == Path(__file__)


def test_a_warning_that_is_an_error_loses_no_count(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    detector = DriftDetector(chain, safe(tuning))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DriftWarning):
            for sample in pool[400:460] * 0.2 - 1:
                chain.one(sample)
    assert (detector.count, detector.held) == (1, True)
    assert chain.one(pool[0]).exit == "last", "the lock was left behind"


def test_a_film_is_compared_by_one_frame_of_every_so_many(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    scenes = [pool[400 + number % 200] for number in range(240)]
    with DriftDetector(chain, tuning, every=20) as detector:
        for scene in scenes:
            for _ in range(20):
                chain.one(scene)
    assert (detector.windows, detector.count) == (4, 0)
    with DriftDetector(chain, tuning) as detector, pytest.warns(DriftWarning):
        for scene in scenes[:24]:
            for _ in range(20):
                chain.one(scene)
    assert detector.windows == 8
    assert detector.count >= 6, "three scenes fill a window, and look like another stream"


def safe(tuning: Tuning) -> Tuning:
    return replace(tuning, drift=replace(tuning.drift, safe=True))


def test_a_drifted_chain_goes_to_its_most_accurate_point_and_stays(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    before = chain.spec.policy
    detector = DriftDetector(chain, safe(tuning))
    with pytest.warns(DriftWarning):
        chain.many(pool[400:460] * 0.2 - 1)
    assert detector.held
    assert chain.spec.policy.thresholds == THRESHOLDS[-1]
    # It goes on comparing there; what is usual again is not what releases it.
    assert {one.exit for one in chain.many(pool[400:520])} == {"last"}
    assert (detector.windows, detector.count, detector.held) == (3, 1, True)
    detector.reset()
    assert (chain.spec.policy, detector.held, detector.count) == (before, False, 1)
    with pytest.warns(DriftWarning):
        chain.many(pool[400:460] * 0.2 - 1)
    assert (detector.count, detector.held) == (2, True)


def test_windows_of_two_points_are_not_mixed(chain: Chain, tuning: Tuning, pool: Array) -> None:
    detector = DriftDetector(chain, tuning)
    for part in np.split(pool[400:520], 6):
        # In turns of 20, so that no window of 60 ends before the chain goes to the other point.
        for thresholds in (THRESHOLDS[0], THRESHOLDS[2]):
            chain.set_thresholds(thresholds)
            for sample in part:
                chain.one(sample)
    # The first sample after a change may have been of the call that changed it.
    assert detector.windows == 2 * (6 * 19 // 60)
    assert detector.count == 0


def test_samples_of_the_call_that_moved_are_not_counted(chain: Chain, tuning: Tuning) -> None:
    detector = DriftDetector(chain, tuning)
    chain.set_thresholds(THRESHOLDS[2])
    for row in range(64):
        detector.add(0, 0.3, 7 * SECOND, 8 * SECOND + row, "sure")
    assert detector.windows == 0
    with pytest.warns(DriftWarning):
        for row in range(60):
            detector.add(0, 0.3, 9 * SECOND + row, 10 * SECOND + row, "sure")
    assert detector.windows == 1


def test_thresholds_that_tuning_does_not_know_are_not_compared(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    detector = DriftDetector(chain, tuning)
    chain.set_thresholds((0.5, 0.5))
    chain.many(pool[:120])
    assert detector.windows == 0
    chain.set_thresholds(THRESHOLDS[1])
    chain.many(pool[:200])
    assert detector.windows >= 1


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_deadline_alone_is_no_drift(share: float) -> None:
    """Who was stopped would have left deeper: left out, the deep exits would seem deserted."""
    generator = np.random.default_rng(0)
    left = (Left((0.5,), (300, 300)), Left((), (200,)), Left((0.5,), (50, 50)), Left((), (100,)))
    alarms = 0
    for _ in range(200):
        window = Window(left, 500)
        found = None
        for depth in generator.choice(4, 500, p=[0.6, 0.2, 0.1, 0.1]):
            if depth > 1 and generator.random() < share:
                found = window.add(1, 0.3, stopped=True)
            else:
                found = window.add(depth, generator.random())
        assert found is not None
        alarms += found.p_value < 0.05
    assert alarms <= 22  # Of 200 at 0.05, a binomial's 99.9 %.


def test_drift_shows_through_a_deadline() -> None:
    left = (Left((), (600,)), Left((), (200,)), Left((), (200,)))
    window = Window(left, 300)
    for _ in range(299):
        assert window.add(0, 0.1, stopped=True) is None
    found = window.add(0, 0.9)
    assert found is not None
    assert found.p_value < 1e-6


def test_nothing_to_compare_with_is_said(chain: Chain) -> None:
    with pytest.raises(InputError, match="load the bundle, or give its tuning"):
        DriftDetector(Chain(replace(chain.spec, tuning=None), chain.engines))


def test_fewer_than_one_sample_of_one_is_refused(chain: Chain, tuning: Tuning) -> None:
    with pytest.raises(InputError, match="found every=0"):
        DriftDetector(chain, tuning, every=0)


def test_two_detectors_for_one_chain_are_refused(chain: Chain, tuning: Tuning) -> None:
    with DriftDetector(chain, tuning), pytest.raises(InputError, match="close that one first"):
        DriftDetector(chain, tuning)
    with DriftDetector(chain, tuning):
        assert len(chain.watchers) == 1


def test_nothing_is_compared_after_closing_twice(chain: Chain, tuning: Tuning, pool: Array) -> None:
    detector = DriftDetector(chain, tuning)
    detector.close()
    detector.close()
    chain.many(pool[:120])
    assert (detector.windows, chain.watchers) == (0, ())


def test_a_chain_compares_with_the_tuning_of_its_bundle(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    own = Chain(replace(chain.spec, tuning=tuning), chain.engines)
    detector = DriftDetector(own)
    own.many(pool[:120])
    assert detector.windows == 2
    # Another criterion's confidences have other cells.
    entropy = own.with_policy(replace(own.spec.policy, criterion="entropy"))
    assert entropy.spec.tuning is None
    lower = own.with_policy(replace(own.spec.policy, thresholds=(0.5, 0.5)))
    assert lower.spec.tuning is tuning


def test_counting_and_comparing_go_side_by_side(
    chain: Chain, tuning: Tuning, pool: Array, tmp_path: Path
) -> None:
    alone = chain.many(pool[:120])
    detector = DriftDetector(chain, tuning)
    with Metrics(chain, tmp_path / "metrics.jsonl") as metrics:
        assert chain.metrics is metrics
        assert chain.many(pool[:120]) == alone
    assert chain.metrics is None
    assert chain.watchers == (detector,)
    assert detector.windows == 2
