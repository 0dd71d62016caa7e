"""How far a bundle's segments were proven where they were built: for engines of other machines."""

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.bundle.reader import Bundle
from edgekit.errors import BuildError, DeviceError
from edgekit.runtime import tensorrt_api
from edgekit.runtime.tensorrt_build import Options, build_plan, capabilities, parse
from edgekit.target import Target

__all__ = ["UNPROVEN", "Proof", "compiled"]

UNPROVEN = "unproven"


@dataclass(frozen=True)
class Proof:
    """How far a segment was proven: `executed`, `built`, only `parsed`, or `unproven`.

    `by` says by what, or why not.

    `compute_capability` is the GPU's that it was built for, where it was built for one.
    """

    segment: str
    proven: str
    by: str
    compute_capability: str | None = None


def compiled(bundle: Bundle, target: Target, step: Callable[[str], None]) -> list[Proof]:
    """Compile every segment, and the undivided networks, as far as this machine can.

    TensorRT-RTX compiles for GPUs that are not there. It is not what the device builds with, but it
    has the same parser and the same rules of types; of a GPU that it does not know, it still parses
    and types the segments. Empty for targets without a GPU. Raises
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
    known = capability in capabilities(tensorrt)
    options = Options(gpu.batch_sizes, gpu.workspace_bytes, capability)
    for one in segments:
        content = bundle.read(one.path)
        try:
            if known:
                build_plan(tensorrt, content, one.name, options, step=step)
            else:
                parse(tensorrt, content, one.name)
        except DeviceError as error:
            raise BuildError(f"verify: for {target.name}: {error}") from None
    how, where = ("built", capability) if known else ("parsed", None)
    return [Proof(one.name, how, str(tensorrt), where) for one in segments]
