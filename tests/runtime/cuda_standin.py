"""A GPU for the tests of machines without one: CUDA, TensorRT and an ONNX Runtime session.

It plays cuda-python's `cuda.bindings.runtime` under `edgekit.runtime.cuda.CudaPython`, TensorRT's
module, and ONNX Runtime's, and is strict about what those leave to their users: the order of calls,
who outlives whom, shapes and addresses. Copies are done when somebody waits, not before, so whoever
reads too early reads the old bytes. What is done wrong raises AssertionError, or stands in `faults`
where it is done while Python cleans up.

What it does not prove: that anything is computed, for it computes nothing, and an engine's outputs
stay what a test has put there; that the real libraries take these calls (`test_cuda.py` holds the
names against theirs, and tests/gpu runs them); how long anything takes.
"""

import ctypes
import enum
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import runtime as real

from edgekit.bundle.manifest import Exit, Input, Policy, Segment, TensorSpec
from edgekit.runtime.chain import ChainSpec

Array = npt.NDArray[Any]

_UNWRITTEN = 0xA5
"""What memory holds that nobody has written."""


@dataclass
class _Operation:
    """Something on a stream: what it is, the memory that it needs, what is done in the end."""

    what: str
    uses: list[tuple[int, int]]
    do: Callable[[], None] = lambda: None


@dataclass
class _Stream:
    waiting: list[_Operation] = field(default_factory=list)
    users: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)


class CudaStandIn:
    """`cuda.bindings.runtime`, with a GPU's memory of `size` bytes. `calls` is what was done."""

    __name__ = "cuda.bindings.runtime"
    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaHostAllocDefault = real.cudaHostAllocDefault
    cudaStreamNonBlocking = real.cudaStreamNonBlocking
    cudaStream_t = int

    def __init__(self, size: int = 1 << 30) -> None:
        self.size = size
        self.calls: list[str] = []
        self.faults: list[str] = []
        self.device: dict[int, Array] = {}
        self.host: dict[int, Array] = {}
        self.streams: dict[int, _Stream] = {}
        self.fails: dict[str, Any] = {}
        """Errors that calls are to give, by the call's name."""
        self._next = 0x7_0000_0000

    def bytes_at(self, address: int, size: int) -> Array:
        """The device's memory there, which must be allocated."""
        for start, block in self.device.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated, or freed")

    def tensor(self, buffer: Any) -> Array:
        """A `DeviceBuffer` as an array, to look into it or to write there."""
        size = buffer.shape[0] * buffer.row_bytes
        return self.bytes_at(buffer.address, size).view(buffer.dtype).reshape(buffer.shape)

    def put(self, stream: int, operation: _Operation) -> None:
        """Put something on a stream that is there, on memory that is there."""
        for address, size in operation.uses:
            self._there(address, size)
        self.streams[int(stream)].waiting.append(operation)
        self.calls.append(operation.what)

    def _there(self, address: int, size: int) -> Array:
        for start, block in self.host.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        return self.bytes_at(address, size)

    def _fault(self, name: str) -> Any:
        return self.fails.get(name, real.cudaError_t.cudaSuccess)

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return real.cudaError_t.cudaSuccess, 13040

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return real.cudaError_t.cudaSuccess, self.fails.get("driver", 13000)

    def cudaGetErrorName(self, error: Any) -> tuple[Any, bytes]:
        return real.cudaGetErrorName(error)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return real.cudaGetErrorString(error)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        assert device == 0
        found = SimpleNamespace(
            name=b"Orin\0\0",
            major=8,
            minor=7,
            multiProcessorCount=16,
            totalGlobalMem=self.size,
            integrated=1,
        )
        return self._fault("cudaGetDeviceProperties"), found

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        used = sum(map(len, self.device.values()))
        return self._fault("cudaMemGetInfo"), self.size - used, self.size

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        assert size > 0, "CUDA gives a null pointer for no bytes"
        if size > self.cudaMemGetInfo()[1]:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        address = self._next
        self._next += (size // 256 + 2) * 256
        self.device[address] = np.full(size, _UNWRITTEN, np.uint8)
        return self._fault("cudaMalloc"), address

    def cudaFree(self, address: int) -> tuple[Any]:
        self._free(address, self.device)
        return (real.cudaError_t.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, int]:
        assert size > 0
        memory = (ctypes.c_uint8 * size)()
        array = np.ctypeslib.as_array(memory)
        array[:] = _UNWRITTEN
        self.host[array.ctypes.data] = array
        return self._fault("cudaHostAlloc"), array.ctypes.data

    def cudaFreeHost(self, address: int) -> tuple[Any]:
        self._free(address, self.host)
        return (real.cudaError_t.cudaSuccess,)

    def _free(self, address: int, memory: dict[int, Array]) -> None:
        # It is called while Python cleans up, where an exception would reach nobody.
        if address not in memory:
            self.faults.append(f"{address:#x} was freed twice, or never allocated")
            return
        block = memory.pop(address)
        for stream in self.streams.values():
            for one in stream.waiting:
                if any(address <= used < address + len(block) for used, _ in one.uses):
                    self.faults.append(f"memory was freed that {one.what} still needs")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        assert flags == real.cudaStreamNonBlocking
        handle = 0x5000 + len(self.streams)
        self.streams[handle] = _Stream()
        return self._fault("cudaStreamCreateWithFlags"), handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        found = self.streams.pop(int(stream), None)
        if found is None:
            self.faults.append("a stream was destroyed twice")
        elif found.waiting or len(found.users):
            self.faults.append("a stream was destroyed that something still uses")
        self.calls.append("destroy stream")
        return (real.cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        found = self.streams[int(stream)]
        self.calls.append("wait")
        while found.waiting:
            one = found.waiting[0]
            for address, size in one.uses:
                self._there(address, size)
            one.do()
            del found.waiting[0]
        return (self._fault("cudaStreamSynchronize"),)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: Any, stream: int
    ) -> tuple[Any]:
        kinds = real.cudaMemcpyKind
        what = {
            kinds.cudaMemcpyHostToDevice: "to device",
            kinds.cudaMemcpyDeviceToHost: "to host",
            kinds.cudaMemcpyDeviceToDevice: "on device",
        }[kind]
        assert (source in self._hosts(source)) == (what == "to device"), what
        assert (to in self._hosts(to)) == (what == "to host"), what
        overlap = source < to + size and to < source + size
        assert not overlap, f"a copy of {size} bytes from {source:#x} to {to:#x} overlaps itself"

        def do() -> None:
            self._there(to, size)[:] = self._there(source, size)

        self.put(stream, _Operation(f"{what} {size}", [(to, size), (source, size)], do))
        return (self._fault("cudaMemcpyAsync"),)

    def _hosts(self, address: int) -> list[int]:
        """The address, where it is page-locked memory of the host's."""
        inside = (start <= address < start + len(one) for start, one in self.host.items())
        return [address] if any(inside) else []


class DataType(enum.Enum):
    """Some of TensorRT's."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    BF16 = 7


class TensorIOMode(enum.Enum):
    """TensorRT's."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    """TensorRT's."""

    STATIC = 0
    USER_MANAGED = 2


class TensorRTStandIn:
    """TensorRT's module. A plan is JSON, see `plan`."""

    __version__ = "10.3.0"
    DataType = DataType
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, cuda: CudaStandIn) -> None:
        self.cuda = cuda

    def Runtime(self, log: Any) -> "RuntimeStandIn":
        return RuntimeStandIn(self.cuda, log)


