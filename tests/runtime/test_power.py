import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime import power
from edgekit.runtime.power import MOST_GAP_S, energy_mj
from tests.runtime import boards

seconds = st.floats(0, 100, allow_subnormal=False)
gaps = st.floats(0.001, MOST_GAP_S * 0.9)
milliwatts = st.floats(0, 1e5)


def times_of(steps: list[float]) -> list[float]:
    found = [0.0]
    for step in steps:
        found.append(found[-1] + step)
    return found


@given(st.lists(gaps, min_size=1, max_size=50), milliwatts, st.data())
def test_constant_power_is_power_times_time(
    steps: list[float], mw: float, data: st.DataObject
) -> None:
    times = times_of(steps)
    start = data.draw(st.floats(0, times[-1] * 0.9))
    end = data.draw(st.floats(start + 1e-6, times[-1]))
    found = energy_mj(times, [mw] * len(times), start, end)
    assert found == pytest.approx(mw * (end - start), rel=1e-9, abs=1e-9)


@given(st.lists(gaps, min_size=1, max_size=50), milliwatts, st.floats(0, 1e4), st.data())
def test_a_ramp_is_exact_wherever_it_was_read(
    steps: list[float], mw: float, slope: float, data: st.DataObject
) -> None:
    times = times_of(steps)
    start = data.draw(st.floats(0, times[-1] * 0.9))
    end = data.draw(st.floats(start + 1e-6, times[-1]))
    found = energy_mj(times, [mw + slope * one for one in times], start, end)
    expected = mw * (end - start) + slope * (end**2 - start**2) / 2
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(gaps, min_size=2, max_size=50), st.data())
def test_two_halves_are_the_whole(steps: list[float], data: st.DataObject) -> None:
    times = times_of(steps)
    drawn = data.draw(st.lists(milliwatts, min_size=len(times), max_size=len(times)))
    middle = data.draw(st.floats(times[-1] * 0.1, times[-1] * 0.9))
    halves = [energy_mj(times, drawn, *one) for one in ((0, middle), (middle, times[-1]))]
    assert None not in halves
    whole = energy_mj(times, drawn, 0, times[-1])
    assert sum(one or 0 for one in halves) == pytest.approx(whole, rel=1e-6, abs=1e-6)


@given(st.lists(gaps, min_size=1, max_size=20), st.integers(0, 19), st.floats(1.01, 100))
def test_a_time_without_readings_has_no_energy(steps: list[float], place: int, gap: float) -> None:
    steps.insert(place % (len(steps) + 1), MOST_GAP_S * gap)
    times = times_of(steps)
    assert energy_mj(times, [1000.0] * len(times), 0, times[-1]) is None


@given(
    st.lists(gaps, min_size=2, max_size=20),
    st.integers(1, 19),
    st.floats(0, 1),
    st.floats(0, 1e9),
)
def test_a_reading_from_before_its_time_changes_nothing(
    steps: list[float], place: int, back: float, nonsense_mw: float
) -> None:
    times = times_of(steps)
    drawn = [1000.0 + index for index in range(len(times))]
    expected = energy_mj(times, drawn, 0, times[-1])
    place = place % len(steps) + 1
    set_back = [*times[:place], times[place - 1] - back, *times[place:]]
    with_it = [*drawn[:place], nonsense_mw, *drawn[place:]]
    assert energy_mj(set_back, with_it, 0, times[-1]) == expected


@pytest.mark.parametrize(
    ("start", "end"), [(0.0, 5.0), (-5.0, 0.5), (4.0, 5.0), (1.0, 1.0), (1.0, 0.5)]
)
def test_beyond_the_readings_and_backwards_there_is_no_energy(start: float, end: float) -> None:
    assert energy_mj([0, 0.5, 1], [1000.0] * 3, start, end) is None
    assert energy_mj([], [], 0, 1) is None


def test_a_meter_reads_the_modules_input_and_only_that(tmp_path: Path) -> None:
    meter = power.find(boards.agx_orin(tmp_path), interval_s=0.005)
    assert meter is not None
    assert meter.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    began = time.perf_counter()
    with meter:
        time.sleep(0.1)
        ended = time.perf_counter()
    mj = meter.energy_mj(began, ended)
    assert mj == pytest.approx((843 * 6170 + 780 * 3437 + 4968 * 953) / 1000 * (ended - began))
    facts = meter.facts()
    assert facts["source"] == "ina3221"
    assert facts["readings_per_s"] > 1
    assert 0 < facts["meter_share"] < 1


def test_a_sensor_that_fails_for_once_does_not_end_the_meter(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    current = next(tmp_path.rglob("curr1_input"))
    meter = power.find(tmp_path, interval_s=0.005)
    assert meter is not None
    with meter:
        began = time.perf_counter()
        time.sleep(0.03)
        current.write_text("")
        time.sleep(0.03)
        current.write_text("1000")
        time.sleep(0.03)
        ended = time.perf_counter()
    assert meter.energy_mj(began, ended) == pytest.approx(5000 * (ended - began))


def test_a_sensor_that_is_gone_leaves_no_energy(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    meter = power.find(tmp_path, interval_s=0.005)
    assert meter is not None
    next(tmp_path.rglob("curr1_input")).unlink()
    with meter:
        began = time.perf_counter()
        time.sleep(0.02)
    assert meter.energy_mj(began, time.perf_counter()) is None


LINE = (boards.DATA / "tegrastats.txt").read_text().splitlines()[7]


def test_without_sensors_in_sight_tegrastats_is_read(tmp_path: Path) -> None:
    boards.program(tmp_path, "tegrastats", f"while :; do echo '{LINE}'; sleep 0.01; done")
    meter = power.find(tmp_path, interval_s=0.01)
    assert meter is not None
    assert (meter.rails, meter.source) == (("VDD_IN",), "tegrastats")
    with meter:
        time.sleep(0.05)
        began = time.perf_counter()
        time.sleep(0.1)
        ended = time.perf_counter()
    assert meter.energy_mj(began, ended) == pytest.approx(4556 * (ended - began))


@pytest.mark.parametrize("script", ["exit 1", "echo 'CPU [1%@2]'", "echo 'RAM 1/2MB VDD_X 5mW'"])
def test_a_tegrastats_that_tells_no_input_makes_no_meter(tmp_path: Path, script: str) -> None:
    boards.program(tmp_path, "tegrastats", script)
    assert power.find(tmp_path) is None


def test_where_there_is_nothing_to_read_there_is_no_meter(tmp_path: Path) -> None:
    assert power.find(tmp_path) is None
    boards.lay(tmp_path, boards.rail("1-0040", 1, "VDD_CORE", 1000, 1000))
    assert power.find(tmp_path) is None
