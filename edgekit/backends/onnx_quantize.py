"""How an ONNX segment comes to lower precision, through onnxruntime's own tools.

INT8 is in Q/DQ form with weights per channel. A boundary tensor crosses as integers where both its
maker and its readers are quantized: the maker's last DequantizeLinear and the readers' first
QuantizeLinear go, and both sides share scale and zero point.
"""

import io
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgekit.backends import Array, Crossing, Features, is_mask
from edgekit.backends.onnx_graph import head_nodes, masked_nodes, with_names
from edgekit.backends.onnx_trained import retyped, unquantized, weight_steps
from edgekit.recipe import Quantize
from edgekit.stages import Part

__all__ = ["to_float16", "to_int8", "to_int8_dynamic"]

_INTEGER_OPERATORS = [
    *("Conv", "MatMul", "Gemm", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Concat", "Split", "Slice", "Pad"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather"),
]
"""What ONNX Runtime's CPU kernels do on integers, less Softmax: its 1/256 steps cost accuracy.

The rest (LayerNormalization, ConvTranspose, ...) would only be put between Q/DQ and stay float.
"""

_ACTIVATIONS = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


def to_int8(
    part: Part[bytes],
    features: Features,
    entering: Mapping[str, Crossing],
    options: Quantize,
    activations: str,
) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
    """The part in Q/DQ form, and how each boundary tensor that it gives as integers crosses.

    `features` gives float inputs `[batch, ...]` by name, anew on each call; `entering` says which
    inputs are integers. Heads, logits and confidences stay float32.
    """
    model = with_names(onnx.load_from_string(part.program))
    trained = unquantized(model)
    retyped(model, activations)
    masks = {name for batch in features() for name, values in batch.items() if is_mask(values)}
    floats = head_nodes(model, part.looked_at) | masked_nodes(model, masks)
    _shield_logits(model, part)
    kind = _ACTIVATIONS[activations]
    quantized = [node for node in model.graph.node if node.name not in floats]
    touched = {name for node in quantized for name in (*node.input, *node.output)}
    known = {name: one for name, one in trained.items() if name in touched} | dict(entering)
    shared = {name: [_override(one, activations)] for name, one in known.items()}
    if trained:
        shared |= {
            name: [{"axis": axis, **_override(Crossing("int8", step), "int8")} for step in steps]
            for name, (axis, steps) in weight_steps(model, floats).items()
        }
    extra = {
        # Signed activations keep a zero point: what a ReLU gives is never negative, and symmetric
        # it would use half of the steps, and the ReLU itself would have to stay, in float.
        "ActivationSymmetric": False,
        "WeightSymmetric": True,
        "TensorQuantOverrides": shared,
    }
    if options.method != "minmax":
        # A batch at a time: a histogram collector keeps every tensor of what it is given at once.
        extra["CalibStridedMinMax"] = 1
    # The collectors of histograms print what they do.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            path,
            _Reader(features),
            per_channel=True,
            activation_type=kind,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_INTEGER_OPERATORS,
            nodes_to_exclude=sorted(floats),
            calibrate_method=_METHODS[options.method],
            extra_options=extra,
        )
        model = onnx.load(path)
    # Types change below, and whoever reads the model infers them.
    del model.graph.value_info[:]
    leaving = {}
    for name in part.outputs:
        if name not in part.looked_at and (found := _leave_as_integers(model, name)):
            leaving[name] = found
    for name, crossing in entering.items():
        _enter_as_integers(model, name, crossing)
    return model, leaving


def _override(crossing: Crossing, dtype: str) -> dict[str, Any]:
    """A scale and a zero point as the quantizer wants them, for integers of this type."""
    least = {"int8": -128, "uint8": 0}
    zero_point = crossing.zero_point - least[crossing.dtype] + least[dtype]
    return {
        "quant_type": _ACTIVATIONS[dtype],
        "scale": np.array(crossing.scale, np.float32),
        "zero_point": np.array(zero_point, dtype),
    }


def to_int8_dynamic(part: Part[bytes]) -> onnx.ModelProto:
    """The part with INT8 weights, per channel, whose activations' ranges are read at run time."""
    model = with_names(onnx.load_from_string(part.program))
    unquantized(model)
    heads = head_nodes(model, part.looked_at)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # A Gemm is first made a MatMul and an Add, under these names.
            nodes_to_exclude=sorted(heads | {f"{name}_MatMul" for name in heads}),
        )
        model = onnx.load(path)
    del model.graph.value_info[:]
    return model


