"""`edgekit bench`: what early exit gains on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.reader import read_bundle
from edgekit.cli.engine import EngineOption, InstallOption, installed
from edgekit.cli.output import JsonOption, StageProgress, Terminal
from edgekit.cli.policy import PolicyOption, other_policy, policy_text
from edgekit.errors import InputError
from edgekit.runtime import bench as library
from edgekit.runtime.preprocess import read_npz

__all__ = ["bench"]


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
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
    engine: EngineOption = None,
    install: InstallOption = False,
    json_to: JsonOption = None,
) -> None:
    """Measure the chain beside the undivided network, on the test split, in one process."""
    terminal = Terminal(json_to)
    found = read_bundle(bundle)
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


def _print(terminal: Terminal, report: dict[str, Any]) -> None:
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    terminal.line(
        f"{report['name']} for {report['target']}: {report['engine']}, {report['precision']}, "
        f"{threads}, {report['samples']} samples x {report['rounds']} rounds, batch 1"
    )
    terminal.line(f"on {report['device']['cpu']} ({report['device']['machine']})")
    if not report["on_target"]:
        terminal.line(f"Not on the target: {report['other_device']}")
    if report["conditions"] is not None:
        _print_conditions(terminal, report["conditions"])
    terminal.line()
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
