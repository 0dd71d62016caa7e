"""How the exits' logits become one confidence each, and when a sample may leave.

All criteria rise with certainty, so that the rule is always `confidence >= threshold`. They are
computed in float64 from `log_softmax(z) = (z - max z) - log sum exp(z - max z)`, which neither
overflows nor takes the logarithm of zero. A NaN confidence is never `>=` anything: such a sample
goes on.

Under the criterion `given` nothing is computed: the exit brings its confidence, an output of its
segment, and may give anything beside it, class scores or not.

A policy may also divide an exit's logits by a temperature, combine them with those of the exits
before it, and remember which of them was the most confident. `Walk` does that, and nothing else in
edgekit does: the runtime, the checks and the tuning all ask it.

Every numpy call counts: after a network has filled the processor's caches, each costs several times
what it costs in a loop, and the first segment of a small network may take but a tenth of a
millisecond.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import GIVEN, Policy

__all__ = [
    "COMBINATIONS",
    "CRITERIA",
    "OTHERWISE",
    "PATIENCE",
    "Answers",
    "Criterion",
    "Decisions",
    "Walk",
    "decide",
    "scaled",
    "unknown",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Criterion = Callable[[npt.NDArray[Any]], Floats]
"""Logits `[..., classes]` of any float dtype to confidences float64 `[...]`."""


def max_prob(logits: npt.NDArray[Any]) -> Floats:
    """The largest softmax probability (Hendrycks and Gimpel, arXiv 1610.02136), in [1/C, 1]."""
    shifted = _shift(logits)
    # The largest shifted logit is zero, so the largest probability is 1 / sum exp.
    return 1.0 / np.add.reduce(np.exp(shifted, out=shifted), axis=-1)


def margin(logits: npt.NDArray[Any]) -> Floats:
    """The largest softmax probability less the second largest, in [0, 1].

    With one class there is no second, and the margin is 1.
    """
    probabilities = np.exp(_shift(logits))
    probabilities /= np.add.reduce(probabilities, axis=-1, keepdims=True)
    if probabilities.shape[-1] == 1:
        return probabilities[..., 0]
    top = np.partition(probabilities, -2, axis=-1)
    return top[..., -1] - top[..., -2]


def entropy(logits: npt.NDArray[Any]) -> Floats:
    """One less the softmax entropy over its greatest value, `1 - H(p) / log C`, in [0, 1].

    The certainty form of the entropy that BranchyNet exits on (Teerapittayanon et al., arXiv
    1709.01686, algorithm 1). A class of probability zero adds nothing, its limit. With one class
    there is nothing to doubt, and the confidence is 1.
    """
    shifted = _shift(logits)
    weights = np.exp(shifted)
    classes = shifted.shape[-1]
    if classes == 1:
        return weights[..., 0]
    total = np.add.reduce(weights, axis=-1)
    # H = log sum e^z - sum(p z). Where p is zero, z may be -inf and the product NaN: it counts 0.
    # A NaN weight stays: its product with that 0 is NaN.
    finite = np.where(weights > 0, shifted, 0.0)
    expected = np.add.reduce(weights * finite, axis=-1) / total
    return 1.0 - (np.log(total) - expected) / np.log(classes)


CRITERIA: dict[str, Criterion] = {"max_prob": max_prob, "margin": margin, "entropy": entropy}
"""The criteria that look at one exit alone, by the name that a policy uses."""

PATIENCE = "patience"
"""The criterion that counts exits: how many in a row, up to this one, agree with the one before.

PABEE's counter (Zhou et al., arXiv 2006.04152, section 3): 0 at the first exit and wherever the
class is another than before, else one more than before. Its threshold is PABEE's patience.
"""

COMBINATIONS = ("last", "sum", "geometric")
"""What of the exits 1 to k is looked at for exit k, with weights w (1 where none are given).

