"""TensorRT, or TensorRT-RTX, on a GPU: plans that a device built from a bundle's segments.

The engines of a chain put their work on one stream and share one scratch block, since they run in
turn. Each has an execution context for every optimization profile that was asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edgekit.errors import DeviceError, PlanError
from edgekit.runtime import cuda
from edgekit.runtime.cuda_memory import CudaMemory, DeviceBuffer
from edgekit.runtime.tensorrt_api import TensorRT, find

__all__ = ["TensorRTEngine", "load"]

_AGAIN = "build it again on this device: edgekit install BUNDLE --rebuild"

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's names of dtypes, and numpy's; what is missing here no numpy array has."""


class _Tensor(NamedTuple):
    """What a plan says of an input or output: -1 in `shape` is a size that varies."""

    is_input: bool
    dtype: str
    shape: tuple[int, ...]


class _Binding(NamedTuple):
    """The buffers that a context is to run on, kept alive, and how many samples of them.

    A context remembers its `token` alone, so buffers that nobody will run on again can go.
    """

    token: object
    shapes: list[tuple[str, tuple[int, ...]]]
    addresses: list[tuple[str, int]]
    buffers: list[DeviceBuffer]


class _Context:
    """An execution context in its profile, and which buffers and scratch block it is set to.

    The order of what it holds is the order in which Python lets go of it:
    TensorRT wants a context gone before its engine, and that before its runtime.
    """

    def __init__(
        self, context: Any, engine: Any, runtime: Any, memory: CudaMemory, scratch_bytes: int
    ) -> None:
        self._context = context
        self._scratch_bytes = scratch_bytes
        self.execute: Callable[[int], bool] = context.execute_async_v3
        self._engine = engine
        self._runtime = runtime
        self.memory = memory
        self.token: object = None
        self.scratch = 0

    def turn_to(self, binding: _Binding) -> str | None:
        """Run on these buffers from now on; what TensorRT refuses of that, if it does."""
        self.token = None
        memory = self.memory
        # There is none left where somebody asked for more than there was room for.
        memory.demand_scratch(self._scratch_bytes)
        if memory.scratch is not None and self.scratch != memory.scratch_changes:
            self._context.set_device_memory(memory.scratch.address, memory.scratch.shape[0])
            self.scratch = memory.scratch_changes
        for name, shape in binding.shapes:
            if not self._context.set_input_shape(name, shape):
                return f"{list(shape)} for {name}"
        for name, address in binding.addresses:
            if not self._context.set_tensor_address(name, address):
                return f"a buffer for {name}"
        self.token = binding.token
        return None


