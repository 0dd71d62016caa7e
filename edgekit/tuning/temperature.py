"""How sure an exit should be: one temperature that its logits are divided by, and what that mends.

Temperature scaling (Guo et al., arXiv 1706.04599, section 4.2): the number that makes the labels
most probable. It changes no class, and says nothing of samples unlike those that it was fitted to.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runtime.criteria import CRITERIA, scaled
from edgekit.tuning.certificate import parted

__all__ = [
    "GREATEST",
    "LEAST",
    "MOST_SAMPLES",
    "Bin",
    "Reliability",
    "at_a_bound",
    "calibrated",
    "fit_temperature",
    "fitted_on",
    "nll",
    "reliability",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LEAST, GREATEST = 0.05, 20.0
"""The bounds of a temperature: where every answer is right, none would be small enough."""

MOST_SAMPLES = 5000
"""At most so many are fitted to: a single number needs no more, and their logits fit in memory."""

_STEPS = 100
"""Newton's method needs fewer than ten; halving the bounds alone, not half as many as these."""

_NEAR = 1e-12
"""A step of less than this share of where it is, is none."""


@dataclass(frozen=True)
class Bin:
    """Samples of about one confidence: how many, their mean confidence, and how many are right.

    The latter two are None where there is no sample; `accuracy` is a share.
    """

    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """How far confidences are from the share that is right: in all, and bin by bin from 0 to 1.

    `ece` is the expected calibration error, in [0, 1]; 0 where there is no sample.
    """

    ece: float
    bins: tuple[Bin, ...]


def fitted_on(samples: int, *, certified: bool) -> Integers:
    """Which samples of a split temperatures are fitted to: indices in order, evenly spaced.

    With a certificate none of those that it tests on: what is tested may not have had a part in
    making what is tested.
    """
    rows = parted(samples)[0] if certified else np.arange(samples)
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_SAMPLES, len(rows))).astype(int))]


def calibrated(
    exits: Sequence[str], logits: Sequence[Array], labels: Array
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """A temperature for each exit, and by its name what that mended, as plain data.

    `logits` has one array `[samples, classes]` per exit, `labels` is int64 `[samples]`. Each exit
    is looked at alone, and its confidence is its largest probability, whatever the criterion; all
    of these samples, which are those fitted to.
    """
    temperatures: list[float] = []
    found: dict[str, Any] = {}
    for exit, one in zip(exits, logits, strict=True):
        temperature = fit_temperature(one, labels)
        temperatures.append(temperature)
        found[exit] = {"temperature": temperature}
        right = one.argmax(axis=1) == labels
        for when, divisor in (("before", 1.0), ("after", temperature)):
            told = reliability(CRITERIA["max_prob"](scaled(one, divisor)), right)
            found[exit] |= {
                f"nll_{when}": nll(one, labels, divisor),
                f"ece_{when}": told.ece,
                f"bins_{when}": [asdict(part) for part in told.bins],
            }
    return tuple(temperatures), found


def at_a_bound(exits: Sequence[str], temperatures: Sequence[float]) -> str | None:
    """Words about exits whose best temperature lies beyond the bounds, if any does."""
    pairs = zip(exits, temperatures, strict=False)  # There may be no temperatures.
    far = [exit for exit, one in pairs if not LEAST < one < GREATEST]
    if not far:
        return None
    return (
        f"policy.temperature: that of {', '.join(far)} is at a bound, {LEAST:g} or {GREATEST:g}: "
        "nearly every answer there is right on these samples, or hardly any, which says nothing of "
        "how sure to be of others; give other samples in data.tuning, or leave temperature out"
    )


def reliability(confidences: Floats, right: npt.NDArray[np.bool_], bins: int = 15) -> Reliability:
    """The expected calibration error, and the bins that it is the mean of (1706.04599, eq. 3).

    `confidences` are probabilities float64 `[samples]`, those of NaN left out, `right` is bool
    `[samples]`. Bins are of equal width, each with its upper end and without its lower one; the
    first has both. The error is `sum_b n_b / n * |accuracy_b - confidence_b|`.
    """
    told = ~np.isnan(confidences)
    confidences, right = confidences[told], right[told]
    # The inner ends alone: whatever lies beyond the outer ones is rounding.
    places = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidences)
    found, error = [], 0.0
    for place in range(bins):
        here = places == place
        if not (count := int(np.count_nonzero(here))):
            found.append(Bin(0, None, None))
            continue
        confidence, accuracy = float(confidences[here].mean()), float(right[here].mean())
        found.append(Bin(count, confidence, accuracy))
        error += count / len(confidences) * abs(accuracy - confidence)
    return Reliability(error, tuple(found))


def nll(logits: Array, labels: Array, temperature: float = 1.0) -> float:
    """The mean negative log-likelihood of the labels, in nats; 0 where there is no sample.

    `logits` are `[samples, classes]` of any float dtype, `labels` integers `[samples]`. Samples
    that are not finite at any temperature are left out: with NaN or +inf among their logits, with
    nothing but -inf, or with their label's class masked.
    """
    below, of_label = _sound(scaled(logits, temperature), labels)
    if not len(below):
        return 0.0
    return math.fsum(np.log(np.exp(below).sum(axis=1)) - of_label) / len(below)


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature between `LEAST` and `GREATEST` at which `nll` is least.

    1 where no other one is better, as with a single class or without samples. The likelihood is
    convex in 1 / T, so its slope there has one zero: found by Newton's method, and by halving where
    that would leave the bounds known so far. The order of the samples changes nothing.
    """
    below, of_label = _sound(scaled(logits, 1.0), labels)
    finite = np.where(np.isfinite(below), below, 0.0)  # A masked class adds nothing.

    def slope(inverse: float) -> tuple[float, float]:
        """The first and second derivative by 1 / T, summed over samples (fsum has no order)."""
        weights = np.exp(inverse * below)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * finite).sum(axis=1)
        variance = (weights * (finite - mean[:, None]) ** 2).sum(axis=1)
        return math.fsum(mean - of_label), math.fsum(variance)

    if slope(1.0)[0] == 0:
        return 1.0
    least, greatest = 1 / GREATEST, 1 / LEAST
    if slope(least)[0] >= 0:
        return GREATEST
    if slope(greatest)[0] <= 0:
        return LEAST
    inverse = 1.0
    for _ in range(_STEPS):
        first, second = slope(inverse)
        least, greatest = (inverse, greatest) if first < 0 else (least, inverse)
        newton = inverse - first / second if second > 0 else math.inf
        following = newton if least < newton < greatest else math.sqrt(least * greatest)
        step, inverse = abs(following - inverse), following
        if step <= _NEAR * inverse:
            break
    found = 1 / inverse
    # Beside 1 the gain may be less than rounding makes of it.
    return found if nll(logits, labels, found) <= nll(logits, labels) else 1.0


def _sound(logits: Floats, labels: Array) -> tuple[Floats, Floats]:
    """Logits less the largest of their sample, and what that is for its label; sound samples only.

    float64 `[samples, classes]` and `[samples]`; see `nll`.
    """
    largest = logits.max(axis=1, initial=-np.inf)  # NaN where one is.
    sound = np.isfinite(largest) & (logits[np.arange(len(logits)), labels] > -np.inf)
    below = logits[sound] - largest[sound, None]
    return below, below[np.arange(len(below)), labels[sound]]
