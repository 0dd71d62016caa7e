import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import Drift, Tuning
from edgekit.bundle.reader import read_bundle
from edgekit.errors import InputError
from edgekit.runtime import AdaptivePolicy, Chain, DriftDetector, DriftWarning, Metrics
from edgekit.runtime.adapt import Settings, State, follow
from tests.runtime.test_drift import THRESHOLDS, tuning_of

Array = npt.NDArray[Any]

MS = 1_000_000

FRONTS = st.lists(st.floats(0.01, 1e9), min_size=1, max_size=12).map(sorted).map(tuple)
SPEEDS = st.floats(1e-3, 1e3)


@st.composite
def ways(draw: st.DrawFn) -> Settings:
    return Settings(
        draw(FRONTS),
        window=draw(st.integers(1, 5)),
        step=draw(st.integers(1, 4)),
        hysteresis=draw(st.floats(0.01, 0.9)),
    )


def places(way: Settings, start: int, speed: float, budget: float, windows: int) -> list[int]:
    """The place after every window of a steady stream: each point costs its cost times `speed`."""
    state, found = State(start), []
    for _ in range(windows):
        cost = speed * way.costs[state.place]
        for _ in range(way.window):
            state = follow(way, state, cost, budget)
        found.append(state.place)
    return found


def settled(way: Settings, start: int, speed: float, budget: float) -> int:
    return places(way, start, speed, budget, len(way.costs) + 1)[-1]


@given(
    way=ways(),
    stream=st.lists(st.tuples(st.floats(), st.floats() | st.sampled_from([0.0, 1.0])), max_size=60),
    data=st.data(),
)
def test_no_stream_leads_off_the_front_or_further_than_a_step(
    way: Settings, stream: list[tuple[float, float]], data: st.DataObject
) -> None:
    state = State(data.draw(st.integers(0, len(way.costs) - 1)))
    for cost, budget in stream:
        after = follow(way, state, cost, budget)
        assert 0 <= after.place < len(way.costs)
        assert abs(after.place - state.place) <= way.step
        assert 0 <= after.samples < way.window
        if after.samples:
            assert after.place == state.place, "it moved amid a window"
        state = after


@given(way=ways(), speed=SPEEDS, share=st.floats(0.01, 100), data=st.data())
def test_a_steady_stream_settles_on_a_point_within_its_budget_and_stays(
    way: Settings, speed: float, share: float, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(way.costs) - 1))
    budget = share * speed * data.draw(st.sampled_from(way.costs))
    found = [start, *places(way, start, speed, budget, 2 * len(way.costs) + 8)]
    moves = [after - before for before, after in pairwise(found) if after != before]
    assert all(one > 0 for one in moves) or all(one < 0 for one in moves), "it turned back"
    (end,) = set(found[len(way.costs) :])
    close = 1e-9  # A sum of costs is not rounded as one cost is.
    assert end == 0 or speed * way.costs[end] <= budget * (1 + close)
    if end > start:
        assert speed * way.costs[end] <= budget * (1 - way.hysteresis) * (1 + close)
    if end + 1 < len(way.costs):
        assert speed * way.costs[end + 1] > budget * (1 - way.hysteresis) * (1 - close)


@given(way=ways(), speed=SPEEDS, budget=st.floats(1e-3, 1e9), data=st.data())
def test_a_larger_budget_never_settles_on_a_cheaper_point(
    way: Settings, speed: float, budget: float, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(way.costs) - 1))
    larger = budget * data.draw(st.floats(1.000001, 100))
    assert settled(way, start, speed, larger) >= settled(way, start, speed, budget)


@given(way=ways(), speed=SPEEDS, budget=st.floats(1e-3, 1e9), data=st.data())
def test_a_stream_that_doubles_its_cost_leads_to_no_dearer_point(
    way: Settings, speed: float, budget: float, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(way.costs) - 1))
    first = settled(way, start, speed, budget)
    after = places(way, first, 2 * speed, budget, len(way.costs) + 1)
    assert all(b <= a for a, b in pairwise([first, *after]))


