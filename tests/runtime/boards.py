"""Folders that stand for `/` of a board, laid from what boards have there."""

from collections.abc import Mapping
from pathlib import Path

DATA = Path(__file__).parent / "data/jetson"
PI_DATA = Path(__file__).parent / "data/raspberrypi"

RELEASES = {"36.4.7": 1, "36.4.3": 2, "38.4.0": 3, "38.2.0": 4}
"""Which line of the recorded ones is of a release of Jetson Linux."""


def lay(root: Path, files: Mapping[str, str | int]) -> Path:
    """Write these files under `root`; the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def program(root: Path, name: str, script: str) -> None:
    """A shell script where Jetson Linux has a program of that name."""
    path = root / "usr/bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def release(version: str) -> str:
    """The first line of a board's /etc/nv_tegra_release."""
    lines = (DATA / "nv_tegra_release.txt").read_text().splitlines()
    return lines[RELEASES[version]]


def rail(chip: str, channel: int, name: str, mv: int, ma: int) -> dict[str, str | int]:
    """The files of a channel of an INA3221."""
    folder = f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{chip[-1]}"
    return {
        f"{folder}/in{channel}_label": name,
        f"{folder}/in{channel}_input": mv,
        f"{folder}/curr{channel}_input": ma,
    }


def identity(model: str, version: str) -> dict[str, str | int]:
    """What tells the board and its release."""
    return {"proc/device-tree/model": f"{model}\0", "etc/nv_tegra_release": release(version)}


def orin_nano(root: Path, mode: int = 2) -> Path:
    """An Orin Nano Super, JetPack 6.2, its clocks held by jetson_clocks; VDD_IN draws 5 W."""
    gpu = "sys/class/devfreq/17000000.gpu"
    cpu = "sys/devices/system/cpu/cpu{}/cpufreq"
    files: dict[str, str | int] = {
        **identity("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3"),
        "etc/nvpmodel.conf": (DATA / "nvpmodel.conf").read_text(),
        "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet",
        **rail("1-0040", 1, "VDD_IN", 5000, 1000),
        **rail("1-0040", 2, "VDD_CPU_GPU_CV", 5000, 200),
        **rail("1-0040", 3, "VDD_SOC", 5000, 300),
        "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon0/in7_label": "sum of shunt voltages",
        f"{gpu}/available_frequencies": "306000000 408000000 510000000 612000000 714000000 "
        "816000000 918000000 1020000000",
        **{f"{gpu}/{one}_freq": 1020000000 for one in ("cur", "min", "max")},
        **{f"{cpu.format(n)}/scaling_{x}_freq": 1728000 for n in range(6) for x in CPU},
        "sys/class/devfreq/15340000.vic/cur_freq": 115200000,
    }
    for index, (name, degrees) in enumerate(
        {"cpu-thermal": 47687, "gpu-thermal": 48625, "cv0-thermal": -256000}.items()
    ):
        files[f"sys/class/thermal/thermal_zone{index}/type"] = name
        files[f"sys/class/thermal/thermal_zone{index}/temp"] = degrees
    for index, (name, state) in enumerate(
        {"pwm-fan": 3, "gpu-throttle-alert": 0, "devfreq-17000000.gpu": 1}.items()
    ):
        files[f"sys/class/thermal/cooling_device{index}/type"] = name
        files[f"sys/class/thermal/cooling_device{index}/cur_state"] = state
    for number, count in ((1, 0), (2, 15), (3, 37)):
        files[f"sys/class/hwmon/hwmon3/oc{number}_event_cnt"] = count
    return lay(root, files)


CPU = ("cur", "min", "max")


def agx_orin(root: Path) -> Path:
    """An AGX Orin, JetPack 6.2.1, with its two sensors of power."""
    return lay(
        root,
        {
            **identity("NVIDIA Jetson AGX Orin Developer Kit", "36.4.7"),
            **rail("1-0040", 1, "VDD_GPU_SOC", 843, 6170),
            **rail("1-0040", 2, "VDD_CPU_CV", 780, 3437),
            **rail("1-0040", 3, "VIN_SYS_5V0", 4968, 953),
            **rail("1-0041", 1, "NC", 0, 0),
            **rail("1-0041", 2, "VDDQ_VDD2_1V8AO", 1800, 341),
        },
    )


VCGENCMD = """case "$1" in
measure_clock) echo "frequency(48)=$(cat {root}/firmware/hz)" ;;
measure_temp) echo "temp=48.3'C" ;;
get_throttled) echo "throttled=$(cat {root}/firmware/throttled)" ;;
esac"""


def raspberry_pi(root: Path, *, throttled: str = "0x0", governor: str = "performance") -> Path:
    """A Raspberry Pi 4, whose clock the firmware holds at 1.5 of the 1.8 GHz that are wished for.

    The firmware's answers lie in `firmware/`, to be changed.
    """
    policy = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}"
    lay(
        root,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 48312,
            **{policy.format(n, "cur_freq"): 1800000 for n in range(4)},
            **{policy.format(n, "min_freq"): 600000 for n in range(4)},
            **{policy.format(n, "max_freq"): 1800000 for n in range(4)},
            **{policy.format(n, "governor"): governor for n in range(4)},
            "firmware/throttled": throttled,
            "firmware/hz": 1500398464,
        },
    )
    program(root, "vcgencmd", VCGENCMD.format(root=root))
    return root