`last`: the logits z_k alone.
`sum`: the logits' running sum, `sum_i w_i z_i`. Logits, not probabilities: an additive model, as
networks are trained in which each exit corrects those before it (BoostNet, Yu et al., arXiv
2211.16726).
`geometric`: the running geometric mean of the probabilities, normalised: the softmax of
`sum_i w_i log_softmax(z_i) / sum_i w_i`. The ensembling of Zero Time Waste (Wolczyk et al., arXiv
2106.05409), with exponents that sum to one and no factor per class.
"""

OTHERWISE = ("last", "max_confidence")
"""Who answers where no early exit was sure: the last exit computed, or the most confident one.

The latter is what Shallow-Deep Networks do (Kaya et al., arXiv 1810.07052). Of equally confident
exits the deepest answers; a NaN confidence is less than any other.
"""


def scaled(logits: npt.NDArray[Any], temperature: float) -> Floats:
    """The logits `[..., classes]` over their exit's temperature, float64: `z / T`.

    Temperature scaling (Guo et al., arXiv 1706.04599, section 4.2). Above 1 it makes every
    confidence less, below 1 more; which class is the largest stays.
    """
    wide = logits.astype(np.float64)
    wide /= temperature
    return wide


def unknown(policy: Policy) -> str | None:
    """Words about what this edgekit cannot do of a policy; None where it can do all."""
    for what, name, known in (
        ("criterion", policy.criterion, (*CRITERIA, PATIENCE, GIVEN)),
        ("combination", policy.combine, COMBINATIONS),
        ("otherwise", policy.otherwise, OTHERWISE),
    ):
        if name not in known:
            return f"this edgekit has no {what} {name!r}; it has {', '.join(known)}"
    return None


class Answers(NamedTuple):
    """Answers to some samples, a row each: int64, int64 and float64 `[samples]`.

    `exits` is the index of the exit that answers, `confidences` what the criterion makes of it.
    `classes` are -1 where it gives no vector of scores.
    """

    exits: Integers
    classes: Integers
    confidences: Floats

    def of(self, rows: Integers) -> "Answers":
        """The answers to these of the samples."""
        return Answers(self.exits[rows], self.classes[rows], self.confidences[rows])


class Decisions(NamedTuple):
    """`Answers`, and the index of the last exit that was looked at for each: where it left."""

    exits: Integers
    classes: Integers
    confidences: Floats
    depths: Integers


class Walk:
    """Some samples' way from exit to exit under a policy.

    Tell it each exit's logits in order (and its confidences, if it gives them), and which samples
    go on where not all do. NaN stays: where
    an exit's logits hold NaN or +inf, or nothing but -inf, its confidence is NaN, and under `sum`
    and `geometric` so is every later one. The sample then runs to the end, for a network that
    overflowed is to be seen, not averaged away. A class at -inf is masked; under `sum` and
    `geometric` it stays so.
    """

    scores: npt.NDArray[Any]
    """`[samples, classes]`: what was looked at last, an exit's logits as the policy has them.

    Over the exit's temperature, and combined with those before it, where it says so.
    """

    def __init__(self, policy: Policy) -> None:
        self._criterion = CRITERIA.get(policy.criterion)
        self._given = policy.criterion == GIVEN
        self._combine = policy.combine
        self._weights = policy.weights
        self._temperatures = policy.temperatures
        self._most_confident = policy.otherwise == "max_confidence"
        self._depth = -1
        self._total: Floats | None = None
        self._weight = 0.0
        self._last: Answers | None = None
        self._best: Answers | None = None

    def look(self, logits: npt.NDArray[Any], given: npt.NDArray[Any] | None = None) -> Answers:
        """What the next exit answers, by its logits `[samples, classes]`.

        `given` are the confidences `[samples]` that it gives, None where it gives none (a final
        exit may not); they are looked at under `given` alone, and there `logits` may be anything
        `[samples, ...]`.
        """
        self._depth += 1
        alone, looked_at = self._combine == "last", logits
        if self._temperatures is not None:
            looked_at = scaled(logits, self._temperatures[self._depth])
        self.scores = looked_at if alone else self._combined(looked_at)
        # A temperature leaves an exit's class as it is, also where two scores round to the same.
        answering = logits if alone else self.scores
        classes = answering.argmax(axis=1) if logits.ndim == 2 else np.full(len(logits), -1)
        if self._criterion is not None:
            confidences = self._criterion(self.scores)
        elif not self._given:
            confidences = self._agreement(classes)
        elif given is not None:
            confidences = given.astype(np.float64)
        else:
            confidences = np.full(len(logits), np.nan)
        self._last = found = Answers(np.full(len(classes), self._depth), classes, confidences)
        if self._most_confident:
            best = self._best
            if best is not None:
                better = (confidences >= best.confidences) | np.isnan(best.confidences)
                found = Answers(
                    *(np.where(better, *pair) for pair in zip(found, best, strict=True))
                )
            self._best = found
        return self._last

    def keep(self, rows: Integers) -> None:
        """Go on with these of the samples only."""
        if self._total is not None:
            self._total = self._total[rows]
        if self._last is not None:
            self._last = self._last.of(rows)
        if self._best is not None:
            self._best = self._best.of(rows)

    def otherwise(self) -> Answers:
        """The answers where no exit looked at so far was sure, and no further one is computed."""
        found = self._best if self._most_confident else self._last
        assert found is not None  # noqa: S101  (nobody asks before the first exit)
        return found

    def _combined(self, logits: npt.NDArray[Any]) -> Floats:
        weight = 1.0 if self._weights is None else self._weights[self._depth]
        self._weight += weight
        geometric = self._combine == "geometric"
        # Infinities of both signs make a NaN, which is what is wanted.
        with np.errstate(invalid="ignore", over="ignore"):
            total = _log_softmax(logits) if geometric else logits.astype(np.float64)
            total *= weight
            if self._total is not None:
                total += self._total
            self._total = total
            return total / self._weight if geometric else total

    def _agreement(self, classes: Integers) -> Floats:
        """PATIENCE. What is no answer, NaN here, agrees with nothing."""
        sound = np.isfinite(np.maximum.reduce(self.scores, axis=1))
        counts = np.zeros(len(classes))
        if self._last is not None:
            before = self._last.confidences
            agree = (classes == self._last.classes) & ~np.isnan(before)
            counts[agree] = before[agree] + 1
        counts[~sound] = np.nan
        return counts


def decide(
    logits: Sequence[npt.NDArray[Any]], policy: Policy, given: Sequence[npt.NDArray[Any]] = ()
) -> Decisions:
    """What the policy makes of all exits' logits, for samples that were run to the end.

    `logits` has one array `[samples, classes]` per exit, `given` one of confidences `[samples]` for
    each of the first exits, as many as give theirs.
    """
    walk = Walk(policy)
    every = [walk.look(*pair) for pair in zip_longest(logits, given)]
    samples = len(logits[-1])
    exits, classes, confidences = walk.otherwise().of(np.arange(samples))  # A copy.
    depths = np.full(samples, len(logits) - 1)
    # From the last early exit to the first, so that the first sure one has the last word.
    for index in reversed(range(len(policy.thresholds))):
        sure = every[index].confidences >= policy.thresholds[index]
        exits[sure] = depths[sure] = index
        classes[sure] = every[index].classes[sure]
        confidences[sure] = every[index].confidences[sure]
    return Decisions(exits, classes, confidences, depths)


def _log_softmax(logits: npt.NDArray[Any]) -> Floats:
    shifted = _shift(logits)
    shifted -= np.log(np.add.reduce(np.exp(shifted), axis=-1, keepdims=True))
    return shifted


def _shift(logits: npt.NDArray[Any]) -> Floats:
    """The logits in float64, less the largest of each row.

    A row with NaN or +inf in it holds NaN afterwards, and so its confidence is NaN.
    """
    wide = logits.astype(np.float64)
    if wide.ndim == 1:
        # One sample: a number is had, and taken away, at half the cost of an array of one.
        largest = wide.item(wide.argmax())
        if isfinite(largest):
            wide -= largest
            return wide
    with np.errstate(invalid="ignore"):
        wide -= np.maximum.reduce(wide, axis=-1, keepdims=True)
    return wide
