"""The commands on a ladder: they go over its variants, or let its policy choose."""

import json
import shutil

import pytest

from edgekit.bundle.ladder import read_ladder
from edgekit.runtime import Chain
from edgekit.runtime.profile import Latency, Measured, seal_profile
from tests.cli.test_errors import assert_refused
from tests.ladders import NARROW, WIDE, rewrite


@pytest.fixture
def pictures(built_ladder):
    return sorted((built_ladder / WIDE / "golden").glob("*.png"))


def test_run_answers_by_the_ladders_policy_and_says_who_did(cli, built_ladder, pictures):
    ended = cli("run", built_ladder, *pictures, "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report["ladder_id"] == read_ladder(built_ladder).ladder_id
    assert report["policy"] == {"kind": "fixed", "variant": WIDE}
    assert report["shortfall"] is None
    chain = Chain.load(built_ladder, variant=WIDE)
    for entry, picture in zip(report["predictions"], pictures, strict=True):
        expected = chain.one(chain.read(picture))
        assert (entry["label"], entry["exit"]) == (expected.label, expected.exit)
        assert entry["variant"] == WIDE
    assert " variant" in ended.err and f" {WIDE}" in ended.err


def test_run_takes_another_policy_as_json_or_as_a_file(cli, built_ladder, pictures, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"kind": "cascade", "thresholds": [2.0]}))
    cascade = json.loads(cli("run", built_ladder, *pictures, "--policy", file, "--json", "-").out)
    assert {one["variant"] for one in cascade["predictions"]} == {WIDE}
    assert cascade["policy"] == {"kind": "cascade", "thresholds": [2.0], "agree": False}
    sure = '{"kind": "cascade", "thresholds": [0.0]}'
    narrow = json.loads(cli("run", built_ladder, *pictures, "--policy", sure, "--json", "-").out)
    assert {one["variant"] for one in narrow["predictions"]} == {NARROW}
    assert_refused(
        cli("run", built_ladder, *pictures, "--policy", '{"kind": "fixed", "variant": "w0.55"}'),
        1, "--policy fixed", "did you mean 'w0.5'",
    )  # fmt: skip
    assert_refused(
        cli("run", built_ladder, *pictures, "--policy", '{"thresholds": 0.5}'),
        1, "--policy", "no kind of policy",
    )  # fmt: skip
    assert_refused(
        cli("run", built_ladder, *pictures, "--policy", sure, "--deadline-ms", 5),
        1, "a deadline would cut short",
    )  # fmt: skip


def test_run_says_where_no_variant_is_fast_enough(cli, tiny_ladder, pictures):
    measured = {
        one.name: Measured(one.bundle_id, Latency(2.0, 2.0, 2.0), None)
        for one in read_ladder(tiny_ladder).variants
    }
    profile = seal_profile("onnxruntime", "onnxruntime 1.32.0", 1, measured)
    (tiny_ladder / "profile.json").write_bytes(profile)
    budget = '{"kind": "latency_budget", "budget_ms": 1}'
    ended = cli("run", tiny_ladder, *pictures, "--policy", budget, "--threads", 1, "--json", "-")
    assert ended.code == 0
    assert "no variant is within 1 ms here" in ended.err
    report = json.loads(ended.out)
    assert "no variant is within 1 ms here" in report["shortfall"]
    assert {one["variant"] for one in report["predictions"]} == {NARROW}


def test_run_takes_one_variant_as_a_bundle(cli, built_ladder, pictures):
    ended = cli(
        "run", built_ladder, *pictures, "--variant", NARROW, "--json", "-",
        "--policy", '{"thresholds": 2}',
    )  # fmt: skip
    report = json.loads(ended.out)
    assert report["bundle_id"] == read_ladder(built_ladder).variant(NARROW).bundle_id
    assert {one["exit"] for one in report["predictions"]} == {"last"}
    assert "variant" not in report["predictions"][0]
    assert_refused(
        cli("run", built_ladder, *pictures, "--variant", "w2"), 3, "no variant 'w2'", NARROW
    )
    assert_refused(
        cli("run", built_ladder / WIDE, *pictures, "--variant", "w2"), 3, "no variant 'w2'"
    )


