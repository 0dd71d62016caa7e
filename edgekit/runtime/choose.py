"""Who of a ladder's variants answers: each policy as a function of plain values.

A place is a variant's index on the ladder, 0 for the narrowest. Nothing here loads, times or reads:
`edgekit.runtime.ladder` does, and asks.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from edgekit.bundle.ladder import Cascade, Load
from edgekit.runtime import adapt

__all__ = [
    "LoadState",
    "accuracy_floor",
    "closes",
    "follow_load",
    "latency_budget",
    "load_start",
    "memory_budget",
    "p95",
    "paying",
    "stands",
]


def latency_budget(p95_ms: Sequence[float], budget_ms: float) -> int | None:
    """The widest variant whose 95th percentile is within the budget; None where none is."""
    return max((place for place, one in enumerate(p95_ms) if one <= budget_ms), default=None)


def accuracy_floor(
    accuracies: Sequence[float | None], costs: Sequence[float], floor: float
) -> int | None:
    """The variant that costs least of those whose accuracy is at least `floor`; None without any.

    Of equal costs the more accurate one. `costs` are of any unit. A variant whose accuracy nobody
    knows reaches no floor.
    """
    fit = [
        (cost, -accuracy, place)
        for place, (accuracy, cost) in enumerate(zip(accuracies, costs, strict=True))
        if accuracy is not None and accuracy >= floor
    ]
    return min(fit)[-1] if fit else None


def memory_budget(sizes_bytes: Sequence[int], budget_bytes: float) -> int | None:
    """The widest variant that takes no more than the budget; None where none does."""
    return latency_budget(sizes_bytes, budget_bytes)


def stands(
    policy: Cascade,
    variants: int,
    classes: Sequence[int | None],
    confidence: float,
) -> bool:
    """Whether the answer of the variant that was asked last is the cascade's.

    `classes` are those told so far, narrowest variant first, `confidence` is of the last. The
    widest of the `variants` takes what is left. A NaN confidence is never sure.
    """
    asked = len(classes)
    if asked == variants:
        return True
    if policy.agree:
        return asked > 1 and classes[-1] == classes[-2]
    assert policy.thresholds is not None  # noqa: S101  (filled in by whoever asks)
    return confidence >= policy.thresholds[asked - 1]


def p95(latencies_ms: Sequence[float], window: int) -> float:
    """The 95th percentile of a window of so many samples, of which these are known.

    The least of them that 95 % of the window do not exceed. Those not yet known count as faster: of
    a window that is not full it is the least that it can be. More than a twentieth must be known.
    """
    return sorted(latencies_ms)[-_ending(window)]


def _ending(window: int) -> int:
    """So many samples over a limit put a window's 95th percentile over it: more than a twentieth.

    In integers: 0.95 is no binary fraction.
    """
    return window // 20 + 1


def paying(p95_ms: Sequence[float]) -> list[int]:
    """The places that no wider variant is as fast as: their times rise."""
    found: list[int] = []
    for place in reversed(range(len(p95_ms))):
        if not found or p95_ms[place] < p95_ms[found[-1]]:
            found.append(place)
    return found[::-1]


class LoadState(NamedTuple):
    """The place in use, and for how many windows in a row a wider one was expected to fit.

    `wider` is the narrowest of those that were, meaningless while `calm` is 0. `doubt` is for how
    many windows more one that is over the target is believed at once, see `follow_load`.
    """

    place: int
    calm: int = 0
    wider: int = 0
    doubt: int = 0


def load_start(policy: Load, p95_ms: Sequence[float]) -> LoadState:
    """Where to begin: as if the device were as busy as when the profile was measured."""
    place = latency_budget(p95_ms, policy.target_ms)
    return LoadState(paying(p95_ms)[0] if place is None else place)


def closes(policy: Load, samples: int, over: int) -> bool:
    """Whether a window ends that has so many samples, so many of them over the target.

    It ends when it is full, and before that as soon as its 95th percentile is sure to be over the
    target whatever follows: a load that doubles is answered after a twentieth of a window, and yet
    a window can be long enough for a few hiccups to count for nothing.
    """
    return samples >= policy.window or over >= _ending(policy.window)


def follow_load(
    policy: Load, p95_ms: Sequence[float], state: LoadState, latencies_ms: Sequence[float]
) -> LoadState:
    """The state after a window in which the place in use took these times, in ms.

    `p95_ms` are the variants' 95th percentiles from the profile, of which only the ratios count: a
    variant is expected to take its own times what the one in use takes now over what the profile
    says of it. Where the window's 95th percentile is over the target, the widest that is expected
    to fit is gone to, the narrowest where none is: at once if the load rose, that is if most of the
    window's last samples were over the target, as many as can end one; else if one of the two
    windows before was over it, too. For of a load with 3 % hiccups one window in 25 has more than a
    twentieth of them by chance. A wider one is gone to when `calm` windows in a row expected it to
    leave the share `margin` of the target free, and then the narrowest that any of them did.
    Variants that a wider one is as fast as are passed over.
    """
    places = paying(p95_ms)
    here = max(bisect_right(places, state.place) - 1, 0)
    costs = tuple(p95_ms[place] for place in places)
    settings = adapt.Settings(costs, window=1, step=len(places), hysteresis=policy.margin)
    # Of a window that ended early the least it can be: a hiccup in it leads to nothing too narrow.
    seen_ms = p95(latencies_ms, policy.window)
    last_ms = sorted(latencies_ms[-_ending(policy.window) :])
    slow = sum(one > policy.target_ms for one in last_ms)
    rose = seen_ms > policy.target_ms and 2 * slow > len(last_ms)
    if rose:
        # Of the new load that is too little: these are of it, but for two that may be hiccups.
        seen_ms = max(seen_ms, last_ms[max(0, len(last_ms) - 3)])
    wanted = places[adapt.follow(settings, adapt.State(here), seen_ms, policy.target_ms).place]
    if wanted < state.place:
        believed = rose or state.doubt > 0
        return LoadState(wanted) if believed else LoadState(state.place, doubt=2)
    doubt = max(0, state.doubt - 1)
    if wanted == state.place:
        return LoadState(wanted, doubt=doubt)
    wider = min(wanted, state.wider) if state.calm else wanted
    if state.calm + 1 >= policy.calm:
        return LoadState(wider)
    return LoadState(state.place, state.calm + 1, wider, doubt)
