"""What all commands print with: tables, progress, JSON, errors."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekit.bundle.manifest import MANIFEST_NAME, Variant, boundaries
from edgekit.errors import BuildError
from edgekit.report.words import bytes_text, macs_text, tensor_text
from edgekit.runtime.profile import Measured

__all__ = [
    "JsonOption",
    "StageProgress",
    "Terminal",
    "print_error",
    "print_segments",
    "print_variants",
    "refuse_inside_a_bundle",
]

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the report as JSON; - is standard output."),
]


def print_error(message: str) -> None:
    """One line on standard error, never wrapped: it may be read by a program."""
    print(f"edgekit: {message}", file=sys.stderr)


def refuse_inside_a_bundle(path: Path) -> None:
    """Raises BuildError for a file to be written into a bundle, which a reader then refuses."""
    for folder in path.absolute().parents:
        if (folder / MANIFEST_NAME).is_file():
            raise BuildError(f"{path}: lies in the bundle {folder}; write it elsewhere")


def print_segments(terminal: "Terminal", variant: Variant, sources: Sequence[str]) -> None:
    """A table of a chain's segments: what each holds, and what crosses the cut behind it.

    `sources` names the network's inputs.
    """
    rows = []
    crossings = boundaries(sources, variant.segments)
    for segment, crossing in zip(variant.segments, crossings, strict=True):
        rows.append(
            [
                segment.name,
                ", ".join(exit.name for exit in segment.exits),
                f"{segment.parameters:,}",
                f"{segment.macs / 1e6:,.2f} M",
                bytes_text(segment.size_bytes) if segment.size_bytes else "-",
                ", ".join(tensor_text(variant.tensors[name]) for name in crossing) or "-",
            ]
        )
    terminal.table(
        "Segments", ["segment", "exit", "parameters", "MACs", "file", "boundary per sample"], rows
    )


def print_variants(
    terminal: "Terminal",
    variants: Sequence[dict[str, Any]],
    measured: Mapping[str, Measured] | None = None,
) -> None:
    """A table of a ladder's variants, as its document has them, with what a device `measured`.

    What is not known of any has no column. Agreement is with the widest one's answers.
    """
    of = next((one["accuracy_of"] for one in variants if one["accuracy_of"]), None)
    columns = ["variant", "parameters", "MACs"]
    columns += ["segments"] if any(one["size_bytes"] for one in variants) else []
    columns += ["agreement" if of == "agreement" else "accuracy"] if of else []
    columns += ["mean ms", "p95 ms", "memory"] if measured else []
    rows = []
    for one in variants:
        row = [one["name"], f"{one['parameters']:,}", macs_text(one["macs"])]
        if "segments" in columns:
            row.append(bytes_text(one["size_bytes"]))
        if of:
            row.append("-" if one["accuracy"] is None else f"{one['accuracy']:.2%}")
        if measured:
            here = measured.get(one["name"])
            row += [
                f"{here.latency_ms.mean:.3f}" if here else "-",
                f"{here.latency_ms.p95:.3f}" if here else "-",
                bytes_text(here.resident_bytes) if here and here.resident_bytes else "-",
            ]
        rows.append(row)
    terminal.table("Variants", columns, rows)


_UNWRAPPED = 1000
"""Columns wide enough that nothing is folded."""


class Terminal:
    """Where a command prints. When JSON goes to standard output, people read standard error."""

    def __init__(self, json_to: str | None = None) -> None:
        self._json_to = json_to
        if json_to not in {None, "-"} and not Path(str(json_to)).absolute().parent.is_dir():
            raise BuildError(f"--json {json_to}: there is no such folder")
        if json_to not in {None, "-"}:
            refuse_inside_a_bundle(Path(str(json_to)))
        stream = sys.stderr if json_to == "-" else sys.stdout
        # Into a file or a pipe, a row stays one line, however long a path in it is.
        width = None if stream.isatty() else _UNWRAPPED
        self.console = Console(file=stream, highlight=False, width=width)

    def line(self, text: str = "") -> None:
        """Print a line of text, whole: a command in it can be copied."""
        self.console.print(text, markup=False, soft_wrap=True)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, fold: int = 0
    ) -> None:
        """Print a table. Column `fold` gives way in a narrow terminal; it and the first hold text.

        The others hold numbers, and stand to the right.
        """
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for index, column in enumerate(columns):
            text = index in {0, fold}
            table.add_column(
                column,
                justify="left" if text else "right",
                overflow="fold",
                no_wrap=index != fold,
            )
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    def json(self, document: Any) -> None:
        """Write the report where `--json` said, if it did. Raises BuildError if it cannot."""
        if self._json_to is None:
            return
        text = json.dumps(document, indent=2) + "\n"
        if self._json_to == "-":
            sys.stdout.write(text)
            return
        try:
            Path(self._json_to).write_text(text, encoding="utf-8")
        except OSError as error:
            raise BuildError(f"{self._json_to}: cannot be written: {error.strerror}") from None


class StageProgress:
    """Shows a build's stages: a live line in a terminal, a plain line per stage elsewhere."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """See `edgekit.pipeline.Progress.stage`."""
        start = time.perf_counter()
        with self.live(name) as step:
            yield step
        self._terminal.line(f"  {name:<10} {time.perf_counter() - start:6.1f} s")

    @contextmanager
    def live(self, name: str) -> Iterator[Callable[[str], None]]:
        """A line that shows what goes on just now, in a terminal; nothing elsewhere."""
        if not self._terminal.console.is_terminal:
            yield lambda text: None
            return
        with self._terminal.console.status(name) as status:
            yield lambda text: status.update(f"{name}: {text}")
