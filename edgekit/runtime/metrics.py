"""What a chain did while it served: exits, confidences and latencies, a JSON line per window.

A sample costs two numbers in two arrays. The rest is done when a window closes, in the call that
closes it: there is no thread that would wake beside an inference.
"""

import atexit
import fcntl
import json
import math
import os
import time
import weakref
from array import array
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import InputError
from edgekit.runtime.adapt import AdaptivePolicy
from edgekit.runtime.drift import DriftDetector
from edgekit.runtime.watcher import Watcher

if TYPE_CHECKING:
    from edgekit.runtime.chain import Chain

__all__ = ["Metrics"]


_open: "weakref.WeakSet[Metrics]" = weakref.WeakSet()
"""Those that may hold samples yet to be written; no reason to keep a chain that is dropped."""


@atexit.register
def _close_all() -> None:
    for metrics in list(_open):
        metrics.close()


class Metrics(Watcher):
    """Counts what a chain answers, and appends a line to a file for every window.

    A window closes with the sample that makes it `every_samples` long, or the first that ends
    `every_seconds` after it began; the next begins there. Nothing is written while no sample comes:
    `flush` and `close` write what there is, and so does the end of the process. `docs/reference.md`
    lists the keys of a line.

    Each line is one write at the end of the file, so several processes may share it. A line that
    cannot be written is counted, and the next that can says how many were lost; inference goes on.
    """

    def __init__(
        self,
        chain: "Chain",
        path: str | os.PathLike[str],
        *,
        every_samples: int = 1000,
        every_seconds: float = 60.0,
    ) -> None:
        """Begin to count, as `chain.metrics`.

        Raises InputError where the file cannot be opened, the window is no size above zero, or the
        chain's samples are counted already.
        """
        if not (every_samples >= 1 and every_seconds > 0):
            raise InputError(
                "a metrics window is at least 1 sample and more than 0 s; found "
                f"{every_samples} and {every_seconds}"
            )
        if chain.metrics is not None:
            raise InputError("the chain's samples are counted already: close chain.metrics first")
        self.path = Path(path).absolute()
        self._chain = chain
        self._most_samples = every_samples
        self._window_ns = every_seconds * 1e9
        self.lost_lines = 0
        try:
            os.close(self._open())
        except OSError as error:
            raise InputError(f"{path}: metrics cannot be written there: {error.strerror}") from None
        self._open_window(time.perf_counter_ns())
        _open.add(self)
        chain.watch(self)

    def add(self, depth: int, confidence: float, started_ns: int, ended_ns: int, stop: str) -> None:
        """Count a sample that left at exit `depth`. For the chain, which holds its lock here.

        Times are of `time.perf_counter_ns`.
        """
        exit = self._exits[depth]
        exit.confidences.append(confidence)
        exit.latencies_ns.append(ended_ns - started_ns)
        self._samples += 1
        if stop == "deadline":
            self._deadline_stops += 1
        if self._samples >= self._most_samples or ended_ns >= self._due_ns:
            # Of a batch, one that comes later may have left earlier.
            self._close_window(max(ended_ns, self._began_ns))

    def flush(self) -> None:
        """Close the window now, if it holds a sample."""
        with self._chain.lock:
            self._flush()

    def close(self) -> None:
        """Write what there is and count no further. Closing again does nothing."""
        _open.discard(self)
        with self._chain.lock:
            self._chain.unwatch(self)
            self._flush()

    def __del__(self) -> None:
        # With the chain that it counts for; not where the constructor refused.
        if hasattr(self, "_exits"):
            self.close()

    def _flush(self) -> None:
        if self._samples:
            self._close_window(time.perf_counter_ns())

    def _open_window(self, now_ns: int) -> None:
        self._exits = [_Exit(one.exits[-1].name) for one in self._chain.spec.segments]
        self._samples = self._deadline_stops = 0
        self._began_ns, self._due_ns = now_ns, now_ns + self._window_ns

    def _close_window(self, now_ns: int) -> None:
        watchers = self._chain.watchers
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
            "bundle_id": self._chain.spec.bundle_id,
            "seconds": (now_ns - self._began_ns) / 1e9,
            "samples": self._samples,
            "deadline_stops": self._deadline_stops,
            "lost_lines": self.lost_lines,
            "place": next((one.place for one in watchers if isinstance(one, AdaptivePolicy)), None),
            "drifts": next((one.count for one in watchers if isinstance(one, DriftDetector)), None),
            "exits": [exit.summary() for exit in self._exits],
        }
        self._open_window(now_ns)
        try:
            self._append(json.dumps(line, allow_nan=False).encode("ascii") + b"\n")
        except OSError:
            self.lost_lines += 1
        else:
            self.lost_lines = 0

    def _append(self, line: bytes) -> None:
        """One write at the end of the file, as it stands now: it may have been moved or torn.

        Raises OSError where not all of the line was written.
        """
        file = self._open()
        try:
            # A line across two pages grows the file twice: without the lock, the half of another
            # process's line that is there would pass for one that was cut off.
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            # What a full disk cut off, here or in another process, ends where this line begins.
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(file, line) < len(line):
                raise OSError("cut off")
        finally:
            os.close(file)

    def _open(self) -> int:
        # A pipe that nobody reads is not waited for, here or in `write`.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self.path, flags, 0o644)


@dataclass(slots=True)
class _Exit:
    """What was seen at an exit: confidences and times in ns, as doubles and without Python's."""

    name: str
    confidences: "array[float]" = field(default_factory=lambda: array("d"))
    latencies_ns: "array[float]" = field(default_factory=lambda: array("d"))

    def summary(self) -> dict[str, Any]:
        confidences = np.frombuffer(self.confidences)
        # A NaN, which a network's overflow makes, would be the mean of all the others.
        finite = confidences[np.isfinite(confidences)]
        return {
            "name": self.name,
            "count": len(confidences),
            "not_finite": len(confidences) - len(finite),
            "confidence": _confidence(finite),
            "latency_ms": _latency(np.frombuffer(self.latencies_ns) / 1e6),
        }


def _confidence(values: npt.NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    ordered = np.sort(values)
    return {
        "mean": float(ordered.mean()),
        "min": float(ordered[0]),
        "p10": _percentile(ordered, 10),
        "p50": _percentile(ordered, 50),
    }


def _latency(values: npt.NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    ordered = np.sort(values)
    return {
        "mean": float(ordered.mean()),
        "p50": _percentile(ordered, 50),
        "p95": _percentile(ordered, 95),
        "max": float(ordered[-1]),
    }


def _percentile(ordered: npt.NDArray[np.float64], percent: int) -> float:
    """As `np.percentile`, for values in order: without its checks, for this is a caller's time."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    low, high = float(ordered[below]), float(ordered[math.ceil(place)])
    return low + (high - low) * (place - below)
