"""What a ladder's variants and its policy take side by side, and the profile that is made of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.bundle.ladder import (
    Cascade,
    Fixed,
    LatencyBudget,
    Load,
    read_ladder,
    read_variant,
)
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, InputError
from edgekit.runtime import Chain, Ladder, bench_ladder
from edgekit.runtime.bench import load_test_data, load_test_samples
from edgekit.runtime.bench_ladder import ladder_verdict
from edgekit.runtime.preprocess import Samples
from edgekit.runtime.profile import parse_profile
from tests.ladders import NARROW, WIDE, rewrite
from tests.runtime import boards

Array = npt.NDArray[Any]
Report = dict[str, Any]

CASCADE = Cascade((0.30,))
"""Sure for some of the tiny network's samples, and not for others."""


@pytest.fixture(scope="module")
def data(built_ladder: Path) -> tuple[Samples, Array]:
    found = load_test_samples(read_variant(built_ladder, read_ladder(built_ladder), WIDE))
    assert found is not None
    samples, labels = found
    assert labels is not None
    return samples, labels


@pytest.fixture(scope="module")
def measured(built_ladder: Path, data: tuple[Samples, Array]) -> tuple[Report, bytes]:
    return bench_ladder.bench_ladder(built_ladder, *data, rounds=2, policy=CASCADE, profiling=True)


@pytest.fixture(scope="module")
def report(measured: tuple[Report, bytes]) -> Report:
    return measured[0]


def test_a_report_has_every_key_and_is_plain_data(report: Report) -> None:
    assert report.keys() == {
        *("ladder_id", "name", "target", "on_target", "other_device", "engine", "precision"),
        *("classes", "policy", "threads", "samples", "zeros", "rounds", "clock", "variants"),
        *("ladder", "left_out", "memory", "conditions", "valid", "reasons", "device", "verdict"),
    }
    for one in report["variants"]:
        assert one.keys() == {
            *("name", "bundle_id", "latency_ms", "accuracy", "speedup", "exits", "resident_bytes")
        }
    assert report["ladder"].keys() == {
        *("latency_ms", "accuracy", "answers", "speedup", "moves", "shortfall")
    }
    assert json.loads(json.dumps(report)) == report


def test_each_variant_is_as_accurate_as_its_chain_and_leaves_where_that_does(
    built_ladder: Path, report: Report
) -> None:
    document = read_ladder(built_ladder)
    for one in report["variants"]:
        bundle = read_variant(built_ladder, document, one["name"])
        found = load_test_data(bundle)
        assert found is not None
        inputs, labels = found
        answers = [Chain.from_bundle(bundle, threads=1).one(x) for x in inputs]
        classes = [answer.class_index for answer in answers]
        assert one["accuracy"] == pytest.approx(np.mean(classes == labels))
        left = [answer.exit for answer in answers]
        for exit in one["exits"]:
            assert exit["rate"] == pytest.approx(left.count(exit["name"]) / len(left))


def test_who_answers_under_a_cascade_is_counted_as_the_ladder_says(
    built_ladder: Path, data: tuple[Samples, Array], report: Report
) -> None:
    document = read_ladder(built_ladder)
    found = load_test_data(read_variant(built_ladder, document, WIDE))
    assert found is not None
    answers = [Ladder.load(built_ladder, policy=CASCADE, threads=1).one(x) for x in found[0]]
    assert 0 < report["ladder"]["answers"][0]["share"] < 1
    right = [one.class_index == label for one, label in zip(answers, data[1], strict=True)]
    assert report["ladder"]["accuracy"] == pytest.approx(np.mean(right))
    for one in report["ladder"]["answers"]:
        rows = [row for row, answer in enumerate(answers) if answer.variant == one["name"]]
        assert one["share"] == pytest.approx(len(rows) / len(answers))
        assert one["accuracy"] == pytest.approx(np.mean([right[row] for row in rows]))
    assert report["policy"] == {"kind": "cascade", "thresholds": [0.30], "agree": False}


def test_ratios_are_those_to_the_widest_variant(report: Report) -> None:
    widest_ms = report["variants"][-1]["latency_ms"]["mean"]
    assert report["variants"][-1]["speedup"] == 1
    for one in (*report["variants"], report["ladder"]):
        assert one["speedup"] == pytest.approx(widest_ms / one["latency_ms"]["mean"])


