"""What the stages do differently for each engine family, on the host side."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit.recipe import Quantize
    from edgekit.stages import Part
    from edgekit.target import Target

__all__ = [
    "RTX_PACKAGE",
    "TOOLS",
    "Backend",
    "Crossing",
    "Features",
    "IntegerWork",
    "Quantized",
    "backend_for",
    "checked_with",
    "is_mask",
    "step_of",
]

_ONNX_TOOLS = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxoptimizer",
    "onnxruntime",
    "onnxscript",
    "onnxslim",
    "numpy",
    "pillow",
)

_TFLITE_TOOLS = (
    "torch",
    "litert-torch",
    "litert-converter",
    "ai-edge-quantizer",
    "ai-edge-litert",
    "flatbuffers",
    "numpy",
    "pillow",
)

TOOLS = {"onnxruntime": _ONNX_TOOLS, "tensorrt": _ONNX_TOOLS, "litert": _TFLITE_TOOLS}
"""The packages whose versions decide what comes out, per engine; named without importing them."""

_WHOLE = 1e-3
"""How far from a whole number of steps a weight may be: float32 is a hundredfold nearer."""

Array = npt.NDArray[Any]
Features = Callable[[], Iterator[dict[str, Array]]]
"""Gives, anew on each call, batches of a part's inputs by name: float32 `[batch, ...]`."""


@dataclass(frozen=True)
class Crossing:
    """How a boundary tensor crosses where not as float32: `(value - zero_point) * scale`."""

    dtype: str
    scale: float = 1.0
    zero_point: int = 0

    def floats(self, values: Array) -> npt.NDArray[np.float32]:
        """What the values of any shape stand for."""
        return (values.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


@dataclass(frozen=True)
class Quantized:
    """A part in lower precision, and how those of its outputs cross that are no longer float32."""

    program: bytes
    leaving: dict[str, Crossing] = field(default_factory=dict)


@dataclass(frozen=True)
class IntegerWork:
    """How much of a part is done on integers, in multiply-accumulates (MACs) of one sample.

    `macs` counts all of it outside the heads, `integer_macs` what integer kernels do. `floats` has
    the operators outside the heads that stay float, as (name, type, MACs), the largest first.
    """

    macs: int
    integer_macs: int
    floats: tuple[tuple[str, str, int], ...]


class Backend(Protocol):
    """Lowers and optimizes segments for one engine family."""

    suffix: str
    """How a segment's file name ends."""

    channels_last: bool
    """Whether its engines have the channels of feature maps last."""

    wants_features: frozenset[str]
    """The precisions that look at samples' features."""

    def lower(
        self, part: Part[fx.GraphModule], examples: tuple[torch.Tensor, ...], target: Target
    ) -> bytes:
        """The part as a self-contained file; `examples` are inputs of it, a batch of two.

        Raises BuildError that names the part and the operator where that cannot be.
        """

    integer_remedy: str
    """What to do where the engine does too little on integers, as the end of a message."""

    passes: dict[str, tuple[str, ...]]
    """What optimizes a part, in order and by name: the passes of an entry can run as one."""

    def apply(self, passes: tuple[str, ...], part: Part[bytes]) -> bytes:
        """The part after these passes of one entry: the very same bytes where they change nothing.

        Only transforms; whether the result is still right is for the caller to find out. Raises
        BuildError with the reason where a pass fails or what it gives is no valid file.
        """

    def contract(self, part: Part[bytes]) -> tuple[str, ...]:
        """What the file itself says of its inputs, its outputs and its format's versions."""

    def quantize(
        self,
        part: Part[bytes],
        features: Features | None,
        entering: Mapping[str, Crossing],
        later: Sequence[Part[bytes]],
        options: Quantize,
        target: Target,
    ) -> Quantized:
        """The part in the target's precision; heads stay in float, and logits are float32.

        `features` shows the ranges of what is computed (see `wants_features`), `entering` says
        how the part's inputs cross where not as float32. `later` has the parts behind this one in
        its chain, not quantized yet: what they read may say how it crosses. Raises BuildError that
        names the part.
        """

    def integer_work(
        self,
        before: Part[bytes],
        after: Part[bytes],
        target: Target,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> IntegerWork:
        """What the engine does on integers of `after`, which `before` is come to.

        Read from the graph that the engine executes on the target, after its own optimizations;
        where the types in the file oblige the engine, from the file.
        `shapes` has the tensors' shapes for one sample, without the batch.
        """

    def node_count(self, part: Part[bytes]) -> int:
        """Operators in the file, for the evidence."""


def is_mask(values: Array) -> bool:
    """Whether values of any shape reach below what a float16 holds, as no feature does."""
    return values.dtype.kind == "f" and bool((values < np.finfo(np.float16).min).any())


def step_of(values: Array) -> float | None:
    """The step that float32 `values` of any shape are whole multiples of, 127 at most to each side.

    The largest such; None where there is none.
    """
    most = float(np.abs(values).max(initial=0))
    if most == 0:
        return 0.0
    unique = np.unique(values).astype(np.float64)
    if len(unique) > 255:
        return None
    for count in range(1, 128):
        steps = unique * (count / most)
        whole = np.rint(steps)
        if np.abs(steps - whole).max() < _WHOLE:
            # Of all values, each of which was rounded to a float32.
            return float((unique @ whole) / (whole @ whole))
    return None


RTX_PACKAGE = "tensorrt-rtx-cu13-libs"
"""TensorRT-RTX, which proves that segments can be built for a GPU that is not here."""

_BACKENDS = {
    "onnxruntime": "edgekit.backends.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "edgekit.backends.tensorrt:TensorRTBackend",
    "litert": "edgekit.backends.litert:LiteRTBackend",
}


def checked_with(engine: str) -> str:
    """What runs an engine's segments where they are built: it reads the same files, anywhere."""
    return "onnxruntime" if engine == "tensorrt" else engine


def backend_for(engine: str) -> Backend:
    """The backend of an engine; its packages are imported now.

    Raises RecipeError where they are not installed.
    """
    module, _, name = _BACKENDS[engine].partition(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        if engine != "litert":
            raise
        raise RecipeError(
            f"engine litert needs packages of its own ({error}): "
            "pip install 'edgekit[litert-build]'"
        ) from None
    return backend
