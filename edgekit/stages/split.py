"""split: one graph into segments, by liveness.

Every operation belongs to the first exit that needs it. What is computed for one exit and read for
a later one crosses the cut: the boundary. No module names and no pattern of layers are looked at,
so exits may tap anywhere, boundaries may be many and may skip segments, and exits may feed later
exits.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from edgekit.bundle.manifest import DTYPES, TensorSpec, boundaries
from edgekit.errors import ModelError
from edgekit.runtime.preprocess import by_name
from edgekit.stages import Exported, Part, Segments, Stage, StageResult, Step, place_of
from edgekit.stages.crossing import (
    CHANNELS_LAST,
    Layout,
    fits,
    layouts,
    made_anew,
    symbol,
    turn,
)

__all__ = ["Split", "assign", "cut"]


class Split(Stage[Exported, Segments[fx.GraphModule]]):
    """Cuts the graph after each exit; and twice more not at all, for `plain` and `whole`."""

    name = "split"
    requires = Exported
    ensures = Segments

    def __init__(self, *, channels_last: bool = False) -> None:
        """With `channels_last` feature maps cross so that no engine with that order turns them."""
        self.channels_last = channels_last

    def __call__(self, artifact: Exported, step: Step) -> StageResult[Segments[fx.GraphModule]]:
        """Raises ModelError for an exit that cannot stand where the recipe puts it."""
        artifact = _with_own_confidences(artifact)
        exits = artifact.exits
        tensors: dict[str, TensorSpec] = {}
        each = [[index] for index in range(len(exits))]
        names = [f"segment-{index + 1}" for index in range(len(exits))]
        greatest: dict[str, tuple[int, ...]] = {}
        last = self.channels_last
        chain = _parts(artifact, each, names, tensors, greatest, channels_last=last)
        (whole,) = _parts(artifact, [list(range(len(exits)))], ["whole"], tensors, greatest)
        (plain,) = _parts(artifact, [[len(exits) - 1]], ["plain"], tensors, greatest)
        inputs = {name: node.name for name, node in artifact.sources().items()}
        segments = Segments(exits, inputs, tensors, tuple(chain), plain, whole, greatest=greatest)
        crossing = boundaries(list(inputs.values()), segments.chain)[:-1]
        notes: dict[str, Any] = {
            # Of the greatest sample, where sizes vary.
            "boundary_bytes": [
                sum(math.prod(greatest[name]) * DTYPES[tensors[name].dtype] for name in names)
                for names in crossing
            ]
        }
        warnings = [f"no exit reads input {x!r}" for x in inputs if inputs[x] not in whole.inputs]
        if warning := _order_warning(artifact):
            warnings.append(warning)
        if warnings:
            notes["warning"] = "; ".join(warnings)
        return StageResult(segments, notes)


def assign(
    graph: fx.Graph, exits: Sequence[str], groups: Sequence[Sequence[int]], free: set[fx.Node]
) -> list[set[fx.Node]]:
    """Decide which operations each group of exits computes: those that no earlier group has.

    `exits` names the graph's outputs, `groups` holds indices into them. Outputs behind the exits
    are the confidences of the first of them, and each belongs to its exit. `free` nodes belong to
    nobody: whoever reads one gets its own (`cut`). Raises ModelError for an exit that needs no
    operation of its own, or that does not depend on the input, or whose confidence does not.
    """
    outputs = _outputs(graph)
    owned: set[fx.Node] = set()
    result = []
    for group in groups:
        mine: set[fx.Node] = set()
        for index in group:
            needed, sources = _ancestors(outputs[index], free)
            if not sources:
                raise ModelError(
                    f"exit {exits[index]!r} does not depend on the input; is it the right output?"
                )
            if not needed - owned - mine:
                raise ModelError(
                    f"exit {exits[index]!r} needs nothing that an exit before it has not computed; "
                    "name the exits in order of depth, each once"
                )
            mine |= needed - owned
            for confidence in outputs[len(exits) :][index : index + 1]:
                needed, sources = _ancestors(confidence, free)
                if not sources:
                    raise ModelError(
                        f"the confidence of exit {exits[index]!r} does not depend on the input; is "
                        "it the right output?"
                    )
                mine |= needed - owned
        # One part of a tuple never crosses a cut without the operator that made it: take them all.
        mine |= {
            user
            for node in mine
            for user in node.users
            if user.op == "call_function" and _is_part(user) and user not in owned
        }
        owned |= mine
        result.append(mine)
    return result


def cut(
    root: fx.GraphModule, nodes: set[fx.Node], outputs: Sequence[fx.Node], free: set[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The operations `nodes` as a module of their own, and the tensors it takes, in order.

    A call of the module gives the tuple of `outputs`. What a node computes does not change: the
    module holds copies of the nodes, of the weights and constants that they read, and of the sizes
    they read (taken from a tensor that the segment has).
    """
    ordered = [node for node in root.graph.nodes if node in nodes]
    inputs = _unique(
        read
        for node in ordered
        for read in node.all_input_nodes
        if read not in nodes and read not in free
    )
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if node.op == "placeholder":
                # Read for its size alone: nothing else that reaches the segment has that.
                with graph.inserting_after(copies[inputs[-1]]):
                    copies[node] = graph.placeholder(node.name)
                copies[node].meta = dict(node.meta)
                inputs.append(node)
            elif _is_size(node):
                copies[node] = _size(graph, node, copies, copied)
            else:
                copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in ordered:
        copied(node)
    graph.output(tuple(copied(node) for node in outputs))
    graph.lint()
    return fx.GraphModule(root, graph), inputs