def test_a_profile_is_of_the_same_times_and_holds_where_it_was_measured(
    built_ladder: Path, measured: tuple[Report, bytes]
) -> None:
    report, raw = measured
    profile = parse_profile(raw, "profile.json")
    document = read_ladder(built_ladder)
    assert profile.problem(document.variants, "onnxruntime", report["threads"]) is None
    assert tuple(profile.variants) == document.names
    for one in report["variants"]:
        found = profile.variants[one["name"]]
        assert found.latency_ms.mean == one["latency_ms"]["mean"]
        assert found.latency_ms.p50 == one["latency_ms"]["p50"] <= found.latency_ms.p95
        assert found.resident_bytes == one["resident_bytes"]
        # Too few samples for the report to claim it, and for the profile to be sure of it.
        assert one["latency_ms"]["p95"] is None
    assert any("too few to say where the profile's" in one for one in report["reasons"])


def test_a_policy_that_goes_by_the_profile_is_not_measured_while_that_is(
    built_ladder: Path, data: tuple[Samples, Array]
) -> None:
    for policy in (LatencyBudget(5.0), Load(5.0)):
        report, _ = bench_ladder.bench_ladder(
            built_ladder, *data, rounds=1, policy=policy, profiling=True
        )
        assert report["ladder"] is None
        assert report["left_out"] == "it goes by the profile, which is only measured now"
        assert f"{NARROW} is " in report["verdict"]


def test_a_policy_that_needs_a_profile_says_so_where_there_is_none(
    built_ladder: Path, data: tuple[Samples, Array]
) -> None:
    with pytest.raises(InputError, match=r"profile\.json.*--profile measures it"):
        bench_ladder.bench_ladder(built_ladder, *data, policy=LatencyBudget(5.0))


def test_the_policy_load_is_counted_over_all_rounds(
    tiny_ladder: Path, data: tuple[Samples, Array], measured: tuple[Report, bytes]
) -> None:
    (tiny_ladder / "profile.json").write_bytes(measured[1])
    report, _ = bench_ladder.bench_ladder(
        tiny_ladder, *data, rounds=2, policy=Load(1e-6, window=20), threads=1
    )
    # Nothing is within a nanosecond: it goes to the fastest at once, whichever that is, and stays.
    assert sum(one["share"] for one in report["ladder"]["answers"]) == pytest.approx(1)
    assert max(one["share"] for one in report["ladder"]["answers"]) == 1


def test_without_samples_every_variant_runs_on_zeros_to_its_last_exit(built_ladder: Path) -> None:
    report, raw = bench_ladder.bench_ladder(built_ladder, None, None, rounds=1, profiling=True)
    assert report["zeros"] is True
    assert report["samples"] == 130
    assert report["ladder"] is None
    for one in report["variants"]:
        assert [exit["rate"] for exit in one["exits"]] == [0, 0, 1]
        assert one["accuracy"] is None
        assert one["latency_ms"]["p95"] > 0
    assert "on zeros, to the last exit" in report["verdict"]
    assert {*parse_profile(raw, "profile.json").variants} == {NARROW, WIDE}
    assert not any("labels" in one or "too few" in one for one in report["reasons"])


def test_samples_without_labels_make_a_run_doubtful(
    built_ladder: Path, data: tuple[Samples, Array]
) -> None:
    report, _ = bench_ladder.bench_ladder(built_ladder, data[0], None, rounds=1)
    assert report["valid"] is False
    assert any("no labels" in one for one in report["reasons"])
    assert report["policy"] == {"kind": "fixed", "variant": WIDE}
    assert [one["share"] for one in report["ladder"]["answers"]] == [0, 1]


def test_a_board_that_was_throttled_makes_a_run_doubtful(
    built_ladder: Path, data: tuple[Samples, Array], tmp_path: Path
) -> None:
    boards.raspberry_pi(tmp_path, governor="performance").joinpath("firmware/throttled").write_text(
        "0x50005\n"
    )
    report, _ = bench_ladder.bench_ladder(built_ladder, *data, rounds=1, root=tmp_path)
    assert any("the board was throttled" in one for one in report["reasons"])
    assert report["conditions"]["throttled_bits"]["after"] == "0x50005"


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    tiny_ladder: Path, data: tuple[Samples, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chain, "from_bundle", None)  # Whoever loads, fails.
    with pytest.raises(InputError, match="has no variant"):
        bench_ladder.bench_ladder(tiny_ladder, *data, policy=Fixed("w9"))
    with pytest.raises(InputError, match="23"):
        bench_ladder.bench_ladder(tiny_ladder, data[0], data[1][:-1])
    document = json.loads((tiny_ladder / "ladder.json").read_bytes())
    document["variants"][0]["bundle_id"] = "0" * 64
    with pytest.raises(BundleError, match="copy or build the whole ladder again"):
        bench_ladder.bench_ladder(rewrite(tiny_ladder, variants=document["variants"]), *data)


