"""Thresholds that follow a budget: along the points that tuning found, cheapest first.

What a device takes for a sample is not what the host counted: its clock is throttled when it is
warm, other work shares it, and samples come slowly or fast. So the place on the front follows what
is measured. Of the costs that tuning gives the points only the ratios are used: if the point in use
takes twice as long as before, so will all others, and one window tells.

Every point followed is one of `tuning.points`, and none that a cheaper one is as accurate as. With
a certificate all of them are covered by it at once, so wherever the chain is led, what was promised
of each of its answers still holds.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from edgekit.bundle.manifest import Point, Tuning
from edgekit.errors import InputError
from edgekit.runtime.drift import DriftDetector
from edgekit.runtime.watcher import Watcher

if TYPE_CHECKING:
    from edgekit.runtime.chain import Chain

__all__ = ["AdaptivePolicy", "Settings", "State", "follow"]


@dataclass(frozen=True)
class Settings:
    """What is followed, and how fast.

    `costs` are those of the points, rising, in any unit. Every `window` samples the place moves by
    at most `step` points, to a dearer one only if that is expected to leave the share `hysteresis`
    of the budget free.
    """

    costs: tuple[float, ...]
    window: int = 50
    step: int = 1
    hysteresis: float = 0.1

    def problem(self) -> str | None:
        """Words about what cannot be followed; None where all can."""
        if not all(0 < one < math.inf for one in self.costs):
            return f"points cost a finite amount above 0; found {list(self.costs)}"
        if not self.costs or any(a > b for a, b in pairwise(self.costs)):
            return f"points stand cheapest first, one at least; found {list(self.costs)}"
        if self.window < 1 or self.step < 1 or not 0 <= self.hysteresis < 1:
            return (
                "window and step are at least 1, hysteresis from 0 to below 1; found "
                f"{self.window}, {self.step} and {self.hysteresis}"
            )
        return None


class State(NamedTuple):
    """Where on the front a stream is, and what its window's `samples` cost and might cost in all.

    `cost` and `budget` are of one unit, whichever.
    """

    place: int
    samples: int = 0
    cost: float = 0.0
    budget: float = 0.0


def follow(settings: Settings, state: State, cost: float, budget: float) -> State:
    """The state after one more sample, which had `cost` and might have had `budget`.

    At the end of a window, the most accurate point whose expected cost is within the budget, or as
    near to it as `step` allows; the cheapest where none is. A point is expected to cost its own
    cost times what the point in use did cost over what that was expected to. A cost or budget that
    is not finite, or below zero, is no measurement, and its sample does not count.
    """
    if not (0 <= cost < math.inf and 0 <= budget < math.inf):
        return state
    place, samples = state.place, state.samples + 1
    cost, budget = state.cost + cost, state.budget + budget
    if samples < settings.window:
        return State(place, samples, cost, budget)
    costs = settings.costs
    # In the points' unit. Where nothing was measured, everything is expected to fit.
    allowed = costs[place] * (budget / cost) if cost else math.inf
    if costs[place] > allowed:
        wanted = max(bisect_right(costs, allowed) - 1, 0)
    else:
        wanted = max(bisect_right(costs, allowed * (1 - settings.hysteresis)) - 1, place)
    return State(max(place - settings.step, min(place + settings.step, wanted)))


class AdaptivePolicy(Watcher):
    """Moves a chain's thresholds along the front of its tuning, so that it keeps to a budget.

    `latency_ms` is for the mean of a sample, as `Metrics` counts it: from its check to its answer,
    in a batch from where its part begins. `load` is for the share of the time between samples that
    the chain is busy, above 0 and at most 1, and follows how often they come. `energy_mj` is for
    the mean of a sample, by the costs that tuning knows in mJ, or as `watts` times the time that
    the chain is busy.

    It looks at the budget every `window` samples; with batches let a window have several of them.
    Only points of the front are gone to, with a certificate only such as it covers. Thresholds that
    somebody else sets are left alone unless they are a point's, and then followed on from; while a
    `DriftDetector` holds the chain at its safe point, it stays there.

    `moves` counts how often the thresholds were changed.
    """

    sets_thresholds = True

    def __init__(
        self,
        chain: "Chain",
        tuning: Tuning | None = None,
        *,
        latency_ms: float | None = None,
        load: float | None = None,
        energy_mj: float | None = None,
        watts: float | None = None,
        window: int = 50,
        step: int = 1,
        hysteresis: float = 0.1,
    ) -> None:
        """Begin to follow, from the point where the chain is, along its own tuning by default.

        Where that is a point that another one beats at no more cost, from that other.
        Raises InputError where the bundle knows of no tuning or the chain's thresholds are none of
        its points', for another number of budgets than one, one that nothing can be held to, and
        where the chain follows one already.
        """
        found = tuning or chain.spec.tuning
        if found is None:
            raise InputError(
                "the chain has no points to follow a budget along: it is of no bundle, or its "
                "policy is another than the bundle's; load the bundle, or give its tuning"
            )
        points = _front(found.points)
        settings = Settings(tuple(one.cost for one in points), window, step, hysteresis)
        if words := settings.problem():
            raise InputError(f"a budget cannot be followed: {words}")
        self._places = {one.thresholds: place for place, one in enumerate(points)}
        thresholds = chain.spec.policy.thresholds
        current = next((one for one in found.points if one.thresholds == thresholds), None)
        if current is None:
            raise InputError(
                f"the chain's thresholds {list(thresholds)} are no point's of its tuning: set one, "
                "chain.set_thresholds(tuning.points[tuning.chosen].thresholds)"
            )
        self._measure = _measure(found, latency_ms, load, energy_mj, watts)
        self._chain, self._points, self._settings = chain, points, settings
        self.moves = 0
        self._last_ns: int | None = None
        # At the place of it, or of the one that beats it.
        place = max(bisect_right(settings.costs, current.cost) - 1, 0)
        self._state = State(place)
        chain.watch(self)
        if thresholds not in self._places:
            chain.set_thresholds(points[place].thresholds)
        self._turn(chain.spec.policy.thresholds, -1)

    @property
    def place(self) -> int:
        """Where on the front the chain is: the index of a point, 0 for the cheapest.

        Where somebody set thresholds of no point, the last one that it was at.
        """
        return self._state.place

    @property
    def point(self) -> Point:
        """The point there, as tuning found it."""
        return self._points[self.place]

    def add(self, depth: int, confidence: float, started_ns: int, ended_ns: int, stop: str) -> None:
        """Count a sample that left at exit `depth`. For the chain, which holds its lock here."""
        last_ns = self._last_ns
        # A batch is told in the samples' order, and an earlier one may have left later.
        self._last_ns = ended_ns if last_ns is None else max(last_ns, ended_ns)
        thresholds = self._chain.spec.policy.thresholds
        if thresholds is not self._thresholds:
            # Set since, and perhaps in this very call: its samples may have seen the others.
            self._turn(thresholds, started_ns)
        if started_ns == self._turned_ns or not self._on_front:
            return
        cost, budget = self._measure(depth, started_ns, ended_ns, last_ns)
        before = self._state
        self._state = state = follow(self._settings, before, cost, budget)
        if state.place != before.place:
            if self._held():
                self._state = State(before.place)
                return
            self.moves += 1
            self._chain.retune(self._points[state.place].thresholds)
            self._turn(self._chain.spec.policy.thresholds, started_ns)

    def _held(self) -> bool:
        watchers = self._chain.watchers
        return any(isinstance(one, DriftDetector) and one.held for one in watchers)

    def _turn(self, thresholds: tuple[float, ...], turned_ns: int) -> None:
        """Begin a window at these thresholds, with the call after the one that began then."""
        self._thresholds, self._turned_ns = thresholds, turned_ns
        place = self._places.get(thresholds)
        self._on_front = place is not None
        self._state = State(self._state.place if place is None else place)


def _front(points: Sequence[Point]) -> list[Point]:
    """The points that no cheaper one is as accurate as; all where nobody knows what is right."""
    found: list[Point] = []
    for point in points:
        if point.right is None or not found or point.right > (found[-1].right or 0):
            found.append(point)
    return found


_Measure = Callable[[int, int, int, int | None], tuple[float, float]]
"""What a sample cost and what it might have: by its exit, when its call began, when it left, and
when the last one before it had left, all in ns; None for the first sample."""


def _measure(
    tuning: Tuning,
    latency_ms: float | None,
    load: float | None,
    energy_mj: float | None,
    watts: float | None,
) -> _Measure:
    """How samples are held to the one budget that is given. Raises InputError for any other."""
    budgets = {"latency_ms": latency_ms, "load": load, "energy_mj": energy_mj}
    given = [name for name, one in budgets.items() if one is not None]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise InputError(f"give one budget, latency_ms, load or energy_mj; found {found}")
    for name, one in {**budgets, "watts": watts}.items():
        if one is not None and not (isinstance(one, int | float) and 0 < one < math.inf):
            raise InputError(f"{name} is a finite number above 0; found {one!r}")
    if watts is not None and energy_mj is None:
        raise InputError("watts make energy of time: give them with energy_mj, or leave them out")
    if latency_ms is not None:
        latency_ns = latency_ms * 1e6
        return lambda depth, started, ended, last: (ended - started, latency_ns)
    if load is not None:
        if load > 1:
            raise InputError(f"load is the share of time to be busy, at most 1; found {load!r}")
        return lambda depth, started, ended, last: (
            _busy_ns(started, ended, last),
            # Before the first sample nobody knows how often they come.
            math.nan if last is None else load * max(ended - last, 0),
        )
    assert energy_mj is not None  # noqa: S101  (the one that is left)
    if watts is not None:
        mj_per_ns = watts / 1e6
        return lambda depth, started, ended, last: (
            mj_per_ns * _busy_ns(started, ended, last),
            energy_mj,
        )
    if tuning.unit != "mJ":
        raise InputError(
            f"energy_mj needs what samples cost in mJ, and this tuning counted {tuning.unit}: give "
            "watts, what the device draws while busy, or tune with costs in mJ"
        )
    return lambda depth, started, ended, last: (tuning.costs[depth], energy_mj)


def _busy_ns(started_ns: int, ended_ns: int, last_ns: int | None) -> int:
    """How much longer the chain was busy for a sample; in a batch, than for those before it."""
    begun_ns = started_ns if last_ns is None else max(started_ns, last_ns)
    return max(ended_ns - begun_ns, 0)
