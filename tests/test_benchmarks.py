"""The benchmarks run, and the ResNet-18 that they measure is right as well as fast."""

import importlib.util
import itertools
import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgekit.backends.tflite_graph import Graph
from edgekit.bundle.ladder import Cascade
from edgekit.bundle.manifest import EVIDENCE_NAME, unseal
from edgekit.bundle.reader import read_bundle
from edgekit.errors import DeviceError
from edgekit.runtime import Chain
from edgekit.runtime.bench_ladder import bench_ladder
from edgekit.runtime.cuda import find
from edgekit.tuning.search import Observed, evaluate
from tests.conftest import ROOT
from tests.ladders import NARROW, WIDE


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_thread_pools_are_compared_in_processes_of_their_own(built_tiny):
    printed = run("benchmarks/thread_pools.py", built_tiny, "--runs", 3)
    assert [line.split()[0] for line in printed.splitlines()] == ["quiet", "spin", "stop", "global"]


def test_the_cost_of_watchers_and_deadlines_is_measured_in_one_process(built_tiny):
    printed = run("benchmarks/metrics_cost.py", built_tiny, "--runs", 5).splitlines()
    names = ["plain", "again", "metrics", "budget", "drift", "deadline", "all"]
    names += ["window", "compare", "move"]
    assert [line.split()[0] for line in printed] == names
    assert "ratio 1.0000" in printed[0]
    for line in printed:
        assert float(line.split()[2]) > 0


def test_searches_for_thresholds_are_timed_beside_a_plain_grid():
    printed = run("benchmarks/tuning.py", "--samples", 300).splitlines()
    assert len(printed) == 7
    assert "grid                  " in printed[2]
    assert "would take" in printed[4]


def program(fixture: str, name: str | None = None):
    """A fixture that is one of `benchmarks/` as a module, of that name if no other is given."""

    @pytest.fixture(scope="module", name=fixture)
    def module():
        spec = importlib.util.spec_from_file_location(
            name or fixture, ROOT / f"benchmarks/{name or fixture}.py"
        )
        found = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found  # Where its dataclasses look for their annotations.
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(ROOT / "benchmarks")  # Where scripts find their neighbours.
            spec.loader.exec_module(found)
        yield found
        del sys.modules[spec.name]

    return module


page_module = program("page")
widths_module = program("widths")
gpu_module = program("gpu")
memory_module = program("memory")
instructions_module = program("instructions")
halves_module = program("halves", "digits_thresholds")


def test_without_a_gpu_nothing_is_measured_and_the_page_stays(tmp_path):
    try:
        find().gpu()
    except DeviceError as error:
        said = str(error)
    else:
        pytest.skip("this machine has a GPU")
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n")
    printed = run("benchmarks/gpu.py", "--page", page, "--output", tmp_path / "built")
    assert printed == f"there is no GPU here, so nothing was measured: {said}\n"
    assert page.read_text() == "# Benchmarks\n"
    assert not (tmp_path / "built").exists()


