"""What this machine is: read from Python and /proc, with nothing to install."""

import importlib.metadata
import os
import platform
import re
import sys
import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import Requirements, Target
from edgekit.errors import DeviceError

__all__ = [
    "cores",
    "describe",
    "other_than_target",
    "package_versions",
    "pip_refuses",
    "threads_here",
    "unmet",
]

ENGINE_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "ai-edge-litert",
    "tflite-runtime",
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
    "cuda-bindings",
    "cuda-python",
)


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_here(wanted: int) -> int:
    """As many threads as a target wants, or as there are cores: more would wait for each other."""
    return min(wanted, cores())


def describe(*, gpu: bool = False) -> dict[str, Any]:
    """This machine as plain data: processor, memory, system, Python and packages.

    With `gpu` also the GPU that CUDA would use, None without one: to ask starts CUDA's driver.
    """
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": package_versions(("edgekit", "numpy", *ENGINE_PACKAGES)),
    }
    if gpu:
        from edgekit.runtime import cuda

        try:
            facts["gpu"] = asdict(cuda.find().gpu())
        except DeviceError:
            facts["gpu"] = None
    return facts


def other_than_target(
    target: Target, facts: dict[str, Any], engine: str | None = None
) -> str | None:
    """How the machine of `facts` (see `describe`) is not the target, in words; None where it is.

    Where a target names no machine and no board, every machine is one. `engine` is what runs the
    segments here, the target's own by default.
    """
    as_wanted = facts["machine"] == (target.machine or facts["machine"])
    here = [facts["machine"], facts["cpu"]]
    wanted = [target.machine, target.board]
    as_wanted &= facts["cpu"].startswith(target.board or "")
    if target.gpu is not None:
        gpu = facts.get("gpu")
        wanted.append(f"a GPU of compute capability {target.gpu.compute_capability}")
        here.append(
            f"{gpu['name']} of compute capability {gpu['compute_capability']}"
            if gpu
            else "no GPU that CUDA can use"
        )
        capability = gpu["compute_capability"] if gpu else None
        as_wanted &= capability == target.gpu.compute_capability
    if engine not in {None, target.engine}:
        wanted.append(target.engine)
        here.append(f"in {engine}")
        as_wanted = False
    if as_wanted:
        return None
    found = ", ".join(here)
    return f"built for {target.name} ({', '.join(filter(None, wanted))}); this is {found}"


def unmet(requirements: Requirements, facts: dict[str, Any]) -> list[str]:
    """What a bundle wants and the machine of `facts` (see `describe`) has not, each in words.

    Looks at Python, edgekit, numpy and the engine. A package may have any version that the bundle
    names for some Python: which of them is for this one, pip knows.
    """
    found = []
    minor = int(facts["python"].split(".")[1])
    bounds = dict(re.findall(r"(>=|<)3\.(\d+)", requirements.python))
    if not int(bounds.get(">=", 0)) <= minor < int(bounds.get("<", 1000)):
        found.append(f"Python {requirements.python}; this is {facts['python']}")
    wanted: dict[str, list[str]] = {}
    for line in requirements.packages:
        name, _, version = line.partition(" ;")[0].partition("==")
        wanted.setdefault(name, []).append(version)
    for name in ("edgekit", "numpy", *ENGINE_PACKAGES):
        here = facts["packages"].get(name, "not installed")
        if name in wanted and here not in wanted[name]:
            found.append(f"{name} {' or '.join(wanted[name])}; here it is {here}")
    return found


def pip_refuses() -> bool:
    """Whether pip installs nothing into this Python, for the system manages it (PEP 668)."""
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    return sys.prefix == sys.base_prefix and marker.exists()


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """The installed ones of these packages, with their versions; nothing is imported."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    """The processor's name. Boards name themselves in the device tree, PCs in cpuinfo."""
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text(errors="replace").strip("\0 \n")
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        key, _, value = line.partition(":")
        # "Model" is the board, where there is no device tree to be seen, as in a container.
        if key.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or platform.machine()
