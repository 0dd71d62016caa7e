"""What do metrics, a budget, a look for drift and a deadline cost a call? In turn, in one process.

    python benchmarks/metrics_cost.py build/digits/host

The deadline is one that is never reached, the windows are ones that never end. `median` is over
calls in an order drawn anew for every sample, `ratio` is over `plain`, `difference` the median of
what a call took longer than the plain call on the same sample. What ends a window, and its share in
each of 1000 samples, comes last: a line of metrics (`window`), a comparison with the tuning split
(`compare`), thresholds that are set (`move`). The differences are small beside the noise of a busy
machine: `again` is the plain call a second time, and should differ from it by nothing.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Tuning
from edgekit.bundle.reader import read_bundle
from edgekit.runtime import AdaptivePolicy, Chain, DriftDetector, Metrics
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.chain import Watcher
from edgekit.runtime.drift import compare
from edgekit.runtime.preprocess import Sample, unstack

WINDOW_SAMPLES = 1000

NEVER_MS = 1e9
NEVER_SAMPLES = 2**62

CALLS: dict[str, tuple[tuple[type, ...], float | None]] = {
    "plain": ((), None),
    "again": ((), None),
    "metrics": ((Metrics,), None),
    "budget": ((AdaptivePolicy,), None),
    "drift": ((DriftDetector,), None),
    "deadline": ((), NEVER_MS),
    "all": ((Metrics, AdaptivePolicy, DriftDetector), NEVER_MS),
}
"""Who watches, and the deadline."""


def main() -> None:
    """Measure the calls, then the closing of windows, and print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    data = load_test_data(bundle)
    assert data is not None, "the bundle carries no test split"  # noqa: S101
    tuning = bundle.manifest.tuning
    assert tuning is not None, "the bundle's policy was not tuned"  # noqa: S101
    chain = Chain.from_bundle(bundle, threads=options.threads)
    chain.measure()
    windows = max(options.runs // 1000, 1)
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is written, compared or moved while calls are measured.
        metrics = Metrics(chain, Path(folder, "metrics.jsonl"), every_samples=NEVER_SAMPLES)
        AdaptivePolicy(chain, tuning, latency_ms=NEVER_MS, window=NEVER_SAMPLES)
        endless = replace(tuning.drift, window=NEVER_SAMPLES)
        DriftDetector(chain, replace(tuning, drift=endless))
        us = measure_calls(chain, unstack(data[0]), options.runs)
        chain.watchers = (metrics,)
        ends = {
            "window": measure_windows(chain, metrics, unstack(data[0]), windows),
            **measure_ends(chain, tuning, 10 * windows),
        }
        metrics.close()
    plain = us["plain"]
    for name, found in us.items():
        median = float(np.median(found))
        print(
            f"{name:<9} median {median:9.2f} us  ratio {median / np.median(plain):.4f}  "
            f"difference {np.median(found - plain):+.2f} us"
        )
    for name, end_us in ends.items():
        print(
            f"{name:<9} median {end_us:9.2f} us  of {WINDOW_SAMPLES} samples, "
            f"{end_us / WINDOW_SAMPLES:.2f} us each"
        )


def measure_calls(
    chain: Chain, inputs: Sequence[Sample], runs: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Microseconds `[runs]` of each kind of call, by those who watch the chain now."""
    watching: dict[str, tuple[Watcher, ...]] = {
        name: tuple(one for one in chain.watchers if isinstance(one, kinds))
        for name, (kinds, _) in CALLS.items()
    }
    us = {name: np.zeros(runs) for name in CALLS}
    names = list(CALLS)
    order = np.random.default_rng(0)
    clock = time.perf_counter_ns
    gc.disable()
    for run in range(runs):
        x = inputs[run % len(inputs)]
        for place in order.permutation(len(names)):
            deadline_ms = CALLS[names[place]][1]
            chain.watchers = watching[names[place]]
            start = clock()
            chain.one(x, deadline_ms=deadline_ms) if deadline_ms else chain.one(x)
            us[names[place]][run] = (clock() - start) / 1e3
    gc.enable()
    return us


def measure_windows(
    chain: Chain, metrics: Metrics, inputs: Sequence[Sample], windows: int
) -> float:
    """Median microseconds that it takes to close a window and write its line."""
    us = []
    for _ in range(windows):
        for row in range(WINDOW_SAMPLES):
            chain.one(inputs[row % len(inputs)])
        start = time.perf_counter_ns()
        metrics.flush()
        us.append((time.perf_counter_ns() - start) / 1e3)
    return float(np.median(us))


def measure_ends(chain: Chain, tuning: Tuning, windows: int) -> dict[str, float]:
    """Median microseconds of a comparison, and of setting thresholds in the plans bound so far."""
    left = tuning.points[tuning.chosen].left
    counts = [one.counts for one in left]
    thresholds = tuning.points[tuning.chosen].thresholds
    ends: dict[str, Callable[[], object]] = {
        "compare": lambda: compare(left, counts),
        "move": lambda: chain.set_thresholds(thresholds),
    }
    us: dict[str, list[float]] = {name: [] for name in ends}
    for _ in range(windows):
        for name, end in ends.items():
            start = time.perf_counter_ns()
            end()
            us[name].append((time.perf_counter_ns() - start) / 1e3)
    return {name: float(np.median(one)) for name, one in us.items()}


if __name__ == "__main__":
    main()
