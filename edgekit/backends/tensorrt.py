"""TensorRT: segments as ONNX models whose types say what computes in what.

The engines are built on the device, out of these files. Nothing here needs TensorRT or a GPU; the
build's checks run the same files in ONNX Runtime.
"""

from collections.abc import Mapping, Sequence

import onnx

from edgekit.backends import Crossing, Features, IntegerWork
from edgekit.backends.onnx_graph import costs, head_nodes, with_names
from edgekit.backends.onnx_typed import int8_operators, to_typed_float16, to_typed_int8
from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.errors import BuildError
from edgekit.recipe import Quantize
from edgekit.stages import Part
from edgekit.target import Target

__all__ = ["TensorRTBackend"]

_INT8_OPSET = 19
"""From here on DequantizeLinear gives float16."""


class TensorRTBackend(OnnxRuntimeBackend):
    """See `edgekit.backends.Backend`."""

    wants_features = frozenset({"fp16", "int8"})
    integer_remedy = (
        "integers are for convolutions and matrix products with constant weights; products of two "
        "activations, recurrent layers and what a mask touches stay in float16: lower "
        "quantize.min_integer_share, or build for fp16"
    )

    def _converted(
        self,
        part: Part[bytes],
        features: Features | None,
        entering: Mapping[str, Crossing],
        later: Sequence[Part[bytes]],
        options: Quantize,
        target: Target,
    ) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
        if target.precision == "fp16" and features is not None:
            return to_typed_float16(part, features, entering)
        if target.precision != "int8" or features is None:
            raise BuildError(
                f"TensorRT has no {target.precision}: --set target.precision=int8, fp16 or fp32"
            )
        if target.opset < _INT8_OPSET:
            raise BuildError(
                f"INT8 for TensorRT needs ONNX opset {_INT8_OPSET} or newer, and target.opset is "
                f"{target.opset}: raise it, or --set target.precision=fp16"
            )
        return to_typed_int8(part, features, entering, later, options)

    def integer_work(
        self,
        before: Part[bytes],
        after: Part[bytes],
        target: Target,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> IntegerWork:
        """See `Backend.integer_work`."""
        original = with_names(onnx.load_from_string(before.program))
        heads = head_nodes(original, before.looked_at)
        integer = int8_operators(onnx.load_from_string(after.program))
        # What multiplies keeps its name and its shapes: only Q/DQ and casts come beside it.
        done = [one for one in costs(original, shapes) if one.node not in heads]
        floats = [one for one in done if one.node not in integer]
        floats.sort(key=lambda one: one.macs, reverse=True)
        return IntegerWork(
            sum(one.macs for one in done),
            sum(one.macs for one in done if one.node in integer),
            tuple((one.node, one.operator, one.macs) for one in floats),
        )
