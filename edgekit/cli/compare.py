"""`edgekit compare`: several bundles' or devices' measurements side by side."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.output import JsonOption, Terminal, refuse_inside_a_bundle
from edgekit.errors import BuildError, InputError
from edgekit.report.benches import differences, read_bench
from edgekit.report.compare import COLUMNS, page, rows

__all__ = ["compare"]


def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT...",
            help="Files that `edgekit bench --json` wrote, or bundles, for what their build saw.",
        ),
    ],
    page_to: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write a page, HTML, as well.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Put several bench reports side by side, as a table and as a page."""
    terminal = Terminal(json_to)
    if len(reports) < 2:
        raise InputError(f"compare takes two reports or more; found {len(reports)}")
    if page_to is not None:
        refuse_inside_a_bundle(page_to)
    benches = [read_bench(one) for one in reports]
    found = rows(benches)
    terminal.table("Chains side by side", COLUMNS, found)
    terminal.line()
    warnings = differences(benches)
    for one in warnings:
        terminal.line(f"Note: {one}")
    if page_to is not None:
        text = page(benches).encode("utf-8", "replace")
        try:
            page_to.write_bytes(text)
        except OSError as error:
            raise BuildError(f"--page {page_to}: cannot be written: {error.strerror}") from None
        terminal.line(f"Wrote {page_to}")
    terminal.json(
        {
            "reports": [{"source": one.source, **one.report} for one in benches],
            "differences": warnings,
        }
    )
