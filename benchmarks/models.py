"""Networks of many styles through the whole build, by recipe alone: writes docs/models.md.

    python benchmarks/models.py

Builds each network of benchmarks/styles in FP32 and INT8 and holds the chain against PyTorch. The
ratios come from one run each, best on a machine that does nothing else.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "benchmarks/styles/recipe.yaml"
SPLITS = ("calibration", "tuning", "test")
sys.path.insert(0, str(RECIPE.parent))

import numpy as np  # noqa: E402
from model import STYLES  # noqa: E402

from edgekit.bundle.manifest import boundaries  # noqa: E402
from edgekit.bundle.reader import read_bundle  # noqa: E402
from edgekit.cache import Cache, default_folder  # noqa: E402
from edgekit.errors import BuildError  # noqa: E402
from edgekit.pipeline import build  # noqa: E402
from edgekit.plan import Built  # noqa: E402
from edgekit.recipe import Recipe, load_recipe  # noqa: E402
from edgekit.runtime.bench import load_test_data  # noqa: E402
from edgekit.runtime.chain import Chain  # noqa: E402
from edgekit.runtime.criteria import CRITERIA  # noqa: E402
from edgekit.runtime.preprocess import stack, unstack  # noqa: E402
from edgekit.target import load_target  # noqa: E402

ANYTHING = {
    "check.quantized.max_relative_error": 1e9,
    "check.quantized.min_top1_agreement": 0.0,
    "check.quantized.min_exit_agreement": 0.0,
}
"""What INT8 costs is reported here, and not demanded."""

LEAST_LEAVING = 0.2
"""Share of the samples that must leave at the first exit, and at the last."""

HEAD = """# Models

Written by `make models` ({date}), on {cpu}, {cores} cores, {machine}; {engine},
Python {python}. Each row is a network of `benchmarks/styles/model.py`, written in another style and
built by recipe, with nothing changed in its code; those of torchvision and timm, on pictures of
64x64, with heads that the recipe attaches to their layers. Weights are random, from a fixed seed,
and so there are no accuracies; samples are waves of unlike strength under noise.

- A cut: the tensors that cross it, and their bytes for one sample in FP32, the greatest if sizes
  vary.
- Error: greatest difference of the FP32 chain's logits from PyTorch's, over the largest magnitude
  among an exit's.
- Decisions: share of {samples} samples that leave at the same exit with the same class as in
  PyTorch (of `segmentation-maps`, at the same exit), under thresholds that spread the samples over
  the exits (`leave`: by exit).
- Integers: share of the multiply-accumulates outside the heads that the INT8 chain does on
  integers. What it does not (SiLU, GELU and LayerNormalization between them, recurrent layers)
  stays in float, and a chain of 0% is the FP32 one.
- Full depth: mean latency of the FP32 chain with no exit taken over that of the undivided network
  with all exits, at one thread. In a network of less than a tenth of a millisecond, as most of the
  hand-written ones are, the call of each further segment is a good part of it.

