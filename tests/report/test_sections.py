import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import Certificate, Policy
from edgekit.report.bundles import draw
from edgekit.report.page import Code, Figure, Gallery, Numbers, Section, Table, Text
from edgekit.report.sections import SECTIONS
from edgekit.report.sections.checks import checks
from edgekit.report.sections.classes import classes
from edgekit.report.sections.exits import exits
from edgekit.report.sections.latency import latency
from edgekit.report.sections.origin import origin
from edgekit.report.sections.overview import overview
from edgekit.report.sections.sizes import sizes
from edgekit.report.sections.split import split
from edgekit.report.sections.temperatures import temperatures
from edgekit.report.sections.thresholds import thresholds
from edgekit.report.words import bytes_text, ms_text
from tests.report.conftest import of_many, with_manifest, with_notes


def tables(section: Section) -> dict[str, Table]:
    found = [one for one in section.parts if isinstance(one, Table)]
    found += [t for one in section.parts if isinstance(one, Figure) for t in one.tables]
    return {one.title: one for one in found}


def words(section: Section) -> str:
    return " ".join(one.text for one in section.parts if isinstance(one, Text))


def test_every_figures_numbers_stand_in_a_table(digits_facts):
    for make in SECTIONS:
        section = make(digits_facts)
        if section is None:
            continue
        figures = [one for one in section.parts if isinstance(one, Figure)]
        beside = [one for one in section.parts if isinstance(one, Table)]
        for one in figures:
            assert one.tables or beside, one.title
            assert all(table.rows for table in one.tables), one.title
            assert re.search(r"\d", one.says), one.title


def test_the_same_bundle_gives_the_same_page(digits_facts):
    assert draw(digits_facts) == draw(digits_facts)
    assert len(draw(digits_facts)) < 1e6


def test_the_split_tells_macs_bytes_and_what_crosses(facts):
    (table,) = tables(split(facts)).values()
    segments = facts.manifest.variant().segments
    assert [row[0] for row in table.rows] == [one.name for one in segments]
    assert table.rows[0][7] == "8x8x8 float32 (2.05 kB)"
    assert table.rows[-1][4] == "100.0%"
    (figure,) = (one for one in split(facts).parts if isinstance(one, Figure))
    assert ">2.05 kB</text>" in figure.svg


def test_a_tensor_that_passes_over_a_segment_is_drawn_and_told(facts):
    variant = facts.manifest.variant()
    first, second, third = variant.segments
    third = dataclasses.replace(third, inputs=(*third.inputs, first.outputs[0]))
    skipping = dataclasses.replace(variant, segments=(first, second, third))
    section = split(with_manifest(facts, variants=(skipping,)))
    assert "passes over segments" in words(section)
    assert "passes over segments" not in words(split(facts))


def test_what_was_counted_is_what_is_shown(digits_facts):
    seen, manifest = digits_facts.seen, digits_facts.manifest
    taken = seen.taken(manifest.policy.thresholds)
    right = (seen.classes[taken, np.arange(seen.samples)] == seen.labels).mean()
    section = classes(digits_facts)
    (table,) = tables(section).values()
    assert table.rows[-1][0] == "all classes"
    assert table.rows[-1][-2] == f"{right:.1%}"
    assert sum(int(row[1]) for row in table.rows[:-1]) == seen.samples
    assert f"{right:.2%}" in next(
        one.says for one in thresholds(digits_facts).parts if isinstance(one, Figure)
    )


def test_only_the_worst_of_many_classes_are_drawn(facts):
    many = tuple(str(number) for number in range(60))
    labels = np.arange(600) % 60
    answers = np.where(np.arange(600) < 60, (labels + 1) % 60, labels)
    answers[labels >= 50] = 0
    seen = dataclasses.replace(
        facts.seen,
        confidences=np.tile(np.linspace(0, 1, 600), (3, 1)),
        classes=np.tile(answers, (3, 1)), final=answers, labels=labels,
    )  # fmt: skip
    section = classes(with_manifest(dataclasses.replace(facts, seen=seen), labels=many))
    (table,) = tables(section).values()
    assert len(table.rows) == 41
    assert {str(one) for one in range(50, 60)} <= {row[0] for row in table.rows}
    assert "20 more classes are right at least as often as those shown" in words(section)


