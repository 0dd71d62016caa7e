"""How a TFLite segment comes to lower precision, through ai-edge-quantizer.

A boundary tensor crosses as integers where an integer operator made it: the maker's DEQUANTIZE and
the readers' QUANTIZE go, and both sides share scale and zero point. The ranges are read here and
not by the quantizer, whose own calibration follows a moving average of the samples' extremes.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import recipe
from ai_edge_quantizer.qtyping import TFLOperationName
from ai_edge_quantizer.quantizer import Quantizer
from onnxruntime.quantization.calibrate import HistogramCollector

from edgekit.backends import Array, Crossing, Features, Quantized, is_mask, step_of
from edgekit.backends.tflite_graph import Graph
from edgekit.backends.tflite_lower import without_transposes
from edgekit.errors import BuildError, EdgekitError, describe_failure
from edgekit.quiet import quiet
from edgekit.recipe import Quantize
from edgekit.stages import Part
from edgekit.target import Target

__all__ = ["to_lower"]

_RECIPES = {
    "int8": recipe.static_wi8_ai8,
    "int16x8": recipe.static_wi8_ai16,
    "int8-dynamic": recipe.dynamic_wi8_afp32,
    "int8-weights": recipe.weight_only_wi8_afp32,
}
"""The quantizer's name for each scheme; all have INT8 weights, per channel where kernels do."""

_STEPS = {"int8": (-128, 127), "int16": (-32767, 32767)}
"""The least and greatest integer of an activation: INT16 is symmetric, as the kernels want it."""

_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
"""Which dimension of an operator's weights has the output channels, each with its own scale."""

