"""Several bench reports side by side: as rows, and as a page."""

from collections.abc import Sequence
from typing import Any

from edgekit.report import plots
from edgekit.report.benches import Bench, differences
from edgekit.report.page import Figure, Part, Section, Table, Text, render
from edgekit.report.words import ms_text, pair, share_text

__all__ = ["COLUMNS", "page", "rows"]

COLUMNS = (
    "network", "target", "device", "precision", "threads", "mean ms", "p95 ms", "x plain",
    "accuracy", "leave", "valid",
)  # fmt: skip
"""What `rows` has of each report."""


def rows(benches: Sequence[Bench]) -> list[list[str]]:
    """A row of text for each report, in the order of `COLUMNS`."""
    return [
        [
            name,
            one.report["target"],
            one.device,
            one.report["precision"],
            str(one.report["threads"]),
            ms_text(one.report["latency_ms"]["mean"]),
            ms_text(one.report["latency_ms"]["p95"]),
            f"{one.report['speedup']:.2f}",
            share_text(one.report["accuracy"]),
            " / ".join(share_text(exit["rate"]) for exit in one.report["exits"]),
            "yes" if one.report["valid"] else "no",
        ]
        for name, one in zip(names(benches), benches, strict=True)
    ]


def names(benches: Sequence[Bench]) -> list[str]:
    """A name for each that no other has: the network's, with what tells it apart."""
    tried: list[list[str]] = [
        [one.name for one in benches],
        [f"{one.name} {one.report['target']} {one.report['precision']}" for one in benches],
        [one.source for one in benches],
    ]
    found = next((one for one in tried if len(set(one)) == len(one)), tried[-1])
    # The same report twice is no mistake: it may be held against itself.
    return [name if name not in found[:row] else f"{name} ({row + 1})"
            for row, name in enumerate(found)]  # fmt: skip


def page(benches: Sequence[Bench]) -> str:
    """The reports on a page of their own. Raises DeviceError without matplotlib."""
    parts: list[Part] = [Text(one, warns=True) for one in differences(benches)]
    listed = Table("The chains", COLUMNS, tuple(map(tuple, rows(benches))), frozenset({0, 1, 2, 3}))
    parts.append(listed)
    parts.append(_latency(benches))
    if (figure := _trade(benches)) is not None:
        parts.append(figure)
    verdicts = [
        Text(f"{name} ({one.source}): {one.report['verdict']}")
        for name, one in zip(names(benches), benches, strict=True)
    ]
    return render(
        "Chains compared",
        ", ".join(one.source for one in benches),
        [Section("Side by side", tuple(parts)), Section("Each by itself", tuple(verdicts))],
        closing="Drawn by edgekit compare out of reports of edgekit bench.",
    )


def _latency(benches: Sequence[Bench]) -> Figure:
    """Each chain's mean, with its whole and plain networks below it."""
    bars, table = [], []
    for name, one in zip(names(benches), benches, strict=True):
        for what, found in (
            (name, one.report),
            ("  whole", one.report["whole"]),
            ("  plain", one.report["plain"]),
        ):
            latency = found["latency_ms"]
            key = "p50" if latency["p95"] is None else "p95"
            text = pair(ms_text(latency["mean"]), ms_text(latency[key]))
            bars.append(
                plots.Bar(what, latency["mean"], text, latency[key], main=found is one.report)
            )
            label = name if found is one.report else f"{name},{what[1:]}"
            table.append((label, *(ms_text(latency[x]) for x in ("mean", "p50", "p95", "p99"))))
    marked = {"p50" if one.report["latency_ms"]["p95"] is None else "p95" for one in benches}
    return Figure(
        "Latency, with the undivided networks",
        plots.bars("latency", f"ms, mean | {' or '.join(sorted(marked))}", bars),
        ", ".join(f"{one[0]} {one[1]} ms" for one in table),
        (Table("Latency in ms", ("network", "mean", "p50", "p95", "p99"), tuple(table)),),
    )


def _trade(benches: Sequence[Bench]) -> Figure | None:
    """Accuracy against latency; None where nobody knows an accuracy."""
    series: list[plots.Line | plots.Marks] = []
    table = []
    for what, place in (("chain", None), ("plain", "plain")):
        found: list[tuple[str, dict[str, Any]]] = [
            (name, one.report if place is None else one.report[place])
            for name, one in zip(names(benches), benches, strict=True)
        ]
        known = [(name, one) for name, one in found if one["accuracy"] is not None]
        if known:
            series.append(
                plots.Marks(
                    what,
                    tuple(one["latency_ms"]["mean"] for _, one in known),
                    tuple(one["accuracy"] for _, one in known),
                    labels=tuple(name for name, _ in known) if place is None else (),
                )
            )
        table += [
            (name, what, ms_text(one["latency_ms"]["mean"]), share_text(one["accuracy"], 2))
            for name, one in known
        ]
    if not series:
        return None
    return Figure(
        "Accuracy against mean latency",
        plots.panels("trade", "mean latency in ms", [("accuracy", series)], percent=[True]),
        ", ".join(f"{one[0]}, {one[1]}: {one[3]} at {one[2]} ms" for one in table),
        (
            Table(
                "Accuracy and latency",
                ("network", "which", "mean ms", "accuracy"),
                tuple(table),
                frozenset({0, 1}),
            ),
        ),
    )
