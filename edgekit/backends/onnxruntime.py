"""ONNX Runtime: segments as ONNX models."""

import functools
import hashlib
import math
import operator
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import onnxoptimizer
import onnxslim
import torch
from onnxscript import optimizer
from torch import fx

from edgekit.backends import Crossing, Features, IntegerWork, Quantized
from edgekit.backends.onnx_graph import costs, executed, head_nodes, with_names
from edgekit.backends.onnx_quantize import to_float16, to_int8, to_int8_dynamic
from edgekit.errors import BuildError, EdgekitError, describe_failure
from edgekit.limits import LIMITS
from edgekit.quiet import quiet
from edgekit.recipe import Quantize
from edgekit.stages import Part, blamed
from edgekit.target import Target

__all__ = ["OnnxRuntimeBackend"]

_LARGE_ELEMENTS = 2**18
"""A constant of more elements (1 MiB in float32) is not made out of less: it would be data."""

_ROUNDS = 20
"""Folding stops when nothing changes; this only ends rewrites that undo each other."""

_LEFT_OUT = {
    # The three would share one scale when they are quantized, the weights and what they give.
    "fuse_qkv",
}
"""Passes of onnxoptimizer that are not used, with the reason."""


class OnnxRuntimeBackend:
    """See `edgekit.backends.Backend`."""

    suffix = ".onnx"
    channels_last = False
    wants_features = frozenset({"int8"})
    integer_remedy = (
        "ONNX Runtime has fast integer kernels on x86 for unsigned activations only "
        "(--set target.activations=uint8), and for some operators none; use others, lower "
        "quantize.min_integer_share, or build for fp32"
    )
    passes = {  # noqa: RUF012  (a constant of the class)
        "fold": ("fold",),
        "onnxoptimizer": tuple(
            name
            for name in onnxoptimizer.get_available_passes()
            if name.startswith(("fuse_", "eliminate_")) and name not in _LEFT_OUT
        ),
        "onnxslim": ("slim",),
        # What the two have fused they have written as operators on constants.
        "fold again": ("fold",),
    }

    def lower(
        self, part: Part[fx.GraphModule], examples: tuple[torch.Tensor, ...], target: Target
    ) -> bytes:
        """See `Backend.lower`."""
        batch = torch.export.Dim("batch")
        # Sizes that vary are bound to one another by the network; the exporter finds out how.
        free = [
            {0: batch} | dict.fromkeys(_varying(node), torch.export.Dim.DYNAMIC)
            for node in part.program.graph.find_nodes(op="placeholder")
        ]
        with quiet("torch.onnx", "onnxscript"), _operators_read_once():
            try:
                exported = torch.onnx.export(
                    part.program,
                    examples,
                    dynamo=True,
                    optimize=False,
                    opset_version=target.opset,
                    input_names=part.inputs,
                    output_names=part.outputs,
                    dynamic_shapes=free,
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                raise BuildError(_no_form(part.name, error, target.opset)) from error
        assert exported is not None  # noqa: S101  (without a file name the exporter returns it)
        model = exported.model
        _free_names(model)
        _forget_origins(model)
        opset = model.opset_imports[""]
        if opset != target.opset:
            raise BuildError(
                f"{part.name}: asked for ONNX opset {target.opset}, got {opset}; "
                f"--set target.opset={opset} if the device reads that"
            )
        _age(model, target.ir_version, part.name)
        return _bytes(model, part.name)

    def apply(self, passes: tuple[str, ...], part: Part[bytes]) -> bytes:
        """See `Backend.apply`."""
        before = onnx.load_from_string(part.program)
        known = _meaning(before)
        try:
            with quiet("onnxscript", "onnx_ir", "onnxslim"):
                if passes[0] in _TRANSFORMS:
                    model = _TRANSFORMS[passes[0]](before)
                else:
                    model = ir.from_proto(onnxoptimizer.optimize(before, list(passes)))
        except Exception as error:  # Of these libraries' own making: anything may come.
            raise BuildError(describe_failure(error)) from error
        _forget_origins(model)
        # Whatever the passes write; nothing that they add is newer than the opset.
        model.ir_version = before.ir_version
        if _meaning(ir.to_proto(model)) == known:
            return part.program
        return _bytes(model, part.name)

    def quantize(
        self,
        part: Part[bytes],
        features: Features | None,
        entering: Mapping[str, Crossing],
        later: Sequence[Part[bytes]],
        options: Quantize,
        target: Target,
    ) -> Quantized:
        """See `Backend.quantize`."""
        try:
            # The tools remark on the root logger that they would rather prepare the model.
            with quiet("root"):
                model, leaving = self._converted(part, features, entering, later, options, target)
        except EdgekitError:
            raise
        except Exception as error:  # Of many types, from deep inside the tools.
            raise BuildError(
                f"{part.name} cannot be quantized to {target.precision}: {describe_failure(error)}"
            ) from error
        result = ir.from_proto(model)
        result.graph.sort()
        _forget_origins(result)
        _age(result, target.ir_version, part.name)
        return Quantized(_bytes(result, part.name), leaving)

    def _converted(
        self,
        part: Part[bytes],
        features: Features | None,
        entering: Mapping[str, Crossing],
        later: Sequence[Part[bytes]],
        options: Quantize,
        target: Target,
    ) -> tuple[onnx.ModelProto, dict[str, Crossing]]:
        """The part in the target's precision, and how what it gives crosses: see `quantize`.

        ONNX Runtime's tools put Q/DQ behind what they quantize, whoever reads it later.
        """
        if target.precision == "int8":
            assert features is not None  # noqa: S101  (see Backend.quantize)
            return to_int8(part, features, entering, options, target.activations)
        if target.precision == "int8-dynamic":
            return to_int8_dynamic(part), {}
        return to_float16(part, entering)

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
        macs = sum(one.macs for one in costs(original, shapes) if one.node not in heads)
        machine = target.machine or platform.machine()
        final = executed(after.program, shapes, signed=machine in {"aarch64", "arm64"})
        heads = head_nodes(final, after.looked_at)
        done = costs(final, shapes)
        floats = [one for one in done if not one.integer and one.node not in heads]
        floats.sort(key=lambda one: one.macs, reverse=True)
        return IntegerWork(
            macs,
            sum(one.macs for one in done if one.integer),
            tuple((one.node, one.operator, one.macs) for one in floats),
        )

    def contract(self, part: Part[bytes]) -> tuple[str, ...]:
        """See `Backend.contract`."""
        return _contract(onnx.load_from_string(part.program))

    def node_count(self, part: Part[bytes]) -> int:
        """See `Backend.node_count`."""
        return len(onnx.load_from_string(part.program).graph.node)


def _varying(node: fx.Node) -> list[int]:
    """The dimensions of a tensor behind the batch whose size varies."""
    shape = node.meta["val"].shape
    return [dim for dim, size in enumerate(shape) if dim and not isinstance(size, int)]


def _fold(model: onnx.ModelProto) -> ir.Model:
    """Compute what depends on no input, until nothing changes; weights of any size, too.

    A slice of a weight (a narrow variant of a slimmable network) must become a weight: quantization
    and the fusion of BatchNormalization see constants only.
    """
    folded = ir.from_proto(model)
    optimizer.optimize_ir(
        folded,
        num_iterations=_ROUNDS,
        input_size_limit=LIMITS.segment_bytes,
        output_size_limit=LIMITS.segment_bytes,
        should_fold=_may_fold,
    )
    return folded


def _may_fold(node: ir.Node) -> bool | None:
    """False where a large constant would take the place of smaller ones, else as onnxscript has it.

    It keeps ConstantOfShape and the like for a reason of its own.
    """
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return None
    elements = math.prod(shape.numpy())
    read = sum(
        value.const_value.size
        for value in node.inputs
        if value is not None and value.const_value is not None
    )
    return False if elements > max(_LARGE_ELEMENTS, read) else None


def _slim(model: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnxslim.slim(model, size_threshold=4 * _LARGE_ELEMENTS))


_TRANSFORMS: dict[str, Callable[[onnx.ModelProto], ir.Model]] = {"fold": _fold, "slim": _slim}
"""The passes that are not onnxoptimizer's."""


def _meaning(model: onnx.ModelProto) -> tuple[Any, ...]:
    """What a model promises and computes, whatever its inner names and the order of its nodes.

    The contract; a hash for each node and weight, over the operator, its attributes and the hashes
    of what it reads; and the outputs' hashes.
    """
    known = {one.name: f"input {place}" for place, one in enumerate(model.graph.input)}
    parts = []
    for tensor in model.graph.initializer:
        digest = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)} ".encode())
        digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
        known[tensor.name] = digest.hexdigest()
        parts.append(known[tensor.name])
    for node in model.graph.node:
        attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
        reads = [known.get(name, name) for name in node.input]
        whole = repr((node.domain, node.op_type, attributes, reads, len(node.output)))
        parts.append(hashlib.sha256(whole.encode()).hexdigest())
        # An output that is left out has no name, and so has an input.
        known |= {name: f"{parts[-1]} {place}" for place, name in enumerate(node.output) if name}
    outputs = [known.get(one.name) for one in model.graph.output]
    return _contract(model), sorted(parts), outputs


