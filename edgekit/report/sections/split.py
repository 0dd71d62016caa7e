"""The network cut into segments, as a picture."""

from typing import Any

from edgekit.bundle.manifest import boundaries
from edgekit.report import plots
from edgekit.report.facts import Facts
from edgekit.report.page import Figure, Section, Table, Text
from edgekit.report.words import (
    ABSENT,
    bytes_text,
    count_text,
    macs_text,
    of_samples,
    share_text,
    short,
    tensor_text,
)

__all__ = ["split"]


def split(facts: Facts) -> Section:
    """Where the network is cut, what crosses, and how much work lies before each exit."""
    manifest, variant = facts.manifest, facts.manifest.variant()
    sources = [one.tensor for one in manifest.inputs]
    crossings = boundaries(sources, variant.segments)
    rates = facts.rates
    total = sum(one.macs for one in variant.segments) or 1
    boxes = [
        plots.Box(
            one.name,
            f"{macs_text(one.macs)} MACs, {bytes_text(one.size_bytes)}",
            one.exits[-1].name,
            f"{share_text(rates[number])} leave" if rates else "",
            one.macs / total,
        )
        for number, one in enumerate(variant.segments)
    ]
    made = dict.fromkeys(sources, -1)
    for number, one in enumerate(variant.segments):
        made |= dict.fromkeys(one.outputs, number)
    read = {
        name: number for number, one in enumerate(variant.segments) for name in one.inputs
    }  # The last that reads it.
    skips = [
        plots.Skip(made[name], number) for name, number in read.items() if number > made[name] + 1
    ]
    words = [_crossing(variant.tensors[name].bytes_per_sample for name in one) for one in crossings]
    source = ", ".join(f"{one.name} {one.shape_text()} {one.dtype}" for one in manifest.inputs)
    rows = []
    done = 0
    for number, (one, crossing) in enumerate(zip(variant.segments, crossings, strict=True)):
        done += one.macs
        rows.append(
            (
                one.name,
                one.exits[-1].name,
                count_text(one.parameters),
                macs_text(one.macs),
                share_text(done / total),
                bytes_text(one.size_bytes),
                share_text(rates[number]) if rates else ABSENT,
                "; ".join(tensor_text(variant.tensors[name]) for name in crossing) or ABSENT,
            )
        )
    table = Table(
        "Segments",
        (
            "segment", "exit", "parameters", "MACs", "MACs so far", "file", "leave here",
            "crosses to later ones, per sample",
        ),
        tuple(rows),
        frozenset({0, 1, 7}),
    )  # fmt: skip
    figure = Figure(
        "Segments and what crosses the cuts",
        plots.chain("split", short(source, 50), boxes, words[:-1], skips),
        f"{len(boxes)} segments in a row. "
        + " ".join(f"{one.name}: {one.detail}, exit {one.exit}, {one.leaves}." for one in boxes),
        (),
    )
    return Section(
        "The split",
        (
            Text(
                "Each segment holds what its exit needs and no earlier one has computed. The bar "
                "in a box is its share of all multiply-accumulates (MACs)."
                + (f" The shares that leave are of {of_samples(*facts.rated_on)}." if rates else "")
                + (
                    " A dashed line is a tensor that passes over segments, to a later one."
                    if skips
                    else ""
                )
            ),
            figure,
            table,
        ),
    )


def _crossing(sizes: Any) -> str:
    known = list(sizes)
    if None in known:
        return f"{len(known)} tensor{'s' * (len(known) > 1)}, size varies"
    several = f"{len(known)} tensors, " if len(known) > 1 else ""
    return several + bytes_text(sum(known))