def _parts(
    exported: Exported,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
    tensors: dict[str, TensorSpec],
    greatest: dict[str, tuple[int, ...]],
    *,
    channels_last: bool = False,
) -> list[Part[fx.GraphModule]]:
    """The network in as many parts as there are groups.

    Adds their tensors to `tensors`, and the shapes that those have of one sample to `greatest`.
    """
    root, owners, free = _prepared(exported, groups, channels_last=channels_last)
    graph = root.graph
    count = len(exported.exits)
    all_logits, given = _outputs(graph)[:count], _outputs(graph)[count:]
    sources = exported.sources(graph)
    batch = symbol(next(iter(sources.values())).meta["val"].shape[0])
    anew = made_anew(owners, free, batch, channels_last=channels_last)
    held = [mine | views for mine, views in zip(owners, anew, strict=True)]
    # FlopCounterMode needs real tensors to run on; each part takes what the parts before it gave.
    values = {sources[name]: one for name, one in by_name(exported.sample).items()}
    # An input that no exit reads is one all the same: a caller gives it.
    tensors |= {node.name: _spec(node, "the network", batch) for node in sources.values()}
    result = []
    for index, (mine, group, name) in enumerate(zip(owners, groups, names, strict=True)):
        crossing = [node for node in graph.nodes if node in mine and _read(node, held[index + 1 :])]
        logits = {exported.exits[exit]: all_logits[exit] for exit in group}
        confidences = {exported.exits[x]: given[x] for x in group if x < len(given)}
        outputs = _unique([*crossing, *logits.values(), *confidences.values()])
        program, inputs = cut(root, held[index], outputs, free)
        for node in (*inputs, *outputs):
            tensors[node.name] = _spec(node, name, batch)
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            values.update(zip(outputs, program(*(values[node] for node in inputs)), strict=True))
        result.append(
            Part(
                name=name,
                program=program,
                inputs=tuple(node.name for node in inputs),
                outputs=tuple(node.name for node in outputs),
                logits={exit: node.name for exit, node in logits.items()},
                parameters=sum(one.numel() for one in program.parameters()),
                macs=counter.get_total_flops() // 2 // len(next(iter(values.values()))),
                confidences={exit: node.name for exit, node in confidences.items()},
            )
        )
    greatest |= {node.name: tuple(value.shape[1:]) for node, value in values.items()}
    return result


