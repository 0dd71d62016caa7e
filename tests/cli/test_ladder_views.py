"""What bench, inspect and report print and write of a ladder."""

import json
import shutil

import numpy as np
import pytest

from edgekit.bundle.ladder import read_ladder
from edgekit.cli import bench as bench_command
from edgekit.runtime.profile import Latency, Measured, profile_beside, seal_profile
from tests.ladders import NARROW, WIDE, cascade_of, rewrite
from tests.slim import WIDTHS, write_slim_recipe

CASCADE = '{"kind": "cascade", "thresholds": [0.3]}'


def profile_of(ladder, **changes):
    """A profile of some other board, in which both variants take so long."""
    variants = {
        one.name: Measured(one.bundle_id, Latency(2.0, 1.5, 2.5), 3_000_000)
        for one in read_ladder(ladder).variants
    }
    return seal_profile("onnxruntime", "onnxruntime 1.32.0", 1, {**variants, **changes})


def test_bench_puts_the_variants_and_the_policy_side_by_side(cli, built_ladder, tmp_path):
    ended = cli(
        "bench", built_ladder, "--rounds", 1, "--policy", CASCADE, "--json", tmp_path / "b.json"
    )
    assert ended.code == 0
    assert "Not the ladder's policy: cascade: thresholds 0.3" in ended.out
    rows = [line.split()[0] for line in ended.out.splitlines() if line.strip()]
    assert [one for one in rows if one in {NARROW, WIDE, "ladder"}] == [
        *(NARROW, WIDE, "ladder"),
        *(NARROW, WIDE),
    ]
    assert "Who answers" in ended.out
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["verdict"] in ended.out
    assert report["rounds"] == 1
    assert not (built_ladder / "profile.json").exists()


def test_bench_keeps_a_profile_that_inspect_then_shows(cli, tiny_ladder):
    ended = cli("bench", tiny_ladder, "--rounds", 1, "--profile")
    assert ended.code == 0
    assert f"Wrote {tiny_ladder / 'profile.json'}" in ended.out
    profile, odd = profile_beside(tiny_ladder, read_ladder(tiny_ladder))
    assert odd is None
    assert {one.name for one in tiny_ladder.parent.iterdir()} == {"ladder"}
    ended = cli("inspect", tiny_ladder, "--json", "-")
    shown = json.loads(ended.out)
    for one in shown["variants"]:
        mean_ms = profile.variants[one["name"]].latency_ms.mean
        assert one["measured"]["latency_ms"]["mean"] == mean_ms
        assert f"{mean_ms:.3f}" in ended.err
        held = read_ladder(tiny_ladder).variant(one["name"])
        for key in ("parameters", "macs", "size_bytes", "accuracy"):
            assert one[key] == getattr(held, key)
        (row,) = (line for line in ended.err.splitlines() if line.split()[:1] == [one["name"]])
        assert f"{held.parameters:,}" in row
        assert f"{100 * held.accuracy:.2f}%" in row
    assert shown["answers"] == WIDE
    assert shown["profile"]["engine"] == "onnxruntime"
    # Of few samples in one round: who goes by the profile hears what the bench thought of it.
    assert "too few" in " ".join(shown["profile"]["reasons"])
    assert "the ladder's profile is doubtful: " in ended.err
    policy = '{"kind": "latency_budget", "budget_ms": 1000}'
    picture = min((tiny_ladder / WIDE / "golden").glob("*.png"))
    assert "is doubtful: " in cli("run", tiny_ladder, picture, "--policy", policy).err
    assert "is doubtful: " not in cli("run", tiny_ladder, picture).err
    goal = "variants.tune.max_accuracy_drop=1.0"
    assert "is doubtful: " in cli("tune", tiny_ladder, "--set", goal, "--dry-run").out


