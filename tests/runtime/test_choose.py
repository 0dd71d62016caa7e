"""Who answers: each policy on plain values, and `load` on devices whose load is simulated."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.ladder import Cascade, Load
from edgekit.runtime.choose import (
    LoadState,
    accuracy_floor,
    closes,
    follow_load,
    latency_budget,
    load_start,
    memory_budget,
    p95,
    paying,
    stands,
)

P95_MS = (1.0, 2.0, 3.5, 5.5)
"""The 95th percentiles of four widths, as a profile would have them."""

times = st.floats(1e-3, 1e3)
ladders = st.lists(times, min_size=1, max_size=6)


def test_the_widest_within_the_latency_budget_answers() -> None:
    assert latency_budget(P95_MS, 4.0) == 2
    assert latency_budget(P95_MS, 3.5) == 2
    assert latency_budget(P95_MS, 100) == 3
    assert latency_budget(P95_MS, 0.9) is None
    # Of small networks a wider one may be the faster.
    assert latency_budget((2.0, 1.5, 5.0), 1.6) == 1


@given(ladders, times)
def test_no_wider_variant_is_within_the_budget(p95_ms: list[float], budget: float) -> None:
    place = latency_budget(p95_ms, budget)
    assert place is None or p95_ms[place] <= budget
    assert all(one > budget for one in p95_ms[0 if place is None else place + 1 :])


def test_the_cheapest_that_reaches_the_accuracy_answers() -> None:
    accuracies = (0.90, 0.95, 0.96, 0.97)
    assert accuracy_floor(accuracies, P95_MS, 0.95) == 1
    assert accuracy_floor(accuracies, P95_MS, 0.955) == 2
    assert accuracy_floor(accuracies, P95_MS, 0.98) is None
    assert accuracy_floor(accuracies, (1, 5, 2, 9), 0.95) == 2
    assert accuracy_floor(accuracies, (1, 1, 1, 1), 0) == 3
    assert accuracy_floor((None, None, 0.96, None), P95_MS, 0.5) == 2
    assert accuracy_floor((None,) * 4, P95_MS, 0) is None


def test_the_widest_that_fits_the_memory_answers() -> None:
    assert memory_budget((10, 20, 40), 39) == 1
    assert memory_budget((10, 20, 40), 40) == 2
    assert memory_budget((10, 20, 40), 9) is None


def test_a_cascade_ends_where_the_confidence_is_at_least_the_threshold() -> None:
    policy = Cascade((0.9, 0.8))
    assert stands(policy, 3, [7], 0.9)
    assert not stands(policy, 3, [7], 0.89)
    assert stands(policy, 3, [7, 1], 0.8)
    assert not stands(policy, 3, [7, 7], 0.79)
    assert stands(policy, 3, [7, 1, 2], 0.0)


def test_a_cascade_is_never_sure_of_nothing_and_the_widest_always_answers() -> None:
    assert not stands(Cascade((0.0,)), 2, [7], math.nan)
    assert stands(Cascade((0.0,)), 2, [7, 7], math.nan)


def test_a_cascade_ends_where_two_widths_agree() -> None:
    policy = Cascade(agree=True)
    assert not stands(policy, 4, [7], 1.0)
    assert not stands(policy, 4, [7, 1], 1.0)
    assert stands(policy, 4, [7, 1, 1], 0.0)
    assert not stands(policy, 4, [1, 7, 1], 0.0)
    assert stands(policy, 1, [7], 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=5),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.booleans(),
)
def test_a_cascade_asks_no_more_than_it_must(
    said: list[tuple[int, float]], thresholds: list[float], agree: bool
) -> None:
    variants = len(said)
    policy = Cascade(agree=True) if agree else Cascade(tuple(thresholds[: variants - 1]))
    ends = [
        stands(policy, variants, [one for one, _ in said[:asked]], said[asked - 1][1])
        for asked in range(1, variants + 1)
    ]
    for asked, end in enumerate(ends[:-1], start=1):
        if agree:
            assert end is (asked > 1 and said[asked - 1][0] == said[asked - 2][0])
        else:
            assert end is (said[asked - 1][1] >= thresholds[asked - 1])
    assert ends[-1]


@given(st.lists(times, min_size=1, max_size=200))
def test_no_more_than_a_twentieth_is_above_the_95th_percentile(found: list[float]) -> None:
    least = p95(found, len(found))
    assert sum(one > least for one in found) <= 0.05 * len(found)
    assert sum(one >= least for one in found) > 0.05 * len(found)


@given(ladders)
def test_what_a_wider_variant_is_as_fast_as_does_not_pay(p95_ms: list[float]) -> None:
    places = paying(p95_ms)
    assert places[-1] == len(p95_ms) - 1
    assert all(p95_ms[a] < p95_ms[b] for a, b in itertools.pairwise(places))
    for place, one in enumerate(p95_ms):
        assert (place in places) is all(one < wider for wider in p95_ms[place + 1 :])


def test_load_begins_with_the_widest_that_fits_and_else_with_the_narrowest() -> None:
    assert load_start(Load(4.0), P95_MS) == LoadState(2)
    assert load_start(Load(1.0), P95_MS) == LoadState(0)
    assert load_start(Load(0.5), P95_MS) == LoadState(0)
    assert load_start(Load(0.5), (2.0, 1.5, 5.0)) == LoadState(1)


def test_one_window_over_the_target_is_enough_to_go_as_narrow_as_it_takes() -> None:
    policy = Load(6.0, window=20)
    assert follow_load(policy, P95_MS, LoadState(3), [11.0] * 20) == LoadState(1)
    assert follow_load(policy, P95_MS, LoadState(3), [600.0] * 20) == LoadState(0)
    # The load rose amid the window.
    assert follow_load(policy, P95_MS, LoadState(3), [5.0] * 16 + [11.0] * 2) == LoadState(1)
    # It is not full yet, and of what is known nothing more is certain.
    known = [5.0, 11.0, 600.0]
    assert follow_load(policy, P95_MS, LoadState(3), known) == LoadState(1)
    assert follow_load(policy, P95_MS, LoadState(3), [5.0] * 19 + [99.0]) == LoadState(3)
    assert follow_load(policy, P95_MS, LoadState(0), [600.0] * 20) == LoadState(0)


def test_where_only_some_samples_are_slow_two_of_three_windows_lead_to_a_narrower_one() -> None:
    policy = Load(6.0, window=20)
    # Two of twenty, more than a twentieth; how slow they are does not matter.
    some, none = [7.0, *[5.0] * 18, 30.0], [5.0] * 20
    state = follow_load(policy, P95_MS, LoadState(3), some)
    assert state == LoadState(3, doubt=2)
    assert follow_load(policy, P95_MS, state, some) == LoadState(2)
    state = follow_load(policy, P95_MS, state, none)
    assert state == LoadState(3, doubt=1)
    assert follow_load(policy, P95_MS, state, some) == LoadState(2)
    state = follow_load(policy, P95_MS, state, none)
    assert state == LoadState(3)
    assert follow_load(policy, P95_MS, state, some) == LoadState(3, doubt=2)
    # In the narrowest there is nothing to doubt, and what was calm before is so no longer.
    assert follow_load(policy, P95_MS, LoadState(0), some) == LoadState(0)
    assert follow_load(policy, P95_MS, LoadState(2, 1, 3), some) == LoadState(2, doubt=2)


def test_of_a_load_that_rose_the_last_samples_tell_how_far() -> None:
    # Eleven end the window. The least of them is what the variant took while the load rose.
    policy = Load(6.0, window=200)
    risen = [5.0] * 100 + [6.5] * 3 + [11.0] * 6 + [40.0] * 2
    assert closes(policy, len(risen), 11)
    assert follow_load(policy, P95_MS, LoadState(3), risen) == LoadState(1)


@given(st.integers(20, 400), st.data())
def test_a_window_ends_early_only_when_what_follows_cannot_matter(
    window: int, data: st.DataObject
) -> None:
    policy = Load(6.0, window=window)
    slow = data.draw(st.lists(st.booleans(), min_size=window, max_size=window))
    latencies = [7.0 if one else 5.0 for one in slow]
    end = next(n for n in range(1, window + 1) if closes(policy, n, sum(slow[:n])))
    over = p95(latencies, window) > policy.target_ms
    assert (p95(latencies[:end], window) > policy.target_ms) is over
    assert over or end == window


def test_only_some_calm_windows_in_a_row_lead_to_a_wider_variant() -> None:
    policy = Load(6.5, window=20, margin=0.1, calm=3)
    calm, tight = [2.0] * 20, [3.4] * 20
    state = LoadState(1)
    for expected in (LoadState(1, 1, 3), LoadState(1, 2, 3), LoadState(3)):
        state = follow_load(policy, P95_MS, state, calm)
        assert state == expected
    state = follow_load(policy, P95_MS, LoadState(1, 2, 3), tight)
    assert state == LoadState(1)
    # The narrowest that one of the windows expected to fit.
    state = follow_load(policy, P95_MS, LoadState(1, 2, 3), [2.5] * 20)
    assert state == LoadState(2)
    state = follow_load(policy, P95_MS, LoadState(1, 2, 2), calm)
    assert state == LoadState(2)


def test_a_load_that_doubles_is_answered_after_a_twentieth_of_a_window() -> None:
    policy = Load(6.0, window=200)
    assert not closes(policy, 10, 10)
    assert closes(policy, 11, 11)
    assert not closes(policy, 199, 10)
    assert closes(policy, 200, 0)


def test_the_margin_keeps_a_variant_away_that_would_only_just_fit() -> None:
    policy = Load(5.6, margin=0.1, calm=1)
    assert follow_load(policy, P95_MS, LoadState(2), [3.5] * 200) == LoadState(2)
    assert follow_load(policy, P95_MS, LoadState(3), [5.5] * 200) == LoadState(3)
    assert follow_load(Load(6.2, calm=1), P95_MS, LoadState(2), [3.5] * 200) == LoadState(3)


def test_a_variant_that_does_not_pay_is_left_and_passed_over() -> None:
    slow = (1.0, 4.0, 3.0, 5.0)
    assert follow_load(Load(6.0), slow, LoadState(3), [8.0] * 200) == LoadState(2)
    assert follow_load(Load(9.0, calm=1), slow, LoadState(0), [2.5] * 200) == LoadState(2)


@given(
    st.lists(times, min_size=1, max_size=6, unique=True).map(sorted),
    st.floats(0.05, 20),
    times,
    st.floats(0, 0.5),
    st.integers(1, 4),
    st.data(),
)
def test_under_a_steady_load_it_settles_and_stays(
    p95_ms: list[float],
    busy: float,
    target_ms: float,
    margin: float,
    calm: int,
    data: st.DataObject,
) -> None:
    policy = Load(target_ms, window=20, margin=margin, calm=calm)
    state = LoadState(data.draw(st.integers(0, len(p95_ms) - 1)))
    visited = []
    for _ in range(4 * calm):
        state = follow_load(policy, p95_ms, state, [p95_ms[state.place] * busy] * 20)
        visited.append(state.place)
    # Once down or once up, and never back.
    assert len(set(visited[calm:])) == 1
    place = visited[-1]
    now = [one * busy for one in p95_ms]
    # Beside rounding: narrow enough, and a step wider would not have been.
    assert place == 0 or now[place] <= target_ms * (1 + 1e-9)
    if place + 1 < len(now):
        assert now[place + 1] > target_ms * (1 - margin) * (1 - 1e-9)


Trace = list[tuple[int, float]]
"""The place that answered each sample, and what it took."""


def simulate(
    policy: Load, p95_ms: tuple[float, ...], loads: list[float], noise: Callable[[int], np.ndarray]
) -> Trace:
    """A device on which a sample takes its variant's time, times the load, times noise."""
    state, trace = load_start(policy, p95_ms), []
    window: list[float] = []
    over = 0
    scale = p95(
        noise(20_000).tolist(), 20_000
    )  # Such that a variant's 95th percentile is the profile's.
    for load, one in zip(loads, noise(len(loads)), strict=True):
        took = p95_ms[state.place] * load * float(one) / scale
        trace.append((state.place, took))
        window.append(took)
        over += took > policy.target_ms
        if closes(policy, len(window), over):
            state, window, over = follow_load(policy, p95_ms, state, window), [], 0
    return trace


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("rise", "fallen"), [(2.0, 1.0), (2.0, 0.5), (4.0, 1.0)])
def test_p95_is_held_while_the_load_rises_and_falls_again(
    seed: int, rise: float, fallen: float
) -> None:
    policy = Load(target_ms=6.5)
    generator = np.random.default_rng(seed)

    def noise(count: int) -> np.ndarray:
        # A right tail, as times have one, and now and then a hiccup of three times as much.
        hiccups = np.where(generator.random(count) < 0.01, 3.0, 1.0)
        return generator.lognormal(0.0, 0.05, count) * hiccups

    # The change comes amid a window, so that one sees some of both.
    part, offset = 3000, 23
    loads = [1.0] * (part + offset) + [rise] * part + [fallen] * part
    trace = simulate(policy, P95_MS, loads, noise)
    places = [place for place, _ in trace]
    up, down = part + offset, 2 * part + offset
    fits = latency_budget([one * rise for one in P95_MS], policy.target_ms)
    assert fits is not None

    # The widest that fits answers before, the widest that fits under the load, and the first again.
    # There at once, after a tenth of a window; back after the window that the change falls in and
    # `calm` more.
    settled_up = up + policy.window // 10
    settled_down = down + policy.window * (1 + policy.calm)
    assert set(places[:up]) == {3}
    assert set(places[settled_up:down]) == {fits}
    assert set(places[settled_down:]) == {3}

    # Within 10 % of the target, the transitions included.
    for begin, end in ((0, up), (up, down), (down, len(trace))):
        took = [one for _, one in trace[begin:end]]
        assert p95(took, len(took)) <= 1.1 * policy.target_ms

    # One change there, and one back: there are no fewer.
    assert sum(a != b for a, b in itertools.pairwise(places)) == 2