def test_the_sections_of_a_page_stay_where_another_is_written(page, tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Benchmarks\n\nof a processor\n")
    one, other = (f"## {name}\n\nfigures\n" for name in ("One", "Other"))
    page.write_section(path, one)
    page.write_section(path, other)
    assert path.read_text() == f"# Benchmarks\n\nof a processor\n\n{one}\n{other}"
    page.write_section(path, one.replace("figures", "anew"))
    assert path.read_text() == f"# Benchmarks\n\nof a processor\n\n## One\n\nanew\n\n{other}"
    assert page.section_of(path.read_text(), "## Other") == other
    assert page.section_of(path.read_text(), "## On") == ""


def test_what_other_commands_wrote_is_on_the_page(page, gpu, memory, instructions, widths):
    text = page.PAGE.read_text()
    for one in (gpu, memory, instructions, widths):
        assert page.section_of(text, one.HEADING), one.HEADING


def test_the_cascade_of_widths_was_measured_as_fast_as_is_promised(page, widths):
    section = page.section_of(page.PAGE.read_text(), widths.HEADING)
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    found = {(one[0], one[1]): one for one in rows}
    for precision in ("fp32", "int8"):
        ladder, widest = found["ladder", precision], found["w1.0", precision]
        assert float(ladder[4]) >= 1.5
        assert float(ladder[3][:-1]) >= float(widest[3][:-1]) - 1


def test_networks_that_are_not_counted_again_stay_on_the_page(instructions, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n")
    rows = [f"| {name} | an engine | 1.0 |" for name in instructions.NETWORKS]
    spread = instructions.SPREAD.format(repeats=10, engine="an engine", spread=0.0)
    instructions.write(page, rows, 2 * spread)
    section = instructions.section_of(page.read_text(), instructions.HEADING)
    assert instructions.kept(section, ["glyphs"]) == ([rows[0], rows[2]], 2 * spread)
    assert instructions.kept(section, list(instructions.NETWORKS)) == ([], "")
    before = page.read_text()
    again, spreads = instructions.kept(section, ["glyphs"])
    instructions.write(page, [*again, rows[1]], spreads)
    assert page.read_text() == before


def test_the_page_has_the_counts_that_the_tests_are_held_to(instructions):
    section = instructions.section_of(instructions.PAGE.read_text(), instructions.HEADING)
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    head, *rows = rows
    a72 = [one for one in rows if one[0] == "digits" and one[2] == "cortex-a72"]
    found = [one[head.index("to each exit")].split(" / ")[-1] for one in a72]
    committed = json.loads(instructions.COMMITTED.read_text())
    assert found == [f"{one / 1e6:.2f}" for one in committed.values()]
    assert committed.keys() == instructions.TARGETS.keys()


def test_thresholds_of_a_network_that_knows_nothing_let_as_many_leave_at_each_exit(gpu, built_tiny):
    chain = Chain.load(built_tiny)
    samples = gpu.samples_of(read_bundle(built_tiny))[:24]
    assert len(gpu.samples_of(read_bundle(built_tiny))) >= gpu.BATCHES[-1]
    left = Counter(one.exit for one in chain.with_policy(gpu.evenly(chain, samples)).many(samples))
    assert left == {"first": 8, "second": 8, "last": 8}


def test_contenders_are_measured_and_stand_in_one_row(gpu, built_tiny):
    bundle = read_bundle(built_tiny)
    chains = gpu.loaded(bundle, "onnxruntime")
    ms = gpu.measured(chains, {"eager": lambda samples: samples}, bundle, 8, 3)
    assert ms.keys() == {"plain", "whole", "full depth", "exits", "eager"}
    assert all(one > 0 for one in ms.values())
    cells = gpu.row("tiny", "onnxruntime", 8, ms).strip("| ").split(" | ")
    assert cells[:3] == ["tiny", "onnxruntime", "8"]
    assert len(cells) == gpu.COLUMNS.count("|") - 1
    assert cells[-1] == "-"


def test_the_peak_of_a_process_holds_all_that_it_loads_and_numpy(memory, built_tiny):
    bundle = read_bundle(built_tiny)
    peaks = memory.peaks_of(bundle, repeats=1, threads=1)
    assert peaks["python"] < peaks["numpy"] < peaks["engine"] < peaks["chain"]
    assert peaks["engine"] < min(peaks["plain"], peaks["whole"])
    lines = memory.table(peaks)
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(peaks)
    chain = sum(one.size_bytes for one in bundle.manifest.variant().segments)
    assert f"| chain | {chain:,} |" in memory.sizes(bundle)


def few(seed, samples=9):
    """Three exits on a few samples; some confidences are the same."""
    rng = np.random.default_rng(seed)
    confidences = rng.integers(0, 6, (2, samples)) / 6
    right = rng.random((3, samples)) < [[0.6], [0.7], [0.8]]
    return Observed(confidences, right, np.array([1.0, 2.5, 4.0]))


@pytest.mark.parametrize("seed", range(30))
def test_no_thresholds_are_faster_than_the_oracles(halves, seed):
    given = few(seed)
    levels = [-1.0, *(np.arange(6) / 6), 2.0]
    every = evaluate(given, list(itertools.product(levels, levels)))
    for loss in (Fraction(0), Fraction(1, 4)):
        least = halves.least_right(given, loss)
        assert least == given.right[-1].sum() - (0 if loss == 0 else 2)
        (found,) = (evaluate(given, halves.fastest(given, least)[None]),)
        assert found.right[0] >= least
        assert found.costs[0] == every.costs[every.right >= least].min()


def test_thresholds_are_judged_on_the_half_that_they_were_not_found_on(halves):
    # Every sample has its twin in the other half: what is found on one holds on the other.
    rng = np.random.default_rng(0)
    order = rng.permutation(200)
    once = few(1, 100)
    first, second = np.sort(order[:100]), np.sort(order[100:])
    place = np.empty(200, int)
    place[first] = place[second] = np.arange(100)
    found = halves.judged(once.of(place), 4.0, 1)
    assert len(found) == 6
    for (loss, kind), one in found.items():
        assert one.kept(loss) == 1, kind
        assert 1 <= one.speedup[0] <= 4
    for loss in halves.LOSSES:
        speedups = [found[loss, kind].speedup[0] for kind in ("shared", "per exit", "oracle")]
        assert speedups == sorted(speedups)
        assert speedups[1] == speedups[2]
    # And those of strangers do not: nothing that the exits say tells who is right.
    samples = 80
    noise = Observed(rng.random((2, samples)), rng.random((3, samples)) < 0.5, once.costs)
    found = halves.judged(noise, 4.0, 4)
    assert found[Fraction(0), "oracle"].kept(Fraction(0)) == 1
    assert found[Fraction(0), "per exit"].kept(Fraction(0)) < 1


def test_thresholds_for_each_exit_of_digits_are_judged_beside_a_shared_one(digits_bundle):
    arguments = digits_bundle, "--halvings", 2, "--rounds", 1
    printed = run("benchmarks/digits_thresholds.py", *arguments).splitlines()
    cells = [line.split(" | ") for line in printed[2:8]]
    assert [one[1] for one in cells] == ["shared", "per exit", "oracle"] * 2
    assert [one[4] for one in cells if one[1] == "oracle"] == ["100%"] * 2
    assert "halvings, slower in " in printed[9]
    assert "of the 720 images" in "\n".join(printed)


def rows_of(page: Path, *styles: str, target: str = "host") -> dict[str, dict[str, str]]:
    """Runs the command over these networks, or all; the page's rows by network."""
    options = "--rounds", 1, "--target", target, "--page", page, "--output", page.parent
    run("benchmarks/models.py", *styles, *options)
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in rows}


def assert_decides_as_pytorch(row: dict[str, str]) -> None:
    """Every exit is put to the test, and the chain leaves where PyTorch would."""
    leave = [int(rate.strip().removesuffix("%")) for rate in row["leave"].split("/")]
    assert len(leave) == int(row["exits"]), row
    assert len(row["cuts"].split(" B")) == int(row["exits"]), row
    assert min(leave[0], leave[-1]) >= 20, f"{row} puts no exit to the test"
    assert row["decisions FP32"] == "100.0%", row
    assert float(row["error"]) < 1e-4, row
    assert float(row["full depth"]) > 0
    assert 0 <= float(row["decisions INT8"].removesuffix("%")) <= 100, row
    assert 0 <= float(row["integers"].removesuffix("%")) <= 100, row


CROSSING = {
    "tap-before-activation": [1, 1],
    "multi-scale-dense": [3, 3],
    "skips-a-segment": [1, 2],
    "exits-feed-later-exits": [2, 2],
    "shared-head": [1, 1],
    "two-inputs": [2, 2],
    "torchvision-resnet18": [1, 1, 1],
}
"""How many tensors cross each cut, where that is seen from how the network is written."""


def assert_cut_where_it_is_written(row: dict[str, str]) -> None:
    crossing = [int(one.split(":")[0]) for one in row["cuts"].split(" B, ")]
    assert crossing == CROSSING.get(row["network"], crossing), row


def test_networks_of_other_styles_come_in_by_recipe_alone(tmp_path):
    rows = rows_of(tmp_path / "models.md", "shared-head", "frames-in-the-batch", "two-inputs")
    assert list(rows) == ["shared-head", "frames-in-the-batch", "two-inputs"]
    for row in rows.values():
        assert_decides_as_pytorch(row)
        assert_cut_where_it_is_written(row)
    assert rows["shared-head"]["cuts"] == "1: 8,192 B, 1: 8,192 B"
    assert rows["frames-in-the-batch"]["cuts"] == "1: 24,576 B, 1: 8,192 B"
    assert rows["two-inputs"]["cuts"] == "2: 6,168 B, 2: 2,072 B", "its second input crosses, too"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="`make models` installs torchvision")
