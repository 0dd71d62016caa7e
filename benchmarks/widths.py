"""What a cascade of widths gains, on this machine: a section of docs/benchmarks.md.

    python benchmarks/widths.py

Builds recipes/digits-slimmable in FP32 and INT8, and measures both ladders with `edgekit bench`.
"""

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from page import PAGE, edgekit, measured, vnni, write_section

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes/digits-slimmable"

HEADING = "## What a cascade of widths gains"

HEAD = """{heading}

Written by `python benchmarks/widths.py` ({date}), on {cpu}, {cores} cores, {machine}{vnni};
{engine}, Python {python}.
`recipes/digits-slimmable` has four widths of three exits each. Its cascade asks the narrowest and
goes on to a wider one where that is not sure enough; its thresholds were fitted on the tuning
split. Means at batch 1 on {threads} thread(s), over {samples} samples of the test split; `ladder`
is the cascade with all that choosing costs, measured in turn with every width alone.

"""


def main() -> None:
    """Build, measure, write the section."""
    parser = argparse.ArgumentParser(description="Measure a cascade of widths.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--output", type=Path, default=ROOT / "build/widths")
    options = parser.parse_args()
    reports = {}
    for precision in ("fp32", "int8"):
        folder = options.output / precision
        how = ("--set", f"target.precision={precision}")
        edgekit("build", RECIPE, "--target", "host", "--output", folder, *how)
        reports[precision] = measured(folder, "--rounds", options.rounds)
    one = reports["fp32"]
    text = HEAD.format(
        heading=HEADING,
        vnni=vnni(),
        date=datetime.now(timezone.utc).date(),
        **{key: one["device"][key] for key in ("cpu", "cores", "machine", "python")},
        **{key: one[key] for key in ("engine", "threads", "samples")},
    )
    text += "\n".join(table(reports)) + "\n"
    write_section(options.page, text)
    print(text)


def table(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Each width alone and the ladder, by precision, and what the bench says of them."""
    lines = ["| | precision | ms | accuracy | x widest | answers in the cascade |"]
    lines.append("|---" * 6 + "|")
    for precision, report in reports.items():
        ladder = report["ladder"]
        shares = [f"{one['share']:.1%}" for one in ladder["answers"]]
        rows = [*report["variants"], {"name": "ladder", **ladder}]
        for one, share in zip(rows, [*shares, "-"], strict=True):
            ms, accuracy = one["latency_ms"]["mean"], one["accuracy"]
            cells = [one["name"], precision, f"{ms:.3f}", f"{accuracy:.1%}"]
            cells += [f"{one['speedup']:.2f}", share]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *(f"- {name}: {one['verdict']}" for name, one in reports.items())]


if __name__ == "__main__":
    main()
