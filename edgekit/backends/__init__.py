"""What the stages do differently for each engine family, on the host side."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit.stages import Part
    from edgekit.target import Target

__all__ = ["TOOLS", "Backend", "backend_for"]

TOOLS = {
    "onnxruntime": (
        "torch",
        "onnx",
        "onnx-ir",
        "onnxoptimizer",
        "onnxruntime",
        "onnxscript",
        "onnxslim",
        "numpy",
    )
}
"""The packages whose versions decide what comes out, per engine; named without importing them."""


class Backend(Protocol):
    """Lowers and optimizes segments for one engine family."""

    suffix: str
    """How a segment's file name ends."""

    packages: tuple[str, ...]
    """What the device must install, as pip reads it."""

    def lower(
        self, part: Part[fx.GraphModule], examples: tuple[torch.Tensor, ...], target: Target
    ) -> bytes:
        """The part as a self-contained file; `examples` are inputs of it, a batch of two.

        Raises BuildError that names the part and the operator where that cannot be.
        """

    def optimize(self, part: Part[bytes]) -> bytes:
        """The same computation with less work. Raises BuildError that names the part."""

    def node_count(self, part: Part[bytes]) -> int:
        """Operators in the file, for the evidence."""


_BACKENDS = {"onnxruntime": "edgekit.backends.onnxruntime:OnnxRuntimeBackend"}


def backend_for(engine: str) -> Backend:
    """The backend of an engine; its packages are imported now."""
    module, _, name = _BACKENDS[engine].partition(":")
    backend: Backend = getattr(importlib.import_module(module), name)()
    return backend
