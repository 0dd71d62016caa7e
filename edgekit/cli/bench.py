"""`edgekit bench`: what early exit, or a ladder's policy, gains on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.ladder import PROFILE_NAME, is_ladder, read_ladder, read_variant
from edgekit.bundle.reader import read_bundle
from edgekit.bundle.writer import replace_file
from edgekit.cli.engine import EngineOption, InstallOption, VariantOption, installed, open_bundle
from edgekit.cli.output import JsonOption, StageProgress, Terminal
from edgekit.cli.policy import (
    PolicyOption,
    other_ladder_policy,
    other_policy,
    policy_text,
)
from edgekit.errors import InputError
from edgekit.report.benches import ladder_policy_text
from edgekit.runtime import bench as library
from edgekit.runtime.bench_ladder import bench_ladder
from edgekit.runtime.preprocess import read_npz

__all__ = ["bench"]


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a ladder's.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with `inputs` (or each input's array) and `labels`.",
            show_default="the bundle's own",
        ),
    ] = None,
    beside: Annotated[
        list[Path],
        typer.Option(help="Another bundle for the same input, measured in the same run."),
    ] = [],  # noqa: B006  (typer reads it, nobody changes it)
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads.", show_default="the target's, at most the cores here"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each sample is measured.")] = 10,
    policy: PolicyOption = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Of a ladder: keep what its variants take here, beside it."),
    ] = False,
    variant: VariantOption = None,
    engine: EngineOption = None,
    install: InstallOption = False,
    json_to: JsonOption = None,
) -> None:
    """Measure the chain beside the undivided network, on the test split, in one process.

    Of a ladder, every variant, and the ladder under its policy.
    """
    terminal = Terminal(json_to)
    if is_ladder(bundle) and variant is None:
        if beside:
            raise InputError("--beside: a ladder's variants stand beside one another; leave it out")
        _bench_ladder(terminal, bundle, data, threads, rounds, policy, profile, engine, install)
        return
    if profile:
        raise InputError(
            f"--profile: is of a ladder, and {bundle} is none; --json FILE keeps what was measured"
        )
    found = open_bundle(bundle, variant)
    other = None if policy is None else other_policy(policy, found.manifest)
    others = [read_bundle(one) for one in beside]
    if data is not None:
        samples, labels = read_npz(data, found.manifest.inputs)
        inputs = library.to_tensors(found, samples)
    elif (carried := library.load_test_data(found)) is not None:
        inputs, labels = carried
    else:
        raise InputError(f"{bundle}: carries no test split; give one with --data FILE.npz")
    for one in (found, *others):
        installed(terminal, one, engine, install)
    with StageProgress(terminal).live("bench") as step:
        report = library.bench(
            found,
            inputs,
            labels,
            engine=engine,
            threads=threads,
            rounds=rounds,
            policy=other,
            beside=others,
            step=step,
        )
    if other is not None:
        terminal.line(
            f"Not the bundle's policy: {policy_text(other, found.manifest.variant().exits)}"
        )
    _print(terminal, report)
    terminal.json(report)


def _bench_ladder(
    terminal: Terminal,
    path: Path,
    data: Path | None,
    threads: int | None,
    rounds: int,
    policy: str | None,
    profiling: bool,
    engine: str | None,
    install: bool,
) -> None:
    document = read_ladder(path)
    chosen = None if policy is None else other_ladder_policy(policy, document)
    widest = read_variant(path, document, document.names[-1])
    samples, labels = None, None
    if data is not None:
        samples, labels = read_npz(data, widest.manifest.inputs)
    elif (carried := library.load_test_samples(widest)) is not None:
        samples, labels = carried
    elif not profiling:
        raise InputError(
            f"{path}: carries no test split; give one with --data FILE.npz, or measure on zeros "
            "with --profile"
        )
    if install:
        for name in document.names:
            bundle = read_variant(path, document, name)
            installed(terminal, bundle, engine, install, undivided=False)
    with StageProgress(terminal).live("bench") as step:
        report, measured = bench_ladder(
            path,
            samples,
            labels,
            engine=engine,
            threads=threads,
            rounds=rounds,
            policy=chosen,
            profiling=profiling,
            step=step,
        )
    if profiling:
        replace_file(path / PROFILE_NAME, measured)
    if chosen is not None and report["ladder"] is not None:
        terminal.line(f"Not the ladder's policy: {ladder_policy_text(report['policy'])}")
    _print_ladder(terminal, report)
    if profiling:
        terminal.line(f"Wrote {path / PROFILE_NAME}")
    terminal.json(report)


def _print_ladder(terminal: Terminal, report: dict[str, Any]) -> None:
    runs = f"{report['samples']} samples x {report['rounds']} rounds"
    if report["zeros"]:
        runs = f"{report['samples'] * report['rounds']} runs on zeros, no exit taken"
    _print_head(terminal, report, runs)
    rows = [
        [
            name,
            *(_number(one["latency_ms"][key]) for key in ("mean", "p50", "p95", "p99")),
            _percent(one["accuracy"]),
            f"{one['speedup']:.2f}",
        ]
        for name, one in _contenders(report)
    ]
    terminal.table(
        "Latency in ms",
        ["variant", "mean", "p50", "p95", "p99", "accuracy", "x widest"],
        rows,
    )
    found = report["ladder"]
    if found is not None:
        terminal.line(f"\nPolicy {ladder_policy_text(report['policy'])}")
        terminal.table(
            "Who answers",
            ["variant", "answered", "accuracy"],
            [
                [one["name"], f"{one['share']:.1%}", _percent(one["accuracy"])]
                for one in found["answers"]
            ],
        )
        if found["moves"]:
            terminal.line(f"It went to another variant {found['moves']} times.")
        if found["shortfall"]:
            terminal.line(f"Note: {found['shortfall']}")
    else:
        kind = ladder_policy_text(report["policy"])
        terminal.line(f"\nNot measured: {kind}: {report['left_out']}")
    grown = [(one["name"], one["resident_bytes"]) for one in report["variants"]]
    said = [f"{name} {_megabytes(size)}" for name, size in grown if size is not None]
    if said:
        terminal.line(f"\nMemory that each adds, loaded and run once: {', '.join(said)}")
    if report["memory"]["peak_bytes"] is not None:
        terminal.line(f"All of this process: {_megabytes(report['memory']['peak_bytes'])} at most")
    terminal.line(f"\n{report['verdict']}")


def _contenders(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The variants, widest last, and the ladder by what it chooses by."""
    found = [(one["name"], one) for one in report["variants"]]
    if report["ladder"] is not None:
        found.append((f"ladder ({report['policy']['kind']})", report["ladder"]))
    return found


