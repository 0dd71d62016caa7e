from pathlib import Path

import pytest

from edgekit.runtime import sysfs
from tests.runtime import boards


def test_the_fastest_core_is_the_clock_and_one_that_is_off_is_none(tmp_path: Path) -> None:
    policy = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}_freq".format
    boards.lay(
        tmp_path,
        {
            **{policy(0, name): khz for name, khz in boards_clock(600, 1200, 1800).items()},
            **{policy(1, name): khz for name, khz in boards_clock(600, 2000, 2400).items()},
            policy(2, "cur"): "<unsupported>",
        },
    )
    assert sysfs.cpu_clock(tmp_path) == (2000, 600, 2400, None)
    assert sysfs.cpu_clock(tmp_path, 1_500_000) == (2000, 600, 2400, 1500)
    assert sysfs.cpu_clock(tmp_path / "nowhere") is None


def boards_clock(least: int, now: int, most: int) -> dict[str, int]:
    return {"min": least * 1000, "cur": now * 1000, "max": most * 1000}


@pytest.mark.parametrize(
    ("text", "value"),
    [("48312\n", 48312), (" -256000 ", -256000), ("", None), ("12 13", None), ("9" * 40, None)],
)
def test_a_file_holds_one_whole_number_or_none(
    tmp_path: Path, text: str, value: int | None
) -> None:
    (tmp_path / "temp").write_text(text)
    assert sysfs.number(tmp_path / "temp") == value
    assert sysfs.number(tmp_path) is None  # A folder cannot be read.


def test_a_sensor_that_is_off_gives_no_temperature(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone{}/{}".format
    boards.lay(
        tmp_path,
        {
            **{zone(0, "type"): "cpu-thermal", zone(0, "temp"): 48312},
            **{zone(1, "type"): "cv0-thermal", zone(1, "temp"): -256000},
            zone(2, "type"): "pmic",
        },
    )
    assert sysfs.temperatures_c(tmp_path) == {"cpu": 48.312}


def test_a_program_is_the_boards_own_not_one_of_the_users_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards.program(tmp_path / "mine", "vcgencmd", "true")
    monkeypatch.setenv("PATH", str(tmp_path / "mine/usr/bin"))
    assert sysfs.program("vcgencmd", tmp_path) is None
    boards.program(tmp_path, "vcgencmd", "true")
    assert sysfs.program("vcgencmd", tmp_path) == str(tmp_path / "usr/bin/vcgencmd")
