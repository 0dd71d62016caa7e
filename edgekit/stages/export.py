"""export: the PyTorch model as one torch.export graph, with all exits as outputs."""

import copy
import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit.bundle.manifest import ONLY_INPUT
from edgekit.errors import EdgekitError, ModelError, describe_failure
from edgekit.models.exits import eager_logits, to_numpy
from edgekit.quiet import quiet
from edgekit.runtime.preprocess import by_name
from edgekit.stages import Exported, Network, Stage, StageResult, Step
from edgekit.stages.fake_quantized import settle
from edgekit.stages.materialize import demand_constant, materialize
from edgekit.stages.sizes import demand_free, dims, refusal, varying

__all__ = ["Export"]


class Export(Stage[Network, Exported]):
    """Exports a deep copy, where the model can be copied: a failed export can damage the module.

    The graph is functional (no in-place operators), so that what a node reads is what its argument
    held when it was computed, also on the far side of a cut.
    """

    name = "export"
    requires = Network
    ensures = Exported

    def __call__(self, artifact: Network, step: Step) -> StageResult[Exported]:
        """Raises ModelError with the place in the user's code that cannot be exported."""
        step("torch.export")
        module, sample = _copied(artifact), copy.deepcopy(artifact.sample)
        batch = torch.export.Dim("batch")
        axes = varying(artifact.axes)
        vary = dims(axes)
        by_input = {name: {0: batch, **vary.get(name, {})} for name in by_name(sample)}
        free: Any = by_input if isinstance(sample, dict) else by_input[ONLY_INPUT]
        try:
            with quiet("torch"):
                program = torch.export.export(
                    module,
                    (sample,),
                    dynamic_shapes=(free,),
                    strict=False,
                ).run_decompositions({})
        except EdgekitError:
            raise
        except Exception as error:
            if words := refusal(str(error), axes):
                raise ModelError(words) from error
            raise ModelError(
                f"torch.export cannot follow the model: {describe_failure(error)}"
            ) from error
        graph = program.module(check_guards=False)
        _unstack(graph.graph)
        _take_originals(graph.graph)
        trained = settle(graph)
        materialize(graph)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        nodes = sum(node.op == "call_function" for node in graph.graph.nodes)
        exported = Exported(graph, artifact.exits, artifact.sample, artifact.given)
        demand_free(exported.sources(), axes)
        if artifact.setting:
            demand_constant(graph)
        notes = {"fake_quantized": True} if trained else {}
        return StageResult(exported, {"nodes": nodes, **notes})


def _take_originals(graph: fx.Graph) -> None:
    """Let outputs be what they are copies of; in a functional graph nobody changes that."""
    output = graph.output_node()
    for node in output.all_input_nodes:
        if node.target is torch.ops.aten.clone.default:
            output.replace_input_with(node, node.all_input_nodes[0])


def _copied(network: Network) -> torch.nn.Module:
    """A deep copy of the module, or itself where a copy is not the same model.

    A hook that was made as a closure goes on working for the module that it was made for, and some
    modules hold what cannot be copied at all.
    """
    batch = to_numpy(network.sample)
    expected = eager_logits(network.module, batch)
    try:
        with quiet():  # Of what was exported before, PyTorch warns that its own copies are old.
            module = copy.deepcopy(network.module)
        found = eager_logits(module, batch)
    except Exception:
        return network.module
    same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
    return module if same else network.module


def _unstack(graph: fx.Graph) -> None:
    """Let what is taken out of a stack be what was put in.

    A model may return all exits stacked in one tensor. No exit would come before another then: each
    would need all of them, for the stack.
    """
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is operator.getitem and node.args[0].target is aten.unbind.int:
            (stack, *where), index = node.args[0].args, node.args[1]
        elif node.target is aten.select.int:
            stack, *where, index = node.args
        else:
            continue
        if stack.target is not aten.stack.default:
            continue
        parts, *along = stack.args
        rank = stack.meta["val"].dim()
        if ((along or [0])[0] - (where or [0])[0]) % rank == 0:
            node.replace_all_uses_with(parts[index])
