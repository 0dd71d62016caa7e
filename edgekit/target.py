"""The target: a device as data."""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgekit.config import Strict, apply_overrides, parse, read_yaml
from edgekit.errors import RecipeError
from edgekit.shipped import shipped

__all__ = ["Target", "load_target", "target_names"]


class Target(Strict):
    """What is built for: the engine, its precision, and the limits of its format."""

    name: str
    description: str = ""
    engine: Literal["onnxruntime"]
    precision: Literal["fp32"]
    threads: int = Field(ge=1, le=1024)
    """Threads that one inference may use; all segments share them in turn."""
    opset: int = Field(ge=18, le=23)
    """The ONNX opset of the segments. PyTorch's exporter writes 18 at least."""


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
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise RecipeError(f"unknown target {name!r}; {hint} (or give a path to a .yaml file)")
        path = shipped("targets") / f"{name}.yaml"
    values = apply_overrides({"name": path.stem, **read_yaml(path)}, overrides or {})
    return parse(Target, values, f"target {path.stem}")
