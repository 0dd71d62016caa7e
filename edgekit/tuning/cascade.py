"""Which variants of a ladder are asked before the widest: thresholds as for the exits of a chain.

What a variant's chain answers under its own policy is to the cascade what an exit is to a chain. A
sample that goes on has cost what it took in every variant that it was asked of.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.ladder import TunedCascade
from edgekit.bundle.manifest import Policy
from edgekit.errors import RecipeError
from edgekit.recipe import Goal, cascade_problem
from edgekit.tuning.goal import Costs, choose, least_correct
from edgekit.tuning.seen import Seen

__all__ = ["fit_cascade", "seen_of_variants"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def seen_of_variants(
    policies: Sequence[Policy], seen: Sequence[Seen]
) -> tuple[Seen, list[Integers]]:
    """What each variant says of each sample under its policy, in the place of an exit.

    Narrowest first, by what all the exits of each said of the same samples. Also the exit that each
    sample leaves at, int64 `[samples]`, per variant. Raises RecipeError where the variants saw
    other samples.
    """
    first = seen[0]
    for other in seen[1:]:
        alike = other.samples == first.samples and _same(other.labels, first.labels)
        if not alike:
            raise RecipeError(
                "the variants were tuned on different samples, so no cascade can be fitted to "
                "them; give every variant the same data.tuning"
            )
    rows = np.arange(first.samples)
    left = [one.taken(policy.thresholds) for policy, one in zip(policies, seen, strict=True)]
    pairs = list(zip(seen, left, strict=True))
    classes = np.array([one.classes[exits, rows] for one, exits in pairs])
    confidences = np.array([one.confidences[exits, rows] for one, exits in pairs])
    return Seen(confidences, classes, classes[-1], first.labels), left


def fit_cascade(
    goal: Goal, names: Sequence[str], seen: Seen, costs: Floats, unit: str
) -> TunedCascade:
    """The thresholds of a cascade that meet the goal best, and what they come to.

    `names` are the variants', narrowest first, `seen` is as `seen_of_variants` has it, and `costs`
    float64 `[variants, samples]` says in `unit` what each sample takes in each variant alone. What
    is lost counts from the widest variant. Raises CheckError where no thresholds meet the goal,
    RecipeError where it counts what nobody knows here or names other variants.
    """
    if words := cascade_problem(goal):
        raise RecipeError(f"variants.tune: {words}")
    if not seen.told:
        raise RecipeError("variants.tune: the exits give no class scores for a cascade to go by")
    if goal.needs_labels and seen.labels is None:
        raise RecipeError(
            "variants.tune: data.tuning has no labels to count accuracy with; give them, or a goal "
            "that needs none (exit_rates, min_exit_rate)"
        )
    rates = None
    if goal.exit_rates is not None:
        if goal.exit_rates.keys() != set(names[:-1]):
            raise RecipeError(
                "variants.tune.exit_rates: has a share for each variant but the widest: "
                f"{', '.join(names[:-1])}"
            )
        rates = [goal.exit_rates[name] for name in names[:-1]]
    right = seen.right("label" if seen.labels is not None else "disagreement")
    least = None
    if goal.max_accuracy_drop is not None:
        least = least_correct(int(right[-1].sum()), seen.samples, goal.max_accuracy_drop)
    up_to = np.cumsum(costs, axis=0)
    # The search knows one cost for each place; what the samples that stop there took comes after.
    means = Costs(unit, up_to.mean(axis=1))
    found = choose(goal, seen, means, least, rates, where="variants.tune")
    taken, rows = seen.taken(found.thresholds), np.arange(seen.samples)
    return TunedCascade(
        thresholds=tuple(found.thresholds.tolist()),
        samples=seen.samples,
        accuracy=float(np.mean(right[taken, rows])),
        goal=_given(goal),
        rates=tuple((np.bincount(taken, minlength=len(names)) / seen.samples).tolist()),
        unit=unit,
        mean_cost=float(up_to[taken, rows].mean()),
        widest_cost=float(costs[-1].mean()),
    )


def _given(goal: Goal) -> dict[str, Any]:
    return goal.model_dump(mode="json", exclude_none=True)


def _same(one: Integers | None, other: Integers | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))
