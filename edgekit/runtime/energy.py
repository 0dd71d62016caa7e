"""What an inference costs in energy: each contender alone for some seconds, and the idle module.

Rails are read some twenty times a second, so what they say of contenders that take turns within a
millisecond is of all of them together.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgekit.runtime.power import INTERVAL_S, PowerMeter
from edgekit.runtime.preprocess import Sample

__all__ = ["PHASE_S", "Cost", "measure"]

PHASE_S = 3.0
"""How long each contender runs alone, and at least: whole passes over the samples."""

_LEAD = 0.1
"""The share of that time that it runs before, so that clocks have followed."""

_LEAD_S = 2 * INTERVAL_S
"""And at least so long, so that a reading of what ran before is none of its own."""

Run = Callable[[Sample], object]


class Cost(NamedTuple):
    """What an inference cost on average: in all, and above what the idle module draws meanwhile."""

    mj: float
    above_idle_mj: float
    mean_mw: float
    seconds: float
    inferences: int


def measure(
    meter: PowerMeter,
    contenders: Mapping[str, Run],
    samples: Sequence[Sample],
    mean_ms: float,
    *,
    phase_s: float = PHASE_S,
    step: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Cost], dict[str, Any]] | None:
    """Every contender's cost, and as plain data how it was measured; None if readings are missing.

    All run the same samples, in the same order: where a pass over all would take longer than
    `phase_s`, at `mean_ms` an inference, as many as fit, evenly spaced. The idle module is measured
    before, the contenders come in an order that is drawn.
    """
    order = np.random.default_rng(0)
    most = max(1, int(phase_s * 1000 / mean_ms))
    rows = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples)), dtype=int))
    chosen = [samples[row] for row in order.permutation(rows)]
    with meter:
        step("idle power")
        time.sleep(max(phase_s * _LEAD, _LEAD_S))
        began = time.perf_counter()
        time.sleep(phase_s)
        idle_s = (began, time.perf_counter())
        spans = {}
        names = list(contenders)
        for place in order.permutation(len(names)):
            step(f"energy of {names[place]}")
            spans[names[place]] = _phase(contenders[names[place]], chosen, phase_s)
        facts = meter.facts()
    idle_mj = meter.energy_mj(*idle_s)
    drawn = {name: meter.energy_mj(start, end) for name, (start, end, _) in spans.items()}
    if idle_mj is None:
        return None
    idle_mw = idle_mj / (idle_s[1] - idle_s[0])
    costs = {}
    for name in contenders:
        (start, end, count), mj = spans[name], drawn[name]
        if mj is None:
            return None
        seconds = end - start
        costs[name] = Cost(
            mj / count, (mj - idle_mw * seconds) / count, mj / seconds, seconds, count
        )
    return costs, {
        **facts,
        "idle_mw": idle_mw,
        "idle_s": idle_s[1] - idle_s[0],
        "samples": len(chosen),
    }


def _phase(run: Run, samples: Sequence[Sample], phase_s: float) -> tuple[float, float, int]:
    """When it began and ended, and how often it ran: whole passes, after a while to get going."""
    endless = itertools.cycle(samples)
    led_until = time.perf_counter() + max(phase_s * _LEAD, _LEAD_S)
    while time.perf_counter() < led_until:
        run(next(endless))
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < phase_s:
        for x in samples:
            run(x)
        count += len(samples)
    return began, time.perf_counter(), count
