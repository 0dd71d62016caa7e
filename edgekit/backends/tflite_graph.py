"""What TFLite graphs cost, what of them is a head, and what their file says of itself.

A file holds one signature, whose inputs and outputs have the names of the part's tensors. Sizes are
fixed, a batch of one, so shapes are read from the file; and the types in it oblige the engine:
an operator whose weights are integers multiplies integers, whatever its activations come as.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgekit.backends import Crossing, IntegerWork, is_mask
from edgekit.stages import Part

__all__ = ["Cost", "Graph", "contract", "integer_work", "node_count"]

_WEIGHT_INPUT = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "BATCH_MATMUL": 1,
    "TRANSPOSE_CONV": 1,
    "CONV_3D": 1,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 2,
    "BIDIRECTIONAL_SEQUENCE_LSTM": 2,
}
"""The operators that multiply and accumulate, and which of their inputs is the second factor."""

_POOLS_AND_SHAPES = {
    *("AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "REDUCE_MAX", "SUM"),
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "CONCATENATION", "CAST"),
}
"""What between the backbone and a classifier belongs to the head."""

_PADS = {"PAD", "PADV2", "MIRROR_PAD"}
"""They put a constant around what they pad, which may be minus infinity before a MAX_POOL_2D."""

_ALIGNMENT_BYTES = 16
"""How the schema wants weights to lie (`force_align`); Python's own writer does not see to it."""

_KINDS = {value: name for name, value in vars(schema.BuiltinOperator).items() if name[0] != "_"}
_TYPES = {value: name for name, value in vars(schema.TensorType).items() if name[0] != "_"}
_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
}
_INTEGERS = {
    schema.TensorType.INT2,
    schema.TensorType.INT4,
    schema.TensorType.INT8,
    schema.TensorType.UINT8,
    schema.TensorType.INT16,
}


@dataclass(frozen=True)
class Cost:
    """One operator that multiplies: what it is called, its type, and its MACs for one sample.

    `place` is where it stands in the graph; `integer` says that its kernel multiplies integers.
    """

    place: int
    operator: str
    kind: str
    macs: int
    integer: bool


