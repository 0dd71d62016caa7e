"""Which thresholds make a chain how fast at what accuracy: the searches, and the front they find.

Nothing here runs a network. Every search looks at what was observed once, of every sample at every
exit, and so they take milliseconds where a run over the samples takes minutes.

A threshold decides differently from another one only if a confidence lies between them. So those
tried lie below, between and above the confidences seen; midway, so that the last bit decides
nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Observed",
    "Points",
    "between",
    "by_rates",
    "centred",
    "descend",
    "evaluate",
    "front",
    "grid",
    "joined",
    "search",
    "shared",
    "taken",
    "thresholds_at",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_CELLS = 1 << 18
"""Points of a grid: a fifth of a second, and with three early exits 64 thresholds for each."""

_EXHAUSTIVE = 3
"""Early exits up to which a grid alone is fine enough; beyond, its best points are improved."""

_BEAM = 4
"""So many starts are improved for one accuracy."""

_FLOORS = 16
"""For so many accuracies, between the least and the greatest found."""


@dataclass(frozen=True)
class Observed:
    """What a chain answered to samples that were all run to its end.

    `confidences` is float64 `[early exits, samples]`. `right` is bool `[exits, samples]`: whether
    the answer of a sample that leaves there counts as right; in the last row, of one that leaves
    nowhere early. `costs` is float64 `[exits]`: what a sample costs that leaves there, in ms or in
    any other unit.
    """

    confidences: Floats
    right: Bools
    costs: Floats

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.right.shape[1]

    def of(self, samples: npt.NDArray[Any]) -> "Observed":
        """These of the samples, by index or by mask."""
        return Observed(self.confidences[:, samples], self.right[:, samples], self.costs)

    def taken(self, thresholds: npt.ArrayLike) -> Integers:
        """The exit that each sample leaves at, int64 `[samples]`."""
        return taken(self.confidences, thresholds)


@dataclass(frozen=True)
class Points:
    """Thresholds that could be chosen, a row each, and what comes of them.

    `thresholds` is float64 `[points, early exits]`, `counts` int64 `[points, exits]`: how many
    samples leave where. `right` is int64 `[points]`, `costs` float64 `[points]`, the mean.
    """

    thresholds: Floats
    counts: Integers
    right: Integers
    costs: Floats

    def __len__(self) -> int:
        return len(self.right)

    def of(self, rows: npt.NDArray[Any]) -> "Points":
        """These of the points, by index or by mask."""
        return Points(self.thresholds[rows], self.counts[rows], self.right[rows], self.costs[rows])


def taken(confidences: Floats, thresholds: npt.ArrayLike) -> Integers:
    """The exit that each sample leaves at, int64 `[samples]`.

    `confidences` is float64 `[early exits, samples]`, `thresholds` has one for each.
    """
    sure = confidences >= np.asarray(thresholds, np.float64)[:, None]
    # From the last to the first, which comes before all; `argmax` down so few rows takes longer.
    left = np.full(sure.shape[1], len(sure))
    for exit in reversed(range(len(sure))):
        left[sure[exit]] = exit
    return left


def joined(several: Iterable[Points]) -> Points:
    """All points of several searches."""
    each = list(several)
    return Points(
        np.concatenate([one.thresholds for one in each]),
        np.concatenate([one.counts for one in each]),
        np.concatenate([one.right for one in each]),
        np.concatenate([one.costs for one in each]),
    )


def front(points: Points) -> Points:
    """The points that no other one beats in cost without losing in accuracy, cheapest first."""
    order = np.lexsort((-points.right, points.costs))
    best = np.maximum.accumulate(points.right[order])
    before = np.concatenate([[-1], best[:-1]])
    return points.of(order[points.right[order] > before])


def search(observed: Observed) -> Points:
    """The front of all searches: the shared thresholds, those by rates, and the grid's.

    With more early exits than a grid can cover finely, the best points for several accuracies are
    improved by `descend`; with very many, those of the other searches.
    """
    early = len(observed.confidences)
    # Two thresholds for each exit are the least that a grid can try.
    gridded = [grid(observed)] if 3**early <= 16 * _CELLS else []
    points = joined([shared(observed), by_rates(observed), *gridded])
    found = front(points)
    if early <= _EXHAUSTIVE:
        return found
    better = []
    for floor in np.unique(np.linspace(found.right[0], found.right[-1], _FLOORS).astype(int)):
        enough = points.of(points.right >= floor)
        for row in np.argsort(enough.costs, kind="stable")[:_BEAM]:
            better.append(descend(observed, enough.thresholds[row], int(floor)))
    return front(joined([found, evaluate(observed, better)]))


def shared(observed: Observed) -> Points:
    """Every threshold that all early exits could share, least first: exact."""
    confidences, right = observed.confidences, observed.right
    levels = np.unique(confidences[np.isfinite(confidences)])
    # By rank: under candidate number i a sample is sure where its rank is i or more.
    ranks = np.searchsorted(levels, confidences)
    ranks[~(confidences > -np.inf)] = -1
    # An exit takes a sample under the candidates above its rank at every earlier exit, up to here.
    upper = np.maximum.accumulate(ranks, axis=0) + 1
    ends = np.concatenate([upper, np.full((1, upper.shape[1]), len(levels) + 1)])
    starts = np.concatenate([np.zeros((1, upper.shape[1]), int), upper])

    def counted(starts: Integers, ends: Integers) -> Integers:
        steps = np.bincount(starts, minlength=len(levels) + 2)
        steps -= np.bincount(ends, minlength=len(levels) + 2)
        return np.cumsum(steps)[: len(levels) + 1]

    counts = np.stack([counted(*one) for one in zip(starts, ends, strict=True)], axis=1)
    return Points(
        np.repeat(_candidates(levels)[:, None], len(confidences), axis=1),
        counts,
        counted(starts[right], ends[right]),
        counts @ observed.costs / observed.samples,
    )


def grid(observed: Observed, most: int = _CELLS) -> Points:
    """Every combination of thresholds at evenly spaced quantiles of each exit's confidences.

    As many quantiles as give no more than `most` combinations; with one early exit that has no more
    confidences than that, all of them. From one table of how many samples have which ranks at all
    exits, whose sums along its axes are the counts of every combination at once.
    """
    early, exits = len(observed.confidences), len(observed.right)
    if not early:
        return evaluate(observed, np.zeros((1, 0)))
    each = max(2, int(most ** (1 / early) + 1e-9))
    tried = [_quantiles(one, each) for one in observed.confidences]
    shape = tuple(len(one) for one in tried)
    # A sample leaves under a threshold where its rank, how many of them it reaches, is above its
    # place: NaN reaches none.
    ranks = [
        np.where(np.isnan(one), 0, np.searchsorted(some, one, side="right"))
        for one, some in zip(observed.confidences, tried, strict=True)
    ]
    counts = np.empty((*shape, exits), np.int64)
    right = np.zeros(shape, np.int64)
    place = np.zeros(observed.samples, np.int64)
    for depth in range(exits):
        last = depth == early
        if not last:
            place = place * (shape[depth] + 1) + ranks[depth]
        sizes = tuple(one + 1 for one in shape[: depth + 1])
        for what, mask in (("all", None), ("right", observed.right[depth])):
            cells = np.bincount(place if mask is None else place[mask], minlength=np.prod(sizes))
            table = cells.reshape(sizes)
            for axis in range(len(sizes)):
                if axis < depth or last:
                    # Not sure there: ranks up to the threshold's place.
                    table = np.cumsum(table, axis=axis).take(np.arange(shape[axis]), axis=axis)
                else:
                    reverse = np.flip(np.cumsum(np.flip(table, axis), axis=axis), axis)
                    table = reverse.take(np.arange(1, shape[axis] + 1), axis=axis)
            table = table.reshape(table.shape + (1,) * (early - table.ndim))
            if what == "all":
                counts[..., depth] = table
            else:
                right += table
    thresholds = np.stack(np.meshgrid(*tried, indexing="ij"), axis=-1).reshape(-1, early)
    counts = counts.reshape(-1, exits)
    return Points(thresholds, counts, right.reshape(-1), counts @ observed.costs / observed.samples)


def by_rates(observed: Observed, ratios: npt.ArrayLike | None = None) -> Points:
    """Thresholds at which the shares that leave, exit by exit, go as 1, q, q^2 and so on.

    The sweep of budgeted classification in MSDNet (Huang et al., arXiv 1703.09844, section 4.2),
    over the ratios q.
    """
    chosen = np.geomspace(1 / 16, 16, 33) if ratios is None else np.asarray(ratios, np.float64)
    shares = chosen[:, None] ** np.arange(len(observed.right))
    shares /= shares.sum(axis=1, keepdims=True)
    found = [thresholds_at(observed.confidences, one[:-1].tolist()) for one in shares]
    return evaluate(observed, found)


def thresholds_at(confidences: Floats, rates: Sequence[float]) -> Floats:
    """The thresholds at which these shares of all samples leave, or as near as confidences allow.

    `confidences` is float64 `[early exits, samples]`, `rates` one share per early exit. NaN never
    leaves. A threshold lies midway between two confidences of samples that come to its exit.
    """
    samples = confidences.shape[1]
    remaining = np.ones(samples, bool)
    found = []
    for row, rate in zip(confidences, rates, strict=True):
        here = row[remaining]
        levels, counts = np.unique(here[np.isfinite(here)], return_counts=True)
        # How many leave where the confidences from each level on are sure; above all levels +inf.
        leave = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]]) + np.sum(here == np.inf)
        nearest = int(np.abs(leave - rate * samples).argmin())
        found.append(float(_candidates(levels)[nearest]))
        remaining &= ~(row >= found[-1])
    return np.array(found)


def descend(observed: Observed, thresholds: npt.ArrayLike, least: int) -> Floats:
    """Thresholds that cost no more, with at least so many samples right: one exit at a time.

    Each exit's best threshold is found exactly while the others stand, until none gets better.
    Where the thresholds given are not accurate enough, accuracy is sought first.
    """
    found = np.array(thresholds, np.float64)
    score = _score(observed, found, least)
    while True:
        before = score
        for depth in range(len(found)):
            changed = found.copy()
            changed[depth] = _best(observed, found, depth, least)
            if (other := _score(observed, changed, least)) < score:
                found, score = changed, other
        if score == before:
            return found


def evaluate(observed: Observed, thresholds: npt.ArrayLike) -> Points:
    """What comes of thresholds `[points, early exits]`, one point after the other."""
    exits = len(observed.right)
    given = np.asarray(thresholds, np.float64)
    samples = np.arange(observed.samples)
    counts = np.empty((len(given), exits), np.int64)
    right = np.empty(len(given), np.int64)
    for row, one in enumerate(given):
        left = observed.taken(one)
        counts[row] = np.bincount(left, minlength=exits)
        right[row] = np.count_nonzero(observed.right[left, samples])
    return Points(given, counts, right, counts @ observed.costs / observed.samples)


def between(below: float | None, above: float | None) -> float:
    """A threshold above the one confidence and up to the other; None where there is none."""
    if below is None:
        if above is None:
            return 1.0
        return 0.0 if above > 0 else _beyond(above, -1.0)
    if above is None:
        return _beyond(below, 1.0)
    middle = below / 2 + above / 2  # The sum of two large ones would overflow.
    return middle if below < middle <= above else above


def centred(thresholds: Floats, confidences: Floats) -> Floats:
    """Thresholds that decide all the same, each midway between the confidences next to it.

    `confidences` is float64 `[early exits, samples]`. For thresholds found on other samples.
    """
    found = []
    for threshold, one in zip(thresholds, confidences, strict=True):
        finite = one[np.isfinite(one)]
        below, above = finite[finite < threshold], finite[finite >= threshold]
        ends = (
            float(below.max()) if len(below) else None,
            float(above.min()) if len(above) else None,
        )
        found.append(between(*ends))
    return np.array(found)


def _beyond(level: float, distance: float) -> float:
    """A number beyond the level: by the distance, or the next one where adding that is nothing."""
    beyond = level + distance
    return beyond if beyond != level else float(np.nextafter(level, distance * np.inf))


def _candidates(levels: Floats) -> Floats:
    """Thresholds below, between and above confidences in order: one more than there are."""
    if not len(levels):
        return np.array([between(None, None)])
    middles = levels[:-1] / 2 + levels[1:] / 2
    inside = (levels[:-1] < middles) & (middles <= levels[1:])
    ends = between(None, float(levels[0])), between(float(levels[-1]), None)
    return np.concatenate([ends[:1], np.where(inside, middles, levels[1:]), ends[1:]])


def _quantiles(confidences: Floats, most: int) -> Floats:
    """At most so many thresholds, evenly spaced by how many samples are below; both ends are in."""
    levels, counts = np.unique(confidences[np.isfinite(confidences)], return_counts=True)
    candidates = _candidates(levels)
    if len(candidates) <= most:
        return candidates
    below = np.concatenate([[0], np.cumsum(counts)])
    return candidates[np.unique(np.searchsorted(below, np.linspace(0, below[-1], most)))]


def _score(observed: Observed, thresholds: Floats, least: int) -> tuple[int, float]:
    """Less is better: how many are missing to `least`, then the cost."""
    point = evaluate(observed, thresholds[None])
    return max(0, least - int(point.right[0])), float(point.costs[0])


def _best(observed: Observed, thresholds: Floats, depth: int, least: int) -> float:
    """The threshold of one early exit that is best while the others stand; see `_score`."""
    # NaN lets nobody leave: where each sample would go, and whether it comes here at all.
    onward = observed.taken(np.where(np.arange(len(thresholds)) == depth, np.nan, thresholds))
    rows = np.arange(observed.samples)
    right_onward = observed.right[onward, rows]
    confidences = observed.confidences[depth]
    comes = (onward > depth) & (confidences > -np.inf)
    gained = observed.right[depth].astype(np.int64) - right_onward
    saved = observed.costs[onward] - observed.costs[depth]
    # However high the threshold, +inf leaves.
    always = comes & (confidences == np.inf)
    some = comes & (confidences < np.inf)
    levels, places = np.unique(confidences[some], return_inverse=True)

    def from_top(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        each = np.bincount(places, weights=values[some], minlength=len(levels))
        leaving = np.concatenate([np.cumsum(each[::-1])[::-1], [0.0]])
        result: npt.NDArray[Any] = leaving + values[always].sum()
        return result

    missing = np.maximum(0, least - np.count_nonzero(right_onward) - from_top(gained))
    best = np.lexsort((-from_top(saved), missing))[0]
    return float(_candidates(levels)[best])
