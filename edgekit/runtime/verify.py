"""Golden samples: what the chain said on the host, held against what it says here."""

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, CheckError
from edgekit.runtime.chain import Chain

__all__ = ["GoldenReport", "load_array", "verify_golden"]


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
    worst = dict.fromkeys(expected, 0.0)
    for row, sample in enumerate(golden.samples):
        x = _read(bundle, chain, sample.input)
        for name, logits in chain.logits(x[None]).items():
            error = _relative_error(logits[0], expected[name][row], expected[name])
            worst[name] = max(worst[name], error)
            if not error <= golden.max_relative_error:
                raise CheckError(
                    f"{sample.input}: exit {name!r} differs from the host's logits by {error:.1e}, "
                    f"limit {golden.max_relative_error:.1e}; the engine here computes otherwise: "
                    "try the version in the manifest's tools"
                )
        found = chain.one(x)
        if (found.exit, found.class_index) != (sample.exit, sample.class_index):
            raise CheckError(
                f"{sample.input}: leaves at {found.exit!r} as class {found.class_index} "
                f"({found.confidence:.6f}), on the host at {sample.exit!r} as "
                f"{sample.class_index} ({sample.confidence:.6f})"
            )
    return GoldenReport(len(golden.samples), worst, golden.max_relative_error)


def load_array(bundle: Bundle, path: str) -> npt.NDArray[Any]:
    """A listed `.npy` file of the bundle. Raises BundleError where it is none."""
    try:
        return np.asarray(np.load(io.BytesIO(bundle.read(path)), allow_pickle=False))
    except ValueError as error:
        raise BundleError(f"{path}: is no plain .npy array: {error}") from None


def _read(bundle: Bundle, chain: Chain, path: str) -> npt.NDArray[Any]:
    """A golden input, from the very bytes that were hashed, as a user's file would be read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, Path(path).name)
        copy.write_bytes(bundle.read(path))
        return chain.read(copy)


def _relative_error(
    ours: npt.NDArray[Any], theirs: npt.NDArray[Any], scale_of: npt.NDArray[Any]
) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    scale = float(np.abs(scale_of).max()) or 1.0
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    return difference / scale if np.isfinite(difference) else float("inf")
