"""tune: the thresholds at which the finished chain is as fast as its accuracy allows."""

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
from edgekit.recipe import Recipe
from edgekit.runtime.chain import Chain
from edgekit.runtime.criteria import Walk
from edgekit.stages import Segments, Stage, StageResult, Step, Tuned

__all__ = [
    "SharedThreshold",
    "Tune",
    "fit",
    "least_correct",
    "measured",
    "shared_threshold",
    "thresholds_at",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_NEAR = 0.05
"""How far an exit's share may be from what was asked for, unremarked: confidences may be alike."""


@dataclass(frozen=True)
class SharedThreshold:
    """One threshold for all early exits, and how many samples are `correct` under it.

    `met` is false where no threshold keeps enough of them; then nothing leaves early.
    """

    threshold: float
    correct: int
    met: bool


def shared_threshold(confidences: Floats, correct: Bools, least: int) -> SharedThreshold:
    """The lowest threshold under which at least so many samples are classified right: exact.

    `confidences` is float64 `[early exits, samples]`, `correct` bool `[exits, samples]`, the final
    exit last. A sample leaves at the first exit with `confidence >= threshold`; NaN and -inf never
    are, +inf always is. Under a lower threshold no sample leaves later, so none is faster.

    A threshold decides differently from the next one only if a confidence lies between them, so
    there is one to try below, between and above the confidences seen; midway, so that the last bit
    decides nothing.
    """
    levels = np.unique(confidences[np.isfinite(confidences)])
    # By rank: under candidate number i a sample is sure where its rank is i or more.
    ranks = np.searchsorted(levels, confidences)
    ranks[~(confidences > -np.inf)] = -1
    # An exit takes a sample under the candidates above its rank at every earlier exit, up to here.
    upper = np.maximum.accumulate(ranks, axis=0) + 1
    ends = np.concatenate([upper, np.full((1, upper.shape[1]), len(levels) + 1)])
    starts = np.concatenate([np.zeros((1, upper.shape[1]), int), upper])
    steps = np.bincount(starts[correct], minlength=len(levels) + 2)
    steps -= np.bincount(ends[correct], minlength=len(levels) + 2)
    counts = np.cumsum(steps)[: len(levels) + 1]
    enough = np.flatnonzero(counts >= least)
    index = int(enough[0]) if len(enough) else len(levels)
    return SharedThreshold(_candidate(levels, index), int(counts[index]), len(enough) > 0)


def least_correct(correct: int, samples: int, max_drop: float) -> int:
    """How many of the samples must stay right where `correct` are, and a share may be lost.

    In integers, from the share as it is written: 0.29 of 100 are 29, in floats a little less.
    """
    return max(0, correct - int(Fraction(repr(max_drop)) * samples))


def thresholds_at(confidences: Floats, rates: Sequence[float]) -> tuple[float, ...]:
    """The thresholds at which these shares of all samples leave, or as near as confidences allow.

    `confidences` is float64 `[early exits, samples]`, `rates` one share per early exit. NaN never
    leaves. A threshold lies midway between two confidences of samples that come to its exit.
    """
    samples = confidences.shape[1]
    remaining = np.arange(samples)
    found = []
    for row, rate in zip(confidences, rates, strict=True):
        here = row[remaining]
        levels = np.unique(here[np.isfinite(here)])
        # How many leave where the confidences from each level on are sure; above all levels none.
        leave = np.array([*(np.sum(here >= one) for one in levels), np.sum(here == np.inf)])
        threshold = _candidate(levels, int(np.abs(leave - rate * samples).argmin()))
        found.append(threshold)
        remaining = remaining[~(here >= threshold)]
    return tuple(found)


def fit(
    policy: Policy,
    logits: Sequence[Array],
    labels: npt.NDArray[np.int64],
    max_drop: float,
    given: Sequence[Array] = (),
) -> Policy:
    """The policy with what a greatest drop of accuracy comes to in PyTorch.

    There every exit says `logits` `[samples, classes]`, and where exits give their confidences,
    these are `given`, `[samples]` each. For who would reach a segment, before there is a chain.
    """
    confidences, classes = measured(policy, logits, given)
    final = int(np.sum(logits[-1].argmax(axis=1) == labels))
    least = least_correct(final, len(labels), max_drop)
    threshold = shared_threshold(confidences, classes == labels, least).threshold
    return replace(policy, thresholds=(threshold,) * len(confidences))


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
        of any policy. Raises RecipeError where thresholds are to be fitted without labels.
        """
        self.recipe = recipe
        self.tuning = tuning
        self.final_logits = final_logits
        self.chain_for = chain_for
        counted = recipe.thresholds is None and recipe.exit_rates is None
        if counted and (tuning is None or tuning.labels is None):
            raise RecipeError(
                "policy.tune: data.tuning has no labels to count accuracy with; give them, or give "
                "policy.thresholds"
            )

    def __call__(self, artifact: Segments[bytes], step: Step) -> StageResult[Tuned]:
        """Raises CheckError where no threshold keeps the accuracy that the recipe asks for."""
        thresholds, wanted = self.recipe.thresholds, self.recipe.exit_rates
        labels = None if self.tuning is None else self.tuning.labels
        if thresholds is not None and labels is None:
            return StageResult(self._tuned(artifact, thresholds))
        confidences, classes = self._measure(artifact, step)
        samples = classes.shape[1]
        accuracies: dict[str, float | None] = {}
        if thresholds is None and wanted is not None:
            thresholds = thresholds_at(confidences, wanted)
        if labels is not None:
            correct = classes == labels
            in_pytorch = self._correct_in_pytorch(labels)
            if thresholds is None:
                assert in_pytorch is not None  # noqa: S101  (the pipeline gives what to tune to)
                found = self._fit(confidences, correct, in_pytorch)
                thresholds = (found.threshold,) * len(confidences)
        assert thresholds is not None  # noqa: S101  (see the constructor)
        sure = confidences >= np.array(thresholds, np.float64)[:, None]
        taken = np.concatenate([sure, np.ones((1, samples), bool)]).argmax(axis=0)
        rates = np.bincount(taken, minlength=len(classes)) / samples
        if labels is not None:
            accuracies = {
                "accuracy": float(np.mean(correct[taken, np.arange(samples)])),
                "final_exit_accuracy": float(np.mean(correct[-1])),
                "pytorch_accuracy": None if in_pytorch is None else in_pytorch / samples,
            }
        notes: dict[str, Any] = {
            "samples": samples,
            "thresholds": dict(zip(artifact.exits[:-1], thresholds, strict=True)),
            **accuracies,
            "exit_rates": dict(zip(artifact.exits, rates.tolist(), strict=True)),
        }
        warning = self._useless(taken, len(classes)) or _missed(artifact.exits, rates, wanted)
        if warning:
            notes["warning"] = warning
        return StageResult(self._tuned(artifact, thresholds), notes)

    def _useless(self, taken: Array, exits: int) -> str | None:
        """Words about a chain that always ends at the same exit, if it does."""
        tuned = self.recipe.policy.tune is not None
        if exits == 1 or self.recipe.exit_rates is not None:
            return None
        if not (taken < exits - 1).any():
            remedy = (
                "a larger policy.tune.max_accuracy_drop, or early exits that are right more often, "
                "would change that"
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

    def _measure(self, segments: Segments[bytes], step: Step) -> tuple[Floats, Integers]:
        """See `measured`, on the whole tuning split."""
        assert self.tuning is not None  # noqa: S101  (the recipe has it where there is a goal)
        inputs = self.recipe.manifest_inputs(segments.inputs)
        chain = self.chain_for(segments)
        found = []
        start = 0
        for batch in self.tuning.batches(inputs):
            step(f"sample {start} of {len(self.tuning)}")
            logits, given = (list(one.values()) for one in chain.exits(batch))
            found.append(measured(self.recipe.manifest_policy(()), logits, given))
            start += len(logits[0])
        confidences, classes = zip(*found, strict=True)
        return np.concatenate(confidences, axis=1), np.concatenate(classes, axis=1)

    def _correct_in_pytorch(self, labels: npt.NDArray[np.int64]) -> int | None:
        if self.final_logits is None:
            return None
        return int(np.sum(self.final_logits.argmax(axis=1) == labels))

    def _fit(self, confidences: Floats, correct: Bools, in_pytorch: int) -> SharedThreshold:
        assert self.recipe.policy.tune is not None  # noqa: S101  (the recipe has either)
        drop, samples = self.recipe.policy.tune.max_accuracy_drop, correct.shape[1]
        assert drop is not None  # noqa: S101  (or it has exit rates)
        least = least_correct(in_pytorch, samples, drop)
        found = shared_threshold(confidences, correct, least)
        if not found.met:
            raise CheckError(
                f"the chain's final exit is right on {np.mean(correct[-1]):.2%} of the {samples} "
                f"tuning samples, PyTorch's on {in_pytorch / samples:.2%}, and "
                f"policy.tune.max_accuracy_drop={drop:g} asks for {least / samples:.2%} at least, "
                "which no threshold reaches; calibrate with more quantize.samples or another "
                "quantize.method, allow a larger drop, or build for a target.precision of fp16 or "
                "fp32"
            )
        return found


def measured(
    policy: Policy, logits: Sequence[Array], given: Sequence[Array] = ()
) -> tuple[Floats, Integers]:
    """Every early exit's confidences, and every exit's class, under the policy.

    `confidences` is float64 `[early exits, samples]`, `classes` int64 `[exits, samples]`. In the
    last row stands the answer to a sample that leaves nowhere early, which may be another exit's.
    """
    walk = Walk(policy)
    answers = [walk.look(*pair) for pair in zip_longest(logits, given)]
    confidences = np.array([one.confidences for one in answers[:-1]]).reshape(-1, len(logits[-1]))
    classes = [*(one.classes for one in answers[:-1]), walk.otherwise().classes]
    return confidences, np.array(classes)


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


def _candidate(levels: Floats, index: int) -> float:
    """The threshold under which the confidences from this level on are sure, and no lower ones."""
    if not len(levels):
        return 1.0
    if index == 0:
        return 0.0 if levels[0] > 0 else _beyond(float(levels[0]), -1.0)
    below = float(levels[index - 1])
    if index == len(levels):
        return _beyond(below, 1.0)
    above = float(levels[index])
    middle = below / 2 + above / 2  # The sum of two large ones would overflow.
    return middle if below < middle <= above else above


def _beyond(level: float, distance: float) -> float:
    """A number beyond the level: by the distance, or the next one where adding that is nothing."""
    beyond = level + distance
    return beyond if beyond != level else float(np.nextafter(level, distance * np.inf))