def test_one_window_tells_that_everything_takes_twice_as_long() -> None:
    way = Settings((1.0, 2.0, 3.0, 4.0), window=10, step=3)
    assert settled(way, 0, 1.0, 5.0) == 3
    # 4 points cost 8 now, and 2 of the 5 that are allowed cost 4: one move, and no more.
    assert places(way, 3, 2.0, 5.0, 4) == [1, 1, 1, 1]


def test_a_stream_that_wavers_less_than_the_hysteresis_does_not_flip() -> None:
    way = Settings((1.0, 2.0), window=1, hysteresis=0.1)
    state, seen = State(0), []
    for number in range(100):
        state = follow(way, state, way.costs[state.place] * (0.96, 1.04)[number % 2], 2.05)
        seen.append(state.place)
    assert set(seen) == {0}, "two would cost 1.92 to 2.08"


def test_the_budget_of_a_window_is_that_of_its_samples() -> None:
    way = Settings((1.0, 2.0), window=2)
    state = follow(way, State(1), 2.0, 3.5)
    assert follow(way, state, 2.0, 0.0) == State(0)
    assert follow(way, state, 2.0, 0.5) == State(1)


@pytest.mark.parametrize("cost", [math.nan, math.inf, -1.0])
def test_what_is_no_measurement_does_not_count(cost: float) -> None:
    way = Settings((1.0, 2.0), window=2)
    state = follow(way, State(1), 2.0, 1.0)
    assert follow(way, state, cost, 1.0) is state
    assert follow(way, state, 2.0, cost) is state


def test_samples_that_took_no_time_leave_room_for_the_next_point() -> None:
    way = Settings((1.0, 2.0, 3.0), window=1)
    assert [follow(way, State(place), 0.0, 1.0).place for place in range(3)] == [1, 2, 2]
    assert follow(way, State(2), 1.0, 0.0).place == 1


def test_a_front_of_one_point_is_never_left() -> None:
    way = Settings((1.0,), window=1)
    for cost in (0.0, 1e-9, 1.0, 1e9):
        assert follow(way, State(0), cost, 1.0) == State(0)


# At a chain.


@pytest.fixture(scope="module")
def pool() -> Array:
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (300, 8, 8), dtype=np.uint8)
    return ((pixels / 255 - 0.5) / 0.25).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def tuning(loaded: Chain, pool: Array) -> Tuning:
    return tuning_of(Chain(loaded.spec, loaded.engines), pool)


class Device:
    """Tells a chain's watchers of samples as a device would that takes `ms` for a cost of 1."""

    def __init__(self, chain: Chain, tuning: Tuning, ms: float = 1.0) -> None:
        self.chain, self.ms, self.now_ns = chain, ms, 5_000 * MS
        self.costs = {point.thresholds: point.cost for point in tuning.points}
        self.watchers = chain.watchers

    def serve(self, samples: int, every_ms: float = 100.0, depth: int = 0) -> None:
        for _ in range(samples):
            busy_ns = int(self.ms * self.costs[self.chain.spec.policy.thresholds] * MS)
            start = self.now_ns
            for watcher in self.watchers:
                watcher.add(depth, 0.3, start, start + busy_ns, "sure")
            self.now_ns = start + max(int(every_ms * MS), busy_ns)


def test_a_throttled_clock_is_followed_and_so_is_its_recovery(chain: Chain, tuning: Tuning) -> None:
    policy = AdaptivePolicy(chain, tuning, latency_ms=3.5, window=10)
    assert (policy.place, policy.point) == (1, tuning.points[1])
    device = Device(chain, tuning)
    device.serve(30)
    assert (policy.place, policy.moves) == (2, 1)
    assert chain.spec.policy.thresholds == policy.point.thresholds == THRESHOLDS[2]
    device.ms = 3
    device.serve(30)
    assert (policy.place, policy.moves) == (0, 3)
    device.serve(100)
    assert (policy.place, policy.moves) == (0, 3)
    device.ms = 1
    device.serve(30)
    assert (policy.place, policy.moves) == (2, 5)


