"""Golden samples: what the chain said on the host, held against what it says here."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, CheckError, InputError
from edgekit.runtime import preprocess
from edgekit.runtime.chain import Chain

__all__ = ["GoldenReport", "differences", "load_array", "verify_golden"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GoldenReport:
    """What came of the golden samples: how many, and the greatest relative error per exit."""

    samples: int
    max_relative_error: dict[str, float]
    limit: float


def verify_golden(bundle: Bundle, chain: Chain) -> GoldenReport:
    """Run every golden sample alone, to the end and under the policy.

    Raises CheckError that names the sample and exit where logits are outside the bundle's
    tolerance, or where the decision is another one.
    """
    golden = bundle.manifest.golden
    expected = {name: load_array(bundle, path) for name, path in golden.logits.items()}
    for name, logits in expected.items():
        if logits.ndim != 2 or len(logits) != len(golden.samples):
            raise BundleError(
                f"{golden.logits[name]}: is {list(logits.shape)}, and there are "
                f"{len(golden.samples)} golden samples; build the bundle again"
            )
    worst = dict.fromkeys(expected, 0.0)
    for row, sample in enumerate(golden.samples):
        paths = ", ".join(sample.inputs.values())
        given = {
            name: preprocess.decode(bundle.read(path), path) for name, path in sample.inputs.items()
        }
        x = chain.prepare(given)
        for name, logits in chain.logits(preprocess.stack([x])).items():
            _, error = differences(logits[0], expected[name][row], expected[name])
            worst[name] = max(worst[name], error)
            if not error <= golden.max_relative_error:
                raise CheckError(
                    f"{paths}: exit {name!r} differs from the host's logits by {error:.1e}, "
                    f"limit {golden.max_relative_error:.1e}; the engine here computes otherwise: "
                    "try the version in the manifest's tools"
                )
        found = chain.one(x)
        if (found.exit, found.class_index) != (sample.exit, sample.class_index):
            raise CheckError(
                f"{paths}: leaves at {found.exit!r} as class {found.class_index} "
                f"({found.confidence:.6f}), on the host at {sample.exit!r} as "
                f"{sample.class_index} ({sample.confidence:.6f})"
            )
    return GoldenReport(len(golden.samples), worst, golden.max_relative_error)


def load_array(bundle: Bundle, path: str) -> Array:
    """A listed `.npy` file of the bundle. Raises BundleError where it is none."""
    try:
        return preprocess.decode(bundle.read(path), path)
    except InputError as error:
        raise BundleError(str(error)) from None


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
