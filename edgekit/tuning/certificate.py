"""What can be promised of thresholds: a bound on their risk that holds at a stated confidence.

Pareto Testing (Laufer-Goldshtein et al., arXiv 2210.07913) in the frame of Learn then Test
(Angelopoulos et al., arXiv 2110.01052). The samples are parted in two. The front of risk against
cost is found on one part and put in order, from where nobody leaves on. On the other part each
point is tested in that order against the hypothesis that its risk is above the bound, by the
binomial tail, until one test fails. Of all tested before that one the promise holds at once: a
wrong one among them would have to pass the first test of a true hypothesis, which happens with a
probability of at most one less the confidence (fixed sequence testing).

The promise is about samples drawn as these were, independently. It says nothing of others.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import CheckError
from edgekit.tuning.search import Observed, Points, evaluate, search, shared

__all__ = [
    "Certificate",
    "certify",
    "demand_enough",
    "p_value",
    "parted",
    "samples_needed",
]

_TESTED = 256
"""At most so many points of a front are tested; more would lie closer than a test can tell."""

_SAFER = 64
"""At most so many that are safer than the front's safest are tested before it."""


@dataclass(frozen=True)
class Certificate:
    """Points whose risk is at most `risk`, all at once, with probability `confidence`.

    `points` are cheapest first, counted on the `tested` samples of the test; `errors`, int64
    `[points]`, are the risky answers among those, `p_values`, float64 `[points]`, their tests'.
    """

    risk: float
    confidence: float
    tested: int
    points: Points
    errors: npt.NDArray[np.int64]
    p_values: npt.NDArray[np.float64]


def certify(observed: Observed, risk: float, confidence: float, seed: int = 0) -> Certificate:
    """The points of the front for which it can be promised that `risk` is not exceeded.

    `observed.right` says which answers are no risk. Risk is the share of the others. The samples
    are parted at random, by `seed`. Raises CheckError where too few samples would be left to test
    even a point without an error, or where not even the safest point passes.
    """
    found_on, tested_on = (observed.of(one) for one in parted(observed.samples, seed))
    demand_enough(observed.samples, risk, confidence)
    points = evaluate(tested_on, _safest_first(found_on))
    errors = tested_on.samples - points.right
    # Many points err as often as another one.
    distinct, places = np.unique(errors, return_inverse=True)
    p_values = np.array([p_value(int(one), tested_on.samples, risk) for one in distinct])[places]
    failed = np.flatnonzero(p_values > 1 - confidence)
    passed = np.arange(failed[0] if len(failed) else len(points))[::-1]
    if not len(passed):
        raise CheckError(
            f"even the safest thresholds give {errors[0]} risky answers in {tested_on.samples} "
            f"samples, too many for a risk of {risk:g} at a confidence of {confidence:g}: give "
            "more samples, ask for less, or train the early exits further"
        )
    cheapest = passed[np.argsort(points.costs[passed], kind="stable")]
    return Certificate(
        risk,
        confidence,
        tested_on.samples,
        points.of(cheapest),
        errors[cheapest],
        p_values[cheapest],
    )


def _safest_first(observed: Observed) -> npt.NDArray[np.float64]:
    """Thresholds in the order in which they are tested, `[points, early exits]`.

    From the last of the front, the most accurate, on to its cheapest. Before it, for what has no
    error here may have some elsewhere: shared thresholds from where nobody leaves down to what the
    front's last one costs.
    """
    safest = search(observed).thresholds[::-1]
    points = shared(observed)
    dearer = points.of(points.costs > evaluate(observed, safest[:1]).costs[0]).thresholds[::-1]
    return np.concatenate([dearer[_few(len(dearer), _SAFER)], safest[_few(len(safest), _TESTED)]])


def _few(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many indices below `count`, evenly spaced, the ends among them."""
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64)) if count else np.arange(0)


def demand_enough(samples: int, risk: float, confidence: float) -> None:
    """Raises CheckError where half of so many samples cannot exclude a risk, without an error."""
    needed = samples_needed(risk, confidence)
    if samples - samples // 2 < needed:
        raise CheckError(
            f"a risk of {risk:g} at a confidence of {confidence:g} needs {needed} samples to test "
            f"on, without an error among them, and as many to search on; found {samples} in all: "
            f"give {2 * needed} at least (more let more leave early), or ask for less"
        )


def parted(samples: int, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which samples `certify` searches on, and which it tests on: indices in order."""
    order = np.random.default_rng(seed).permutation(samples)
    return np.sort(order[: samples // 2]), np.sort(order[samples // 2 :])


def p_value(errors: int, samples: int, risk: float) -> float:
    """How probable so few errors are: `P(Binomial(samples, risk) <= errors)`.

    A risk that is higher makes them less probable still, so this is a valid p-value for "the risk
    is at least `risk`" (arXiv 2110.01052, section 2.2, in its exact form for losses of 0 and 1).
    """
    if errors >= samples:
        return 1.0
    terms = np.arange(errors + 1)
    logs = _log_choose(samples, terms)
    logs += terms * math.log(risk) + (samples - terms) * math.log1p(-risk)
    largest = logs.max()
    return min(1.0, float(np.exp(logs - largest).sum() * math.exp(largest)))


def samples_needed(risk: float, confidence: float) -> int:
    """With how many samples without an error a risk can be excluded.

    The least n with `(1 - risk)^n <= 1 - confidence`: 230 for a risk of 0.01 at one of 0.9.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk))


def _log_choose(samples: int, terms: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    gamma = np.vectorize(math.lgamma, otypes=[np.float64])
    result: npt.NDArray[np.float64] = (
        math.lgamma(samples + 1) - gamma(terms + 1) - gamma(samples - terms + 1)
    )
    return result
