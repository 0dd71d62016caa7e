"""Golden samples: what the chain said on the host, held against what it says here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, CheckError, InputError
from edgekit.runtime import preprocess
from edgekit.runtime.chain import Chain, Prediction, left_at

__all__ = ["GoldenReport", "decisions", "differences", "load_array", "load_arrays", "verify_golden"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GoldenReport:
    """What came of the golden samples: how many, and the greatest relative error per exit.

    Of its logits, and of the confidence that it gives, if it gives one.
    """

    samples: int
    max_relative_error: dict[str, float]
    limit: float


def verify_golden(bundle: Bundle, chain: Chain) -> GoldenReport:
    """Run every golden sample alone, to the end and under the policy.

    Raises CheckError that names the sample and exit where logits are outside the bundle's
    tolerance, or where the decision is another one.
    """
    golden = bundle.manifest.golden
    expected = [
        {name: _expected(bundle, path) for name, path in paths.items()}
        for paths in (golden.logits, golden.confidences)
    ]
    worst = dict.fromkeys(golden.logits, 0.0)
    for row, sample in enumerate(golden.samples):
        paths = ", ".join(sample.inputs.values())
        given = {
            name: preprocess.decode(bundle.read(path), path) for name, path in sample.inputs.items()
        }
        x = chain.prepare(given)
        ours = chain.exits(preprocess.stack([x]))
        for what, found, wanted in zip(("logits", "confidence"), ours, expected, strict=True):
            for name, values in found.items():
                _, error = differences(values[0], wanted[name][row], wanted[name])
                worst[name] = max(worst[name], error)
                if not error <= golden.max_relative_error:
                    raise CheckError(
                        f"{paths}: exit {name!r} differs from the host's {what} by {error:.1e}, "
                        f"limit {golden.max_relative_error:.1e}; the engine here computes "
                        "otherwise: try the version in the manifest's tools"
                    )
        taken = chain.one(x)
        if (taken.exit, taken.class_index) != (sample.exit, sample.class_index):
            here = _decision(taken.exit, taken.class_index, taken.confidence)
            there = _decision(sample.exit, sample.class_index, sample.confidence)
            raise CheckError(f"{paths}: leaves {here}, on the host {there}")
    return GoldenReport(len(golden.samples), worst, golden.max_relative_error)


def decisions(predictions: Sequence[Prediction], final: str) -> dict[str, Any]:
    """What was said of samples, as plain data: by which exit, where they left, how surely.

    `final` is the name of the final exit. None is the class where exits tell none, and the
    confidence that is no finite number.
    """
    return {
        "exits": [one.exit for one in predictions],
        "left": [left_at(one, final) for one in predictions],
        "classes": [one.class_index for one in predictions],
        "confidences": [
            one.confidence if math.isfinite(one.confidence) else None for one in predictions
        ],
    }


def _expected(bundle: Bundle, path: str) -> Array:
    """What the host's chain said of the golden samples, a row each."""
    found, samples = load_array(bundle, path), len(bundle.manifest.golden.samples)
    if not found.ndim or len(found) != samples:
        raise BundleError(
            f"{path}: is {list(found.shape)}, and there are {samples} golden samples; build the "
            "bundle again"
        )
    return found


def _decision(exit: str, class_index: int | None, confidence: float | None) -> str:
    """A decision in words."""
    named = "" if class_index is None else f" as class {class_index}"
    return f"at {exit!r}{named} ({'none' if confidence is None else f'{confidence:.6f}'})"


def load_array(bundle: Bundle, path: str) -> Array:
    """A listed `.npy` file of the bundle. Raises BundleError where it is none."""
    try:
        return preprocess.decode(bundle.read(path), path)
    except InputError as error:
        raise BundleError(str(error)) from None


def load_arrays(bundle: Bundle, path: str) -> list[Array]:
    """A listed `.npz` file of arrays named `0` and on, in order. Raises as `load_array`."""
    try:
        found = preprocess.decode_npz(bundle.read(path), path)
    except InputError as error:
        raise BundleError(str(error)) from None
    if set(found) != {str(row) for row in range(len(found))}:
        raise BundleError(f"{path}: has other arrays than 0 to {len(found) - 1}; build it again")
    return [found[str(row)] for row in range(len(found))]


def differences(ours: Array, theirs: Array, scale_of: Array | None = None) -> tuple[float, float]:
    """Greatest difference, and that over the greatest finite magnitude of `scale_of` (`theirs`).

    Equal infinities do not differ; a NaN, or an infinity where there is none, or another shape,
    differs infinitely.
    """
    if ours.shape != theirs.shape:
        return float("inf"), float("inf")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(ours == theirs, 0.0, np.abs(ours - theirs)).max(initial=0.0)
    if not np.isfinite(difference):
        return float("inf"), float("inf")
    reference = theirs if scale_of is None else scale_of
    scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
    return float(difference), float(difference) / (scale or 1.0)
