"""The document of a ladder: what is read, and what of a hostile one is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.ladder import (
    POLICIES,
    Cascade,
    Fixed,
    Load,
    is_ladder,
    parse_ladder,
    parse_ladder_policy,
    policy_document,
    read_ladder,
    read_variant,
    seal_ladder,
)
from edgekit.bundle.manifest import LADDER_NAME, seal
from edgekit.bundle.reader import read_bundle
from edgekit.errors import BundleError
from edgekit.limits import LIMITS
from tests.ladders import NARROW, WIDE, cascade_of, document_of, rewrite

NAMES = ("w0.25", "w0.5", "w1.0")


def with_variant(place: int = 1, **changes: Any) -> bytes:
    document = document_of()
    document["variants"][place].update(changes)
    return seal_ladder(document)


def refused(raw: bytes, *named: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse_ladder(raw)
    for words in (LADDER_NAME, *named):
        assert words in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_ladder_says_what_was_written() -> None:
    found = parse_ladder(seal_ladder(document_of()))
    assert found.names == NAMES
    assert found.policy == Fixed("w1.0")
    assert found.cascade is not None and found.cascade.thresholds == (0.9, 0.8)
    assert found.variant("w0.5").settings == {"width_mult": 0.5}
    with pytest.raises(BundleError, match=r"did you mean 'w0\.5'"):
        found.variant("w0.55")


def test_the_id_covers_everything_and_not_itself() -> None:
    raw = seal_ladder(document_of())
    assert seal_ladder(json.loads(raw)) == raw
    other = parse_ladder(seal_ladder(document_of(name="other")))
    assert other.ladder_id != parse_ladder(raw).ladder_id


@given(st.data())
def test_no_byte_changes_unseen(data: st.DataObject) -> None:
    raw = bytearray(seal_ladder(document_of()))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BundleError):
        parse_ladder(bytes(raw))


def test_an_id_of_other_content_is_refused_under_a_right_seal() -> None:
    document = json.loads(seal_ladder(document_of()))
    document.pop("seal")
    refused(seal({**document, "name": "other"}), "ladder_id")


def test_another_format_version_is_refused() -> None:
    document = json.loads(seal_ladder(document_of()))
    document.pop("seal")
    refused(seal({**document, "format_version": 2}), "format version 2", "reads 1")


@pytest.mark.parametrize("key", ["name", "variants", "policy", "cascade"])
def test_a_missing_or_unknown_key_is_refused(key: str) -> None:
    document = document_of()
    refused(seal_ladder({**document, "more": 1}), "more")
    del document[key]
    refused(seal_ladder(document), key)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "../w0.5", "a/b", "/etc", "a b", "w\n", "é", "x" * 201,
     "W0.25", "ladder.json", "Profile.json", "manifest.json", "w0.25.engines"],
)  # fmt: skip
def test_a_name_that_leaves_the_folder_or_stands_twice_is_refused(name: str) -> None:
    refused(with_variant(name=name), "rebuild it")


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": -1},
        {"size_bytes": -1},
        {"macs": 5},
        {"macs": 10**6},
        {"macs": 1.5},
        {"accuracy": 1.5},
        {"accuracy": -0.1},
        {"accuracy": None},
        {"accuracy_of": None},
        {"accuracy_of": "hope"},
        {"settings": [1]},
        {"bundle_id": None},
    ],
)
def test_an_impossible_variant_is_refused(changes: dict[str, Any]) -> None:
    refused(with_variant(**changes))


def test_a_variant_may_come_without_data() -> None:
    found = parse_ladder(with_variant(accuracy=None, accuracy_of=None))
    assert found.variant("w0.5").accuracy is None


@pytest.mark.parametrize("count", [0, LIMITS.ladder_variants + 1])
def test_too_few_and_too_many_variants_are_refused(count: int) -> None:
    one = document_of()["variants"][0]
    many = [{**one, "name": f"v{place}"} for place in range(count)]
    refused(seal_ladder(document_of(variants=many, cascade=None)), f"{count} variants")


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / LADDER_NAME).open("wb") as stream:
        stream.truncate(LIMITS.manifest_bytes * 1000)
    with pytest.raises(BundleError, match=f"limit {LIMITS.manifest_bytes}"):
        read_ladder(tmp_path)


def test_a_deep_document_is_refused() -> None:
    refused(b"[" * 100_000)


def test_a_deep_goal_is_refused_though_its_seal_holds() -> None:
    # Python reads it, and would fail later, where the goal is copied.
    goal: dict[str, Any] = {}
    for _ in range(900):
        goal = {"deeper": goal}
    cascade = {**document_of()["cascade"], "goal": goal}
    refused(seal_ladder(document_of(cascade=cascade)), f"nested more than {LIMITS.json_depth} deep")


def test_a_ladder_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(seal_ladder(document_of()))
    (tmp_path / LADDER_NAME).symlink_to(tmp_path / "other")
    with pytest.raises(BundleError, match="cannot be read"):
        read_ladder(tmp_path)
    (tmp_path / LADDER_NAME).unlink()
    os.mkfifo(tmp_path / LADDER_NAME)
    with pytest.raises(BundleError, match="is not a ladder"):
        read_ladder(tmp_path)


def test_a_bundle_is_no_ladder_and_a_ladder_no_bundle(built_ladder: Path, built_tiny: Path) -> None:
    assert is_ladder(built_ladder) and not is_ladder(built_tiny)
    assert not is_ladder(built_tiny / "absent")
    with pytest.raises(BundleError, match="is not a ladder"):
        read_ladder(built_tiny)
    with pytest.raises(BundleError, match="is a ladder of bundles"):
        read_bundle(built_ladder)


def test_each_variant_is_the_bundle_that_the_ladder_was_built_with(built_ladder: Path) -> None:
    document = read_ladder(built_ladder)
    assert document.names == (NARROW, WIDE)
    for one in document.variants:
        bundle = read_variant(built_ladder, document, one.name)
        assert bundle.manifest.bundle_id == one.bundle_id
        assert bundle.path == built_ladder / one.name
    with pytest.raises(BundleError, match="no variant 'w2'"):
        read_variant(built_ladder, document, "w2")


def test_another_bundle_in_a_variants_place_is_refused(tiny_ladder: Path) -> None:
    document = read_ladder(tiny_ladder)
    shutil.rmtree(tiny_ladder / NARROW)
    with pytest.raises(BundleError, match="is not a bundle"):
        read_variant(tiny_ladder, document, NARROW)
    shutil.copytree(tiny_ladder / WIDE, tiny_ladder / NARROW)
    with pytest.raises(BundleError, match="and the ladder is of"):
        read_variant(tiny_ladder, document, NARROW)


def test_a_variant_elsewhere_is_refused(tiny_ladder: Path, tmp_path: Path) -> None:
    document = read_ladder(tiny_ladder)
    (tiny_ladder / NARROW).rename(tmp_path / "away")
    (tiny_ladder / NARROW).symlink_to(tmp_path / "away")
    with pytest.raises(BundleError, match="is a link"):
        read_variant(tiny_ladder, document, NARROW)


def test_a_size_that_is_not_the_segments_is_refused(tiny_ladder: Path) -> None:
    variants = json.loads((tiny_ladder / LADDER_NAME).read_bytes())["variants"]
    variants[0]["size_bytes"] -= 1
    document = read_ladder(rewrite(tiny_ladder, variants=variants))
    with pytest.raises(BundleError, match="bytes of segments"):
        read_variant(tiny_ladder, document, NARROW)


GIVEN = [
    {"kind": "fixed", "variant": "w0.5"},
    {"kind": "latency_budget", "budget_ms": 5},
    {"kind": "accuracy_floor", "accuracy": 0.9},
    {"kind": "memory_budget", "bytes": 1_000_000},
    {"kind": "cascade", "thresholds": [0.9, 0.8]},
    {"kind": "cascade", "agree": True},
    {"kind": "cascade"},
    {"kind": "load", "target_ms": 8},
    {"kind": "load", "target_ms": 8, "window": 20, "margin": 0, "calm": 1},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_a_policy_comes_back_as_it_was_given(given: dict[str, Any]) -> None:
    policy = parse_ladder_policy(given, NAMES)
    said = policy_document(policy)
    assert given.items() <= json.loads(json.dumps(said)).items()
    assert parse_ladder_policy(json.loads(json.dumps(said)), NAMES) == policy
    assert parse_ladder(seal_ladder(document_of(policy=given))).policy == policy


def test_what_a_policy_does_not_say_is_as_usual() -> None:
    assert parse_ladder_policy({"kind": "load", "target_ms": 8}, NAMES) == Load(8.0)
    assert parse_ladder_policy({"kind": "cascade"}, NAMES) == Cascade()
    assert {one["kind"] for one in GIVEN} == POLICIES.keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("fixed", "no kind of policy"),
        ({}, "no kind of policy"),
        ({"kind": ["fixed"]}, "no kind of policy"),
        ({"kind": "fastest"}, "'fastest' is no kind of policy"),
        ({"kind": "fixed"}, "variant"),
        ({"kind": "fixed", "variant": "w0.55"}, "did you mean 'w0.5'"),
        ({"kind": "fixed", "variant": "x" * 10**6}, "it has w0.25, w0.5, w1.0"),
        ({"kind": "fixed", "variant": "w0.5", "budget_ms": 5}, "budget_ms"),
        ({"kind": "latency_budget", "budget_ms": 0}, "above 0"),
        ({"kind": "latency_budget", "budget_ms": "5"}, "not what belongs there"),
        ({"kind": "accuracy_floor", "accuracy": 95}, "from 0 to 1"),
        ({"kind": "memory_budget", "bytes": -1}, "above 0"),
        ({"kind": "cascade", "thresholds": [0.9]}, "needs 2 thresholds, found 1"),
        ({"kind": "cascade", "thresholds": [0.9, 0.8], "agree": True}, "found both"),
        ({"kind": "load", "target_ms": 1e999}, "load"),
        ({"kind": "load", "target_ms": 5, "window": 19}, "from 20"),
        ({"kind": "load", "target_ms": 5, "window": 10**9}, f"to {LIMITS.load_window}"),
        ({"kind": "load", "target_ms": 5, "margin": 1}, "margin"),
        ({"kind": "load", "target_ms": 5, "calm": 0}, "calm"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(given: Any, words: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse_ladder_policy(given, NAMES, "policy")
    assert str(caught.value).startswith("policy")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_cascade_that_nobody_tuned_is_refused() -> None:
    document = document_of(policy={"kind": "cascade"}, cascade=None)
    refused(seal_ladder(document), "without thresholds")


@pytest.mark.parametrize(
    "tuned",
    [
        cascade_of([0.9]),
        cascade_of([0.9, 0.8], samples=0),
        cascade_of([0.9, 0.8], accuracy=2),
        cascade_of([0.9, 0.8], rates=[0.5, 0.5]),
        cascade_of([0.9, 0.8], widest_cost=0.0),
        cascade_of([0.9, 0.8], samples=10**400),
    ],
)
def test_an_impossible_tuning_is_refused(tuned: dict[str, Any]) -> None:
    refused(seal_ladder(document_of(cascade=tuned)), "cascade")
