"""What a network computes from its weights alone becomes weights.

A slimmable network slices its weights in the graph: as they stand, every width's file would hold
all of them, and neither quantization nor the fusion of BatchNorm would see a weight. It is done on
the exported graph, so that every engine's lowering gets the same ones.
"""

import hashlib
import operator
from typing import Any

import torch
from torch import fx

from edgekit.errors import ModelError
from edgekit.stages import place_of

__all__ = ["demand_constant", "materialize"]

_ATEN = torch.ops.aten

_WEIGHT_AT = {
    _ATEN.conv1d.default: 1,
    _ATEN.conv2d.default: 1,
    _ATEN.conv3d.default: 1,
    _ATEN.conv1d.padding: 1,
    _ATEN.conv2d.padding: 1,
    _ATEN.conv3d.padding: 1,
    _ATEN.conv_transpose1d.default: 1,
    _ATEN.conv_transpose2d.input: 1,
    _ATEN.conv_transpose3d.input: 1,
    _ATEN.convolution.default: 1,
    _ATEN.linear.default: 1,
}
"""Where the operators that have a weight take it."""

_SLICES = {
    _ATEN.slice.Tensor,
    _ATEN.select.int,
    _ATEN.narrow.default,
    _ATEN.as_strided.default,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
    _ATEN.chunk.default,
}
"""What takes a part of a tensor, by numbers. An embedding takes one by data, and may."""


def materialize(module: fx.GraphModule) -> None:
    """Fold what is computed from weights alone into weights, in place.

    Not where the result has more elements than what it is made of: that would be data, like a mask.
    The weight of a convolution or a linear layer is one whatever it is made of. Equal results are
    one weight. Weights that nothing reads any more go with the graph's dead code.
    """
    constant = _constants(module)
    known: dict[str, str] = {}
    for node in reversed(module.graph.nodes):
        readers = [one for one in node.users if one not in constant]
        if node not in constant or node.op != "call_function" or not readers:
            continue
        if _is_small(module, node) or any(_is_weight_of(node, one) for one in readers):
            _replace(module, node, _value(module, node), known)
        else:
            constant.discard(node)  # What it is made of may be a weight.
    module.graph.eliminate_dead_code()


def demand_constant(module: fx.GraphModule) -> None:
    """Raises ModelError, with the node and its line, where a weight is still computed.

    In a network that holds several settings such a weight is all of them.
    """
    made = _weights_only(module.graph)
    for node in module.graph.nodes:
        at = _WEIGHT_AT.get(node.target)
        if at is not None and (weight := node.args[at]).op != "get_attr" and _sources(weight):
            raise ModelError(
                f"the weight of {node.name}{place_of(node)} is no constant: {weight.name}"
                f"{place_of(weight)} computes it from {_source(weight)}; let the setting alone "
                "decide which weights there are, or give set.call a function that returns the "
                "static network"
            )
        if node.target in _SLICES and made.issuperset(node.all_input_nodes[:1]):
            why = (
                "how much depends on the input's size, or is drawn at random; let the setting "
                "alone decide"
                if node not in _constants(module)
                else "what comes of it is larger than the weight, so it is computed each time; "
                "make it a buffer of the network"
            )
            raise ModelError(
                f"{node.name}{place_of(node)} takes a part of a weight, {_source(node)}, and "
                f"{why}, or give set.call a function that returns the static network"
            )


def _constants(module: fx.GraphModule) -> set[fx.Node]:
    """The weights, and what is computed from them and from numbers that are fixed."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            # What a control flow operator calls is a module.
            wanted = isinstance(_attribute(module, str(node.target)), torch.Tensor)
        else:
            inputs = found.issuperset(node.all_input_nodes)
            wanted = node.op == "call_function" and inputs and _is_pure(node)
        if wanted:
            found.add(node)
    return found


def _weights_only(graph: fx.Graph) -> set[fx.Node]:
    """The weights, and what is computed from them and sizes, fixed or not."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        tensors = [one for one in node.all_input_nodes if not _is_number(one)]
        if node.op == "get_attr" or (
            node.op == "call_function"
            and tensors
            and not _is_number(node)
            and found.issuperset(tensors)
        ):
            found.add(node)
    return found


def _is_pure(node: fx.Node) -> bool:
    """Whether a node gives the same for the same, and is no size that varies."""
    if node.target is operator.getitem:
        return True
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and not _is_number(node)


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)


def _is_small(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant is made of weights, and has no more elements than these."""
    value, sources = node.meta.get("val"), _sources(node)
    if not isinstance(value, torch.Tensor) or not sources:
        return False
    return value.numel() <= sum(_attribute(module, one).numel() for one in sources)


def _is_weight_of(node: fx.Node, reader: fx.Node) -> bool:
    at = _WEIGHT_AT.get(reader.target)
    return at is not None and reader.args[at] is node and bool(_sources(node))


def _sources(node: fx.Node) -> list[str]:
    """The names of the weights that a node is computed from."""
    found, seen, stack = [], {node}, [node]
    while stack:
        current = stack.pop()
        if current.op == "get_attr":
            found.append(str(current.target))
        new = [one for one in current.all_input_nodes if one not in seen]
        seen.update(new)
        stack += new
    return found


def _source(node: fx.Node) -> str:
    """The first weight that a node is computed from, in the model's own words."""
    return min(_sources(node)).removeprefix("model.")


def _value(module: fx.GraphModule, node: fx.Node) -> Any:
    """What a constant node gives."""
    values: dict[fx.Node, Any] = {}

    def valued(one: fx.Node) -> Any:
        if one not in values:
            values[one] = (
                _attribute(module, str(one.target))
                if one.op == "get_attr"
                else one.target(*fx.map_arg(one.args, valued), **fx.map_arg(one.kwargs, valued))
            )
        return values[one]

    with torch.no_grad():
        return valued(node)


def _replace(
    module: fx.GraphModule, node: fx.Node, value: torch.Tensor, known: dict[str, str]
) -> None:
    # A view's strides may be odd even where it is contiguous.
    value = torch.empty(value.shape, dtype=value.dtype).copy_(value)
    content = hashlib.sha256(f"{value.dtype} {list(value.shape)} ".encode())
    content.update(value.flatten().view(torch.uint8).numpy().tobytes())
    name = known.get(content.hexdigest())
    if name is None:
        name = f"{node.name}_weight"
        while hasattr(module, name):
            name += "_"
        known[content.hexdigest()] = name
        trained = (isinstance(_attribute(module, x), torch.nn.Parameter) for x in _sources(node))
        if any(trained):
            module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        weight = module.graph.get_attr(name)
    weight.meta = dict(node.meta)
    node.replace_all_uses_with(weight)


def _attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    found: Any = operator.attrgetter(path)(module)
    return found
