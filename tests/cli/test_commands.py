"""What the commands print and write when all is well."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest

from edgekit.runtime import board, nvidia, raspberrypi
from edgekit.runtime.device import describe
from tests.runtime import boards

COMMANDS = [
    "build", "inspect", "run", "verify", "bench", "report", "compare", "targets", "doctor",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(cli, command):
    ended = cli(command, "--help")
    assert ended.code == 0
    assert "Usage: edgekit " + command in ended.out
    assert "--json" in ended.out


def test_version(cli):
    from edgekit import __version__

    assert cli("--version").out.strip() == __version__


def test_a_dry_run_shows_everything_and_builds_nothing(cli, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli(
        "build", tiny_recipe, "--dry-run", "--json", "plan.json",
        "--set", "policy.thresholds.first=0.77", "--set", "target.threads=3",
    )  # fmt: skip
    assert ended.code == 0
    assert "first: 0.77" in ended.out
    assert "# load      no earlier build" in ended.out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["recipe"]["policy"]["thresholds"] == {"first": 0.77, "second": 0.29}
    assert plan["target"]["threads"] == 3
    assert plan["output"] == "build/tiny/host"
    assert not (tmp_path / "build").exists()


def test_inspect_a_recipe_shows_cuts_without_building(cli, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = cli("inspect", tiny_recipe, "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report["exits"] == ["first", "second", "last"]
    assert [one["parameters"] for one in report["segments"]] == [2132, 2636, 2636]
    assert [one["macs"] for one in report["segments"]] == [6656, 38912, 38912]
    assert "8x8x8 float32 (2.05 kB)" in ended.err
    assert "first 7.9%" in ended.err
    assert not (tmp_path / "build").exists()


def test_inspect_a_bundle_needs_no_recipe(cli, built_tiny):
    ended = cli("inspect", built_tiny)
    assert ended.code == 0
    assert "max_prob: first at 0.3, second at 0.29" in ended.out
    assert "8x8x8 float32 (2.05 kB)" in ended.out


def test_run_says_class_exit_and_confidence_per_file(cli, built_tiny, tmp_path):
    import numpy as np

    from edgekit.runtime import Chain

    pictures = sorted((built_tiny / "golden").glob("*.png"))
    chain = Chain.load(built_tiny)
    array = tmp_path / "tensor.npy"
    np.save(array, chain.read(pictures[0]))
    ended = cli("run", built_tiny, *pictures, array, "--json", tmp_path / "run.json")
    assert ended.code == 0
    report = json.loads((tmp_path / "run.json").read_text())["predictions"]
    for entry, picture in zip(report, [*pictures, pictures[0]], strict=True):
        expected = chain.one(chain.read(picture))
        assert (entry["label"], entry["exit"]) == (expected.label, expected.exit)
        assert entry["confidence"] == expected.confidence
        assert str(entry["file"]) in ended.out
    assert len({entry["exit"] for entry in report}) > 1


def test_run_cuts_short_at_a_deadline_and_says_so(cli, tiny_bundle):
    from edgekit.bundle.manifest import EVIDENCE_NAME, seal, unseal
    from edgekit.runtime.device import describe

    evidence = tiny_bundle / EVIDENCE_NAME
    document = unseal(evidence.read_bytes(), EVIDENCE_NAME)
    document.update(segment_latency_ms=[0.1, 1e6, 1e6], host=describe())
    evidence.write_bytes(seal(document))
    pictures = sorted((tiny_bundle / "golden").glob("*.png"))
    ended = cli("run", tiny_bundle, *pictures, "--deadline-ms", 50, "--json", "-")
    report = json.loads(ended.out)["predictions"]
    assert {entry["exit"] for entry in report} == {"first"}
    assert {entry["stop"] for entry in report} == {"sure", "deadline"}
    for entry in report:
        assert (entry["confidence"] >= 0.30) is (entry["stop"] == "sure")
    assert " deadline " in ended.err
    ended = cli("run", tiny_bundle, *pictures, "--json", "-")
    assert {entry["stop"] for entry in json.loads(ended.out)["predictions"]} == {"sure", "final"}


def test_run_counts_exactly_the_files(cli, built_tiny, tmp_path):
    pictures = sorted((built_tiny / "golden").glob("*.png"))
    file = tmp_path / "metrics.jsonl"
    assert cli("run", built_tiny, *pictures, tmp_path / "absent.png", "--metrics", file).code == 1
    (line,) = map(json.loads, file.read_text().splitlines())
    assert line["samples"] == sum(exit["count"] for exit in line["exits"]) == len(pictures)


@pytest.mark.parametrize("inline", [True, False])
def test_run_takes_another_policy_for_the_same_segments(cli, built_tiny, tmp_path, inline):
    from edgekit.bundle.manifest import Policy
    from edgekit.runtime import Chain

    text = '{"combine": "sum", "weights": [1, 2, 3], "otherwise": "max_confidence", '
    text += '"thresholds": {"second": 0.4, "first": 2}}'
    if not inline:
        (tmp_path / "policy.json").write_text(text)
    policy = text if inline else tmp_path / "policy.json"
    pictures = sorted((built_tiny / "golden").glob("*.png"))
    ended = cli("run", built_tiny, *pictures, "--policy", policy, "--json", "-")
    report = json.loads(ended.out)
    expected = Policy("max_prob", (2.0, 0.4), "sum", (1.0, 2.0, 3.0), "max_confidence")
    assert report["policy"] == json.loads(json.dumps(dataclasses.asdict(expected)))
    chain = Chain.load(built_tiny).with_policy(expected)
    found = [chain.one(chain.read(picture)) for picture in pictures]
    assert [one["exit"] for one in report["predictions"]] == [one.exit for one in found]
    assert [one["confidence"] for one in report["predictions"]] == [one.confidence for one in found]


def test_run_under_other_temperatures_is_as_sure_as_they_say(cli, built_tiny, tmp_path):
    from edgekit.runtime import Chain
    from edgekit.runtime.criteria import CRITERIA

    text = '{"temperatures": {"last": 4, "first": 0.5, "second": 2}, "thresholds": 0.4}'
    pictures = sorted((built_tiny / "golden").glob("*.png"))
    report = json.loads(cli("run", built_tiny, *pictures, "--policy", text, "--json", "-").out)
    assert report["policy"]["temperatures"] == [0.5, 2, 4]
    chain = Chain.load(built_tiny)
    over = {"first": 0.5, "second": 2.0, "last": 4.0}
    for picture, one in zip(pictures, report["predictions"], strict=True):
        logits = chain.logits(chain.read(picture)[None])[one["exit"]][0]
        scaled = logits.astype(np.float64) / over[one["exit"]]
        assert one["confidence"] == float(CRITERIA["max_prob"](scaled))
    ended = cli("bench", built_tiny, "--rounds", 1, "--policy", text)
    assert "max_prob at temperatures 0.5, 2, 4: first at 0.4, second at 0.4" in ended.out


def test_what_a_policy_says_again_of_the_bundle_needs_no_other_thresholds(cli, built_tiny):
    picture = built_tiny / "golden/000.png"
    again = '{"criterion": "max_prob", "temperatures": null, "weights": null}'
    assert cli("run", built_tiny, picture, "--policy", again).code == 0


def test_run_under_a_changed_threshold_keeps_the_rest_of_the_policy(cli, built_tiny):
    picture = built_tiny / "golden/000.png"
    ended = cli("run", built_tiny, picture, "--policy", '{"thresholds": 2}', "--json", "-")
    report = json.loads(ended.out)
    assert report["policy"]["criterion"] == "max_prob"
    assert report["policy"]["thresholds"] == [2, 2]
    assert report["predictions"][0]["exit"] == "last"


def test_bench_says_whose_policy_it_measured(cli, built_tiny):
    policy = '{"criterion": "patience", "thresholds": 1}'
    ended = cli("bench", built_tiny, "--rounds", 1, "--policy", policy)
    assert "Not the bundle's policy: patience: first at 1, second at 1" in ended.out


def test_verify_says_what_was_held_against_what(cli, built_tiny):
    ended = cli("verify", built_tiny, "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report["golden"]["samples"] == 8
    assert report["engine"].startswith("onnxruntime ")
    assert "8 samples leave where they did" in ended.err


def test_bench_prints_a_verdict_and_writes_the_report(cli, built_tiny, tmp_path):
    ended = cli(
        "bench", built_tiny, "--beside", built_tiny, "--rounds", 2, "--json", tmp_path / "b.json"
    )
    assert ended.code == 0
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["verdict"] in ended.out
    assert report["beside"][0]["bundle_id"] == report["bundle_id"]
    assert report["samples"] == 24
    for name in ("first", "second", "last", "whole (all exits)", "plain (final exit)"):
        assert name in ended.out


def test_bench_takes_data_of_ones_own(cli, built_tiny, tmp_path):
    import numpy as np

    pixels = np.random.default_rng(5).integers(0, 256, (7, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", inputs=pixels)
    ended = cli("bench", built_tiny, "--data", tmp_path / "mine.npz", "--rounds", 1, "--json", "-")
    report = json.loads(ended.out)
    assert report["samples"] == 7
    assert report["accuracy"] is None
    assert not report["valid"]


def test_targets_lists_host(cli):
    ended = cli("targets", "--json", "-")
    (host,) = (one for one in json.loads(ended.out) if one["name"] == "host")
    assert host["engine"] == "onnxruntime"
    assert "host" in ended.err


def test_bench_prints_energy_where_a_boards_power_can_be_read(
    cli, built_tiny, tmp_path, monkeypatch
):
    from edgekit.runtime import bench as library

    root = boards.orin_nano(tmp_path)
    boards.lay(root, {"sys/class/devfreq/17000000.gpu/min_freq": 306000000})
    measure = functools.partial(library.bench, root=root, energy_s=0.05)
    monkeypatch.setattr(library, "bench", measure)
    ended = cli("bench", built_tiny, "--rounds", 1)
    assert ended.code == 0
    assert "JetPack 6.2, power mode MAXN_SUPER, 49 to 49 degrees" in ended.out
    assert "sudo jetson_clocks" in ended.out
    assert "Energy of an inference in mJ" in ended.out
    assert "VDD_IN; idle 5.00 W" in ended.out
    assert re.search(r"^to second +[0-9.]+ +-?[0-9.]+ +5\.00 ", ended.out, re.MULTILINE)


def test_bench_says_what_a_raspberry_pi_met_and_what_each_holds(
    cli, built_tiny, tmp_path, monkeypatch
):
    pi = board.find(boards.raspberry_pi(tmp_path, throttled="0x50005", governor="ondemand"))
    monkeypatch.setattr("edgekit.runtime.bench.board.find", lambda _: pi)
    ended = cli("bench", built_tiny, "--rounds", "1")
    assert ended.code == 0
    assert "governor ondemand, 48 to 48 degrees\n" in ended.out
    assert "Note: the clock follows the load (governor ondemand); echo performance" in ended.out
    assert "the board was throttled: low voltage, against which a power supply" in ended.out
    assert re.search(r"Memory that each adds, loaded and run once: .*chain [0-9.]+ MB", ended.out)
    assert re.search(r"All of this process: [0-9.]+ MB at most", ended.out)


def test_doctor_finds_what_the_tests_run_on(cli):
    ended = cli("doctor", "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report["engines"] == ["onnxruntime", "litert"]
    assert report["host_packages"]["torch"].startswith("2.")
    assert report["advice"] == []
    assert "build bundles    yes" in ended.err


@pytest.fixture
def on_board(monkeypatch, tmp_path):
    """Doctor looks at the board of this folder, from a bare Python 3.10 in an environment."""
    python = nvidia.Python("3.10", virtual=True, modules=("pycuda",))
    look = functools.partial(nvidia.look, tmp_path, python)
    monkeypatch.setattr("edgekit.cli.doctor.nvidia.look", look)
    return tmp_path


def test_doctor_says_what_a_jetson_is_and_what_it_lacks(cli, on_board):
    boards.orin_nano(on_board)
    ended = cli("doctor", "--json", "-")
    assert ended.code == 0
    for line in (
        "board     NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "jetpack   6.2 (Jetson Linux 36.4.3)",
        "power     MAXN_SUPER",
        "To use TensorRT: sudo apt install python3-libnvinfer",
    ):
        assert f"{line}\n" in ended.err
    report = json.loads(ended.out)
    assert report["nvidia"]["power_mode"] == "MAXN_SUPER"
    assert report["nvidia"]["refusal"] is None
    assert "use TensorRT: sudo apt install python3-libnvinfer" in report["advice"]


@pytest.fixture
def on_pi(monkeypatch, tmp_path):
    """Doctor looks at the Raspberry Pi of this folder."""
    find = functools.partial(raspberrypi.find, tmp_path)
    monkeypatch.setattr("edgekit.cli.doctor.raspberrypi.find", find)
    return tmp_path


def test_doctor_says_how_a_raspberry_pi_is_and_what_mends_it(cli, on_pi):
    boards.raspberry_pi(on_pi, throttled="0x50000", governor="ondemand")
    ended = cli("doctor", "--json", "-")
    assert ended.code == 0
    for line in (
        "governor  ondemand",
        "clock     1500 of 1800 MHz",
        "heat      48 degrees",
        "throttled low voltage, throttled",
    ):
        assert f"{line}\n" in ended.err
    assert "To hold the clock while you measure (its governor is ondemand): echo perf" in ended.err
    assert "To end the low voltage that was seen since boot: a power supply" in ended.err
    report = json.loads(ended.out)
    assert report["raspberry_pi"] == {
        "board": "Raspberry Pi 4 Model B Rev 1.5",
        "governor": "ondemand",
        "temperatures_c": {"cpu": 48.312},
        "clock_mhz": 1500.398464,
        "throttled_bits": "0x50000",
        "throttled_since_boot": ["low voltage", "throttled"],
    }


def test_doctor_finds_nothing_to_mend_on_a_raspberry_pi_that_is_well(cli, on_pi):
    boards.raspberry_pi(on_pi)
    ended = cli("doctor", "--json", "-")
    assert "throttled not since boot\n" in ended.err
    assert json.loads(ended.out)["advice"] == []


def test_doctor_sends_a_32_bit_raspberry_pi_to_the_64_bit_system_and_not_to_pip(
    cli, on_pi, monkeypatch
):
    boards.raspberry_pi(on_pi)
    monkeypatch.setattr("edgekit.cli.doctor.struct.calcsize", lambda _: 4)
    monkeypatch.setattr("edgekit.cli.doctor.nvidia.engines", lambda _: [])
    ended = cli("doctor")
    assert ended.code == 4
    assert "write the 64-bit Raspberry Pi OS to its card" in ended.out
    assert "To run bundles: pip install" not in ended.out


def test_doctor_says_where_a_chain_finds_too_little_memory(cli, built_tiny, monkeypatch):
    monkeypatch.setattr("edgekit.cli.doctor.memory.available_bytes", lambda: 1000)
    ended = cli("doctor", built_tiny, "--json", "-")
    assert "To load its chain, which needs 0.1 MB (twice its files' size) where 0.0" in ended.err
    report = json.loads(ended.out)
    sizes = [one.stat().st_size for one in (built_tiny / "segments").iterdir()]
    assert (report["available_bytes"], report["needed_bytes"]) == (1000, 2 * sum(sizes))


@pytest.mark.parametrize("refuses", [True, False])
def test_doctor_names_the_venv_where_pip_would_be_refused(cli, monkeypatch, refuses):
    monkeypatch.setattr("edgekit.cli.doctor.pip_refuses", lambda: refuses)
    monkeypatch.setattr("edgekit.cli.doctor.nvidia.engines", lambda _: [])
    assert ("python3 -m venv ~/edgekit" in cli("doctor").out) is refuses


def test_doctor_says_what_cuda_says_of_the_gpu(cli, on_board, monkeypatch):
    of_cuda = {"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8, "cuda": "12.6"}
    facts = {**describe(), "gpu": of_cuda}
    monkeypatch.setattr("edgekit.cli.doctor.describe", lambda *, gpu: facts if gpu else None)
    boards.orin_nano(on_board)
    assert "gpu       Orin, compute capability 8.7, CUDA 12.6\n" in cli("doctor").out


def test_doctor_says_of_a_xavier_that_its_tensorrt_is_too_old(cli, on_board):
    boards.lay(
        on_board,
        {
            "proc/device-tree/model": "NVIDIA Jetson AGX Xavier\0",
            "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178",
        },
    )
    ended = cli("doctor")
    assert ended.code == 0
    assert "JetPack 5.1.2 has TensorRT 8" in ended.out
    assert "To use TensorRT" not in ended.out


def test_doctor_says_what_a_bundle_wants_and_how_to_get_it(cli, built_tiny, monkeypatch):
    monkeypatch.setattr(
        "edgekit.cli.doctor.describe", lambda **_: {**describe(), "python": "3.9.1"}
    )
    ended = cli("doctor", built_tiny, "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert "Python >=3.10,<3.14; this is 3.9.1" in report["unmet"]
    assert report["other_device"] is None
    assert f"pip install -r {built_tiny}/install/requirements.txt" in ended.err


@pytest.mark.parametrize("command", ["build", "inspect", "verify", "bench", "targets"])
def test_with_json_on_standard_output_nothing_else_stands_there(
    cli, command, tiny_recipe, built_tiny, tmp_path
):
    place = {"build": [tiny_recipe, "--output", tmp_path / "out"], "targets": []}
    ended = cli(command, *place.get(command, [built_tiny]), "--json", "-")
    assert ended.code == 0
    json.loads(ended.out)


def test_a_build_draws_a_page_once_and_verify_says_whether_it_is_as_written(
    cli, tiny_recipe, tiny_cache, tmp_path
):
    bundle = tmp_path / "out"
    arguments = "build", tiny_recipe, "--set", "golden_samples=3", "--output", bundle, "--report"
    ended = cli(*arguments)
    assert ended.code == 0
    assert "  report " in ended.out
    assert f"Look at {bundle / 'report.html'}" in ended.out
    page = bundle / "report.html"
    assert "edgekit build" in page.read_text(encoding="utf-8")
    stat = page.stat()
    ended = cli(*arguments)
    assert "nothing has changed" in ended.out
    assert "  report " not in ended.out
    assert page.stat() == stat
    assert "report    as written" in cli("verify", bundle).out
    page.write_bytes(page.read_bytes().replace(b"<h1>", b"<h1>Not "))
    ended = cli("verify", bundle)
    assert ended.code == 3
    assert "report.html: was changed after it was written" in ended.err
    ended = cli("report", bundle, "--json", "-")
    assert ended.code == 0
    assert json.loads(ended.out)["size_bytes"] == page.stat().st_size < 1e6
    assert cli("verify", bundle).code == 0
    page.write_bytes(b"")
    assert "  report " in cli(*arguments).out


def test_compare_shows_bundles_and_files_and_writes_a_page(cli, built_tiny, tmp_path):
    bench, page = tmp_path / "bench.json", tmp_path / "page.html"
    assert cli("bench", built_tiny, "--rounds", 1, "--json", bench).code == 0
    ended = cli("compare", built_tiny, bench, "--page", page, "--json", "-")
    assert ended.code == 0
    assert built_tiny.name in ended.err
    report = json.loads(ended.out)
    assert [one["source"] for one in report["reports"]] == [str(built_tiny), str(bench)]
    assert report["reports"][0]["name"] == "tiny"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