def _contract(model: onnx.ModelProto) -> tuple[str, ...]:
    opset = next((one.version for one in model.opset_import if not one.domain), None)
    return (
        *(f"input {_described(one)}" for one in model.graph.input),
        *(f"output {_described(one)}" for one in model.graph.output),
        f"opset {opset}",
        f"IR version {model.ir_version}",
    )


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    shape = [one.dim_param or one.dim_value for one in tensor.shape.dim]
    return f"{value.name}: {onnx.TensorProto.DataType.Name(tensor.elem_type)} {shape}"


def _no_form(name: str, error: Exception, opset: int) -> str:
    """Words about a part that the exporter refused: the operator, and its place in the model."""
    operator = blamed(error)
    if operator is None:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        return f"{name} has no ONNX form: {reason}"
    return (
        f"{name}: operator {operator} has no form in ONNX opset {opset}; "
        "compute the same with other operators of PyTorch, or end at an exit before it"
    )


@contextmanager
def _operators_read_once() -> Iterator[None]:
    """Inside, torch.onnx takes the table of its operators as it was made the first time.

    It would parse the source of all of onnxscript's, and read the signatures of each, anew for
    each part, which takes longer than a small part does itself. Nothing but a user's own operators
    changes a table, and none are given. A torch that has no such place reads them each time.
    """
    place = operator.attrgetter("_internal.exporter._registration.ONNXRegistry")
    try:
        registry = place(torch.onnx)
        own = vars(registry)["from_torchlib"]
    except (AttributeError, KeyError):
        yield
        return
    registry.from_torchlib = staticmethod(
        functools.partial(_first_read, own.__get__(None, registry))
    )
    try:
        yield
    finally:
        registry.from_torchlib = own


