import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.report.benches import Bench, demand_of, differences, read_bench, read_report_file


def written(folder, report):
    path = folder / "bench.json"
    path.write_text(json.dumps(report))
    return path


def test_a_report_is_read_from_its_file_and_from_its_bundle(facts, tmp_path):
    path = written(tmp_path, facts.bench)
    assert read_bench(path) == Bench(str(path), facts.bench)
    assert read_bench(facts.bundle.path) == Bench(str(facts.bundle.path), facts.bench, brief=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', "\x00", "[" * 100_000])
def test_what_is_no_report_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(InputError, match="edgekit bench BUNDLE --json FILE") as caught:
        read_report_file(path)
    assert "\n" not in str(caught.value)


def places(value, path=()):
    """Every place in nested data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield (*path, key)
        if isinstance(one, dict | list):
            yield from places(one, (*path, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_report_with_a_hole_is_refused_or_can_be_shown(facts, tmp_path_factory, data):
    from edgekit.report.compare import rows

    report = copy.deepcopy(facts.bench)
    *way, last = data.draw(st.sampled_from(list(places(report))))
    inner = report
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from([None, "x", [], {}, 0, True]))
    path = written(tmp_path_factory.getbasetemp(), report)
    try:
        found = read_bench(path)
    except InputError:
        return
    assert rows([found, found])
    assert isinstance(differences([found]), list)


def test_a_report_of_another_bundle_or_of_other_segments_is_refused(facts):
    demand_of(facts.manifest, facts.bench, "bench.json")
    with pytest.raises(InputError, match=r"bench\.json: is of bundle 000000000000"):
        demand_of(facts.manifest, {**facts.bench, "bundle_id": "0" * 64}, "bench.json")
    with pytest.raises(InputError, match="other segments"):
        demand_of(facts.manifest, {**facts.bench, "segments": []}, "bench.json")


def test_a_bundle_that_nothing_was_measured_of_says_what_to_do(tiny_bundle):
    from edgekit.bundle.manifest import EVIDENCE_NAME, seal, unseal

    path = tiny_bundle / EVIDENCE_NAME
    path.write_bytes(seal({**unseal(path.read_bytes(), EVIDENCE_NAME), "bench": None}))
    with pytest.raises(InputError, match=r"edgekit bench .* --json FILE"):
        read_bench(tiny_bundle)


def test_what_cannot_be_held_against_one_another_is_said(facts):
    good = {**facts.bench, "valid": True, "on_target": True, "reasons": []}
    assert differences([Bench("a", good), Bench("b", good)]) == []
    others = {"samples": 7, "classes": 9, "threads": 5}
    for key, value in others.items():
        (said,) = differences([Bench("a", good), Bench("b", {**good, key: value})])
        assert str(value) in said
    policy = {**good["policy"], "thresholds": [0.5, 0.999987], "otherwise": "max_confidence"}
    (said,) = differences([Bench("a", good), Bench("b", {**good, "policy": policy})])
    assert "max_prob at 0.5, 0.999987 otherwise max_confidence" in said
    (said,) = differences([Bench("a", good, brief=True), Bench("b", {**good, "samples": 7})])
    assert "Brief runs" in said
    assert "edgekit bench BUNDLE --json FILE" in said
    bad = {**good, "valid": False, "reasons": ["it rained"], "on_target": False,
           "other_device": "another board"}  # fmt: skip
    said = " ".join(differences([Bench("a", good), Bench("b", bad)]))
    assert "b: it rained" in said
    assert "another board" in said
