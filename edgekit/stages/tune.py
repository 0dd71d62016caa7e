"""tune: the thresholds at which the finished chain is as fast as its accuracy allows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Policy
from edgekit.data import Split
from edgekit.errors import CheckError, RecipeError
from edgekit.recipe import Goal, Recipe
from edgekit.runtime.chain import Chain
from edgekit.runtime.criteria import Walk
from edgekit.stages import Segments, Stage, StageResult, Step, Tuned
from edgekit.tuning.certificate import certify, demand_enough, parted
from edgekit.tuning.search import Observed, centred, evaluate, search, shared, thresholds_at

__all__ = ["Seen", "Tune", "choose", "fit", "least_correct"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Notes = dict[str, Any]

_CLASSES_COUNTED = 512
"""At most so many points are looked at class by class, evenly spaced from the best on."""

_NEAR = 0.05
"""How far an exit's share may be from what was asked for, unremarked: confidences may be alike."""


@dataclass(frozen=True)
class Seen:
    """What a policy makes of all exits, for samples that were run to the end.

    `confidences` is float64 `[early exits, samples]`. `classes` is int64 `[exits, samples]`: what
    is answered to a sample that leaves there; in the last row, to one that leaves nowhere early,
    which may be another exit's answer. `final` is the final exit's own, int64 `[samples]`. Both are
    -1 where exits give no class scores.
    """

    confidences: Floats
    classes: Integers
    final: Integers
    labels: Integers | None

    @classmethod
    def of(
        cls,
        policy: Policy,
        logits: Sequence[Array],
        given: Sequence[Array],
        labels: Integers | None,
    ) -> "Seen":
        """By the logits `[samples, classes]` of every exit, and the confidences that they give."""
        walk = Walk(policy)
        answers = [walk.look(*pair) for pair in zip_longest(logits, given)]
        samples = len(logits[-1])
        confidences = np.array([one.confidences for one in answers[:-1]]).reshape(-1, samples)
        classes = np.array([*(one.classes for one in answers[:-1]), walk.otherwise().classes])
        return cls(confidences, classes, answers[-1].classes, labels)

    @classmethod
    def joined(cls, several: Sequence["Seen"], labels: Integers | None) -> "Seen":
        """Those of all samples; their labels are given anew."""
        return cls(
            np.concatenate([one.confidences for one in several], axis=1),
            np.concatenate([one.classes for one in several], axis=1),
            np.concatenate([one.final for one in several]),
            labels,
        )

    def right(self, by: str = "label") -> Bools:
        """Which answers count as right, bool `[exits, samples]`.

        By the `label`; as much by `disagreement` as is the final exit's; by `accuracy_loss`, all
        but those that are wrong where the final exit is right.
        """
        if by == "disagreement":
            return self.classes == self.final
        correct: Bools = self.classes == self.labels
        return correct if by == "label" else correct | (self.final != self.labels)

    def observed(self, by: str, costs: Floats) -> Observed:
        """For a search, where a sample costs as much as `costs` says of its exit."""
        return Observed(self.confidences, self.right(by), costs)


def choose(recipe: Recipe, seen: Seen, costs: Floats, least: int | None) -> tuple[Floats, Notes]:
    """The thresholds that meet the recipe's goal and cost least, and what can be promised of them.

    Where the goal is an exit rate alone, those that keep most answers right. `least` is how many
    must be right by their labels, where the goal says so. Raises CheckError where none meets it.
    """
    goal = recipe.policy.tune
    assert goal is not None  # noqa: S101  (asked by the caller)
    if recipe.exit_rates is not None:
        return thresholds_at(seen.confidences, recipe.exit_rates), {}
    by = "disagreement" if seen.labels is None else "label"
    observed = seen.observed(by, costs)
    certificate = None
    if goal.certificate is not None:
        asked = goal.certificate
        certificate = certify(seen.observed(asked.of, costs), asked.risk, asked.confidence)
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
    rows = np.flatnonzero(met)
    fast = goal.max_accuracy_drop is not None or certificate is not None
    keys = points.costs[rows], -points.right[rows]
    rows = rows[np.lexsort(keys[::-1] if fast else keys)]
    if goal.min_class_accuracy is not None and len(rows):
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, _CLASSES_COUNTED).astype(int))]
        floor = goal.min_class_accuracy
        rows = np.array(
            [row for row in rows if _worst_class(seen, points.thresholds[row]) >= floor], int
        )
    if not len(rows):
        raise CheckError(
            f"no thresholds keep what policy.tune asks for on the {observed.samples} tuning "
            f"samples ({_words(goal)}); ask for less, or train the early exits further"
        )
    chosen = int(rows[0])
    notes: Notes = {}
    thresholds = points.thresholds[chosen]
    if certificate is not None:
        # They were found on half of the samples; another's confidence may lie beside one.
        thresholds = centred(thresholds, seen.confidences)
        notes["certificate"] = {
            "risk": certificate.risk,
            "confidence": certificate.confidence,
            "of": asked.of,
            "tested": certificate.tested,
            "errors": int(certificate.errors[chosen]),
            "p_value": float(certificate.p_values[chosen]),
        }
    return thresholds, notes


