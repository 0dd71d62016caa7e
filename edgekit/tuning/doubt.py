"""How near a decision is to being another one: which samples tell the same on any processor."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import GIVEN, Policy
from edgekit.runtime.criteria import PATIENCE, Walk

__all__ = ["sureness"]

Array = npt.NDArray[Any]

_TINY = 1e-12
"""Keeps the log-odds of a certain confidence, or of a threshold of 0 or 1, finite."""


def sureness(
    policy: Policy, logits: Sequence[Array], given: Sequence[Array], *, classes: bool
) -> float:
    """How far the decision on a sample is from being another one, in natural units of log-odds.

    By every exit's logits `[1, classes]`, and the confidences `[1]` that the first of them give. A
    confidence that the exit gives is no probability, and is taken as it is. `classes` says that
    exits tell classes.

    The least of: the distance of each confidence that is looked at from its threshold, how far the
    best class stands above the second at the exit that answers, and where it answers as the most
    confident one, how far it is from the second of those. Under patience it is the classes of all
    exits looked at that decide.
    """
    walk = Walk(policy)
    patience = policy.criterion == PATIENCE
    scale = float if policy.criterion == GIVEN else _log_odds
    distances, leads, confidences = [], [], []
    for pair, threshold in zip(zip_longest(logits, given), (*policy.thresholds, None), strict=True):
        answer = walk.look(*pair)
        confidences.append(float(answer.confidences[0]))
        leads.append(math.inf)
        if classes and pair[0].shape[1] > 1:
            second, best = np.sort(walk.scores[0].astype(np.float64))[-2:]
            leads[-1] = float(best - second)
        if threshold is None:
            answer = walk.otherwise()
        elif not patience:
            distances.append(abs(scale(confidences[-1]) - scale(threshold)))
        if threshold is None or confidences[-1] >= threshold:
            break
    if patience:
        return min(leads)
    if threshold is None and policy.otherwise == "max_confidence" and len(confidences) > 1:
        second, best = sorted(scale(one) for one in confidences)[-2:]
        distances.append(best - second)
    return min(*distances, leads[answer.exits[0]], math.inf)


def _log_odds(share: float) -> float:
    share = min(max(share, _TINY), 1 - _TINY)
    return math.log(share / (1 - share))
