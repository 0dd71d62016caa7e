"""quantize: each part in the target's precision, calibrated with what really reaches it.

Segment by segment: a segment sees the features that the segments before it, already quantized,
give for the calibration split. Heads and logits stay in float.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import Backend, Crossing, Features, IntegerWork
from edgekit.bundle.manifest import Input, Policy
from edgekit.check import chain_of, never
from edgekit.data import Split, first_of
from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import CALIBRATED, Recipe, check_precision
from edgekit.runtime.criteria import Walk
from edgekit.runtime.preprocess import Inputs, Sample, arrays_of
from edgekit.stages import Part, Segments, Stage, StageResult, Step
from edgekit.target import Target

__all__ = ["Quantize", "calibration_doubts"]

Array = npt.NDArray[Any]

_FEW = 16
"""Below so many samples the range of a feature is a matter of chance."""

_BEYOND = 0.25
"""How far other splits may reach beyond the calibration's range, as a share of it, unremarked."""

_ALIKE = 0.01
"""Samples that differ from the first by less than this share of their range say nothing new."""

_FLOAT = frozenset({"fp16", "int8-weights"})
"""Precisions that only numbers are kept in, and in which nothing is computed on integers."""

_ROUNDING = 1e-4
"""How far an input may lie outside its range, as a share of it: arithmetic elsewhere may round."""


class Quantize(Stage[Segments[bytes], Segments[bytes]]):
    """Brings every part to the target's precision, and counts what the engine does on integers.

    For `fp32` there is nothing to do. Boundary tensors change their dtype where they cross as
    integers or float16; the network's input and all logits stay float32.
    """

    name = "quantize"
    requires = Segments
    ensures = Segments

    def __init__(
        self,
        backend: Backend,
        recipe: Recipe,
        target: Target,
        splits: Mapping[str, Split],
        policy: Policy,
    ) -> None:
        """`policy` says who reaches a segment, for `quantize.features: reached`."""
        self.backend = backend
        self.recipe = recipe
        self.target = target
        self.splits = splits
        self.policy = policy

    def __call__(self, artifact: Segments[bytes], step: Step) -> StageResult[Segments[bytes]]:
        """Raises RecipeError for calibration data that cannot be used.

        Raises BuildError that names the part which cannot be quantized, or of which too little is
        done on integers, and the operator that stays float.
        """
        if self.target.precision == "fp32":
            return StageResult(artifact)
        notes: dict[str, Any] = {}
        warnings: list[str] = []
        calibration = None
        if self.target.precision in self.backend.wants_features:
            step("calibration data")
            calibration = self._calibration(artifact.inputs)
        if calibration is not None and self.target.precision in CALIBRATED:
            notes["calibration_samples"] = len(calibration.split)
            warnings += calibration_doubts(
                calibration.split, calibration.inputs, self._others(len(calibration.split))
            )
        given = replace(artifact, tensors=dict(artifact.tensors), precision=self.target.precision)
        programs: dict[str, bytes] = {}
        for name, parts in artifact.chains().items():
            leaving: dict[str, Crossing] = {}
            done: list[Part[bytes]] = []
            for place, part in enumerate(parts):
                step(part.name)
                features = None
                if calibration is not None:
                    features = calibration.features(given, done, part, dict(leaving))
                    if calibration.policy is not None and name == "chain":
                        samples = sum(len(batch[part.inputs[0]]) for batch in features())
                        notes.setdefault("reaching_samples", {})[part.name] = samples
                        warnings += _few(samples, len(calibration.split), part.name)
                entering = {one: leaving[one] for one in part.inputs if one in leaving}
                result = self.backend.quantize(
                    part, features, entering, parts[place + 1 :], self.recipe.quantize, self.target
                )
                done.append(replace(part, program=result.program))
                programs[part.name] = result.program
                leaving |= result.leaving
                for tensor, crossing in result.leaving.items():
                    given.tensors[tensor] = replace(given.tensors[tensor], dtype=crossing.dtype)
        given = given.lowered(programs)
        notes["size_bytes"] = {name: len(program) for name, program in programs.items()}
        if self.target.precision not in _FLOAT:
            step("integer share")
            notes["integer_share"] = self._integer_share(artifact, given)
        if warnings:
            notes["warning"] = "; ".join(warnings)
        return StageResult(given, notes)

    def _calibration(self, tensors: Mapping[str, str]) -> "_Calibration":
        options = self.recipe.quantize
        check_precision(self.recipe, self.target.name, self.target.precision)
        reached = options.features == "reached" and self.target.precision in CALIBRATED
        return _Calibration(
            # INT8 has its own, as was just checked; for float16 any samples will do.
            first_of(self.splits, "calibration", "tuning", "test").subset(options.samples),
            self.recipe.manifest_inputs(tensors),
            self.target,
            self.policy if reached else None,
        )

    def _others(self, most: int) -> list[Split]:
        return [self.splits[one].subset(most) for one in ("tuning", "test") if one in self.splits]

    def _integer_share(
        self, before: Segments[bytes], after: Segments[bytes]
    ) -> dict[str, float | None]:
        """The share per part and of the chain; refuses a chain that has too little."""
        work = {
            old.name: self.backend.integer_work(old, new, self.target, before.greatest)
            for old, new in zip(before.parts(), after.parts(), strict=True)
        }
        chain = [work[part.name] for part in after.chain]
        macs = sum(one.macs for one in chain)
        if not macs:
            raise BuildError(
                "nothing multiplies outside the heads, which stay float, so there is nothing to "
                "quantize: --set target.precision=fp32"
            )
        share = sum(one.integer_macs for one in chain) / macs
        least = self.recipe.quantize.min_integer_share
        if share < least:
            worst = max(after.chain, key=lambda part: _float_macs(work[part.name])).name
            floats = "; ".join(
                f"{node} ({kind}, {n:,} MACs)" for node, kind, n in work[worst].floats[:1]
            )
            raise BuildError(
                f"the engine does {share:.1%} of the chain's MACs outside the heads on integers, "
                f"and quantize.min_integer_share is {least:.1%}; most that stays float is in "
                f"{worst}, the largest operator {floats}: {self.backend.integer_remedy}"
            )
        shares = {
            name: one.integer_macs / one.macs if one.macs else None for name, one in work.items()
        }
        return {"chain": share, **shares}


