"""ONNX Runtime: segments as ONNX models."""

import platform
from collections.abc import Mapping

import onnx
import onnx_ir as ir
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
from edgekit.stages import Part
from edgekit.target import Target

__all__ = ["OnnxRuntimeBackend"]


class OnnxRuntimeBackend:
    """See `edgekit.backends.Backend`."""

    suffix = ".onnx"
    packages = ("onnxruntime>=1.20",)

    def lower(
        self, part: Part[fx.GraphModule], examples: tuple[torch.Tensor, ...], target: Target
    ) -> bytes:
        """See `Backend.lower`."""
        batch = torch.export.Dim("batch")
        with quiet("torch.onnx", "onnxscript"):
            try:
                exported = torch.onnx.export(
                    part.program,
                    examples,
                    dynamo=True,
                    optimize=False,
                    opset_version=target.opset,
                    input_names=part.inputs,
                    output_names=part.outputs,
                    dynamic_shapes=[{0: batch}] * len(examples),
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                reason = str(error.__cause__ or error).strip().partition("\n")[0]
                raise BuildError(f"{part.name} has no ONNX form: {reason}") from error
        assert exported is not None  # noqa: S101  (without a file name the exporter returns it)
        model = exported.model
        _forget_origins(model)
        opset = model.opset_imports[""]
        if opset != target.opset:
            raise BuildError(
                f"{part.name}: asked for ONNX opset {target.opset}, got {opset}; "
                f"--set target.opset={opset} if the device reads that"
            )
        return _bytes(model, part.name)

    def optimize(self, part: Part[bytes]) -> bytes:
        """Folds constants and drops what nothing reads."""
        model = ir.from_proto(onnx.load_from_string(part.program))
        optimizer.optimize_ir(model)
        _forget_origins(model)
        return _bytes(model, part.name)

    def quantize(
        self,
        part: Part[bytes],
        features: Features | None,
        entering: Mapping[str, Crossing],
        options: Quantize,
        target: Target,
    ) -> Quantized:
        """See `Backend.quantize`."""
        leaving: dict[str, Crossing] = {}
        try:
            # The tools remark on the root logger that they would rather prepare the model.
            with quiet("root"):
                if target.precision == "int8":
                    assert features is not None  # noqa: S101  (see Backend.quantize)
                    model, leaving = to_int8(part, features, entering, options, target.activations)
                elif target.precision == "int8-dynamic":
                    model = to_int8_dynamic(part)
                else:
                    model, leaving = to_float16(part, entering)
        except EdgekitError:
            raise
        except Exception as error:  # Of many types, from deep inside the tools.
            raise BuildError(
                f"{part.name} cannot be quantized to {target.precision}: {describe_failure(error)}"
            ) from error
        result = ir.from_proto(model)
        result.graph.sort()
        _forget_origins(result)
        return Quantized(_bytes(result, part.name), leaving)

    def integer_work(self, before: Part[bytes], after: Part[bytes], target: Target) -> IntegerWork:
        """See `Backend.integer_work`."""
        original = with_names(onnx.load_from_string(before.program))
        heads = head_nodes(original, before.logits.values())
        macs = sum(one.macs for one in costs(original) if one.node not in heads)
        machine = target.machine or platform.machine()
        final = executed(after.program, signed=machine in {"aarch64", "arm64"})
        heads = head_nodes(final, after.logits.values())
        done = costs(final)
        floats = [one for one in done if not one.integer and one.node not in heads]
        floats.sort(key=lambda one: one.macs, reverse=True)
        return IntegerWork(
            macs,
            sum(one.macs for one in done if one.integer),
            tuple((one.node, one.operator, one.macs) for one in floats),
        )

    def node_count(self, part: Part[bytes]) -> int:
        """See `Backend.node_count`."""
        return len(onnx.load_from_string(part.program).graph.node)


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
