from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime import jetson
from tests.runtime import boards

LINES = [
    line
    for line in (boards.DATA / "tegrastats.txt").read_text().splitlines()
    if not line.startswith("#")
]
AGX_ORIN, AGX_ORIN_5, ORIN_NANO, THOR, THOR_BUSY, XAVIER_NX, AGX_XAVIER, NANO = LINES


def parsed(line: str) -> jetson.Tegrastats:
    found = jetson.parse_tegrastats(line)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("line", "rails_mw"),
    [
        (AGX_ORIN, {"VDD_GPU_SOC": 3178, "VDD_CPU_CV": 794, "VIN_SYS_5V0": 4543}),
        (
            AGX_ORIN_5,
            {
                "VDD_GPU_SOC": 3150,
                "VDD_CPU_CV": 14312,
                "VIN_SYS_5V0": 4968,
                "VDDQ_VDD2_1V8AO": 1091,
            },
        ),
        (ORIN_NANO, {"VDD_IN": 4556, "VDD_CPU_GPU_CV": 483, "VDD_SOC": 1451}),
        (THOR, {"VDD_GPU": 1962, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780}),
        (
            THOR_BUSY,
            {"VDD_GPU": 37528, "VDD_CPU_SOC_MSS": 18961, "VIN_SYS_5V0": 18331, "VIN": 87426},
        ),
        (XAVIER_NX, {"VDD_IN": 4067, "VDD_CPU_GPU_CV": 738, "VDD_SOC": 1353}),
        (
            AGX_XAVIER,
            {"GPU": 0, "CPU": 311, "SOC": 932, "CV": 0, "VDDRQ": 621, "SYS5V": 1482},
        ),
        (NANO, {"POM_5V_IN": 2132, "POM_5V_GPU": 78, "POM_5V_CPU": 275}),
    ],
)
def test_the_power_now_is_read_of_every_board_not_the_mean(
    line: str, rails_mw: dict[str, int]
) -> None:
    # Memory, swap and IRAM stand there as figures with a slash, too.
    assert parsed(line).rails_mw == rails_mw


@pytest.mark.parametrize(
    ("line", "mw"),
    [(AGX_ORIN_5, 22430), (ORIN_NANO, 4556), (THOR, 13484), (AGX_XAVIER, 3346), (NANO, 2132)],
)
def test_no_rail_counts_twice_in_what_the_module_takes_in(line: str, mw: int) -> None:
    found = parsed(line).rails_mw
    names = jetson.input_rails(list(found))
    assert names is not None
    assert sum(found[name] for name in names) == mw


def test_the_rails_of_an_unknown_board_are_not_added_up() -> None:
    assert jetson.input_rails(["VDD_CORE", "VDD_MEM"]) is None


def test_loads_clocks_and_memory_are_those_of_the_line() -> None:
    found = parsed(XAVIER_NX)
    assert (found.ram_used_mb, found.ram_total_mb) == (4412, 7772)
    assert found.cpu[0] == (9, 1190)
    assert found.cpu[-1] == (8, 1267)
    assert (found.gpu_load, found.gpu_mhz) == (62, (306,))
    assert parsed(AGX_ORIN_5).gpu_mhz == (407, 407)
    assert (parsed(THOR).gpu_load, parsed(THOR).gpu_mhz) == (None, (314, 314, 314))
    assert (parsed(THOR_BUSY).gpu_load, parsed(THOR_BUSY).gpu_mhz) == (None, ())
    assert parsed(AGX_XAVIER).cpu == (*[(2, 1190)], *[(0, 1190)] * 3, *[None] * 4)


def test_a_sensor_that_is_off_or_none_is_no_temperature() -> None:
    off = ORIN_NANO.replace("gpu@48.625C", "gpu@-256C")
    assert "gpu" not in parsed(off).temperatures_c
    assert parsed(off).temperatures_c["cpu"] == 47.687
    # PMIC has no sensor and always says the same.
    assert parsed(XAVIER_NX).temperatures_c == {
        **{"AO": 41.5, "GPU": 43.0, "AUX": 41.5, "CPU": 43.5, "thermal": 42.55}
    }


def test_a_rail_of_no_current_may_be_a_little_below_zero() -> None:
    assert parsed(THOR.replace("VDD_GPU 1962mW", "VDD_GPU -392mW")).rails_mw["VDD_GPU"] == -392


