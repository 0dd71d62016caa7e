"""How an ONNX segment is typed for TensorRT, which computes in the types that the file has.

float16 is a graph of float16 throughout. INT8 is explicit and symmetric: QuantizeLinear and
DequantizeLinear in front of what a convolution or a matrix product multiplies, none behind it, so
that bias, activation and residual addition fuse with it; what lies between is float16. A boundary
crosses as INT8 where a quantized operator of a later segment reads it, else as float16.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from edgekit.backends import Array, Crossing, Features, is_mask
from edgekit.backends.onnx_graph import head_nodes, masked_nodes, with_names
from edgekit.backends.onnx_trained import unquantized
from edgekit.errors import BuildError
from edgekit.quiet import quiet
from edgekit.recipe import Quantize
from edgekit.stages import Part

__all__ = ["int8_operators", "to_typed_float16", "to_typed_int8"]

_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 1}
"""What is quantized, and which dimension of its weight has the output channels, less `transB`.

A product of two activations is not: the kernels that fuse attention multiply in float16.
"""

_HALVES = {"Min", "Max", "TopK"}
"""What onnxruntime's converter leaves in float32, and ONNX and TensorRT have in float16."""

_STEPS = 127
"""Of a symmetric INT8 to either side of zero: -128 would have no counterpart."""

_BINS, _LEVELS, _PERCENTILE = {"entropy": 128}, 128, 99.999
"""Of histograms (2048 where not said), and the share of values in percent that `percentile` keeps.

As onnxruntime's own calibrators have them.
"""

_MOST = float(np.finfo(np.float16).max)


def to_typed_float16(
    part: Part[bytes], features: Features, entering: Mapping[str, Crossing]
) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
    """The part in float16 throughout, boundaries and heads too.

    The network's own float inputs stay float32 and are cast at once; logits and confidences are
    cast to float32 at the very end. `features` gives float inputs `[batch, ...]` by name. Raises
    BuildError where a tensor of theirs is beyond what float16 holds.
    """
    model = with_names(onnx.load_from_string(part.program))
    unquantized(model)
    _demand_halves(model, part, features)
    return _in_halves(model, part, entering)


def to_typed_int8(
    part: Part[bytes],
    features: Features,
    entering: Mapping[str, Crossing],
    later: Sequence[Part[bytes]],
    options: Quantize,
) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
    """The part with INT8 products and all else in float16, and how what it gives crosses.

    `features` gives float inputs `[batch, ...]` by name, anew on each call; `entering` says which
    inputs are integers or float16, `later` has the parts behind this one in its chain, before they
    are quantized. Heads multiply in float16; logits and confidences are float32. Raises BuildError
    where a tensor is beyond what float16 holds.
    """
    model = with_names(onnx.load_from_string(part.program))
    unquantized(model)
    masks = _demand_halves(model, part, features)
    nodes = _quantizable(model, part.looked_at, masks)
    wanted = {node.input[0] for node in nodes}
    wanted |= _read_later(later) & set(part.outputs) - set(part.looked_at)
    known = {name for name, one in entering.items() if one.dtype == "int8"}
    scales = {
        name: _scale(magnitude)
        # In the graph's order, and not in a set's, which is another in every process.
        for name, magnitude in _magnitudes(
            model, _in_order(model, wanted - known), features, options.method
        ).items()
        # What reaches beyond float16 (a mask that another part adds) has no scale.
        if magnitude <= _MOST
    }
    scales |= {name: np.float16(entering[name].scale) for name in known}
    nodes = [node for node in nodes if node.input[0] in scales]
    leaving = _place_activations(model, part, scales, known)
    _place_weights(model, nodes)
    model, halves = _in_halves(model, part, entering)
    return model, halves | leaving


def _demand_halves(model: onnx.ModelProto, part: Part[bytes], features: Features) -> set[str]:
    """Refuse a part that computes what no float16 holds; gives the inputs that are masks.

    ONNX Runtime computes float16 in float32 on a processor, so nothing else on the host would tell.
    What a mask touches is left out: beyond is where it wants to be, and it is cut to what there is.
    """
    masks = {
        name
        for batch in features()
        for name, values in batch.items()
        # A mask is far below zero, and never as far above.
        if is_mask(values) and not (values > _MOST).any()
    }
    touched = masked_nodes(model, masks)
    made = [name for node in model.graph.node if node.name not in touched for name in node.output]
    names = [*(one.name for one in model.graph.input if one.name not in masks), *filter(None, made)]
    for name, magnitude in _magnitudes(model, names, features, "minmax").items():
        if not magnitude <= _MOST:
            raise BuildError(
                f"{part.name}: tensor {name} reaches {magnitude:.3g}, and float16 ends at "
                f"{_MOST:,.0f}; scale the network's weights or its input down, or --set "
                "target.precision=fp32"
            )
    return masks


