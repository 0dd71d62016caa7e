"""How far the chain is from the model in PyTorch."""

import math

from edgekit.report import plots
from edgekit.report.facts import Facts
from edgekit.report.page import Figure, Part, Section, Table, Text
from edgekit.report.words import count_text, error_text, share_text

__all__ = ["checks"]


def checks(facts: Facts) -> Section:
    """How far the chain is from the model in PyTorch after every stage."""
    found = facts.evidence.get("checks", [])
    limits = facts.manifest.recipe.get("check", {})
    quantized = facts.manifest.target.precision != "fp32"

    def limit(stage: str) -> float:
        exact = stage in {"split", "lower", "optimize"} or not quantized
        place = limits if exact else limits.get("quantized", {})
        return float(place.get("max_relative_error", math.nan))

    table = Table(
        "The chain against the model in PyTorch",
        (
            "after", "samples", "max abs error", "max rel error", "limit", "top-1 agree",
            "exits agree",
        ),
        tuple(
            (
                one["stage"],
                count_text(one["samples"]),
                error_text(one["max_abs_error"]),
                error_text(one["max_relative_error"]),
                error_text(limit(one["stage"])),
                share_text(one["top1_agreement"], 2),
                share_text(one["exit_agreement"], 2),
            )
            for one in found
        ),
    )  # fmt: skip
    golden = facts.evidence.get("golden")
    parts: list[Part] = [
        Text(
            "After every stage the chain is run on real samples and held against the model in "
            "PyTorch; outside its limits a build fails."
        )
    ]
    if found:
        rows = [(one["stage"], one["max_relative_error"], limit(one["stage"])) for one in found]
        parts.append(
            Figure(
                "Largest error of a logit, relative",
                plots.errors("errors", "error over the largest logit", rows),
                ", ".join(f"{name} {error_text(error)}" for name, error, _ in rows),
                (),
            )
        )
        parts.append(table)
    shares = facts.notes("quantize").get("integer_share")
    if shares:
        parts.append(
            Table(
                "MACs outside the heads that the engine does in integers",
                ("part", "share"),
                tuple((name, share_text(one)) for name, one in shares.items()),
            )
        )
    if golden:
        worst = max(golden["max_relative_error"].values())
        parts.append(
            Text(
                f"{golden['samples']} golden samples travel with the bundle; read back, they came "
                f"out within {error_text(worst)} (limit {error_text(golden['limit'])})."
            )
        )
    for one in facts.notes("optimize").get("dropped", []):
        parts.append(Text("{pass} was dropped for {part}: {reason}".format(**one), warns=True))
    return Section("Error after each stage", tuple(parts))
