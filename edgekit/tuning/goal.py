"""From what a recipe asks for to thresholds, and to the front that a device may follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.bundle import manifest as m
from edgekit.errors import CheckError, RecipeError
from edgekit.recipe import Goal, Recipe
from edgekit.runtime.criteria import PATIENCE
from edgekit.tuning.certificate import certify, parted
from edgekit.tuning.search import (
    Points,
    by_rates,
    centred,
    evaluate,
    front,
    search,
    shared,
    thresholds_at,
)
from edgekit.tuning.seen import Seen
from edgekit.tuning.temperature import at_a_bound, calibrated, fitted_on

__all__ = [
    "NO_ENERGY",
    "NO_LABELS",
    "NO_TIMES",
    "Choice",
    "Costs",
    "Settled",
    "check_buildable",
    "choose",
    "fit",
    "least_correct",
    "settle",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Notes = dict[str, Any]

NO_TIMES = (
    "policy.tune.max_latency_ms needs times, and a build measures none, so that the next is the "
    "same: build with another goal, measure on the device with edgekit bench BUNDLE --json FILE, "
    "then edgekit tune BUNDLE --profile FILE --set policy.tune.max_latency_ms=..."
)
"""Why a goal of latency is refused where nothing was measured."""

NO_ENERGY = (
    "policy.tune.energy_mj: measured needs a board's energy, and a build measures none: build with "
    "another goal, measure on a Jetson with edgekit bench BUNDLE --json FILE, then edgekit tune "
    "BUNDLE --profile FILE --set policy.tune.energy_mj=measured, beside a goal such as --set "
    "policy.tune.max_accuracy_drop=0.01; or give the mJ of each exit"
)
"""Why energy is refused as a cost where nothing was measured."""

NO_LABELS = (
    "policy.tune: data.tuning has no labels to count accuracy with; give them, or a goal that "
    "needs none (exit_rates, min_exit_rate, a certificate of disagreement), or policy.thresholds"
)
"""Why a goal of accuracy is refused where nobody knows what is right."""

_CLASSES_COUNTED = 512
"""At most so many points are looked at class by class, evenly spaced from the best on."""

_NEAR = 0.05
"""How far an exit's share may be from what was asked for, unremarked: confidences may be alike."""

_DEPLOYED = 32
"""At most so many points of the front travel: more would lie closer than a stream can tell."""

_P95 = 0.95


@dataclass(frozen=True)
class Costs:
    """What a sample costs that leaves at an exit, float64 `[exits]`, in `unit`.

    `latency_ms` is how long it takes on the device, None where nobody measured it: float64 `[exits,
    quantiles]`, evenly spaced from the least to the greatest, and `mean_ms` `[exits]` its mean.
    `energy_mj` `[exits]` is what a device has measured, or None.
    """

    unit: str
    each: Floats
    mean_ms: Floats | None = None
    latency_ms: Floats | None = None
    energy_mj: Floats | None = None

    def of(self, goal: Goal | None, exits: Sequence[str]) -> "Costs":
        """In energy, where the goal says what that is.

        Raises RecipeError where it is to be what a device has measured, and none has, or what it
        measured does not stand out from the idle board.
        """
        if goal is None or goal.energy_mj is None:
            return self
        if isinstance(goal.energy_mj, dict):
            return replace(self, unit="mJ", each=np.array([goal.energy_mj[one] for one in exits]))
        if self.energy_mj is None:
            raise RecipeError(NO_ENERGY)
        if not ((self.energy_mj > 0) & np.isfinite(self.energy_mj)).all():
            found = ", ".join(f"{one:.3g}" for one in self.energy_mj)
            raise RecipeError(
                f"policy.tune.energy_mj: measured: the exits cost {found} mJ above the idle board, "
                "and each must cost some; hold the clocks (sudo jetson_clocks), let nothing else "
                "run, and measure again"
            )
        return replace(self, unit="mJ", each=self.energy_mj)

    def p95_ms(self, rates: Floats) -> float:
        """What 95 % of the samples do not exceed, where these shares of them leave at each exit."""
        assert self.latency_ms is not None  # noqa: S101  (asked by the caller)
        limits = np.unique(self.latency_ms)
        shares = np.array([rates @ self.share_within(float(one)) for one in limits])
        return float(np.interp(_P95, shares, limits))

    def share_within(self, limit_ms: float) -> Floats:
        """The share of samples, by the exit that they leave at, that take no longer than a limit.

        float64 `[exits]`.
        """
        assert self.latency_ms is not None  # noqa: S101  (asked by the caller)
        levels = np.linspace(0.0, 1.0, self.latency_ms.shape[1])
        return np.array(
            [np.interp(limit_ms, one, levels, left=0.0, right=1.0) for one in self.latency_ms]
        )


