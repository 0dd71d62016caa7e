"""One ONNX segment becomes a TensorRT engine: parsed, typed as it is, built for some batch sizes.

The network is strongly typed: what computes in float16 or on integers stands in the segment, and no
flag of the builder's changes it. So TensorRT 10, 11 and TensorRT-RTX make the same of one file.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgekit.errors import DeviceError
from edgekit.runtime.tensorrt_api import FULL, RTX, TensorRT

__all__ = ["Options", "Plan", "build_plan", "capabilities", "parse", "parsed"]

_REPORTED_S = 0.1
"""Steps may last microseconds; the progress display is told of one in so long."""

_REASON = re.compile(r"Error Code \d+: [^(]*\((.*)\)\s*$", re.DOTALL)
_PLACE = re.compile(r"\s*In \w+ at \S+$")
_NO_DRIVER = "driver version is insufficient"
_CANCELED = "canceled by user"
_MEMORY = re.compile(r"out ?of ?memory|workspace", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """What an engine is built for.

    `batch_sizes` ascend, and each has an optimization profile of its own: batches from one more
    than the size before up to it, and it is the one that the profile is optimal for.
    `workspace_bytes` limits the memory that a kernel may use beside its inputs and outputs; None
    leaves all of the GPU's. `compute_capability`, as "8.6", names a GPU that is not here, which
    TensorRT-RTX alone can build for; None means the GPU of this machine.
    """

    batch_sizes: tuple[int, ...]
    workspace_bytes: int | None = None
    compute_capability: str | None = None


class Plan(NamedTuple):
    """A built engine's bytes, and what its builder measured, for the next build on this device."""

    content: bytes
    timing_cache: bytes | None


def capabilities(tensorrt: TensorRT) -> tuple[str, ...]:
    """The compute capabilities, as "8.6", of the GPUs that are built for without having one.

    The full TensorRT measures on the GPU itself, so it has none.
    """
    if tensorrt.name != RTX:
        return ()
    found = [re.fullmatch(r"SM(\d+)(\d)", one) for one in dir(tensorrt.module.ComputeCapability)]
    numbers = sorted((int(one[1]), int(one[2])) for one in found if one)
    return tuple(f"{major}.{minor}" for major, minor in numbers)


def parse(tensorrt: TensorRT, segment: bytes, name: str) -> None:
    """Read the segment `name` as TensorRT does, and build nothing.

    Raises DeviceError that names the segment, and the ONNX node and operator that TensorRT refuses.
    """
    with tensorrt.log.listen() as said:
        parsed(tensorrt, tensorrt.make("Builder"), segment, name, said)


def build_plan(
    tensorrt: TensorRT,
    segment: bytes,
    name: str,
    options: Options,
    *,
    timing_cache: bytes | None = None,
    step: Callable[[str], None],
) -> Plan:
    """The engine of the ONNX file `segment`, whose `name` messages and progress have.

    `timing_cache` is an earlier plan's, and spares measuring the same kernels again; one that does
    not fit this device is left aside. TensorRT-RTX keeps none. `step` is told what the builder does
    just now, a few times a second, and what it raises ends the build: KeyboardInterrupt, too.

    Raises DeviceError that names the segment and the reason: an operator or a type that TensorRT or
    the GPU refuses, a size that varies behind the batch, a compute capability that is not known, or
    memory that does not suffice.
    """
    trt = tensorrt.module
    with tensorrt.log.listen() as said:
        builder = tensorrt.make("Builder")
        network = parsed(tensorrt, builder, segment, name, said)
        config = builder.create_builder_config()
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        _aim(tensorrt, config, options.compute_capability, name)
        for least, most in _ranges(options.batch_sizes):
            config.add_optimization_profile(_profile(builder, network, least, most, name))
        if tensorrt.name == FULL:
            _recall(config, timing_cache)
        watcher = _watcher(trt, name, step)
        config.progress_monitor = watcher
        with _failing(said, name, options, watcher):
            content = builder.build_serialized_network(network, config)
            if content is None:
                raise RuntimeError("TensorRT gives no reason")
        measured = bytes(config.get_timing_cache().serialize()) if tensorrt.name == FULL else None
        return Plan(bytes(content), measured)


def parsed(tensorrt: TensorRT, builder: Any, segment: bytes, name: str, said: list[str]) -> Any:
    """The segment as a network of the builder's; `said` is what the log hears. Raises as parse."""
    trt = tensorrt.module
    # In TensorRT 11 there is no other network, and the flag says nothing any more.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, tensorrt.log)
    read = parser.parse(segment)
    if not read and parser.num_errors:
        raise DeviceError(_refused(parser.get_error(0), name, str(tensorrt)))
    # What is no ONNX at all may be read as a model of nothing.
    if not read or not network.num_outputs:
        why = f": {_reason(said)}" if said else ""
        raise DeviceError(f"{name}: is no ONNX model{why}; build the bundle again")
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        if -1 in tuple(tensor.shape)[1:]:
            raise DeviceError(
                f"{name}: the size of {tensor.name} varies ({_sizes(tensor.shape)}), and TensorRT "
                "engines are built for one size: give input.shape without a range"
            )
    return network


