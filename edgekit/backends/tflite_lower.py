"""What is done to a TFLite file behind the converter: names, batches, layout."""

import re
from collections.abc import Sequence

import numpy as np

from edgekit.backends.tflite_graph import Graph

__all__ = ["batch_freed", "named", "without_transposes"]

_NUMBER = re.compile(r"\d+$")


def named(program: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The converter's file with the part's own names for what goes in and what comes out.

    The converter numbers both in the order of the module's; the file has them in any.
    """
    graph = Graph(program)
    for names, ends in ((inputs, graph.signature.inputs), (outputs, graph.signature.outputs)):
        for one in ends:
            found = _NUMBER.search(one.name.decode())
            assert found is not None  # noqa: S101  (args_0 and output_0 are what it calls them)
            one.name = names[int(found.group())].encode()
            graph.tensors[one.tensorIndex].name = one.name
    return graph.program()


def batch_freed(program: bytes) -> bytes:
    """The file with a batch of any size, as far as its operators leave that open.

    Reshapes take the batch from what they are given, and the file says of its inputs and outputs
    that their first size varies. Whether samples that run together are then what they are alone is
    for the caller to find out.
    """
    graph = Graph(program)
    for operator in graph.operators:
        if graph.kind(operator) != "RESHAPE" or len(operator.inputs) < 2:
            continue
        sizes = graph.constant(operator.inputs[1])
        if sizes is None or sizes.ndim != 1 or not len(sizes) or -1 in sizes:
            continue
        # The batch, or what it was folded into, comes first.
        freed = np.array([-1, *sizes[1:]], np.int32)
        operator.inputs[1] = graph.add_constant(operator.inputs[1], freed)
        if operator.builtinOptions is not None:
            operator.builtinOptions.newShape = freed.tolist()
    for tensor in (*graph.inputs.values(), *graph.outputs.values()):
        graph.tensors[tensor].shapeSignature = [-1, *graph.shape(tensor)[1:]]
    return graph.program()


def without_transposes(program: bytes) -> bytes:
    """The file without the transposes that a reduction right behind them can do without.

    The converter computes with channels last, and turns features back before a global pool that
    was written for channels first: the pool takes the other axes instead. Without those, too, that
    the next one undoes. The very same bytes where there is none.
    """
    graph = Graph(program)
    changed = _without_undone(graph)
    for operator in graph.operators:
        if graph.kind(operator) not in _REDUCTIONS or operator.builtinOptions.keepDims:
            continue
        maker = graph.maker(operator.inputs[0])
        if maker is None or graph.kind(maker) != "TRANSPOSE":
            continue
        order, axes = graph.constant(maker.inputs[1]), graph.constant(operator.inputs[1])
        if order is None or axes is None:
            continue
        kept = [int(axis) for axis in order if axis not in order[axes]]
        if kept != sorted(kept):
            continue  # What is left would come in another order.
        new = order[np.atleast_1d(axes)].astype(axes.dtype).reshape(axes.shape)
        operator.inputs[0] = maker.inputs[0]
        operator.inputs[1] = graph.add_constant(operator.inputs[1], new)
        changed = True
    if not changed:
        return program
    graph.drop_unread()
    return graph.program()


def _without_undone(graph: Graph) -> bool:
    """Let nobody read what is turned there and back; False where nothing is."""
    changed = False
    for operator in graph.operators:
        maker = graph.maker(operator.inputs[0])
        if graph.kind(operator) != "TRANSPOSE" or maker is None or graph.kind(maker) != "TRANSPOSE":
            continue
        there, back = graph.constant(maker.inputs[1]), graph.constant(operator.inputs[1])
        if there is None or back is None or list(there[back]) != sorted(there):
            continue
        (source, turned) = maker.inputs[0], operator.outputs[0]
        ends = {*graph.inputs.values(), *graph.outputs.values()}
        if turned in ends and source in ends:
            continue  # The file gives a copy of what it is given, or gives twice.
        graph.replace(turned, source)
        changed = True
    return changed


_REDUCTIONS = {"MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"}
"""Operators that take axes as a constant, and to which the order of the axes means nothing."""