def test_a_certificate_is_said_in_words_and_its_absence_too(facts):
    assert "No certificate" in words(thresholds(facts))
    noted = {"risk": 0.01, "confidence": 0.9, "of": "disagreement", "tested": 3000, "errors": 22,
             "p_value": 0.08}  # fmt: skip
    said = words(thresholds(with_notes(facts, "tune", {"certificate": noted})))
    for part in ("90% confidence", "no more than 1.00%", "3,000 samples", "22 of them"):
        assert part in said
    tuning = dataclasses.replace(
        facts.manifest.tuning, certificate=Certificate(0.02, 0.95, "accuracy_loss")
    )
    said = words(thresholds(with_manifest(facts, tuning=tuning)))
    assert "95% confidence" in said
    assert "where the built chain's final exit is right" in said


def test_costs_are_in_the_unit_that_they_were_counted_in(facts):
    tuning = dataclasses.replace(facts.manifest.tuning, unit="ms", costs=(0.1, 0.25, 1.5))
    found = tables(thresholds(with_manifest(facts, tuning=tuning)))
    assert [row[3] for row in found["As deployed"].rows] == ["0.100 ms", "0.250 ms", "1.50 ms"]
    assert "mean ms" in found["All samples at one exit"].columns


@pytest.mark.parametrize("make", SECTIONS)
def test_every_section_does_without_what_may_be_missing(facts, make):
    bare = dataclasses.replace(
        facts, bench=None, seen=None, samples=(), labels=None,
        evidence={"bundle_id": "", "stages": [], "checks": []},
    )  # fmt: skip
    policy = Policy("given", facts.manifest.policy.thresholds)
    for one in (
        bare,
        with_manifest(bare, tuning=None),
        with_manifest(bare, labels=(), tuning=None, policy=policy),
        dataclasses.replace(facts, bench=None),
        dataclasses.replace(facts, samples=()),
    ):
        section = make(one)
        assert section is None or section.parts


def test_exits_without_classes_are_told_by_their_cost_alone(facts):
    blind = np.full_like(facts.seen.classes, -1)
    seen = dataclasses.replace(facts.seen, classes=blind, final=blind[-1], labels=None)
    policy = Policy("given", facts.manifest.policy.thresholds)
    found = with_manifest(
        dataclasses.replace(facts, seen=seen, labels=None), labels=(), policy=policy
    )
    assert "tell no classes" in words(classes(found))
    (figure,) = (one for one in thresholds(found).parts if isinstance(one, Figure))
    assert figure.title.startswith("Cost against the threshold, ")
    assert not any(one.title.startswith("Answered wrongly") for one in exits(found).parts
                   if isinstance(one, Gallery))  # fmt: skip


def test_agreement_stands_where_there_are_no_labels(facts):
    seen = dataclasses.replace(facts.seen, labels=None)
    found = dataclasses.replace(facts, seen=seen)
    assert "no labels" in words(classes(found))
    count = facts.seen.samples
    assert (
        f"Agreement with the final exit against the threshold, {count} samples of the tuning split"
    ) in [one.title for one in thresholds(found).parts if isinstance(one, Figure)]
    shown = next(
        one for one in exits(found).parts
        if isinstance(one, Figure) and one.title.startswith("How sure")
    )  # fmt: skip
    # Nobody knows what is right or wrong.
    assert shown.tables[0].columns[2:] == ("as the final exit", "otherwise")
    assert ">as the final exit</text>" in shown.svg
    assert ">wrong</text>" not in shown.svg


def test_confidences_that_are_all_alike_or_not_finite_are_drawn(facts):
    for value in (0.5, math.nan, math.inf):
        seen = dataclasses.replace(
            facts.seen, confidences=np.full_like(facts.seen.confidences, value)
        )
        found = dataclasses.replace(facts, seen=seen)
        assert exits(found).parts
        assert thresholds(found).parts


def test_examples_are_those_that_left_there_and_wrong_ones_say_so(facts):
    galleries = {one.title: one for one in exits(facts).parts if isinstance(one, Gallery)}
    decided = facts.evidence["decisions"]
    wrong = [row for row, one in enumerate(decided["classes"]) if one != facts.labels[row]]
    assert len(galleries["Answered wrongly"].pictures) == min(8, len(wrong)) > 0
    for picture in galleries["Answered wrongly"].pictures:
        assert picture.line.startswith("said ")
        assert "wrong" in picture.says
    first = next(one for title, one in galleries.items() if title.startswith("Left at first"))
    shown = [float(one.line.rpartition(", ")[2]) for one in first.pictures]
    here = [
        sure for exit, sure in zip(decided["exits"], decided["confidences"], strict=True)
        if exit == "first"
    ]  # fmt: skip
    assert max(shown) == pytest.approx(max(here), abs=1e-4)
    for gallery in galleries.values():
        assert all(one.png.startswith(b"\x89PNG") for one in gallery.pictures)


