from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime import raspberrypi
from tests.runtime import boards

ANSWERS = {
    name: lines.splitlines()
    for name, _, lines in (
        one.partition("\n")
        for one in (boards.PI_DATA / "vcgencmd.txt").read_text().split("# ")[1:]
        if one.startswith("Raspberry Pi")
    )
}
REFUSALS = list(ANSWERS)[-3:]
SUPPLY = "low voltage, against which a power supply and a cable that hold 5 V under load help"


def found(root: Path) -> raspberrypi.RaspberryPi:
    pi = raspberrypi.find(root)
    assert pi is not None
    return pi


def looks(*bits: int, degrees: float = 50.0, source: str = "vcgencmd") -> list:
    return [raspberrypi.Snapshot({"cpu": degrees}, None, one, source) for one in bits]


def test_every_recorded_answer_is_read_and_no_error_is_taken_for_one() -> None:
    def first(parse, lines):
        return next((x for line in lines if (x := parse(line)) is not None), None)

    read = {
        name: (
            first(raspberrypi.parse_clock_mhz, lines),
            first(raspberrypi.parse_temperature_c, lines),
            first(raspberrypi.parse_throttled, lines),
        )
        for name, lines in ANSWERS.items()
    }
    assert read == {
        "Raspberry Pi 3 Model B Plus, Raspbian 9": (1400.0, 62.3, 0),
        "Raspberry Pi 3 Model B, Raspbian 8, at a weak power supply": (None, 38.6, 0x50005),
        "Raspberry Pi 4 Model B, hot": (1677.427712, 82.7, 0xE0008),
        "Raspberry Pi 4 Model B Rev 1.5, Debian 11, hot": (None, None, 0x80008),
        "Raspberry Pi 4 Model B, hot before": (None, None, 0xE0000),
        "Raspberry Pi 5 Model B Rev 1.0, Debian 12": (None, None, 0),
        "Raspberry Pi 5, hot": (2256.007936, 82.9, None),
        **dict.fromkeys(REFUSALS, (None, None, None)),
    }


@given(st.text(max_size=40))
def test_no_text_makes_a_parser_raise(text: str) -> None:
    for start in ("", "throttled=0x", "temp=", "frequency(48)="):
        raspberrypi.parse_throttled(start + text)
        raspberrypi.parse_temperature_c(start + text)
        raspberrypi.parse_clock_mhz(start + text)


def test_a_clock_that_is_off_is_none_of_0_mhz() -> None:
    assert raspberrypi.parse_clock_mhz("frequency(0)=0") is None


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ((0, 0x1), [SUPPLY]),  # Now, at a single look, and no longer remembered.
        ((0, 0x10000), [SUPPLY]),  # Between two looks.
        (
            (0, 0x80008, 0x80000),
            ["soft temperature limit, by heat, against which a heat sink or a fan helps"],
        ),
        (
            (0, 0x60000),
            ["clock capped, throttled, by heat, against which a heat sink or a fan helps"],
        ),
        (
            (0, 0x50005),
            [
                SUPPLY,
                "throttled, by that, or by heat, against which a heat sink or a fan helps",
            ],
        ),
        ((0xF0000, 0xF0002), [
            "clock capped, by heat, against which a heat sink or a fan helps"
        ]),
    ],
)  # fmt: skip
def test_what_the_firmware_says_of_a_run_makes_it_throttled(bits, words) -> None:
    assert raspberrypi.throttling(looks(*bits)) == words


def test_what_happened_before_the_run_is_none_of_it() -> None:
    assert raspberrypi.throttling(looks(0xF0000, 0xF0000)) == []


@given(st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=5))
def test_a_run_is_throttled_just_where_a_bit_is_set_now_or_has_come_since_the_first_look(
    bits: list[int],
) -> None:
    expected = any(one & 0xF or (one & ~bits[0]) & 0xF0000 for one in bits)
    assert bool(raspberrypi.throttling(looks(*bits))) is expected


def test_heat_tells_where_the_firmware_cannot_be_asked() -> None:
    for source, bits in ((None, None), ("hwmon", 0)):
        (words,) = raspberrypi.throttling(looks(bits, degrees=83.7, source=source))  # type: ignore[arg-type]
        assert words.startswith("heat (84 degrees; from 80 on the clock is lowered)")
    assert raspberrypi.throttling(looks(0, degrees=83.7)) == []


