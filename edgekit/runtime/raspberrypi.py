"""A Raspberry Pi as its firmware and its kernel tell it: throttling, temperature, clock, governor.

The firmware is asked through `vcgencmd`, which knows the clock as it is; the kernel's
`scaling_cur_freq` is what was wished for, also while the firmware holds the clock lower. Where
`vcgencmd` is missing or may not be used, sysfs tells what it can. Nothing here raises.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import GpuTarget
from edgekit.runtime import sysfs
from edgekit.runtime.sysfs import ROOT, Clock

__all__ = [
    "RaspberryPi",
    "Snapshot",
    "advice",
    "find",
    "parse_clock_mhz",
    "parse_temperature_c",
    "parse_throttled",
    "since_boot",
    "throttling",
]

MOST_ROUND_SPREAD = 0.10
"""How far the rounds' speed-ups may lie apart: as on a PC, for nothing was measured that asks for
less."""

_LOW_VOLTAGE = 1
_SLOWED = {2: "clock capped", 4: "throttled", 8: "soft temperature limit"}
"""The bits of `get_throttled` as they are now; 16 places above stands each as it was since boot.

From https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
"""

_NOW = 0xF
_SINCE_BOOT = 16

_HOT_C = 80.0
"""From here on a Raspberry Pi lowers its clock (a 3B+ from 60 on): of use only where the firmware
cannot be asked. https://www.raspberrypi.com/documentation/computers/config_txt.html#monitoring-core-temperature
"""

_MOST_SECONDS = 2
"""How long `vcgencmd` may take; it answers at once, or hangs on a firmware that does not."""

_SUPPLY = "a power supply and a cable that hold 5 V under load"
_COOLING = "a heat sink or a fan"
_GOVERNOR = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_VIDEO = "sudo usermod -aG video $USER, then log in again"
_DEVICE = "start Raspberry Pi's own kernel, or the container with --device /dev/vcio"
_PACKAGE = "sudo apt install raspi-utils (libraspberrypi-bin on older systems)"


@dataclass(frozen=True)
class Snapshot:
    """A moment: degrees by zone, the clock, and the bits of `get_throttled`.

    `source` says who told the bits: `vcgencmd`, `sysfs`, or `hwmon`, which knows of low voltage
    alone; with None there are none.
    """

    temperatures_c: dict[str, float]
    clock: Clock | None
    bits: int | None
    source: str | None


@dataclass(frozen=True)
class RaspberryPi:
    """A board: its model, and the governor of its clock where the kernel tells it.

    `vcgencmd` is the program, if there is one that answers; `refused` what it said instead of an
    answer. `root` stands for `/`.
    """

    model: str
    governor: str | None
    vcgencmd: str | None
    refused: str | None
    root: Path = ROOT

    most_round_spread = MOST_ROUND_SPREAD
    has_rails = False

    def snapshot(self) -> Snapshot:
        """Temperature, clock and throttling at this moment."""
        temperatures_c = sysfs.temperatures_c(self.root)
        if not temperatures_c and (degrees := parse_temperature_c(self._ask("measure_temp"))):
            temperatures_c = {"cpu": degrees}
        clock = sysfs.cpu_clock(self.root)
        mhz = parse_clock_mhz(self._ask("measure_clock", "arm"))
        if mhz is not None:
            clock = clock._replace(mhz=mhz) if clock is not None else Clock(mhz, mhz, mhz, None)
        return Snapshot(temperatures_c, clock, *self._throttled())

    def conditions(
        self, seen: Sequence[Snapshot], target: GpuTarget | None = None
    ) -> dict[str, Any]:
        """What a run met between the first and the last of these, as plain data for its report."""
        first, last = seen[0], seen[-1]
        notes = []
        if self.governor not in {None, "performance"}:
            notes.append(
                f"the clock follows the load (governor {self.governor}); {_GOVERNOR} holds it"
            )
        if first.source in {None, "hwmon"}:
            notes.append(
                f"nobody could be asked whether the clock was throttled; {self.way_to_ask()}"
            )
        elif before := since_boot(first.bits or 0):
            notes.append(
                f"since boot, before this run: {' and '.join(before)}; the firmware does not tell "
                "what happens again between two looks"
            )
        return {
            "board": self.model,
            "governor": self.governor,
            "temperatures_c": {"before": first.temperatures_c, "after": last.temperatures_c},
            "clocks": {"before": _clocks(first), "after": _clocks(last)},
            "throttled_bits": {
                "before": _hex(first.bits),
                "after": _hex(last.bits),
                "source": first.source,
            },
            "throttled": throttling(seen),
            "notes": notes,
        }

    def facts(self, seen: Snapshot) -> dict[str, Any]:
        """The board and a look at it as plain data, for a report."""
        # That the voltage is well at this moment says nothing of heat, nor of the time before.
        told = seen.bits is not None and (seen.source != "hwmon" or seen.bits)
        return {
            "board": self.model,
            "governor": self.governor,
            "temperatures_c": seen.temperatures_c,
            "clock_mhz": seen.clock and seen.clock.mhz,
            "throttled_bits": _hex(seen.bits),
            "throttled_since_boot": since_boot(seen.bits or 0) if told else None,
        }

    def way_to_ask(self) -> str:
        """How `vcgencmd` would come to answer."""
        if self.refused is None:
            return _PACKAGE
        devices = (self.root / "dev/vcio", self.root / "dev/vchiq")
        return _VIDEO if any(one.exists() for one in devices) else _DEVICE

    def _ask(self, *arguments: str) -> str:
        return "" if self.vcgencmd is None else _run(self.vcgencmd, *arguments)

    def _throttled(self) -> tuple[int | None, str | None]:
        """The bits, and who told them."""
        bits = parse_throttled(self._ask("get_throttled"))
        if bits is not None:
            return bits, "vcgencmd"
        # Of Raspberry Pi's own kernel alone; it warns in its log, once, that hwmon should be read.
        told = sysfs.text(self.root / "sys/devices/platform/soc/soc:firmware/get_throttled")
        bits = parse_throttled(f"throttled=0x{(told or '').strip()}")
        if bits is not None:
            return bits, "sysfs"
        for name in sorted(self.root.glob("sys/class/hwmon/hwmon*/name")):
            alarm = sysfs.number(name.with_name("in0_lcrit_alarm"))
            if (sysfs.text(name) or "").strip() == "rpi_volt" and alarm is not None:
                return _LOW_VOLTAGE if alarm else 0, "hwmon"
        return None, None


def parse_throttled(text: str) -> int | None:
    """The bits in what `vcgencmd get_throttled` prints, as "throttled=0x50005"; or None."""
    found = re.fullmatch(r"\s*throttled=0x([0-9a-fA-F]{1,8})\s*", text)
    return int(found[1], 16) if found else None


def parse_temperature_c(text: str) -> float | None:
    """The degrees Celsius in what `vcgencmd measure_temp` prints, as "temp=48.3'C"; or None."""
    found = re.fullmatch(r"\s*temp=(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)'C\s*", text)
    return float(found[1]) if found else None


def parse_clock_mhz(text: str) -> float | None:
    """The MHz in what `vcgencmd measure_clock arm` prints, as "frequency(48)=1500000000"; or None.

    0, which a part says that is off, is None.
    """
    found = re.fullmatch(r"\s*frequency\([0-9]{1,3}\)=([0-9]{1,12})\s*", text)
    return int(found[1]) / 1e6 or None if found else None


def since_boot(bits: int) -> list[str]:
    """What happened since boot, in words, by the bits of `get_throttled`."""
    return _words((bits | bits >> _SINCE_BOOT) & _NOW)


def throttling(seen: Sequence[Snapshot]) -> list[str]:
    """How the board was throttled between the first and the last of these, with the way out."""
    every = [one.bits for one in seen if one.bits is not None]
    met = 0
    for bits in every:
        # What is so now, and what has become so since the first look.
        met |= (bits | (bits & ~every[0]) >> _SINCE_BOOT) & _NOW
    found = []
    if met & _LOW_VOLTAGE:
        found.append(f"low voltage, against which {_SUPPLY} help")
    slowed = [word for bit, word in _SLOWED.items() if met & bit]
    if slowed:
        why = "by that, or by heat" if met & _LOW_VOLTAGE else "by heat"
        found.append(f"{', '.join(slowed)}, {why}, against which {_COOLING} helps")
    hottest = max((x for one in seen for x in one.temperatures_c.values()), default=0.0)
    if not slowed and hottest >= _HOT_C and any(one.source in {None, "hwmon"} for one in seen):
        found.append(
            f"heat ({hottest:.0f} degrees; from {_HOT_C:.0f} on the clock is lowered), against "
            f"which {_COOLING} helps"
        )
    return found


def advice(board: RaspberryPi, seen: Snapshot, machine: str, python_bits: int) -> list[str]:
    """What would let bundles run, and measure well, here: each as `what for: what to do`.

    `machine` is that of `uname -m`, `python_bits` the size of a pointer in this Python.
    """
    lines = []
    if python_bits < 64:
        # A 32-bit Raspberry Pi OS starts a 64-bit kernel on a board that has one.
        lines.append(
            "run an engine, which come for 64-bit systems only: "
            + (
                "take a board with a 64-bit processor (Raspberry Pi 3, 4, 5, Zero 2 W)"
                if machine == "armv6l"
                else f"write the 64-bit Raspberry Pi OS to its card; this Python is 32-bit on "
                f"{machine}"
            )
        )
    if board.governor not in {None, "performance"}:
        lines.append(
            f"hold the clock while you measure (its governor is {board.governor}): {_GOVERNOR}"
        )
    if seen.source in {None, "hwmon"}:
        lines.append(f"hear of throttling: {board.way_to_ask()}")
    bits = seen.bits or 0
    met = (bits | bits >> _SINCE_BOOT) & _NOW
    if met & _LOW_VOLTAGE:
        lines.append(f"end the low voltage that was seen since boot: {_SUPPLY}")
    elif met:
        lines.append(f"keep its clock up ({', '.join(_words(met))} since boot): {_COOLING}")
    return lines


def find(root: Path = ROOT) -> RaspberryPi | None:
    """The Raspberry Pi that this is, or None."""
    model = (sysfs.text(root / "proc/device-tree/model") or "").strip("\0 \n")
    if not model:  # As in a container.
        cpuinfo = sysfs.text(root / "proc/cpuinfo") or ""
        named = re.search(r"^Model\s*:\s*(\S.*)$", cpuinfo, re.MULTILINE)
        model = named[1].strip() if named else ""
    if not model.startswith("Raspberry Pi"):
        return None
    policy = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor = (sysfs.text(root / policy) or "").strip() or None
    vcgencmd, refused = sysfs.program("vcgencmd", root), None
    if vcgencmd is not None:
        # Once, so that one that hangs is not waited for at every look.
        said = _run(vcgencmd, "get_throttled")
        if parse_throttled(said) is None:
            vcgencmd, refused = None, said.partition("\n")[0].strip()
    return RaspberryPi(model, governor, vcgencmd, refused, root)


def _run(*command: str) -> str:
    """What a program prints; without its file, or where it takes too long, nothing."""
    try:
        ended = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_MOST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout


def _words(met: int) -> list[str]:
    return [
        *(["low voltage"] if met & _LOW_VOLTAGE else []),
        *(word for bit, word in _SLOWED.items() if met & bit),
    ]


def _clocks(seen: Snapshot) -> dict[str, Any]:
    return sysfs.plain({} if seen.clock is None else {"cpu": seen.clock})


def _hex(bits: int | None) -> str | None:
    return None if bits is None else f"{bits:#x}"
