import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.bundle.manifest import Policy
from edgekit.bundle.reader import Bundle
from edgekit.errors import InputError
from edgekit.runtime.bench import bench, load_test_data, to_tensors, verdict
from edgekit.runtime.chain import Chain
from tests.runtime import boards

Array = npt.NDArray[Any]
Report = dict[str, Any]

LATENCY = {"mean", "p50", "p90", "p95", "p99"}


@pytest.fixture(scope="module")
def data(bundle: Bundle) -> tuple[Array, Array]:
    found = load_test_data(bundle)
    assert found is not None
    inputs, labels = found
    assert labels is not None
    return inputs, labels


@pytest.fixture(scope="module")
def measured(bundle: Bundle, data: tuple[Array, Array]) -> Report:
    return bench(bundle, *data, rounds=2, beside=[bundle])


def test_a_report_has_every_key(measured: Report) -> None:
    assert measured.keys() >= {
        *("bundle_id", "name", "target", "engine", "precision", "threads", "samples", "rounds"),
        *("clock", "latency_ms", "accuracy", "exits", "segments", "plain", "whole", "full_depth"),
        *("beside", "speedup", "full_depth_ratio", "efficiency", "valid", "reasons", "device"),
        *("energy", "memory", "conditions", "verdict"),
    }
    assert measured["latency_ms"].keys() == LATENCY
    for name in ("plain", "whole", "full_depth"):
        assert measured[name].keys() == {"latency_ms", "accuracy"}
        assert measured[name]["latency_ms"].keys() == LATENCY
    for exit in measured["exits"]:
        assert exit.keys() == {
            *("name", "rate", "accuracy", "latency_ms", "cumulative_ms", "cumulative_mj")
        }
        quantiles = exit["cumulative_ms"]["quantiles"]
        assert quantiles == sorted(quantiles)
        assert quantiles[0] <= exit["cumulative_ms"]["mean"] <= quantiles[-1]
    for segment in measured["segments"]:
        assert segment.keys() == {"name", "sha256", "latency_ms", "p90_ms"}


def test_a_report_says_what_memory_each_holds_and_what_nobody_tells(measured: Report) -> None:
    memory = measured["memory"]
    assert memory.keys() == {*("resident_bytes", "peak_bytes", "engine", "chain", "plain", "whole")}
    assert 0 < memory["resident_bytes"] <= memory["peak_bytes"]
    assert memory["engine"]["growth_bytes"] is None  # Earlier tests have loaded it.
    for name in ("chain", "plain", "whole"):
        assert memory[name].keys() == {"growth_bytes", "arena_bytes"}
        assert 0 <= memory[name]["growth_bytes"] < memory["resident_bytes"]
        assert memory[name]["arena_bytes"] is None  # ONNX Runtime tells Python of none.


def test_a_report_is_plain_data(measured: Report) -> None:
    assert json.loads(json.dumps(measured)) == measured


def test_a_report_says_what_was_measured(measured: Report, bundle: Bundle) -> None:
    assert measured["bundle_id"] == bundle.manifest.bundle_id
    assert measured["engine"].startswith("onnxruntime ")
    assert (measured["target"], measured["precision"], measured["threads"]) == ("host", "fp32", 1)
    assert (measured["samples"], measured["rounds"]) == (24, 2)
    assert (measured["on_target"], measured["other_device"]) == (True, None)
    assert measured["verdict"] == verdict(measured)
    assert measured["valid"] is (measured["reasons"] == [])


def test_rates_and_accuracies_are_those_of_the_chain(
    measured: Report, bundle: Bundle, data: tuple[Array, Array]
) -> None:
    inputs, labels = data
    found = [Chain.from_bundle(bundle).one(x) for x in inputs]
    right = [one.class_index == label for one, label in zip(found, labels, strict=True)]
    assert measured["accuracy"] == pytest.approx(np.mean(right))
    assert [exit["name"] for exit in measured["exits"]] == ["first", "second", "last"]
    for exit in measured["exits"]:
        pairs = zip(found, right, strict=True)
        here = [correct for one, correct in pairs if one.exit == exit["name"]]
        assert exit["rate"] == pytest.approx(len(here) / 24)
        assert exit["accuracy"] == pytest.approx(np.mean(here))
    assert sum(exit["rate"] for exit in measured["exits"]) == pytest.approx(1)


def test_the_undivided_networks_have_the_accuracy_of_the_last_exit(
    measured: Report, bundle: Bundle, data: tuple[Array, Array]
) -> None:
    inputs, labels = data
    last = Chain.from_bundle(bundle).logits(inputs)["last"].argmax(axis=1)
    for name in ("plain", "whole", "full_depth"):
        assert measured[name]["accuracy"] == pytest.approx(np.mean(last == labels))


