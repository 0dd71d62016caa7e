"""What crosses a cut: which tensor of a chain of views, and its batch in front.

A view (a transpose, a slice, another shape) costs next to nothing, so a later segment makes it
anew from whichever tensor of the chain is best sent. Where none has the batch in front, what is
sent is turned first, and turned back behind the cut. Decided by shapes, by what operators say of
their aliasing, and by running the graph; never by names.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgekit.bundle.manifest import DTYPES
from edgekit.limits import LIMITS

__all__ = ["CHANNELS_LAST", "Layout", "fits", "is_map", "layouts", "made_anew", "symbol", "turn"]

_SAME = 1e-3
"""How far the rows of two batches may differ and be one sample's: kernels round otherwise."""

_COPIES = {torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default}
"""With a view, what a reshape becomes where memory must be laid out anew."""


Turn = tuple[torch._ops.OpOverload, list[int]]
"""An operator, and its one argument behind the tensor."""

CHANNELS_LAST: tuple[list[Turn], list[Turn]] = (
    [(torch.ops.aten.permute.default, [0, 2, 3, 1])],
    [(torch.ops.aten.permute.default, [0, 3, 1, 2])],
)
"""What lays feature maps out as some engines have them, `[batch, height, width, channels]`."""

_SENT = "edgekit_sent"
"""Marks, among what is known of a node, that it was made to cross."""


@dataclass(frozen=True)
class Layout:
    """Where in a tensor its samples lie: along `dim`, which may hold more than the batch.

    `split` is None where the batch is all of `dim`, else the sizes of the two dimensions folded
    into it, -1 for the batch: (-1, 4) has four rows of each sample side by side, (4, -1) four
    times the whole batch.
    """

    dim: int
    split: tuple[int, int] | None = None

    def steps(self, shape: Sequence[int]) -> tuple[list[Turn], list[Turn]]:
        """Operators and their arguments that bring the batch to the front, and that take it back.

        `shape` is the tensor's, with any number for the size of `dim`, and, where the batch is all
        of that, for other sizes that vary.
        """
        aten = torch.ops.aten
        sizes = [-1 if dim == self.dim else size for dim, size in enumerate(shape)]
        unfolded = list(sizes)
        unfolded[self.dim : self.dim + 1] = self.split or (-1,)
        place = self.dim + (self.split or (-1,)).index(-1)
        order = [place, *(dim for dim in range(len(unfolded)) if dim != place)]
        there: list[Turn] = []
        back: list[Turn] = []
        if self.split is not None:
            there, back = [(aten.reshape.default, unfolded)], [(aten.reshape.default, sizes)]
        if place:
            inverse = [order.index(dim) for dim in range(len(order))]
            there, back = (
                [*there, (aten.permute.default, order)],
                [(aten.permute.default, inverse), *back],
            )
        return there, back

    def carries(self, value: torch.Tensor, swapped: torch.Tensor) -> bool:
        """Whether this is how the samples lie, by the values of a batch and of it in reverse."""
        there, _ = self.steps(value.shape)
        for operator, argument in there:
            value, swapped = operator(value, argument), operator(swapped, argument)
        scale = float(value.abs().max()) if value.is_floating_point() else 0.0
        difference = (value.flip(0).double() - swapped.double()).abs().max()
        return bool(difference <= _SAME * scale)


def layouts(node: fx.Node, batch: object) -> list[Layout]:
    """How the samples may lie in a tensor, by its shape; none where it cannot be sent.

    `batch` is the symbol of the batch's size. What the shape leaves open, `Layout.carries` decides.
    """
    value = node.meta["val"]
    vary = [(dim, symbol(size)) for dim, size in enumerate(value.shape) if symbol(size)]
    found = [(dim, size) for dim, size in vary if batch in size.free_symbols]
    if _dtype(node) not in DTYPES or len(found) != 1:
        return []
    ((dim, expression),) = found
    times = expression / batch
    if times == 1:
        return [Layout(dim)]
    # To unfold a dimension, the numbers of all others are needed.
    if not times.is_Integer or len(vary) > 1 or len(value.shape) >= LIMITS.tensor_rank:
        return []
    return [Layout(dim, (-1, int(times))), Layout(dim, (int(times), -1))]


def fits(node: fx.Node, batch: object, *, channels_last: bool = False) -> bool:
    """Whether a tensor can cross as it is: the batch in front, and fixed sizes after it.

    With `channels_last`, a feature map only where it was turned for that.
    """
    turned = not channels_last or _SENT in node.meta or not is_map(node)
    return turned and layouts(node, batch) == [Layout(0)]