def _with_own_confidences(exported: Exported) -> Exported:
    """The graph with a copy of every confidence that a segment before its exit's has computed.

    A router may know them all at the beginning; the runtime looks for each where its exit is.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph.graph, {}))
    exits = exported.exits
    each = [[index] for index in range(len(exits))]
    owners = assign(graph, exits, each, _free_nodes(graph))
    outputs = _outputs(graph)
    for index, node in enumerate(outputs[len(exits) :]):
        if node not in owners[index]:
            with graph.inserting_before(graph.output_node()):
                copied = graph.call_function(torch.ops.aten.clone.default, (node,))
            copied.meta = dict(node.meta)
            outputs[len(exits) + index] = copied
    if outputs == _outputs(graph):
        return exported
    graph.output_node().args = (tuple(outputs),)
    return replace(exported, graph=fx.GraphModule(exported.graph, graph))


def _recurrent(
    x: torch.Size, weight: torch.Size, recurrent: torch.Size, *_: object, **__: object
) -> int:
    """Of a layer in one direction: at every step of every sample each weight once."""
    return 2 * math.prod(x[:-1]) * (weight.numel() + recurrent.numel())


_FLOPS = {torch.ops.aten.mkldnn_rnn_layer: _recurrent}
"""What FlopCounterMode does not count: on a processor an LSTM is one operator."""


def _prepared(
    exported: Exported, groups: Sequence[Sequence[int]], *, channels_last: bool
) -> tuple[fx.GraphModule, list[set[fx.Node]], set[fx.Node]]:
    """The graph with what crosses turned to have the batch in front; who owns what; what is free.

    With `channels_last`, feature maps that cross are turned to have their channels last. Where
    nothing need be turned, it is the exported graph, node for node.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph.graph, {}))
    free = _free_nodes(graph)
    owners = assign(graph, exported.exits, groups, free)
    sources = exported.sources(graph)
    batch = symbol(next(iter(sources.values())).meta["val"].shape[0])
    # A map that is yet to be turned is sent as gladly as a view of it.
    anew = made_anew(owners, free, batch)
    held = [mine | views for mine, views in zip(owners, anew, strict=True)]
    root = fx.GraphModule(exported.graph, graph)
    given = {sources[name]: one for name, one in by_name(exported.sample).items()}
    for index, mine in enumerate(owners):
        crossing = [node for node in graph.nodes if node in mine and _read(node, held[index + 1 :])]
        for node in crossing:
            if fits(node, batch, channels_last=channels_last):
                continue
            if fits(node, batch):
                steps = CHANNELS_LAST
            else:
                layout = _layout(root, node, free, batch, given)
                if layout is None:
                    continue  # `_spec` refuses it.
                shape = node.meta["val"].shape
                steps = layout.steps([-1 if symbol(size) else size for size in shape])
            _views_apart(graph, node, owners, index, set().union(*anew[index + 1 :]))
            there, back = turn(graph, node, steps, lambda user: user not in mine)  # noqa: B023
            mine.update(there)
            first = next(one for one in owners if any(user in one for user in back[-1].users))
            first.update(back)
    return root, owners, free


def _views_apart(
    graph: fx.Graph, node: fx.Node, owners: Sequence[set[fx.Node]], index: int, views: set[fx.Node]
) -> None:
    """Let later parts read views of `node` of their own, where they would make those anew.

    The views of part `index` stay its own: they are of the tensor as it is there.
    """
    mine = owners[index]
    copies = {node: node}
    for view in list(graph.nodes):
        if view in views and view in mine and not copies.keys().isdisjoint(view.all_input_nodes):
            with graph.inserting_after(view):
                copies[view] = graph.node_copy(view, lambda one: copies.get(one, one))
            for user in [one for one in view.users if one not in mine]:
                user.replace_input_with(view, copies[view])
    for copied in reversed(list(copies.values())[1:]):
        first = next(one for one in owners if any(user in one for user in copied.users))
        first.add(copied)


def _read(node: fx.Node, parts: Iterable[set[fx.Node]]) -> bool:
    """Whether one of the parts, which hold these nodes, reads the tensor and does not make it."""
    return not _is_tuple(node) and any(
        node not in held and any(user in held for user in node.users) for held in parts
    )