def _print(terminal: Terminal, report: dict[str, Any]) -> None:
    _print_head(terminal, report, f"{report['samples']} samples x {report['rounds']} rounds")
    plain_ms = report["plain"]["latency_ms"]["mean"]
    contenders = [
        ("chain", report),
        ("chain, no exit taken", report["full_depth"]),
        ("whole (all exits)", report["whole"]),
        ("plain (final exit)", report["plain"]),
        *((other["name"], other) for other in report["beside"]),
    ]
    terminal.table(
        "Latency in ms",
        ["network", "mean", "p50", "p95", "p99", "accuracy", "x plain"],
        [
            [
                name,
                *(_number(one["latency_ms"][key]) for key in ("mean", "p50", "p95", "p99")),
                _percent(one["accuracy"]),
                f"{plain_ms / one['latency_ms']['mean']:.2f}",
            ]
            for name, one in contenders
        ],
    )
    terminal.line()
    cumulative = 0.0
    rows = []
    for exit, segment in zip(report["exits"], report["segments"], strict=True):
        cumulative += segment["latency_ms"]
        rows.append(
            [
                exit["name"],
                f"{exit['rate']:.1%}",
                _percent(exit["accuracy"]),
                _number(exit["latency_ms"] and exit["latency_ms"]["mean"]),
                f"{segment['latency_ms']:.3f}",
                f"{cumulative:.3f}",
            ]
        )
    terminal.table(
        "Exits, and the segments before them",
        ["exit", "leave", "accuracy", "mean ms", "segment ms", "sum ms"],
        rows,
    )
    if report["energy"] is not None:
        _print_energy(terminal, report)
    _print_memory(terminal, report["memory"])
    terminal.line(
        f"\nWith no exit taken the chain takes {report['full_depth_ratio']:.3f} times as long as "
        f"whole.\nExit rates and segment times alone would make {report['efficiency']:.1%} of its "
        "measured mean.\n"
    )
    terminal.line(report["verdict"])


def _print_head(terminal: Terminal, report: dict[str, Any], runs: str) -> None:
    """What was measured, and where."""
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    terminal.line(
        f"{report['name']} for {report['target']}: {report['engine']}, {report['precision']}, "
        f"{threads}, {runs}, batch 1"
    )
    terminal.line(f"on {report['device']['cpu']} ({report['device']['machine']})")
    if not report["on_target"]:
        terminal.line(f"Not on the target: {report['other_device']}")
    if report["conditions"] is not None:
        _print_conditions(terminal, report["conditions"])
    terminal.line()


def _print_conditions(terminal: Terminal, met: dict[str, Any]) -> None:
    hottest = [max(one.values(), default=None) for one in met["temperatures_c"].values()]
    said = [
        f"JetPack {met['jetpack']}" if met.get("jetpack") else None,
        f"power mode {met['power_mode']}" if met.get("power_mode") else None,
        f"governor {met['governor']}" if met.get("governor") else None,
        f"{hottest[0]:.0f} to {hottest[1]:.0f} degrees" if None not in hottest else None,
    ]
    if any(said):
        terminal.line(", ".join(filter(None, said)))
    for note in met["notes"]:
        terminal.line(f"Note: {note}")


def _print_memory(terminal: Terminal, memory: dict[str, Any]) -> None:
    held = {name: memory[name]["growth_bytes"] for name in ("engine", "chain", "plain", "whole")}
    said = [f"{name} {_megabytes(size)}" for name, size in held.items() if size is not None]
    if said:
        terminal.line(f"\nMemory that each adds, loaded and run once: {', '.join(said)}")
    if memory["peak_bytes"] is not None:
        terminal.line(f"All of this process: {_megabytes(memory['peak_bytes'])} at most")


def _print_energy(terminal: Terminal, report: dict[str, Any]) -> None:
    energy = report["energy"]
    contenders = [
        ("chain", energy["chain"]),
        ("chain, no exit taken", energy["full_depth"]),
        ("whole (all exits)", energy["whole"]),
        ("plain (final exit)", energy["plain"]),
        *zip([one["name"] for one in report["beside"]], energy["beside"], strict=True),
        *zip([f"to {one['name']}" for one in report["exits"]], energy["exits"], strict=True),
    ]
    terminal.line()
    terminal.table(
        "Energy of an inference in mJ",
        ["network", "in all", "above idle", "mean W", "of plain"],
        [
            [
                name,
                f"{cost['mj']:.3f}",
                f"{cost['above_idle_mj']:.3f}",
                f"{cost['mean_mw'] / 1000:.2f}",
                f"{cost['mj'] / energy['plain']['mj']:.2f}",
            ]
            for name, cost in contenders
        ],
    )
    terminal.line(f"{' + '.join(energy['rails'])}; idle {energy['idle_mw'] / 1000:.2f} W")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
