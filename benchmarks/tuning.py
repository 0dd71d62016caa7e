"""How long do the searches for thresholds take, beside a plain grid search?

    python benchmarks/tuning.py

On samples drawn from a fixed seed: confidences of four exits that say something of who is right.
`plain grid` decides every sample anew under every combination of a few thresholds, in numpy; the
row says how many, and what the same number as the grid's would take at that rate.
"""

import argparse
import itertools
import resource
import time
from collections.abc import Callable

import numpy as np

from edgekit.tuning.certificate import certify
from edgekit.tuning.search import Observed, Points, by_rates, evaluate, grid, search, shared

EXITS = 4

PLAIN = 5
"""Thresholds for each exit that the plain grid search tries."""


def main() -> None:
    """Time each search once for each number of samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[50_000, 1_000_000])
    options = parser.parse_args()
    for samples in options.samples:
        given = drawn(samples)
        for name, call in {
            "shared": shared,
            "by rates": by_rates,
            "grid": grid,
            "all, and the front": search,
            "plain grid": plain_grid,
        }.items():
            points, took_s = timed(call, given)
            words = f"{samples:>9,} samples  {name:18}  {took_s:7.3f} s  {len(points):>9,} points"
            if call is plain_grid:
                of = len(grid(given))
                words += f"; {of:,} would take {took_s * of / len(points):,.0f} s"
            print(words)
        started_s = time.perf_counter()
        found = certify(given, 0.5, 0.9)
        took_s = time.perf_counter() - started_s
        print(f"{samples:>9,} samples  certificate         {took_s:7.3f} s  of {found.tested:,}")
    # In kB, as Linux counts it.
    most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{most_mb:,.0f} MB at most, in one process")


def drawn(samples: int) -> Observed:
    """Four exits of which the deeper is the surer, and the surer more often right."""
    generator = np.random.default_rng(0)
    depth = np.arange(1, EXITS + 1)[:, None] / EXITS
    doubt = 8 * (generator.random(samples) - depth) + generator.normal(size=(EXITS, samples))
    sure = 1 / (1 + np.exp(doubt))
    right = generator.random((EXITS, samples)) < 0.4 + 0.6 * sure
    return Observed(sure[:-1], right, np.arange(1.0, EXITS + 1))


def plain_grid(given: Observed) -> Points:
    """What comes of every combination of evenly spaced quantiles, decided sample by sample."""
    tried = [np.quantile(one, np.linspace(0, 1, PLAIN)) for one in given.confidences]
    return evaluate(given, np.array(list(itertools.product(*tried))))


def timed(call: Callable[[Observed], Points], given: Observed) -> tuple[Points, float]:
    """What the call gives, and how long it took in s."""
    started_s = time.perf_counter()
    found = call(given)
    return found, time.perf_counter() - started_s


if __name__ == "__main__":
    main()