def _layout(
    root: fx.GraphModule,
    node: fx.Node,
    free: set[fx.Node],
    batch: object,
    given: Mapping[fx.Node, torch.Tensor],
) -> Layout | None:
    """How the samples lie in a tensor, seen from a batch and from it in reverse; None if unclear.

    `given` is what the network's inputs hold, a batch of two samples each. The two must differ in
    the tensor, else every order of its rows would do.
    """
    candidates = layouts(node, batch)
    if not candidates:
        return None
    program, inputs = cut(root, _ancestors(node, free)[0], [node], free)
    x = [given[one] for one in inputs]
    with torch.no_grad():
        (value,), (swapped,) = program(*x), program(*(one.flip(0) for one in x))
    found = [layout for layout in candidates if layout.carries(value, swapped)]
    return found[0] if len(found) == 1 else None


def _order_warning(exported: Exported) -> str | None:
    """Words about exits that are cheaper than one before them, if there are any.

    An early exit with a heavy head may cost more than a later one, so this is no refusal.
    """
    exits = exported.exits
    alone = [
        _parts(exported, [[index]], [exit], {}, {})[0].macs for index, exit in enumerate(exits)
    ]
    for index in range(1, len(exits)):
        if alone[index] < alone[index - 1]:
            return (
                f"exit {exits[index]!r} needs {alone[index]:,} MACs, and {exits[index - 1]!r} "
                f"before it {alone[index - 1]:,}: are the exits in order of depth?"
            )
    return None


def _ancestors(node: fx.Node, free: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The operations that `node` needs, itself among them, and the network inputs under them."""
    needed, sources, stack = set(), set(), [node]
    while stack:
        current = stack.pop()
        if current.op == "placeholder":
            sources.add(current)
        elif current not in needed and current not in free:
            needed.add(current)
            stack.extend(current.all_input_nodes)
    return needed, sources


def _size(
    graph: fx.Graph,
    node: fx.Node,
    copies: dict[fx.Node, fx.Node],
    copied: Callable[[fx.Node], fx.Node],
) -> fx.Node:
    """A size, read anew: from a tensor of this segment that has it, else computed from others."""
    expression = symbol(node.meta.get("val"))
    for original, copy in list(copies.items()):
        value = original.meta.get("val")
        if isinstance(value, torch.Tensor) and expression is not None:
            for dim, size in enumerate(value.shape):
                if symbol(size) == expression:
                    made = graph.call_function(torch.ops.aten.sym_size.int, (copy, dim))
                    made.meta = dict(node.meta)
                    return made
    if any(
        isinstance(read.meta.get("val"), torch.Tensor) and read.op != "placeholder"
        for read in node.all_input_nodes
    ):
        raise ModelError(
            f"a segment needs the size {expression}, {node.name}{place_of(node)}, and no tensor "
            "that reaches it has that size; fix it in the model, or let it be computed from the "
            "batch"
        )
    return graph.node_copy(node, copied)


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    (outputs,) = graph.output_node().args
    return list(outputs)


def _spec(node: fx.Node, part: str, batch: object) -> TensorSpec:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    shape = [size if isinstance(size, int) else None for size in value.shape]
    batched = bool(shape) and symbol(value.shape[0]) == batch is not None
    mixed = any(batch in symbol(size).free_symbols for size in value.shape[1:] if symbol(size))
    if dtype not in DTYPES or not batched or mixed:
        sizes = ", ".join(str(size).replace(str(batch), "batch") for size in value.shape)
        raise ModelError(
            f"{part}: tensor {node.name}{place_of(node)} is {dtype} [{sizes}]; what crosses a cut "
            "has one dimension that is the batch, or the batch times a number where no size "
            "varies, and none besides that depends on the batch (of logits the batch comes first), "
            "and two samples differ in it; and it is "
            f"one of {', '.join(DTYPES)}: let the exit tap elsewhere"
        )
    return TensorSpec(dtype, tuple(shape))


def _free_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that do not depend on what is in the input: weights, sizes, masks made of them."""
    free: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "placeholder" and (_is_size(node) or free.issuperset(node.all_input_nodes)):
            free.add(node)
    return free


def _is_size(node: fx.Node) -> bool:
    """Whether the node is a number (of the shape, usually) and no tensor."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int)


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), tuple | list)


def _is_part(node: fx.Node) -> bool:
    """Whether the node takes one value out of an operator's several."""
    return bool(node.all_input_nodes) and _is_tuple(node.all_input_nodes[0])


def _unique(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return list(dict.fromkeys(nodes))