def int8_operators(model: onnx.ModelProto) -> set[str]:
    """The names of the nodes whose multiplied inputs all come through DequantizeLinear of int8.

    In a strongly typed network TensorRT must do these on integers.
    """
    whole = {one.name for one in model.graph.initializer if one.data_type == TensorProto.INT8}
    whole |= {
        one.name for one in model.graph.input if one.type.tensor_type.elem_type == TensorProto.INT8
    }
    whole |= {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    dequantized = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in whole
    }
    return {
        node.name
        for node in model.graph.node
        if node.op_type in _WEIGHT_AXIS and set(node.input[:2]) <= dequantized
    }


def _scale(magnitude: float) -> np.float16:
    """The least scale of float16 with which values up to `magnitude` are not clipped.

    The scale is rounded first and the values are divided by what it is then, so small ones, which
    have few bits or are subnormal, cost steps but add no error of their own.
    """
    if not magnitude:
        return np.float16(1)  # Of zeros, whatever it is.
    exact = magnitude / _STEPS
    near = np.float16(exact)
    return near if float(near) >= exact else np.nextafter(near, np.float16(np.inf))


def _quantizable(
    model: onnx.ModelProto, looked_at: Iterable[str], masks: Iterable[str] = ()
) -> list[onnx.NodeProto]:
    """The operators that are quantized: those with a weight, less heads and what masks touch."""
    floats = head_nodes(model, looked_at) | masked_nodes(model, masks)
    weights = {
        one.name: len(one.dims)
        for one in model.graph.initializer
        if one.data_type == TensorProto.FLOAT
    }
    return [
        node
        for node in model.graph.node
        if node.op_type in _WEIGHT_AXIS
        and node.name not in floats
        and node.input[0] not in weights
        and weights.get(node.input[1], 0) >= 2
    ]


def _read_later(later: Sequence[Part[bytes]]) -> set[str]:
    """The inputs of these parts that an operator reads which will be quantized."""
    found: set[str] = set()
    for part in later:
        model = with_names(onnx.load_from_string(part.program))
        read = {node.input[0] for node in _quantizable(model, part.looked_at)}
        found |= read & set(part.inputs)
    return found


def _in_order(model: onnx.ModelProto, names: set[str]) -> list[str]:
    made = [*(one.name for one in model.graph.input)]
    made += [name for node in model.graph.node for name in node.output]
    return [name for name in made if name in names]


def _magnitudes(
    model: onnx.ModelProto, names: Sequence[str], features: Features, method: str
) -> dict[str, float]:
    """How far these tensors reach from zero, by `quantize.method`."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    inputs = [one.name for one in model.graph.input]
    inner = [name for name in names if name not in inputs]
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = None
    if inner:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        with quiet():
            session = onnxruntime.InferenceSession(
                observed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
    bins = _BINS.get(method, 2048)
    collector = HistogramCollector(method, True, bins, _LEVELS, _PERCENTILE, "same")
    found = dict.fromkeys(names, 0.0)
    for batch in features():
        values = {name: batch[name] for name in names if name in batch}
        if session is not None:
            values |= dict(zip(inner, session.run(inner, dict(batch)), strict=True))
        for name, array in values.items():
            if array.dtype.kind == "f":
                found[name] = float(np.maximum(found[name], np.abs(array).max(initial=0)))
        if method != "minmax":
            finite = {name: array for name, array in values.items() if np.isfinite(array).all()}
            with redirect_stdout(io.StringIO()):  # The collector prints what it does.
                collector.collect(finite)
    if method != "minmax" and collector.get_histogram_dict():
        with redirect_stdout(io.StringIO()):
            ranges = collector.compute_collection_result()
        for name, bounds in ranges.items():
            if np.isfinite(found[name]):
                found[name] = min(found[name], max(abs(float(one)) for one in bounds[:2]))
    return found


def _place_activations(
    model: onnx.ModelProto, part: Part[bytes], scales: Mapping[str, np.float16], known: set[str]
) -> dict[str, Crossing]:
    """Put Q/DQ behind these tensors, for all who read them, and give and take integers at cuts.

    `known` are inputs that are integers already. Who reads a quantized tensor in float16 reads the
    same integers: it is kept once, and a residual connection stays on what its addition fuses with.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    places = {name: place for place, node in enumerate(graph.node) for name in node.output}
    crossing = set(part.outputs) - set(part.looked_at)
    leaving: dict[str, Crossing] = {}
    added: list[tuple[int, list[onnx.NodeProto]]] = []
    for name, scale in scales.items():
        readers = [node for node in graph.node if name in node.input]
        integers, floats = f"{name}_integers", f"{name}_dequantized"
        steps = [_constant(model, f"{name}_scale", scale)]
        steps.append(_constant(model, f"{name}_zero_point", np.int8(0)))
        nodes = []
        for node in readers:
            _read(node, name, floats)
        if name in known:
            integers = name
            _set_int8(graph.input, name)
        else:
            source = name
            if name in crossing and name in makers:
                source, integers = f"{name}_float", name
                maker = makers[name]
                maker.output[list(maker.output).index(name)] = source
                leaving[name] = Crossing("int8", float(scale))
                _set_int8(graph.output, name)
            nodes.append(
                helper.make_node(
                    "QuantizeLinear", [source, *steps], [integers], name=f"{name}-QuantizeLinear"
                )
            )
        if readers:
            nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    [integers, *steps],
                    [floats],
                    name=f"{name}-DequantizeLinear",
                )
            )
        added.append((places.get(name, -1) + 1, nodes))
    # From the back, so that the places before stay what they are.
    for place, nodes in sorted(added, key=lambda one: one[0], reverse=True):
        for node in reversed(nodes):
            graph.node.insert(place, node)
    return leaving