def test_ratios_are_those_of_the_means(measured: Report) -> None:
    def mean(name: str) -> float:
        return measured[name]["latency_ms"]["mean"]

    chain = measured["latency_ms"]["mean"]
    assert measured["speedup"] == pytest.approx(mean("plain") / chain)
    assert measured["full_depth_ratio"] == pytest.approx(mean("full_depth") / mean("whole"))
    sums = np.cumsum([segment["latency_ms"] for segment in measured["segments"]])
    possible = sum(exit["rate"] * one for exit, one in zip(measured["exits"], sums, strict=True))
    assert measured["efficiency"] == pytest.approx(possible / chain)


def test_another_bundle_beside_is_measured_too(measured: Report, bundle: Bundle) -> None:
    [other] = measured["beside"]
    assert other["name"] == "tiny"
    assert other["bundle_id"] == bundle.manifest.bundle_id
    assert other["accuracy"] == measured["accuracy"]
    means = measured["plain"]["latency_ms"]["mean"], other["latency_ms"]["mean"]
    assert other["speedup"] == pytest.approx(means[0] / means[1])


def test_without_labels_a_run_is_not_valid(bundle: Bundle, data: tuple[Array, Array]) -> None:
    report = bench(bundle, data[0], None, rounds=1)
    assert report["valid"] is False
    assert any("no labels" in reason for reason in report["reasons"])
    assert report["accuracy"] is None
    assert report["plain"]["accuracy"] is None
    assert {exit["accuracy"] for exit in report["exits"]} == {None}


def test_an_exit_that_nothing_took_has_no_figures(
    bundle: Bundle, data: tuple[Array, Array]
) -> None:
    policy = replace(bundle.manifest.policy, thresholds=(0.0, 0.0))
    eager = replace(bundle, manifest=replace(bundle.manifest, policy=policy))
    report = bench(eager, *data, rounds=1)
    assert [exit["rate"] for exit in report["exits"]] == [1, 0, 0]
    last = report["exits"][2]
    assert (last["rate"], last["accuracy"], last["latency_ms"]) == (0, None, None)
    # How long it would have taken to get there is known all the same.
    assert last["cumulative_ms"]["mean"] > report["exits"][1]["cumulative_ms"]["mean"]


def test_rates_are_of_where_samples_left_whoever_answers(
    bundle: Bundle, data: tuple[Array, Array]
) -> None:
    refused = Policy("max_prob", (math.inf, math.inf), otherwise="max_confidence")
    report = bench(bundle, *data, rounds=1, policy=refused)
    assert report["policy"]["otherwise"] == "max_confidence"
    assert [exit["rate"] for exit in report["exits"]] == [0, 0, 1]
    predictions = Chain.from_bundle(bundle).with_policy(refused).many(data[0])
    assert {one.exit for one in predictions} - {"last"}
    accuracy = np.mean([one.class_index for one in predictions] == data[1])
    assert report["accuracy"] == report["exits"][2]["accuracy"] == accuracy


def test_patience_is_measured_beside_an_undivided_network_that_has_none(
    bundle: Bundle, data: tuple[Array, Array]
) -> None:
    patient = replace(bundle.manifest.policy, criterion="patience", thresholds=(1.0, 1.0))
    report = bench(
        replace(bundle, manifest=replace(bundle.manifest, policy=patient)), *data, rounds=1
    )
    assert report["exits"][0]["rate"] == 0
    assert 0 < report["exits"][1]["rate"] < 1
    assert report["plain"]["accuracy"] == report["whole"]["accuracy"]


def test_every_round_is_announced(bundle: Bundle, data: tuple[Array, Array]) -> None:
    said: list[str] = []
    bench(bundle, data[0][:2], None, rounds=3, threads=2, step=said.append)
    assert said == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_where_no_power_can_be_read_nothing_is_waited_for_and_nothing_told(
    bundle: Bundle, data: tuple[Array, Array], tmp_path: Path
) -> None:
    said: list[str] = []
    report = bench(bundle, data[0][:2], None, rounds=1, root=tmp_path, step=said.append)
    assert said == ["round 1 of 1"]
    assert (report["energy"], report["conditions"]) == (None, None)
    assert {exit["cumulative_mj"] for exit in report["exits"]} == {None}


@pytest.fixture(scope="module")
def on_a_board(
    bundle: Bundle, data: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory
) -> Report:
    """On an Orin Nano whose input draws 5 W idle, 9 W in plain's phase and 7 W in all others."""
    root = boards.orin_nano(tmp_path_factory.mktemp("board"))
    current = next(root.rglob("curr1_input"))
    # Written aside and moved: a sensor never gives half a figure.
    aside = root / "aside"

    def step(text: str) -> None:
        aside.write_text({"idle power": "1000", "energy of plain": "1800"}.get(text, "1400"))
        aside.replace(current)

    return bench(bundle, *data, rounds=1, beside=[bundle], root=root, energy_s=ENERGY_S, step=step)


