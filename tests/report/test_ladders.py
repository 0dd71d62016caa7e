"""A ladder's page: what it shows of what is known, and that it is drawn whole."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.ladder import Fixed, TunedCascade, read_ladder, read_ladder_page
from edgekit.bundle.manifest import REPORT_NAME
from edgekit.errors import BundleError
from edgekit.report.ladders import (
    collect_ladder,
    draw_ladder,
    drawn_already,
    write_ladder_report,
)
from edgekit.report.sections.ladder import undominated
from edgekit.runtime.profile import Latency, Measured, Profile, seal_profile
from tests.ladders import NARROW, WIDE
from tests.report.test_browser import HOSTILE, SCREENS, shots

NAMES = ("w0.25", "w0.5", "w0.75", "w1.0")


@pytest.fixture(scope="session")
def facts(built_ladder):
    """Those of the small ladder, of which nothing was measured."""
    return collect_ladder(built_ladder)


@pytest.fixture(scope="session")
def four(facts):
    """A ladder of four widths with a profile and a bench, of which one width is of no use."""
    narrow = facts.document.variants[0]
    variants = tuple(
        dataclasses.replace(narrow, name=name, accuracy=accuracy, macs=macs * 10**6)
        for name, accuracy, macs in zip(
            NAMES, (0.912, 0.969, 0.961, 0.978), (1, 4, 8, 15), strict=True
        )
    )
    times = dict(zip(NAMES, (0.11, 0.25, 0.46, 0.81), strict=True))
    machine = facts.manifest.target.machine or "aarch64"
    device = {"cpu": "Some Board 4", "machine": machine}
    measured = {
        name: Measured(narrow.bundle_id, Latency(ms, ms, ms * 1.5), 3_000_000)
        for name, ms in times.items()
    }
    profile = Profile(1, device, "onnxruntime", "onnxruntime 1.32.0", 1, measured, ())
    document = dataclasses.replace(
        facts.document,
        variants=variants,
        policy=Fixed("w1.0"),
        cascade=TunedCascade((0.9, 0.8, 0.7), 24, 0.975, {}, (0.5, 0.3, 0.1, 0.1), "ms", 0.3, 0.81),
    )
    return dataclasses.replace(
        facts, document=document, profile=profile, pages=frozenset(NAMES[1:])
    )


def benched(facts):
    """The facts with a bench of the same times, and of a cascade above the front."""

    def entry(ms, accuracy):
        latency = dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), ms)
        return {"latency_ms": latency, "accuracy": accuracy, "speedup": 0.81 / ms}

    answers = [
        {"name": name, "share": share, "accuracy": 0.97}
        for name, share in zip(NAMES, (0.6, 0.2, 0.1, 0.1), strict=True)
    ]
    report = {
        "engine": "onnxruntime 1.32.0",
        "device": {"cpu": "Some Board 4", "machine": "aarch64"},
        "policy": {"kind": "cascade", "thresholds": [0.9, 0.8, 0.7], "agree": False},
        "samples": 360,
        "valid": True,
        "on_target": True,
        "verdict": "The policy cascade pays.",
        "variants": [
            {**entry(facts.profile.variants[one.name].latency_ms.mean, one.accuracy),
             "name": one.name, "resident_bytes": None}
            for one in facts.document.variants
        ],
        "ladder": {**entry(0.3, 0.974), "answers": answers},
    }  # fmt: skip
    return dataclasses.replace(facts, bench=report, source="board.json")


def test_without_a_profile_work_stands_for_time_and_the_page_says_so(facts):
    page = draw_ladder(facts)
    assert "Accuracy against work" in page
    assert "thousand MACs, no exit taken" in page
    assert "No time was measured, so work stands for it. edgekit bench LADDER --profile" in page
    assert "mean latency in ms" not in page


def test_with_a_profile_latency_is_drawn_and_whose_it_is(four):
    page = draw_ladder(four)
    assert "Accuracy against latency" in page
    assert "Measured for the ladder's profile on Some Board 4 (" in page
    assert "onnxruntime 1.32.0: the target." in page
    elsewhere = dataclasses.replace(four.profile, device={"cpu": "Toaster", "machine": "pdp11"})
    page = draw_ladder(dataclasses.replace(four, profile=elsewhere))
    assert "on Toaster (pdp11), onnxruntime 1.32.0: not the target, built for host" in page


def test_which_variants_are_on_the_front_is_told_in_words(four):
    page = draw_ladder(four)
    assert "work stands for it" not in page
    assert "w0.75: 96.10% at 0.460, off it" in page
    assert "w0.5: 96.90% at 0.250, on it" in page
    assert "Off the front: w0.75." in page


def test_a_tuned_cascade_stands_beside_the_front_where_its_times_are_those_shown(four):
    page = draw_ladder(four)
    assert "cascade: 97.50% at 0.300" in page
    assert '<td class="n">whatever is left</td>' in page
    assert "97.50% accuracy, and a sample costs 0.300 ms on average; w1.0 alone 0.810 ms." in page
    for changes in ({"widest_cost": 0.9}, {"unit": "MACs"}):
        other = dataclasses.replace(four.document.cascade, **changes)
        document = dataclasses.replace(four.document, cascade=other)
        assert "cascade: 97.50%" not in draw_ladder(dataclasses.replace(four, document=document))


def test_a_benchs_policy_stands_beside_the_front(four):
    page = draw_ladder(benched(four))
    assert "The policy cascade pays." in page
    assert "ladder (cascade): 97.40% at 0.300" in page
    assert "Who answered under cascade: thresholds 0.9, 0.8, 0.7" in page
    assert '<td class="n">60.0%</td>' in page


def test_variants_with_a_page_are_linked_and_others_are_not(four):
    page = draw_ladder(four)
    for name in NAMES:
        assert (f'<a href="{name}/report.html">' in page) is (name in four.pages)


def test_a_ladder_that_nobody_knows_the_worth_of_has_no_front(four):
    variants = tuple(
        dataclasses.replace(one, accuracy=None, accuracy_of=None) for one in four.document.variants
    )
    document = dataclasses.replace(four.document, variants=variants)
    page = draw_ladder(dataclasses.replace(four, document=document))
    assert "Nobody knows what the variants are worth: build them with data.tuning." in page
    assert "<svg" not in page


def test_agreement_is_not_called_accuracy(four):
    variants = tuple(
        dataclasses.replace(one, accuracy_of="agreement") for one in four.document.variants
    )
    document = dataclasses.replace(four.document, variants=variants)
    assert "Agreement against latency" in draw_ladder(dataclasses.replace(four, document=document))


def test_a_page_is_sealed_and_known_as_one_of_what_lies_there(tiny_ladder):
    assert not drawn_already(tiny_ladder)
    path = write_ladder_report(tiny_ladder)
    assert path == tiny_ladder / REPORT_NAME
    raw = path.read_bytes()
    page = read_ladder_page(tiny_ladder)
    assert page is not None
    assert "<script" not in page
    assert drawn_already(tiny_ladder)
    write_ladder_report(tiny_ladder)
    assert path.read_bytes() == raw
    path.write_bytes(raw.replace(b"variants", b"variance", 1))
    with pytest.raises(BundleError, match="was changed"):
        read_ladder_page(tiny_ladder)
    assert not drawn_already(tiny_ladder)
    path.write_bytes(raw)
    measured = {
        one.name: Measured(one.bundle_id, Latency(2.0, 1.5, 2.5), None)
        for one in read_ladder(tiny_ladder).variants
    }
    (tiny_ladder / "profile.json").write_bytes(
        seal_profile("onnxruntime", "onnxruntime 1.32.0", 1, measured)
    )
    assert not drawn_already(tiny_ladder)


def test_a_profile_that_was_changed_is_not_shown_and_the_page_says_so(tiny_ladder):
    (tiny_ladder / "profile.json").write_text(json.dumps({"format_version": 1}))
    facts = collect_ladder(tiny_ladder)
    assert facts.profile is None
    assert "profile.json: was changed" in facts.odd
    page = draw_ladder(facts)
    assert '<p class="warns">' in page
    assert "edgekit bench LADDER --profile measures it anew" in page
    assert "Accuracy against work" in page


def test_a_ladder_that_lacks_a_variant_has_no_page(tiny_ladder):
    (tiny_ladder / NARROW / "manifest.json").unlink()
    with pytest.raises(BundleError, match=rf"{NARROW}: is not a bundle"):
        collect_ladder(tiny_ladder)


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_a_ladders_page_is_drawn_whole_at_every_width_and_in_every_light(
    browser, four, tmp_path, width, dark
):
    page = draw_ladder(benched(four))
    found = browser.measure(page, width, dark=dark)
    assert found["problems"] == []
    assert found["figures"] == 1
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    shot = shots(tmp_path) / f"ladder-{width}-{'dark' if dark else 'light'}.png"
    browser.screenshot(path, shot, width, found["height"], dark=dark)


def test_names_that_are_markup_or_too_long_break_nothing(browser, four):
    variants = tuple(
        dataclasses.replace(one, name=one.name + "-W" * 60, settings={HOSTILE: HOSTILE})
        for one in four.document.variants
    )
    document = dataclasses.replace(four.document, name=HOSTILE, variants=variants)
    bench = {**benched(four).bench, "verdict": HOSTILE}
    hostile = dataclasses.replace(four, document=document, bench=bench, source=HOSTILE)
    page = draw_ladder(hostile)
    assert "<script>" not in page
    assert browser.measure(page, 360, dark=False)["problems"] == []


def test_of_points_alike_one_is_on_the_front():
    assert undominated([(1.0, 0.9), (1.0, 0.9), (1.0, 0.8), (2.0, 0.9)]) == [
        *(True, False, False, False),
    ]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_the_front_holds_what_nothing_beats_and_nothing_else(points):
    on_it = undominated(points)
    front = [one for one, here in zip(points, on_it, strict=True) if here]
    for cost, worth in points:
        beaten = any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
        assert ((cost, worth) in front) is not beaten
    assert len(set(front)) == len(front)


def test_the_small_ladders_own_names_stand_on_its_page(facts):
    page = draw_ladder(facts)
    assert all(name in page for name in (NARROW, WIDE, "tiny for host"))
