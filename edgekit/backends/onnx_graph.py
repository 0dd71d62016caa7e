"""What ONNX graphs cost: multiply-accumulates by operator, the heads, and what an engine executes.

Shapes are not inferred but observed: a graph is run once on zeros, batch 1, at the greatest size
where sizes vary. onnx knows nothing of
the operators that ONNX Runtime makes (`com.microsoft` and its layouts), and those are what counts.
"""

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from edgekit.backends import is_mask
from edgekit.quiet import quiet

__all__ = ["Cost", "costs", "executed", "head_nodes", "masked_nodes", "with_names"]

_INTEGER = {
    "QLinearConv": 3,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}
_FLOAT = {
    "Conv": 1,
    "FusedConv": 1,
    "NhwcFusedConv": 1,
    "ConvTranspose": 1,
    "MatMul": 1,
    "FusedMatMul": 1,
    "Gemm": 1,
    "FusedGemm": 1,
}
_RECURRENT = {"LSTM": 1, "GRU": 1, "RNN": 1}
_WEIGHT_INPUT = _INTEGER | _FLOAT | _RECURRENT
"""The operators that multiply and accumulate, and which of their inputs is the second factor.

Those that ONNX Runtime fuses to, or lays out otherwise, are among them.
"""

_POOLS_AND_SHAPES = {
    *("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("ReduceMean", "ReduceMax", "ReduceSum"),
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Identity", "Cast"),
}
"""What between the backbone and a classifier belongs to the head."""


@dataclass(frozen=True)
class Cost:
    """One operator that multiplies: its node's name and type, and its MACs for one sample."""

    node: str
    operator: str
    macs: int

    @property
    def integer(self) -> bool:
        """Whether its kernel multiplies integers."""
        return self.operator in _INTEGER


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place so that every node has a name of its own."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}-{number}"
            while node.name in taken:
                node.name += "-"
        seen.add(node.name)
    return model


def head_nodes(model: onnx.ModelProto, looked_at: Iterable[str]) -> set[str]:
    """The names of the nodes that make up the heads that give the tensors `looked_at`.

    These are exits' logits, and confidences. A head reaches from one of them back to and with the
    first operators that have weights and multiply, and further back over pools and changes of shape
    that nothing else needs. Decided on the graph before it is quantized, by the same rule for
    segments and undivided networks.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    given = {one.name for one in graph.output}
    constants = {one.name for one in graph.initializer}
    head: set[str] = set()
    behind: list[str] = []
    stack = list(looked_at)
    while stack:
        node = makers.get(stack.pop())
        if node is None or node.name in head:
            continue
        head.add(node.name)
        weighted = node.op_type in _WEIGHT_INPUT and any(x in constants for x in node.input)
        (behind if weighted else stack).extend(node.input)
    while behind:
        name = behind.pop()
        node = makers.get(name)
        if (
            node is not None
            and node.op_type in _POOLS_AND_SHAPES
            and name not in given
            and readers[name] <= head
        ):
            head.add(node.name)
            behind.extend(node.input)
    return head


def masked_nodes(model: onnx.ModelProto, masks: Iterable[str] = ()) -> set[str]:
    """The names of the nodes that compute with a mask, up to and with the Softmax behind it.

    A mask is a constant, or one of the tensors `masks`, that holds minus infinity or a number like
    it: what a Softmax makes nothing of. Its range says nothing of the features it is added to.
    """
    marked = set(masks)
    marked |= {one.name for one in model.graph.initializer if is_mask(_array(one))}
    found = set()
    for node in model.graph.node:
        # A Clip has its limits, and they may be as far away as numbers go.
        if node.op_type != "Clip" and marked & set(node.input):
            found.add(node.name)
            if node.op_type != "Softmax":
                marked |= set(node.output)
    return found


def _array(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    return np.asarray(numpy_helper.to_array(tensor))


def executed(
    program: bytes, shapes: Mapping[str, tuple[int, ...]], *, signed: bool
) -> onnx.ModelProto:
    """The graph that ONNX Runtime executes for one sample, after all of its optimizations.

    `shapes` has those of the graph's inputs and outputs, without the batch.
    `signed` says that the processor has kernels for signed activations, as an aarch64 has, and an
    x86 has not.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "executed.onnx"
        options = _options()
        options.optimized_model_filepath = str(path)
        # ONNX Runtime asks the processor; a session that is set so decides as on the other one.
        options.add_session_config_entry("session.qdqisint8allowed", str(int(signed)))
        _session(_one_sample(onnx.load_from_string(program), shapes), options)
        return with_names(onnx.load(path))


def costs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> list[Cost]:
    """What every operator that multiplies costs for one sample, in the graph's order.

    `shapes` as for `executed`.
    """
    found = [node for node in model.graph.node if node.op_type in _WEIGHT_INPUT]
    inner = _shapes(model, found, shapes)
    return [Cost(node.name, node.op_type, _macs(node, inner)) for node in found]


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second = shapes[node.input[0]], shapes[node.input[_WEIGHT_INPUT[node.op_type]]]
    if node.op_type in _RECURRENT:
        # At each of [steps, batch, inputs] every weight once: [directions, gates * width, inputs].
        return math.prod(first[:-1]) * (math.prod(second) + math.prod(shapes[node.input[2]]))
    result = math.prod(shapes[node.output[0]])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if "Conv" in node.op_type:
        # Each output is made of one filter: [outputs, inputs / groups, *kernel].
        return result * math.prod(second[1:])
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return result * first[0 if transposed and "Gemm" in node.op_type else -1]


def _measured(node: onnx.NodeProto) -> list[str]:
    """The tensors whose shapes tell what the node costs."""
    if node.op_type in _RECURRENT:
        return [*node.input[:3]]  # Of its outputs any may be left out.
    return [node.input[0], node.input[_WEIGHT_INPUT[node.op_type]], node.output[0]]


def _shapes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], given: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes of what these nodes multiply and give, for one sample."""
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    wanted = dict.fromkeys(name for node in nodes for name in _measured(node) if name not in shapes)
    if not wanted:
        return shapes
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    _one_sample(observed, given)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _session(observed, options)
    feeds = {
        one.name: np.zeros(
            [size.dim_value for size in one.type.tensor_type.shape.dim],
            helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type),
        )
        for one in observed.graph.input
    }
    values = session.run(list(wanted), feeds)
    return shapes | {name: value.shape for name, value in zip(wanted, values, strict=True)}


def _one_sample(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The model, changed in place so that its batch is one and its sizes are these."""
    for one in (*model.graph.input, *model.graph.output):
        sizes = (1, *shapes.get(one.name, ()))
        for place, size in enumerate(one.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                size.dim_value = sizes[place] if place < len(sizes) else 1
    return model


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _session(model: onnx.ModelProto, options: Any) -> Any:
    with quiet():
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