@pytest.mark.parametrize("line", ["", "tegrastats: command not found", "RAM", "CPU [1%@2]"])
def test_what_is_no_line_of_tegrastats_is_none(line: str) -> None:
    assert jetson.parse_tegrastats(line) is None


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_was_cut_gives_no_rail_another_value(line: str) -> None:
    whole = parsed(line).rails_mw
    for length in range(len(line)):
        found = jetson.parse_tegrastats(line[:length])
        # A mean may be cut, a reading never: without what follows it, it is none.
        assert found is None or found.rails_mw.items() <= whole.items()


@given(st.sampled_from(LINES), st.integers(0, 600), st.text(max_size=20))
def test_a_damaged_line_raises_nothing(line: str, place: int, put: str) -> None:
    jetson.parse_tegrastats(line[:place] + put + line[place + len(put) :])


@given(st.text(max_size=300))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    jetson.parse_tegrastats(f"RAM 1/2MB CPU [{text}] {text}")
    jetson.parse_nvpmodel(f"NV Power Mode: {text}")
    jetson.parse_nvpmodel_conf(f"< POWER_MODEL ID=0 NAME={text}\nGPU MAX_FREQ {text}")
    jetson.parse_release(f"# R36 (release), REVISION: {text}")
    jetson.jetpack_of(text)


@pytest.mark.parametrize(
    ("version", "jetpack"),
    [("36.4.7", "6.2.1"), ("36.4.3", "6.2"), ("38.4.0", "7.1"), ("38.2.0", "7.0")],
)
def test_a_release_is_read_and_its_jetpack_known(version: str, jetpack: str) -> None:
    # The line says "REVISION: 4.0" of 38.4.0.
    assert jetson.parse_release(boards.release(version)) == version
    assert jetson.jetpack_of(version) == jetpack


def test_of_a_newer_release_only_the_major_version_is_said() -> None:
    assert jetson.jetpack_of("36.9.1") == "6"
    assert jetson.jetpack_of("99.1.0") is None


def test_the_power_mode_is_found_in_what_nvpmodel_prints() -> None:
    text = (boards.DATA / "nvpmodel.txt").read_text()
    assert jetson.parse_nvpmodel(text) == (2, "MODE_15W_6CORE", {})
    assert jetson.parse_nvpmodel("NV Power Mode: MAXN\n0\n") == (0, "MAXN", {})
    assert jetson.parse_nvpmodel("NV Power Mode: MAXN") is None


def test_the_power_modes_are_those_of_the_conf_with_their_own_limits() -> None:
    modes, default = jetson.parse_nvpmodel_conf((boards.DATA / "nvpmodel.conf").read_text())
    assert default == 1
    assert {one.id: one.name for one in modes.values()} == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
    assert modes[0].limits == {"CPU_A78_0": 1497600, "GPU": 612000000, "EMC": 2133000000}
    assert modes[2].limits == {"CPU_A78_0": None, "GPU": None}


def test_a_board_is_found_with_its_jetpack_and_the_mode_that_is_active(tmp_path: Path) -> None:
    found = jetson.find(boards.orin_nano(tmp_path, mode=0))
    assert found is not None
    assert found.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (found.release, found.jetpack) == ("36.4.3", "6.2")
    assert found.power_mode is not None
    assert found.power_mode.name == "15W"


