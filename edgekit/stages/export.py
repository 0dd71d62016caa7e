"""export: the PyTorch model as one torch.export graph, with all exits as outputs."""

import copy

import torch
from torch import fx

from edgekit.errors import EdgekitError, ModelError, describe_failure
from edgekit.quiet import quiet
from edgekit.stages import Exported, Network, Stage, StageResult, Step

__all__ = ["Export"]


class Export(Stage[Network, Exported]):
    """Exports a deep copy: a failed export can damage the module.

    The graph is functional (no in-place operators), so that what a node reads is what its argument
    held when it was computed, also on the far side of a cut.
    """

    name = "export"
    requires = Network
    ensures = Exported

    def __call__(self, artifact: Network, step: Step) -> StageResult[Exported]:
        """Raises ModelError with the place in the user's code that cannot be exported."""
        step("torch.export")
        module = copy.deepcopy(artifact.module)
        try:
            with quiet("torch"):
                program = torch.export.export(
                    module,
                    (artifact.sample.clone(),),
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    strict=False,
                ).run_decompositions({})
        except EdgekitError:
            raise
        except Exception as error:
            raise ModelError(
                f"torch.export cannot follow the model: {describe_failure(error)}"
            ) from error
        graph = program.module(check_guards=False)
        _take_originals(graph.graph)
        graph.graph.eliminate_dead_code()
        nodes = sum(node.op == "call_function" for node in graph.graph.nodes)
        return StageResult(Exported(graph, artifact.exits, artifact.sample), {"nodes": nodes})


def _take_originals(graph: fx.Graph) -> None:
    """Let outputs be what they are copies of; in a functional graph nobody changes that."""
    output = graph.output_node()
    for node in output.all_input_nodes:
        if node.target is torch.ops.aten.clone.default:
            output.replace_input_with(node, node.all_input_nodes[0])