@dataclass(frozen=True)
class _Calibration:
    """The calibration split, and what parts that are quantized already make of it.

    `policy` says who goes on to the next segment; without one all samples do.
    """

    split: Split
    inputs: Inputs
    target: Target
    policy: Policy | None

    def features(
        self,
        segments: Segments[bytes],
        done: Sequence[Part[bytes]],
        part: Part[bytes],
        leaving: Mapping[str, Crossing],
    ) -> Features:
        """What `part` is given behind the parts `done`, whose tensors cross as `leaving` says."""
        if not done:
            return lambda: (self._read_by(part, x) for x in self.split.batches(self.inputs))
        done = tuple(done)
        # No exit is taken: all samples run to the end, and who goes on is decided from the logits.
        chain = chain_of(segments, done, self.inputs, (), never(done), self.target)

        def batches() -> Iterator[dict[str, Array]]:
            for batch in self.split.batches(self.inputs):
                values = chain.tensors(batch)
                rows = self._going_on(
                    [values[tensor] for one in done for tensor in one.logits.values()],
                    [values[tensor] for one in done for tensor in one.confidences.values()],
                )
                if rows.any():
                    yield {
                        name: leaving[name].floats(values[name][rows])
                        if name in leaving
                        else values[name][rows]
                        for name in part.inputs
                    }

        return batches

    def _read_by(self, part: Part[bytes], batch: Sample) -> dict[str, Array]:
        """Those of the network's inputs that the part reads, by tensor."""
        arrays = zip(self.inputs, arrays_of(batch, self.inputs), strict=True)
        return {one.tensor: array for one, array in arrays if one.tensor in part.inputs}

    def _going_on(
        self, logits: Sequence[Array], given: Sequence[Array] = ()
    ) -> npt.NDArray[np.bool_]:
        """Which samples no exit lets leave, by the exits' logits `[samples, classes]`.

        Or by the confidences `[samples]` that they give.
        """
        stay = np.ones(len(logits[0]), bool)
        if self.policy is not None:
            walk = Walk(self.policy)
            pairs = zip_longest(logits, given)
            for pair, threshold in zip(pairs, self.policy.thresholds, strict=False):
                stay &= ~(walk.look(*pair).confidences >= threshold)
        return stay


def _few(samples: int, of: int, part: str) -> list[str]:
    """Words about a part that few samples reach. Raises RecipeError where none does."""
    if not samples:
        raise RecipeError(
            f"none of {of} calibration samples reaches {part} under the thresholds (given, or what "
            "the goal comes to in PyTorch); add samples, or say quantize.features: all"
        )
    if samples < _FEW <= of:
        return [
            f"only {samples} calibration samples reach {part}; add samples, or say "
            "quantize.features: all"
        ]
    return []


