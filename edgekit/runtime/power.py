"""What a module draws, read in the background, and the energy between two moments."""

import select
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.runtime import jetson
from edgekit.runtime.sysfs import ROOT, program

__all__ = ["INTERVAL_S", "MOST_GAP_S", "PowerMeter", "energy_mj", "find"]

INTERVAL_S = 0.05
"""How often rails are read. A sensor of these boards takes a few milliseconds for a reading."""

MOST_GAP_S = 1.0
"""Across a longer time without a reading nobody knows the energy."""

_FIRST_LINE_S = 5.0
"""How long `tegrastats` may take to say its first line; it does once an interval."""


class _Source(Protocol):
    """Where readings come from: `rails` are summed, `name` stands in reports."""

    name: str
    rails: tuple[str, ...]

    def readings_mw(self, stopped: threading.Event) -> Iterator[float]:
        """A reading each interval, until `stopped` or until there are no more."""

    def stop(self) -> None:
        """Let a reading that is waited for come to its end."""

    def close(self) -> None:
        """Give back what it holds, once nobody reads."""


def energy_mj(
    times_s: Sequence[float], power_mw: Sequence[float], start_s: float, end_s: float
) -> float | None:
    """The energy from one moment to another in mJ, by the trapezoidal rule.

    `times_s` and `power_mw` are the readings, in any order of time: one that is not later than all
    before it, as after a clock was set back, is left out. Between readings, and at the two moments,
    power is interpolated; before the first and after the last it is theirs. None where there is a
    longer time than `MOST_GAP_S` without a reading, or no reading at all.
    """
    times, power = np.array(times_s, float), np.array(power_mw, float)
    if not len(times) or not start_s < end_s:
        return None
    later = np.ones(len(times), bool)
    later[1:] = times[1:] > np.maximum.accumulate(times)[:-1]
    times, power = times[later], power[later]
    first = max(int(np.searchsorted(times, start_s, "right")) - 1, 0)
    last = int(np.searchsorted(times, end_s, "left"))
    known = [*times[first : last + 1]]
    known = [min(start_s, known[0]), *known, max(end_s, known[-1])]
    if np.diff(known).max() > MOST_GAP_S:
        return None
    inside = (times > start_s) & (times < end_s)
    at = np.array([start_s, *times[inside], end_s])
    drawn: npt.NDArray[np.float64] = np.interp(at, times, power)
    return float(np.sum((drawn[1:] + drawn[:-1]) / 2 * np.diff(at)))


class PowerMeter:
    """Reads what the module draws, while the block that it opens runs, in a thread of its own.

    `rails` names what is summed, `source` where it was read. `find` makes one.
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._times_s: list[float] = []
        self._power_mw: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="edgekit-power", daemon=True)
        self._began_s = self._cpu_s = 0.0

    @property
    def rails(self) -> tuple[str, ...]:
        """The rails whose sum is what the module takes in."""
        return self._source.rails

    @property
    def source(self) -> str:
        """`ina3221` or `tegrastats`."""
        return self._source.name

    def __enter__(self) -> "PowerMeter":
        self._began_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._source.stop()
        self._thread.join()
        self._source.close()

    def energy_mj(self, start_s: float, end_s: float) -> float | None:
        """The energy between two moments of `time.perf_counter`; None where too little was read."""
        times_s = self._times_s[:]
        return energy_mj(times_s, self._power_mw[: len(times_s)], start_s, end_s)

    def facts(self) -> dict[str, Any]:
        """The rails, the source, how many readings a second, and the share of a core they took.

        As plain data, for a report. Of `tegrastats` the share is that of reading its lines.
        """
        seconds = time.perf_counter() - self._began_s
        return {
            "rails": list(self.rails),
            "source": self.source,
            "readings_per_s": len(self._times_s) / seconds,
            "meter_share": self._cpu_s / seconds,
        }

    def _read(self) -> None:
        for mw in self._source.readings_mw(self._stopped):
            self._power_mw.append(mw)
            self._times_s.append(time.perf_counter())
            self._cpu_s = time.thread_time()


def find(root: Path = ROOT, interval_s: float = INTERVAL_S) -> PowerMeter | None:
    """A meter for the module's input: from its sensors, else from `tegrastats`; None without both.

    None, too, where nobody knows which of the rails make up the module's input.
    """
    rails = jetson.rails(root)
    names = jetson.input_rails([rail.name for rail in rails])
    if names is not None:
        wanted = [next(rail for rail in rails if rail.name == name) for name in names]
        return PowerMeter(_Sensors(wanted, interval_s))
    tegrastats = program("tegrastats", root)
    if tegrastats is None:
        return None
    lines = _Lines(tegrastats, interval_s)
    if not lines.rails:
        lines.stop()
        lines.close()
        return None
    return PowerMeter(lines)


class _Sensors:
    """The INA3221 sensors, read through sysfs."""

    name = "ina3221"

    def __init__(self, rails: Sequence[jetson.Rail], interval_s: float) -> None:
        self.rails = tuple(rail.name for rail in rails)
        self._rails = rails
        self._interval_s = interval_s

    def readings_mw(self, stopped: threading.Event) -> Iterator[float]:
        while not stopped.is_set():
            began = time.perf_counter()
            try:
                mw = sum(rail.read_mw() for rail in self._rails)
            except (OSError, ValueError):
                pass  # A bus that was busy for once; a longer time without a reading is noticed.
            else:
                yield mw
            stopped.wait(max(0.0, self._interval_s - (time.perf_counter() - began)))

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """`tegrastats`, which writes a line each interval.

    There are no `rails` where its first line tells no input.
    """

    name = "tegrastats"

    def __init__(self, program: str, interval_s: float) -> None:
        self._process = subprocess.Popen(
            [program, "--interval", str(round(interval_s * 1000))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe)
        self._stdout = self._process.stdout
        ready, _, _ = select.select([self._stdout], [], [], _FIRST_LINE_S)
        first = self._parsed(self._stdout.readline()) if ready else {}
        self.rails = jetson.input_rails(list(first)) or ()

    def readings_mw(self, stopped: threading.Event) -> Iterator[float]:
        for line in self._stdout:
            if stopped.is_set():
                return
            found = self._parsed(line)
            if all(name in found for name in self.rails):
                yield float(sum(found[name] for name in self.rails))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_FIRST_LINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self._stdout.close()

    @staticmethod
    def _parsed(line: bytes) -> dict[str, int]:
        found = jetson.parse_tegrastats(line.decode(errors="replace"))
        return found.rails_mw if found is not None else {}