class Graph:
    """A TFLite file that can be changed: the graph of its one signature.

    Operators are known by their places, tensors by their indices.
    """

    def __init__(self, program: bytes) -> None:
        self.model = flatbuffer_utils.read_model_from_bytearray(program)
        (self.signature,) = self.model.signatureDefs
        graph = self.model.subgraphs[self.signature.subgraphIndex]
        self.operators: list[Any] = graph.operators
        self.tensors: list[Any] = graph.tensors
        self._graph = graph
        for buffer in self.model.buffers:
            if buffer.data is not None:
                # What the writer copies at once; other sequences it would go through byte by byte.
                buffer.data = np.frombuffer(buffer.data, np.uint8)
        taken = set()
        for place, tensor in enumerate(self.tensors):
            # The converter leaves some without a name, and tensors are told apart by theirs.
            if not tensor.name or tensor.name in taken:
                tensor.name = (tensor.name or b"tensor") + f"-{place}".encode()
            taken.add(tensor.name)

    def program(self) -> bytes:
        """The file: the same bytes for the same graph."""
        builder = _Aligned(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    @property
    def inputs(self) -> dict[str, int]:
        """The tensors that go in, by the signature's names."""
        return {one.name.decode(): one.tensorIndex for one in self.signature.inputs}

    @property
    def outputs(self) -> dict[str, int]:
        """The tensors that come out, by the signature's names."""
        return {one.name.decode(): one.tensorIndex for one in self.signature.outputs}

    def kind(self, operator: Any) -> str:
        """The type of an operator, as the schema names it."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return _KINDS[flatbuffer_utils.get_builtin_code_from_operator_code(code)]

    def name(self, tensor: int) -> str:
        """What the file calls a tensor; no two have the same name."""
        return str(self.tensors[tensor].name.decode())

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The sizes of a tensor, batch first."""
        shape = self.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def is_constant(self, tensor: int) -> bool:
        """Whether the file holds the tensor's values; what is left out (index -1) is none."""
        return tensor >= 0 and self.model.buffers[self.tensors[tensor].buffer].data is not None

    def constant(self, tensor: int) -> npt.NDArray[Any] | None:
        """The values of a constant; None of other tensors, and of types that numpy has not."""
        kind = self.tensors[tensor].type if tensor >= 0 else None
        if kind not in _DTYPES or not self.is_constant(tensor):
            return None
        values = self.model.buffers[self.tensors[tensor].buffer].data.view(_DTYPES[kind])
        return np.asarray(values).reshape(self.shape(tensor))

    def is_float(self, tensor: int) -> bool:
        """Whether the tensor is float32."""
        return bool(self.tensors[tensor].type == schema.TensorType.FLOAT32)

    def maker(self, tensor: int) -> Any | None:
        """The operator that gives the tensor; None for inputs and constants."""
        return next((one for one in self.operators if tensor in one.outputs), None)

    def readers(self, tensor: int) -> list[Any]:
        """The operators that read the tensor."""
        return [one for one in self.operators if tensor in one.inputs]

    def crossing(self, tensor: int) -> Crossing | None:
        """How an activation's integers are meant; None where it has no scale."""
        one = self.tensors[tensor]
        details = one.quantization
        if one.type not in _INTEGERS or details is None or details.scale is None:
            return None
        dtype = _TYPES[one.type].lower()
        return Crossing(dtype, float(details.scale[0]), int(details.zeroPoint[0]))

    def set_crossing(self, tensor: int, crossing: Crossing) -> None:
        """Let the tensor hold integers that are meant so."""
        self.tensors[tensor].type = getattr(schema.TensorType, crossing.dtype.upper())
        self.tensors[tensor].quantization = schema.QuantizationParametersT(
            scale=np.array([crossing.scale], np.float32),
            zeroPoint=np.array([crossing.zero_point], np.int64),
        )

    def add_float(self, like: int, name: str) -> int:
        """A new float32 tensor with the sizes of another, and its index."""
        signature = self.tensors[like].shapeSignature  # The sizes again, those that vary as -1.
        self.tensors.append(
            schema.TensorT(
                shape=list(self.shape(like)),
                shapeSignature=None if signature is None else list(signature),
                type=schema.TensorType.FLOAT32,
                name=name.encode(),
            )
        )
        return len(self.tensors) - 1

    def add_constant(self, like: int, values: npt.NDArray[Any]) -> int:
        """A new constant beside another, which it is like but for its values: its index."""
        buffer = len(self.model.buffers)
        self.model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        one = self.tensors[like]
        self.tensors.append(
            schema.TensorT(
                shape=list(values.shape),
                type=one.type,
                buffer=buffer,
                name=one.name + f"_{len(self.tensors)}".encode(),
            )
        )
        return len(self.tensors) - 1

    def replace(self, old: int, new: int) -> None:
        """Let all read the tensor `new` where they read `old`, or be given it as an output."""
        for operator in self.readers(old):
            operator.inputs = [new if one == old else one for one in operator.inputs]
        for name, tensor in self.outputs.items():
            if tensor == old:
                self.give(name, new)

    def drop_unread(self) -> None:
        """Drop the operators of which nobody reads anything."""
        read = set(self.outputs.values())
        for place in reversed(range(len(self.operators))):
            if read.isdisjoint(self.operators[place].outputs):
                del self.operators[place]
            else:
                read.update(self.operators[place].inputs)

    def add_dequantize(self, integers: int, floats: int) -> None:
        """Compute one tensor from the other, before everything else."""
        code = schema.BuiltinOperator.DEQUANTIZE
        known = [
            flatbuffer_utils.get_builtin_code_from_operator_code(one)
            for one in self.model.operatorCodes
        ]
        if code not in known:
            self.model.operatorCodes.append(
                schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1)
            )
            known.append(code)
        operator = schema.OperatorT(
            opcodeIndex=known.index(code), inputs=[integers], outputs=[floats]
        )
        self.operators.insert(0, operator)

    @property
    def given(self) -> list[int]:
        """The tensors that come out, in the file's order."""
        return [int(one) for one in self._graph.outputs]

    def give(self, name: str, tensor: int) -> None:
        """Let this tensor be the output of that name."""
        self._graph.outputs[self.given.index(self.outputs[name])] = tensor
        self.point(name, tensor)

    def point(self, name: str, tensor: int) -> None:
        """Let the signature call this tensor, which comes out, the output of that name."""
        for one in self.signature.outputs:
            if one.name.decode() == name:
                one.tensorIndex = tensor

    def called(self, operator: Any) -> str:
        """What to call an operator in a message: the module of the user's that it comes from.

        The converter names what an operator gives after the modules that it was fused from, the
        last of them the one that multiplies; where that is an output, its weights are asked.
        """
        outputs = set(self.outputs.values())
        named = [one for one in operator.outputs if one not in outputs]
        named += [one for one in operator.inputs if self.is_constant(one)]
        name = self.name((named or operator.outputs)[0])
        module = re.sub(r";\d*$", "", name).rpartition(";;")[2]
        return module.rpartition("/")[2].rpartition(".")[2] or name

    def head(self, looked_at: Iterable[str]) -> set[int]:
        """The places of the operators that make up the heads that give the outputs `looked_at`.

        These are exits' logits, and confidences. A head reaches from one of them back to and with
        the first operators that have weights and multiply, and further back over pools and changes
        of shape that nothing else needs: the rule of `onnx_graph.head_nodes`.
        """
        makers = {tensor: n for n, one in enumerate(self.operators) for tensor in one.outputs}
        given = set(self.outputs.values())
        head: set[int] = set()
        behind: list[int] = []
        stack = [self.outputs[name] for name in looked_at]
        while stack:
            place = makers.get(stack.pop())
            if place is None or place in head:
                continue
            head.add(place)
            operator = self.operators[place]
            weighted = self.kind(operator) in _WEIGHT_INPUT and any(
                self._is_weight(one) for one in operator.inputs
            )
            (behind if weighted else stack).extend(operator.inputs)
        while behind:
            tensor = behind.pop()
            place = makers.get(tensor)
            if (
                place is not None
                and self.kind(self.operators[place]) in _POOLS_AND_SHAPES
                and tensor not in given
                and all(n in head for n, one in enumerate(self.operators) if tensor in one.inputs)
            ):
                head.add(place)
                behind.extend(self.operators[place].inputs)
        return head

    def _is_weight(self, tensor: int) -> bool:
        """Whether the tensor is a constant, or one that is only dequantized."""
        if self.is_constant(tensor):
            return True
        maker = self.maker(tensor) if tensor >= 0 else None
        return (
            maker is not None
            and self.kind(maker) == "DEQUANTIZE"
            and self.is_constant(maker.inputs[0])
        )

    def masked(self, masks: Iterable[str]) -> set[int]:
        """The places of the operators that compute with a mask, up to and with the SOFTMAX behind.

        A mask is a constant, or one of the inputs `masks`, that holds minus infinity or a number
        like it: what a SOFTMAX makes nothing of. Its range says nothing of the features it is added
        to.
        """
        marked = {self.inputs[name] for name in masks}
        for tensor in range(len(self.tensors)):
            values = self.constant(tensor)
            if values is not None and is_mask(values):
                marked.add(tensor)
        found = set()
        for place, operator in enumerate(self.operators):
            if self.kind(operator) not in _PADS and marked & set(operator.inputs):
                found.add(place)
                if self.kind(operator) != "SOFTMAX":
                    marked |= set(operator.outputs)
        return found

    def statistics(self) -> set[int]:
        """The places of the operators that normalize features by what they are like.

        The mean and the variance that a layer normalization comes to, up to where they meet the
        features: few numbers, whose reciprocal root is taken, near zero where it is steepest.
        """
        found: set[int] = set()
        for place, operator in enumerate(self.operators):
            if self.kind(operator) not in {"RSQRT", "SQRT"}:
                continue
            found.add(place)
            size = math.prod(self.shape(operator.outputs[0]))
            found |= self._statistics_behind(list(operator.inputs), size)
            found |= self._statistics_ahead(list(operator.outputs), size)
        return found

    def _statistics_behind(self, stack: list[int], size: int) -> set[int]:
        """What makes statistics out of features: back to and with what squares those."""
        found: set[int] = set()
        while stack:
            tensor = stack.pop()
            small = math.prod(self.shape(tensor)) <= size
            for place, operator in enumerate(self.operators):
                squares = self.kind(operator) == "SQUARED_DIFFERENCE" or (
                    self.kind(operator) == "MUL" and len(set(operator.inputs)) == 1
                )
                if tensor in operator.outputs and place not in found and (small or squares):
                    found.add(place)
                    stack += operator.inputs
        return found

    def _statistics_ahead(self, stack: list[int], size: int) -> set[int]:
        """Who reads statistics: up to and with what gives as many numbers as there are features."""
        found: set[int] = set()
        while stack:
            tensor = stack.pop()
            for place, operator in enumerate(self.operators):
                if tensor in operator.inputs and place not in found:
                    found.add(place)
                    stack += [x for x in operator.outputs if math.prod(self.shape(x)) <= size]
        return found

    def costs(self) -> list[Cost]:
        """What every operator that multiplies costs for one sample, in the graph's order."""
        found = []
        for place, operator in enumerate(self.operators):
            kind = self.kind(operator)
            if kind in _WEIGHT_INPUT:
                integer = self.tensors[operator.inputs[_WEIGHT_INPUT[kind]]].type in _INTEGERS
                macs = self._macs(kind, operator)
                found.append(Cost(place, self.called(operator), kind, macs, integer))
        return found

    def _macs(self, kind: str, operator: Any) -> int:
        first = self.shape(operator.inputs[0])
        weights = self.shape(operator.inputs[_WEIGHT_INPUT[kind]])
        result = math.prod(self.shape(operator.outputs[0]))
        if kind.endswith("SEQUENCE_LSTM"):
            # At each of [steps, inputs] every weight once; matrices among the inputs are weights.
            matrices = [self.shape(one) for one in operator.inputs[1:] if self._is_weight(one)]
            return math.prod(first[:-1]) * sum(math.prod(x) for x in matrices if len(x) == 2)
        if kind == "TRANSPOSE_CONV":
            # Each input is spread by one filter: [outputs, *kernel, inputs], behind the sizes.
            return math.prod(self.shape(operator.inputs[2])) * math.prod(weights[:-1])
        if kind == "CONV_2D":
            return result * math.prod(weights[1:])  # [outputs, *kernel, inputs / groups]
        if kind == "DEPTHWISE_CONV_2D":
            return result * math.prod(weights[1:-1])  # [1, *kernel, outputs]
        if kind == "CONV_3D":
            return result * math.prod(weights[:-1])  # [*kernel, inputs, outputs]
        if kind == "BATCH_MATMUL":
            return result * first[-2 if operator.builtinOptions.adjX else -1]
        return result * weights[-1]  # FULLY_CONNECTED has [outputs, inputs].


