"""A person's bad day: one line that names the cause, and the right exit code."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekit.bundle.reader import read_bundle
from edgekit.errors import BuildError
from tests.conftest import ROOT, write_tiny_recipe


def assert_refused(ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("edgekit: ")
    for word in words:
        assert word in line


def edit(recipe: Path, old: str, new: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def test_a_wrong_key_is_refused_with_the_nearest_right_one(cli, tiny_recipe):
    edit(tiny_recipe, "thresholds:", "treshold:")
    assert_refused(cli("build", tiny_recipe), 1, "policy.treshold", "thresholds")


def test_a_missing_recipe_is_refused(cli, tmp_path):
    assert_refused(cli("build", tmp_path / "none.yaml"), 1, "none.yaml", "no such file")


def test_a_missing_model_file_is_refused(cli, tiny_recipe):
    (tiny_recipe.parent / "tiny.py").unlink()
    assert_refused(cli("build", tiny_recipe), 1, "tiny.py", "no such file")


def test_a_model_with_one_exit_where_three_are_named_is_refused(cli, tiny_recipe):
    edit(tiny_recipe.parent / "tiny.py", "return exits", "return exits[-1]")
    assert_refused(cli("build", tiny_recipe), 1, "returns 1 outputs", "names 3 exits")


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        ("raise ValueError('no such luck')", "ValueError: no such luck (tiny.py, line"),
        ("x = x.view(-1)", "fails on an input"),
        ("x = x * x.shape[0]", "alone than in a batch"),
        ("x = x - x.mean(0)", "alone than in a batch"),
        ("x = nn.functional.dropout(x)", "another answer the second time"),
        ("x = x / (x - x)", "NaN or infinite logits at exit 'first'"),
        ("x = x[:, :, :7]", "fails on an input"),
        ("import sys; sys.exit(5)", "tiny.py"),
    ],
)
def test_a_model_that_cannot_be_held_to_its_answers_is_the_users_error(
    cli, tiny_recipe, forward, words
):
    edit(tiny_recipe.parent / "tiny.py", "exits = []", f"{forward}; exits = []")
    assert_refused(cli("build", tiny_recipe), 1, words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return pixels, ", "return None, ", "data.tuning: expected an array"),
        ("return pixels, ", "import sys; sys.exit(3); return pixels, ", "SystemExit: 3"),
        ("return pixels, ", "return pixels.astype(np.float32), ", "data.tuning, sample 0"),
        ("generator.integers(0, 4, count)", "['n'] * count", "data.tuning: 24 samples need"),
        ("generator.integers(0, 4, count)", "np.arange(count)", "run from 0 to 23"),
    ],
    ids=["nothing", "it leaves", "dtype", "words for labels", "labels out of range"],
)
def test_data_that_cannot_be_used_is_the_users_error(cli, tiny_recipe, old, new, words):
    edit(tiny_recipe.parent / "tiny.py", old, new)
    assert_refused(cli("build", tiny_recipe), 1, words)


def test_overlapping_splits_are_refused(cli, tiny_recipe):
    edit(tiny_recipe, "seed: 2", "seed: 1")
    assert_refused(cli("build", tiny_recipe), 1, "sample 0 of test", "sample 0 of tuning")


def test_a_dry_run_misses_files_before_the_build_does(cli, tiny_recipe):
    for key, value in (
        ("model.factory", "other.py:make"),
        ("model.checkpoint", "gone.safetensors"),
        ("data.test", "{npz: gone.npz}"),
    ):
        ended = cli("build", tiny_recipe, "--dry-run", "--set", f"{key}={value}")
        assert_refused(ended, 1, key, "no such file")


def test_a_bundles_manifest_is_not_taken_for_a_recipe(cli, tiny_bundle):
    ended = cli("inspect", tiny_bundle / "manifest.json")
    assert_refused(ended, 1, "bundle's manifest", "folder")


def test_a_bundle_for_other_inputs_is_not_measured_beside(cli, tiny_bundle, digits_bundle):
    ended = cli("bench", tiny_bundle, "--beside", digits_bundle)
    assert_refused(ended, 1, "digits takes another input than tiny")


def test_an_unknown_target_is_refused_with_the_known_ones(cli, tiny_recipe):
    assert_refused(cli("build", tiny_recipe, "--target", "hsot"), 1, "hsot", "'host'")


def test_a_checkpoint_that_does_not_fit_is_refused(cli, tiny_recipe):
    save_file({"a.weight": torch.zeros(3)}, tiny_recipe.parent / "wrong.safetensors")
    ended = cli("build", tiny_recipe, "--set", "model.checkpoint=wrong.safetensors")
    assert_refused(ended, 1, "wrong.safetensors", "a.bias is missing")


def test_labels_that_do_not_fit_the_classes_are_refused(cli, tiny_recipe):
    edit(tiny_recipe, "labels: [north, east, south, west]", "labels: [a, b, c, d, e]")
    assert_refused(cli("build", tiny_recipe), 1, "build: labels: 5 names for 4 classes")


def test_a_flipped_byte_is_refused(cli, tiny_bundle):
    segment = tiny_bundle / "segments/segment-2.onnx"
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    for command in (("verify",), ("bench",), ("inspect",)):
        assert_refused(cli(*command, tiny_bundle), 3, "segment-2.onnx was changed")
    assert_refused(cli("run", tiny_bundle, "x.png"), 3, "segment-2.onnx was changed")


def test_a_missing_segment_is_refused(cli, tiny_bundle):
    (tiny_bundle / "segments/segment-2.onnx").unlink()
    assert_refused(cli("verify", tiny_bundle), 3, "segment-2.onnx is missing")


def test_evidence_of_another_build_is_refused(cli, tiny_bundle):
    evidence = tiny_bundle / "evidence.json"
    evidence.write_text(evidence.read_text().replace("executed", "imagined"))
    assert_refused(cli("verify", tiny_bundle), 3, "evidence.json", "changed")


def test_a_folder_that_is_no_bundle_is_refused(cli, tmp_path):
    assert_refused(cli("verify", tmp_path), 3, "not a bundle")


def test_an_output_that_is_no_bundle_is_not_overwritten(cli, tiny_recipe):
    keep = tiny_recipe.parent / "photos"
    keep.mkdir()
    (keep / "holiday.jpg").write_bytes(b"dear")
    assert_refused(cli("build", tiny_recipe, "--output", keep), 1, "photos", "not a bundle")
    assert (keep / "holiday.jpg").read_bytes() == b"dear"


def test_one_bad_file_among_many_does_not_lose_the_others(cli, tiny_bundle, tmp_path):
    good = tiny_bundle / "golden/000.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    ended = cli("run", tiny_bundle, bad, good, tmp_path / "absent.png")
    assert ended.code == 1
    assert "000.png" in ended.out
    assert [line.count("edgekit: ") for line in ended.err.splitlines()] == [1, 1]


def test_a_picture_of_another_size_says_what_fits(cli, tiny_bundle, tmp_path):
    from PIL import Image

    Image.new("L", (9, 7)).save(tmp_path / "wide.png")
    ended = cli("run", tiny_bundle, tmp_path / "wide.png")
    assert_refused(ended, 1, "wide.png", "float32 [1, 8, 8]", "[1, 7, 9]")


@pytest.mark.parametrize("deadline_ms", ["0", "-1", "nan", "inf"])
def test_a_deadline_that_is_no_time_is_refused_once(cli, tiny_bundle, deadline_ms):
    pictures = sorted((tiny_bundle / "golden").glob("*.png"))
    ended = cli("run", tiny_bundle, *pictures, "--deadline-ms", deadline_ms)
    assert_refused(ended, 1, "a deadline is a finite number of ms above 0")


def test_metrics_that_cannot_be_written_are_refused_before_the_first_file(cli, tiny_bundle):
    elsewhere = tiny_bundle.parent / "no/such.jsonl"
    ended = cli("run", tiny_bundle, "absent.png", "--metrics", elsewhere)
    assert_refused(ended, 1, "no/such.jsonl: metrics cannot be written there")


@pytest.mark.parametrize("option", ["--metrics", "--json"])
def test_what_would_make_the_bundle_invalid_is_not_written_into_it(cli, tiny_bundle, option):
    ended = cli("run", tiny_bundle, "absent.png", option, tiny_bundle / "golden/out.jsonl")
    assert_refused(ended, 1, "lies in the bundle", "write it elsewhere")
    assert not (tiny_bundle / "golden/out.jsonl").exists()


def test_wrong_usage_is_exit_code_2(cli):
    assert cli("bench").code == 2
    assert cli("bulid").code == 2
    assert cli("build", "x", "--no-such-option").code == 2


def test_a_report_that_cannot_be_written_is_said(cli, tiny_bundle, tmp_path):
    ended = cli("verify", tiny_bundle, "--json", tmp_path / "no/such/folder.json")
    assert_refused(ended, 1, "folder.json", "no such folder")


def test_a_bug_is_exit_code_70_with_its_traceback_in_a_file(cli, tiny_bundle, monkeypatch):
    def broken(path):
        raise KeyError("unforeseen")

    monkeypatch.setattr("edgekit.cli.verify.read_bundle", broken)
    ended = cli("verify", tiny_bundle)
    assert_refused(ended, 70, "bug", "unforeseen")
    report = Path(ended.err.split()[-1])
    assert "Traceback" in report.read_text()
    report.unlink()


def edgekit(*arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "edgekit.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_the_old_bundle(built_tiny, tmp_path, stop):
    output = tmp_path / "out/bundle"
    shutil.copytree(built_tiny, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    # It must still run when it is stopped, however busy this machine is.
    model = write_tiny_recipe(tmp_path / "slow").with_name("tiny.py")
    model.write_text(model.read_text().replace("generator =", "__import__('time').sleep(600)  #"))
    process = edgekit("build", model.with_name("recipe.yaml"), "--output", output)
    deadline = time.monotonic() + 120
    while len(leftovers(output.parent)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    if stop == signal.SIGINT:
        # A shell says 130 for both. Python ends itself by the signal, though it was handled, where
        # it came while some library ran `exec`.
        assert process.returncode in {130, -signal.SIGINT}
        assert error == "edgekit: interrupted\n"
        assert leftovers(output.parent) == ["bundle"]
    else:
        assert process.returncode == -signal.SIGKILL
        assert len(leftovers(output.parent)) == 2


def test_a_full_disk_during_build_is_said_and_leaves_nothing(tiny_recipe, tiny_cache, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k tmpfs {disk} && "
        f"{sys.executable} -m edgekit.cli build {tiny_recipe} --set golden_samples=3 "
        f"--output {disk}/bundle; "
        f"echo code $?; ls -A {disk}"
    )
    unshare = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk to fill")
    ended = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "no space left for it; free some, or choose another --output" in ended.stderr
    assert ended.stdout.splitlines()[-1] == "code 1"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("none.json", ["none.json", "No such file"]),
        ("{", ["is no JSON"]),
        ('{"treshold": 1}', ["no 'treshold'", "did you mean 'thresholds'?"]),
        ('{"thresholds": [0.5]}', ["3 exits need 2 thresholds, found 1"]),
        ('{"thresholds": {"first": 0.5}}', ["thresholds are for first, second; found first"]),
        ('{"thresholds": "high"}', ["'high' is not what belongs there"]),
        ('{"thresholds": NaN}', ["nan is not what belongs there"]),
        ('{"criterion": "margin"}', ["not for another criterion; give thresholds too"]),
        ('{"combine": "sum"}', ["not for another combine; give thresholds too"]),
        ('{"criterion": "hunch", "thresholds": 1}', ["no criterion 'hunch'; it has max_prob"]),
        ('{"combine": "mean", "thresholds": 1}', ["no combination 'mean'"]),
        ('{"otherwise": "first"}', ["no otherwise 'first'"]),
        ('{"weights": [1, 1, 1], "thresholds": 1}', ["weights need combine"]),
        ('{"temperatures": [1, 2, 3]}', ["not for another temperatures; give thresholds too"]),
        ('{"temperatures": [1, 2], "thresholds": 1}', ["3 exits need 3 temperatures, found 2"]),
        ('{"temperatures": [1, 0, 1], "thresholds": 1}', ["temperatures are finite and above 0"]),
        (
            '{"temperatures": {"first": 2}, "thresholds": 1}',
            ["temperatures are for first, second, last; found first"],
        ),
    ],
)
def test_a_policy_that_is_none_for_the_bundle_is_refused(cli, built_tiny, policy, words):
    picture = built_tiny / "golden/000.png"
    assert_refused(cli("run", built_tiny, picture, "--policy", policy), 1, *words)


def test_a_file_that_holds_no_policy_is_refused(cli, built_tiny, tmp_path):
    picture = built_tiny / "golden/000.png"
    for content, words in ((b"[1]", "is no JSON object"), (b"\xff", "is not UTF-8 text")):
        (tmp_path / "policy.json").write_bytes(content)
        ended = cli("run", built_tiny, picture, "--policy", tmp_path / "policy.json")
        assert_refused(ended, 1, "policy.json", words)


def test_a_page_without_matplotlib_is_a_note_of_build_and_refused_by_report(
    cli, built_tiny, tiny_recipe, tiny_cache, tmp_path, monkeypatch
):
    # One that is installed and cannot be loaded is found out as well.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = cli("build", tiny_recipe, "--output", tmp_path / "out", "--report")
    assert ended.code == 0
    assert "Note: no report.html: figures need matplotlib" in ended.out
    assert not (tmp_path / "out/report.html").exists()
    assert_refused(cli("report", built_tiny), 4, "matplotlib", "pip install 'edgekit[build]'")
    page = tmp_path / "page.html"
    assert_refused(cli("compare", built_tiny, built_tiny, "--page", page), 4, "matplotlib")
    assert not page.exists()


def test_a_page_that_cannot_be_written_takes_nothing_from_a_finished_build(
    cli, tiny_recipe, tiny_cache, tmp_path, monkeypatch
):
    def full(path, content):
        raise BuildError(f"{path}: no space left for it; free some")

    monkeypatch.setattr("edgekit.report.bundles.replace_file", full)
    ended = cli("build", tiny_recipe, "--output", tmp_path / "out", "--report")
    assert ended.code == 0
    assert "no space left for it; free some" in ended.out
    assert "Note: no report.html" in ended.out
    read_bundle(tmp_path / "out")


def test_what_cannot_be_compared_is_refused_in_one_line(cli, built_tiny, tmp_path):
    assert_refused(cli("compare", built_tiny), 1, "two reports or more")
    assert_refused(cli("compare", built_tiny, tmp_path / "none.json"), 1, "none.json")
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert_refused(cli("compare", built_tiny, other), 1, "other.json", "is no report")
    inside = built_tiny / "page.html"
    assert_refused(
        cli("compare", built_tiny, built_tiny, "--page", inside), 1, "lies in the bundle"
    )
    nowhere = tmp_path / "no/page.html"
    assert_refused(
        cli("compare", built_tiny, built_tiny, "--page", nowhere), 1, "cannot be written"
    )