def test_a_bench_that_is_broken_off_leaves_the_old_profile(cli, tiny_ladder, monkeypatch):
    old = profile_of(tiny_ladder)
    (tiny_ladder / "profile.json").write_bytes(old)

    def broken_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command, "bench_ladder", broken_off)
    assert cli("bench", tiny_ladder, "--profile").code == 130
    assert (tiny_ladder / "profile.json").read_bytes() == old


def test_bench_takes_one_variant_as_a_bundle(cli, built_ladder, tmp_path):
    report = tmp_path / "b.json"
    ended = cli("bench", built_ladder, "--variant", NARROW, "--rounds", 1, "--json", report)
    assert ended.code == 0
    assert (
        json.loads(report.read_text())["bundle_id"]
        == read_ladder(built_ladder).variants[0].bundle_id
    )


def test_bench_takes_data_of_ones_own_for_every_variant(cli, built_ladder, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", inputs=pixels, labels=np.array([0, 1, 2]))
    ended = cli("bench", built_ladder, "--data", tmp_path / "own.npz", "--rounds", 1, "--json", "-")
    assert json.loads(ended.out)["samples"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--beside", "x"], "--beside: a ladder's variants stand beside one another"),
        (["--policy", '{"kind": "latency_budget", "budget_ms": 5}'], "--profile measures it"),
        (["--policy", '{"kind": "fixed", "variant": "w0.55"}'], "did you mean 'w0.5'?"),
    ],
)
def test_what_a_ladder_cannot_be_measured_with_is_refused_in_a_line(
    cli, built_ladder, arguments, words
):
    ended = cli("bench", built_ladder, *arguments)
    assert ended.code == 1
    assert words in ended.err
    assert ended.err.count("\n") == 1


def test_a_bundle_has_no_profile_of_its_own(cli, built_tiny):
    ended = cli("bench", built_tiny, "--profile")
    assert ended.code == 1
    assert "--profile: is of a ladder" in ended.err


def test_a_ladder_without_samples_is_measured_on_zeros_where_a_profile_is_wanted(
    cli, tiny_ladder, monkeypatch
):
    monkeypatch.setattr(bench_command.library, "load_test_samples", lambda bundle: None)
    ended = cli("bench", tiny_ladder)
    assert ended.code == 1
    assert "give one with --data FILE.npz, or measure on zeros with --profile" in ended.err
    ended = cli("bench", tiny_ladder, "--profile", "--rounds", 1)
    assert ended.code == 0
    assert "130 runs on zeros, no exit taken" in ended.out
    assert "Not measured: fixed: variant w1.0: there are no samples to choose by" in ended.out
    assert (tiny_ladder / "profile.json").is_file()


def test_inspect_says_what_is_not_measured_and_how_to(cli, built_ladder):
    ended = cli("inspect", built_ladder)
    assert ended.code == 0
    assert f"measured  not yet; edgekit bench {built_ladder} --profile does" in ended.out
    assert "answers   w1.0" in ended.out
    assert "mean ms" not in ended.out


def test_inspect_shows_another_boards_profile_and_says_that_it_does_not_hold_here(
    cli, tiny_ladder, monkeypatch
):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(
            "edgekit.runtime.profile.describe", lambda: {"cpu": "Some Board 4", "machine": "arm"}
        )
        (tiny_ladder / "profile.json").write_bytes(profile_of(tiny_ladder))
    rewrite(tiny_ladder, policy={"kind": "latency_budget", "budget_ms": 5.0})
    ended = cli("inspect", tiny_ladder, "--json", "-")
    assert "measured  on Some Board 4, onnxruntime 1.32.0, 1 thread" in ended.err
    assert "2.500" in ended.err
    shown = json.loads(ended.out)
    assert shown["answers"] is None
    assert "it is of 'Some Board 4'" in shown["note"]