ENERGY_S = 0.3


def test_each_contender_has_the_energy_of_its_own_phase(on_a_board: Report) -> None:
    energy = on_a_board["energy"]
    assert (energy["rails"], energy["source"]) == (["VDD_IN"], "ina3221")
    assert energy["idle_mw"] == pytest.approx(5000, rel=0.05)
    assert energy["plain"]["mean_mw"] == pytest.approx(9000, rel=0.05)
    others = [energy[name] for name in ("chain", "whole", "full_depth")]
    for one in (*others, *energy["beside"], *energy["exits"]):
        assert one["mean_mw"] == pytest.approx(7000, rel=0.05)
        assert one["seconds"] >= ENERGY_S
        assert one["inferences"] % energy["samples"] == 0
        assert one["mj"] * one["inferences"] == pytest.approx(one["mean_mw"] * one["seconds"])
        above = (one["mean_mw"] - energy["idle_mw"]) * one["seconds"]
        assert one["above_idle_mj"] * one["inferences"] == pytest.approx(above)


def test_what_a_sample_costs_that_leaves_at_an_exit_is_above_idle(on_a_board: Report) -> None:
    costs = [exit["cumulative_mj"] for exit in on_a_board["exits"]]
    energy = on_a_board["energy"]
    assert costs == [one["above_idle_mj"] for one in energy["exits"]]
    assert costs[-1] == energy["full_depth"]["above_idle_mj"]


def test_a_report_from_a_board_is_plain_data_and_says_what_it_met(on_a_board: Report) -> None:
    assert json.loads(json.dumps(on_a_board)) == on_a_board
    met = on_a_board["conditions"]
    assert met["board"].startswith("NVIDIA Jetson Orin Nano")
    assert (met["jetpack"], met["power_mode"]) == ("6.2", "MAXN_SUPER")
    assert met["temperatures_c"]["after"] == {"cpu": 47.687, "gpu": 48.625}
    assert met["clocks"]["before"]["gpu"]["mhz"] == 1020
    assert (met["throttled"], met["notes"]) == ([], [])


def test_a_board_that_was_throttled_meanwhile_makes_the_run_invalid(
    bundle: Bundle, data: tuple[Array, Array], tmp_path: Path
) -> None:
    counter = boards.orin_nano(tmp_path) / "sys/class/hwmon/hwmon3/oc3_event_cnt"

    def step(text: str) -> None:
        if text == "round 2 of 2":
            counter.write_text("41\n")

    report = bench(bundle, *data, rounds=2, root=tmp_path, energy_s=0, step=step)
    assert "the board was throttled: over-current or low voltage (oc3) 4 times" in report["reasons"]
    assert report["valid"] is False
    assert report["energy"] is None


def test_a_raspberry_pi_that_was_throttled_meanwhile_makes_the_run_invalid(
    bundle: Bundle, data: tuple[Array, Array], tmp_path: Path
) -> None:
    bits = boards.raspberry_pi(tmp_path, governor="ondemand") / "firmware/throttled"

    def step(text: str) -> None:
        if text == "round 2 of 2":
            bits.write_text("0x50005\n")

    report = bench(bundle, *data, rounds=2, root=tmp_path, step=step)
    assert json.loads(json.dumps(report)) == report
    reasons = "; ".join(report["reasons"])
    assert "the board was throttled: low voltage, against which a power supply" in reasons
    assert report["valid"] is False
    met = report["conditions"]
    assert met["throttled_bits"] == {"before": "0x0", "after": "0x50005", "source": "vcgencmd"}
    # It has no rails to be read: that is no fault to be told of.
    (note,) = met["notes"]
    assert note.startswith("the clock follows the load (governor ondemand)")
    assert report["energy"] is None


def test_rails_that_fail_are_told_and_the_times_are_kept(
    bundle: Bundle, data: tuple[Array, Array], tmp_path: Path
) -> None:
    next(boards.orin_nano(tmp_path).rglob("curr1_input")).write_text("")
    report = bench(bundle, *data, rounds=1, root=tmp_path, energy_s=0.01)
    assert report["energy"] is None
    assert report["conditions"]["notes"] == [
        "the power rails could not be read, so there is no energy"
    ]
    assert report["latency_ms"]["mean"] > 0


def test_samples_that_do_not_fit_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"expected float32 \[1, 8, 8\]"):
        bench(bundle, np.zeros((2, 1, 4, 4), np.float32), None, rounds=1)


