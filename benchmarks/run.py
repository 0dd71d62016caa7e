"""What the split costs and what early exit gains, on this machine: writes docs/benchmarks.md.

    make bench

Builds recipes/digits, its static net and benchmarks/resnet18 for `host`, and measures them with
`edgekit bench`. Ratios come from one run each; milliseconds are of this machine.
"""

import argparse
import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

COLUMNS = (
    "| network | threads | plain ms | whole ms | no exit taken ms | chain ms | "
    "full depth / whole | x plain | efficiency | accuracy | plain accuracy |"
)

HEAD = """# Benchmarks

Written by `make bench` ({date}), on {cpu}, {cores} cores, {machine}; {engine}, Python {python}.
Milliseconds are means at batch 1 on that machine; the ratios are what to compare. `plain` is the
undivided network with its final exit only, `whole` with all exits, both built and run as the chain
is, and interleaved with it. `efficiency` is the latency that exit rates and bare segment times
predict over the measured one.

"""

TAIL = """
`resnet18` has random weights and sees noise at 224x224, to show what three cuts cost when no exit
is taken; its exit rates mean nothing. Digits at two threads: waking a thread for each operator of
a net of one millisecond costs more than the thread brings, in every segment again, which is why
the target `host` uses one.

{remarks}
"""


def main() -> None:
    """Build, measure, write the page."""
    parser = argparse.ArgumentParser(description="Measure and write docs/benchmarks.md.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--output", type=Path, default=ROOT / "build/benchmarks")
    options = parser.parse_args()
    names = ("recipes/digits/recipe.yaml", "recipes/digits/static.yaml")
    digits, static = (built(name, options.output) for name in names)
    resnet18 = built("benchmarks/resnet18/recipe.yaml", options.output)
    rounds = ("--rounds", options.rounds)
    reports = [
        measured(digits, *rounds, "--threads", 1, "--beside", static),
        measured(digits, *rounds, "--threads", 2, "--beside", static),
        measured(resnet18, *rounds, "--threads", 1),
        measured(resnet18, *rounds, "--threads", 2),
    ]
    device = reports[0]["device"]
    date = datetime.now(timezone.utc).date()
    text = HEAD.format(date=date, engine=reports[0]["engine"], **device)
    text += "\n".join([COLUMNS, "|---" * 11 + "|", *map(row, reports)]) + "\n"
    remarks = "\n".join(f"- {one['name']}, {one['threads']}: {one['verdict']}" for one in reports)
    text += TAIL.format(remarks=remarks)
    options.page.write_text(text, encoding="utf-8")
    print(text)


def built(recipe: str, output: Path) -> Path:
    """The bundle of a recipe for `host`, built now."""
    folder = output / recipe.replace("/", "-").removesuffix(".yaml")
    edgekit("build", ROOT / recipe, "--output", folder)
    return folder


def measured(bundle: Path, *options: object) -> dict[str, Any]:
    """The bench report of a bundle on the test split that it carries."""
    report: dict[str, Any] = json.loads(edgekit("bench", bundle, *options, "--json", "-"))
    return report


def edgekit(*arguments: object) -> str:
    """What a command prints. Each runs in a process of its own, without torch, as on a device."""
    command = [sys.executable, "-m", "edgekit.cli", *map(str, arguments)]
    print("edgekit", *command[3:], flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def row(report: dict[str, Any]) -> str:
    """A report as a row of the table."""
    plain = report["plain"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    cells = [
        report["name"],
        str(report["threads"]),
        f"{plain['latency_ms']['mean']:.3f}",
        f"{report['whole']['latency_ms']['mean']:.3f}",
        f"{report['full_depth']['latency_ms']['mean']:.3f}",
        f"{report['latency_ms']['mean']:.3f}",
        f"{report['full_depth_ratio']:.3f}",
        f"{report['speedup']:.2f}",
        f"{report['efficiency']:.3f}",
        percent(report["accuracy"]),
        percent(plain["accuracy"]),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
