"""`edgekit report`: the bundle's page, drawn anew."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.bundle.reader import read_bundle, read_report
from edgekit.cli.output import JsonOption, StageProgress, Terminal
from edgekit.errors import BuildError, BundleError, DeviceError
from edgekit.report import plots
from edgekit.report.words import bytes_text

__all__ = ["ReportOption", "draw_page", "report"]

ReportOption = Annotated[
    bool, typer.Option("--report/--no-report", help="Draw report.html into the bundle.")
]


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


def draw_page(terminal: Terminal, folder: Path) -> str | None:
    """Draw a new bundle's page, where it has none of this evidence; why not, if it cannot be."""
    from edgekit.report.bundles import write_report

    bundle = read_bundle(folder)
    try:
        if (read_report(bundle) or ("", False))[1]:
            return None
    except BundleError:
        pass  # One that was changed is drawn anew.
    # The bundle is finished: a page that cannot be drawn or written takes nothing from it.
    try:
        plots.demand()
        with StageProgress(terminal).stage("report"):
            write_report(bundle)
    except (BuildError, DeviceError, ImportError) as error:
        return str(error)
    return None
