"""`edgekit run`: what the network says of files."""

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from edgekit.bundle.ladder import (
    LatencyBudget,
    Load,
    is_ladder,
    policy_document,
    read_ladder,
    read_variant,
)
from edgekit.bundle.reader import Bundle
from edgekit.cli.engine import (
    EngineOption,
    InstallOption,
    VariantOption,
    installed,
    load,
    open_bundle,
)
from edgekit.cli.output import JsonOption, Terminal, print_error, refuse_inside_a_bundle
from edgekit.cli.policy import PolicyOption, other_ladder_policy, other_policy
from edgekit.errors import BuildError, InputError
from edgekit.runtime import Chain, Ladder, Metrics, Prediction
from edgekit.runtime.deadline import budget_ns
from edgekit.runtime.preprocess import blank, stack

__all__ = ["run"]


def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a ladder's.")],
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
    variant: VariantOption = None,
    engine: EngineOption = None,
    install: InstallOption = False,
    json_to: JsonOption = None,
) -> None:
    """Run a bundle on files, one by one: classes or outputs, and where each left the network.

    Of a ladder, its policy says which variant answers each.
    """
    terminal = Terminal(json_to)
    if deadline_ms is not None:
        budget_ns(deadline_ms)  # Refused here, and not once for every file.
    chain: Chain | Ladder
    if is_ladder(bundle) and variant is None:
        chain = _ladder(terminal, bundle, policy, engine, install, threads)
        if deadline_ms is not None:
            chain.check_deadline()
        places = {} if output is None else _places(output, files, chain.labels)
        labels, about = chain.labels, _about_ladder(chain)
    else:
        found_bundle = open_bundle(bundle, variant)
        labels = found_bundle.manifest.labels
        places = {} if output is None else _places(output, files, labels)
        chain = _chain(terminal, found_bundle, policy, engine, install, threads)
        about = {
            "bundle_id": found_bundle.manifest.bundle_id,
            "policy": dataclasses.asdict(chain.spec.policy),
        }
    rows: list[list[str]] = []
    report: list[dict[str, Any]] = []
    failed = False
    with ExitStack() as opened:
        if metrics is not None:
            _count(opened, chain, metrics)
        for file in files:
            try:
                x = chain.read(file)
                found = chain.one(x, timings=True, deadline_ms=deadline_ms)
            except InputError as error:
                # One bad file among many does not lose the others their answer.
                print_error(str(error) if str(file) in str(error) else f"{file}: {error}")
                failed = True
                continue
            entry = _entry(found, places.get(file))
            said = str(found.label)
            if found.output is not None:
                said = f"{'x'.join(map(str, found.output.shape))} {found.output.dtype}"
            row = [str(file), said, f"{found.confidence:.4f}", found.exit, found.stop]
            rows.append([*row, f"{entry['latency_ms']:.3f}", *filter(None, [found.variant])])
            report.append({"file": str(file), **entry})
        if any(_lost_lines(one) for one in _chains(chain)):
            print_error(f"{metrics}: the metrics could not be written")
    if rows:
        columns = ["file", "class" if labels else "output", "confidence", "exit", "stop", "ms"]
        terminal.table("Predictions", [*columns, "variant"][: len(rows[0])], rows)
    terminal.json({**about, "predictions": report})
    if failed:
        raise typer.Exit(InputError.exit_code)


def _chain(
    terminal: Terminal,
    bundle: Bundle,
    policy: str | None,
    engine: str | None,
    install: bool,
    threads: int | None,
) -> Chain:
    """The bundle's chain, under its own policy or that of `--policy`."""
    chain = load(terminal, bundle, engine, install, threads)
    if policy is not None:
        chain = chain.with_policy(other_policy(policy, bundle.manifest))
    # The first run also makes the engine's buffers: not what is timed or counted.
    chain.logits(stack([blank(chain.spec.inputs)]))
    return chain


def _count(opened: ExitStack, chain: Chain | Ladder, file: Path) -> None:
    """Count what is answered, in `file`, as long as `opened` is."""
    refuse_inside_a_bundle(file)
    if isinstance(chain, Ladder):
        opened.enter_context(chain).watch(lambda one: Metrics(one, file))
    else:
        opened.enter_context(Metrics(chain, file))


def _entry(found: Prediction, place: Path | None) -> dict[str, Any]:
    """A prediction as the report has it; what an exit gave goes to `place`."""
    assert found.segment_latency_ms is not None  # noqa: S101  (timings were asked for)
    entry = found._asdict()
    result = entry.pop("output")
    if result is not None:
        entry["output"] = {"shape": list(result.shape), "dtype": str(result.dtype)}
        if place is not None:
            _save(place, result)
            entry["output"]["path"] = str(place)
    if found.variant is None:
        del entry["variant"]  # Of a bundle there is but one.
    if not math.isfinite(found.confidence):
        entry["confidence"] = None
    return {**entry, "latency_ms": sum(found.segment_latency_ms)}


def _about_ladder(ladder: Ladder) -> dict[str, Any]:
    return {
        "ladder_id": ladder.document.ladder_id,
        "policy": policy_document(ladder.policy),
        "shortfall": ladder.shortfall,
    }


def _ladder(
    terminal: Terminal,
    path: Path,
    policy: str | None,
    engine: str | None,
    install: bool,
    threads: int | None,
) -> Ladder:
    """The ladder at `path`, under its own policy or that of `--policy`."""
    document = read_ladder(path)
    chosen = None if policy is None else other_ladder_policy(policy, document)
    if install:
        for name in document.names:
            installed(
                terminal, read_variant(path, document, name), engine, install, undivided=False
            )
    ladder = Ladder.load(path, policy=chosen, engine=engine, threads=threads)
    if ladder.shortfall is not None:
        print_error(ladder.shortfall)
    doubts = None if ladder.profile is None else ladder.profile.doubts
    if doubts is not None and isinstance(ladder.policy, LatencyBudget | Load):
        print_error(doubts)
    return ladder


def _chains(asked: Chain | Ladder) -> list[Chain]:
    """The chains that are loaded."""
    return [asked] if isinstance(asked, Chain) else [asked.chain(name) for name in asked.loaded]


def _lost_lines(chain: Chain) -> int:
    """How many lines of a chain's metrics could not be written, with what was still to be."""
    metrics = chain.metrics
    if metrics is None:
        return 0
    metrics.close()
    return metrics.lost_lines


def _places(folder: Path, files: list[Path], labels: tuple[str, ...]) -> dict[Path, Path]:
    """Where what is said of each file goes: `FOLDER/NAME.npy`. The folder is made.

    Raises InputError where the network tells classes, or two files would go to one place;
    BuildError where the folder cannot be.
    """
    if labels:
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
