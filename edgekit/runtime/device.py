"""What this machine is: read from Python and /proc, with nothing to install."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["describe", "package_versions"]

ENGINE_PACKAGES = ("onnxruntime", "ai-edge-litert", "tflite-runtime", "tensorrt")


def describe() -> dict[str, Any]:
    """This machine as plain data: processor, memory, system, Python and engine packages."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": package_versions(("numpy", *ENGINE_PACKAGES)),
    }


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
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
