"""What quantization-aware training left in an ONNX graph: scales of activations and weights."""

import numpy as np
import onnx
from onnx import numpy_helper

from edgekit.backends import Crossing, step_of

__all__ = ["retyped", "unquantized", "weight_steps"]

_ORDER_KEEPING = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
"""What gives values that it is given: quantizing before it is quantizing behind it."""


def unquantized(model: onnx.ModelProto) -> dict[str, Crossing]:
    """Take the pairs of QuantizeLinear and DequantizeLinear out of the model, in place.

    Returns how the tensors that they stood behind were quantized in training. So were those that
    such a tensor is only a rearrangement of, or the maximum.
    """
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    given = {one.name for one in graph.output}
    trained: dict[str, Crossing] = {}
    for dequantize in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantize = makers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        if len(quantize.input) < 3 or not constants.keys() >= set(quantize.input[1:3]):
            continue
        scale, zero_point = (numpy_helper.to_array(constants[x]) for x in quantize.input[1:3])
        source, pair = quantize.input[0], dequantize.output[0]
        old, new = pair, source
        if pair in given:
            maker = makers.get(source)
            if maker is None or source in given:
                continue  # The graph gives what it is given, or both: neither can have the name.
            maker.output[list(maker.output).index(source)] = pair
            dequantize.output[0] = f"{pair}_unread"
            makers[pair] = maker
            old, new = source, pair
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new
        trained[new] = Crossing(str(zero_point.dtype), float(scale), int(zero_point))
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = given | {name for node in graph.node for name in node.input}
        for node in [one for one in graph.node if one.op_type == kind]:
            if node.output[0] not in read:
                graph.node.remove(node)
    for node in reversed(graph.node):
        if node.op_type in _ORDER_KEEPING and node.output[0] in trained:
            trained.setdefault(node.input[0], trained[node.output[0]])
    return trained


def retyped(model: onnx.ModelProto, dtype: str) -> None:
    """Let the pairs that are left quantize to this type, `int8` or `uint8`, in place.

    That is where the graph gives what it is given, quantized: a boundary like any other.
    """
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and len(node.input) > 2:
            zero_point = numpy_helper.to_array(constants[node.input[2]])
            if zero_point.dtype != dtype and str(zero_point.dtype) in {"int8", "uint8"}:
                shift = int(np.iinfo(dtype).min) - int(np.iinfo(zero_point.dtype).min)
                name = f"{node.input[2]}_{dtype}"
                if name not in constants:
                    made = np.array(int(zero_point) + shift, dtype)
                    constants[name] = numpy_helper.from_array(made, name)
                    model.graph.initializer.append(constants[name])
                node.input[2] = name
                # What was inferred of the integers is so no more.
                del model.graph.value_info[:]


def weight_steps(model: onnx.ModelProto, without: set[str]) -> dict[str, tuple[int, list[float]]]:
    """The weights that lie on steps, by name: the channels' dimension, and each channel's step.

    `without` names nodes whose weights are not looked at. Training left them so; read from the
    values, since constants are folded.
    """
    constants = {one.name: one for one in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.name in without:
            continue
        tensor = constants.get(node.input[1])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        turned = any(one.name == "transB" and one.i for one in node.attribute)
        axis = 0 if node.op_type == "Conv" or turned else len(tensor.dims) - 1
        rows = np.moveaxis(numpy_helper.to_array(tensor), axis, 0)
        steps = [step for row in rows if (step := step_of(row)) is not None]
        # A channel of zeros has no step, and any will do; none that is nothing, though.
        if len(steps) == len(rows) and all(steps):
            found[node.input[1]] = (axis, steps)
    return found