class Settled(NamedTuple):
    """Thresholds, one per early exit; what the manifest says of them; and words for the evidence.

    `tuning` names no file yet: who writes the bundle knows where the samples lie.
    """

    thresholds: tuple[float, ...]
    tuning: m.Tuning
    notes: Notes


def check_buildable(recipe: Recipe) -> None:
    """Raises RecipeError for a goal that no build can reach."""
    if recipe.policy.tune is not None and recipe.policy.tune.max_latency_ms is not None:
        raise RecipeError(NO_TIMES)
    if recipe.policy.tune is not None and recipe.policy.tune.energy_mj == "measured":
        raise RecipeError(NO_ENERGY)


def settle(
    recipe: Recipe,
    exits: Sequence[str],
    seen: Seen,
    costs: Costs,
    reference_right: int | None,
    temperatures: Sequence[float] | None = None,
) -> Settled:
    """The thresholds that the recipe gives, or those that its goal comes to; and the front.

    `reference_right` is how many of the samples the final exit of the model in PyTorch has right,
    `temperatures` are those that `seen` was made with. Raises CheckError where no thresholds keep
    what the recipe asks for, RecipeError where that is counted by what nobody knows here.
    """
    goal = recipe.policy.tune
    demand_known(goal, told=recipe.labels != () and seen.told, labelled=seen.labels is not None)
    costs = costs.of(goal, exits)
    found = Choice(np.array(recipe.thresholds or ()), None, {})
    if recipe.thresholds is None:
        assert goal is not None  # noqa: S101  (the recipe has either)
        found = _fitted(recipe, goal, seen, costs, reference_right)
    thresholds = tuple(found.thresholds.tolist())
    told = recipe.labels != () and seen.told
    right_by = ("agreement" if seen.labels is None else "label") if told else None
    points, chosen = _deployed(recipe, seen, costs, found, right_by)
    rates = np.array([one.count for one in points[chosen].left]) / seen.samples
    notes: Notes = {
        "samples": seen.samples,
        "thresholds": dict(zip(exits[:-1], thresholds, strict=True)),
        "exit_rates": dict(zip(exits, rates.tolist(), strict=True)),
        **found.notes,
    }
    taken = seen.taken(thresholds)
    if told:
        notes["agreement"] = _share(seen.right("disagreement"), taken)
    if seen.labels is not None:
        notes["accuracy"] = _share(seen.right(), taken)
        notes["final_exit_accuracy"] = float(np.mean(seen.right()[-1]))
        notes["pytorch_accuracy"] = (
            None if reference_right is None else reference_right / seen.samples
        )
    if costs.mean_ms is not None:
        notes["mean_latency_ms"] = float(rates @ costs.mean_ms)
        notes["p95_latency_ms"] = costs.p95_ms(rates)
    remarks = (
        _useless(recipe, taken, len(exits)) or _missed(exits, rates, recipe.exit_rates),
        at_a_bound(exits, temperatures or ()),
    )
    if any(remarks):
        notes["warning"] = "; ".join(filter(None, remarks))
    asked = goal.certificate if goal is not None else None
    tuning = m.Tuning(
        samples=seen.samples,
        right_by=right_by,
        unit=costs.unit,
        costs=tuple(costs.each.tolist()),
        points=points,
        chosen=chosen,
        certificate=m.Certificate(asked.risk, asked.confidence, asked.of) if asked else None,
        drift=m.Drift(**recipe.policy.drift.model_dump()),
        reference_right=reference_right,
        held_out=recipe.certified or not _fitted_on_all(recipe),
        seen="",
    )
    return Settled(thresholds, tuning, notes)


def demand_known(goal: Goal | None, *, told: bool, labelled: bool) -> None:
    """Raises RecipeError where the goal counts what nobody knows here.

    Right answers where exits do not tell classes, or by labels where there are none.
    """
    if goal is not None and goal.needs_labels and not labelled:
        raise RecipeError(NO_LABELS)
    if goal is not None and not goal.blind and not told:
        raise RecipeError(
            "policy.tune: the exits give no class scores, and what is right of what they give "
            "nobody knows here; give policy.thresholds, from a measure of your own, or "
            "policy.tune.exit_rates or mean_plus_std"
        )