def _place_weights(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Let these nodes read INT8 weights, per output channel, through DequantizeLinear."""
    graph = model.graph
    arrays = {one.name: one for one in graph.initializer}
    done: dict[tuple[str, int], str] = {}
    new = []
    for node in nodes:
        name, axis = node.input[1], _axis(node, len(arrays[node.input[1]].dims))
        if (name, axis) not in done:
            weight = numpy_helper.to_array(arrays[name])
            prefix = f"{name}_by_{axis}"  # Tied weights may be read along either.
            integers, scales = _quantized(weight, axis)
            inputs = [
                _constant(model, f"{prefix}_integers", integers),
                _constant(model, f"{prefix}_scale", scales),
                _constant(model, f"{prefix}_zero_point", np.zeros(len(scales), np.int8)),
            ]
            done[name, axis] = f"{prefix}_dequantized"
            new.append(
                helper.make_node(
                    "DequantizeLinear",
                    inputs,
                    [done[name, axis]],
                    name=f"{prefix}-DequantizeLinear",
                    axis=axis,
                )
            )
        node.input[1] = done[name, axis]
    for one in reversed(new):
        graph.node.insert(0, one)
    read = {name for node in graph.node for name in node.input}
    for name in {name for name, _ in done} - read:
        graph.initializer.remove(arrays[name])


def _axis(node: onnx.NodeProto, dims: int) -> int:
    """The dimension of a node's weight that has the output channels."""
    turned = any(one.name == "transB" and one.i for one in node.attribute)
    return 0 if turned else _WEIGHT_AXIS[node.op_type] % dims


def _quantized(weight: Array, axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """A weight's integers, and a scale for each channel: `[channels]`."""
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    magnitudes = np.abs(weight).max(axis=others)
    scales = np.array([_scale(float(one)) for one in magnitudes], np.float16)
    along = [1] * weight.ndim
    along[axis] = -1
    steps = np.rint(weight / scales.astype(np.float32).reshape(along))
    return np.clip(steps, -_STEPS, _STEPS).astype(np.int8), scales


def _in_halves(
    model: onnx.ModelProto, part: Part[bytes], entering: Mapping[str, Crossing]
) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
    """What is float32 in float16, but for the network's inputs and what the runtime looks at."""
    wide = [name for name in part.inputs if name not in entering] + sorted(part.looked_at)
    blocked = [one for one in DEFAULT_OP_BLOCK_LIST if one not in _HALVES]
    model = convert_float_to_float16(model, keep_io_types=wide, op_block_list=blocked)
    # Types have changed, and whoever reads the model infers them.
    del model.graph.value_info[:]
    halves = {
        one.name
        for one in model.graph.output
        if one.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    return model, {name: Crossing("float16") for name in part.outputs if name in halves}


def _constant(model: onnx.ModelProto, name: str, value: Array | np.generic) -> str:
    """Keep a constant in the model; its name. Scales become float16 with all the rest."""
    array = np.asarray(value)
    wide = array.astype(np.float32) if array.dtype == np.float16 else array
    model.graph.initializer.append(numpy_helper.from_array(wide, name))
    return name


def _read(node: onnx.NodeProto, old: str, new: str) -> None:
    for place, name in enumerate(node.input):
        if name == old:
            node.input[place] = new


def _set_int8(values: Iterable[onnx.ValueInfoProto], name: str) -> None:
    (value,) = (one for one in values if one.name == name)
    value.type.tensor_type.elem_type = TensorProto.INT8