def test_without_its_status_the_default_mode_is_the_active_one(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    found = jetson.find(tmp_path)
    assert found is not None
    assert found.power_mode is not None
    assert found.power_mode.name == "25W"


def test_without_files_nvpmodel_is_asked(tmp_path: Path) -> None:
    boards.agx_orin(tmp_path)
    boards.program(tmp_path, "nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    found = jetson.find(tmp_path)
    assert found is not None
    assert found.power_mode == (0, "MAXN", {})


def test_an_nvpmodel_that_fails_leaves_the_mode_unknown(tmp_path: Path) -> None:
    boards.agx_orin(tmp_path)
    boards.program(tmp_path, "nvpmodel", "echo 'not as this user' >&2; exit 1")
    found = jetson.find(tmp_path)
    assert found is not None
    assert found.power_mode is None


def test_a_pc_and_a_raspberry_pi_are_no_jetson(tmp_path: Path) -> None:
    assert jetson.find(tmp_path) is None
    boards.lay(tmp_path, {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    assert jetson.find(tmp_path) is None


def test_rails_are_those_that_are_connected(tmp_path: Path) -> None:
    found = jetson.rails(boards.agx_orin(tmp_path))
    assert {rail.name: round(rail.read_mw()) for rail in found} == {
        "VDD_GPU_SOC": 5201,
        "VDD_CPU_CV": 2681,
        "VIN_SYS_5V0": 4735,
        "VDDQ_VDD2_1V8AO": 614,
    }


def taken(root: Path) -> jetson.Snapshot:
    found = jetson.find(root)
    assert found is not None
    return found.snapshot()


def test_a_snapshot_tells_temperatures_clocks_and_events(tmp_path: Path) -> None:
    found = taken(boards.orin_nano(tmp_path))
    assert found.temperatures_c == {"cpu": 47.687, "gpu": 48.625}
    assert found.clocks == {"gpu": (1020, 1020, 1020, None), "cpu": (1728, 1728, 1728, None)}
    assert found.events == {"oc1": 0, "oc2": 15, "oc3": 37}
    assert found.alerts == ()


def test_a_quiet_run_is_not_throttled_however_the_fan_turns(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    assert jetson.throttling([taken(tmp_path), taken(tmp_path)]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sys/class/hwmon/hwmon3/oc3_event_cnt": 40},
            "over-current or low voltage (oc3) 3 times",
        ),
        ({"sys/class/thermal/cooling_device1/cur_state": 1}, "heat (gpu-throttle-alert)"),
        (
            {"sys/class/devfreq/17000000.gpu/max_freq": 816000000},
            "the GPU's clock held at 816 of 1020 MHz",
        ),
    ],
)
def test_what_throttled_a_run_is_said_in_words(
    tmp_path: Path, changes: dict[str, str | int], words: str
) -> None:
    before = taken(boards.orin_nano(tmp_path))
    during = taken(boards.lay(tmp_path, changes))
    assert jetson.throttling([before, during]) == [words]


def test_heat_that_has_passed_before_the_end_is_not_forgotten(tmp_path: Path) -> None:
    before = taken(boards.orin_nano(tmp_path))
    hot = taken(boards.lay(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": 1}))
    after = taken(boards.lay(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": 0}))
    assert jetson.throttling([before, hot, after]) == ["heat (gpu-throttle-alert)"]


def test_a_clock_at_a_slower_power_modes_limit_is_not_throttled(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path, mode=0)
    clocks: dict[str, str | int] = {
        f"sys/class/devfreq/17000000.gpu/{one}_freq": 612000000 for one in boards.CPU
    }
    clocks |= {
        f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_{one}_freq": 1497600
        for n in range(6)
        for one in boards.CPU
    }
    found = taken(boards.lay(tmp_path, clocks))
    assert found.clocks == {"gpu": (612, 612, 612, 612), "cpu": (1497.6, 1497.6, 1497.6, 1497.6)}
    assert jetson.throttling([found, found]) == []


def test_a_clock_that_was_lowered_before_the_run_is_throttled_all_the_same(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path, mode=0)
    lowered = {"sys/class/devfreq/17000000.gpu/max_freq": 408000000}
    found = taken(boards.lay(tmp_path, lowered))
    assert jetson.throttling([found]) == ["the GPU's clock held at 408 of 612 MHz"]


def test_a_limit_between_two_steps_of_a_clock_is_the_lower_one(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path, mode=0)
    conf = tmp_path / "etc/nvpmodel.conf"
    conf.write_text(conf.read_text().replace("612000000", "700000000"))
    assert taken(tmp_path).clocks["gpu"].mode_mhz == 612


def test_clocks_that_follow_the_load_are_noted_with_the_way_to_hold_them(tmp_path: Path) -> None:
    board = jetson.find(boards.orin_nano(tmp_path))
    assert board is not None
    assert board.conditions([taken(tmp_path)])["notes"] == []
    boards.lay(tmp_path, {"sys/class/devfreq/17000000.gpu/min_freq": 306000000})
    (note,) = board.conditions([taken(tmp_path)])["notes"]
    assert note == (
        "the GPU's clock follows the load (306 to 1020 MHz); sudo jetson_clocks holds it at the "
        "power mode's maximum"
    )


def test_files_with_nonsense_are_left_out(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and "proc" not in path.parts:
            path.write_bytes(b"\xff\x00 nonsense " + b"9" * 5000)
    found = jetson.find(tmp_path)
    assert found is not None
    assert (found.release, found.power_mode) == (None, None)
    assert found.snapshot() == jetson.Snapshot({}, {}, {}, ())
