import json

import pytest

from edgekit.bundle.manifest import EVIDENCE_NAME, REPORT_NAME, seal, unseal
from edgekit.bundle.reader import read_bundle, read_report
from edgekit.errors import BundleError, InputError
from edgekit.limits import LIMITS
from edgekit.report.bundles import collect, draw, write_report


def test_a_page_lies_beside_the_manifest_and_takes_no_part_in_the_id(tiny_bundle):
    before = read_bundle(tiny_bundle)
    others = {path: path.read_bytes() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert read_report(before) is None
    path = write_report(before)
    assert path.name == REPORT_NAME
    after = read_bundle(tiny_bundle)
    assert (after.manifest.bundle_id, after.seal) == (before.manifest.bundle_id, before.seal)
    assert {path: path.read_bytes() for path in others} == others
    assert read_report(after) == (draw(collect(before)), True)
    assert {one.name for one in tiny_bundle.parent.iterdir()} == {tiny_bundle.name}


def test_a_page_that_was_changed_is_refused_and_drawn_anew(tiny_bundle):
    bundle = read_bundle(tiny_bundle)
    path = write_report(bundle)
    raw = path.read_bytes()
    assert raw.rstrip().endswith(b"-->")
    for changed in (
        raw.replace(b"PyTorch", b"PyTorsh", 1), raw[:-20], b"", raw + b"<p>", b"x" * 200
    ):  # fmt: skip
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=r"report\.html: was changed"):
            read_report(bundle)
    write_report(bundle)
    assert path.read_bytes() == raw


def test_a_page_larger_than_any_is_refused_before_it_is_read(tiny_bundle):
    with (tiny_bundle / REPORT_NAME).open("wb") as stream:
        stream.truncate(LIMITS.report_bytes + 10**9)
    with pytest.raises(BundleError, match="limit"):
        read_report(read_bundle(tiny_bundle))


def test_a_link_is_no_page(tiny_bundle, tmp_path):
    (tmp_path / "elsewhere.html").write_text("x")
    (tiny_bundle / REPORT_NAME).symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(tiny_bundle)


def test_a_page_of_other_evidence_is_known_as_one(tiny_bundle):
    write_report(read_bundle(tiny_bundle))
    path = tiny_bundle / EVIDENCE_NAME
    path.write_bytes(seal({**unseal(path.read_bytes(), EVIDENCE_NAME), "threads": 7}))
    found = read_report(read_bundle(tiny_bundle))
    assert found is not None
    assert not found[1]
    path.unlink()
    found = read_report(read_bundle(tiny_bundle))
    assert found is not None
    assert not found[1]


def test_without_evidence_there_is_nothing_to_draw(tiny_bundle):
    (tiny_bundle / EVIDENCE_NAME).unlink()
    with pytest.raises(InputError, match=r"evidence\.json"):
        collect(read_bundle(tiny_bundle))


def test_a_devices_report_is_shown_instead_of_the_builds(tiny_bundle, tmp_path):
    bundle = read_bundle(tiny_bundle)
    report = collect(bundle).bench
    assert report is not None
    report["device"]["cpu"] = "Some Board 4"
    file = tmp_path / "board.json"
    file.write_text(json.dumps(report))
    write_report(bundle, file)
    found = read_report(bundle)
    assert found is not None
    assert "by edgekit bench (board.json) with 24 samples on Some Board 4" in found[0]
    file.write_text(json.dumps({**report, "bundle_id": "0" * 64}))
    with pytest.raises(InputError, match=r"board\.json: is of bundle 0000"):
        write_report(bundle, file)


@pytest.mark.parametrize(
    "changes",
    [{"exits": []}, {"segments": None}, {"policy": {}}, {"bundle_id": "0" * 64}, {"plain": 1}],
)
def test_a_bench_in_the_evidence_that_is_odd_or_older_counts_as_none(tiny_bundle, changes):
    path = tiny_bundle / EVIDENCE_NAME
    evidence = unseal(path.read_bytes(), EVIDENCE_NAME)
    path.write_bytes(seal({**evidence, "bench": {**evidence["bench"], **changes}}))
    bundle = read_bundle(tiny_bundle)
    assert collect(bundle).bench is None
    assert "Nothing was measured" in draw(collect(bundle))


def test_samples_of_other_exits_are_refused(tiny_bundle, monkeypatch):
    from edgekit.tuning.seen import Seen

    bundle = read_bundle(tiny_bundle)
    read = Seen.from_bytes(bundle.read(bundle.manifest.tuning.seen))
    fewer = Seen(read.confidences[1:], read.classes[1:], read.final, read.labels)
    monkeypatch.setattr(Seen, "from_bytes", lambda content: fewer)
    with pytest.raises(BundleError, match="of other exits"):
        collect(bundle)
