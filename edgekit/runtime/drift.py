"""Is the stream still like the tuning split? Exits and confidences, window by window.

What left where, and how surely, is known of the tuning split at every point of the front
(`Point.left`). The samples of a window are counted into the same cells, exit by bin of confidence,
and a test of homogeneity says how probable two samples that differ so much are, if both were drawn
from one population. No labels are needed, and so none are trusted: drift says that the stream is
another one, not that the answers are wrong.

The test takes samples as drawn independently. The frames of a film are not: a window that is full
of one scene differs from the tuning split though the film as a whole would not. There `every`
counts one sample of so many.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgekit.bundle.manifest import Left, Tuning
from edgekit.errors import InputError
from edgekit.runtime.watcher import Watcher

if TYPE_CHECKING:
    from edgekit.runtime.chain import Chain

__all__ = ["Comparison", "DriftDetector", "DriftWarning", "Window", "chi_square_sf", "compare"]

LEAST_EXPECTED = 5
"""What a cell must expect at least for the chi-square distribution to hold (Cochran, Biometrics 10,
1954, section 3, in its strict form, for every cell)."""


class DriftWarning(UserWarning):
    """A stream is no longer like the tuning split."""


class Comparison(NamedTuple):
    """How a window compares with the tuning split.

    `p_value` is the probability of a `statistic` as large, were both drawn from one population. It
    is 1 with 0 `degrees` of freedom, where there are too few samples to tell anything.
    """

    p_value: float
    statistic: float
    degrees: int


def chi_square_sf(x: float, degrees: int) -> float:
    """The probability that a chi-square variable of so many degrees of freedom exceeds `x` >= 0.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.4.4 for odd
    degrees and 26.4.5 for even ones, each term by its logarithm: e^(-x/2) alone is zero long before
    the sum is. No degrees of freedom leave nothing to vary, and the probability is 1 at 0.
    """
    half = x / 2
    if half <= 0:
        return 1.0
    if degrees == 0:
        return 0.0
    odd = degrees % 2
    total = math.erfc(math.sqrt(half)) if odd else math.exp(-half)
    # Both series have the terms h^a e^-h / Gamma(a + 1): a = 1/2, 3/2, ... and a = 1, 2, ...
    for term in range((degrees - 1) // 2):
        power = term + (0.5 if odd else 1)
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
    return min(total, 1.0)


def compare(left: Sequence[Left], counts: Sequence[Sequence[int]]) -> Comparison:
    """Hold a window's `counts`, per exit and bin, against those of the tuning split.

    The two-sample chi-square test of homogeneity over all cells, exit by bin; both samples are
    finite, and both vary. Cells that are empty in both are dropped. Where fewer than 5 are expected
    of either sample, a cell is merged with the next ones of its exit, what remains at the end of
    an exit with the cell before, and an exit with too few in all with the next exit (the last one
    with the exit before). That looks at sums over both samples only, so it favours neither.
    """
    tuned = [list(one.counts) for one in left]
    tuned_total, seen_total = sum(map(sum, tuned)), sum(map(sum, counts))
    total = tuned_total + seen_total
    smaller = min(tuned_total, seen_total)
    if not smaller:
        return Comparison(1.0, 0.0, 0)
    cells: list[tuple[int, int]] = []
    first = second = 0
    for exit, seen in zip(tuned, counts, strict=True):
        begun = len(cells)
        for in_tuning, in_window in zip(exit, seen, strict=True):
            first, second = first + in_tuning, second + in_window
            # What is expected of the smaller sample in this cell, times the total.
            if (first + second) * smaller >= LEAST_EXPECTED * total:
                cells.append((first, second))
                first = second = 0
        if len(cells) > begun:
            cells[-1] = cells[-1][0] + first, cells[-1][1] + second
            first = second = 0
    if len(cells) < 2:
        return Comparison(1.0, 0.0, 0)
    cells[-1] = cells[-1][0] + first, cells[-1][1] + second
    # sum (observed - expected)^2 / expected over both samples, with the fractions multiplied out.
    statistic = sum(
        (a * seen_total - b * tuned_total) ** 2 / ((a + b) * tuned_total * seen_total)
        for a, b in cells
    )
    degrees = len(cells) - 1
    return Comparison(chi_square_sf(statistic, degrees), statistic, degrees)


class Window:
    """Samples counted until there are enough to compare: the state of a stream, and no more."""

    def __init__(self, left: Sequence[Left], samples: int) -> None:
        self._left = left
        self._edges = [one.edges for one in left]
        self._samples = samples
        self._begin()

    def add(self, depth: int, confidence: float, *, stopped: bool = False) -> Comparison | None:
        """Count a sample that left at exit `depth`; the comparison, if that filled the window.

        `stopped` says that a deadline kept it from going deeper. The next window begins there.
        """
        if stopped:
            self._stopped[depth] = self._stopped.get(depth, 0) + 1
        else:
            # Of a NaN `bisect_right` finds no edge above it: the last bin, as in `Left`.
            self._counts[depth][bisect_right(self._edges[depth], confidence)] += 1
        self._missing -= 1
        if self._missing:
            return None
        found = compare(*self._cells())
        self._begin()
        return found

    def _cells(self) -> tuple[list[Left], list[list[int]]]:
        """What is compared: all cells, or one for all exits deeper than the first stop."""
        left, counts = list(self._left), self._counts
        if not self._stopped:
            return left, counts
        kept = min(self._stopped) + 1
        deeper = sum(map(sum, counts[kept:])) + sum(self._stopped.values())
        tuned = sum(one.count for one in left[kept:])
        return [*left[:kept], Left((), (tuned,))], [*counts[:kept], [deeper]]

    def _begin(self) -> None:
        self._stopped: dict[int, int] = {}
        self._counts = [[0] * len(one.counts) for one in self._left]
        self._missing = self._samples


class DriftDetector(Watcher):
    """Compares what a chain does with what it did on the tuning split, window by window.

    After `drift.window` samples a window is compared. It has drifted where its p-value is below
    `drift.p_value`. Then `count` rises, `on_drift` is called, and the first time a `DriftWarning`
    is given. With `drift.safe` the chain also goes to the last of the points, where nobody leaves
    early, and stays there until `reset`.

    A window is of one point. Where the thresholds change, by whomever, another begins, and the one
    of the point that was left goes on when the chain comes back. While they are none of the front's
    nothing is compared. Of a sample that a deadline stopped at an exit it is known that it was not
    sure there: it counts among those that left deeper, which are then compared as one.

    `count` is of the windows that have drifted, `windows` of all compared, `last` the latest
    comparison (None before the first), `held` says that the chain was sent to the safe point.
    """

    def __init__(
        self,
        chain: "Chain",
        tuning: Tuning | None = None,
        *,
        every: int = 1,
        on_drift: Callable[[Comparison], None] | None = None,
    ) -> None:
        """Begin to compare one sample of `every`, with the chain's own tuning unless one is given.

        `on_drift` is called amid the chain's call, whose lock is held: it may note, set an event
        or write, and must not call the chain or this object, which would wait for themselves.
        Raises InputError where the bundle knows of no tuning, `every` is no number from 1 on,
        `on_drift` cannot be called, or a detector watches the chain.
        """
        if not isinstance(every, int) or every < 1:
            raise InputError(f"one sample of every 1 or more is compared; found every={every!r}")
        if on_drift is not None and not callable(on_drift):
            raise InputError(f"on_drift is called with a Comparison; found {on_drift!r}")
        found = tuning or chain.spec.tuning
        if found is None:
            raise InputError(
                "the chain has nothing to be compared with: it is of no bundle, or its policy is "
                "another than the bundle's; load the bundle, or give its tuning"
            )
        self._chain = chain
        self._drift = found.drift
        self._left = {point.thresholds: point.left for point in found.points}
        self._windows: dict[tuple[float, ...], Window] = {}
        self._safest = found.points[-1].thresholds
        self._on_drift = on_drift
        self._every = self._next = every
        self._before: tuple[float, ...] | None = None
        self.count = self.windows = 0
        self.last: Comparison | None = None
        self._warned = False
        self._turn(chain.spec.policy.thresholds, -1)
        chain.watch(self)

    @property
    def held(self) -> bool:
        """Whether the chain was sent to the safe point and has not been released."""
        return self._before is not None

    def add(self, depth: int, confidence: float, started_ns: int, ended_ns: int, stop: str) -> None:
        """Count a sample that left at exit `depth`. For the chain, which holds its lock here."""
        thresholds = self._chain.spec.policy.thresholds
        if thresholds is not self._thresholds:
            # Set since, and perhaps in this very call: its samples may have seen the others.
            self._turn(thresholds, started_ns)
        if self._window is None or started_ns == self._turned_ns:
            return
        self._next -= 1
        if self._next:
            return
        self._next = self._every
        found = self._window.add(depth, confidence, stopped=stop == "deadline")
        if found is not None:
            self._close_window(found, started_ns)

    def reset(self) -> None:
        """Begin anew; the chain, if it was held, goes back to the thresholds that it was sent from.

        The counters stay. Not for `on_drift`, see there.
        """
        with self._chain.lock:
            self._warned = False
            if self._before is not None:
                self._chain.retune(self._before)
                self._before = None
            self._windows.clear()
            self._turn(self._chain.spec.policy.thresholds, -1)

    def _turn(self, thresholds: tuple[float, ...], turned_ns: int) -> None:
        """Compare with the point of these thresholds, from the call after that of `turned_ns`."""
        self._thresholds, self._turned_ns = thresholds, turned_ns
        left = self._left.get(thresholds)
        if left is not None and thresholds not in self._windows:
            # Kept: a policy that moves more often than a window fills would else never be compared.
            # Whether a sample is counted here is known before it comes, so that those that are have
            # the distribution of all.
            self._windows[thresholds] = Window(left, self._drift.window)
        self._window = self._windows.get(thresholds)

    def _close_window(self, found: Comparison, started_ns: int) -> None:
        self.windows += 1
        self.last = found
        if found.p_value >= self._drift.p_value:
            return
        self.count += 1
        if self._drift.safe and self._before is None:
            self._before = self._thresholds
            self._chain.retune(self._safest)
            self._turn(self._chain.spec.policy.thresholds, started_ns)
        warned, self._warned = self._warned, True
        if self._on_drift is not None:
            self._on_drift(found)
        if not warned:
            rare = 1 / max(found.p_value, 1e-300)
            warnings.warn(
                f"the stream is not like the tuning split: {self._drift.window} samples differ "
                f"from it as one sound window in {rare:.3g} does; look at what comes in, or tune "
                "again on samples of it",
                DriftWarning,
                stacklevel=4,
            )