def _fitted_on_all(recipe: Recipe) -> bool:
    """Whether something that is deployed, beside thresholds, comes of all tuning samples."""
    reached = recipe.quantize.features == "reached" and recipe.policy.tune is not None
    return recipe.policy.temperature or reached


class Choice(NamedTuple):
    """Thresholds `[early exits]`, the points that a certificate covers, words for the evidence."""

    thresholds: Floats
    certified: Points | None
    notes: Notes


def choose(
    goal: Goal,
    seen: Seen,
    costs: Costs,
    least: int | None,
    exit_rates: Sequence[float] | None = None,
    where: str = "policy.tune",
) -> Choice:
    """The thresholds that meet a goal best, and what can be promised of them.

    Of those that meet it, the cheapest where it bounds what may be lost, the one that weighs least
    where it says what an error weighs, else the most accurate. `least` is how many must be right,
    where the goal says so; `exit_rates` are the goal's by depth, of the early exits. Raises
    CheckError where none meets the goal that stands at `where`, RecipeError where it needs times
    and there are none.
    """
    early = seen.confidences[:-1]
    if exit_rates is not None:
        return Choice(thresholds_at(early, exit_rates), None, {})
    if goal.mean_plus_std is not None:
        return Choice(_mean_plus_std(early, goal.mean_plus_std), None, {})
    by = "disagreement" if seen.labels is None else "label"
    observed = seen.observed(by, costs.each)
    certificate = None
    if goal.certificate is not None:
        asked = goal.certificate
        certificate = certify(seen.observed(asked.of, costs.each), asked.risk, asked.confidence)
        points = evaluate(observed, certificate.points.thresholds)
    elif goal.search == "per_exit":
        points = search(observed)
    else:
        points = shared(observed)
    met = np.ones(len(points), bool)
    if least is not None:
        met &= points.right >= least
    if goal.min_exit_rate is not None:
        leaving = observed.samples - points.counts[:, -1]
        # In whole samples, from the share as it is written: 0.9 of 100 are 90.
        met &= leaving >= math.ceil(Fraction(repr(goal.min_exit_rate)) * observed.samples)
    if goal.max_latency_ms is not None:
        met &= _in_time(goal, costs, points.counts / observed.samples)
    rows = np.flatnonzero(met)
    rows = rows[_best_first(goal, points.of(rows), costs, observed.samples)]
    if goal.min_class_accuracy is not None and len(rows):
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, _CLASSES_COUNTED).astype(int))]
        floor = goal.min_class_accuracy
        rows = np.array(
            [row for row in rows if _worst_class(seen, points.thresholds[row]) >= floor], int
        )
    if not len(rows):
        raise CheckError(
            f"no thresholds keep what {where} asks for on the {observed.samples} tuning "
            f"samples ({_words(goal)}); ask for less, or train the early exits further"
        )
    chosen = int(rows[0])
    thresholds = points.thresholds[chosen]
    if certificate is None:
        return Choice(thresholds, None, {})
    # They were found on half of the samples; another's confidence may lie beside one.
    covered = points.of(np.arange(len(points)))
    covered.thresholds[:] = [centred(one, early) for one in points.thresholds]
    notes = {
        "certificate": {
            "risk": certificate.risk,
            "confidence": certificate.confidence,
            "of": asked.of,
            "tested": certificate.tested,
            "errors": int(certificate.errors[chosen]),
            "p_value": float(certificate.p_values[chosen]),
        }
    }
    return Choice(covered.thresholds[chosen], covered, notes)