def test_the_clock_is_what_the_firmware_says_not_what_was_wished_for(tmp_path: Path) -> None:
    pi = found(boards.raspberry_pi(tmp_path))
    assert pi.model == "Raspberry Pi 4 Model B Rev 1.5"
    look = pi.snapshot()
    assert look.clock == (1500.398464, 600, 1800, None)
    assert (look.temperatures_c, look.bits, look.source) == ({"cpu": 48.312}, 0, "vcgencmd")


def test_without_a_thermal_zone_the_firmware_tells_the_temperature(tmp_path: Path) -> None:
    boards.raspberry_pi(tmp_path)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").unlink()
    assert found(tmp_path).snapshot().temperatures_c == {"cpu": 48.3}


@pytest.mark.parametrize(
    ("text", "bits"), [("80008", 0x80008), ("0", 0), ("50005", 0x50005), ("", None)]
)
def test_without_vcgencmd_the_kernel_tells_the_bits(
    tmp_path: Path, text: str, bits: int | None
) -> None:
    boards.raspberry_pi(tmp_path)
    (tmp_path / "usr/bin/vcgencmd").unlink()
    boards.lay(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": text})
    look = found(tmp_path).snapshot()
    assert (look.bits, look.source) == (bits, None if bits is None else "sysfs")
    assert look.clock is not None
    assert look.clock.mhz == 1800


@pytest.mark.parametrize("alarm", [0, 1])
def test_a_kernel_that_knows_of_low_voltage_alone_is_asked_last(tmp_path: Path, alarm: int) -> None:
    boards.raspberry_pi(tmp_path)
    (tmp_path / "usr/bin/vcgencmd").unlink()
    hwmon = "sys/class/hwmon/hwmon{}/{}".format
    boards.lay(
        tmp_path,
        {
            hwmon(0, "name"): "cpu_thermal",
            hwmon(0, "in0_lcrit_alarm"): 1,
            hwmon(1, "name"): "rpi_volt",
            hwmon(1, "in0_lcrit_alarm"): alarm,
        },
    )
    look = found(tmp_path).snapshot()
    assert (look.bits, look.source) == (alarm, "hwmon")
    assert raspberrypi.throttling([look]) == [SUPPLY] * alarm


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("device", [True, False])
def test_a_vcgencmd_that_refuses_is_told_with_the_way_to_an_answer(
    tmp_path: Path, name: str, device: bool
) -> None:
    boards.raspberry_pi(tmp_path)
    (tmp_path / "answer").write_text("\n".join(ANSWERS[name]))
    boards.program(tmp_path, "vcgencmd", f"cat {tmp_path}/answer; exit 255")
    if device:
        boards.lay(tmp_path, {"dev/vcio": ""})
    pi = found(tmp_path)
    assert (pi.vcgencmd, pi.refused) == (None, ANSWERS[name][0])
    look = pi.snapshot()
    assert (look.bits, look.source) == (None, None)
    met = pi.conditions([look, look])
    assert (met["throttled"], met["throttled_bits"]["before"]) == ([], None)
    way = "sudo usermod -aG video $USER" if device else "start Raspberry Pi's own kernel"
    assert any(way in note for note in met["notes"])
    assert any(way in line for line in raspberrypi.advice(pi, look, "aarch64", 64))


def test_a_vcgencmd_that_hangs_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raspberrypi, "_MOST_SECONDS", 0.05)
    boards.raspberry_pi(tmp_path)
    boards.program(tmp_path, "vcgencmd", f"echo asked >> {tmp_path}/log; exec sleep 60")
    pi = found(tmp_path)
    pi.snapshot()
    pi.snapshot()
    assert len((tmp_path / "log").read_text().splitlines()) <= 1


