"""Are thresholds for each exit faster than a shared one on digits, and how fast can digits be?

    python benchmarks/digits_thresholds.py [BUNDLE]

The test split of digits is small: one image of it is 0.3 point. So the tuning and the test split
are put together, and parted at random into halves again and again: thresholds are searched on the
one half, the fastest that lose no more against the final exit than they may, and judged on the
other. `oracle` are the best of all thresholds for the very half that they are judged on. Times are
measured once, by the bench: of the chain to each exit, and of the undivided network.
Without a bundle recipes/digits is built, for `host` in FP32.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.runtime import Chain
from edgekit.runtime.bench import bench, load_test_data
from edgekit.runtime.criteria import CRITERIA
from edgekit.tuning.search import Observed, Points, evaluate, search, shared

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/digits/recipe.yaml"

LOSSES = (Fraction(0), Fraction(3, 1000))
"""The shares of the samples that may be lost against the final exit."""

SHARED, PER_EXIT, ORACLE = "shared", "per exit", "oracle"
"""One threshold for all early exits, one for each, and the best of all on the half itself."""

HOPED = 3.5
"""Times as fast as the undivided network that digits is hoped to be."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """What came of thresholds on the halves that they were judged on, float64 `[halvings]` each.

    `speedup` is over the undivided network, `lost` the points of accuracy less than the final
    exit's, `first` the share that leaves at the first exit.
    """

    speedup: Floats
    lost: Floats
    first: Floats

    def kept(self, loss: Fraction) -> float:
        """How often no more was lost than that share."""
        return float(np.mean(self.lost <= 100 * float(loss) + 1e-9))


def main() -> None:
    """Measure, search on every half, print the table and what bounds it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--halvings", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle or _built())
    inputs, labels = load_test_data(bundle) or (None, None)
    assert inputs is not None, "the bundle carries no test split"  # noqa: S101
    report = bench(bundle, inputs, labels, threads=1, rounds=options.rounds)
    plain_ms = report["plain"]["latency_ms"]["mean"]
    given = observed(bundle, [one["cumulative_ms"]["mean"] for one in report["exits"]])
    found = judged(given, plain_ms, options.halvings)
    print("\n".join(table(found)))
    print()
    print("\n".join([*compared(found), *bounds(given, plain_ms)]))
    for reason in report["reasons"]:
        print(f"- The times are of a disturbed run: {reason}.")


def observed(bundle: Bundle, costs_ms: Sequence[float]) -> Observed:
    """What the chain says of the tuning and the test split together, at these times by exit."""
    from edgekit.data import load_splits
    from edgekit.models.load import user_code
    from edgekit.recipe import load_recipe

    chain = Chain.from_bundle(bundle, threads=1)
    recipe = load_recipe(str(ROOT / RECIPE))
    with user_code(recipe.folder):
        splits = [load_splits(recipe)[name] for name in ("tuning", "test")]
    batches = [batch for split in splits for batch in split.batches(chain.spec.inputs)]
    every = [list(chain.logits(batch).values()) for batch in batches]
    logits = [np.concatenate(exit) for exit in zip(*every, strict=True)]
    labels = np.concatenate([split.labels for split in splits])
    criterion = CRITERIA[bundle.manifest.policy.criterion]
    return Observed(
        np.stack([criterion(one) for one in logits[:-1]]),
        np.stack([one.argmax(axis=1) == labels for one in logits]),
        np.array(costs_ms),
    )


def least_right(given: Observed, loss: Fraction) -> int:
    """How many must be right: as many as at the final exit, less what may be lost."""
    return int(given.right[-1].sum()) - int(loss * given.samples)


def cheapest(points: Points, least: int) -> Floats:
    """The thresholds that cost least of those with so many right; of equal ones the most right."""
    enough = points.of(points.right >= least)
    return enough.thresholds[np.lexsort((-enough.right, enough.costs))[0]]


def fastest(given: Observed, least: int) -> Floats:
    """The thresholds that cost least of all there are with so many right: exact.

    An exit's threshold that stands above confidences of samples that it is right on may be lowered
    to below them: they leave earlier, and are right. So the best one stands just above the
    confidence of a sample that its exit is wrong on, or below all: there are few of these.
    """
    tried = [
        [-np.inf, *np.nextafter(np.unique(confidences[~right]), np.inf)]
        for confidences, right in zip(given.confidences, given.right, strict=False)
    ]
    return cheapest(evaluate(given, list(itertools.product(*tried))), least)


