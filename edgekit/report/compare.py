"""Several bench reports side by side: as rows, and as a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.report import plots
from edgekit.report.benches import Bench, differences
from edgekit.report.page import Figure, Part, Section, Table, Text, render
from edgekit.report.words import ms_text, pair, share_text, short

__all__ = ["COLUMNS", "page", "rows"]

COLUMNS = (
    "network", "target", "device", "precision", "threads", "mean ms", "p95 ms", "x plain",
    "accuracy", "valid", "leave",
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
            "yes" if one.report["valid"] else "no",
            " / ".join(share_text(exit["rate"]) for exit in one.report["exits"]),
        ]
        for name, one in zip(names(benches), benches, strict=True)
    ]


def names(benches: Sequence[Bench]) -> list[str]:
    """A name for each that no other has: the network's, with what tells it apart."""
    tried: list[list[str]] = [
        [one.name for one in benches],
        [f"{one.name} {one.report['target']} {one.report['precision']}" for one in benches],
        [Path(one.source).name for one in benches],
        [one.source for one in benches],
    ]
    found = next((one for one in tried if len(set(one)) == len(one)), tried[-1])
    # The same report twice is no mistake: it may be held against itself.
    return [name if name not in found[:row] else f"{name} ({row + 1})"
            for row, name in enumerate(found)]  # fmt: skip


def page(benches: Sequence[Bench]) -> str:
    """The reports on a page of their own. Raises DeviceError without matplotlib."""
    parts: list[Part] = [Text(one, warns=True) for one in differences(benches)]
    # Of many exits their shares are a long row: they have a table of their own.
    found = rows(benches)
    parts.append(
        Table(
            "The chains",
            COLUMNS[:-1],
            tuple(tuple(one[:-1]) for one in found),
            frozenset({0, 1, 2, 3}),
        )
    )
    parts.append(
        Table(
            "Where samples leave, from the first exit to the final one",
            ("network", "leave"),
            tuple((one[0], one[-1]) for one in found),
            frozenset({0, 1}),
        )
    )
    parts.append(_latency(benches))
    if (figure := _trade(benches)) is not None:
        parts.append(figure)
    verdicts = [
        Text(f"{name} ({one.source}, {one.device}): {one.report['verdict']}")
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
    # One percentile for all, the furthest out that every report has.
    known = all(
        one["latency_ms"]["p95"] is not None for bench in benches for _, one in _networks(bench)
    )
    key = "p95" if known else "p50"
    for name, bench in zip(names(benches), benches, strict=True):
        for what, one in _networks(bench):
            latency = one["latency_ms"]
            bars.append(
                plots.Bar(
                    name if what == "chain" else what,
                    latency["mean"],
                    pair(ms_text(latency["mean"]), ms_text(latency[key])),
                    latency[key],
                    main=what == "chain",
                )
            )
            numbers = (ms_text(latency[x]) for x in ("mean", "p50", "p95", "p99"))
            table.append((name, what, *numbers, share_text(one["accuracy"], 2)))
    return Figure(
        "Latency, with the undivided networks",
        plots.bars("latency", f"ms, mean | {key}", bars),
        ", ".join(f"{one[0]}, {one[1]}: {one[2]} ms" for one in table),
        (
            Table(
                "Latency in ms",
                ("network", "which", "mean", "p50", "p95", "p99", "accuracy"),
                tuple(table),
                frozenset({0, 1}),
            ),
        ),
    )


def _networks(bench: Bench) -> list[tuple[str, dict[str, Any]]]:
    """What a report has side by side: the chain, and the network undivided."""
    report = bench.report
    return [("chain", report), ("whole", report["whole"]), ("plain", report["plain"])]


def _trade(benches: Sequence[Bench]) -> Figure | None:
    """The way from each plain network to its chain; None where nobody knows an accuracy."""
    ways: list[plots.Line | plots.Marks] = []
    table = []
    for name, bench in zip(names(benches), benches, strict=True):
        pair_of = bench.report["plain"], bench.report
        if any(one["accuracy"] is None for one in pair_of):
            continue
        x = tuple(one["latency_ms"]["mean"] for one in pair_of)
        y = tuple(one["accuracy"] for one in pair_of)
        ways.append(plots.Line(short(name), x, y))
        table.append((name, ms_text(x[0]), share_text(y[0], 2), ms_text(x[1]), share_text(y[1], 2)))
    if not ways:
        return None
    chains = plots.Marks("chain", tuple(one.x[1] for one in ways), tuple(one.y[1] for one in ways))
    return Figure(
        "From the plain network to the chain",
        plots.panels(
            "trade", "mean latency in ms", [("accuracy", [*ways, chains])], percent=[True]
        ),
        ", ".join(f"{one[0]}: from {one[2]} at {one[1]} ms to {one[4]} at {one[3]} ms"
                  for one in table),
        (
            Table(
                "Accuracy and latency",
                ("network", "plain ms", "plain accuracy", "chain ms", "chain accuracy"),
                tuple(table),
            ),
        ),
    )  # fmt: skip
