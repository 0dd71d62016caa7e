"""What the split costs and what early exit gains, on this machine: writes docs/benchmarks.md.

    make bench

Builds recipes/digits, its static net, recipes/glyphs and benchmarks/resnet18 in FP32 and INT8, and
measures them with `edgekit bench`. Ratios come from one run each; milliseconds are of this machine.
"""

import argparse
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu
import instructions
import memory
import widths
from page import PAGE, edgekit, measured, printed, section_of, vnni, with_section

from edgekit.bundle.manifest import EVIDENCE_NAME, unseal

ROOT = Path(__file__).resolve().parent.parent

COLUMNS = (
    "| network | precision | threads | plain ms | whole ms | no exit taken ms | chain ms | "
    "full depth / whole | x plain | x FP32 chain | efficiency | accuracy | plain accuracy |"
)

HEAD = """# Benchmarks

Written by `make bench` ({date}), on {cpu}, {cores} cores, {machine}{vnni}; {engine},
Python {python}.
Milliseconds are means at batch 1 on that machine; the ratios are what to compare. `plain` is the
undivided network with its final exit only, `whole` with all exits, both built and run as the chain
is, and interleaved with it. `x FP32 chain` is how many times as fast the chain is as the same
network's in FP32, measured in the same run. `efficiency` is the latency that exit rates and bare
segment times predict over the measured one.

"""

TAIL = """
`resnet18` has random weights and sees noise at 224x224, to show what three cuts cost when no exit
is taken; its exit rates mean nothing. Digits at two threads: waking a thread for each operator of
a net of one millisecond costs more than the thread brings, in every segment again, which is why
the target `host` uses one.

INT8 is built for `host` with unsigned activations (U8S8) and for `rpi4b` with signed ones (S8S8).
The second is what a Raspberry Pi's kernels want; on x86, where ONNX Runtime has fast kernels for
unsigned activations only, much of it runs in float, and the row shows what that costs here. How
much faster than FP32 the first is depends on the processor: without VNNI, ONNX Runtime's fastest
kernels saturate, and edgekit has it take exact ones. `int8 LiteRT` is built for `rpi4b-litert` and
runs in LiteRT; the FP32 chain beside it is ONNX Runtime's.

{remarks}

## A build with nothing changed

`edgekit build recipes/digits/recipe.yaml` runs no stage the second time and takes {again_s:.2f} s
from the shell and back, {first_s:.1f} s the first time.

## What metrics and a deadline cost a call

`python benchmarks/metrics_cost.py`, on digits in FP32 at one thread:

```
{cost}
```

## What is promised of glyphs

`recipes/glyphs` asks for thresholds under which, at a confidence of 90 %, at most 1 % of all
samples like those of its tuning split are answered otherwise than by the final exit. Each bundle
has its own, searched on one half of that split and tested on the other. `test` is the chain's
accuracy on the whole test split, which neither saw, `final exit` that of the model in PyTorch, and
`points` is what lies between them.

{promised}

## Thresholds for each exit on digits, and how fast it can be

`python benchmarks/digits_thresholds.py` parts the 720 images of digits' tuning and test split into
halves at random, 200 times: thresholds found on one half are judged on the other, at the times that
the bench measured. Means, with the 5th and the 95th percentile; one image of a half is 0.28 point.
`may lose` is against the final exit, `kept to it` how often that held on the other half, and
`oracle` are the best of all thresholds for the half that they are judged on.

{thresholds}

## How long the searches for thresholds take

`python benchmarks/tuning.py`:

```
{searches}
```
"""

NETWORKS = {
    "digits": "recipes/digits/recipe.yaml",
    "glyphs": "recipes/glyphs/recipe.yaml",
    "resnet18": "benchmarks/resnet18/recipe.yaml",
}

GLYPHS = {
    "recipes-glyphs-recipe": "host, fp32",
    "recipes-glyphs-recipe-target.precision=int8": "host, int8 U8S8",
    "recipes-glyphs-recipe-rpi4b": "rpi4b, int8 S8S8",
    "recipes-glyphs-recipe-rpi4b-litert": "rpi4b-litert, int8",
}
"""The folders of the bundles of glyphs, and what they are built for."""


