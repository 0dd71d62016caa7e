"""What an inference costs on a Raspberry Pi, in instructions: a section of docs/benchmarks.md.

    make bench-pi

Builds recipes/digits, recipes/glyphs and benchmarks/resnet18 in INT8 for each engine of a Raspberry
Pi 4B, and counts what they run on an emulated one, and on the processor of a Pi 5. The tests hold
digits to the figure that this leaves in tests/pi/instructions.json.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from page import PAGE, section_of, write_section

from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.cache import Cache, default_folder
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.chain import Chain
from edgekit.target import load_target

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.pi.counting import Counts, count  # noqa: E402
from tests.pi.emulated import BOARDS, edgekit_of, emulated_pi  # noqa: E402

HEADING = "## On an emulated Raspberry Pi"

NETWORKS = {
    "digits": ("recipes/digits/recipe.yaml", 5),
    "glyphs": ("recipes/glyphs/recipe.yaml", 5),
    "resnet18": ("benchmarks/resnet18/recipe.yaml", 1),
}
"""Recipes, and how often each kind of inference runs: a large one takes seconds here."""

TARGETS = {"onnxruntime": "rpi4b", "litert": "rpi4b-litert"}
COMMITTED = ROOT / "tests/pi/instructions.json"
REPEATS = 10

HEAD = """{heading}

Written by `make bench-pi` ({date}): million instructions of an inference, batch 1, one thread,
INT8. The bundles are built for a Raspberry Pi 4B, which qemu emulates (Cortex-A72), and counted on
the processor of a Pi 5 (Cortex-A76) as well. `segments` are the engine's calls alone; everything
else is from a prepared tensor to the decision. `to each exit` is what a sample takes that leaves
there, the last where no exit is taken. `mean` is over the test split, by the exits that its samples
leave at. `resnet18` has random weights: where its samples leave means nothing.

A count says what cuts cost and what exits save, and whether a change has made either worse, in one
engine and one precision. It is no time: how many instructions a processor does at once, and how
long it waits for its memory, is in none of these figures. Which engine is faster, or what INT8
gains over FP32, they do not say. [emulated-pi.md](emulated-pi.md) has how they are taken.

"""

COLUMNS = (
    "| network | engine | processor | segments | to each exit | plain | whole | "
    "full depth / whole | mean | x plain |"
)

SPREAD = """
Of {repeats} counts of digits with {engine}, each in a process of its own, the greatest
to the final exit is {spread:.4%} above the least.
"""


def main() -> None:
    """Build, count, write the section and the figures that the tests are held to."""
    parser = argparse.ArgumentParser(description="Count instructions, for docs/benchmarks.md.")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--committed", type=Path, default=COMMITTED)
    parser.add_argument("--output", type=Path, default=ROOT / "build/benchmarks-pi")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="all by default")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    chosen = options.network or list(NETWORKS)
    rows, spreads = kept(section_of(options.page.read_text("utf-8"), HEADING), chosen)
    committed: dict[str, int] = {}
    for network in chosen:
        recipe, runs = NETWORKS[network]
        for engine, target in TARGETS.items():
            folder = options.output / f"{network}-{target}"
            given = load_recipe(str(ROOT / recipe)), load_target(target), folder
            build(*given, cache=Cache(default_folder()))
            rates, version = decided(read_bundle(folder))
            for board in BOARDS:
                found = counted(board, engine, folder, runs)
                rows.append(row(network, version, board, found, rates))
                print(rows[-1], flush=True)
                if network == "digits" and board == "rpi4b":
                    committed[engine] = found.full_depth
                    again = [
                        counted(board, engine, folder, runs).full_depth
                        for _ in range(options.repeats)
                    ]
                    spread = max(again) / min(again) - 1
                    spreads += SPREAD.format(repeats=len(again), engine=version, spread=spread)
        write(options.page, rows, spreads)  # What was counted stays, if the rest is interrupted.
    if committed:
        options.committed.write_text(json.dumps(committed, indent=2) + "\n", "utf-8")


def write(page: Path, rows: list[str], spreads: str) -> None:
    """Put the section into the page."""
    text = HEAD.format(heading=HEADING, date=datetime.now(timezone.utc).date())
    order = list(NETWORKS)
    rows = sorted(rows, key=lambda one: order.index(one.split(" | ")[0].removeprefix("| ")))
    text += "\n".join([COLUMNS, "|---" * 10 + "|", *rows]) + "\n" + spreads
    write_section(page, text)


def kept(section: str, chosen: Sequence[str]) -> tuple[list[str], str]:
    """Of an older section the rows of networks that are not counted now, and the spreads."""
    others = tuple(f"| {one} |" for one in NETWORKS if one not in chosen)
    rows = [line for line in section.splitlines() if others and line.startswith(others)]
    spreads = re.findall(r"^\nOf .*?least\.\n", section, re.M | re.S)
    return rows, "" if "digits" in chosen else "".join(spreads)


def decided(bundle: Bundle) -> tuple[dict[str, float] | None, str]:
    """The share of the test split that leaves at each exit, None where it is noise; the engine."""
    chain = Chain.from_bundle(bundle)
    data = load_test_data(bundle)
    if data is None or data[1] is None:
        return None, chain.engines[0].version
    left = [one.exit for one in chain.many(data[0])]  # type: ignore[arg-type]
    exits = bundle.manifest.variant().exits
    return {exit: left.count(exit) / len(left) for exit in exits}, chain.engines[0].version


def counted(board: str, engine: str, bundle: Path, runs: int) -> Counts:
    """The instructions of a bundle on one of the boards."""
    pi = emulated_pi(board, engine)
    with tempfile.TemporaryDirectory() as folder:
        return count(pi, bundle, edgekit_of(bundle, Path(folder)), runs=runs)


def row(
    network: str, engine: str, board: str, counts: Counts, rates: dict[str, float] | None
) -> str:
    """A line of the table."""

    def millions(*numbers: float) -> str:
        return " / ".join(f"{one / 1e6:.2f}" for one in numbers)

    cells = [
        network,
        engine,
        BOARDS[board].cpu,
        millions(*counts.segments.values()),
        millions(*counts.to_exit.values()),
        millions(counts.plain),
        millions(counts.whole),
        f"{counts.full_depth / counts.whole:.3f}",
        millions(counts.mean(rates)) if rates else "-",
        f"{counts.plain / counts.mean(rates):.2f}" if rates else "-",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