def made_anew(
    owners: Sequence[set[fx.Node]],
    free: set[fx.Node],
    batch: object,
    *,
    channels_last: bool = False,
) -> list[set[fx.Node]]:
    """Per part, the views of earlier parts' tensors that it makes itself, instead of reading them.

    `owners` holds the parts' own operations, `free` those that are everybody's. Of a chain of
    views, what is sent is first of all a tensor that fits, then the fewest bytes, then the source.
    """
    reads = {
        (index, read): None
        for index, mine in enumerate(owners)
        for user in mine
        for read in user.all_input_nodes
        if read not in mine and read not in free
    }
    chains = {node: _chain(node, free) for _, node in reads}
    sources: dict[fx.Node, list[fx.Node]] = {}
    for node, chain in chains.items():
        sources.setdefault(chain[-1], []).append(node)

    def cost(sent: Iterable[fx.Node]) -> tuple[int, int]:
        once = set(sent)
        misfits = sum(not fits(node, batch, channels_last=channels_last) for node in once)
        # The source of views that someone reads as it is crosses in any case.
        return misfits, sum(_bytes(node) for node in once if chains.get(node) != [node])

    sent: dict[fx.Node, fx.Node] = {}
    for source, nodes in sources.items():
        together = dict.fromkeys(nodes, source)
        apart = {node: min(reversed(chains[node]), key=lambda one: cost([one])) for node in nodes}
        sent |= together if cost(together.values()) <= cost(apart.values()) else apart
    result: list[set[fx.Node]] = [set() for _ in owners]
    for index, node in reads:
        chain = chains[node]
        result[index].update(chain[: chain.index(sent[node])])
    return result


def is_map(node: fx.Node) -> bool:
    """Whether a tensor may be a feature map: floats `[batch, channels, height, width]`."""
    value = node.meta["val"]
    return value.dim() == 4 and value.is_floating_point()


def turn(
    graph: fx.Graph,
    node: fx.Node,
    steps: tuple[list[Turn], list[Turn]],
    later: Callable[[fx.Node], bool],
) -> tuple[list[fx.Node], list[fx.Node]]:
    """Let the users that are `later` read a tensor by way of another layout.

    `steps` are the operators that lead there, and back (`Layout.steps`, `CHANNELS_LAST`). Changes
    the graph in place, but nothing that it computes. Returns the new nodes of either way.
    """
    there, back = steps
    users = [user for user in node.users if later(user)]
    made = []
    last = node
    for operator, argument in (*there, *back):
        with graph.inserting_after(last):
            new = graph.create_node(
                "call_function", operator, (last, argument), name=f"{node.name}_sent"
            )
        with last.meta["val"].fake_mode:
            new.meta["val"] = operator(last.meta["val"], argument)
        made.append(new)
        last = new
        if len(made) == len(there):
            new.meta[_SENT] = True
    for user in users:
        user.replace_input_with(node, last)
    for one in graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        # A turned tensor lies otherwise in memory, and a view of it there may be none.
        one.target = torch.ops.aten.reshape.default
    return made[: len(there)], made[len(there) :]


def symbol(size: object) -> Any:
    """The expression of a symbolic size, to compare; None for a plain number."""
    return getattr(getattr(size, "node", None), "expr", None)


def _chain(node: fx.Node, free: set[fx.Node]) -> list[fx.Node]:
    """The node, what it is a view of, and so on to the first that is no view."""
    chain = [node]
    while (source := _viewed(chain[-1], free)) is not None:
        chain.append(source)
    return chain


def _viewed(node: fx.Node, free: set[fx.Node]) -> fx.Node | None:
    """The tensor whose values, in another order or place, are all that the node gives."""
    operator = node.target
    if not isinstance(operator, torch._ops.OpOverload) or not (
        operator in _COPIES
        # It reads memory by its layout, which is another one behind a cut.
        or (operator.is_view and operator is not torch.ops.aten.as_strided.default)
    ):
        return None
    sources = [read for read in node.all_input_nodes if read not in free]
    tensors = [one.meta.get("val") for one in (node, *sources)]
    if len(sources) != 1 or not all(isinstance(one, torch.Tensor) for one in tensors):
        return None
    return sources[0]


def _bytes(node: fx.Node) -> int:
    """Bytes of one sample, nearly: folded dimensions count by their factor.

    Where sizes vary, of the sample that was exported with.
    """
    value = node.meta["val"]
    sizes = [size.node.hint if symbol(size) else size for size in value.shape]
    return math.prod(sizes) * value.dtype.itemsize


def _dtype(node: fx.Node) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")
