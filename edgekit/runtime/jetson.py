"""A Jetson as its own files tell it: board, release, power mode, rails, temperatures, clocks.

Read from sysfs, and from `nvpmodel` where its files are not there; nothing has to be installed or
to run. Those that parse take text and never raise; those that read take `root`, the folder that
stands for `/`, and leave out what is not there or cannot be read.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.bundle.manifest import GpuTarget
from edgekit.runtime import sysfs
from edgekit.runtime.sysfs import CAPPED, COLDEST_C, ROOT, Clock

__all__ = [
    "MOST_ROUND_SPREAD",
    "Jetson",
    "PowerMode",
    "Rail",
    "Snapshot",
    "Tegrastats",
    "find",
    "input_rails",
    "jetpack_of",
    "parse_nvpmodel",
    "parse_nvpmodel_conf",
    "parse_release",
    "parse_tegrastats",
    "rails",
    "throttling",
]

MOST_ROUND_SPREAD = 0.025
"""How far the rounds' speed-ups may lie apart on a Jetson, whose clocks can be held: what then
moves them is heat, or work beside."""

_JETPACK = {
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "35.6.2": "5.1.5",
    "36.2.0": "6.0 DP",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
"""The JetPack of a release of Jetson Linux (L4T), from https://developer.nvidia.com/embedded/jetpack-archive."""

_JETPACK_MAJOR = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
"""Of a revision that is newer than this table, only so much is sure."""

_INPUTS = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""The rails that are together what the module takes in, by what a board has.

