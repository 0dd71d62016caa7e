"""Models from quantization-aware training: a graph that quantizes and dequantizes at once.

That is what PyTorch's PT2E quantization converts to: `quantize_per_tensor` and
`dequantize_per_tensor` behind activations, and weights that are dequantized.
"""

import torch
from torch import fx

__all__ = ["apart", "settle"]

_QUANTIZE = "quantized_decomposed.quantize_per_"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_"
_PER_TENSOR = "quantized_decomposed.quantize_per_tensor.default"


def settle(module: fx.GraphModule) -> bool:
    """Bring what the graph says of scales to one form, in place; what it computes stays the same.

    Whether it says anything of them.

    Weights become the floats that their integers stand for: no converter knows a weight in what is
    computed. Of each activation there is one quantized and one dequantized tensor, whoever reads
    it, so that the latter crosses a cut, and a reader behind that finds floats there as before it.
    Its integers are signed, where nothing else reads them, and use all that their type holds: no
    file says of bounds that are narrower, so such are a clamp of floats before.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if _is(node, _DEQUANTIZE) and (values := _constant(module, node)) is not None:
            _replace_with_weight(module, node, values)
    known: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if _is(node, _QUANTIZE) or _is(node, _DEQUANTIZE):
            same = known.setdefault((node.target, node.args), node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)
    for node in graph.nodes:
        if _is(node, _PER_TENSOR) and all(
            _is(user, _DEQUANTIZE) and user.args[1:] == node.args[1:] for user in node.users
        ):
            _with_full_range(graph, node)
    graph.eliminate_dead_code()
    return bool(known)


def apart(module: fx.GraphModule) -> fx.GraphModule:
    """The same module with a dequantized tensor of its own for every reader.

    What litert-torch lays out anew takes the first reader of one to be the only one. The module
    itself where nothing is dequantized.
    """
    if not any(_is(node, _DEQUANTIZE) for node in module.graph.nodes):
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in list(graph.nodes):
        if _is(node, _DEQUANTIZE):
            for reader in list(node.users)[1:]:
                with graph.inserting_after(node):
                    reader.replace_input_with(node, graph.node_copy(node))
    return fx.GraphModule(module, graph)


def _is(node: fx.Node, operator: str) -> bool:
    return node.op == "call_function" and str(node.target).startswith(operator)


def _with_full_range(graph: fx.Graph, node: fx.Node) -> None:
    """Quantize to signed integers of any value, with the same floats behind it."""
    source, scale, zero_point, least, most, dtype = node.args
    if dtype == torch.uint8:
        zero_point, least, most, dtype = zero_point - 128, least - 128, most - 128, torch.int8
    known = torch.iinfo(dtype)
    if (least, most) != (known.min, known.max):
        bounds = ((one - zero_point) * scale for one in (least, most))
        with graph.inserting_before(node):
            clamped = graph.call_function(torch.ops.aten.clamp.default, (source, *bounds))
        clamped.meta = dict(source.meta)
        source, least, most = clamped, known.min, known.max
    how = (scale, zero_point, least, most, dtype)
    node.args = (source, *how)
    for user in list(node.users):
        user.args = (node, *how)


def _constant(module: fx.GraphModule, node: object) -> object | None:
    """What a node's argument is, computed; None where it depends on an input."""
    if not isinstance(node, fx.Node):
        return node
    if node.op == "get_attr":
        return _attribute(module, str(node.target))
    if not (_is(node, _QUANTIZE) or _is(node, _DEQUANTIZE)):
        return None
    arguments = [_constant(module, one) for one in node.args]
    if any(
        found is None and isinstance(one, fx.Node)
        for found, one in zip(arguments, node.args, strict=True)
    ):
        return None
    with torch.no_grad():
        return node.target(*arguments)


def _attribute(module: torch.nn.Module, path: str) -> object:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _replace_with_weight(module: fx.GraphModule, node: fx.Node, values: object) -> None:
    name = f"{node.name}_weight"
    module.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
    with module.graph.inserting_before(node):
        weight = module.graph.get_attr(name)
    weight.meta = dict(node.meta)
    node.replace_all_uses_with(weight)
    module.graph.erase_node(node)