@pytest.mark.parametrize("seed", range(10))
def test_a_load_at_the_border_of_two_widths_does_not_make_it_go_to_and_fro(seed: int) -> None:
    # Loaded, the second widest is right at the target, with noise around it.
    policy = Load(target_ms=7.0)
    generator = np.random.default_rng(seed)
    trace = simulate(
        policy, P95_MS, [2.0] * 5000, lambda count: generator.lognormal(0.0, 0.05, count)
    )
    places = [place for place, _ in trace]
    assert sum(a != b for a, b in itertools.pairwise(places)) <= 3
    took = [one for _, one in trace[2 * policy.window :]]
    assert p95(took, len(took)) <= 1.1 * policy.target_ms


@pytest.mark.parametrize("seed", range(10))
def test_steady_hiccups_that_the_target_allows_do_not_make_it_go_to_and_fro(seed: int) -> None:
    # 3 % of all samples take five times as long: the 95th percentile is that of the others.
    generator = np.random.default_rng(seed)

    def took(count: int) -> np.ndarray:
        hiccups = np.where(generator.random(count) < 0.03, 5.0, 1.0)
        return generator.lognormal(0.0, 0.05, count) * hiccups

    trace = simulate(Load(target_ms=6.5), P95_MS, [1.0] * 15_000, took)
    places = [place for place, _ in trace]
    # By chance two windows in a row may have more than a twentieth of them, once in a while.
    assert sum(a != b for a, b in itertools.pairwise(places)) <= 2
    assert np.mean([place == 3 for place in places]) > 0.9


