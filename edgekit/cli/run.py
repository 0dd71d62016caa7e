"""`edgekit run`: classify files."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.reader import read_bundle
from edgekit.cli.output import JsonOption, Terminal, print_error
from edgekit.errors import InputError
from edgekit.runtime import Chain

__all__ = ["run"]


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    files: Annotated[list[Path], typer.Argument(help="Images, or .npy arrays.")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="the target's")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Classify files with a bundle, one by one, and say where each left the network."""
    terminal = Terminal(json_to)
    found_bundle = read_bundle(bundle)
    chain = Chain.from_bundle(found_bundle, threads=threads)
    rows: list[list[str]] = []
    report: list[dict[str, Any]] = []
    failed = False
    for file in files:
        try:
            x = chain.read(file)
            if not rows:
                chain.one(x)  # The first call also makes the engine's buffers: not what is timed.
            found = chain.one(x, timings=True)
        except InputError as error:
            # One bad file among many does not lose the others their answer.
            print_error(str(error) if str(file) in str(error) else f"{file}: {error}")
            failed = True
            continue
        assert found.segment_latency_ms is not None  # noqa: S101  (timings were asked for)
        latency_ms = sum(found.segment_latency_ms)
        rows.append(
            [str(file), found.label, f"{found.confidence:.4f}", found.exit, f"{latency_ms:.3f}"]
        )
        confidence = found.confidence if math.isfinite(found.confidence) else None
        entry = {**found._asdict(), "confidence": confidence, "latency_ms": latency_ms}
        report.append({"file": str(file), **entry})
    if rows:
        terminal.table("Predictions", ["file", "class", "confidence", "exit", "ms"], rows)
    terminal.json({"bundle_id": found_bundle.manifest.bundle_id, "predictions": report})
    if failed:
        raise typer.Exit(InputError.exit_code)
