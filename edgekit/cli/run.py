"""`edgekit run`: what the network says of files."""

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reader import read_bundle
from edgekit.cli.engine import EngineOption, InstallOption, load
from edgekit.cli.output import JsonOption, Terminal, print_error, refuse_inside_a_bundle
from edgekit.cli.policy import PolicyOption, other_policy
from edgekit.errors import BuildError, InputError
from edgekit.runtime import Metrics
from edgekit.runtime.deadline import budget_ns
from edgekit.runtime.preprocess import blank, stack

__all__ = ["run"]


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    files: Annotated[
        list[Path], typer.Argument(help="Images, .npy arrays, or .npz files of several inputs.")
    ],
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads.", show_default="the target's, at most the cores here"),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(help="Answer with the deepest exit that is expected to be done by then."),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(help="Append exit counts, confidences and latencies to this JSON lines file."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what the exits give, FILE.npy each, where that is no class scores."
        ),
    ] = None,
    policy: PolicyOption = None,
    engine: EngineOption = None,
    install: InstallOption = False,
    json_to: JsonOption = None,
) -> None:
    """Run a bundle on files, one by one: classes or outputs, and where each left the network."""
    terminal = Terminal(json_to)
    if deadline_ms is not None:
        budget_ns(deadline_ms)  # Refused here, and not once for every file.
    found_bundle = read_bundle(bundle)
    places = {} if output is None else _places(output, files, found_bundle.manifest)
    chain = load(terminal, found_bundle, engine, install, threads)
    if policy is not None:
        chain = chain.with_policy(other_policy(policy, found_bundle.manifest))
    # The first run also makes the engine's buffers: not what is timed or counted.
    chain.logits(stack([blank(chain.spec.inputs)]))
    rows: list[list[str]] = []
    report: list[dict[str, Any]] = []
    failed = False
    with ExitStack() as opened:
        if metrics is not None:
            refuse_inside_a_bundle(metrics)
            counted = opened.enter_context(Metrics(chain, metrics))
        for file in files:
            try:
                x = chain.read(file)
                found = chain.one(x, timings=True, deadline_ms=deadline_ms)
            except InputError as error:
                # One bad file among many does not lose the others their answer.
                print_error(str(error) if str(file) in str(error) else f"{file}: {error}")
                failed = True
                continue
            assert found.segment_latency_ms is not None  # noqa: S101  (timings were asked for)
            latency_ms = sum(found.segment_latency_ms)
            confidence = f"{found.confidence:.4f}"
            entry = found._asdict()
            result = entry.pop("output")
            said = found.label
            if result is not None:
                entry["output"] = {"shape": list(result.shape), "dtype": str(result.dtype)}
                said = f"{'x'.join(map(str, result.shape))} {result.dtype}"
                if place := places.get(file):
                    _save(place, result)
                    entry["output"]["path"] = str(place)
            rows.append([str(file), str(said), confidence, found.exit, found.stop])
            rows[-1].append(f"{latency_ms:.3f}")
            if not math.isfinite(found.confidence):
                entry["confidence"] = None
            report.append({"file": str(file), **entry, "latency_ms": latency_ms})
    if metrics is not None and counted.lost_lines:
        print_error(f"{metrics}: the metrics could not be written")
    if rows:
        what = "class" if found_bundle.manifest.labels else "output"
        columns = ["file", what, "confidence", "exit", "stop", "ms"]
        terminal.table("Predictions", columns, rows)
    terminal.json(
        {
            "bundle_id": found_bundle.manifest.bundle_id,
            "policy": dataclasses.asdict(chain.spec.policy),
            "predictions": report,
        }
    )
    if failed:
        raise typer.Exit(InputError.exit_code)


def _places(folder: Path, files: list[Path], manifest: Manifest) -> dict[Path, Path]:
    """Where what is said of each file goes: `FOLDER/NAME.npy`. The folder is made.

    Raises InputError where the network tells classes, or two files would go to one place;
    BuildError where the folder cannot be.
    """
    if manifest.labels:
        raise InputError("--output: the network tells classes, and they are printed; leave it out")
    places = {file: folder / f"{file.stem}.npy" for file in files}
    refuse_inside_a_bundle(folder / "any.npy")
    first: dict[Path, Path] = {}
    for file, place in places.items():
        if place in first:
            raise InputError(
                f"--output: {first[place]} and {file} would both go to {place}; run them one by one"
            )
        first[place] = file
        if place.resolve() == file.resolve():
            raise InputError(f"--output: {place} is {file} itself; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"--output {folder}: {error.strerror}") from None
    return places


def _save(place: Path, array: npt.NDArray[Any]) -> None:
    try:
        with place.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
    except OSError as error:
        raise BuildError(f"{place}: cannot be written: {error.strerror}") from None