@pytest.mark.parametrize("count", [1, 23, 25])
def test_labels_that_are_not_one_per_sample_are_refused(
    bundle: Bundle, data: tuple[Array, Array], count: int
) -> None:
    with pytest.raises(InputError, match="labels"):
        bench(bundle, data[0], np.zeros(count, np.int64), rounds=1)


def test_the_carried_test_split_is_that_of_the_recipe(
    bundle: Bundle, data: tuple[Array, Array]
) -> None:
    inputs, labels = data
    pixels = np.random.default_rng(2).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.testing.assert_allclose(inputs[:, 0], (pixels / 255 - 0.5) / 0.25, atol=1e-5)
    assert (labels.dtype, labels.shape) == (np.int64, (24,))


def test_a_bundle_may_carry_no_test_split(bundle: Bundle) -> None:
    without = replace(bundle, manifest=replace(bundle.manifest, test_data=None))
    assert load_test_data(without) is None


def test_no_samples_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no samples"):
        to_tensors(bundle, np.zeros((0, 8, 8), np.uint8))


def report(chain_ms: float, plain_ms: float, **changes: Any) -> Report:
    return {
        "latency_ms": {"mean": chain_ms},
        "accuracy": 0.9,
        "classes": 4,
        "plain": {"latency_ms": {"mean": plain_ms}, "accuracy": 0.875},
        "speedup": plain_ms / chain_ms,
        "beside": [],
        "on_target": True,
        "other_device": None,
        "valid": True,
        "reasons": [],
        **changes,
    }


def other(name: str, ms: float, accuracy: float | None) -> Report:
    return {"name": name, "latency_ms": {"mean": ms}, "accuracy": accuracy}


def test_a_chain_that_pays() -> None:
    assert verdict(report(1.0, 2.5)) == (
        "Early exit pays: 2.50 times as fast as the plain network (1.000 ms against 2.500 ms on "
        "average), at 90.0% accuracy against 87.5%."
    )


def test_a_chain_that_gains_nothing() -> None:
    assert verdict(report(1.0, 1.01)).startswith(
        "Early exit gains nothing here: the plain network is as fast (1.000 ms against 1.010 ms"
    )


def test_a_chain_that_does_not_pay() -> None:
    assert verdict(report(2.0, 1.0)).startswith(
        "Early exit does not pay here: the plain network is faster (2.000 ms against 1.000 ms"
    )


@pytest.mark.parametrize(
    ("plain_ms", "said"),
    [
        (1.06, "pays"),
        (1.04, "gains nothing"),
        (1.0, "gains nothing"),
        (0.96, "gains nothing"),
        (0.94, "does not pay"),
    ],
)
def test_within_a_twentieth_two_times_count_as_alike(plain_ms: float, said: str) -> None:
    assert said in verdict(report(1.0, plain_ms))


def test_without_labels_the_price_is_unknown() -> None:
    text = verdict(
        report(
            *(1.0, 2.0),
            accuracy=None,
            beside=[other("static", 0.5, None)],
            valid=False,
            reasons=["the samples have no labels, so they may be noise"],
        )
    )
    assert "without labels nobody knows what it costs in accuracy." in text
    assert "But static is faster still: 0.500 ms." in text
    assert text.endswith(
        "Do not rely on these figures: the samples have no labels, so they may be noise."
    )
    assert "%" not in text


def test_a_faster_network_beside_is_named_and_a_slower_is_not() -> None:
    beside = [other("static", 0.5, 0.8), other("slow", 1.5, 0.95)]
    text = verdict(report(1.0, 2.0, beside=beside))
    assert text.endswith(" But static is faster still: 0.500 ms at 80.0%.")
    assert "slow" not in text


def test_figures_of_another_device_are_not_the_targets() -> None:
    text = verdict(report(1.0, 2.0, on_target=False, other_device="built for a; this is b"))
    assert text.endswith(" These are not the target's figures: built for a; this is b.")


def test_a_bundle_for_another_device_is_measured_but_says_so(
    bundle: Bundle, data: tuple[Array, Array]
) -> None:
    target = replace(bundle.manifest.target, name="toaster", machine="mips", board="Toaster 2")
    other = replace(bundle, manifest=replace(bundle.manifest, target=target))
    found = bench(other, data[0][:2], None, rounds=1)
    assert found["on_target"] is False
    assert found["other_device"].startswith("built for toaster (mips, Toaster 2); this is ")
    assert found["other_device"] in found["verdict"]


def test_an_invalid_run_says_why() -> None:
    text = verdict(report(1.0, 2.0, valid=False, reasons=["it rained", "it snowed"]))
    assert text.startswith("Early exit pays")
    assert text.endswith(" Do not rely on these figures: it rained; it snowed.")
