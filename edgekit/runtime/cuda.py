"""CUDA's memory and streams, through whichever package of Python's a machine has for them.

`find()` picks one and imports it; nothing touches a GPU before the first call of `gpu` or `stream`.
Sizes are in bytes, addresses and streams are numbers as CUDA gives them.
"""

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.errors import DeviceError
from edgekit.runtime.gpu import Gpu

__all__ = ["Cuda", "CudaPython", "PyCuda", "find"]

Array = npt.NDArray[Any]

_NO_DRIVER = "the machine needs an NVIDIA GPU and its driver, which `nvidia-smi` shows"


class Cuda(Protocol):
    """What the engines need of CUDA, on its first device. Every call raises DeviceError."""

    name: str
    """The package, for reports."""

    def gpu(self) -> Gpu:
        """The device; refuses a machine that has none, or whose driver is too old."""

    def memory_bytes(self) -> tuple[int, int]:
        """How much of the device's memory is free, and how much there is."""

    def allocate(self, size: int) -> int:
        """The address of so much memory on the device, aligned for any use."""

    def free(self, address: int) -> None:
        """Give that memory back. Nothing may be using it any more."""

    def allocate_host(self, size: int) -> tuple[Array, int]:
        """Page-locked memory on the host, uint8 `[size]`, and the number to free it by."""

    def free_host(self, address: int) -> None:
        """Give that memory back. Neither a copy nor an array may be using it any more."""

    def stream(self) -> int:
        """A new stream, which does not wait for the default one."""

    def destroy(self, stream: int) -> None:
        """End a stream on which nothing is left to do."""

    def synchronizer(self, stream: int) -> Callable[[], None]:
        """A call that waits until all that was started on the stream is done."""

    def to_device(self, address: int, array: Array, stream: int) -> Callable[[], None]:
        """A call that starts copying a page-locked array, C-contiguous, to the device."""

    def to_host(self, array: Array, address: int, stream: int) -> Callable[[], None]:
        """A call that starts copying from the device into such an array."""

    def on_device(self, address: int, source: int, size: int, stream: int) -> None:
        """Start copying within the device. The two ranges must not overlap."""


_found: list[Cuda] = []


def find() -> Cuda:
    """The process's adapter: cuda-python, in its layout of today or of old, or else pycuda.

    Raises DeviceError where none of them is installed, or can be imported.
    """
    if _found:
        return _found[0]
    reasons = []
    adapters: tuple[tuple[str, Callable[[Any], Cuda]], ...] = (
        ("cuda.bindings.runtime", CudaPython),
        ("cuda.cudart", CudaPython),
        ("pycuda.driver", PyCuda),
    )
    for module, adapter in adapters:
        try:
            found = adapter(importlib.import_module(module))
        except (ImportError, OSError) as error:
            if importlib.util.find_spec(module.partition(".")[0]) is not None:
                reasons.append(f"{module}: {str(error).partition(chr(10))[0]}")
            continue
        _found.append(found)
        return found
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise DeviceError(
        f"Python has no way to CUDA here{why}: pip install 'edgekit[jetpack6]' on a Jetson with "
        "JetPack 6, else 'edgekit[cuda12]' or [cuda13], as the driver knows it (nvidia-smi)"
    )