def calibration_doubts(calibration: Split, inputs: Inputs, others: Sequence[Split]) -> list[str]:
    """What speaks against this calibration split, in words; empty if nothing does.

    Raises RecipeError where it cannot be used at all: its samples are all the same, every one of
    them is a single value, or they lie outside what the input's image steps can give. `others` are
    splits whose range the calibration's should cover.
    """
    first = arrays_of(calibration.tensor(0, inputs), inputs)
    differ, flat = False, True
    deviations = [0.0] * len(inputs)
    bounds = [_pixel_bounds(one) for one in inputs]
    for index in range(len(calibration)):
        given = arrays_of(calibration.tensor(index, inputs), inputs)
        for place, (x, as_first, limits) in enumerate(zip(given, first, bounds, strict=True)):
            differ = differ or not np.array_equal(x, as_first)
            flat = flat and x.min() == x.max()
            # A sample of another size says something new, whatever is in it.
            alike = x.shape == as_first.shape
            deviation = float(np.mean(np.abs(x - as_first))) if alike else math.inf
            deviations[place] = max(deviations[place], deviation)
            if limits is not None:
                _demand_inside(x, limits, f"data.calibration, sample {index}")
    if len(calibration) > 1 and not differ:
        raise RecipeError(
            f"data.calibration: all {len(calibration)} samples are the same; calibration needs "
            "samples like those that the device will see"
        )
    if flat:
        raise RecipeError(
            "data.calibration: every sample is one value throughout; calibration needs samples "
            "like those that the device will see"
        )
    doubts = []
    if len(calibration) < _FEW:
        doubts.append(
            f"data.calibration has fewer than {_FEW} samples ({len(calibration)}), so the ranges "
            "are a matter of chance"
        )
    labels = calibration.labels
    if labels is not None and len(labels) > 1 and len(set(labels.tolist())) == 1:
        doubts.append(
            f"data.calibration: all samples are of class {labels[0]}, so other classes' features "
            "may be clipped"
        )
    ranges = _ranges(calibration, inputs)
    if len(calibration) > 1 and all(
        # Of tokens there is no nearly: another one is another sample.
        deviation == 0 or (one.range is None and deviation < _ALIKE * (high - low))
        for one, deviation, (low, high) in zip(inputs, deviations, ranges, strict=True)
    ):
        doubts.append(
            "data.calibration: all samples are nearly the same, so features of others will be "
            "clipped"
        )
    for split in others:
        for one, (low, high), (least, most) in zip(
            inputs, ranges, _ranges(split, inputs), strict=True
        ):
            beyond = max(low - least, most - high)
            # Tokens are no quantities: their range is the recipe's, and nothing clips it.
            if one.range is None and beyond > _BEYOND * (high - low):
                of = f" in {one.name}" if len(inputs) > 1 else ""
                doubts.append(
                    f"data.{split.name} runs from {least:.3g} to {most:.3g}{of}, data.calibration "
                    f"only from {low:.3g} to {high:.3g}, so features will be clipped"
                )
    return doubts


def _ranges(split: Split, inputs: Inputs) -> list[tuple[float, float]]:
    """Per input, the least and greatest value in the split."""
    found = [
        [(float(x.min()), float(x.max())) for x in arrays_of(batch, inputs)]
        for batch in split.batches(inputs)
    ]
    return [
        (min(least for least, _ in column), max(most for _, most in column))
        for column in zip(*found, strict=True)
    ]


def _pixel_bounds(network_input: Input) -> tuple[Array, Array] | None:
    """Per channel, the least and greatest value that pixels 0 to 255 become; None for tensors."""
    image = network_input.image
    if image is None:
        return None
    mean, std = np.array(image.mean), np.array(image.std)
    ends = [(pixel * image.scale - mean) / std for pixel in (0, 255)]
    return np.minimum(*ends), np.maximum(*ends)


def _demand_inside(x: Array, bounds: tuple[Array, Array], where: str) -> None:
    low, high = bounds
    slack = _ROUNDING * (high - low)
    least, most = x.min(axis=(1, 2)), x.max(axis=(1, 2))
    outside = np.flatnonzero((least < low - slack) | (most > high + slack))
    if len(outside):
        channel = outside[0]
        raise RecipeError(
            f"{where}: channel {channel} runs from {least[channel]:.4g} to {most[channel]:.4g}, "
            f"and pixels 0 to 255 give {low[channel]:.4g} to {high[channel]:.4g} through "
            "input.image; give pixels as uint8, or tensors that went through the same steps"
        )


def _float_macs(work: IntegerWork) -> int:
    return sum(macs for _, _, macs in work.floats)