@pytest.mark.parametrize("every", [230, 240, 300])
def test_interference_that_comes_and_goes_is_answered(every: int) -> None:
    # Every third of 60 samples is slow, again and again: more than a twentieth of all. A window
    # that has most of them ends early, and the next one has few.
    policy, rows = Load(target_ms=6.5), np.arange(20_000)
    slow = (rows % every < 60) & (rows % 3 == 0)
    state, window, took = LoadState(3), [], []
    for factor in np.where(slow, 4.0, 1.0):
        took.append(P95_MS[state.place] * float(factor))
        window.append(took[-1])
        if closes(policy, len(window), sum(one > policy.target_ms for one in window)):
            state, window = follow_load(policy, P95_MS, state, window), []
    assert np.mean(slow) > 0.06
    assert p95(took[1000:], len(took) - 1000) <= 1.1 * policy.target_ms


class Device:
    """A device on which every width takes its own times, with noise and hiccups, and memory."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        speed = self.draw.uniform(0.5, 2.0)
        self.medians_ms = speed * np.array(P95_MS) * self.draw.uniform(0.8, 1.2, 4)
        self.sizes_bytes = np.cumsum(self.draw.integers(10**6, 10**7, 4)).tolist()

    def trace(self, place: int, count: int = 4000) -> list[float]:
        hiccups = np.where(self.draw.random(count) < 0.01, 3.0, 1.0)
        noise = self.draw.lognormal(0.0, 0.05, count) * hiccups
        return (self.medians_ms[place] * noise).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_what_a_budget_chose_by_one_trace_keeps_to_it_on_the_next(seed: int) -> None:
    device = Device(seed)
    profile = [p95(device.trace(place), 4000) for place in range(4)]
    for budget_ms in np.linspace(0.8 * min(profile), 1.2 * max(profile), 20):
        place = latency_budget(profile, budget_ms)
        now = [p95(device.trace(one), 4000) for one in range(4)]
        if place is not None:
            assert now[place] <= 1.05 * budget_ms
        assert all(one >= 0.95 * budget_ms for one in now[0 if place is None else place + 1 :])


@pytest.mark.parametrize("seed", range(10))
def test_a_floor_and_the_memory_are_kept_by_the_one_that_costs_least_or_is_worth_most(
    seed: int,
) -> None:
    device = Device(seed)
    accuracies = sorted(device.draw.uniform(0.8, 1.0, 4))
    means = [float(np.mean(device.trace(place))) for place in range(4)]
    for floor in np.linspace(0.8, accuracies[-1], 10):
        place = accuracy_floor(accuracies, means, floor)
        assert place is not None and accuracies[place] >= floor
        now = [float(np.mean(device.trace(one))) for one in range(4)]
        reached = [one for one in range(4) if accuracies[one] >= floor]
        assert now[place] <= 1.05 * min(now[one] for one in reached)
    for free in range(0, 4 * 10**7, 10**6):
        place = memory_budget(device.sizes_bytes, free)
        fit = [one for one, size in enumerate(device.sizes_bytes) if size <= free]
        assert place == (fit[-1] if fit else None)


@pytest.mark.parametrize("agree", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_cascade_over_a_trace_is_faster_than_the_widest_and_nearly_as_often_right(
    seed: int, agree: bool
) -> None:
    device = Device(seed)
    policy = Cascade(agree=True) if agree else Cascade((0.8, 0.7, 0.6))
    # A width is sure of what is easier than it can do, and then right.
    hardness = device.draw.beta(1, 4, 2000)
    able = np.array([0.55, 0.7, 0.8, 0.9])
    times = np.array([device.trace(place, 2000) for place in range(4)])
    spent, right, alone = 0.0, 0, 0
    for row, hard in enumerate(hardness):
        told: list[int | None] = []
        for place in range(4):
            knows = hard < able[place]
            told.append(0 if knows else int(device.draw.integers(1, 9)))
            spent += times[place, row]
            if stands(policy, 4, told, float(np.clip(0.5 + able[place] - hard, 0, 1))):
                break
        right += told[-1] == 0
        alone += hard < able[-1]
    assert spent < times[-1].sum()
    assert right >= alone - 0.02 * len(hardness)
