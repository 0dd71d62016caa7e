"""How contenders are measured beside one another, and when such figures are not to be relied on.

Every round takes every sample through each contender, in an order drawn anew, so that whatever
disturbs the machine, or is left in its caches, meets all of them alike.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runtime.preprocess import Sample

__all__ = [
    "CLOCK",
    "LEAST_SAMPLES",
    "MOST_ROUND_SPREAD",
    "Job",
    "Measured",
    "accuracy_of",
    "doubts",
    "latency_summary",
    "take_turns",
    "timed",
]

Array = npt.NDArray[Any]

CLOCK = "from a prepared input tensor in memory to the decision, batch 1; reading and preprocessing"
CLOCK += " are outside"

LEAST_SAMPLES = {"p90": 64, "p95": 130, "p99": 662}
"""Below these many samples a percentile is not reported: too few lie above it to say where it is.

The counts after which a 99 % interval around the percentile is narrower than half its distance to
the maximum, as MLPerf's rules for early stopping put them.
"""

MOST_ROUND_SPREAD = 0.10
"""How far the rounds' speed-ups may lie apart, over their median, in a valid run."""

MOST_DISTURBANCE = 0.10
"""How much longer than its fastest tenth a network may take on average that does equal work.

All of the difference is the machine's.
"""

LEAST_CPU_SHARE = 0.95
"""The least share of the measured time that one thread must have had a processor."""

Job = Callable[[int, int], None]
"""What is done with a sample in a round; given the round and the sample, from 0."""


@dataclass(frozen=True)
class Measured:
    """One contender's results: nanoseconds `[rounds, samples]` and what it decided per sample.

    `exits` is where each sample left, which is what its time depends on. `classes` are None where
    exits tell none.
    """

    latency_ns: npt.NDArray[np.int64]
    classes: Array
    exits: list[str]

    @property
    def mean_ms(self) -> float:
        """What a sample takes on average."""
        return float(self.latency_ns.mean()) / 1e6


def timed(
    run: Callable[[Sample], Any],
    inputs: Sequence[Sample],
    rounds: int,
    keep: Callable[[Any], None] = lambda found: None,
) -> tuple[Job, npt.NDArray[np.int64]]:
    """A job that runs samples, and the nanoseconds `[rounds, samples]` that it will have taken.

    What `run` gives is handed to `keep`, outside the clock.
    """
    latency_ns = np.zeros((rounds, len(inputs)), np.int64)
    clock = time.perf_counter_ns

    def job(turn: int, index: int) -> None:
        x = inputs[index]
        before = clock()
        found = run(x)
        latency_ns[turn, index] = clock() - before
        keep(found)

    return job, latency_ns


def take_turns(
    jobs: Sequence[Job],
    samples: int,
    rounds: int,
    step: Callable[[str], None],
    look: Callable[[], None],
) -> float:
    """Do every job with every sample, `rounds` times, in an order that is drawn for each sample.

    Takes a `look` at the board before and after each round. Returns the share of the time that this
    process was running.
    """
    order = np.random.default_rng(0)
    collecting = gc.isenabled()
    gc.disable()
    # A look at a board waits for its sensors, so it is no part of the time that is measured.
    spent_s = spent_cpu_s = 0.0
    look()
    try:
        for turn in range(rounds):
            step(f"round {turn + 1} of {rounds}")
            started, started_cpu = time.perf_counter(), time.process_time()
            for index in range(samples):
                for place in order.permutation(len(jobs)):
                    jobs[place](turn, index)
            spent_s += time.perf_counter() - started
            spent_cpu_s += time.process_time() - started_cpu
            look()
    finally:
        if collecting:
            gc.enable()
    return spent_cpu_s / spent_s


def latency_summary(latency_ns: npt.NDArray[np.int64]) -> dict[str, float | None]:
    """Mean and percentiles in ms of nanoseconds `[rounds, samples]`.

    Percentiles are over all measurements; one that `samples` are too few for is None
    (`LEAST_SAMPLES`), however often each was measured.
    """
    samples = latency_ns.shape[1]
    result: dict[str, float | None] = {
        "mean": float(latency_ns.mean()) / 1e6,
        "p50": float(np.percentile(latency_ns, 50)) / 1e6,
    }
    for name, least in LEAST_SAMPLES.items():
        value = float(np.percentile(latency_ns, int(name[1:]))) / 1e6
        result[name] = value if samples >= least else None
    return result


def accuracy_of(classes: Array, labels: Array | None) -> float | None:
    """The share of the labels that were met; None where nobody knows what is right."""
    return None if labels is None else float(np.mean(classes == labels))


def doubts(
    steady: tuple[str, npt.NDArray[np.int64]],
    other_ns: npt.NDArray[np.int64] | None,
    cpu_share: float,
    most_spread: float,
    *,
    alike: bool,
) -> list[str]:
    """Why these figures should not be believed, if there are reasons.

    `steady` is a network, with its name in words and its times, that does the same work whenever it
    is given a sample, and with `alike` for every sample; else each sample is held against itself.
    Its speed-up to `other_ns`, if that is given, is to be the same in all rounds.
    """
    name, steady_ns = steady
    reasons = []
    if other_ns is not None:
        per_round = steady_ns.mean(axis=1) / other_ns.mean(axis=1)
        spread = float((per_round.max() - per_round.min()) / np.median(per_round))
        if spread > most_spread:
            reasons.append(
                f"the rounds' speed-ups lie {spread:.0%} apart, so the machine was not quiet"
            )
    fastest_ns = np.percentile(steady_ns, 10, axis=None if alike else 0).mean()
    disturbance = float(steady_ns.mean() / fastest_ns) - 1
    if disturbance > MOST_DISTURBANCE:
        reasons.append(
            f"{name} took {disturbance:.0%} longer on average than at its fastest, so other work "
            "disturbed it"
        )
    if cpu_share < LEAST_CPU_SHARE:
        reasons.append(f"other work took the processor {1 - cpu_share:.0%} of the time")
    return reasons
