"""What do metrics and a deadline cost a call? All four combinations, in turn, in one process.

    python benchmarks/metrics_cost.py build/digits/host

The deadline is one that is never reached. `median` is over calls in an order drawn anew for every
sample, `ratio` is over `plain`, `difference` the median of what a call took longer than the plain
call on the same sample. A window's line is written once in 1000 samples; what that takes, and its
share in each sample, comes last. The differences are small beside the noise of a busy machine:
`again` is the plain call a second time, and should differ from it by nothing.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import read_bundle
from edgekit.runtime import Chain, Metrics
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.preprocess import Sample, unstack

WINDOW_SAMPLES = 1000

NEVER_MS = 1e9

CALLS = {
    "plain": (False, None),
    "again": (False, None),
    "metrics": (True, None),
    "deadline": (False, NEVER_MS),
    "both": (True, NEVER_MS),
}
"""With metrics or without, and the deadline."""


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
    chain = Chain.from_bundle(bundle, threads=options.threads)
    chain.measure()
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is written while calls are measured.
        metrics = Metrics(chain, Path(folder, "metrics.jsonl"), every_samples=2**62)
        us = measure_calls(chain, metrics, unstack(data[0]), options.runs)
        window_us = measure_windows(chain, metrics, unstack(data[0]), max(options.runs // 1000, 1))
        metrics.close()
    plain = us["plain"]
    for name, found in us.items():
        median = float(np.median(found))
        print(
            f"{name:<9} median {median:9.2f} us  ratio {median / np.median(plain):.4f}  "
            f"difference {np.median(found - plain):+.2f} us"
        )
    print(
        f"{'window':<9} median {window_us:9.2f} us  of {WINDOW_SAMPLES} samples, "
        f"{window_us / WINDOW_SAMPLES:.2f} us each"
    )


def measure_calls(
    chain: Chain, metrics: Metrics, inputs: Sequence[Sample], runs: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Microseconds `[runs]` of each kind of call."""
    us = {name: np.zeros(runs) for name in CALLS}
    names = list(CALLS)
    order = np.random.default_rng(0)
    clock = time.perf_counter_ns
    gc.disable()
    for run in range(runs):
        x = inputs[run % len(inputs)]
        for place in order.permutation(len(names)):
            counted, deadline_ms = CALLS[names[place]]
            chain.metrics = metrics if counted else None
            start = clock()
            chain.one(x, deadline_ms=deadline_ms) if deadline_ms else chain.one(x)
            us[names[place]][run] = (clock() - start) / 1e3
    gc.enable()
    return us


def measure_windows(
    chain: Chain, metrics: Metrics, inputs: Sequence[Sample], windows: int
) -> float:
    """Median microseconds that it takes to close a window and write its line."""
    chain.metrics = metrics
    us = []
    for _ in range(windows):
        for row in range(WINDOW_SAMPLES):
            chain.one(inputs[row % len(inputs)])
        start = time.perf_counter_ns()
        metrics.flush()
        us.append((time.perf_counter_ns() - start) / 1e3)
    return float(np.median(us))


if __name__ == "__main__":
    main()