@pytest.mark.parametrize("style", ["torchvision-efficientnet-b1"], ids=lambda one: one[12:])
def test_a_published_network_is_integers_in_litert_and_transposes_its_input_alone(tmp_path, style):
    (row,) = rows_of(tmp_path / "models.md", style, target="rpi4b-litert").values()
    assert_decides_as_pytorch(row)
    assert row["integers"] == "100%"
    graphs = {one.stem: Graph(one.read_bytes()) for one in tmp_path.rglob("int8/**/*.tflite")}
    kinds = {name: Counter(map(one.kind, one.operators)) for name, one in graphs.items()}
    turned = {name for name, one in kinds.items() if one["TRANSPOSE"]}
    assert turned == {"segment-1", "plain", "whole"}, "what takes the picture"
    assert kinds["whole"]["TRANSPOSE"] == 1
    # Of floats there are the heads alone: each dequantizes once.
    assert kinds["whole"]["DEQUANTIZE"] == sum(
        kinds[f"segment-{k}"]["DEQUANTIZE"] for k in (1, 2, 3)
    )
    assert kinds["whole"]["DEQUANTIZE"] == kinds["whole"]["FULLY_CONNECTED"] == 3


@pytest.mark.slow
def test_every_style_and_some_published_networks_decide_as_pytorch_does(tmp_path):
    page = tmp_path / "models.md"
    styles = [style for style in all_styles() if style not in FOR_MAKE_MODELS]
    rows = rows_of(page, *styles)
    left_out = {style for style in styles if f"- {style} is left out: " in page.read_text()}
    assert left_out <= {style for style in styles if style.startswith(("torchvision-", "timm-"))}
    assert list(rows) == [style for style in styles if style not in left_out]
    assert rows.keys() | left_out >= CROSSING.keys()
    for row in rows.values():
        assert_decides_as_pytorch(row)
        assert_cut_where_it_is_written(row)