def test_run_counts_exactly_the_files_of_each_variant(cli, built_ladder, pictures, tmp_path):
    file = tmp_path / "metrics.jsonl"
    policy = '{"kind": "cascade", "thresholds": [2.0]}'
    ended = cli("run", built_ladder, *pictures, "--policy", policy, "--metrics", file)
    assert ended.code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["samples"] for line in lines] == [len(pictures)] * 2
    assert len({line["bundle_id"] for line in lines}) == 2


def test_verify_goes_over_every_variant(cli, built_ladder):
    ended = cli("verify", built_ladder, "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    document = read_ladder(built_ladder)
    assert report["ladder_id"] == document.ladder_id
    assert list(report["variants"]) == [NARROW, WIDE]
    for one in document.variants:
        assert report["variants"][one.name]["bundle_id"] == one.bundle_id
        assert report["variants"][one.name]["golden"]["samples"] > 0
    assert f"{built_ladder} is sound: 2 variants." in ended.err


def test_verify_refuses_a_ladder_with_one_bad_variant(cli, tiny_ladder):
    segment = min((tiny_ladder / WIDE / "segments").iterdir())
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    assert_refused(cli("verify", tiny_ladder), 3, WIDE, "was changed")
    shutil.rmtree(tiny_ladder / WIDE)
    assert_refused(cli("verify", tiny_ladder), 3, WIDE, "is not a bundle")


def test_verify_names_the_variant_that_computes_otherwise(cli, tiny_ladder, monkeypatch):
    from edgekit.errors import CheckError

    def other(bundle, chain):
        if bundle.path.name == WIDE:
            raise CheckError("golden/0.png: leaves elsewhere")
        return verify_golden(bundle, chain)

    from edgekit.runtime.verify import verify_golden

    monkeypatch.setattr("edgekit.cli.verify.verify_golden", other)
    assert_refused(cli("verify", tiny_ladder), 3, f"{WIDE}: golden/0.png")


def test_verify_refuses_a_changed_ladder(cli, tiny_ladder):
    file = tiny_ladder / "ladder.json"
    file.write_bytes(file.read_bytes().replace(b'"tiny"', b'"tinY"'))
    assert_refused(cli("verify", tiny_ladder), 3, "ladder.json", "was changed")


def test_doctor_says_what_each_variant_needs(cli, built_ladder, monkeypatch):
    from edgekit.runtime import memory

    narrow, wide = (2 * one.size_bytes for one in read_ladder(built_ladder).variants)
    monkeypatch.setattr(memory, "available_bytes", lambda: wide - 1)
    ended = cli("doctor", built_ladder, "--json", "-")
    report = json.loads(ended.out)
    needed = {name: one["needed_bytes"] for name, one in report["variants"].items()}
    assert needed == {NARROW: narrow, WIDE: wide}
    assert f"To load the chain of {WIDE}" in ended.err
    assert f"To load the chain of {NARROW}" not in ended.err
    assert isinstance(report["unmet"], list)


def test_what_wants_a_bundle_says_that_this_is_a_ladder(cli, built_ladder):
    assert_refused(cli("install", built_ladder), 3, "is a ladder of bundles; name one")


def test_a_ladder_of_a_variant_that_is_no_folder_is_refused(cli, tiny_ladder, pictures):
    variants = json.loads((tiny_ladder / "ladder.json").read_bytes())["variants"]
    variants[0]["name"] = "../w0.5"
    rewrite(tiny_ladder, variants=variants)
    assert_refused(cli("run", tiny_ladder, *pictures), 3, "no name of a folder in the ladder")


def test_a_policys_name_alone_shows_how_to_give_it(cli, built_ladder):
    ended = cli("run", built_ladder, "none.png", "--policy", "load")
    assert ended.code == 1
    assert """--policy load: give it as JSON, '{"kind": "load", "target_ms": ...}'""" in ended.err
