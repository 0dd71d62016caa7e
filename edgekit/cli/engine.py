"""What run, verify and bench share: which bundle and engine, and whether it is built first."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.bundle.ladder import is_ladder, read_ladder, read_variant
from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.cli.output import StageProgress, Terminal
from edgekit.errors import MismatchError, NotInstalledError, PlanError
from edgekit.runtime.chain import Chain, contents
from edgekit.runtime.engines import BUILT_ON_DEVICE

__all__ = ["EngineOption", "InstallOption", "VariantOption", "installed", "load", "open_bundle"]

EngineOption = Annotated[
    str | None,
    typer.Option(
        help="What runs the segments here: onnxruntime, onnxruntime-cuda, tensorrt.",
        show_default="the target's",
    ),
]

InstallOption = Annotated[
    bool, typer.Option("--install", help="Build the engines first, where they are not here yet.")
]

VariantOption = Annotated[
    str | None, typer.Option(help="Take this variant of a ladder as a bundle, and no policy of it.")
]


def open_bundle(path: Path, variant: str | None) -> Bundle:
    """The bundle at `path`, or that of a variant of the ladder there.

    Raises BundleError where there is none, or none of that name.
    """
    if variant is not None and is_ladder(path):
        return read_variant(path, read_ladder(path), variant)
    bundle = read_bundle(path)
    bundle.manifest.variant(variant)
    return bundle


def load(
    terminal: Terminal, bundle: Bundle, engine: str | None, install: bool, threads: int | None
) -> Chain:
    """The bundle's chain, in this engine, built first where `--install` was said."""
    installed(terminal, bundle, engine, install, undivided=False)
    return Chain.from_bundle(bundle, engine=engine, threads=threads)


def installed(
    terminal: Terminal,
    bundle: Bundle,
    engine: str | None,
    install: bool,
    *,
    undivided: bool = True,
) -> None:
    """Where `--install` was said, build the engines that are missing here; `undivided` ones too."""
    if not install or (engine or bundle.manifest.target.engine) not in BUILT_ON_DEVICE:
        return
    segments = bundle.manifest.variant().segments
    pairs = bundle.manifest.baselines if undivided else ()
    try:
        contents(
            bundle,
            [*segments, *(one for pair in pairs for one in (pair.plain, pair.whole))],
            engine or bundle.manifest.target.engine,
        )
    except (MismatchError, NotInstalledError, PlanError):
        from edgekit.runtime.install import install as build_engines

        with StageProgress(terminal).stage("install") as step:
            build_engines(bundle, undivided=undivided, step=step)
