"""`edgekit report`: a bundle's or a ladder's page, drawn anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgekit.bundle.ladder import is_ladder
from edgekit.bundle.reader import read_bundle, read_report
from edgekit.cli.output import JsonOption, StageProgress, Terminal
from edgekit.errors import BuildError, BundleError, DeviceError
from edgekit.report import plots
from edgekit.report.words import bytes_text

__all__ = ["ReportOption", "draw_ladder_page", "draw_page", "report"]

ReportOption = Annotated[
    bool, typer.Option("--report/--no-report", help="Draw report.html into the bundle.")
]


def report(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a ladder's.")],
    bench: Annotated[
        Path | None,
        typer.Option(
            help="Show this report of `edgekit bench --json`, of a device perhaps.",
            show_default="the build's own",
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Draw the bundle's page, report.html, from what lies in the bundle; or a ladder's."""
    plots.demand()
    terminal = Terminal(json_to)
    if is_ladder(bundle):
        from edgekit.report.ladders import write_ladder_report

        path = write_ladder_report(bundle, bench)
    else:
        from edgekit.report.bundles import write_report

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
    return _drawn(terminal, lambda: write_report(bundle))


def draw_ladder_page(terminal: Terminal, folder: Path) -> str | None:
    """As `draw_page`, of a ladder, whose variants' pages are drawn."""
    from edgekit.report.ladders import drawn_already, write_ladder_report

    if drawn_already(folder):
        return None
    return _drawn(terminal, lambda: write_ladder_report(folder))


def _drawn(terminal: Terminal, write: Callable[[], Path]) -> str | None:
    # What was built is finished: a page that cannot be drawn or written takes nothing from it.
    try:
        plots.demand()
        with StageProgress(terminal).stage("report"):
            write()
    except (BuildError, DeviceError, ImportError) as error:
        return str(error)
    return None