def least_correct(correct: int, samples: int, max_drop: float) -> int:
    """How many of the samples must stay right where `correct` are, and a share may be lost.

    In integers, from the share as it is written: 0.29 of 100 are 29, in floats a little less.
    """
    return max(0, correct - int(Fraction(repr(max_drop)) * samples))


def fit(
    recipe: Recipe, logits: Sequence[Array], given: Sequence[Array], labels: Integers | None
) -> Policy:
    """The policy with what the goal comes to where every exit says `logits` `[samples, classes]`.

    And where exits give their confidences, these are `given`, `[samples]` each. Of the model in
    PyTorch: who would reach a segment, before there is a chain to tune. Where nothing meets the
    goal nobody leaves; the chain may yet do better.
    """
    policy, goal = recipe.manifest_policy(()), recipe.policy.tune
    assert goal is not None  # noqa: S101  (asked by the caller)
    seen = Seen.of(policy, logits, given, labels)
    costs = np.arange(1.0, len(logits) + 1)
    if goal.certificate is not None:
        # What will be tested on must not have had a part in making what is tested.
        observed = seen.observed(goal.certificate.of, costs).of(parted(len(seen.final))[0])
        points = search(observed)
        enough = np.flatnonzero(points.right >= (1 - goal.certificate.risk) * observed.samples)
        thresholds = points.thresholds[enough[0] if len(enough) else -1]
    else:
        least = None
        if goal.max_accuracy_drop is not None:
            correct = int(np.sum(seen.final == labels))
            least = least_correct(correct, len(seen.final), goal.max_accuracy_drop)
        try:
            thresholds, _ = choose(recipe, seen, costs, least)
        except CheckError:
            thresholds = shared(seen.observed("disagreement", costs)).thresholds[-1]
    return replace(policy, thresholds=tuple(thresholds.tolist()))