def judged(given: Observed, plain_ms: float, halvings: int) -> dict[tuple[Fraction, str], Judged]:
    """Thresholds of each kind, found on one half and judged on the other, so many times.

    By the loss that is allowed, and their kind.
    """
    searches: dict[str, Callable[[Observed], Points]] = {SHARED: shared, PER_EXIT: search}
    found: dict[tuple[Fraction, str], list[tuple[float, float, float]]] = {
        key: [] for key in itertools.product(LOSSES, (*searches, ORACLE))
    }
    for seed in range(halvings):
        order = np.random.default_rng(seed).permutation(given.samples)
        one, other = (given.of(half) for half in np.array_split(order, 2))
        points = {kind: call(one) for kind, call in searches.items()}
        for (loss, kind), results in found.items():
            if kind == ORACLE:
                thresholds = fastest(other, least_right(other, loss))
            else:
                thresholds = cheapest(points[kind], least_right(one, loss))
            point = evaluate(other, thresholds[None])
            lost = 100 * (other.right[-1].sum() - point.right[0]) / other.samples
            first = point.counts[0, 0] / other.samples
            results.append((plain_ms / point.costs[0], lost, first))
    return {key: Judged(*np.array(one).T) for key, one in found.items()}


def table(found: dict[tuple[Fraction, str], Judged]) -> list[str]:
    """Means over the halvings, with the 5th and the 95th percentile."""
    lines = ["| may lose | thresholds | x plain | points lost | kept to it | % leave first |"]
    lines.append("|---" * 6 + "|")
    lines += [
        f"| {_points(loss)} | {kind} | {_spread(one.speedup)} | {_spread(one.lost)} | "
        f"{one.kept(loss):.0%} | {_spread(100 * one.first, 1)} |"
        for (loss, kind), one in found.items()
    ]
    return lines


def compared(found: dict[tuple[Fraction, str], Judged]) -> list[str]:
    """Thresholds for each exit beside a shared one, half by half."""
    lines = []
    for loss in LOSSES:
        ratio = found[loss, PER_EXIT].speedup / found[loss, SHARED].speedup
        lines.append(
            f"- Where {_points(loss)} may be lost, thresholds for each exit are "
            f"{_spread(ratio, 3)} times as fast as a shared one on the same half: faster in "
            f"{np.mean(ratio > 1):.0%} of {len(ratio)} halvings, slower in "
            f"{np.mean(ratio < 1):.0%}."
        )
    return lines


def bounds(given: Observed, plain_ms: float) -> list[str]:
    """What bounds the speed-up, in words with their numbers."""
    costs, right = given.costs, given.right.mean(axis=1)
    lines = [
        f"- A sample takes {', '.join(f'{one:.3f}' for one in costs)} ms by the exit that it "
        f"leaves at, in the undivided network {plain_ms:.3f} ms. The first exit takes "
        f"{costs[0] / plain_ms:.1%} of that, so nothing is faster than "
        f"{plain_ms / costs[0]:.2f} times.",
        f"- The exits are right on {', '.join(f'{one:.2%}' for one in right)} of the "
        f"{given.samples} images.",
        f"- For {HOPED} times, {_share_needed(costs, plain_ms / HOPED):.1%} must leave at the "
        "first exit, and all others at the second.",
    ]
    for loss in LOSSES:
        best = evaluate(given, fastest(given, least_right(given, loss))[None])
        leave = ", ".join(f"{one:.1%}" for one in best.counts[0] / given.samples)
        lines.append(
            f"- The best thresholds for all images at once that lose no more than {_points(loss)} "
            f"are {plain_ms / best.costs[0]:.2f} times as fast; {leave} leave at the exits."
        )
    return lines


def _points(loss: Fraction) -> str:
    return f"{100 * float(loss):.1f} point"


def _spread(values: Floats, digits: int = 2) -> str:
    """The mean, with the 5th and the 95th percentile."""
    low, high = np.percentile(values, [5, 95])
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _share_needed(costs: Floats, mean: float) -> float:
    """The share that must leave at the first exit for a mean cost, if the others do at the second.

    Above 1 where even the first costs more.
    """
    return max(0.0, float((costs[1] - mean) / (costs[1] - costs[0])))


def _built() -> Path:
    """The bundle of digits, built now."""
    from run import built

    return built(RECIPE, ROOT / "build/benchmarks")


if __name__ == "__main__":
    main()
