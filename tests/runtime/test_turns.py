"""How contenders take turns, and what makes their figures doubtful."""

import numpy as np
import pytest

from edgekit.runtime import jetson
from edgekit.runtime.turns import (
    MOST_ROUND_SPREAD,
    doubts,
    latency_summary,
    take_turns,
    timed,
)

STEADY = ("the plain network", np.array([[100, 100], [100, 100]], np.int64))


def test_every_job_is_done_once_a_round_with_every_sample() -> None:
    done: dict[str, list[tuple[int, int]]] = {"one": [], "other": []}
    looks: list[int] = []
    jobs = [lambda *at, name=name: done[name].append(at) for name in done]
    share = take_turns(jobs, 3, 2, lambda text: None, lambda: looks.append(len(done["one"])))
    assert done["one"] == done["other"] == [(turn, row) for turn in range(2) for row in range(3)]
    assert looks == [0, 3, 6]
    assert share > 0


def test_the_order_changes_from_sample_to_sample() -> None:
    done: list[str] = []
    jobs = [lambda *at, name=name: done.append(name) for name in ("one", "other")]
    take_turns(jobs, 20, 1, lambda text: None, lambda: None)
    assert {(done[at], done[at + 1]) for at in range(0, 40, 2)} == {
        ("one", "other"),
        ("other", "one"),
    }


def test_what_a_run_gives_is_kept_in_the_order_of_the_runs() -> None:
    kept: list[int] = []
    inputs = [np.array(number) for number in (5, 6)]
    job, latency_ns = timed(int, inputs, 2, kept.append)
    take_turns([job], 2, 2, lambda text: None, lambda: None)
    assert kept == [5, 6, 5, 6]
    assert latency_ns.min() > 0


def test_rounds_may_differ_less_on_a_board_whose_clocks_can_be_held() -> None:
    chain = np.array([[50, 50], [52, 52]], np.int64)
    assert doubts(STEADY, chain, 1.0, MOST_ROUND_SPREAD, alike=True) == []
    (reason,) = doubts(STEADY, chain, 1.0, jetson.MOST_ROUND_SPREAD, alike=True)
    assert reason.startswith("the rounds' speed-ups lie 4% apart")


def test_samples_of_unequal_work_are_each_held_against_themselves() -> None:
    uneven = np.array([[100, 300], [100, 300]], np.int64)
    (reason,) = doubts(("w1.0", uneven), None, 1.0, MOST_ROUND_SPREAD, alike=True)
    assert reason.startswith("w1.0 took 100% longer on average than at its fastest")
    assert doubts(("w1.0", uneven), None, 1.0, MOST_ROUND_SPREAD, alike=False) == []


def test_a_shared_processor_is_a_reason_to_doubt() -> None:
    (reason,) = doubts(STEADY, None, 0.5, MOST_ROUND_SPREAD, alike=True)
    assert reason == "other work took the processor 50% of the time"


def test_the_mean_and_the_percentiles_are_in_milliseconds() -> None:
    found = latency_summary(np.arange(1, 1001, dtype=np.int64)[None] * 1_000_000)
    assert found["mean"] == pytest.approx(500.5)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert found[name] == pytest.approx(1 + 999 * share)


@pytest.mark.parametrize(("name", "least"), [("p90", 64), ("p95", 130), ("p99", 662)])
@pytest.mark.parametrize("rounds", [1, 10])
def test_a_percentile_is_not_given_on_too_few_samples(name: str, least: int, rounds: int) -> None:
    # However often each was measured: repeats say nothing about other samples.
    assert latency_summary(np.ones((rounds, least - 1), np.int64))[name] is None
    assert latency_summary(np.ones((rounds, least), np.int64))[name] is not None


def test_the_mean_and_the_median_are_given_on_a_single_sample() -> None:
    found = latency_summary(np.full((1, 1), 2_000_000))
    assert found == {"mean": 2.0, "p50": 2.0, "p90": None, "p95": None, "p99": None}