class Tune(Stage[Segments[bytes], Tuned]):
    """Fits the thresholds to the recipe's goal on the whole tuning split, or hands on those given.

    It runs on the chain as it will be deployed: what quantization does to the confidences is in
    what the thresholds are fitted to.
    """

    name = "tune"
    requires = Segments
    ensures = Tuned

    def __init__(
        self,
        recipe: Recipe,
        tuning: Split | None,
        final_logits: Array | None,
        chain_for: Callable[[Segments[bytes]], Chain],
    ) -> None:
        """`final_logits` is the final exit of the model in PyTorch on the whole tuning split.

        `[samples, classes]`; None will do where thresholds are given. `chain_for` makes the chain,
        of any policy. Raises RecipeError where the recipe's goal needs labels and there are none,
        CheckError where a certificate needs more samples.
        """
        self.recipe = recipe
        self.tuning = tuning
        self.final_logits = final_logits
        self.chain_for = chain_for
        goal = recipe.policy.tune
        if goal is not None and (tuning is None or (goal.needs_labels and tuning.labels is None)):
            raise RecipeError(
                "policy.tune: data.tuning has no labels to count accuracy with; give them, or a "
                "goal that needs none (exit_rates, min_exit_rate, a certificate of disagreement), "
                "or policy.thresholds"
            )
        if goal is not None and goal.certificate is not None:
            assert tuning is not None  # noqa: S101  (see above)
            demand_enough(len(tuning), goal.certificate.risk, goal.certificate.confidence)

    def __call__(self, artifact: Segments[bytes], step: Step) -> StageResult[Tuned]:
        """Raises CheckError where no threshold keeps what the recipe asks for.

        RecipeError where that is counted by classes, and the exits tell none.
        """
        thresholds, goal = self.recipe.thresholds, self.recipe.policy.tune
        labels = None if self.tuning is None else self.tuning.labels
        if goal is None and labels is None:
            assert thresholds is not None  # noqa: S101  (the recipe has either)
            return StageResult(self._tuned(artifact, thresholds))
        seen = self._see(artifact, step)
        # Here and not when the model is loaded: another goal may come to segments that were kept.
        told = self.recipe.labels != () and bool((seen.final >= 0).all())
        if goal is not None and goal.exit_rates is None and not told:
            raise RecipeError(
                "policy.tune: the exits give no class scores, and what is right of what they give "
                "nobody knows here; give policy.thresholds, from a measure of your own, or "
                "policy.tune.exit_rates"
            )
        # A build measures no time, so that the next one is the same: what a sample costs is MACs.
        costs = np.cumsum([float(part.macs) for part in artifact.chain])
        in_pytorch = self._correct_in_pytorch(labels)
        more: Notes = {}
        if thresholds is None:
            assert goal is not None  # noqa: S101  (the recipe has either)
            step("search")
            found, more = self._fit(goal, seen, costs, in_pytorch)
            thresholds = tuple(found.tolist())
        samples = len(seen.final)
        taken = seen.observed("disagreement", costs).taken(thresholds)
        rates = np.bincount(taken, minlength=len(costs)) / samples
        notes: Notes = {
            "samples": samples,
            "thresholds": dict(zip(artifact.exits[:-1], thresholds, strict=True)),
            "exit_rates": dict(zip(artifact.exits, rates.tolist(), strict=True)),
            **more,
        }
        if told:
            notes["agreement"] = _share(seen.right("disagreement"), taken)
        if labels is not None:
            correct = seen.right()
            notes["accuracy"] = _share(correct, taken)
            notes["final_exit_accuracy"] = float(np.mean(correct[-1]))
            notes["pytorch_accuracy"] = None if in_pytorch is None else in_pytorch / samples
        warning = self._useless(taken, len(costs)) or _missed(
            artifact.exits, rates, self.recipe.exit_rates
        )
        if warning:
            notes["warning"] = warning
        return StageResult(self._tuned(artifact, thresholds), notes)

    def _useless(self, taken: Array, exits: int) -> str | None:
        """Words about a chain that always ends at the same exit, if it does."""
        goal = self.recipe.policy.tune
        tuned = goal is not None
        if exits == 1 or self.recipe.exit_rates is not None:
            return None
        if not (taken < exits - 1).any():
            by_drop = goal is not None and goal.max_accuracy_drop is not None
            looser = "a larger policy.tune.max_accuracy_drop" if by_drop else "a looser policy.tune"
            remedy = (
                f"{looser}, or early exits that are right more often, would change that"
                if tuned
                else "lower policy.thresholds would change that"
            )
            return (
                "no sample of the tuning split leaves early, so the chain is no faster than the "
                f"undivided network; {remedy}"
            )
        if not taken.any():
            remedy = "harder samples in data.tuning" if tuned else "higher policy.thresholds"
            return (
                "every sample of the tuning split leaves at the first exit, so the later segments "
                f"are never run: a smaller network would do as well, or {remedy} would show where "
                "it does not"
            )
        return None

    def _tuned(self, segments: Segments[bytes], thresholds: tuple[float, ...]) -> Tuned:
        return Tuned(segments, self.recipe.manifest_policy(thresholds))

    def _see(self, segments: Segments[bytes], step: Step) -> Seen:
        """See `Seen`, of the whole tuning split."""
        assert self.tuning is not None  # noqa: S101  (asked by the caller)
        inputs = self.recipe.manifest_inputs(segments.inputs)
        chain = self.chain_for(segments)
        policy = self.recipe.manifest_policy(())
        found: list[Seen] = []
        for batch in self.tuning.batches(inputs):
            step(f"sample {sum(len(one.final) for one in found)} of {len(self.tuning)}")
            logits, given = (list(one.values()) for one in chain.exits(batch))
            found.append(Seen.of(policy, logits, given, None))
        return Seen.joined(found, self.tuning.labels)

    def _correct_in_pytorch(self, labels: Integers | None) -> int | None:
        if self.final_logits is None or labels is None:
            return None
        return int(np.sum(self.final_logits.argmax(axis=1) == labels))

    def _fit(
        self, goal: Goal, seen: Seen, costs: Floats, in_pytorch: int | None
    ) -> tuple[Floats, Notes]:
        """See `choose`."""
        least, samples = None, len(seen.final)
        drop = goal.max_accuracy_drop
        if drop is not None:
            assert in_pytorch is not None  # noqa: S101  (the pipeline gives the logits to tune to)
            least = least_correct(in_pytorch, samples, drop)
        try:
            return choose(self.recipe, seen, costs, least)
        except CheckError:
            correct = None if least is None else int(np.sum(seen.right()[-1]))
            if least is None or in_pytorch is None or correct is None or correct >= least:
                raise
            # It is not the exits: what was done to the network has cost too much already.
            raise CheckError(
                f"the chain's final exit is right on {correct / samples:.2%} of the {samples} "
                f"tuning samples, PyTorch's on {in_pytorch / samples:.2%}, and "
                f"policy.tune.max_accuracy_drop={drop:g} asks for {least / samples:.2%} at least, "
                "which no threshold reaches; calibrate with more quantize.samples or another "
                "quantize.method, allow a larger drop, or build for a target.precision of fp16 or "
                "fp32"
            ) from None


def _share(right: Bools, taken: Integers) -> float:
    return float(np.mean(right[taken, np.arange(len(taken))]))


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
    right = seen.right()
    taken = Observed(seen.confidences, right, np.ones(len(right))).taken(thresholds)
    labels = seen.labels
    assert labels is not None  # noqa: S101  (the goal asks for them)
    counts = np.bincount(labels)
    correct = np.bincount(labels, weights=right[taken, np.arange(len(taken))])
    return float((correct[counts > 0] / counts[counts > 0]).min())


def _words(goal: Goal) -> str:
    """The goal as a recipe says it."""
    given = goal.model_dump(exclude_none=True, exclude={"search"})
    return ", ".join(f"{key}: {value}" for key, value in given.items())