class TensorRTEngine:
    """A segment's plan, deserialized. Its attributes go in this order, see `_Context`."""

    def __init__(
        self, engine: Any, runtime: Any, memory: CudaMemory, tensorrt: TensorRT, name: str
    ) -> None:
        self._contexts: dict[int, _Context] = {}
        self._engine = engine
        self._runtime = runtime
        self.memory = memory
        self.version = ""
        self._name = name
        self._tensorrt = tensorrt
        self._tensors = dict(_tensors(engine, tensorrt.module))

    def bind(
        self, inputs: Mapping[str, DeviceBuffer], outputs: Mapping[str, DeviceBuffer], rows: int
    ) -> Callable[[], None]:
        """See `Engine.bind`.

        Raises PlanError where the plan has another contract than the buffers, DeviceError for more
        samples than it was built for.
        """
        self._check(inputs, outputs)
        profile = self._profile(rows)
        memory, log = self.memory, self._tensorrt.log
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._context(profile)
        given = {**inputs, **outputs}
        token = object()
        binding = _Binding(
            token,
            [(name, (rows, *one.shape[1:])) for name, one in inputs.items()],
            [(name, one.address) for name, one in given.items()],
            list(given.values()),
        )
        stream = memory.stream

        def turn() -> None:
            with log.listen() as said:
                refused = context.turn_to(binding)
            if refused is not None:
                raise DeviceError(f"{self._tensorrt} refuses {refused} ({self._name}){_why(said)}")

        def call() -> None:
            # Whose turn it is changes with the number of samples, or where a policy's copy runs.
            if context.token is not token or context.scratch != memory.scratch_changes:
                turn()
            if not context.execute(stream):
                with log.listen() as said:
                    context.execute(stream)  # Only to hear why: listening costs time in every call.
                raise DeviceError(
                    f"{self._tensorrt} failed to run {self._name}{_why(said)}: start the program "
                    f"anew; if it stays, {_AGAIN}"
                )
            memory.ran()

        turn()
        return call

    def shapes(self, inputs: Mapping[str, DeviceBuffer]) -> dict[str, tuple[int, ...]]:
        """See `Engine.shapes`: sizes do not vary here. Raises DeviceError."""
        raise DeviceError(
            f"{self._name}: a TensorRT engine is built for one size, and this network's sizes "
            "vary: give the recipe's input one shape, or use the engine onnxruntime"
        )

    def _check(
        self, inputs: Mapping[str, DeviceBuffer], outputs: Mapping[str, DeviceBuffer]
    ) -> None:
        """Refuse a plan that is not of this segment: it would write where it must not."""
        given = {name: (True, one) for name, one in inputs.items()}
        given |= {name: (False, one) for name, one in outputs.items()}
        for name in given.keys() ^ self._tensors.keys():
            where = "the plan" if name in given else "the manifest"
            raise PlanError(f"{self._name}: {where} has no tensor {name!r}: {_AGAIN}")
        for name, (is_input, buffer) in given.items():
            one = self._tensors[name]
            fits = len(one.shape) == len(buffer.shape) and all(
                size in {-1, there}
                for size, there in zip(one.shape[1:], buffer.shape[1:], strict=True)
            )
            if not fits or one.dtype != buffer.dtype.name or one.is_input != is_input:
                raise PlanError(
                    f"{self._name}: the plan has {name!r} as {_words(*one)}, and the manifest says "
                    f"{_words(is_input, buffer.dtype.name, (-1, *buffer.shape[1:]))}: {_AGAIN}"
                )

    def _profile(self, rows: int) -> int:
        """The optimization profile for so many samples."""
        number = self._engine.num_optimization_profiles
        batches = [_batches(self._engine, self._tensors, profile) for profile in range(number)]
        for profile, sizes in enumerate(batches):
            if rows in sizes:
                return profile
        words = ", ".join(
            f"{one[0]}" if len(one) == 1 else f"{one[0]} to {one[-1]}" for one in batches
        )
        raise DeviceError(
            f"{self._name} was built for batches of {words}; found {rows}: run fewer samples at "
            "once, or build the bundle for more"
        )

    def _context(self, profile: int) -> _Context:
        strategy = self._tensorrt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._tensorrt.log.listen() as said:
            found = self._engine.create_execution_context(strategy)
            # How much scratch a context wants depends on the profile, so that comes first.
            if found is None or not found.set_optimization_profile_async(
                profile, self.memory.stream
            ):
                raise DeviceError(
                    f"{self._tensorrt} makes no context for {self._name}{_why(said)}: free some of "
                    f"the GPU's memory, or {_AGAIN}"
                )
        self.memory.ran()
        scratch_bytes = int(self._engine.get_device_memory_size_for_profile_v2(profile))
        return _Context(found, self._engine, self._runtime, self.memory, scratch_bytes)


def load(segments: Sequence[tuple[str, bytes]], *, threads: int) -> list[TensorRTEngine]:
    """An engine for each plan; `threads` mean nothing here.

    Raises DeviceError where there is no TensorRT, CUDA or GPU, PlanError where TensorRT refuses a
    plan: one of another version, another GPU, or damaged.
    """
    tensorrt = find()
    adapter = cuda.find()
    gpu = adapter.gpu()
    memory = CudaMemory(adapter)
    runtime = tensorrt.make("Runtime")
    runtime.engine_host_code_allowed = False  # A plan is data: none of ours brings code along.
    engines = []
    for name, content in segments:
        with tensorrt.log.listen() as said:
            found = runtime.deserialize_cuda_engine(content)
        if found is None:
            raise PlanError(
                f"{tensorrt} on {gpu.name} refuses the plan of {name}{_why(said)}: {_AGAIN}"
            )
        engine = TensorRTEngine(found, runtime, memory, tensorrt, name)
        engine.version = f"{tensorrt} on {gpu.name} ({gpu.compute_capability})"
        engines.append(engine)
    return engines


def _tensors(engine: Any, module: Any) -> list[tuple[str, _Tensor]]:
    """What a plan says of its inputs and outputs."""
    result = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        found = engine.get_tensor_dtype(name).name
        is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        result.append((name, _Tensor(is_input, _DTYPES.get(found, found.lower()), shape)))
    return result


def _batches(engine: Any, tensors: Mapping[str, _Tensor], profile: int) -> range:
    """How many samples may run at once under a profile."""
    for name, one in tensors.items():
        if one.is_input and one.shape[0] == -1:
            least, _, most = engine.get_tensor_profile_shape(name, profile)
            return range(int(least[0]), int(most[0]) + 1)
    fixed = next(one.shape[0] for one in tensors.values() if one.is_input)
    return range(fixed, fixed + 1)


def _words(is_input: bool, dtype: str, shape: tuple[int, ...]) -> str:
    return f"{'input' if is_input else 'output'} {dtype} {list(shape)}"


def _why(said: Sequence[str]) -> str:
    """What TensorRT said last, as a part of a line."""
    return f" ({said[-1].partition(chr(10))[0].strip()})" if said else ""
