"""Engines: one loaded segment each, behind an interface of three verbs: load, bind, run.

What crosses between segments is opaque to the chain. Each engine names the `Memory` that its
tensors live in, and numpy appears only where a chain begins (`writer`) and where an exit's logits
are looked at (`reader`), so that features may stay wherever the engine keeps them.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import DeviceError

__all__ = ["BUILT_ON_DEVICE", "ENGINES", "Engine", "HostMemory", "Memory", "load_engines"]

Array = npt.NDArray[Any]
Buffer = Any
"""A tensor of some capacity in an engine's memory; only its `Memory` looks inside."""


class Memory(Protocol):
    """Where an engine's tensors live. `rows` counts samples, from the first."""

    @property
    def arena_bytes(self) -> int | None:
        """What the engines of this memory hold to compute in, beside their tensors and weights.

        None where they do not tell.
        """

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A buffer for a tensor of this shape, batch first."""

    def writer(self, buffer: Buffer, rows: int) -> Callable[[Array], None]:
        """A call that copies so many samples into the buffer's first rows."""

    def reader(self, buffer: Buffer, rows: int) -> Callable[[], Array]:
        """A call that gives the first rows, as an array that the next run may overwrite."""

    def keep(self, buffer: Buffer, rows: Array) -> None:
        """Move these rows (ascending indices) to the front, in order."""

    def finish(self) -> None:
        """Wait until all that was started is done: an engine's call may return before that."""


class Engine(Protocol):
    """One segment, loaded. `version` names the engine and its version, for reports.

    The engines of a chain are loaded together (`load_engines`) and have one memory.
    """

    memory: Memory
    version: str

    def bind(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], rows: int
    ) -> Callable[[], None]:
        """A call that runs the segment on the first `rows` of these buffers, or starts that.

        Everything that can be prepared is prepared here: the call itself neither allocates nor
        copies beyond what the engine forces. What the segment gives is there for a `reader`, and
        for the next segment. Raises DeviceError where the engine refuses.
        """

    def shapes(self, inputs: Mapping[str, Buffer]) -> dict[str, tuple[int, ...]]:
        """The shape of each output for one sample, without the batch, by running the segment once.

        `inputs` are buffers of one row. Asked only where sizes vary. Raises DeviceError where the
        engine refuses.
        """


class HostMemory:
    """The memory of engines that compute on the CPU: numpy arrays."""

    arena_bytes: int | None = None
    """Neither ONNX Runtime nor LiteRT tells Python of its own."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array; zeroed, so that its pages are there before the first run is timed."""
        return np.zeros(shape, dtype)

    def writer(self, buffer: Array, rows: int) -> Callable[[Array], None]:
        """Copies into a view of the first rows."""
        view = buffer[:rows]

        def write(samples: Array) -> None:
            view[...] = samples

        return write

    def reader(self, buffer: Array, rows: int) -> Callable[[], Array]:
        """Gives a view of the first rows."""
        view = buffer[:rows]
        return lambda: view

    def keep(self, buffer: Array, rows: Array) -> None:
        """Move these rows to the front."""
        buffer[: len(rows)] = buffer[rows]

    def finish(self) -> None:
        """Nothing: a call that returns is done."""


ENGINES = {
    "onnxruntime": "edgekit.runtime.engines.onnxruntime",
    "onnxruntime-cuda": "edgekit.runtime.engines.onnxruntime_cuda",
    "tensorrt": "edgekit.runtime.engines.tensorrt",
    "litert": "edgekit.runtime.engines.litert",
}
"""The module of each engine; it is imported when the first segments are loaded."""

BUILT_ON_DEVICE = frozenset({"tensorrt"})
"""The engines that load what `edgekit install` built there, not the bundle's own files."""


def load_engines(
    engine: str, segments: Sequence[tuple[str, bytes]], *, threads: int
) -> list[Engine]:
    """Load the segments of a chain, each by its name, for messages, and its content.

    `threads` is what one run may use of the processor. Raises DeviceError where the engine is
    unknown or not installed, or refuses a segment.
    """
    if engine not in ENGINES:
        raise DeviceError(f"this edgekit has no engine {engine!r}; it has {', '.join(ENGINES)}")
    try:
        module = importlib.import_module(ENGINES[engine])
    except ImportError as error:
        raise DeviceError(
            f"engine {engine} is not installed ({error}): pip install 'edgekit[{engine}]'"
        ) from None
    loaded: list[Engine] = module.load(segments, threads=threads)
    return loaded
