import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import Certificate, Policy
from edgekit.report.bundles import draw
from edgekit.report.page import Figure, Gallery, Numbers, Section, Table, Text
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
    assert "20 more classes" in words(section)


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
    assert figure.title == "Cost against the threshold"
    assert not any(one.title.startswith("Answered wrongly") for one in exits(found).parts
                   if isinstance(one, Gallery))  # fmt: skip


def test_agreement_stands_where_there_are_no_labels(facts):
    seen = dataclasses.replace(facts.seen, labels=None)
    found = dataclasses.replace(facts, seen=seen)
    assert "no labels" in words(classes(found))
    assert "Agreement with the final exit against the threshold" in [
        one.title for one in thresholds(found).parts if isinstance(one, Figure)
    ]


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
    assert values["as fast as plain"].startswith(f"{facts.bench['speedup']:.2f}")
    accuracy = facts.notes("verify")["accuracy"]
    assert values["test accuracy"] == f"{accuracy:.1%}"
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
    assert found["The bundle's folders"].rows[-1] == ("all of it", f"{total / 1e3:.3g} kB")


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
