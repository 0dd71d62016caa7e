"""What a machine has of NVIDIA's, and what it lacks to run bundles on its GPU."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.runtime import jetson, tensorrt_api
from edgekit.runtime.engines import ENGINES
from edgekit.runtime.sysfs import ROOT

__all__ = ["Nvidia", "Python", "advice", "engines", "look", "refusal"]

CUDA_MODULES = ("cuda.bindings", "cuda.cudart", "pycuda")
"""Any of these gives Python buffers on the GPU."""

_PYTHON_OF = {"6": "3.10", "7": "3.12"}
"""The Python that a JetPack's modules are made for: that of its Ubuntu."""

_EXTRA_OF = {"6": "jetpack6", "7": "cuda13"}
"""What of edgekit's brings the Python of the CUDA that comes with a JetPack."""

_OLDEST = 36
"""The first release of Jetson Linux with TensorRT 10: JetPack 6."""

_DEVICES = ("nvmap", "nvhost-gpu", "nvgpu/igpu0/ctrl", "nvidiactl", "nvidia0", "nvidia-uvm")
"""What CUDA opens in /dev, by the kind of driver; not all are on any machine."""


@dataclass(frozen=True)
class Python:
    """This Python: "3.10", whether in a virtual environment, and which modules it can import.

    `modules` are of `CUDA_MODULES`, of what `tensorrt_api.installed` names, and `onnxruntime`'s
    package for GPUs.
    """

    version: str
    virtual: bool
    modules: tuple[str, ...]

    @classmethod
    def here(cls) -> "Python":
        """The one that runs; nothing is imported, but packages around the modules."""
        from edgekit.runtime.device import package_versions

        return cls(
            f"{sys.version_info.major}.{sys.version_info.minor}",
            sys.prefix != sys.base_prefix,
            (
                *tensorrt_api.installed(),
                *(name for name in CUDA_MODULES if _importable(name)),
                *package_versions(("onnxruntime-gpu",)),
            ),
        )


@dataclass(frozen=True)
class Nvidia:
    """A machine with a GPU of NVIDIA's: a Jetson, or one with a card and its driver.

    `gpus` are the cards that the driver lists, `system_tensorrt` says that the system's Python has
    TensorRT's module, `closed` names what this user may not open in /dev.
    """

    board: jetson.Jetson | None
    gpus: tuple[str, ...]
    driver: str | None
    python: Python
    system_tensorrt: bool
    closed: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """As plain data, for a report."""
        mode = self.board.power_mode if self.board is not None else None
        return {
            "board": self.board.model if self.board is not None else None,
            "jetson_linux": self.board.release if self.board is not None else None,
            "jetpack": self.board.jetpack if self.board is not None else None,
            "power_mode": mode.name if mode is not None else None,
            "gpus": list(self.gpus),
            "driver": self.driver,
            "python_modules": list(self.python.modules),
        }


def look(root: Path = ROOT, python: Python | None = None) -> Nvidia | None:
    """What there is under `root`, which stands for `/`, with this or another Python; or None."""
    board = jetson.find(root)
    cards = _cards(root)
    if board is None and not cards:
        return None
    devices = [root / "dev" / name for name in _DEVICES]
    return Nvidia(
        board,
        cards,
        _driver(root),
        python or Python.here(),
        any(root.glob("usr/lib/python3*/dist-packages/tensorrt/__init__.py")),
        tuple(
            f"/dev/{one.relative_to(root / 'dev')}"
            for one in devices
            if one.exists() and not os.access(one, os.R_OK | os.W_OK)
        ),
    )


def engines(found: Nvidia | None) -> list[str]:
    """The engines that run here, as far as Python has what they need; `found` is of `look`."""
    litert = ("ai_edge_litert", "tflite_runtime")
    here = {
        "onnxruntime": _importable("onnxruntime"),
        "litert": any(_importable(name) for name in litert),
    }
    if found is not None and refusal(found) is None:
        modules = set(found.python.modules)
        cuda = bool(modules & set(CUDA_MODULES))
        tensorrt = {tensorrt_api.FULL, tensorrt_api.RTX}
        here["onnxruntime-cuda"] = cuda and "onnxruntime-gpu" in modules
        here["tensorrt"] = cuda and bool(modules & tensorrt)
    return [name for name in ENGINES if here.get(name)]


def refusal(found: Nvidia) -> str | None:
    """Why edgekit does not use this machine's TensorRT, and the way out; None where it does."""
    board = found.board
    if board is None or board.release is None or int(board.release.split(".")[0]) >= _OLDEST:
        return None
    why = (
        f"edgekit needs TensorRT 10.3 and Python 3.10 or newer; JetPack {board.jetpack or '?'} has "
        "TensorRT 8 and Python 3.8 at most"
    )
    if "Orin" in board.model:
        return f"{why}: install JetPack 6, which this board runs"
    return (
        f"{why}, and JetPack 6 runs on Orin only: build for ONNX Runtime's CPU (edgekit targets), "
        "with a Python of 3.10 or newer installed beside, or give a segment's ONNX file, exported "
        "for an older opset, to this JetPack's trtexec"
    )


def advice(found: Nvidia) -> list[str]:
    """What would let bundles run on the GPU, each as `what for: what to do`; empty if all does."""
    if refusal(found) is not None:
        return []
    jetpack = (found.board.jetpack or "") if found.board is not None else ""
    major = jetpack.partition(".")[0]
    lines = []
    if found.closed:
        lines.append(
            f"open {', '.join(found.closed)}: sudo usermod -aG video,render $USER, then log in "
            "again; in a container, start it with --runtime nvidia"
        )
    lines += _for_tensorrt(found, major)
    if not set(CUDA_MODULES) & set(found.python.modules):
        extra = _EXTRA_OF.get(major, "cuda12")
        lines.append(f"use the GPU's memory from Python: pip install 'edgekit[{extra}]'")
    if "onnxruntime-gpu" not in found.python.modules:
        lines.append(
            "run the same files in ONNX Runtime on the GPU: "
            + (
                f"install an onnxruntime-gpu wheel that is made for JetPack {major or 'here'}"
                if found.board is not None
                else "pip install 'edgekit[onnxruntime-cuda]'"
            )
        )
    return lines


def _for_tensorrt(found: Nvidia, major: str) -> Sequence[str]:
    """What would let Python import TensorRT."""
    modules = found.python.modules
    if tensorrt_api.FULL in modules or (found.board is None and tensorrt_api.RTX in modules):
        return []
    if found.board is None:
        return ["use TensorRT: pip install 'tensorrt-cu12==10.*'"]
    wanted = _PYTHON_OF.get(major, found.python.version)
    venv = f"python{wanted} -m venv --system-site-packages FOLDER"
    lines = []
    if not found.system_tensorrt:
        lines.append("use TensorRT: sudo apt install python3-libnvinfer")
    if found.python.version != wanted:
        lines.append(
            f"see JetPack {major}'s TensorRT, made for Python {wanted}, from this Python "
            f"{found.python.version}: make the environment anew with {venv}"
        )
    elif found.python.virtual:
        lines.append(
            "see JetPack's TensorRT from this virtual environment: make it anew with " + venv
        )
    return lines


def _cards(root: Path) -> tuple[str, ...]:
    """The GPUs that the driver lists, by name."""
    found = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            named = re.search(r"^Model:\s*(\S.*)$", path.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if named is not None:
            found.append(named[1].strip())
    return tuple(found)


def _driver(root: Path) -> str | None:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s([0-9]+\.[0-9.]+)\s", text)
    return found and found[1]


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False  # The package around it is not there, or is another of that name.