@functools.cache
def _first_read(read: Callable[..., Any], **options: Any) -> Any:
    return read(**options)


def _free_names(model: ir.Model) -> None:
    """Rename inner values that have the name of an input or output of the model.

    The exporter decomposes operators and counts anew, so an inner `linear_1` of its own may stand
    beside the output `linear_1`, which was given its name afterwards.
    """
    edges = (*model.graph.inputs, *model.graph.outputs)
    reserved, known = {one.name for one in edges}, {id(one) for one in edges}
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    inner = [one for node in nodes for one in node.outputs if id(one) not in known]
    taken = reserved | {one.name for one in inner} | set(model.graph.initializers)
    for number, one in enumerate(inner):
        if one.name in reserved:
            one.name = f"{one.name}-{number}"
            while one.name in taken:
                one.name += "-"


def _forget_origins(model: ir.Model) -> None:
    """Drop stack traces and other notes: they hold this machine's paths and change no result."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        graph.doc_string = None
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None


def _age(model: ir.Model, most: int | None, name: str) -> None:
    """Give the model an IR version of `most`. Raises BuildError where its opset came later."""
    if most is None or model.ir_version is None or model.ir_version <= most:
        return
    opsets = [onnx.helper.make_opsetid(*one) for one in model.opset_imports.items()]
    least = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    if least > most:
        raise BuildError(
            f"{name}: ONNX opset {model.opset_imports['']} came with IR version {least}, and "
            f"target.ir_version is {most}: lower target.opset"
        )
    model.ir_version = most


def _bytes(model: ir.Model, name: str) -> bytes:
    try:
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        content = proto.SerializeToString(deterministic=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BuildError(f"{name}: is no valid ONNX model: {reason}") from error
    if len(content) > LIMITS.segment_bytes:
        raise BuildError(f"{name}: {len(content)} bytes, limit {LIMITS.segment_bytes}")
    return bytes(content)