def test_galleries_are_by_where_samples_left_whoever_answered(facts):
    """Under `max_confidence` an early exit may answer what ran to the end."""
    count = len(facts.samples)
    decided = {
        "exits": ["first"] * count,
        "left": ["first"] * (count - 2) + ["last"] * 2,
        "classes": [0] * count,
        "confidences": [0.5] * (count - 1) + [None],
    }
    found = dataclasses.replace(facts, evidence={**facts.evidence, "decisions": decided})
    galleries = {one.title: one for one in exits(found).parts if isinstance(one, Gallery)}
    assert len(galleries["Left last, at last"].pictures) == 2
    assert "at first" in galleries["Left last, at last"].pictures[0].says


@pytest.mark.parametrize(
    "changes",
    [{"left": []}, {"exits": ["first"]}, {"classes": None}, {"confidences": ["x"] * 24},
     {"left": ["nowhere"] * 24}, {"classes": [99] * 24}],
)  # fmt: skip
def test_decisions_that_are_short_or_odd_are_left_out(facts, changes):
    decided = {**facts.evidence["decisions"], **changes}
    found = dataclasses.replace(facts, evidence={**facts.evidence, "decisions": decided})
    assert found.decisions is None
    assert not any(isinstance(one, Gallery) for one in exits(found).parts)


def test_a_bench_under_another_policy_does_not_pass_as_the_deployed_one(facts):
    other = {**facts.bench["policy"], "thresholds": [0.99, 0.98]}
    found = dataclasses.replace(facts, bench={**facts.bench, "policy": other}, measured="by hand")
    for section in (overview(found), latency(found)):
        (said,) = (
            one for one in section.parts
            if isinstance(one, Text) and "under another policy, max_prob at 0.99, 0.98" in one.text
        )  # fmt: skip
        assert said.warns
    assert facts.bench["verdict"] not in words(overview(found))
    (numbers,) = (one for one in overview(found).parts if isinstance(one, Numbers))
    assert "as fast as plain" not in {what for _, what, _ in numbers.items}
    assert tables(latency(found))["Latency in ms"].rows[0][0] == "chain, another policy"
    (leave,) = (one for name, one in tables(exits(found)).items() if name.startswith("Share"))
    assert "bench, another policy (24)" in leave.columns
    assert "another policy" not in words(overview(facts)) + words(latency(facts))


def test_a_bundle_that_was_tuned_says_of_how_many_samples_and_whose_times(facts):
    """Its test figures are of the samples that travel, PyTorch's were of all."""
    tuning = dataclasses.replace(facts.manifest.tuning, unit="ms", costs=(0.1, 0.25, 1.5))
    whose = {"device": {"cpu": "Some Board 4", "machine": "aarch64"}, "engine": "an engine 1",
             "source": "board.json", "on_target": True}  # fmt: skip
    noted = with_notes(with_manifest(facts, tuning=tuning), "load", {"samples": {"test": 999}})
    stages = [
        {**one, "notes": {"accuracy": 0.5, "exit_rates": {"first": 1.0}}}
        if one["name"] == "verify"
        else one
        for one in noted.evidence["stages"]
    ]
    found = dataclasses.replace(
        noted,
        evidence={**noted.evidence, "stages": stages, "tuned_from": "abc", "costs_from": whose,
                  "command": "edgekit build x", "tune_command": "edgekit tune y",
                  "tuned_at": "2026-01-02T03:04:05+00:00"},
    )  # fmt: skip
    (numbers,) = (one for one in overview(found).parts if isinstance(one, Numbers))
    remarks = {what: remark for _, what, remark in numbers.items}
    assert remarks["accuracy"] == "24 samples of the test split"
    assert "Measured when it was tuned with 24 samples" in words(overview(found))
    assert noted.tested_on == ("test split", 999)
    said = words(thresholds(found))
    assert "Some Board 4 (aarch64), an engine 1, measured in board.json: the target." in said
    rows = dict(tables(origin(found))["Tuned"].rows)
    assert rows["from the bundle"] == "abc"
    assert rows["tuned at"].startswith("2026-01-02")
    assert "Some Board 4" in rows["to the times of"]
    (code,) = (
        one for one in origin(found).parts if isinstance(one, Code) and one.title == "Commands"
    )
    assert code.text.startswith("edgekit build x\nedgekit tune y\n")
    assert "Tuned" not in tables(origin(facts))
    assert "Nobody noted" in words(thresholds(noted))


