"""What a sample takes, beside the undivided network."""

from typing import Any

from edgekit.report import plots
from edgekit.report.facts import Facts
from edgekit.report.page import Figure, Section, Table, Text
from edgekit.report.words import ABSENT, count_text, ms_text, pair, share_text

__all__ = ["latency"]


def latency(facts: Facts) -> Section:
    """What a sample takes, beside the undivided network."""
    title = "Latency"
    bench = facts.bench
    if bench is None:
        return Section(
            title,
            (
                Text(
                    "Nothing was measured. On the device, edgekit bench BUNDLE --json FILE "
                    "measures; edgekit report BUNDLE --bench FILE then shows it here."
                ),
            ),
        )
    deployed = facts.benched_as_deployed
    contenders = [
        ("chain" if deployed else "chain, another policy", bench),
        ("chain, no exit", bench["full_depth"]),
        ("whole (all exits)", bench["whole"]),
        ("plain (one exit)", bench["plain"]),
        *((one["name"], one) for one in bench["beside"]),
    ]
    plain_ms = bench["plain"]["latency_ms"]["mean"]
    keys = ("mean", "p50", "p90", "p95", "p99")
    table = Table(
        "Latency in ms",
        (
            "network", *keys, "x plain",
            f"accuracy, {count_text(bench['samples'])} samples",
        ),
        tuple(
            (
                name,
                *(ms_text(one["latency_ms"][key]) for key in keys),
                f"{plain_ms / one['latency_ms']['mean']:.2f}",
                share_text(one["accuracy"]),
            )
            for name, one in contenders
        ),
    )  # fmt: skip
    key = "p95" if bench["latency_ms"]["p95"] is not None else "p50"
    bars = [
        plots.Bar(
            name,
            one["latency_ms"]["mean"],
            pair(ms_text(one["latency_ms"]["mean"]), ms_text(one["latency_ms"][key])),
            one["latency_ms"][key],
            main=number == 0,
        )
        for number, (name, one) in enumerate(contenders)
    ]
    whole = Figure(
        "Mean latency of a sample",
        plots.bars("latency", f"ms, mean | {key}", bars),
        ", ".join(f"{one.name} {one.text} ms" for one in bars),
        (table,),
    )
    return Section(
        title,
        (
            Text(facts.where, warns=not bench["on_target"]),
            *(() if deployed else (Text(facts.other_policy, warns=True),)),
            Text(
                f"{count_text(bench['samples'])} samples, each measured {bench['rounds']} times, "
                f"batch 1, {bench['threads']} thread{'s' * (bench['threads'] > 1)}: "
                f"{bench['clock']}."
            ),
            *(Text(f"Doubtful: {one}.", warns=True) for one in bench["reasons"]),
            whole,
            _by_exit(facts, bench),
            Text(
                f"With no exit taken the chain takes {bench['full_depth_ratio']:.3f} times as long "
                "as whole: the price of the cuts. Exit rates and segment times alone would make "
                f"{share_text(bench['efficiency'])} of its measured mean."
            ),
        ),
    )


def _by_exit(facts: Facts, bench: dict[str, Any]) -> Figure:
    """What leads to each exit, segment by segment, and what was measured there."""
    segments = [one["latency_ms"] for one in bench["segments"]]
    rows, marks, table = [], [], []
    for number, one in enumerate(bench["exits"]):
        measured = one["latency_ms"] and one["latency_ms"]["mean"]
        rows.append((f"{one['name']}", segments[: number + 1]))
        marks.append(measured)
        table.append(
            (
                one["name"],
                share_text(one["rate"]),
                share_text(one["accuracy"]),
                ms_text(measured),
                ms_text(one["latency_ms"] and one["latency_ms"]["p95"]),
                bench["segments"][number]["name"],
                ms_text(segments[number]),
                ms_text(sum(segments[: number + 1])),
            )
        )
    for name in ("whole", "plain"):
        mean = bench[name]["latency_ms"]["mean"]
        rows.append((name, [mean]))
        marks.append(None)
        table.append(
            (name, ABSENT, share_text(bench[name]["accuracy"]), ms_text(mean),
             ms_text(bench[name]["latency_ms"]["p95"]), ABSENT, ABSENT, ABSENT)
        )  # fmt: skip
    return Figure(
        "Latency by exit and segment",
        plots.stacks("by-exit", "ms", rows, marks, "measured, of those that left there"),
        "Each exit's bar is made of the segments before it: "
        + ", ".join(f"{one[0]} {one[7]} ms, measured {one[3]} ms" for one in table[:-2]),
        (
            Table(
                "By exit and segment, in ms",
                (
                    "exit", "leave", "accuracy", "mean", "p95", "its segment", "segment alone",
                    "segments so far",
                ),
                tuple(table),
                frozenset({0, 5}),
            ),
        ),
    )  # fmt: skip
