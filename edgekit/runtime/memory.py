"""What this process holds in memory, and what loading something adds to it.

No engine on a processor tells Python what its arenas hold: ONNX Runtime has the figure in C alone,
LiteRT counts none of what XNNPACK takes. So what a chain holds is read off the process: the pages
that it alone has written, before and after.
"""

import ctypes
import gc
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from edgekit.runtime import sysfs

__all__ = ["available_bytes", "give_back", "growth", "needed_bytes", "private_bytes", "resident"]

T = TypeVar("T")

_PROC = Path("/proc/self")


def resident(proc: Path = _PROC) -> tuple[int | None, int | None]:
    """Bytes of this process that lie in memory: now, and at most so far (VmRSS and VmHWM).

    None for what the kernel does not tell.
    """
    status = sysfs.text(proc / "status") or ""
    return _bytes(status, "VmRSS"), _bytes(status, "VmHWM")


def private_bytes(proc: Path = _PROC) -> int | None:
    """Bytes of the pages that this process alone has written, swapped out or not.

    A library's own pages are not among them: other processes share them, and the system can drop
    them. None where the kernel does not tell.
    """
    rollup = sysfs.text(proc / "smaps_rollup") or ""
    dirty, swapped = _bytes(rollup, "Private_Dirty"), _bytes(rollup, "Swap")
    return None if dirty is None else dirty + (swapped or 0)


def available_bytes(root: Path = sysfs.ROOT) -> int | None:
    """What a program may take now without another one being swapped out (MemAvailable)."""
    return _bytes(sysfs.text(root / "proc/meminfo") or "", "MemAvailable")


def needed_bytes(sizes: Iterable[int]) -> int:
    """What loading segments of these sizes takes at least, beside Python and the engine.

    Each file is read whole to be hashed, and stays; the engine makes a copy of its own.
    """
    return 2 * sum(sizes)


def growth(load: Callable[[], T]) -> tuple[T, int | None]:
    """What `load` gives, and by how many bytes the process's private memory has grown with it.

    What was freed meanwhile is given back to the system first, as far as the C library can, so that
    what stays is held. At least 0; None where the kernel does not tell.
    """
    give_back()
    before = private_bytes()
    found = load()
    give_back()
    after = private_bytes()
    return found, None if before is None or after is None else max(0, after - before)


def give_back() -> None:
    """Give the system what this process has freed, as far as the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # The GNU C library has it.
    if trim is not None:
        trim(0)


def _bytes(text: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s*([0-9]{{1,15}}) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