One on Orin Nano, Orin NX, Xavier NX and TX2, one on Nano; on AGX Orin, AGX Thor and AGX Xavier the
sum. VDDQ_VDD2_1V8AO of AGX Orin is fed by VIN_SYS_5V0 and would count twice, and VIN of AGX Thor is
the carrier board's. From "Software-Based Power Consumption Modeling" in
https://docs.nvidia.com/jetson/archives/r36.4.3/DeveloperGuide/SD/PlatformPowerAndPerformance/JetsonOrinNanoSeriesJetsonOrinNxSeriesAndJetsonAgxOrinSeries.html
and the same chapter for the other boards.
"""

_MOST_SECONDS = 5
"""How long `nvpmodel` may take; it answers at once, or waits for somebody to be asked."""


class PowerMode(NamedTuple):
    """A power mode of `nvpmodel`: `limits` are the most Hz (GPU) or kHz (CPU) by the conf's name.

    A limit is None where the mode sets none: as fast as the part can go.
    """

    id: int
    name: str
    limits: dict[str, int | None]


@dataclass(frozen=True)
class Tegrastats:
    """A line of `tegrastats`: what it says at that moment, not the averages beside it.

    `cpu` has a pair per core, load in percent and clock in MHz, None for a core that is off;
    `gpu_load` is None where it tells none, `gpu_mhz` has a clock per cluster, as far as told.
    """

    ram_used_mb: int
    ram_total_mb: int
    cpu: tuple[tuple[int, int | None] | None, ...]
    gpu_load: int | None
    gpu_mhz: tuple[int, ...]
    temperatures_c: dict[str, float]
    rails_mw: dict[str, int]


class Rail(NamedTuple):
    """A power rail: its label, and the files that hold its voltage in mV and its current in mA."""

    name: str
    voltage: Path
    current: Path

    def read_mw(self) -> float:
        """Its power just now in mW. Raises OSError or ValueError where it cannot be read."""
        return int(self.voltage.read_bytes()) * int(self.current.read_bytes()) / 1000


@dataclass(frozen=True)
class Snapshot:
    """A moment: degrees by zone, clocks by `gpu` and `cpu`, over-current events since boot.

    `alerts` names the parts that the thermal framework throttles at this moment.
    """

    temperatures_c: dict[str, float]
    clocks: dict[str, Clock]
    events: dict[str, int]
    alerts: tuple[str, ...]


@dataclass(frozen=True)
class Jetson:
    """A board and its software; None for what its files do not tell.

    `release` is that of Jetson Linux, "36.4.3"; `jetpack` is "6.2", or "6" where only that is sure.
    `root` stands for `/`.
    """

    model: str
    release: str | None
    jetpack: str | None
    power_mode: PowerMode | None
    root: Path = ROOT

    most_round_spread = MOST_ROUND_SPREAD
    has_rails = True

    def snapshot(self) -> Snapshot:
        """Temperatures, clocks, events and alerts at this moment."""
        root = self.root
        limits = self.power_mode.limits if self.power_mode is not None else {}
        clocks = {"gpu": _gpu_clock(limits, root), "cpu": _cpu_clock(limits, root)}
        events = {
            counter.name.removesuffix("_event_cnt"): count
            for counter in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"))
            if (count := sysfs.number(counter)) is not None
        }
        # A fan is a cooling device, too, and so is a clock's governor, which no heat need have
        # moved.
        alerts = [
            (sysfs.text(device / "type") or "").strip()
            for device in sorted(root.glob("sys/class/thermal/cooling_device*"))
            if (sysfs.text(device / "type") or "").strip().endswith("-alert")
            and sysfs.number(device / "cur_state")
        ]
        return Snapshot(
            sysfs.temperatures_c(root),
            {name: clock for name, clock in clocks.items() if clock is not None},
            events,
            tuple(alerts),
        )

    def conditions(
        self, seen: Sequence[Snapshot], target: GpuTarget | None = None
    ) -> dict[str, Any]:
        """What a run met between the first and the last of these, as plain data for its report.

        `target` says which power modes the board may have.
        """
        power_modes = () if target is None else target.power_modes
        first, last = seen[0], seen[-1]
        mode = self.power_mode
        notes = [
            f"the {name.upper()}'s clock follows the load ({clock.least_mhz:.0f} to "
            f"{clock.most_mhz:.0f} MHz); sudo jetson_clocks holds it at the power mode's maximum"
            for name, clock in first.clocks.items()
            if clock.least_mhz < CAPPED * (clock.mode_mhz or clock.most_mhz)
        ]
        if mode is not None and power_modes and mode.name != power_modes[0]:
            notes.append(
                f"the power mode is {mode.name}; {power_modes[0]} gives more (nvpmodel -m)"
            )
        return {
            "board": self.model,
            "jetson_linux": self.release,
            "jetpack": self.jetpack,
            "power_mode": mode.name if mode is not None else None,
            "temperatures_c": {"before": first.temperatures_c, "after": last.temperatures_c},
            "clocks": {"before": sysfs.plain(first.clocks), "after": sysfs.plain(last.clocks)},
            "throttled": throttling(seen),
            "notes": notes,
        }


def parse_release(text: str) -> str | None:
    """The release of Jetson Linux, as "36.4.3", in the text of `/etc/nv_tegra_release`; or None."""
    found = re.search(r"R([0-9]{1,4}) \(release\), REVISION: ([0-9]{1,4}(?:\.[0-9]{1,4})*)", text)
    return found and f"{found[1]}.{found[2]}"


def jetpack_of(release: str) -> str | None:
    """The JetPack of a release of Jetson Linux, or its major version alone; None if unknown."""
    return _JETPACK.get(release) or _JETPACK_MAJOR.get(release.partition(".")[0])


def parse_tegrastats(line: str) -> Tegrastats | None:
    """A line of `tegrastats` as releases 32 to 39 write it; None where it is none.

    Fields that are missing or damaged are left out.
    """
    ram = re.search(r"(?<!\S)RAM ([0-9]{1,9})/([0-9]{1,9})MB", line)
    if ram is None:
        return None
    cores = re.search(r"(?<!\S)CPU \[([^\]]*)\]", line)
    gpu = re.search(
        r"(?<!\S)GR3D_FREQ (?:([0-9]{1,3})%)?(?:@\[?([0-9]{1,9}(?:,[0-9]{1,9})*)\]?)?(?!\S)", line
    )
    degrees = re.findall(r"(?<!\S)([A-Za-z]\w*)@(-?[0-9]{1,4}(?:\.[0-9]{1,9})?)C", line)
    # In mW from release 34 on, and without a unit before; the second figure is the mean so far.
    powers = re.findall(
        r"(?<!\S)(?!I?RAM |SWAP )([A-Z][A-Z0-9_]*) (-?[0-9]{1,9})"
        r"(?:mW(?:/-?[0-9]{1,9}mW)*|(?:/[0-9]{1,9})+)(?!\S)",
        line,
    )
    return Tegrastats(
        ram_used_mb=int(ram[1]),
        ram_total_mb=int(ram[2]),
        cpu=tuple(map(_core, cores[1].split(","))) if cores else (),
        gpu_load=int(gpu[1]) if gpu and gpu[1] else None,
        gpu_mhz=tuple(map(int, gpu[2].split(","))) if gpu and gpu[2] else (),
        temperatures_c={
            name: float(value)
            for name, value in degrees
            if float(value) > COLDEST_C and name != "PMIC"  # It has no sensor, and says 100 or 50.
        },
        rails_mw={name: int(value) for name, value in powers},
    )


def parse_nvpmodel(text: str) -> PowerMode | None:
    """The power mode in what `nvpmodel -q` prints, its limits untold; or None."""
    found = re.search(r"NV Power Mode: ?(\S[^\n]{0,99})\n\s*([0-9]{1,4})\s*$", text, re.MULTILINE)
    return found and PowerMode(int(found[2]), found[1].strip(), {})


def parse_nvpmodel_conf(text: str) -> tuple[dict[int, PowerMode], int | None]:
    """The power modes by their number in the text of `/etc/nvpmodel.conf`, and the default's."""
    modes: dict[int, PowerMode] = {}
    limits: dict[str, int | None]
    for line in text.splitlines():
        head = re.match(r"\s*<\s*(\w+)", line)
        if head is not None:
            limits = {}  # Whatever follows is no longer of the mode before.
            named = re.match(r"\s*<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=([^\s>]+)", line)
            if named is not None:
                modes[int(named[1])] = PowerMode(int(named[1]), named[2], limits)
            continue
        limit = re.match(r"\s*(\w+)\s+MAX_FREQ\s+(-?[0-9]{1,19})(?!\S)", line)
        if limit is not None:
            value = int(limit[2])
            limits[limit[1]] = value if 0 < value < 2**63 - 1 else None
    default = re.search(r"<\s*PM_CONFIG\s+DEFAULT=([0-9]{1,4})\s*>", text)
    return modes, int(default[1]) if default else None


