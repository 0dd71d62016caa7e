"""`edgekit report`: the bundle's page, drawn anew."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.bundle.reader import read_bundle
from edgekit.cli.output import JsonOption, Terminal
from edgekit.report import plots
from edgekit.report.words import bytes_text

__all__ = ["report"]


def report(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Show this report of `edgekit bench --json`, of a device perhaps.",
            show_default="the build's own",
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Draw the bundle's page, report.html, from what lies in the bundle."""
    plots.demand()
    from edgekit.report.bundles import write_report

    terminal = Terminal(json_to)
    path = write_report(read_bundle(bundle), bench)
    size_bytes = path.stat().st_size
    terminal.line(f"Wrote {path} ({bytes_text(size_bytes)})")
    terminal.json({"path": str(path), "size_bytes": size_bytes})
