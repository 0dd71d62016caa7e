"""One ONNX segment becomes a TensorRT engine through torch2trt's ONNX mode.

For devices whose target names torch2trt as the builder. That mode exports a module and parses what
came out; here the segment itself is what comes out, so its types, names and Q/DQ are kept.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.errors import DeviceError
from edgekit.runtime.tensorrt_api import TensorRT
from edgekit.runtime.tensorrt_build import Options, Plan, parsed

__all__ = ["build_plan"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
}
_UNLIMITED_BYTES = 2**30


def build_plan(
    tensorrt: TensorRT,
    segment: bytes,
    name: str,
    options: Options,
    *,
    timing_cache: bytes | None = None,
    step: Callable[[str], None],
) -> Plan:
    """As `edgekit.runtime.tensorrt_build.build_plan`, of one profile for all batch sizes.

    torch2trt has no timing cache, and tells nothing of its progress. Raises DeviceError where it or
    PyTorch is not importable, or what it ends in, with the segment's name.
    """
    torch, torch2trt = _modules(name)
    if options.compute_capability is not None:
        raise DeviceError(f"{name}: torch2trt builds for the GPU beside it only")
    trt = tensorrt.module
    with tensorrt.log.listen() as said:
        network = parsed(tensorrt, tensorrt.make("Builder"), segment, name, said)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def filled(tensor: Any) -> Any:
        sizes = [1 if size == -1 else size for size in tuple(tensor.shape)]
        kind = getattr(torch, _DTYPES.get(tensor.dtype.name, "float32"))
        return torch.zeros(sizes, dtype=kind, device=device)

    module_class: Any = torch.nn.Module

    class Segment(module_class):
        def forward(self, *given: Any) -> Any:
            return tuple(filled(one) for one in outputs)

    def shapes(batch: int) -> list[tuple[int, ...]]:
        return [(batch, *tuple(one.shape)[1:]) for one in inputs]

    # TensorRT 11 has typed networks alone; before, a flag lets the types in the file be used.
    weak = hasattr(trt.BuilderFlag, "FP16")
    step(f"{name}: torch2trt")
    try:
        with _exporting(torch, segment):
            module = torch2trt.torch2trt(
                Segment().eval(),
                [filled(one) for one in inputs],
                input_names=[one.name for one in inputs],
                output_names=[one.name for one in outputs],
                use_onnx=True,
                fp16_mode=weak,
                int8_mode=weak and b"QuantizeLinear" in segment,
                qat_mode=True,
                max_workspace_size=options.workspace_bytes or _UNLIMITED_BYTES,
                min_shapes=shapes(1),
                opt_shapes=shapes(options.batch_sizes[0]),
                max_shapes=shapes(options.batch_sizes[-1]),
            )
        engine = module.engine
        content = engine.serialize() if hasattr(engine, "serialize") else engine
    except Exception as error:  # Of torch2trt's own making: anything may come.
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"{name}: torch2trt builds no engine: {type(error).__name__}: {reason}; build the "
            "bundle with --set target.gpu.builder=tensorrt"
        ) from error
    if content is None:
        raise DeviceError(
            f"{name}: torch2trt builds no engine and gives no reason; build the bundle with --set "
            "target.gpu.builder=tensorrt"
        )
    return Plan(bytes(content), None)


def _modules(name: str) -> tuple[Any, Any]:
    try:
        # By name: the device's code imports no torch but here, where a target asks for it.
        return importlib.import_module("torch"), importlib.import_module("torch2trt")
    except ImportError as error:
        raise DeviceError(
            f"{name}: the target's builder is torch2trt, which is not importable here ({error}): "
            "install it (github.com/NVIDIA-AI-IOT/torch2trt) beside PyTorch, or build the bundle "
            "with --set target.gpu.builder=tensorrt"
        ) from None


@contextmanager
def _exporting(torch: Any, segment: bytes) -> Iterator[None]:
    """Inside, whatever module is exported to ONNX, the segment is what comes out."""

    def export(*arguments: Any, **given: Any) -> None:
        place = given["f"] if "f" in given else arguments[2]
        if hasattr(place, "write"):
            place.write(segment)
        else:
            Path(place).write_bytes(segment)

    before = torch.onnx.export
    torch.onnx.export = export
    try:
        yield
    finally:
        torch.onnx.export = before