def input_rails(names: Sequence[str]) -> tuple[str, ...] | None:
    """Those of a board's rails that make what the whole module takes in; None for other boards."""
    return next((wanted for wanted in _INPUTS if set(wanted) <= set(names)), None)


def find(root: Path = ROOT) -> Jetson | None:
    """The Jetson that this is, or None."""
    model = (sysfs.text(root / "proc/device-tree/model") or "").strip("\0 \n")
    release = parse_release(sysfs.text(root / "etc/nv_tegra_release") or "")
    if release is None and "Jetson" not in model:
        return None
    jetpack = jetpack_of(release) if release else None
    return Jetson(model, release, jetpack, _power_mode(root), root)


def rails(root: Path = ROOT) -> list[Rail]:
    """The power rails that the INA3221 sensors measure, those without a label left out."""
    found = []
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[1-3]_label")):
        name = (sysfs.text(label) or "").strip()
        channel = label.name[2]
        voltage, current = (label.with_name(f"{x}{channel}_input") for x in ("in", "curr"))
        # NC is a channel that is not connected.
        if name not in {"", "NC"} and voltage.exists() and current.exists():
            found.append(Rail(name, voltage, current))
    return found


def throttling(seen: Sequence[Snapshot]) -> list[str]:
    """How the board was throttled between the first and the last of these, each in words."""
    first, last = seen[0], seen[-1]
    found = [
        f"over-current or low voltage ({name}) {count - first.events.get(name, count)} times"
        for name, count in last.events.items()
        if count > first.events.get(name, count)
    ]
    found += sorted({f"heat ({alert})" for one in seen for alert in one.alerts})
    for name, before in first.clocks.items():
        most = before.mode_mhz or before.most_mhz
        lowest = min(one.clocks[name].most_mhz for one in seen if name in one.clocks)
        if lowest < CAPPED * most:
            found.append(f"the {name.upper()}'s clock held at {lowest:.0f} of {most:.0f} MHz")
    return found


def _core(text: str) -> tuple[int, int | None] | None:
    """The load in percent and the clock in MHz of a core; None where it is off."""
    found = re.fullmatch(r"([0-9]{1,3})%(?:@([0-9]{1,9}))?", text.strip())
    return found and (int(found[1]), int(found[2]) if found[2] else None)


def _power_mode(root: Path) -> PowerMode | None:
    """The mode that nvpmodel remembers, else the default one, else what `nvpmodel -q` says."""
    modes, default = parse_nvpmodel_conf(sysfs.text(root / "etc/nvpmodel.conf") or "")
    kept = re.search(r"pmode:([0-9]{1,4})", sysfs.text(root / "var/lib/nvpmodel/status") or "")
    active = int(kept[1]) if kept else default
    if active in modes:
        return modes[active]
    nvpmodel = sysfs.program("nvpmodel", root)
    if nvpmodel is None:
        return None
    try:
        ended = subprocess.run(
            [nvpmodel, "-q"],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MOST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_nvpmodel(ended.stdout)


def _gpu_clock(limits: dict[str, int | None], root: Path) -> Clock | None:
    # Named after its address and its chip up to Orin, after its cluster on Thor.
    known = re.compile(r".*\.(gpu|ga10b|gv11b|gp10b|gm20b)|gpu-gpc-0")
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        if not known.fullmatch(folder.name):
            continue
        hz = [sysfs.number(folder / f"{one}_freq") for one in ("cur", "min", "max")]
        steps = [
            int(x)
            for x in re.findall(r"[0-9]{1,19}", sysfs.text(folder / "available_frequencies") or "")
        ]
        mode_hz = limits.get("GPU")
        if mode_hz is not None:  # The clock has steps, of which the mode need not name one.
            mode_hz = max((one for one in steps if one <= mode_hz), default=mode_hz)
        return sysfs.clock(hz, mode_hz, 1e6)
    return None


def _cpu_clock(limits: dict[str, int | None], root: Path) -> Clock | None:
    allowed = [limit for name, limit in limits.items() if name.startswith("CPU")]
    # One cluster without a limit is enough for the fastest core to have none.
    mode_khz = None if None in allowed else max(filter(None, allowed), default=None)
    return sysfs.cpu_clock(root, mode_khz)
