"""TensorRT as Python has it here: the full one or TensorRT-RTX, whose interfaces are alike."""

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from edgekit.errors import DeviceError

__all__ = ["FULL", "RTX", "TensorRT", "find", "installed"]

FULL, RTX = "tensorrt", "tensorrt_rtx"
"""The two, by the names that stand in reports; the full one is taken where both are there."""

_MODULES = {FULL: "tensorrt", RTX: "tensorrt_rtx_bindings"}


class TensorRT(NamedTuple):
    """One of the two, imported: its module, its name and its version, and the log it writes to."""

    module: Any
    name: str
    version: str
    log: "Log"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def make(self, kind: str) -> Any:
        """A `Builder` or a `Runtime`. Raises DeviceError where CUDA does not start for it."""
        with self.log.listen() as said:
            try:
                return getattr(self.module, kind)(self.log)
            except TypeError:  # What its bindings make of a constructor that gives nothing.
                why = f": {said[0].partition(chr(10))[0].strip()}" if said else ""
                raise DeviceError(
                    f"{self} cannot use this machine's GPU{why}; is its CUDA the driver's "
                    "(nvidia-smi), and is memory left?"
                ) from None


class Log:
    """What TensorRT says, while somebody listens. A process has one: TensorRT keeps the first."""

    def __init__(self) -> None:
        self._heard: list[str] | None = None

    def said(self, text: str) -> None:
        """Take a warning or an error."""
        if self._heard is not None:
            self._heard.append(text)

    @contextmanager
    def listen(self) -> Iterator[list[str]]:
        """The list that errors and warnings go to until the end of the block, oldest first."""
        before, heard = self._heard, list[str]()
        self._heard = heard
        try:
            yield heard
        finally:
            self._heard = before


_found: dict[str, TensorRT] = {}

_REMEDIES = {
    FULL: "on a Jetson it comes with JetPack (sudo apt install python3-libnvinfer), and a virtual "
    "environment sees it with --system-site-packages; elsewhere pip install 'tensorrt-cu12==10.*', "
    "whose CUDA 12 a driver of CUDA 13 takes as well",
    RTX: "pip install 'edgekit[tensorrt-rtx]'",
}


def installed() -> list[str]:
    """Which of the two Python can import here, without importing it."""
    return [name for name, module in _MODULES.items() if importlib.util.find_spec(module)]


def find(names: Sequence[str] = (FULL, RTX)) -> TensorRT:
    """The first of these that is installed. Raises DeviceError that says how to install it."""
    reasons = []
    for name in names:
        if name in _found:
            return _found[name]
        if importlib.util.find_spec(_MODULES[name]) is None:
            continue
        try:
            module = importlib.import_module(_MODULES[name])
            # The stub that an index gives where there is no library for this machine has neither.
            found = TensorRT(module, name, str(module.__version__), _log_of(module))
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            reasons.append(f"{name}: {str(error).partition(chr(10))[0]}")
            continue
        _found[name] = found
        return found
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise DeviceError(f"{names[0]} is not installed{why}: {_REMEDIES[names[0]]}")


def _log_of(module: Any) -> Log:
    worst = int(module.ILogger.Severity.WARNING)

    class Listening(Log, module.ILogger):
        def __init__(self) -> None:
            Log.__init__(self)
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= worst:
                self.said(message)

    return Listening()