def test_conditions_say_what_was_met_and_how_to_do_better(tmp_path: Path) -> None:
    boards.raspberry_pi(tmp_path, throttled="0x50000", governor="ondemand")
    pi = found(tmp_path)
    first = pi.snapshot()
    boards.lay(tmp_path, {"firmware/throttled": "0xd0008"})
    met = pi.conditions([first, pi.snapshot()])
    assert met["board"] == "Raspberry Pi 4 Model B Rev 1.5"
    assert met["governor"] == "ondemand"
    assert met["temperatures_c"] == {"before": {"cpu": 48.312}, "after": {"cpu": 48.312}}
    assert met["clocks"]["after"]["cpu"]["mhz"] == 1500.398464
    assert met["throttled_bits"] == {
        **{"before": "0x50000", "after": "0xd0008", "source": "vcgencmd"}
    }
    assert met["throttled"] == [
        "soft temperature limit, by heat, against which a heat sink or a fan helps"
    ]
    governor, before = met["notes"]
    assert governor.startswith("the clock follows the load (governor ondemand); echo performance |")
    assert before.startswith("since boot, before this run: low voltage and throttled")


def test_a_board_that_is_well_gets_no_advice(tmp_path: Path) -> None:
    pi = found(boards.raspberry_pi(tmp_path))
    assert raspberrypi.advice(pi, pi.snapshot(), "aarch64", 64) == []
    assert pi.conditions([pi.snapshot()])["notes"] == []


@pytest.mark.parametrize(
    ("machine", "bits", "words"),
    [
        ("armv7l", 32, "write the 64-bit Raspberry Pi OS to its card; this Python is 32-bit on ar"),
        ("aarch64", 32, "write the 64-bit Raspberry Pi OS to its card; this Python is 32-bit on a"),
        ("armv6l", 32, "take a board with a 64-bit processor"),
    ],
)
def test_a_32_bit_system_is_told_that_no_engine_runs_on_it(
    tmp_path: Path, machine: str, bits: int, words: str
) -> None:
    pi = found(boards.raspberry_pi(tmp_path))
    (line,) = raspberrypi.advice(pi, pi.snapshot(), machine, bits)
    assert words in line


@pytest.mark.parametrize(
    ("throttled", "words"),
    [
        ("0x50000", "end the low voltage that was seen since boot: a power supply and a cable"),
        ("0xe0000", "keep its clock up (clock capped, throttled, soft temperature limit since"),
    ],
)
def test_throttling_since_boot_is_told_with_what_mends_it(
    tmp_path: Path, throttled: str, words: str
) -> None:
    pi = found(boards.raspberry_pi(tmp_path, throttled=throttled))
    (line,) = raspberrypi.advice(pi, pi.snapshot(), "aarch64", 64)
    assert line.startswith(words)


@pytest.mark.parametrize(("alarm", "since"), [(0, None), (1, ["low voltage"])])
def test_a_voltage_that_is_well_now_is_not_called_well_since_boot(
    tmp_path: Path, alarm: int, since: list[str] | None
) -> None:
    boards.raspberry_pi(tmp_path)
    (tmp_path / "usr/bin/vcgencmd").unlink()
    volt = "sys/class/hwmon/hwmon1"
    boards.lay(tmp_path, {f"{volt}/name": "rpi_volt", f"{volt}/in0_lcrit_alarm": alarm})
    pi = found(tmp_path)
    assert pi.facts(pi.snapshot())["throttled_since_boot"] == since


def test_in_a_container_cpuinfo_tells_the_board(tmp_path: Path) -> None:
    cpuinfo = "processor\t: 0\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0"
    pi = found(boards.lay(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert pi.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert pi.snapshot() == raspberrypi.Snapshot({}, None, None, None)
    met = pi.conditions([pi.snapshot()])
    assert met["clocks"] == {"before": {}, "after": {}}
    assert "sudo apt install raspi-utils" in met["notes"][0]


def test_a_pc_and_a_jetson_are_no_raspberry_pi(tmp_path: Path) -> None:
    assert raspberrypi.find(tmp_path) is None
    assert raspberrypi.find(boards.orin_nano(tmp_path)) is None


def test_files_with_nonsense_are_left_out(tmp_path: Path) -> None:
    boards.raspberry_pi(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and "proc" not in path.parts:
            path.write_bytes(b"\xff\x00 nonsense " + b"9" * 5000)
    look = found(tmp_path).snapshot()
    assert look == raspberrypi.Snapshot({}, None, None, None)
