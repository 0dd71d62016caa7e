"""`edgekit install`: build a bundle's engines on the device that is to run them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.bundle.manifest import Target
from edgekit.bundle.reader import read_bundle
from edgekit.cli.output import JsonOption, StageProgress, Terminal
from edgekit.errors import BuildError, CheckError, DeviceError
from edgekit.report.words import bytes_text
from edgekit.runtime import tensorrt_api
from edgekit.runtime.device import describe, other_than_target

if TYPE_CHECKING:
    from edgekit.runtime.install import Installation

__all__ = ["install", "install_here"]


def install(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    undivided: Annotated[
        bool,
        typer.Option(
            "--undivided/--chain-only", help="Also build the undivided networks, for bench."
        ),
    ] = True,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build all anew, whatever lies there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is missing here, and stop.")
    ] = False,
    json_to: JsonOption = None,
) -> None:
    """Build a bundle's engines for this device, beside it, and run the golden samples on them."""
    terminal = Terminal(json_to)
    found = read_bundle(bundle)
    manifest = found.manifest
    if manifest.target.gpu is None:
        terminal.line(f"{bundle}: nothing to install: {manifest.target.engine} loads it as it is")
        terminal.json({"bundle_id": manifest.bundle_id, "engines": []})
        return
    from edgekit.runtime import install as library
    from edgekit.runtime.plans import folder_of

    if dry_run:
        pairs = manifest.baselines if undivided else ()
        segments = [
            *(one for variant in manifest.variants for one in variant.segments),
            *(one for pair in pairs for one in (pair.plain, pair.whole)),
        ]
        looked = list(zip(segments, library.records(found, segments), strict=True))
        for segment, record in looked:
            state = "to be built" if record is None or rebuild else record.proven
            terminal.line(f"{segment.name:<16}{state}")
        terminal.json(
            {
                "bundle_id": manifest.bundle_id,
                "engines": [
                    {
                        "segment": segment.name,
                        "record": record and dataclasses.asdict(record),
                    }
                    for segment, record in looked
                ],
            }
        )
        return
    with StageProgress(terminal).stage("install") as step:
        done = library.install(found, undivided=undivided, rebuild=rebuild, step=step)
    _print(terminal, done)
    terminal.line(f"Wrote {folder_of(found.path)}. Next: edgekit bench {bundle}")
    terminal.json(
        {
            "bundle_id": manifest.bundle_id,
            "gpu": dataclasses.asdict(done.gpu),
            "tensorrt": done.tensorrt,
            "engines": [dataclasses.asdict(one) for one in done.records],
            "fresh": list(done.fresh),
            "golden": dataclasses.asdict(done.golden),
        }
    )


def install_here(terminal: Terminal, folder: Path, target: Target) -> None:
    """Build a new bundle's engines where this machine has the GPU that it is for, and TensorRT.

    The bundle is finished, and can be copied, whatever comes of that.
    """
    if target.gpu is None or other_than_target(target, describe(gpu=True)) is not None:
        return
    from edgekit.runtime import install as library

    if not tensorrt_api.installed():
        return
    try:
        with StageProgress(terminal).stage("install") as step:
            done = library.install(read_bundle(folder), step=step)
    except (BuildError, CheckError, DeviceError) as error:
        terminal.line(f"\nNote: its engines were not built here: {error}")
        return
    terminal.line()
    _print(terminal, done)


def _print(terminal: Terminal, done: "Installation") -> None:
    terminal.table(
        f"Engines for {done.gpu.name} ({done.gpu.compute_capability}), {done.tensorrt}",
        ["segment", "engine", "built in s", "proven", ""],
        [
            [
                one.segment,
                bytes_text(one.size_bytes),
                f"{one.seconds:.1f}",
                one.proven,
                "now" if one.segment in done.fresh else "was here",
            ]
            for one in done.records
        ],
    )
    worst = max(done.golden.max_relative_error.values())
    terminal.line(
        f"\n{done.golden.samples} golden samples leave where they did on the host, logits within "
        f"{worst:.1e} (limit {done.golden.limit:.1e})"
    )