def test_variants_of_other_resolutions_are_each_given_their_own_input(
    built_ladder: Path, data: tuple[Samples, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def smaller(path: Path, document: Any, name: str) -> Bundle:
        bundle = read_variant(path, document, name)
        (source,) = bundle.manifest.inputs
        assert source.image is not None
        small = replace(source, shape=(1, 4, 4), image=replace(source.image, resize=(4, 4)))
        return replace(bundle, manifest=replace(bundle.manifest, inputs=(small,)))

    document = read_ladder(built_ladder)
    bundle = read_variant(built_ladder, document, WIDE)
    same, given = bench_ladder._inputs(built_ladder, document, bundle, data[0])
    assert same[NARROW] is same[WIDE] is given
    monkeypatch.setattr(bench_ladder, "read_variant", smaller)
    prepared, given = bench_ladder._inputs(built_ladder, document, bundle, data[0])
    assert np.shape(prepared[NARROW][0]) == (1, 4, 4)
    assert np.shape(prepared[WIDE][0]) == (1, 8, 8)
    # The ladder is given what both can be made of: the pixels themselves.
    assert isinstance(given[0], dict)
    assert {one.dtype for one in given[0].values()} == {np.dtype(np.uint8)}
    assert len(given) == len(prepared[WIDE]) == 24


def made_up(
    times_ms: tuple[float, ...], accuracies: tuple[float, ...], ladder_ms: float, accuracy: float,
    **changes: Any,
) -> Report:  # fmt: skip
    """A report of variants `w0` and on, narrowest first, and of a cascade over them."""

    def entry(ms: float, accuracy: float) -> Report:
        return {"latency_ms": {"mean": ms}, "accuracy": accuracy, "speedup": times_ms[-1] / ms}

    share = 1 / len(times_ms)
    each = [*zip(times_ms, accuracies, strict=True)]
    return {
        "policy": {"kind": "cascade"},
        "variants": [{"name": f"w{n}", **entry(*one)} for n, one in enumerate(each)],
        "ladder": {
            **entry(ladder_ms, accuracy),
            "answers": [{"name": f"w{n}", "share": share} for n, _ in enumerate(each)],
        },
        "zeros": False,
        "classes": 4,
        "on_target": True,
        "other_device": None,
        "valid": True,
        "reasons": [],
        **changes,
    }


@pytest.mark.parametrize(
    ("ladder_ms", "accuracy", "words"),
    [
        (
            2.0,
            0.975,
            "The policy cascade pays: 2.00 times as fast as w1 (2.000 ms against 4.000 ms",
        ),
        (2.0, 0.90, "The policy cascade costs 8.0 points of accuracy; it is 2.00 times as fast"),
        (4.0, 0.98, "The policy cascade gains nothing here: w1 alone is as fast"),
        (5.0, 0.98, "The policy cascade does not pay here: w1 alone is faster"),
    ],
)
def test_a_verdict_says_also_where_a_policy_does_not_pay(
    ladder_ms: float, accuracy: float, words: str
) -> None:
    said = ladder_verdict(made_up((1.0, 4.0), (0.80, 0.98), ladder_ms, accuracy))
    assert said.startswith(words)
    assert f", at {accuracy:.1%} accuracy against 98.0%." in said
    assert ("But" in said) is False or ladder_ms > 4


def test_a_verdict_names_a_variant_that_leaves_the_policy_nothing() -> None:
    said = ladder_verdict(made_up((1.0, 1.5, 4.0), (0.80, 0.98, 0.98), 2.0, 0.975))
    assert "But w1 alone is faster and no less accurate: 1.500 ms at 98.0%." in said


def test_a_verdict_of_a_policy_that_one_variant_answers_is_about_that_one() -> None:
    alone = made_up((1.0, 4.0), (0.80, 0.98), 1.1, 0.80, policy={"kind": "latency_budget"})
    for share, one in zip((1, 0), alone["ladder"]["answers"], strict=True):
        one["share"] = share
    said = ladder_verdict(alone)
    assert said.startswith("Under latency_budget, w0 answers every sample: 3.64 times as fast as")
    assert "But" not in said  # That w0 is faster without the ladder is no news.


def test_a_verdict_ends_with_what_should_not_be_made_of_it() -> None:
    said = ladder_verdict(
        made_up(
            (1.0, 4.0), (0.8, 0.98), 2.0, 0.97, on_target=False, other_device="built for x",
            valid=False, reasons=["other work"],
        )
    )  # fmt: skip
    assert said.endswith(
        " These are not the target's figures: built for x. Do not rely on these figures: other "
        "work."
    )