_ORDER_KEEPING = {"TRANSPOSE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "MAX_POOL_2D"}
"""What gives values that it is given: quantizing before it is quantizing behind it."""

_FLOAT_KINDS = {
    TFLOperationName.SOFTMAX,
    # They spread what is near zero over all numbers, and 256 steps have little near zero.
    TFLOperationName.DIV,
    TFLOperationName.RSQRT,
    TFLOperationName.SQRT,
}
"""What stays in float although there are integer kernels; a SOFTMAX has steps of 1/256."""

_BINS, _LEVELS, _PERCENTILE = {"entropy": 128}, 128, 99.999
"""Of histograms (2048 where not said), and the share of values in percent that `percentile` keeps.

As onnxruntime's own calibrators have them.
"""

Ranges = dict[int, tuple[float, float]]
"""The least and greatest value of tensors, by their indices."""


def to_lower(
    part: Part[bytes],
    features: Features | None,
    entering: Mapping[str, Crossing],
    options: Quantize,
    target: Target,
) -> Quantized:
    """The part in the target's precision, and how each boundary that leaves as integers crosses.

    For `int8` and `int16x8`, `features` gives float inputs `[batch, ...]` by name, laid out as the
    file has them; `entering` says which inputs are integers. `int8-dynamic` and `int8-weights` look
    at no features, and their boundaries are float32. Heads, logits and confidences stay float32.
    Raises BuildError that names the part.
    """
    precision = target.precision
    if precision not in _RECIPES:
        raise BuildError(
            f"{part.name}: LiteRT's kernels for processors do not compute in {precision}; "
            f"--set target.precision= one of {', '.join(_RECIPES)}, or fp32"
        )
    try:
        with quiet("absl", "root"):
            if precision in {"int8", "int16x8"}:
                assert features is not None  # noqa: S101  (see Backend.quantize)
                return _static(part, features, entering, options.method, precision)
            graph, _ = _unquantized(part.program)
            graph = _quantized(graph, graph.head(part.looked_at), precision, None)
            return Quantized(graph.program())
    except EdgekitError:
        raise
    except Exception as error:  # Of many types, from deep inside the tools, operator included.
        raise BuildError(
            f"{part.name} cannot be quantized to {precision}: {describe_failure(error)}"
        ) from error


def _static(
    part: Part[bytes],
    features: Features,
    entering: Mapping[str, Crossing],
    method: str,
    precision: str,
) -> Quantized:
    """The part with INT8 weights and activations whose ranges are known beforehand."""
    graph, trained = _unquantized(part.program)
    masks = {name for batch in features() for name, values in batch.items() if is_mask(values)}
    floats = graph.head(part.looked_at) | graph.masked(masks) | graph.statistics()
    # What gives no floats (positions, conditions) has no range, and nothing to gain.
    floats |= {
        place
        for place, one in enumerate(graph.operators)
        if not all(graph.is_float(tensor) for tensor in one.outputs)
    }
    ranges = _ranges(part, graph, features, method, _measured(graph, floats))
    crossings = trained | {graph.inputs[name]: one for name, one in entering.items()}
    ranges |= {tensor: _range(one) for tensor, one in crossings.items()}
    _pad_with_least(graph, floats, ranges)
    for tensor, bounds in ranges.items():
        if not np.isfinite(bounds).all():
            raise BuildError(
                f"{part.name}: tensor {graph.name(tensor)} runs from {bounds[0]} to {bounds[1]} on "
                "the calibration samples, which no integers can stand for; look for what "
                "overflows there in PyTorch, or build for fp32"
            )
    known = {
        graph.name(tensor): _statistic(*bounds, (1,) * len(graph.shape(tensor)))
        for tensor, bounds in ranges.items()
    }
    if trained:
        known |= _trained_weights(graph, floats)
    graph = _quantized(graph, floats, precision, known)
    leaving = {}
    for name in part.outputs:
        if name not in part.looked_at and (found := _leave_as_integers(graph, name)):
            leaving[name] = found
    for name, crossing in entering.items():
        _enter_as_integers(graph, name, crossing)
    return Quantized(graph.program(), leaving)


def _unquantized(program: bytes) -> tuple[Graph, dict[int, Crossing]]:
    """The graph without the pairs of QUANTIZE and DEQUANTIZE that a trained quantization left.

    And how the tensors that they stood behind, by their indices, were quantized in training. So
    were those that such a tensor is only a rearrangement of, or the maximum: quantizing keeps the
    order of values.
    """
    graph = Graph(program)
    trained: dict[int, Crossing] = {}
    for dequantize in list(graph.operators):
        quantize = graph.maker(dequantize.inputs[0])
        if (
            graph.kind(dequantize) != "DEQUANTIZE"
            or quantize is None
            or graph.kind(quantize) != "QUANTIZE"
            or not graph.is_float(quantize.inputs[0])
        ):
            continue
        (source,), (pair,) = quantize.inputs, dequantize.outputs
        crossing = graph.crossing(quantize.outputs[0])
        assert crossing is not None  # noqa: S101  (what a QUANTIZE gives has a scale)
        graph.replace(pair, source)
        trained[source] = crossing
    if not trained:
        return graph, trained
    graph.drop_unread()
    graph = Graph(without_transposes(graph.program()))  # Indices stay what they are.
    # From what is computed later to what is earlier, so that each hands on what it was handed.
    for operator in reversed(graph.operators):
        crossing = trained.get(operator.outputs[0])
        if crossing is not None and graph.kind(operator) in _ORDER_KEEPING:
            trained.setdefault(operator.inputs[0], crossing)
    return graph, trained


def _range(crossing: Crossing) -> tuple[float, float]:
    """What the least and the greatest of the integers stand for."""
    least, most = ((x - crossing.zero_point) * crossing.scale for x in _STEPS[crossing.dtype])
    return least, most


def _measured(graph: Graph, floats: set[int]) -> list[int]:
    """The tensors whose ranges decide: float activations that integer operators read or give."""
    found = {
        tensor
        for place, operator in enumerate(graph.operators)
        if place not in floats
        for tensor in (*operator.inputs, *operator.outputs)
        if tensor >= 0 and graph.is_float(tensor) and not graph.is_constant(tensor)
    }
    return sorted(found)


def _ranges(
    part: Part[bytes], graph: Graph, features: Features, method: str, tensors: list[int]
) -> Ranges:
    """What the samples put into these tensors, cut where the method says so."""
    least = dict.fromkeys(tensors, np.inf)
    most = dict.fromkeys(tensors, -np.inf)
    bins = _BINS.get(method, 2048)
    collector = HistogramCollector(method, False, bins, _LEVELS, _PERCENTILE, "same")
    for values in _observed(part, graph, features, tensors):
        for tensor, array in values.items():
            # Of a NaN both are NaN, and stay it.
            least[tensor] = np.minimum(least[tensor], array.min())
            most[tensor] = np.maximum(most[tensor], array.max())
        if method != "minmax":
            finite = {one: array for one, array in values.items() if np.isfinite(array).all()}
            with redirect_stdout(io.StringIO()):  # The collector prints what it does.
                collector.collect(finite)
    found = {one: (float(least[one]), float(most[one])) for one in tensors}
    if method != "minmax" and collector.get_histogram_dict():
        with redirect_stdout(io.StringIO()):
            kept = collector.compute_collection_result()
        for tensor, (low, high, *_) in kept.items():
            if np.isfinite(found[tensor]).all():
                found[tensor] = (float(low), float(high))
    return found


def _observed(
    part: Part[bytes], graph: Graph, features: Features, tensors: list[int]
) -> Iterator[dict[int, Array]]:
    """The values of these tensors, sample by sample: the file takes one at a time."""
    interpreter = Interpreter(
        model_content=part.program, num_threads=1, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    dtypes = {one["index"]: one["dtype"] for one in interpreter.get_input_details()}
    for batch in features():
        for row in range(len(batch[part.inputs[0]])):
            for name, tensor in graph.inputs.items():
                values = batch[name][row : row + 1].astype(dtypes[tensor], copy=False)
                interpreter.set_tensor(tensor, values)
            interpreter.invoke()
            yield {one: interpreter.get_tensor(one) for one in tensors}


def _pad_with_least(graph: Graph, floats: set[int], ranges: Ranges) -> None:
    """Let pads of minus infinity put the least value there that the integers can hold.

    They stand before a maximum, where both lose against every feature. The range of what is padded
    is that of the features alone.
    """
    for place, operator in enumerate(graph.operators):
        if graph.kind(operator) != "PADV2" or place in floats:
            continue
        source, _, pad = operator.inputs
        values = graph.constant(pad)
        if values is not None and is_mask(values):
            ranges[operator.outputs[0]] = ranges[source]
            lowest = np.full_like(values, min(ranges[source][0], 0.0))
            operator.inputs[2] = graph.add_constant(pad, lowest)


def _quantized(
    graph: Graph, floats: set[int], precision: str, known: Mapping[str, Any] | None
) -> Graph:
    """The graph as the quantizer gives it: inputs and outputs float, these operators too.

    `known` has what the quantizer takes for a tensor's statistic, by name.
    """
    quantizer = Quantizer(graph.program())
    quantizer.load_quantization_recipe(_RECIPES[precision]())
    for kind in (TFLOperationName.INPUT, TFLOperationName.OUTPUT, *sorted(_FLOAT_KINDS)):
        quantizer.update_quantization_recipe(".*", kind, algorithm_key="no_quantize")
    for place in sorted(floats):
        # An operator goes by the names of what it gives.
        scope = "".join(f"{graph.name(one)};" for one in graph.operators[place].outputs)
        quantizer.update_quantization_recipe(
            f"^{re.escape(scope)}$", TFLOperationName.ALL_SUPPORTED, algorithm_key="no_quantize"
        )
    result = quantizer.quantize(known, enable_progress_bar=False, enable_progress_report=False)
    after = Graph(bytes(result.quantized_model))
    # Where a head reads it as well, it leaves the signature's output at what it was.
    for name, tensor in graph.outputs.items():
        found = after.given[graph.given.index(tensor)]
        after.point(name, found)
        maker = after.maker(found)
        if graph.is_float(tensor) and not after.is_float(found):
            # Where an integer operator reads what a float one gives, it gives that one's integers.
            assert maker is not None and after.kind(maker) == "QUANTIZE"  # noqa: S101
            after.give(name, maker.inputs[0])
    return after


def _statistic(least: Any, most: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """A range as the quantizer wants it: of the whole tensor, or of each of its channels."""
    low, high = (np.reshape(np.asarray(one, np.float64), shape) for one in (least, most))
    return {"min": low, "max": high}


def _trained_weights(graph: Graph, floats: set[int]) -> dict[str, dict[str, Any]]:
    """The statistics of weights that lie on steps already, so that they keep those, by name.

    That is how training left them; read from the values, since not all converters keep the scales.
    """
    found = {}
    for place, operator in enumerate(graph.operators):
        axis = _CHANNEL_AXIS.get(graph.kind(operator))
        values = None if axis is None or place in floats else graph.constant(operator.inputs[1])
        if axis is None or values is None or values.dtype != np.float32:
            continue
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        scales = [step_of(row) for row in rows]
        if None not in scales:
            shape = [1] * values.ndim
            shape[axis] = len(scales)
            most = 127 * np.array(scales)
            found[graph.name(operator.inputs[1])] = _statistic(-most, most, tuple(shape))
    return found


def _leave_as_integers(graph: Graph, name: str) -> Crossing | None:
    """Give the output `name` as integers, if it is a DEQUANTIZE's; None if it stays float."""
    floats = graph.outputs[name]
    dequantize = graph.maker(floats)
    if dequantize is None or graph.kind(dequantize) != "DEQUANTIZE":
        return None
    (integers,) = dequantize.inputs
    graph.give(name, integers)
    graph.drop_unread()
    return graph.crossing(integers)


def _enter_as_integers(graph: Graph, name: str, crossing: Crossing) -> None:
    """Take the input `name` as the integers that it is, instead of quantizing floats first.

    A QUANTIZE stays where a reader wants another scale, as a concatenation may.
    """
    tensor = graph.inputs[name]
    readers = graph.readers(tensor)
    graph.set_crossing(tensor, crossing)
    others = []
    for operator in readers:
        if graph.kind(operator) != "QUANTIZE":
            others.append(operator)
        elif graph.crossing(operator.outputs[0]) == crossing:
            graph.operators.remove(operator)
            graph.replace(operator.outputs[0], tensor)
    if others:
        floats = graph.add_float(tensor, f"{graph.name(tensor)}_dequant")
        for operator in others:
            operator.inputs = [floats if one == tensor else one for one in operator.inputs]
        graph.add_dequantize(tensor, floats)