def test_samples_leave_by_the_thresholds_that_the_policy_went_to(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    with AdaptivePolicy(chain, tuning, latency_ms=1e6, window=20) as policy:
        for sample in pool[:20]:
            chain.one(sample)
        assert policy.place == 2
        assert {chain.one(sample).exit for sample in pool[:20]} == {"last"}
    with AdaptivePolicy(chain, tuning, latency_ms=1e-6, window=20) as policy:
        chain.many(pool[:20])
        chain.many(pool[:20])
        assert policy.place == 0
        assert {one.exit for one in chain.many(pool[:20])} == {"first"}
    assert chain.watchers == ()
    assert chain.spec.policy.thresholds == THRESHOLDS[0], "it stays where it was led"


def test_load_follows_how_often_samples_come(chain: Chain, tuning: Tuning) -> None:
    policy = AdaptivePolicy(chain, tuning, load=0.5, window=10)
    device = Device(chain, tuning)
    device.serve(60, every_ms=10)
    assert policy.place == 2, "3 ms of every 10 are less than half"
    device.serve(60, every_ms=5)
    assert policy.place == 1, "2 ms of every 5 are, 3 are not"
    device.serve(60, every_ms=0)
    assert policy.place == 0, "it is never idle"
    device.serve(60, every_ms=6.9)
    assert policy.place == 2


def test_energy_is_what_tuning_says_that_exits_cost(chain: Chain, tuning: Tuning) -> None:
    in_mj = replace(tuning, unit="mJ")
    policy = AdaptivePolicy(chain, in_mj, energy_mj=2.5, window=10)
    device = Device(chain, in_mj, ms=1000)
    device.serve(10, depth=1)
    assert policy.place == 1, "2 mJ each at the point of 2 mJ, and the next costs 3"
    device.serve(10, depth=2)
    assert policy.place == 0, "the stream's samples cost 3 mJ each"


def test_energy_is_watts_times_the_time_that_the_chain_is_busy(
    chain: Chain, tuning: Tuning
) -> None:
    policy = AdaptivePolicy(chain, tuning, energy_mj=10, watts=4, window=10)
    device = Device(chain, tuning)
    device.serve(20)
    assert policy.place == 1, "2 ms of 4 W are 8 mJ, 3 ms are 12"
    device.ms = 0.5
    device.serve(20)
    assert policy.place == 2


def batches(policy: AdaptivePolicy, busy_ms: list[float], every_ms: float) -> None:
    """Batches whose rows left after so many ms each, in the rows' order."""
    for number in range(10):
        start = 9_000 * MS + int(number * every_ms * MS)
        for one in busy_ms:
            policy.add(0, 0.3, start, start + int(one * MS), "sure")


def test_the_load_of_a_batch_counts_its_time_once(chain: Chain, tuning: Tuning) -> None:
    # 8 ms busy of every 20 in all, though the rows' latencies add up to 28.
    for load, place in ((0.45, 1), (0.35, 0)):
        for rows_ms in ([4, 8, 8, 8], [8, 4, 8, 8]):
            chain.set_thresholds(THRESHOLDS[1])
            with AdaptivePolicy(chain, tuning, load=load, window=36) as policy:
                batches(policy, rows_ms, every_ms=20)
            assert policy.place == place, "0.4, and the next point would make it 0.6"


def test_the_rest_of_a_batch_amid_which_it_moved_is_not_counted(
    chain: Chain, tuning: Tuning
) -> None:
    policy = AdaptivePolicy(chain, tuning, latency_ms=0.5, window=1)
    for _ in range(5):
        policy.add(2, 0.3, 7 * MS, 9 * MS, "final")
    assert (policy.place, policy.moves) == (0, 1)
    chain.set_thresholds(THRESHOLDS[2])
    for _ in range(5):
        policy.add(2, 0.3, 17 * MS, 19 * MS, "final")
    assert (policy.place, policy.moves) == (2, 1)
    policy.add(2, 0.3, 27 * MS, 29 * MS, "final")
    assert (policy.place, policy.moves) == (1, 2)


def test_a_sample_that_a_deadline_stopped_costs_what_it_cost(chain: Chain, tuning: Tuning) -> None:
    policy = AdaptivePolicy(chain, tuning, latency_ms=1, window=5)
    for number in range(5):
        policy.add(0, 0.3, number * 10 * MS, (number * 10 + 9) * MS, "deadline")
    assert policy.place == 0


def test_thresholds_of_somebody_else_are_left_alone(chain: Chain, tuning: Tuning) -> None:
    policy = AdaptivePolicy(chain, tuning, latency_ms=1e9, window=1)
    chain.set_thresholds((0.7, 0.7))
    for number in range(9):
        policy.add(0, 0.3, number * MS, number * MS + 1, "sure")
    assert (chain.spec.policy.thresholds, policy.moves) == ((0.7, 0.7), 0)
    chain.set_thresholds(THRESHOLDS[0])
    for number in range(9, 20):
        policy.add(0, 0.3, number * MS, number * MS + 1, "sure")
    assert (policy.place, policy.moves) == (2, 2)


def test_a_chain_that_drifted_stays_at_its_safe_point_whatever_the_budget(
    chain: Chain, tuning: Tuning
) -> None:
    guarded = replace(tuning, drift=Drift(40, 1e-4, safe=True))
    policy = AdaptivePolicy(chain, guarded, latency_ms=2.5, window=10)
    detector = DriftDetector(chain, guarded)
    device = Device(chain, guarded)
    with pytest.warns(DriftWarning):
        device.serve(40)  # All at the first exit with one confidence: not what it was tuned on.
    assert detector.held
    device.serve(200)
    assert (policy.place, policy.moves) == (2, 0)
    assert chain.spec.policy.thresholds == THRESHOLDS[2]
    detector.reset()
    assert chain.spec.policy.thresholds == THRESHOLDS[1]
    device.ms = 5
    device.serve(20)
    assert policy.place == 0, "released, it follows its budget again"


def test_a_bundle_brings_the_points_that_are_followed(built_tiny: Path, pool: Array) -> None:
    chain = Chain.load(built_tiny)
    tuning = read_bundle(built_tiny).manifest.tuning
    assert tuning is not None
    assert len(tuning.points) > 1
    policy = AdaptivePolicy(chain, latency_ms=1e6, window=20)
    detector = DriftDetector(chain)
    assert policy.point.thresholds == chain.spec.policy.thresholds
    for _ in tuning.points:
        chain.many(pool[:40])
    # The cheapest of those that are right most often, and not a dearer one that is no better.
    most = max(one.right for one in tuning.points)
    assert policy.point == next(one for one in tuning.points if one.right == most)
    assert chain.spec.policy.thresholds == policy.point.thresholds
    for start in range(0, tuning.drift.window, 100):
        chain.many(pool[start % 300 :][:100])
    assert detector.windows == 1


def test_a_point_that_a_cheaper_one_is_as_accurate_as_is_never_gone_to(
    chain: Chain, tuning: Tuning, pool: Array
) -> None:
    rights = (5, 7, 6)
    points = [replace(one, right=right) for one, right in zip(tuning.points, rights, strict=True)]
    tuning = replace(tuning, right_by="label", points=tuple(points))
    chain.set_thresholds(points[2].thresholds)
    with AdaptivePolicy(chain, tuning, latency_ms=1e6, window=5) as policy:
        assert policy.point == points[1]
        assert chain.spec.policy.thresholds == points[1].thresholds
        chain.many(pool[:50])
        assert policy.point == points[1]


def test_who_sets_thresholds_is_told_last(chain: Chain, tuning: Tuning) -> None:
    policy = AdaptivePolicy(chain, tuning, latency_ms=5)
    detector = DriftDetector(chain, tuning)
    assert chain.watchers == (detector, policy)


@pytest.mark.parametrize("budget", [{"latency_ms": "5"}, {"load": None, "energy_mj": [1]}])
def test_a_budget_that_is_no_number_is_refused(chain: Chain, tuning: Tuning, budget: dict) -> None:
    with pytest.raises(InputError, match="is a finite number above 0"):
        AdaptivePolicy(chain, tuning, **budget)


def test_a_metrics_line_says_where_the_chain_is_and_how_often_it_drifted(
    chain: Chain, tuning: Tuning, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(chain, path) as metrics:
        metrics.add(0, 0.3, 0, 1, "sure")
        metrics.flush()
        policy = AdaptivePolicy(chain, tuning, latency_ms=5)
        detector = DriftDetector(chain, tuning)
        detector.count = 3
        metrics.add(0, 0.3, 0, 1, "sure")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["place"], line["drifts"]) for line in lines] == [(None, None), (policy.place, 3)]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, "found none"),
        ({"latency_ms": 1, "load": 0.5}, "found latency_ms, load"),
        ({"latency_ms": 0}, "latency_ms is a finite number above 0"),
        ({"latency_ms": math.nan}, "latency_ms is a finite number above 0"),
        ({"load": math.inf}, "load is a finite number above 0"),
        ({"load": 1.5}, "at most 1; found 1.5"),
        ({"energy_mj": 1}, "this tuning counted MACs: give watts"),
        ({"energy_mj": 1, "watts": -1}, "watts is a finite number above 0"),
        ({"latency_ms": 1, "watts": 1}, "give them with energy_mj"),
        ({"latency_ms": 1, "window": 0}, "window and step are at least 1"),
        ({"latency_ms": 1, "step": 0}, "window and step are at least 1"),
        ({"latency_ms": 1, "hysteresis": 1}, "hysteresis from 0 to below 1"),
    ],
)
def test_a_budget_that_nothing_can_be_held_to_is_refused(
    chain: Chain, tuning: Tuning, budget: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        AdaptivePolicy(chain, tuning, **budget)
    assert chain.watchers == ()


@pytest.mark.parametrize("costs", [(0.0, 1.0, 2.0), (1.0, math.inf, 2.0), (2.0, 1.0, 3.0)])
def test_a_front_that_is_none_is_refused(
    chain: Chain, tuning: Tuning, costs: tuple[float, ...]
) -> None:
    pairs = zip(tuning.points, costs, strict=True)
    wrong = replace(tuning, points=tuple(replace(point, cost=cost) for point, cost in pairs))
    with pytest.raises(InputError, match="a budget cannot be followed: points"):
        AdaptivePolicy(chain, wrong, latency_ms=1)


def test_a_chain_that_is_at_no_point_is_refused(chain: Chain, tuning: Tuning) -> None:
    with pytest.raises(InputError, match="load the bundle, or give its tuning"):
        AdaptivePolicy(Chain(replace(chain.spec, tuning=None), chain.engines), load=0.5)
    chain.set_thresholds((0.7, 0.7))
    with pytest.raises(InputError, match=r"no point's of its tuning: set one, chain\.set_thresh"):
        AdaptivePolicy(chain, tuning, load=0.5)


def test_two_budgets_for_one_chain_are_refused(chain: Chain, tuning: Tuning) -> None:
    with (
        AdaptivePolicy(chain, tuning, load=0.5),
        pytest.raises(InputError, match="its AdaptivePolicy already: close that one first"),
    ):
        AdaptivePolicy(chain, tuning, latency_ms=5)