def to_float16(
    part: Part[bytes], entering: Mapping[str, Crossing]
) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
    """The part in float16, boundaries too; the network's input, heads and logits stay float32."""
    model = with_names(onnx.load_from_string(part.program))
    unquantized(model)
    looked_at = set(part.looked_at)
    heads = head_nodes(model, looked_at)
    wide = [name for name in part.inputs if name not in entering] + sorted(looked_at)
    model = convert_float_to_float16(
        model,
        keep_io_types=wide,
        node_block_list=sorted(heads),
    )
    _join_floats(model, heads)
    del model.graph.value_info[:]
    halves = {
        one.name
        for one in model.graph.output
        if one.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    leaving = {name: Crossing("float16") for name in part.outputs if name in halves}
    return model, leaving


def _join_floats(model: onnx.ModelProto, heads: set[str]) -> None:
    """Take the float32 of a head's operators as it is, where it is cast to float16 and back.

    The converter casts around each of them, and would round what they give to eleven bits.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        narrow = makers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if narrow is not None and _casts_to(narrow, TensorProto.FLOAT16):
            source = makers.get(narrow.input[0])
            if source is not None and source.name in heads:
                node.input[0] = narrow.input[0]
    read = {name for node in model.graph.node for name in node.input}
    read |= {one.name for one in model.graph.output}
    for node in list(model.graph.node):
        if _casts_to(node, TensorProto.FLOAT16) and node.output[0] not in read:
            model.graph.node.remove(node)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


class _Reader(CalibrationDataReader):
    """Features as onnxruntime's calibration asks for them: all, or one batch after `set_range`."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._batches = features()
        self._left: int | None = None

    def get_next(self) -> dict[str, Array] | None:
        if self._left == 0:
            return None
        if self._left is not None:
            self._left -= 1
        return next(self._batches, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = end_index - start_index

    def __len__(self) -> int:
        return sum(1 for _ in self._features())


def _shield_logits(model: onnx.ModelProto, part: Part[bytes]) -> None:
    """Let later operators read an exit's logits, or its confidence, through an Identity.

    A tensor that a quantized operator reads is quantized for all; these must not be.
    """
    for name in part.looked_at:
        readers = [node for node in model.graph.node if name in node.input]
        if not readers:
            continue
        copy = f"{name}_read"
        _replace(readers, name, copy)
        place = list(model.graph.node).index(readers[0])
        identity = helper.make_node("Identity", [name], [copy], name=f"{copy}-Identity")
        model.graph.node.insert(place, identity)


def _leave_as_integers(model: onnx.ModelProto, name: str) -> Crossing | None:
    """Give the output `name` as integers, if it is a DequantizeLinear's; None if it stays float."""
    makers = {output: node for node in model.graph.node for output in node.output}
    dequantize = makers[name]
    if dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in makers:
        return None
    integers, floats = dequantize.input[0], f"{name}_float"
    _replace(model.graph.node, name, floats)
    _replace(model.graph.node, integers, name)
    makers[integers].output[0] = name
    dequantize.output[0] = floats
    if not any(floats in node.input for node in model.graph.node):
        model.graph.node.remove(dequantize)
    constants = {one.name: one for one in model.graph.initializer}
    scale, zero_point = (numpy_helper.to_array(constants[one]) for one in dequantize.input[1:])
    crossing = Crossing(str(zero_point.dtype), float(scale), int(zero_point))
    _set_type(model.graph.output, name, crossing)
    return crossing


def _enter_as_integers(model: onnx.ModelProto, name: str, crossing: Crossing) -> None:
    """Take the input `name` as the integers that it is, instead of quantizing floats first."""
    _set_type(model.graph.input, name, crossing)
    readers = [node for node in model.graph.node if name in node.input]
    others = [node for node in readers if node.op_type != "QuantizeLinear"]
    for node in readers:
        if node.op_type == "QuantizeLinear":
            model.graph.node.remove(node)
            _replace(model.graph.node, node.output[0], name)
    if not others:
        return
    floats = f"{name}_float"
    _replace(others, name, floats)
    constants = {
        f"{floats}_scale": np.array(crossing.scale, np.float32),
        f"{floats}_zero_point": np.array(crossing.zero_point, crossing.dtype),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(value, one) for one, value in constants.items()
    )
    node = helper.make_node("DequantizeLinear", [name, *constants], [floats], name=floats)
    model.graph.node.insert(0, node)


def _replace(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let these nodes read `new` where they read `old`."""
    for node in nodes:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def _set_type(values: Iterable[onnx.ValueInfoProto], name: str, crossing: Crossing) -> None:
    (value,) = (one for one in values if one.name == name)
    kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[crossing.dtype]
    value.type.tensor_type.elem_type = kind