class _Owner:
    """Something of TensorRT's that must outlive what was made with it."""

    kind = ""

    def __init__(self, cuda: CudaStandIn) -> None:
        self.cuda = cuda
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()

    def __del__(self) -> None:
        if len(self.made):
            self.cuda.faults.append(f"{self.kind} was destroyed before what it had made")
        self.cuda.calls.append(f"destroy {self.kind}")


class RuntimeStandIn(_Owner):
    """TensorRT's Runtime."""

    kind = "runtime"
    engine_host_code_allowed = True

    def __init__(self, cuda: CudaStandIn, log: Any) -> None:
        super().__init__(cuda)
        self.log = log

    def deserialize_cuda_engine(self, plan: bytes) -> "EngineStandIn | None":
        assert self.engine_host_code_allowed is False, "a plan may bring code along"
        try:
            found = json.loads(plan)
        except ValueError:
            self.log.said(
                "[runtime.cpp] Serialization assertion failed. Version tag does not match"
            )
            return None
        engine = EngineStandIn(self.cuda, found, self.log)
        self.made.add(engine)
        return engine


class EngineStandIn(_Owner):
    """TensorRT's ICudaEngine."""

    kind = "engine"

    def __init__(self, cuda: CudaStandIn, plan: dict[str, Any], log: Any) -> None:
        super().__init__(cuda)
        self.plan = plan
        self.log = log
        self.num_io_tensors = len(plan["tensors"])
        self.num_optimization_profiles = len(plan["batches"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.plan["tensors"])[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.plan["tensors"][name][1]]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self.plan["tensors"][name][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.plan["tensors"][name][2]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        least, most = self.plan["batches"][profile]
        shape = self.plan["tensors"][name][2][1:]
        return [[least, *shape], [most, *shape], [most, *shape]]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.plan["scratch"][profile]

    def create_execution_context(self, strategy: Any) -> "ContextStandIn | None":
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self.plan.get("fault") == "context":
            self.log.said("[executionContext.cpp] out of memory")
            return None
        context = ContextStandIn(self)
        self.made.add(context)
        return context


class ContextStandIn:
    """TensorRT's IExecutionContext."""

    def __init__(self, engine: EngineStandIn) -> None:
        self.cuda, self.plan, self.log = engine.cuda, engine.plan, engine.log
        self.profile: int | None = None
        self.memory: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def __del__(self) -> None:
        self.cuda.calls.append("destroy context")

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.cuda.put(stream, _Operation(f"profile {profile} of {self.plan['name']}", []))
        self.profile, self.memory, self.shapes = profile, None, {}
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.profile is not None, "how much is needed depends on the profile"
        assert size >= self.plan["scratch"][self.profile], "too little scratch memory"
        assert address % 256 == 0
        self.cuda.calls.append(f"scratch {size} for {self.plan['name']}")
        self.memory = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "no profile is set"
        assert self.plan["tensors"][name][0] == "INPUT"
        least, most = self.plan["batches"][self.profile]
        assert least <= shape[0] <= most, f"{shape} is outside the profile {self.profile}"
        self.cuda.calls.append(f"shape {shape[0]} for {self.plan['name']}")
        self.shapes[name] = shape
        return self.plan.get("fault") != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.plan["tensors"]
        self.addresses[name] = address
        return self.plan.get("fault") != "address"

    def execute_async_v3(self, stream: int) -> bool:
        assert stream, "the default stream"
        if self.plan.get("fault") == "execute":
            self.log.said("[executionContext.cpp] an illegal memory access was encountered")
            return False
        tensors = self.plan["tensors"]
        assert self.profile is not None, "no profile is set"
        assert self.memory is not None, "no scratch memory is set"
        assert self.addresses.keys() == tensors.keys(), "an address is missing"
        inputs = {name for name, (mode, _, _) in tensors.items() if mode == "INPUT"}
        assert self.shapes.keys() == inputs, "a shape is missing"
        (rows,) = {shape[0] for shape in self.shapes.values()}
        uses = [self.memory]
        for name, (_, dtype, shape) in tensors.items():
            width = {"FLOAT": 4, "HALF": 2, "INT8": 1}[dtype]
            uses.append((self.addresses[name], rows * int(np.prod(shape[1:])) * width))
        self.cuda.put(stream, _Operation(f"run {self.plan['name']} on {rows}", uses))
        return True


class OnnxRuntimeStandIn:
    """ONNX Runtime's module, as a build with CUDA has it, under the real one's options."""

    __version__ = "1.23.0"

    def __init__(self, cuda: CudaStandIn) -> None:
        import onnxruntime

        self.cuda = cuda
        self.RunOptions = onnxruntime.RunOptions
        self.SessionOptions = onnxruntime.SessionOptions
        self.available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.started = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.on_cpu = b""
        """The graph that is made of a model that has nodes on the processor."""

    def get_available_providers(self) -> list[str]:
        return self.available

    def InferenceSession(self, content: bytes, options: Any, **how: Any) -> "SessionStandIn":
        ((provider, settings),) = how["providers"]
        assert (provider, how["enable_fallback"]) == ("CUDAExecutionProvider", False)
        plan = json.loads(content)
        if self.on_cpu:
            if not options.optimized_model_filepath:
                key = "session.disable_cpu_ep_fallback"
                assert options.get_session_config_entry(key) == "1"
                raise RuntimeError(
                    "This session contains graph nodes that are assigned to the default CPU EP, "
                    "but fallback to CPU EP has been explicitly disabled by the user."
                )
            Path(options.optimized_model_filepath).write_bytes(self.on_cpu)
        return SessionStandIn(self, plan, int(settings["user_compute_stream"]))


class SessionStandIn:
    """An InferenceSession on a stream of the user's."""

    def __init__(self, module: OnnxRuntimeStandIn, plan: dict[str, Any], stream: int) -> None:
        self.cuda, self.plan, self.stream = module.cuda, plan, stream
        self._providers = module.started
        self.cuda.streams[stream].users.add(self)

    def __del__(self) -> None:
        self.cuda.calls.append("destroy session")

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> "BindingStandIn":
        return BindingStandIn(self.plan)

    def get_outputs(self) -> list[Any]:
        names = [name for name, one in self.plan["tensors"].items() if one[0] == "OUTPUT"]
        return [SimpleNamespace(name=name) for name in names]

    def run_with_iobinding(self, binding: "BindingStandIn", options: Any = None) -> None:
        if options is not None:
            key = "disable_synchronize_execution_providers"
            assert options.get_run_config_entry(key) == "1", "every run would wait"
        if self.plan.get("fault") == "execute":
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered\nmore")
        assert binding.given.keys() | binding.asked == self.plan["tensors"].keys()
        (rows,) = {shape[0] for shape, _, _ in binding.given.values()}
        uses = [
            (at, int(np.prod(shape)) * dtype.itemsize)
            for shape, dtype, at in binding.given.values()
        ]
        self.cuda.put(self.stream, _Operation(f"run {self.plan['name']} on {rows}", uses))
        if options is None:
            self.cuda.cudaStreamSynchronize(self.stream)


class BindingStandIn:
    """An IOBinding."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.given: dict[str, tuple[tuple[int, ...], np.dtype[Any], int]] = {}
        self.asked: set[str] = set()

    def bind_input(self, name: str, *how: Any) -> None:
        self._bind("INPUT", name, *how)

    def bind_output(self, name: str, device: str, *how: Any) -> None:
        if how:
            return self._bind("OUTPUT", name, device, *how)
        return self.asked.add(name)

    def get_outputs(self) -> list[Any]:
        shapes = [self.plan["tensors"][name][2] for name in self.plan["tensors"]]
        return [SimpleNamespace(shape=lambda one=one: [1, *one[1:]]) for one in shapes[1:]]

    def _bind(
        self, mode: str, name: str, device: str, number: int, dtype: Any, shape: Any, address: int
    ) -> None:
        assert (device, number) == ("cuda", 0)
        wanted, kind, sizes = self.plan["tensors"][name]
        names = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8"}
        if (wanted, names[kind], sizes[1:]) != (mode, dtype.name, [*shape[1:]]):
            raise RuntimeError(f"Unexpected input data type or shape for {name}")
        self.given[name] = tuple(shape), dtype, address


EXITS, CLASSES, FEATURES = 3, 4, 6


def plan(depth: int, **changes: Any) -> bytes:
    """The plan of a chain's segment: features of half precision, logits in single."""
    tensors = {
        f"f{depth - 1}" if depth else "x": ["INPUT", "HALF" if depth else "FLOAT", [-1, FEATURES]],
        f"z{depth}": ["OUTPUT", "FLOAT", [-1, CLASSES]],
        f"f{depth}": ["OUTPUT", "HALF", [-1, FEATURES]],
    }
    if depth == EXITS - 1:
        del tensors[f"f{depth}"]
    found = {
        "name": f"segment-{depth + 1}",
        "tensors": tensors,
        "batches": [[1, 1], [2, 8]],
        # The second segment wants most.
        "scratch": [[100, 800], [300, 2400], [200, 1600]][depth],
    }
    return json.dumps(found | changes).encode()


def plans(**changes: dict[str, Any]) -> list[bytes]:
    """The plans of the chain; `segment_2={...}` changes that one's."""
    return [plan(depth, **changes.get(f"segment_{depth + 1}", {})) for depth in range(EXITS)]


def spec(threshold: float = 0.5) -> ChainSpec:
    """What the plans are a chain of."""
    tensors = {"x": TensorSpec("float32", (None, FEATURES))}
    segments = []
    for depth in range(EXITS):
        last = depth == EXITS - 1
        tensors[f"z{depth}"] = TensorSpec("float32", (None, CLASSES))
        if not last:
            tensors[f"f{depth}"] = TensorSpec("float16", (None, FEATURES))
        given = (f"f{depth - 1}" if depth else "x",)
        outputs = (f"z{depth}",) if last else (f"z{depth}", f"f{depth}")
        exits = (Exit(f"exit{depth}", f"z{depth}"),)
        segments.append(Segment("", 0, "", f"segment-{depth + 1}", given, outputs, exits, 0, 0))
    return ChainSpec(
        (Input("x", "float32", (FEATURES,), None),),
        tuple(f"class {index}" for index in range(CLASSES)),
        tensors,
        tuple(segments),
        Policy("max_prob", (threshold,) * (EXITS - 1)),
        most_rows=8,
    )


def world(monkeypatch: Any) -> Iterator[CudaStandIn]:
    """A machine with a GPU, as long as a test takes; nothing may be left of what ran on it."""
    import gc

    from edgekit.runtime import cuda, tensorrt_api
    from edgekit.runtime.engines import onnxruntime_cuda

    found = CudaStandIn()
    module = TensorRTStandIn(found)
    monkeypatch.setattr(cuda, "_found", [cuda.CudaPython(found)])
    api = tensorrt_api.TensorRT(module, "tensorrt", module.__version__, tensorrt_api.Log())
    monkeypatch.setattr(tensorrt_api, "_found", {"tensorrt": api})
    monkeypatch.setattr(onnxruntime_cuda, "onnxruntime", OnnxRuntimeStandIn(found))
    yield found
    gc.collect()
    assert not found.faults
    assert not found.device, "device memory is left"
    assert not found.host, "page-locked memory is left"
    assert not found.streams, "a stream is left"
