"""The benchmarks run, and the ResNet-18 that they measure is right as well as fast."""

import subprocess
import sys

import pytest

from edgekit.bundle.manifest import EVIDENCE_NAME, unseal
from tests.conftest import ROOT


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_thread_pools_are_compared_in_processes_of_their_own(built_tiny):
    printed = run("benchmarks/thread_pools.py", built_tiny, "--runs", 3)
    assert [line.split()[0] for line in printed.splitlines()] == ["quiet", "spin", "stop", "global"]


def test_the_cost_of_metrics_and_deadlines_is_measured_in_one_process(built_tiny):
    printed = run("benchmarks/metrics_cost.py", built_tiny, "--runs", 5).splitlines()
    names = ["plain", "again", "metrics", "deadline", "both", "window"]
    assert [line.split()[0] for line in printed] == names
    assert "ratio 1.0000" in printed[0]
    for line in printed:
        assert float(line.split()[2]) > 0


def test_searches_for_thresholds_are_timed_beside_a_plain_grid():
    printed = run("benchmarks/tuning.py", "--samples", 300).splitlines()
    assert len(printed) == 7
    assert "grid                  " in printed[2]
    assert "would take" in printed[4]


def assert_styles_decide_as_pytorch(tmp_path, *styles: str) -> list[list[str]]:
    """Runs the command over these styles, or all; the page's rows."""
    page = tmp_path / "models.md"
    run("benchmarks/models.py", *styles, "--rounds", 1, "--page", page, "--output", tmp_path)
    text = page.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    for cells in rows:
        one = dict(zip(head, cells, strict=True))
        leave = [int(rate.strip().removesuffix("%")) for rate in one["leave"].split("/")]
        assert len(leave) == int(one["exits"]), one
        assert min(leave[0], leave[-1]) >= 20, f"{one} puts no exit to the test"
        assert one["decisions FP32"] == "100.0%", one
        assert float(one["error"]) < 1e-4, one
        assert float(one["full depth"]) > 0
        refused = f"- {one['network']} in INT8: " in text
        assert refused == (one["decisions INT8"] == "refused")
    return rows


def test_networks_of_other_styles_come_in_by_recipe_alone(tmp_path):
    rows = assert_styles_decide_as_pytorch(tmp_path, "shared-head", "frames-in-the-batch")
    assert [cells[0] for cells in rows] == ["shared-head", "frames-in-the-batch"]
    assert [cells[2] for cells in rows] == ["1: 8,192 B, 1: 8,192 B", "1: 24,576 B, 1: 8,192 B"]


@pytest.mark.slow
def test_the_benchmark_page_is_written_and_resnet18_is_exact(tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "built"
    run("benchmarks/run.py", "--rounds", 1, "--page", page, "--output", output)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| resnet18")]
    precisions = [line.split("|")[2].strip() for line in rows]
    assert precisions == ["fp32", "fp32", "int8 U8S8", "int8 S8S8"]
    path = output / "benchmarks-resnet18-recipe" / EVIDENCE_NAME
    evidence = unseal(path.read_bytes(), EVIDENCE_NAME)
    for check in evidence["checks"]:
        assert check["exit_agreement"] == check["top1_agreement"] == 1
        assert check["max_relative_error"] < 1e-5
