"""ONNX Runtime: segments as ONNX models."""

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import fx

from edgekit.errors import BuildError
from edgekit.limits import LIMITS
from edgekit.quiet import quiet
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