FOR_MAKE_MODELS = {f"torchvision-efficientnet-b{size}" for size in (0, 1, 3)} | {
    "torchvision-mobilenet-v2"
}
"""Minutes each: `make models` builds them; their families stand in tests of TensorRT, too."""


def all_styles() -> list[str]:
    """In a process of its own: the networks' files are imported by names that others have."""
    code = "import sys; sys.path.insert(0, 'benchmarks/styles'); import model; print(*model.STYLES)"
    return run("-c", code).split()


def test_a_network_whose_package_is_not_installed_is_left_out_with_a_word(tmp_path):
    code = (
        "import importlib.util as util, runpy, sys; find = util.find_spec;"
        "util.find_spec = lambda name, *more: None if name == 'timm' else find(name, *more);"
        "sys.argv = ['models.py', 'timm-vit-tiny']; runpy.run_path('benchmarks/models.py', "
        "run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert "timm-vit-tiny is left out: timm is not installed" in ended.stdout
    assert "nothing is left to build" in ended.stderr


@pytest.mark.slow
def test_the_benchmark_page_is_written_and_resnet18_is_exact(tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "built"
    chosen = ("--networks", "resnet18")  # And digits, which sections of the page are about.
    run("benchmarks/run.py", *chosen, "--rounds", 1, "--page", page, "--output", output)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| resnet18")]
    precisions = [line.split("|")[2].strip() for line in rows]
    assert precisions == ["fp32", "fp32", "int8 U8S8", "int8 S8S8", "int8 LiteRT"]
    path = output / "benchmarks-resnet18-recipe" / EVIDENCE_NAME
    evidence = unseal(path.read_bytes(), EVIDENCE_NAME)
    for check in evidence["checks"]:
        assert check["exit_agreement"] == check["top1_agreement"] == 1
        assert check["max_relative_error"] < 1e-5


def test_every_width_and_the_ladder_stand_in_a_row(widths, built_ladder):
    samples = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)
    report, _ = bench_ladder(
        built_ladder, samples, np.zeros(4, np.int64), rounds=1, policy=Cascade((2.0,))
    )
    lines = widths.table({"fp32": report})
    rows = [line.strip("| ").split(" | ") for line in lines[2:5]]
    found = [(one[0], one[-1]) for one in rows]
    assert found == [(NARROW, "0.0%"), (WIDE, "100.0%"), ("ladder", "-")]
    assert rows[1][4] == "1.00"
    assert lines[-1] == f"- fp32: {report['verdict']}"