class CudaPython:
    """Over cuda-python's `cuda.bindings.runtime`; the older `cuda.cudart` has the same calls.

    Its calls return an error first. They use the device's primary context, as TensorRT and ONNX
    Runtime do, in every thread.
    """

    def __init__(self, runtime: Any) -> None:
        self._cuda = runtime
        self.name = f"{runtime.__name__} {_version(self._asked('cudaRuntimeGetVersion'))}"
        kinds = runtime.cudaMemcpyKind
        self._to_device = kinds.cudaMemcpyHostToDevice
        self._to_host = kinds.cudaMemcpyDeviceToHost
        self._on_device = kinds.cudaMemcpyDeviceToDevice

    def gpu(self) -> Gpu:
        """See `Cuda.gpu`."""
        found = self._asked("cudaGetDeviceProperties", 0)
        name = found.name.decode(errors="replace").rstrip("\0")
        capability = f"{found.major}.{found.minor}"
        driver = _version(self._asked("cudaDriverGetVersion"))
        return Gpu(
            name,
            capability,
            int(found.multiProcessorCount),
            int(found.totalGlobalMem),
            driver,
            shares_memory=bool(found.integrated),
        )

    def memory_bytes(self) -> tuple[int, int]:
        """See `Cuda.memory_bytes`."""
        free, total = self._asked("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """See `Cuda.allocate`."""
        error, address = self._cuda.cudaMalloc(size)
        if error:
            raise self._no_room(size, error)
        return int(address)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._asked("cudaFree", address)

    def allocate_host(self, size: int) -> tuple[Array, int]:
        """See `Cuda.allocate_host`."""
        flags = self._cuda.cudaHostAllocDefault
        address = int(self._asked("cudaHostAlloc", size, flags))
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.ctypeslib.as_array(memory), address

    def free_host(self, address: int) -> None:
        """See `Cuda.free_host`."""
        self._asked("cudaFreeHost", address)

    def stream(self) -> int:
        """See `Cuda.stream`."""
        return int(self._asked("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy(self, stream: int) -> None:
        """See `Cuda.destroy`."""
        self._asked("cudaStreamDestroy", stream)

    def synchronizer(self, stream: int) -> Callable[[], None]:
        """See `Cuda.synchronizer`."""
        return self._prepared("cudaStreamSynchronize", self._cuda.cudaStream_t(stream))

    def to_device(self, address: int, array: Array, stream: int) -> Callable[[], None]:
        """See `Cuda.to_device`."""
        return self._copy(address, array.ctypes.data, array.nbytes, self._to_device, stream)

    def to_host(self, array: Array, address: int, stream: int) -> Callable[[], None]:
        """See `Cuda.to_host`."""
        return self._copy(array.ctypes.data, address, array.nbytes, self._to_host, stream)

    def on_device(self, address: int, source: int, size: int, stream: int) -> None:
        """See `Cuda.on_device`."""
        self._copy(address, source, size, self._on_device, stream)()

    def _copy(self, to: int, source: int, size: int, kind: Any, stream: int) -> Callable[[], None]:
        handle = self._cuda.cudaStream_t(stream)
        return self._prepared("cudaMemcpyAsync", to, source, size, kind, handle)

    def _prepared(self, name: str, *arguments: Any) -> Callable[[], None]:
        """A call of CUDA's with nothing left to do but to make it and look at its error."""
        ask = functools.partial(getattr(self._cuda, name), *arguments)

        def call() -> None:
            (error,) = ask()
            if error:
                raise self._failure(name, error)

        return call

    def _asked(self, name: str, *arguments: Any) -> Any:
        """What a call of CUDA's gives beside its error: nothing, a value, or several."""
        error, *values = getattr(self._cuda, name)(*arguments)
        if error:
            raise self._failure(name, error)
        return values[0] if len(values) == 1 else values

    def _words(self, error: Any) -> tuple[str, str]:
        """CUDA's own name of an error, and what it says of it."""
        found = [self._cuda.cudaGetErrorName(error)[1], self._cuda.cudaGetErrorString(error)[1]]
        name, text = (one.decode(errors="replace") for one in found)
        return name, text

    def _failure(self, call: str, error: Any) -> DeviceError:
        name, text = self._words(error)
        errors = self._cuda.cudaError_t
        if error == errors.cudaErrorInsufficientDriver:
            driver = int(self._cuda.cudaDriverGetVersion()[1] or 0)
            if not driver:
                return DeviceError(f"no NVIDIA driver is installed ({name}): {_NO_DRIVER}")
            wants = _version(self._cuda.cudaRuntimeGetVersion()[1])
            return DeviceError(
                f"the NVIDIA driver knows CUDA {_version(driver)}, and {self._cuda.__name__} wants "
                f"{wants} ({name}): install a newer driver, or pip install "
                f"'cuda-python=={_version(driver)}.*'"
            )
        if error in {errors.cudaErrorNoDevice, errors.cudaErrorInitializationError}:
            return DeviceError(f"CUDA finds no GPU ({name}: {text}): {_NO_DRIVER}")
        return DeviceError(
            f"{call} failed ({name}: {text}): start the program anew, and see `dmesg` if it stays"
        )

    def _no_room(self, size: int, error: Any) -> DeviceError:
        if error != self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            return self._failure("cudaMalloc", error)
        failed, *found = self._cuda.cudaMemGetInfo()
        return _no_room(size, self._words(error)[0], None if failed else found)


class PyCuda:
    """Over pycuda, which JetPack images of old may have instead.

    It knows CUDA's driver alone, so the primary context, which TensorRT and ONNX Runtime use, is
    made current around each call.
    """

    def __init__(self, driver: Any) -> None:
        self._cuda = driver
        self.name = "pycuda"
        self._context: Any = None
        # pycuda frees what nobody refers to: its objects live here until they are freed.
        self._kept: dict[int, Any] = {}

    def gpu(self) -> Gpu:
        """See `Cuda.gpu`."""
        with self._asked():
            device = self._cuda.Device(0)
            capability = "{}.{}".format(*device.compute_capability())
            driver = _version(self._cuda.get_driver_version())
            attributes = self._cuda.device_attribute
            return Gpu(
                device.name(),
                capability,
                int(device.get_attribute(attributes.MULTIPROCESSOR_COUNT)),
                int(device.total_memory()),
                driver,
                shares_memory=bool(device.get_attribute(attributes.INTEGRATED)),
            )

    def memory_bytes(self) -> tuple[int, int]:
        """See `Cuda.memory_bytes`."""
        with self._asked():
            free, total = self._cuda.mem_get_info()
            return int(free), int(total)

    def allocate(self, size: int) -> int:
        """See `Cuda.allocate`."""
        with self._asked():
            try:
                found = self._cuda.mem_alloc(size)
            except self._cuda.MemoryError as error:
                raise _no_room(size, str(error), self._cuda.mem_get_info()) from None
            return self._keep(int(found), found)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        with self._asked():
            self._kept.pop(address).free()

    def allocate_host(self, size: int) -> tuple[Array, int]:
        """See `Cuda.allocate_host`."""
        with self._asked():
            array: Array = self._cuda.pagelocked_empty(size, np.uint8)
        # The array owns what it shows, and gives it back with its last view.
        return array, 0

    def free_host(self, address: int) -> None:
        """See `Cuda.free_host`."""

    def stream(self) -> int:
        """See `Cuda.stream`."""
        with self._asked():
            found = self._cuda.Stream(1)  # CU_STREAM_NON_BLOCKING
            return self._keep(int(found.handle), found)

    def destroy(self, stream: int) -> None:
        """See `Cuda.destroy`."""
        with self._asked():
            del self._kept[stream]

    def synchronizer(self, stream: int) -> Callable[[], None]:
        """See `Cuda.synchronizer`."""
        return self._prepared(self._kept[stream].synchronize)

    def to_device(self, address: int, array: Array, stream: int) -> Callable[[], None]:
        """See `Cuda.to_device`."""
        return self._prepared(self._cuda.memcpy_htod_async, address, array, self._kept[stream])

    def to_host(self, array: Array, address: int, stream: int) -> Callable[[], None]:
        """See `Cuda.to_host`."""
        return self._prepared(self._cuda.memcpy_dtoh_async, array, address, self._kept[stream])

    def on_device(self, address: int, source: int, size: int, stream: int) -> None:
        """See `Cuda.on_device`."""
        copy = self._cuda.memcpy_dtod_async
        self._prepared(copy, address, source, size, self._kept[stream])()

    def _keep(self, number: int, found: Any) -> int:
        self._kept[number] = found
        return number

    def _prepared(self, call: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
        def made() -> None:
            with self._asked():
                call(*arguments)

        return made

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Calls of pycuda's, in this thread: its context is current, its errors are ours."""
        try:
            if self._context is None:
                self._cuda.init()
                self._context = self._cuda.Device(0).retain_primary_context()
            # Not kept current: pycuda aborts the process where a thread ends with a context.
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._cuda.Error as error:
            raise DeviceError(f"CUDA refuses ({error}): {_NO_DRIVER}") from None


def _version(number: Any) -> str:
    """CUDA writes 12.6 as 12060; pycuda gives its driver's alike."""
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"


def _no_room(size: int, name: str, memory: Any) -> DeviceError:
    """The refusal of so many bytes; `memory` is what is free and what there is, where known."""
    there = "" if memory is None else "; {:,} of {:,} bytes are free".format(*map(int, memory))
    return DeviceError(
        f"the GPU has no room for {size:,} bytes more ({name}){there}: end other programs that "
        "use it, or run fewer samples at once"
    )