def _refused(error: Any, name: str, version: str) -> str:
    """Words about what the parser refuses: the node, its operator, and why."""
    reason = _sentence(error.desc())
    if not error.node_operator():
        return f"{name}: {version} cannot read it: {reason}; build the bundle again"
    # The check of an operator may give the condition's value for a reason.
    why = "" if reason in {"", "false"} else f": {reason}"
    return (
        f"{name}: {version} does not take operator {error.node_operator()} of node "
        f"{error.node_name()!r}{why}; compute the same with other operators of PyTorch, or end at "
        "an exit before it"
    )


def _aim(tensorrt: TensorRT, config: Any, capability: str | None, name: str) -> None:
    """Say what GPU to build for."""
    known = capabilities(tensorrt)
    if capability is not None and capability not in known:
        can = f"it can for {', '.join(known)}" if known else "it builds for the GPU beside it only"
        raise DeviceError(
            f"{name}: {tensorrt} cannot build for compute capability {capability} from here; {can}"
        )
    if tensorrt.name == RTX:
        # Left alone it builds for several GPUs, none of them as old as a T4.
        which = "CURRENT" if capability is None else f"SM{capability.replace('.', '')}"
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tensorrt.module.ComputeCapability, which), 0)


def _ranges(batch_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The least and greatest batch of each profile."""
    return [
        (before + 1, size) for before, size in zip((0, *batch_sizes), batch_sizes, strict=False)
    ]


def _profile(builder: Any, network: Any, least: int, most: int, name: str) -> Any:
    """The profile of batches from `least` to `most`, for all inputs alike."""
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        batch, *sizes = tensor.shape
        if batch != -1:
            raise DeviceError(
                f"{name}: the batch of {tensor.name} is fixed ({_sizes(tensor.shape)}), and an "
                "engine takes several; build the bundle again"
            )
        profile.set_shape(tensor.name, (least, *sizes), (most, *sizes), (most, *sizes))
    return profile


def _recall(config: Any, timing_cache: bytes | None) -> None:
    """Let the builder begin with what was measured before, where that is of this device."""
    known = config.create_timing_cache(timing_cache) if timing_cache else None
    if known is None or not config.set_timing_cache(known, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


@contextmanager
def _failing(said: list[str], name: str, options: Options, watcher: Any) -> Iterator[None]:
    """Inside, what goes wrong becomes one line, or what ended the build."""
    try:
        yield
    except RuntimeError as error:
        if watcher.stopped is not None:
            raise watcher.stopped from None
        reason = _reason(said) or str(error)
        # A signal that comes before the first line of a callback never gets to be kept.
        if _CANCELED in reason:
            raise KeyboardInterrupt from None
        raise DeviceError(
            f"{name}: no TensorRT engine: {reason}; {_remedy(reason, options)}"
        ) from None


def _remedy(reason: str, options: Options) -> str:
    """What to do about the reason."""
    if _NO_DRIVER in reason:
        return "TensorRT builds on the device, and here is no GPU with a driver for this CUDA"
    if _MEMORY.search(reason):
        limit = options.workspace_bytes
        now = "no limit" if limit is None else f"{limit:,} bytes"
        return (
            "end other programs that use the GPU's memory, or build the bundle with another "
            f"--set target.memory_bytes: a quarter of it is a kernel's to use ({now} now)"
        )
    if "FP32 GEMM" in reason:
        return "this GPU multiplies in float16 or on integers: build for fp16 or int8"
    return "compute the same with other operators of PyTorch, or end at an exit before it"


def _reason(said: Sequence[str]) -> str:
    """The first error of what TensorRT said, without the places in its own source."""
    errors = [one for one in said if "Error" in one] or list(said)
    # Without a GPU it complains of that beside every other error.
    errors = [one for one in errors if _NO_DRIVER not in one] or errors
    return _sentence(errors[0]) if errors else ""


def _sentence(text: str) -> str:
    """What an error of TensorRT's says, in one line."""
    lines = [one for one in text.strip().splitlines() if _NO_DRIVER not in one]
    coded = [one for one in lines if "Error Code" in one]
    line = (coded or lines or [text])[0]
    if found := _REASON.search(line):
        line = found[1]
    else:
        line = re.sub(r"^(In node \d+ .*?: |\(\w+\): )?[A-Z_]+: ", "", line)
    # One place at the end, and in front of each part of what a compiler inside has to say.
    line = re.sub(r"\[[\w.]+:\d+: \w+\] ", "", _PLACE.sub("", line))
    return line.strip().rstrip(".;")


def _sizes(shape: Sequence[int]) -> str:
    return "x".join("?" if size == -1 else str(size) for size in shape)


def _watcher(trt: Any, name: str, step: Callable[[str], None]) -> Any:
    """A monitor that tells `step` of the builder's phases, and keeps in `stopped` what it raised.

    TensorRT may call it from several threads at once; each call stands for itself.
    """

    class Watcher(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._told_s = float("-inf")

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            try:
                self._tell(phase_name, step_index)
            except BaseException as error:  # Behind it is C++; build_plan raises it again.
                self.stopped = error
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase_name: str, step_index: int) -> None:
            now_s = time.monotonic()
            if now_s - self._told_s < _REPORTED_S:
                return
            self._told_s = now_s
            of = self._steps.get(phase_name)
            step(f"{name}: {phase_name} {step_index + 1}{f'/{of}' if of else ''}")

    return Watcher()
