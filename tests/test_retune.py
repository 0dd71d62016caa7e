"""A bundle tuned anew: the same segments, another policy, and nothing that no longer holds."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import identify, seal
from edgekit.bundle.reader import Bundle, read_bundle, read_evidence
from edgekit.errors import CheckError, InputError, RecipeError
from edgekit.retune import measured_costs, recipe_of, retune
from edgekit.runtime.bench import bench, load_test_data
from edgekit.runtime.chain import Chain
from edgekit.runtime.verify import verify_golden
from edgekit.tuning.goal import Costs
from edgekit.tuning.seen import Seen


@pytest.fixture(scope="module")
def bundle(built_tiny: Path) -> Bundle:
    return read_bundle(built_tiny)


@pytest.fixture(scope="module")
def report(bundle: Bundle) -> dict:
    """As a device sends it back: through JSON."""
    return json.loads(json.dumps(bench(bundle, *load_test_data(bundle), rounds=2)))


@pytest.fixture(scope="module")
def costs(bundle: Bundle, report: dict) -> Costs:
    return measured_costs(bundle, report, "profile.json")


def tuned(bundle: Bundle, costs: Costs, output: Path, **overrides) -> Bundle:
    retune(bundle, recipe_of(bundle, {"policy.tune": overrides}), costs, output)
    return read_bundle(output)


def test_only_the_policy_is_another(bundle, costs, tmp_path):
    again = tuned(bundle, costs, tmp_path / "out", max_accuracy_drop=0.2, search="per_exit")
    before, after = bundle.manifest, again.manifest
    assert again.segments == bundle.segments
    assert after.variants == before.variants
    assert after.baselines == before.baselines
    assert after.requirements == before.requirements
    assert after.policy != before.policy
    assert after.policy == replace(before.policy, thresholds=after.policy.thresholds)
    assert after.bundle_id != before.bundle_id
    assert after.tuning.unit == "ms"
    assert after.tuning.costs == tuple(costs.each)
    assert after.recipe["policy"]["thresholds"] is None


def test_the_chain_does_what_the_tuning_says(bundle, costs, tmp_path):
    again = tuned(bundle, costs, tmp_path / "out", max_accuracy_drop=0.2)
    chain, tuning = Chain.from_bundle(again), again.manifest.tuning
    verify_golden(again, chain)
    inputs, _ = load_test_data(again)
    evidence = read_evidence(again)
    found = [chain.one(x) for x in inputs]
    assert evidence["decisions"]["exits"] == [one.exit for one in found]
    assert evidence["decisions"]["classes"] == [one.class_index for one in found]
    assert evidence["bench"]["bundle_id"] == again.manifest.bundle_id
    assert evidence["tuned_from"] == bundle.manifest.bundle_id
    seen = Seen.from_bytes(again.read(tuning.seen))
    taken = seen.taken(again.manifest.policy.thresholds)
    counts = np.bincount(taken, minlength=3)
    assert [one.count for one in tuning.points[tuning.chosen].left] == counts.tolist()
    (notes,) = (one["notes"] for one in evidence["stages"] if one["name"] == "tune")
    assert notes["mean_latency_ms"] == pytest.approx(counts / len(taken) @ costs.mean_ms)


def test_the_same_profile_gives_the_same_bundle(bundle, costs, tmp_path):
    goal = {"max_latency_ms": {"mean": float(costs.mean_ms[1])}}
    first = tuned(bundle, costs, tmp_path / "first", **goal)
    second = tuned(bundle, costs, tmp_path / "second", **goal)
    assert first.seal == second.seal


def test_it_can_be_tuned_again_and_back(bundle, costs, tmp_path):
    """Golden samples that one policy leaves in doubt are gone; the others still hold."""
    once = tuned(bundle, costs, tmp_path / "once", max_accuracy_drop=1.0)
    back = recipe_of(once, {"policy.thresholds": {"first": 0.30, "second": 0.29}})
    assert back.policy.tune is None
    retune(once, back, costs, tmp_path / "back")
    again = read_bundle(tmp_path / "back")
    assert again.manifest.policy == bundle.manifest.policy
    assert all(one in bundle.manifest.golden.samples for one in again.manifest.golden.samples)
    verify_golden(again, Chain.from_bundle(again))


def test_a_bundle_may_take_its_own_place(bundle, costs, tmp_path):
    place = tmp_path / "place"
    tuned(bundle, costs, place, max_accuracy_drop=0.2)
    there = read_bundle(place)
    again = tuned(there, costs, place, min_exit_rate=0.5)
    assert again.manifest.bundle_id != there.manifest.bundle_id
    assert [one.name for one in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("what", ["mean", "p95"])
def test_the_most_accurate_that_is_in_time_is_taken(bundle, costs, tmp_path, what):
    exits = 3
    quantiles = np.linspace([1.0, 2.0, 4.0], [2.0, 4.0, 8.0], 41).T
    slow = Costs("ms", quantiles.mean(axis=1), quantiles.mean(axis=1), quantiles)
    seen = Seen.from_bytes(bundle.read(bundle.manifest.tuning.seen))
    right = seen.right()
    best = -1
    limit = {"mean": 3.0, "p95": 4.5}[what]
    for threshold in np.unique(seen.confidences[:-1]):
        taken = seen.taken((threshold - 1e-9,) * 2)
        rates = np.bincount(taken, minlength=exits) / seen.samples
        # Each exit's times are spread evenly.
        within = np.clip((limit - quantiles[:, 0]) / np.ptp(quantiles, axis=1), 0, 1)
        met = rates @ slow.mean_ms <= limit if what == "mean" else rates @ within >= 0.95
        if met:
            best = max(best, int(np.sum(right[taken, np.arange(seen.samples)])))
    again = tuned(bundle, slow, tmp_path / "out", max_latency_ms={what: limit})
    point = again.manifest.tuning.points[again.manifest.tuning.chosen]
    assert point.right == best
    with pytest.raises(CheckError, match=r"they take 1\.5 ms on average, p95 1\.95 ms"):
        tuned(bundle, slow, tmp_path / "out", max_latency_ms=0.5)


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=9).map(sorted),
    st.floats(0, 12),
)
def test_the_share_in_time_is_that_of_the_times_between_the_quantiles(quantiles, limit_ms):
    costs = Costs("ms", np.ones(1), np.ones(1), np.array([quantiles]))
    (share,) = costs.share_within(limit_ms)
    assert 0 <= share <= 1
    levels = np.linspace(0, 1, len(quantiles))
    assert share <= np.mean(np.array(quantiles) <= limit_ms) + levels[1]
    assert (share == 1) >= (limit_ms > quantiles[-1])
    assert (share == 0) >= (limit_ms < quantiles[0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"policy.criterion": "margin"}, "policy.criterion: a bundle that is built can be tuned"),
        ({"policy.weights": None}, "policy.weights: a bundle"),
        ({"quantize.samples": 5}, "quantize.samples: a bundle"),
        ({"policy": {}}, "policy: a bundle"),
        ({"policy.tune.max_acuracy_drop": 0.1}, "max_acuracy_drop"),
        ({"policy.tune": {"min_exit_rate": 0.5}, "policy.thresholds": 0.5}, "tune|thresholds"),
    ],
)
def test_what_is_built_in_is_no_matter_of_tuning(bundle, overrides, words):
    if len(overrides) == 2:
        # Who names both has the last one: nothing is left of the first.
        assert recipe_of(bundle, overrides).policy.tune is None
        return
    with pytest.raises(RecipeError, match=words):
        recipe_of(bundle, overrides)


def test_a_bundle_without_a_tuning_split_says_so(bundle):
    without = replace(bundle, manifest=replace(bundle.manifest, tuning=None))
    with pytest.raises(InputError, match=r"name data\.tuning in the recipe and build it again"):
        recipe_of(without, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda report: report.pop("exits"), "no report with the exits' times"),
        (lambda report: report["exits"][0].pop("cumulative_ms"), "no report with the exits' times"),
        (lambda report: report["segments"][1].update(sha256="00"), "measured on other segments"),
        (lambda report: report["segments"].pop(), "measured on other segments"),
        (lambda report: report["exits"].pop(), "do not rise from exit to exit"),
        (
            lambda report: report["exits"][0]["cumulative_ms"].update(quantiles=[1.0, "x"]),
            "no report with the exits' times",
        ),
        (
            lambda report: [one["cumulative_ms"].update(quantiles=[]) for one in report["exits"]],
            "or are no times",
        ),
        (
            lambda report: report["exits"][0]["cumulative_ms"].update(mean=float("nan")),
            "or are no times",
        ),
        (lambda report: report["exits"][0]["cumulative_ms"].update(mean=-1.0), "or are no times"),
        (lambda report: report["exits"][2]["cumulative_ms"].update(mean=1e-6), "do not rise"),
        (lambda report: report["exits"][2]["cumulative_ms"].update(mean=1e308), "are no times"),
        (lambda report: report.update(threads=7), "measured with --threads 7"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(bundle, report, change, words):
    report = json.loads(json.dumps(report))
    change(report)
    with pytest.raises(InputError, match=words):
        measured_costs(bundle, report, "profile.json")


def with_energy(report: dict, *energy_mj: object) -> dict:
    """The report, as a board writes it whose power can be read."""
    report = json.loads(json.dumps(report))
    for exit, one in zip(report["exits"], energy_mj, strict=True):
        exit["cumulative_mj"] = one
    return report


def test_what_a_board_measured_is_what_a_sample_costs(bundle, report, tmp_path):
    costs = measured_costs(bundle, with_energy(report, 1.0, 2.0, 50.0), "profile.json")
    goal = {"weigh": {"cost": 1e6}, "energy_mj": "measured"}
    again = tuned(bundle, costs, tmp_path / "out", **goal).manifest
    assert (again.tuning.unit, again.tuning.costs) == ("mJ", (1.0, 2.0, 50.0))
    assert again.tuning.points[again.tuning.chosen].cost == 1.0


@pytest.mark.parametrize(
    ("energy_mj", "words"),
    [
        ((None, None, None), "needs a board's energy, and a build measures none"),
        ((-0.01, 2.0, 50.0), r"the exits cost -0\.01, 2, 50 mJ above the idle board"),
        ((1.0, float("nan"), 50.0), "hold the clocks"),
    ],
)
def test_energy_that_is_none_is_refused_where_it_is_to_count(
    bundle, report, tmp_path, energy_mj, words
):
    costs = measured_costs(bundle, with_energy(report, *energy_mj), "profile.json")
    with pytest.raises(RecipeError, match=words):
        tuned(bundle, costs, tmp_path / "out", min_exit_rate=0.5, energy_mj="measured")
    # Another goal does not care.
    assert tuned(bundle, costs, tmp_path / "out", min_exit_rate=0.5).manifest.tuning.unit == "ms"


@pytest.mark.parametrize("energy_mj", [("x", 2.0, 3.0), (None, 2.0, 3.0)])
def test_a_profile_whose_energy_is_no_number_is_refused(bundle, report, energy_mj):
    with pytest.raises(InputError, match="no report with the exits' energy"):
        measured_costs(bundle, with_energy(report, *energy_mj), "profile.json")


def test_another_device_need_not_be_here(bundle, costs, tmp_path, monkeypatch):
    """Where the engine is missing, what it would have measured is left out, and not kept."""
    monkeypatch.setitem(sys.modules, "edgekit.runtime.engines.onnxruntime", None)
    again = tuned(bundle, costs, tmp_path / "out", max_accuracy_drop=0.2)
    evidence = read_evidence(again)
    assert evidence["bench"] is evidence["decisions"] is evidence["golden"] is None
    monkeypatch.undo()
    verify_golden(again, Chain.from_bundle(again))


@pytest.fixture
def unlabelled(bundle, costs, tmp_path_factory, tiny_bundle) -> Bundle:
    """A bundle whose tuning split has no labels."""
    seen = Seen.from_bytes((tiny_bundle / bundle.manifest.tuning.seen).read_bytes())
    return exchanged(tiny_bundle, replace(seen, labels=None))


@pytest.mark.parametrize(
    "goal",
    [
        {"max_accuracy_drop": 0.1},
        {"min_exit_rate": 0.1, "min_class_accuracy": 0.1},
        {"certificate": {"risk": 0.6, "of": "accuracy_loss"}},
    ],
)
def test_what_is_counted_by_labels_is_not_promised_without_them(unlabelled, costs, tmp_path, goal):
    with pytest.raises(RecipeError, match=r"data\.tuning has no labels to count accuracy with"):
        tuned(unlabelled, costs, tmp_path / "out", **goal)
    # What needs none is there.
    tuned(unlabelled, costs, tmp_path / "out", min_exit_rate=0.5)


def test_no_certificate_is_tested_on_what_the_segments_were_calibrated_with(bundle):
    tuning = replace(bundle.manifest.tuning, held_out=False)
    calibrated = replace(bundle, manifest=replace(bundle.manifest, tuning=tuning))
    with pytest.raises(RecipeError, match="or what its segments were calibrated with"):
        recipe_of(calibrated, {"policy.tune": {"certificate": {"risk": 0.6}}})


def test_samples_of_another_bundle_are_refused(bundle, costs, tmp_path, tiny_bundle):
    seen = Seen.from_bytes((tiny_bundle / bundle.manifest.tuning.seen).read_bytes())
    fewer = Seen(seen.confidences[:, 1:], seen.classes[:, 1:], seen.final[1:], seen.labels[1:])
    with pytest.raises(InputError, match="is not of its exits"):
        tuned(exchanged(tiny_bundle, fewer), costs, tmp_path / "out", max_accuracy_drop=0.2)


def exchanged(folder: Path, seen: Seen) -> Bundle:
    """The bundle with other samples of tuning, sealed anew."""
    document = json.loads((folder / "manifest.json").read_bytes())
    del document["seal"]
    path = folder / document["tuning"]["seen"]
    content = seen.to_bytes()
    path.write_bytes(content)
    (entry,) = (x for x in document["files"] if x["path"] == document["tuning"]["seen"])
    entry.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    document["bundle_id"] = identify(document)
    (folder / "manifest.json").write_bytes(seal(document))
    return read_bundle(folder)


def test_what_is_noted_of_the_test_split_is_of_the_new_policy(bundle, costs, tmp_path):
    again = tuned(bundle, costs, tmp_path / "out", max_accuracy_drop=1.0)
    evidence = read_evidence(again)
    (notes,) = (one["notes"] for one in evidence["stages"] if one["name"] == "verify")
    assert notes["exit_rates"] == {"first": 1.0, "second": 0.0, "last": 0.0}
    inputs, labels = load_test_data(again)
    chain = Chain.from_bundle(again)
    assert notes["accuracy"] == np.mean([chain.one(x).class_index for x in inputs] == labels)
    assert notes.keys() == {"exit_rates", "accuracy"}


def test_the_folder_that_one_stands_in_can_be_tuned(cli, tiny_bundle, monkeypatch):
    monkeypatch.chdir(tiny_bundle)
    ended = cli("tune", ".", "--set", "policy.tune.max_accuracy_drop=1.0", "--dry-run")
    assert ended.code == 0, ended.err
    assert "every sample of the tuning split leaves at the first exit" in ended.out
    assert cli("tune", ".", "--set", "policy.tune.max_accuracy_drop=1.0").code == 0
    assert read_bundle(tiny_bundle.with_name(f"{tiny_bundle.name}-tuned"))
    inside = cli("tune", ".", "--output", "inside")
    assert (inside.code, "lies in the bundle" in inside.err) == (1, True)


def test_a_build_says_that_it_took_a_tuned_bundles_place(cli, tiny_recipe, tmp_path):
    build = "build", tiny_recipe, "--output", tmp_path / "out"
    assert cli(*build).code == 0
    tune = "tune", tmp_path / "out", "--output", tmp_path / "out"
    assert cli(*tune, "--set", "policy.tune.max_accuracy_drop=1.0").code == 0
    ended = cli(*build)
    assert "Wrote" in ended.out
    assert "Nothing to do" not in ended.out
    assert "Nothing to do" in cli(*build).out


def test_the_command_tunes_to_a_devices_times(cli, tiny_bundle, report, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(report))
    goal = ("--set", "policy.tune.max_accuracy_drop=0.1")
    dry = cli("tune", tiny_bundle, "--profile", profile, *goal, "--dry-run")
    assert dry.code == 0
    assert "ms on average" in dry.out
    place = tiny_bundle.with_name(f"{tiny_bundle.name}-tuned")
    assert not place.exists()
    ended = cli("tune", tiny_bundle, "--profile", profile, *goal, "--json", "-")
    assert ended.code == 0
    said = json.loads(ended.out)
    assert said["path"] == str(place)
    assert said["bundle_id"] == read_bundle(place).manifest.bundle_id
    assert cli("verify", place).code == 0
    evidence = read_evidence(read_bundle(place))
    assert evidence["costs_from"] == {
        "device": report["device"],
        "engine": report["engine"],
        "source": "profile.json",
        "on_target": report["on_target"],
    }
    # What built it and what tuned it are told apart.
    before = read_evidence(read_bundle(tiny_bundle))
    assert (evidence["command"], evidence["built_at"]) == (before["command"], before["built_at"])
    assert evidence["tune_command"].startswith("edgekit ")
    assert evidence["tuned_at"] >= evidence["built_at"]
    # The times still hold: they are of the same segments.
    assert Chain.load(place, profile=profile).segment_ms


def test_without_a_profile_the_command_measures_here(cli, tiny_bundle, tmp_path):
    limit = ("--set", "policy.tune.max_latency_ms=1000")
    ended = cli("tune", tiny_bundle, *limit, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    found = read_bundle(tmp_path / "out")
    assert found.manifest.tuning.unit == "ms"
    assert read_evidence(found)["costs_from"]["source"] == "here"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--profile", "none.json"], 1, "none.json: No such file"),
        (["--profile", __file__], 1, "is no JSON"),
        (["--set", "target.threads=2"], 1, "the target is built in"),
        (["--set", "policy.tune.max_latency_ms=0.0000001"], 3, "on average"),
    ],
)
def test_what_the_command_refuses_leaves_nothing(cli, tiny_bundle, options, code, words):
    ended = cli("tune", tiny_bundle, *options)
    assert (ended.code, words in ended.err) == (code, True), ended.err
    assert not tiny_bundle.with_name(f"{tiny_bundle.name}-tuned").exists()


def test_temperatures_stay_and_no_certificate_is_tested_on_what_made_them(
    cli, tiny_recipe, tmp_path
):
    folder = tmp_path / "bundle"
    ended = cli("build", tiny_recipe, "--output", folder, "--set", "policy.temperature=true")
    (line,) = (one for one in ended.out.splitlines() if one.startswith("calibrated "))
    before = read_bundle(folder)
    notes = notes_of(before)["temperature"]
    by_exit = [(exit, notes[exit]) for exit in ("first", "second", "last")]
    assert line.removeprefix("calibrated ") == ", ".join(
        f"{exit} at {one['temperature']:.3g} "
        f"(ECE {one['ece_before']:.4f} -> {one['ece_after']:.4f})"
        for exit, one in by_exit
    )
    temperatures = before.manifest.policy.temperatures
    assert temperatures == tuple(one["temperature"] for _, one in by_exit)
    assert cli("verify", folder).code == 0
    assert f"at temperatures {temperatures[0]:g}, " in cli("inspect", folder).out
    report = tmp_path / "report.json"
    assert cli("bench", folder, "--rounds", 1, "--json", report).code == 0
    tune = "tune", folder, "--profile", report, "--output", tmp_path / "again", "--set"
    refused = cli(*tune, "policy.tune.certificate={risk: 0.6}")
    assert refused.code == 1
    assert "fitted to samples that would be tested on" in refused.err
    assert cli(*tune, "policy.tune.min_exit_rate=0.5").code == 0
    after = read_bundle(tmp_path / "again")
    assert after.manifest.policy.temperatures == temperatures
    assert after.manifest.policy.thresholds != before.manifest.policy.thresholds
    assert notes_of(after)["temperature"] == notes


def notes_of(bundle: Bundle) -> dict:
    """What the evidence says of tuning."""
    stages = read_evidence(bundle)["stages"]
    return next(one["notes"] for one in stages if one["name"] == "tune")