"""

COLUMNS = (
    "| network | exits | cuts | error | leave | decisions FP32 | decisions INT8 | integers "
    "| full depth |"
)


def main() -> None:
    """Build, measure, write the page."""
    parser = argparse.ArgumentParser(description="Build every style and write docs/models.md.")
    parser.add_argument("styles", nargs="*", metavar="STYLE", help="Only these; all by default.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--target", default="host", help="of another, give another page, too")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/models.md")
    parser.add_argument("--output", type=Path, default=ROOT / "build/models")
    options = parser.parse_args()
    # As `edgekit build` does: what is loaded stays, and is not searched for garbage again.
    gc.collect()
    gc.freeze()
    rows, notes = [], []
    for style in options.styles or STYLES:
        print(style, flush=True)
        needs = STYLES[style].needs
        if needs is not None and find_spec(needs) is None:
            notes.append(f"- {style} is left out: {needs} is not installed; `make models` does.")
            print(notes[-1])
            continue
        folder = options.output / style
        floats = built_evenly(style, options.target, folder / "fp32")
        demand_alike(style, floats)
        thresholds = list(floats.manifest.policy.thresholds)
        integers = None
        try:
            integers = built(style, options.target, folder / "int8", "int8", thresholds, ANYTHING)
        except BuildError as error:
            notes.append(f"- {style} is refused in INT8: {error}.")
        report = measured(floats.path, options.rounds)
        rows.append(row(style, floats, integers, report))
    if not rows:
        sys.exit("nothing is left to build, so no page is written")
    date = datetime.now(timezone.utc).date()
    samples = report["samples"]
    text = HEAD.format(date=date, samples=samples, engine=report["engine"], **report["device"])
    text += "\n".join([COLUMNS, "|---" * COLUMNS.count(" | ") + "|---|", *rows]) + "\n"
    if notes:
        lines = [textwrap.fill(one, 100, subsequent_indent="  ") for one in notes]
        text += "\n" + "\n".join(lines) + "\n"
    options.page.write_text(text, encoding="utf-8")
    print(text)


def demand_alike(style: str, floats: Built) -> None:
    """End the run where an FP32 chain decides otherwise than PyTorch, or nothing is decided."""
    check, rates = accepted(floats), list(exit_rates(floats).values())
    if check["exit_agreement"] < 1:
        sys.exit(f"{style}: decides as PyTorch does on {check['exit_agreement']:.1%} only, in FP32")
    if min(rates[0], rates[-1]) < LEAST_LEAVING:
        shares = ", ".join(f"{rate:.0%}" for rate in rates)
        sys.exit(
            f"{style}: the samples leave by {shares}, and {LEAST_LEAVING:.0%} are wanted at the "
            "first exit and at the last; give it other weights or exits"
        )


def built_evenly(style: str, target: str, folder: Path) -> Built:
    """The style's FP32 bundle, under thresholds that let about as many samples leave at each exit.

    They are read from a first build's logits on the test split; the second is that with another
    policy, and takes all but that from the cache.
    """
    first = built(style, target, folder, "fp32", [0.5] * (len(STYLES[style].exits) - 1))
    bundle = read_bundle(first.path)
    carried = load_test_data(bundle)
    assert carried is not None  # noqa: S101  (the recipe has a test split)
    chain = Chain.from_bundle(bundle)
    found = []
    for sample in unstack(carried[0]):  # One by one: sizes may vary.
        logits, given = chain.exits(stack([sample]))
        sure = given or {exit: CRITERIA["max_prob"](one) for exit, one in logits.items()}
        found.append([float(one[0]) for one in sure.values()])
    exits = len(STYLES[style].exits)
    return built(style, target, folder, "fp32", even_thresholds(np.array(found).T[: exits - 1]))


def even_thresholds(confidences: np.ndarray) -> list[float]:
    """A threshold per early exit that lets about as many samples leave there as anywhere.

    In the widest gap between two confidences that lets no more than a tenth more or fewer leave, so
    that nothing hangs on the last bit. `confidences` are `[early exits, samples]`.
    """
    early, samples = confidences.shape
    remaining = np.arange(samples)
    thresholds = []
    for depth, one in enumerate(confidences):
        descending = np.sort(one[remaining])[::-1]
        share = len(remaining) / (early + 1 - depth)
        leaving = np.arange(round(0.9 * share), round(1.1 * share) + 1)
        gaps = descending[leaving - 1] - descending[leaving]
        best = leaving[gaps.argmax()]
        thresholds.append(float(descending[best - 1] + descending[best]) / 2)
        remaining = remaining[one[remaining] < thresholds[-1]]
    return thresholds


def built(
    style: str,
    target: str,
    folder: Path,
    precision: str,
    thresholds: list[float],
    more: dict[str, Any] | None = None,
) -> Built:
    """The bundle of a style for a target in a precision, built now."""
    chosen = load_target(target, {"precision": precision})
    recipe = recipe_of(style, thresholds, more or {})
    return build(recipe, chosen, folder, cache=Cache(default_folder()))


def recipe_of(style: str, thresholds: list[float], more: dict[str, Any]) -> Recipe:
    """The recipe with what this style's network needs, and nothing of how it is written."""
    chosen = STYLES[style]
    names = [one if isinstance(one, str) else one["name"] for one in chosen.exits]
    several = isinstance(chosen.shape, dict)
    shapes = chosen.shape if several else {"input": chosen.shape}
    lists = {
        name: [x if isinstance(x, int) else list(x) for x in shape]
        for name, shape in shapes.items()
    }
    values = {
        "name": style,
        "model.args.style": style,
        "exits": list(chosen.exits),
        "policy.thresholds": dict(zip(names, thresholds, strict=False)),
        **{f"data.{split}.args.shape": lists if several else lists["input"] for split in SPLITS},
    }
    if several:
        values |= {"input": None, "inputs": {name: {"shape": one} for name, one in lists.items()}}
    else:
        values["input.shape"] = lists["input"]
    if chosen.rows is not None:
        values |= {"input.dtype": "int64", "input.range": [0, chosen.rows - 1]}
        values |= {f"data.{split}.args.rows": chosen.rows for split in SPLITS}
    return load_recipe(str(RECIPE), {**values, **chosen.recipe, **more})


def measured(bundle: Path, rounds: int) -> dict[str, Any]:
    """The bench report of a bundle, from a process of its own without torch, as on a device."""
    command = [sys.executable, "-m", "edgekit.cli", "bench", str(bundle), "--json", "-"]
    result = subprocess.run(
        [*command, "--rounds", str(rounds), "--threads", "1"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def row(style: str, floats: Built, integers: Built | None, report: dict[str, Any]) -> str:
    """A row of the table."""
    variant = floats.manifest.variant()
    cuts = []
    crossing = boundaries([one.tensor for one in floats.manifest.inputs], variant.segments)[:-1]
    # Of the greatest sample, where sizes vary.
    sizes_bytes = notes_of(floats, "split")["boundary_bytes"]
    for names, size_bytes in zip(crossing, sizes_bytes, strict=True):
        cuts.append(f"{len(names)}: {size_bytes:,} B")
    check = accepted(floats)
    cells = [
        style,
        str(len(variant.exits)),
        ", ".join(cuts),
        f"{check['max_relative_error']:.1e}",
        " / ".join(f"{rate:.0%}" for rate in exit_rates(floats).values()),
        f"{check['exit_agreement']:.1%}",
        f"{accepted(integers)['exit_agreement']:.1%}" if integers else "refused",
        f"{notes_of(integers, 'quantize')['integer_share']['chain']:.0%}" if integers else "-",
        f"{report['full_depth_ratio']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def exit_rates(found: Built) -> dict[str, float]:
    """The share of the test split that leaves at each exit, in PyTorch."""
    rates: dict[str, float] = notes_of(found, "verify")["exit_rates"]
    return rates


def notes_of(found: Built, stage: str) -> dict[str, Any]:
    """What a stage noted in the evidence."""
    (notes,) = (one["notes"] for one in found.evidence["stages"] if one["name"] == stage)
    return dict(notes)


def accepted(found: Built) -> dict[str, Any]:
    """The last check: of the finished bundle, on the whole test split."""
    check: dict[str, Any] = found.evidence["checks"][-1]
    return check


if __name__ == "__main__":
    main()