class _Aligned(flatbuffers.Builder):
    """Writes a file in which bytes, and so all weights, lie as the schema wants them to.

    Other vectors that are the same are there once: each channel of the weights has a zero point of
    eight bytes, and all of those are 0.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self._written: dict[tuple[str, bytes], Any] = {}

    def CreateNumpyVector(self, x: npt.NDArray[Any]) -> Any:
        if x.dtype == np.uint8:
            self.Prep(_ALIGNMENT_BYTES, x.nbytes)
            return super().CreateNumpyVector(x)
        key = x.dtype.str, x.tobytes()
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


def integer_work(before: Part[bytes], after: Part[bytes]) -> IntegerWork:
    """What integer kernels do of `after`, which `before` is come to, outside the heads.

    Weights that are dequantized before they are multiplied are multiplied as floats.
    """
    original = Graph(before.program)
    heads = original.head(before.looked_at)
    macs = sum(one.macs for one in original.costs() if one.place not in heads)
    final = Graph(after.program)
    heads = final.head(after.looked_at)
    done = [one for one in final.costs() if one.place not in heads]
    floats = sorted((one for one in done if not one.integer), key=lambda one: -one.macs)
    return IntegerWork(
        macs,
        sum(one.macs for one in done if one.integer),
        tuple((one.operator, one.kind, one.macs) for one in floats),
    )


def node_count(program: bytes) -> int:
    """Operators in the graph."""
    return len(Graph(program).operators)


def contract(program: bytes) -> tuple[str, ...]:
    """What the file says of its inputs, its outputs and its format's version."""
    graph = Graph(program)
    return (
        *(f"input {_described(graph, *one)}" for one in graph.inputs.items()),
        *(f"output {_described(graph, *one)}" for one in graph.outputs.items()),
        f"schema version {graph.model.version}",
    )


def _described(graph: Graph, name: str, tensor: int) -> str:
    kind = _TYPES[graph.tensors[tensor].type]
    crossing = graph.crossing(tensor)
    meant = f" x {crossing.scale!r} from {crossing.zero_point}" if crossing else ""
    return f"{name}: {kind} {list(graph.shape(tensor))}{meant}"