def main() -> None:
    """Build, measure, write the page."""
    parser = argparse.ArgumentParser(description="Measure and write docs/benchmarks.md.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--output", type=Path, default=ROOT / "build/benchmarks")
    options = parser.parse_args()
    chosen = {name: NETWORKS[name] for name in ("digits", *options.networks)}
    fp32 = {name: built(recipe, options.output) for name, recipe in chosen.items()}
    static = built("recipes/digits/static.yaml", options.output)
    unsigned, signed = ("--set", "target.precision=int8"), ("--target", "rpi4b")
    litert = ("--target", "rpi4b-litert")
    rounds = ("--rounds", options.rounds)
    rows, reports = [], []
    for name, recipe in chosen.items():
        floats, beside = fp32[name], ("--beside", static) if name == "digits" else ()
        for threads in (1, 2):
            reports.append(measured(floats, *rounds, "--threads", threads, *beside))
            rows.append(row(reports[-1], "fp32"))
        for label, how in (
            ("int8 U8S8", unsigned),
            ("int8 S8S8", signed),
            ("int8 LiteRT", litert),
        ):
            integers = built(recipe, options.output, *how)
            report = measured(integers, *rounds, "--threads", 1, "--beside", floats)
            reports.append(report)
            rows.append(row(report, label, report["beside"][0]))
    device = reports[0]["device"]
    date = datetime.now(timezone.utc).date()
    text = HEAD.format(date=date, vnni=vnni(), engine=reports[0]["engine"], **device)
    text += "\n".join([COLUMNS, "|---" * 13 + "|", *rows]) + "\n"
    remarks = "\n".join(
        f"- {one['name']} for {one['target']}, {one['precision']}, {one['threads']}: "
        f"{one['verdict']}"
        for one in reports
    )
    first_s, again_s = rebuilt("recipes/digits/recipe.yaml", options.output / "again")
    script = str(ROOT / "benchmarks/metrics_cost.py")
    runs = str(500 * options.rounds)
    digits = str(fp32["digits"])
    cost = printed(sys.executable, script, digits, "--threads", "1", "--runs", runs)
    searches = printed(sys.executable, str(ROOT / "benchmarks/tuning.py"))
    of_halves = str(ROOT / "benchmarks/digits_thresholds.py")
    thresholds = printed(
        sys.executable, of_halves, str(fp32["digits"]), "--rounds", str(options.rounds)
    )
    text += TAIL.format(
        remarks=remarks,
        first_s=first_s,
        again_s=again_s,
        cost=cost.rstrip(),
        searches=searches.rstrip(),
        thresholds=thresholds.rstrip(),
        promised=promised([options.output / name for name in GLYPHS if "glyphs" in chosen]),
    )
    if options.page.exists():
        # What other commands measured, on other machines as like as not.
        before = options.page.read_text(encoding="utf-8")
        for one in (widths, memory, instructions, gpu):
            if section := section_of(before, one.HEADING):
                text = with_section(text, section)
    options.page.write_text(text, encoding="utf-8")
    print(text)


def promised(bundles: list[Path]) -> str:
    """The table of what was certified, and of what came of it on the test split."""
    lines = ["| for | risk | confidence | errors / tested | p-value | test | final exit | points |"]
    lines.append("|---" * 8 + "|")
    for bundle in bundles:
        evidence = unseal((bundle / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
        notes = {one["name"]: one["notes"] for one in evidence["stages"]}
        found = notes["tune"]["certificate"]
        accuracy, final = notes["verify"]["accuracy"], notes["verify"]["pytorch_accuracy"]["final"]
        cells = [
            GLYPHS[bundle.name],
            f"{found['risk']:.1%}",
            f"{found['confidence']:.0%}",
            f"{found['errors']} / {found['tested']:,}",
            f"{found['p_value']:.3f}",
            f"{accuracy:.2%}",
            f"{final:.2%}",
            f"{100 * (accuracy - final):+.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def built(recipe: str, output: Path, *options: str) -> Path:
    """The bundle of a recipe, built now: for `host`, or with other options of `edgekit build`."""
    folder = output / "-".join([recipe.replace("/", "-").removesuffix(".yaml"), *options[1:]])
    edgekit("build", ROOT / recipe, "--output", folder, *options)
    return folder


def rebuilt(recipe: str, output: Path) -> tuple[float, float]:
    """Seconds of a build from nothing, and of the same build again."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            start = time.perf_counter()
            edgekit("build", ROOT / recipe, "--output", output, XDG_CACHE_HOME=cache)
            seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def row(report: dict[str, Any], precision: str, floats: dict[str, Any] | None = None) -> str:
    """A report as a row of the table; `floats` is of the chain in FP32 that ran beside it."""
    plain = report["plain"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    cells = [
        report["name"],
        precision,
        str(report["threads"]),
        f"{plain['latency_ms']['mean']:.3f}",
        f"{report['whole']['latency_ms']['mean']:.3f}",
        f"{report['full_depth']['latency_ms']['mean']:.3f}",
        f"{report['latency_ms']['mean']:.3f}",
        f"{report['full_depth_ratio']:.3f}",
        f"{report['speedup']:.2f}",
        f"{floats['latency_ms']['mean'] / report['latency_ms']['mean']:.2f}" if floats else "-",
        f"{report['efficiency']:.3f}",
        percent(report["accuracy"]),
        percent(plain["accuracy"]),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