def test_inspect_does_not_show_a_profile_of_other_bundles(cli, tiny_ladder):
    stale = Measured("0" * 64, Latency(2.0, 1.5, 2.5), None)
    (tiny_ladder / "profile.json").write_bytes(profile_of(tiny_ladder, **{WIDE: stale}))
    ended = cli("inspect", tiny_ladder)
    assert "is of another bundle than this w1.0; measure it anew" in ended.out
    assert "2.500" not in ended.out


def test_inspect_shows_a_cascade_and_who_is_asked_first(cli, tiny_ladder):
    rewrite(tiny_ladder, policy={"kind": "cascade"}, cascade=cascade_of([0.7]))
    ended = cli("inspect", tiny_ladder)
    assert "answers   w0.5 first, then wider until it is sure" in ended.out
    assert "0.7000" in ended.out
    assert "Accuracy 95.00% on 24 tuning samples" in ended.out


def test_inspect_of_a_recipe_shows_its_variants_with_nothing_built(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_slim_recipe(tmp_path / "slim")
    ended = cli("inspect", recipe, "--json", "-")
    assert ended.code == 0
    found = json.loads(ended.out)["variants"]
    assert [one["name"] for one in found] == [*WIDTHS]
    assert [found[row]["parameters"] for row in (0, -1)] == [388, 4984]
    assert [one["macs"] for one in found] == sorted(one["macs"] for one in found)
    assert not (tmp_path / "build").exists()
    ended = cli("inspect", recipe, "--variant", "w0.25", "--json", "-")
    one = json.loads(ended.out)
    assert sum(part["parameters"] for part in one["segments"]) == 388
    ended = cli("inspect", recipe, "--variant", "w9")
    assert ended.code == 1
    assert "--variant w9: there is none; they are w1.0, w0.25" in ended.err


def test_report_draws_a_ladders_page_and_refuses_a_bench_of_another(cli, tiny_ladder, tmp_path):
    bench = tmp_path / "board.json"
    cli("bench", tiny_ladder, "--rounds", 1, "--policy", CASCADE, "--json", bench)
    ended = cli("report", tiny_ladder, "--bench", bench)
    assert ended.code == 0
    assert f"Wrote {tiny_ladder / 'report.html'}" in ended.out
    assert "Who answered under cascade" in (tiny_ladder / "report.html").read_text()
    report = json.loads(bench.read_text())
    report["variants"][0]["bundle_id"] = "0" * 64
    bench.write_text(json.dumps(report))
    ended = cli("report", tiny_ladder, "--bench", bench)
    assert ended.code == 1
    assert "is of other variants than this ladder's" in ended.err
    shutil.copy(tiny_ladder / "ladder.json", bench)
    ended = cli("report", tiny_ladder, "--bench", bench)
    assert "is no report of a ladder by this edgekit's bench" in ended.err


def test_a_tuned_ladder_keeps_the_profile_and_has_a_page_of_its_own(cli, tiny_ladder, tmp_path):
    (tiny_ladder / "profile.json").write_bytes(profile_of(tiny_ladder))
    place = tmp_path / "tuned"
    fixed = 'variants.policy={"kind": "fixed", "variant": "w0.5"}'
    ended = cli("tune", tiny_ladder, "--set", fixed, "--output", place, "--report")
    assert ended.code == 0
    kept = (place / "profile.json").read_bytes()
    assert kept == (tiny_ladder / "profile.json").read_bytes()
    assert "The ladder's policy: fixed: variant w0.5." in (place / "report.html").read_text()


def test_verify_refuses_a_ladders_page_that_was_changed(cli, tiny_ladder):
    assert cli("report", tiny_ladder).code == 0
    ended = cli("verify", tiny_ladder)
    assert ended.code == 0
    assert "report    as written" in ended.out.splitlines()[0]
    page = tiny_ladder / "report.html"
    page.write_bytes(page.read_bytes().replace(b"variants", b"variance", 1))
    ended = cli("verify", tiny_ladder)
    assert ended.code == 3
    assert "report.html: was changed" in ended.err
