"""What any Linux board tells in sysfs: temperatures, clocks, and where its programs lie.

Nothing here raises: what is not there, or cannot be read, is None or left out. `root` is the folder
that stands for `/`.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "CAPPED",
    "COLDEST_C",
    "ROOT",
    "Clock",
    "clock",
    "cpu_clock",
    "number",
    "plain",
    "program",
    "temperatures_c",
    "text",
]

ROOT = Path("/")

CAPPED = 0.99
"""A clock whose limit is below this share of what it may have was lowered by something else: the
steps between clocks are larger."""

COLDEST_C = -100
"""A sensor whose part is off says -256."""


class Clock(NamedTuple):
    """A clock in MHz: as it is, the least and the most that the kernel allows it just now.

    `mode_mhz` is the most in a Jetson's power mode, None where the mode sets no limit or there is
    no such mode.
    """

    mhz: float
    least_mhz: float
    most_mhz: float
    mode_mhz: float | None


def text(path: Path) -> str | None:
    """The text of a file; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The whole number in a file of sysfs; None where there is none, or the part is off."""
    found = re.fullmatch(r"\s*(-?[0-9]{1,19})\s*", text(path) or "")
    return int(found[1]) if found else None


def program(name: str, root: Path = ROOT) -> str | None:
    """Where a program of the board's own system lies, or None."""
    places = ("usr/sbin", "usr/bin", "usr/local/bin", "opt/vc/bin")
    return shutil.which(name, path=":".join(str(root / place) for place in places))


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone, `cpu` for `cpu-thermal`; sensors that are off left out."""
    found = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name, degrees = text(zone / "type"), number(zone / "temp")
        if name and degrees is not None and degrees / 1000 > COLDEST_C:
            found[name.strip().removesuffix("-thermal")] = degrees / 1000
    return found


def cpu_clock(root: Path = ROOT, mode_khz: int | None = None) -> Clock | None:
    """The clock of the fastest core: which one a program runs on, nobody knows."""
    found = []
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")):
        now, least, most = (number(folder / f"scaling_{x}_freq") for x in ("cur", "min", "max"))
        if now is not None and least is not None and most is not None:
            found.append((now, least, most))
    if not found:
        return None
    return clock([max(column) for column in zip(*found, strict=True)], mode_khz, 1e3)


def clock(now_least_most: Sequence[int | None], mode: int | None, unit: float) -> Clock | None:
    """A clock of figures of which `unit` make a MHz; None where one of the first three is."""
    now, least, most = now_least_most
    if now is None or least is None or most is None:
        return None
    return Clock(now / unit, least / unit, most / unit, mode / unit if mode is not None else None)


def plain(clocks: dict[str, Clock]) -> dict[str, Any]:
    """Clocks as plain data, for a report."""
    return {name: one._asdict() for name, one in clocks.items()}
