"""The memory of engines that compute on a GPU: tensors stay there, logits alone come to the host.

All work of a chain is put on one stream, in order, and is done when somebody waits for it: at each
exit that is looked at, once.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runtime.cuda import Cuda

__all__ = ["Counts", "CudaMemory", "DeviceBuffer", "Transfers"]

Array = npt.NDArray[Any]


@dataclass
class Transfers:
    """Copies of one kind that were started: how many, and of how many bytes together."""

    number: int = 0
    size_bytes: int = 0


@dataclass
class Counts:
    """What a `CudaMemory` has copied since it was made."""

    to_device: Transfers = field(default_factory=Transfers)
    to_host: Transfers = field(default_factory=Transfers)
    on_device: Transfers = field(default_factory=Transfers)


class _Stream:
    """A stream, and how far its work was waited for. Lives as long as any memory that it works on.

    `started` counts what was put on the stream, `finished` how much of that is surely done, and
    `changes` what changed memory on the device: what was read before the last one is out of date.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.handle = cuda.stream()
        self.started = self.finished = self.changes = 0
        self._synchronize = cuda.synchronizer(self.handle)
        self._end = weakref.finalize(self, cuda.destroy, self.handle)
        # With the process ends all that it has on the device; the order of that is not ours.
        self._end.atexit = False

    def change(self) -> None:
        """Note that work was put on the stream which changes memory on the device."""
        self.started += 1
        self.changes += 1

    def finish(self) -> None:
        """Wait until all that was started is done."""
        if self.finished != self.started:
            started = self.started
            self._synchronize()
            self.finished = started

    def owns(self, owner: object, free: Callable[[int], None], address: int) -> None:
        """Free that address with its owner, once nothing works on it any more."""
        weakref.finalize(owner, self._free, free, address).atexit = False

    def _free(self, free: Callable[[int], None], address: int) -> None:
        self.finish()
        free(address)


class DeviceBuffer:
    """A tensor on the device: `address`, `shape` batch first, `dtype`, the bytes of one sample.

    Its memory goes back when nobody refers to it any more.
    """

    def __init__(self, stream: _Stream, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._stream = stream
        self._staging: Array | None = None
        # CUDA gives no address for no bytes.
        self.address = stream.cuda.allocate(max(1, shape[0] * self.row_bytes))
        stream.owns(self, stream.cuda.free, self.address)

    def staging(self, rows: int) -> Array:
        """Page-locked memory on the host for the first rows; the same at each call."""
        if self._staging is None:
            size = self.shape[0] * self.row_bytes
            raw, address = self._stream.cuda.allocate_host(max(1, size))
            # Every view of it keeps the first array, so this goes with the last of them.
            self._stream.owns(raw, self._stream.cuda.free_host, address)
            self._staging = raw[:size].view(self.dtype).reshape(self.shape)
        return self._staging[:rows]


class CudaMemory:
    """The GPU's memory for the engines of one chain: a stream, buffers, and one scratch block.

    The scratch block is for engines that need room while they run. They run in turn, so one block
    of the greatest size does for all.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.counts = Counts()
        self._stream = _Stream(cuda)
        self.stream = self._stream.handle
        self.scratch: DeviceBuffer | None = None
        self.scratch_changes = 0
        """How often the scratch block has become another: who was set to it is set anew."""
        # Without a method of its own between: an engine calls the second one in every run.
        self.finish = self._stream.finish
        self.ran = self._stream.change
        """For engines: note that they have put work on the stream."""

    @property
    def arena_bytes(self) -> int | None:
        """See `Memory.arena_bytes`: the scratch block; None for engines that bring their own."""
        return None if self.scratch is None else self.scratch.shape[0]

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        """See `Memory.allocate`. Raises DeviceError where there is no room."""
        return DeviceBuffer(self._stream, shape, dtype)

    def demand_scratch(self, size: int) -> None:
        """Let the scratch block have so many bytes at least; one that grows is another block."""
        if self.scratch is None or self.scratch.shape[0] < size:
            self.scratch_changes += 1
            self.scratch = None  # Its bytes may be needed for the new one.
            self.scratch = self.allocate((max(1, size),), "uint8")

    def writer(self, buffer: DeviceBuffer, rows: int) -> Callable[[Array], None]:
        """See `Memory.writer`: into page-locked memory, and from there while the host goes on."""
        stream, count = self._stream, self.counts.to_device
        view = buffer.staging(rows)
        copy = self.cuda.to_device(buffer.address, view, stream.handle)

        def write(samples: Array, _keep_alive: DeviceBuffer = buffer) -> None:
            stream.finish()  # What is in the page-locked memory may be on its way still.
            view[...] = samples
            copy()
            stream.change()
            count.number += 1
            count.size_bytes += view.nbytes

        return write

    def reader(self, buffer: DeviceBuffer, rows: int) -> Callable[[], Array]:
        """See `Memory.reader`: waits for all that was started, and copies once for one result."""
        stream, count = self._stream, self.counts.to_host
        view = buffer.staging(rows)
        copy = self.cuda.to_host(view, buffer.address, stream.handle)
        read_at = -1

        def read(_keep_alive: DeviceBuffer = buffer) -> Array:
            nonlocal read_at
            if read_at != stream.changes:
                copy()
                stream.started += 1
                read_at = stream.changes
                count.number += 1
                count.size_bytes += view.nbytes
                stream.finish()
            return view

        return read

    def keep(self, buffer: DeviceBuffer, rows: Array) -> None:
        """See `Memory.keep`: copies on the device, each of rows that lie together.

        Rows move towards the front, so no copy wants what one before it has overwritten. A copy is
        no longer than its way: its two ranges do not overlap.
        """
        count = self.counts.on_device
        size = buffer.row_bytes
        for to, first, number in _moves(rows):
            self.cuda.on_device(
                buffer.address + to * size,
                buffer.address + first * size,
                number * size,
                self.stream,
            )
            self._stream.change()
            count.number += 1
            count.size_bytes += number * size


def _moves(rows: Array) -> list[tuple[int, int, int]]:
    """(to, from, how many) that bring these ascending rows to the front, in this order."""
    moves = []
    done = 0
    for together in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
        first, number = int(together[0]), len(together)
        way = first - done
        if way:
            moves += [
                (done + start, first + start, min(way, number - start))
                for start in range(0, number, way)
            ]
        done += number
    return moves