def fit(
    recipe: Recipe, logits: Sequence[Array], given: Sequence[Array], labels: Integers | None
) -> m.Policy:
    """The policy with what the goal comes to where every exit says `logits` `[samples, classes]`.

    And where exits give their confidences, these are `given`, `[samples]` each. Of the model in
    PyTorch: who would reach a segment, before there is a chain to tune. Where nothing meets the
    goal nobody leaves; the chain may yet do better. Thresholds that the recipe gives stay.
    """
    policy, goal = recipe.manifest_policy(()), recipe.policy.tune
    if recipe.policy.temperature:
        assert labels is not None  # noqa: S101  (`Tune` asks for them)
        rows = fitted_on(len(labels), certified=recipe.certified)
        temperatures, _ = calibrated(recipe.exits, [one[rows] for one in logits], labels[rows])
        policy = replace(policy, temperatures=temperatures)
    if recipe.thresholds is not None:
        return replace(policy, thresholds=recipe.thresholds)
    assert goal is not None  # noqa: S101  (asked by the caller)
    seen = Seen.of(policy, logits, given, labels)
    costs = Costs("segments", np.arange(1.0, len(logits) + 1))
    if goal.certificate is not None:
        # What will be tested on must not have had a part in making what is tested.
        observed = seen.observed(goal.certificate.of, costs.each).of(parted(seen.samples)[0])
        points = search(observed)
        enough = np.flatnonzero(points.right >= (1 - goal.certificate.risk) * observed.samples)
        thresholds = points.thresholds[enough[0] if len(enough) else -1]
    else:
        least = None
        if goal.max_accuracy_drop is not None:
            correct = int(np.sum(seen.final == labels))
            least = least_correct(correct, seen.samples, goal.max_accuracy_drop)
        try:
            thresholds = choose(goal, seen, costs, least, recipe.exit_rates).thresholds
        except CheckError:
            thresholds = shared(seen.observed("disagreement", costs.each)).thresholds[-1]
    return replace(policy, thresholds=tuple(thresholds.tolist()))


def least_correct(correct: int, samples: int, max_drop: float) -> int:
    """How many of the samples must stay right where `correct` are, and a share may be lost.

    In integers, from the share as it is written: 0.29 of 100 are 29, in floats a little less.
    """
    return max(0, correct - int(Fraction(repr(max_drop)) * samples))


def _fitted(
    recipe: Recipe, goal: Goal, seen: Seen, costs: Costs, reference_right: int | None
) -> Choice:
    """See `choose`."""
    least, samples = None, seen.samples
    drop = goal.max_accuracy_drop
    if drop is not None:
        assert reference_right is not None  # noqa: S101  (the pipeline gives what to count from)
        least = least_correct(reference_right, samples, drop)
    try:
        return choose(goal, seen, costs, least, recipe.exit_rates)
    except CheckError:
        correct = None if least is None else int(np.sum(seen.right()[-1]))
        if least is None or reference_right is None or correct is None or correct >= least:
            raise
        # It is not the exits: what was done to the network has cost too much already.
        raise CheckError(
            f"the chain's final exit is right on {correct / samples:.2%} of the {samples} "
            f"tuning samples, PyTorch's on {reference_right / samples:.2%}, and "
            f"policy.tune.max_accuracy_drop={drop:g} asks for {least / samples:.2%} at least, "
            "which no threshold reaches; calibrate with more quantize.samples or another "
            "quantize.method, allow a larger drop, or build for a target.precision of fp16 or "
            "fp32"
        ) from None


def _deployed(
    recipe: Recipe, seen: Seen, costs: Costs, found: Choice, right_by: str | None
) -> tuple[tuple[m.Point, ...], int]:
    """The points that travel, cheapest first, and the place of the chosen one among them.

    The front, thinned; the chosen one, which need not lie on it; and last one where nobody leaves,
    for a chain that is to take no risk.
    """
    observed = seen.observed("label" if right_by == "label" else "disagreement", costs.each)
    points = own = evaluate(observed, found.thresholds[None])
    if not len(found.thresholds):
        nobody = own
    else:
        nobody = evaluate(observed, shared(observed).thresholds[-1:])
        if found.certified is not None:
            # Its order is that of the half that it was tested on.
            points = front(evaluate(observed, found.certified.thresholds))
        elif recipe.policy.criterion != PATIENCE and right_by is not None:
            points = search(observed)
        elif recipe.policy.criterion != PATIENCE:
            # What is right nobody knows, and so not what is best: a ladder of rates, by cost.
            points = by_rates(observed)
    points = points.of(np.unique(points.costs, return_index=True)[1])
    points = points.of(np.unique(np.linspace(0, len(points) - 1, _DEPLOYED).astype(int)))
    # Of those that cost the same the last one named here stays.
    by_cost: dict[float, tuple[Floats, int]] = {}
    for several in (points, nobody, own):
        for row, cost in enumerate(several.costs.tolist()):
            by_cost[cost] = several.thresholds[row], int(several.right[row])
    travel = [
        m.Point(
            tuple(by_cost[cost][0].tolist()),
            by_cost[cost][1] if right_by else None,
            cost,
            seen.left(by_cost[cost][0]),
        )
        for cost in sorted(by_cost)
    ]
    return tuple(travel), sorted(by_cost).index(float(own.costs[0]))


