"""The target: a device as data."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import Field, field_validator, model_validator

from edgekit.config import Strict, apply_overrides, parse, read_yaml
from edgekit.errors import RecipeError
from edgekit.shipped import shipped

__all__ = ["Gpu", "Target", "load_target", "target_names"]

_OLD = (
    "{} has JetPack {} at most, whose TensorRT {} has no strongly typed networks, and Python {}, "
    "which edgekit's runtime does not run on; build for its processor instead: a target file with "
    "engine: onnxruntime, machine: aarch64 and a Python of 3.10 or newer beside JetPack's own, or "
    "use a Jetson Orin (--target jetson)"
)

_REFUSED = {
    "jetson-xavier": _OLD.format("Jetson Xavier", "5", "8.5", "3.8"),
    "jetson-agx-xavier": _OLD.format("Jetson AGX Xavier", "5", "8.5", "3.8"),
    "jetson-xavier-nx": _OLD.format("Jetson Xavier NX", "5", "8.5", "3.8"),
    "jetson-nano": _OLD.format("Jetson Nano (before Orin)", "4.6", "8.2", "3.6"),
    "jetson-tx2": _OLD.format("Jetson TX2", "4.6", "8.2", "3.6"),
}
"""Boards that people will ask for and that cannot be served, with the reason and the way out."""

_PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "int8", "int8-dynamic"),
    "tensorrt": ("fp32", "fp16", "int8"),
    "litert": ("fp32", "int8", "int8-dynamic", "int8-weights", "int16x8"),
}

_CAPABILITY = re.compile(r"[1-9]\d?\.\d")


class Gpu(Strict):
    """The NVIDIA GPU of a target, and what builds engines for it there."""

    compute_capability: str
    """As NVIDIA has it, "8.7" for one, in quotes."""
    proof_capability: str | None = None
    """The nearest that TensorRT-RTX compiles for on a machine without that GPU; None: it cannot."""
    tensorrt: str
    """The versions of TensorRT that the device may have, as pip reads them: ">=10.3,<11"."""
    builder: Literal["tensorrt", "torch2trt"] = "tensorrt"
    """What builds the engines: TensorRT's own API, or torch2trt where the device has it."""
    power_modes: tuple[str, ...] = ()
    """As `nvpmodel` names them there, the one with most power first."""

    @field_validator("compute_capability", "proof_capability")
    @classmethod
    def _capability_fits(cls, capability: str | None) -> str | None:
        if capability is not None and not _CAPABILITY.fullmatch(capability):
            raise ValueError(f'{capability!r} is no compute capability such as "8.7", in quotes')
        return capability

    @field_validator("tensorrt")
    @classmethod
    def _tensorrt_fits(cls, versions: str) -> str:
        try:
            found = SpecifierSet(versions)
        except InvalidSpecifier:
            raise ValueError(f'{versions!r} is no range of versions such as ">=10.3,<11"') from None
        if found.contains("8.6.2") or found.contains("9.3"):
            raise ValueError(
                f"{versions!r} takes in TensorRT before 10, which knows no strongly typed networks"
            )
        return versions


class Target(Strict):
    """What is built for: the device, its engine, the precision, and the limits of its format."""

    name: str
    description: str = ""
    engine: Literal["onnxruntime", "tensorrt", "litert"]
    precision: Literal["fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int16x8"]
    activations: Literal["int8", "uint8"] = "int8"
    """For `int8`: signed activations (S8S8), as aarch64 likes them, or unsigned (U8S8), as x86."""
    threads: int = Field(ge=1, le=1024)
    """Threads that one inference may use; all segments share them in turn."""
    opset: int = Field(default=20, ge=18, le=23)
    """The ONNX opset of the segments, for engines that read ONNX. PyTorch writes 18 at least."""
    ir_version: int | None = Field(default=None, ge=8, le=13)
    """The newest IR version of ONNX that the device's parser reads. Left out: any."""
    machine: str | None = None
    """As `uname -m` says it, `aarch64` for one. Left out: whatever machine builds."""
    board: str | None = None
    """How the device's name in its device tree begins, `Raspberry Pi 4` for one."""
    memory_bytes: int | None = Field(default=None, ge=2**20)
    """The memory of the smallest such device; a chain that does not fit is refused."""
    python: tuple[str, ...] = Field(default=("3.10", "3.11", "3.12", "3.13"), min_length=1)
    """The versions of Python that the device may have."""
    platforms: tuple[str, ...] = ()
    """The platform tags of the wheels that the device takes, best first, as pip reads them."""
    pins: str | None = None
    """Which of the lists of packages the device installs. Left out: the engine's own."""
    gpu: Gpu | None = None
    """What `engine: tensorrt` builds for, and it alone."""

    @field_validator("pins")
    @classmethod
    def _pins_fit(cls, pins: str | None) -> str | None:
        known = sorted(path.stem for path in shipped("targets").glob("*.txt"))
        if pins is not None and pins not in known:
            raise ValueError(f"{pins!r} is no list of packages; there are {', '.join(known)}")
        return pins

    @model_validator(mode="after")
    def _gpu_fits(self) -> "Target":
        if (self.engine == "tensorrt") != (self.gpu is not None):
            raise ValueError("engine: tensorrt needs gpu, and no other engine takes it")
        if self.precision not in _PRECISIONS[self.engine]:
            known = ", ".join(_PRECISIONS[self.engine])
            raise ValueError(f"engine: {self.engine} has no {self.precision}; it has {known}")
        return self

    @field_validator("python")
    @classmethod
    def _python_fits(cls, python: tuple[str, ...]) -> tuple[str, ...]:
        for version in python:
            # 3.10 without quotes is the number 3.1 to YAML.
            if not re.fullmatch(r"3\.\d\d", version):
                raise ValueError(f'{version!r} is no version such as "3.13", in quotes')
        return python

    @property
    def requires_python(self) -> str:
        """The versions of `python`, from the oldest to the newest, as a version specifier."""
        minors = [int(version.partition(".")[2]) for version in self.python]
        return f">=3.{min(minors)},<3.{max(minors) + 1}"


def target_names() -> list[str]:
    """The targets that come with edgekit."""
    return sorted(path.stem for path in shipped("targets").glob("*.yaml"))


def load_target(name: str, overrides: dict[str, Any] | None = None) -> Target:
    """The target called `name`, or the one in a YAML file of the user's if `name` is a path to it.

    Raises RecipeError for a name that is not known and for values that do not fit.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        known = target_names()
        if name in _REFUSED:
            raise RecipeError(f"target {name}: {_REFUSED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise RecipeError(f"unknown target {name!r}; {hint} (or give a path to a .yaml file)")
        path = shipped("targets") / f"{name}.yaml"
    values = apply_overrides({"name": path.stem, **read_yaml(path)}, overrides or {})
    return parse(Target, values, f"target {path.stem}")
