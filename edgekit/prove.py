"""How far a bundle's segments were proven where they were built: for engines of other machines."""

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.bundle.reader import Bundle
from edgekit.errors import BuildError, DeviceError
from edgekit.runtime import tensorrt_api
from edgekit.runtime.tensorrt_build import Options, build_plan, capabilities
from edgekit.target import Target

__all__ = ["UNPROVEN", "Proof", "compiled"]

UNPROVEN = "unproven"


@dataclass(frozen=True)
class Proof:
    """How far a segment was proven: `executed`, `built`, or `unproven`, with the reason in `by`.

    `compute_capability` is the GPU's that it was built for, where it was built for one.
    """

    segment: str
    proven: str
    by: str
    compute_capability: str | None = None


def compiled(bundle: Bundle, target: Target, step: Callable[[str], None]) -> list[Proof]:
    """Compile every segment, and the undivided networks, as far as this machine can.

    TensorRT-RTX compiles for GPUs that are not there. It is not what the device builds with, but it
    has the same parser and the same rules of types. Empty for targets without a GPU. Raises
    BuildError that names the segment and the operator which it refuses.
    """
    gpu = bundle.manifest.target.gpu
    if gpu is None or target.gpu is None:
        return []
    manifest = bundle.manifest
    segments = [
        *(one for variant in manifest.variants for one in variant.segments),
        *(one for pair in manifest.baselines for one in (pair.plain, pair.whole)),
    ]
    try:
        tensorrt = tensorrt_api.find((tensorrt_api.RTX,))
    except DeviceError as error:
        reason = f"TensorRT-RTX could compile the segments here as a proof: {error}"
        return [Proof(one.name, UNPROVEN, reason) for one in segments]
    capability = target.gpu.proof_capability
    if capability not in capabilities(tensorrt):
        reason = f"{tensorrt} compiles for no GPU like {target.name}'s"
        return [Proof(one.name, UNPROVEN, reason) for one in segments]
    options = Options(gpu.batch_sizes, gpu.workspace_bytes, capability)
    for one in segments:
        try:
            build_plan(tensorrt, bundle.read(one.path), one.name, options, step=step)
        except DeviceError as error:
            raise BuildError(f"verify: for {target.name}: {error}") from None
    return [Proof(one.name, "built", str(tensorrt), capability) for one in segments]
