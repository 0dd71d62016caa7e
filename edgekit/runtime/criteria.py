"""How an exit's logits become one confidence, and when a sample may leave.

All criteria rise with certainty, so that the rule is always `confidence >= threshold`. They are
computed in float64 from `log_softmax(z) = (z - max z) - log sum exp(z - max z)`, which neither
overflows nor takes the logarithm of zero. A NaN confidence is never `>=` anything: such a sample
goes on.

Every numpy call counts: after a network has filled the processor's caches, each costs several times
what it costs in a loop, and the first segment of a small network may take but a tenth of a
millisecond.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CRITERIA", "Criterion", "decide"]

Floats = npt.NDArray[np.float64]
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
"""Every criterion by the name that a policy uses."""


def decide(
    logits: list[npt.NDArray[Any]], criterion: Criterion, thresholds: tuple[float, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """What the policy makes of all exits' logits, for samples that were run to the end.

    `logits` has one array `[samples, classes]` per exit, `thresholds` one entry per early exit.
    Returns, per sample: the index of the exit taken, the class, the confidence there.
    """
    every = [criterion(one) for one in logits]
    exits = np.full(len(logits[-1]), len(logits) - 1)
    confidences = every[-1].copy()
    classes = np.argmax(logits[-1], axis=1)
    # From the last early exit to the first, so that the first sure one has the last word.
    for index in reversed(range(len(thresholds))):
        confidence = every[index]
        sure = confidence >= thresholds[index]
        exits[sure] = index
        confidences[sure] = confidence[sure]
        classes[sure] = np.argmax(logits[index][sure], axis=1)
    return exits, classes, confidences


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