def test_what_thresholds_cost_is_told_in_ms_where_that_was_measured(facts):
    each = [one["cumulative_ms"]["mean"] for one in facts.bench["exits"]]
    found = tables(thresholds(facts))
    assert [row[-1] for row in found["As deployed"].rows] == [ms_text(one) for one in each]
    curve = found["One threshold for all exits"]
    place = curve.columns.index("mean ms")
    # At the last threshold nobody leaves, and every sample takes what the final exit takes.
    assert curve.rows[-1][0] == "nobody leaves"
    assert curve.rows[-1][place] == ms_text(each[-1])
    assert curve.rows[0][place] == ms_text(each[0])
    front = next(table for title, table in found.items() if "no cheaper one" in title)
    assert front.rows[-1][front.columns.index("mean ms")] == ms_text(each[-1])
    without = tables(thresholds(dataclasses.replace(facts, bench=None)))
    assert all("mean ms" not in one.columns for one in without.values())


def test_only_what_no_cheaper_point_is_as_good_as_is_called_the_front(facts):
    tuning = facts.manifest.tuning
    nobody = tuning.points[-1]
    points = tuple(
        dataclasses.replace(nobody, right=right, cost=cost)
        for right, cost in ((5, 1.0), (3, 2.0), (5, 3.0), (8, 4.0))
    )
    tuning = dataclasses.replace(
        tuning, points=points, chosen=1, certificate=Certificate(0.02, 0.95, "disagreement")
    )
    found = with_manifest(facts, tuning=tuning)
    (table,) = (one for title, one in tables(thresholds(found)).items() if "covers" in title)
    assert [row[-1] for row in table.rows] == [
        "the front", "off the front, deployed", "off the front", "the front",
    ]  # fmt: skip
    assert "Hollow points are off the front" in words(thresholds(found))
    best = dataclasses.replace(tuning, points=points[::3], chosen=0)
    assert "Hollow" not in words(thresholds(with_manifest(facts, tuning=best)))


def test_thresholds_that_nobody_reaches_say_so_and_nines_are_kept(facts):
    policy = dataclasses.replace(facts.manifest.policy, thresholds=(0.999987, 1.5))
    confidences = facts.seen.confidences.copy()
    confidences[0, 0] = 0.99999
    seen = dataclasses.replace(facts.seen, confidences=confidences)
    for one in (seen, None):
        found = with_manifest(dataclasses.replace(facts, seen=one), policy=policy)
        deployed = tables(thresholds(found))["As deployed"]
        assert [row[1] for row in deployed.rows] == ["0.999987", "nobody leaves", "takes all"]


def test_the_models_line_in_a_figure_has_a_row_in_its_table(facts):
    rows = {row[0]: row for row in tables(thresholds(facts))["All samples at one exit"].rows}
    tuning = facts.manifest.tuning
    assert rows["PyTorch, final exit"][1] == f"{tuning.reference_right / tuning.samples:.2%}"


def test_latency_has_plain_and_whole_beside_and_says_where_it_was_measured(facts):
    found = tables(latency(facts))
    assert [row[0] for row in found["Latency in ms"].rows] == [
        "chain", "chain, no exit", "whole (all exits)", "plain (one exit)",
    ]  # fmt: skip
    assert [row[0] for row in found["By exit and segment, in ms"].rows] == [
        "first", "second", "last", "whole", "plain",
    ]  # fmt: skip
    assert facts.bench["device"]["cpu"] in words(latency(facts))
    bench = {**facts.bench, "on_target": False, "other_device": "built for a board",
             "valid": False, "reasons": ["it rained"]}  # fmt: skip
    elsewhere = latency(dataclasses.replace(facts, bench=bench))
    assert "not the target, built for a board" in words(elsewhere)
    assert "Doubtful: it rained." in words(elsewhere)
    assert any(one.warns for one in elsewhere.parts if isinstance(one, Text))
    assert "--bench FILE" in words(latency(dataclasses.replace(facts, bench=None)))


def test_a_doubtful_verdict_stands_out(facts):
    for valid in (True, False):
        bench = {**facts.bench, "valid": valid, "on_target": True, "verdict": "It pays."}
        (said,) = (
            one for one in overview(dataclasses.replace(facts, bench=bench)).parts
            if isinstance(one, Text) and one.text == "It pays."
        )  # fmt: skip
        assert said.warns is not valid