def _best_first(goal: Goal, points: Points, costs: Costs, samples: int) -> Integers:
    """The order of points in which the goal would have them."""
    if goal.weigh is not None:
        wrong, cost = 1 - points.right / samples, points.costs / costs.each[-1]
        return np.lexsort((-points.right, goal.weigh.error * wrong + goal.weigh.cost * cost))
    keys = points.costs, -points.right
    bounded = goal.max_accuracy_drop is not None or goal.certificate is not None
    return np.lexsort(keys[::-1] if bounded else keys)


def _in_time(goal: Goal, costs: Costs, rates: Floats) -> Bools:
    """Which points `[points, exits]` of exit rates keep `max_latency_ms`."""
    limit = goal.max_latency_ms
    assert limit is not None  # noqa: S101  (asked by the caller)
    if costs.mean_ms is None or costs.latency_ms is None:
        raise RecipeError(NO_TIMES)
    met = np.ones(len(rates), bool)
    if limit.mean is not None:
        met &= rates @ costs.mean_ms <= limit.mean
    if limit.p95 is not None:
        met &= rates @ costs.share_within(limit.p95) >= _P95
    if not met.any():
        asked = ", ".join(f"{key} {value:g} ms" for key, value in limit if value is not None)
        first = np.eye(len(costs.mean_ms))[0]
        raise CheckError(
            f"policy.tune.max_latency_ms: no thresholds keep {asked}: where all samples leave at "
            f"the first exit, they take {costs.mean_ms[0]:.3g} ms on average, p95 "
            f"{costs.p95_ms(first):.3g} ms"
        )
    return met


def _mean_plus_std(confidences: Floats, factor: float) -> Floats:
    """Per early exit, the mean of its confidences and so many standard deviations."""
    found = []
    for one in confidences:
        finite = one[np.isfinite(one)]
        if not len(finite):
            raise CheckError("policy.tune.mean_plus_std: an exit has no finite confidence")
        found.append(float(finite.mean() + factor * finite.std()))
    return np.array(found)


def _share(right: Bools, taken: Integers) -> float:
    return float(np.mean(right[taken, np.arange(len(taken))]))


def _useless(recipe: Recipe, taken: Array, exits: int) -> str | None:
    """Words about a chain that always ends at the same exit, if it does."""
    goal = recipe.policy.tune
    if exits == 1 or recipe.exit_rates is not None:
        return None
    if not (taken < exits - 1).any():
        by_drop = goal is not None and goal.max_accuracy_drop is not None
        looser = "a larger policy.tune.max_accuracy_drop" if by_drop else "a looser policy.tune"
        remedy = (
            f"{looser}, or early exits that are right more often, would change that"
            if goal is not None
            else "lower policy.thresholds would change that"
        )
        return (
            "no sample of the tuning split leaves early, so the chain is no faster than the "
            f"undivided network; {remedy}"
        )
    if not taken.any():
        remedy = "harder samples in data.tuning" if goal else "higher policy.thresholds"
        return (
            "every sample of the tuning split leaves at the first exit, so the later segments "
            f"are never run: a smaller network would do as well, or {remedy} would show where "
            "it does not"
        )
    return None


def _missed(exits: Sequence[str], rates: Floats, wanted: Sequence[float] | None) -> str | None:
    """Words about exits that let another share leave than was asked for, if any does."""
    far = [
        f"{exit} lets {rate:.1%} leave, and {share:.1%} were asked for"
        for exit, rate, share in zip(exits, rates, wanted or (), strict=False)
        if abs(rate - share) > _NEAR
    ]
    if not far:
        return None
    return f"policy.tune.exit_rates: {', '.join(far)}: confidences of many samples are the same"


def _worst_class(seen: Seen, thresholds: Floats) -> float:
    """The accuracy of the class that fares worst, of those that the samples have."""
    right, taken = seen.right(), seen.taken(thresholds)
    labels = seen.labels
    assert labels is not None  # noqa: S101  (the goal asks for them)
    counts = np.bincount(labels)
    correct = np.bincount(labels, weights=right[taken, np.arange(len(taken))])
    return float((correct[counts > 0] / counts[counts > 0]).min())


def _words(goal: Goal) -> str:
    """The goal as a recipe says it."""
    given = goal.model_dump(exclude_none=True, exclude={"search"})
    return ", ".join(f"{key}: {value}" for key, value in given.items())