def test_the_few_numbers_are_the_measured_ones(facts):
    (numbers,) = (one for one in overview(facts).parts if isinstance(one, Numbers))
    values = {what: value for value, what, _ in numbers.items}
    remarks = {what: remark for _, what, remark in numbers.items}
    assert values["as fast as plain"].startswith(f"{facts.bench['speedup']:.2f}")
    accuracy = facts.notes("verify")["accuracy"]
    assert values["accuracy"] == f"{accuracy:.1%}"
    assert remarks["accuracy"].startswith("24 samples of the test split; PyTorch, final exit ")
    assert remarks["leave early"] == "24 samples of the test split"
    assert values["leave early"] == f"{1 - facts.rates[-1]:.1%}"


def test_errors_stand_beside_the_limits_of_their_stage(facts):
    (table,) = tables(checks(facts)).values()
    assert [row[0] for row in table.rows] == [one["stage"] for one in facts.evidence["checks"]]
    assert {row[4] for row in table.rows} == {"1.0e-03"}
    target = dataclasses.replace(facts.manifest.target, precision="int8")
    (table,) = tables(checks(with_manifest(facts, target=target))).values()
    assert table.rows[0][4] == "1.0e-03"
    assert table.rows[-1][4] == "2.5e-01"


def test_sizes_add_up(facts):
    found = tables(sizes(facts))
    assert len(found["Networks"].rows) == 5
    total = sum(one.size_bytes for one in facts.manifest.all_files())
    assert found["The bundle's folders"].rows[-1] == ("all of it", bytes_text(total))


def test_commands_and_versions_are_the_builds(facts):
    found = dataclasses.replace(
        facts, evidence={**facts.evidence, "command": "edgekit build x.yaml --target host"}
    )
    page = draw(found)
    assert "edgekit build x.yaml --target host" in page
    versions = dict(tables(origin(facts))["Versions"].rows)
    assert versions["torch"] == facts.manifest.tools["torch"]
    assert facts.manifest.bundle_id in page


def test_temperatures_are_drawn_before_and_after_where_there_are_some(facts):
    assert temperatures(facts) is None
    bins = [{"count": 3, "confidence": 0.4, "accuracy": 0.3},
            {"count": 0, "confidence": None, "accuracy": None},
            {"count": 9, "confidence": 0.9, "accuracy": 0.8}]  # fmt: skip
    one = {"temperature": 1.5, "ece_before": 0.1, "ece_after": 0.02, "bins_before": bins,
           "bins_after": bins}  # fmt: skip
    noted = {"temperature": dict.fromkeys(facts.exits, one)}
    section = temperatures(with_notes(facts, "tune", noted))
    assert section is not None
    figure, table = section.parts[1:]
    assert isinstance(figure, Figure)
    assert table.rows[0] == ("first", "1.5", "10.00%", "2.00%")
    assert figure.tables[0].rows[0] == ("first", "before", "40.0%", "30.0%", "3")
    assert len(figure.tables[0].rows) == 2 * 2 * len(facts.exits)
    bare = {key: value for key, value in one.items() if not key.startswith("bins")}
    section = temperatures(with_notes(facts, "tune", {"temperature": {"first": bare}}))
    assert section is not None
    assert not any(isinstance(part, Figure) for part in section.parts)


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_chain_of_any_length_has_a_page(facts, count):
    names = tuple(f"exit-{number}" for number in range(count))
    page = draw(of_many(facts, names))
    assert names[-1] in page
    assert page.count("<h2") == len(SECTIONS) - 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_times_and_rates_are_drawn(facts, data):
    times = st.floats(1e-4, 1e5)
    maybe = st.none() | times
    share = st.floats(0, 1)

    def latency_ms() -> dict[str, float | None]:
        found = {key: data.draw(times) for key in ("mean", "p50")}
        return found | {key: data.draw(maybe) for key in ("p90", "p95", "p99")}

    def network() -> dict[str, object]:
        return {"latency_ms": latency_ms(), "accuracy": data.draw(st.none() | share)}

    bench = {
        **facts.bench, **network(),
        "plain": network(), "whole": network(), "full_depth": network(),
        "beside": [{"name": "other", "speedup": 1.0, "bundle_id": "", **network()}],
        "exits": [
            {"name": name, "rate": data.draw(share), "accuracy": None,
             "latency_ms": data.draw(st.none() | st.just(latency_ms()))}
            for name in facts.exits
        ],
        "segments": [
            {**one, "latency_ms": data.draw(times)} for one in facts.bench["segments"]
        ],
    }  # fmt: skip
    found = dataclasses.replace(facts, bench=bench)
    assert latency(found).parts
    assert overview(found).parts
