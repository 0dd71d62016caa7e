"""A board that can be found, looked at while it runs, and judged by what was seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekit.bundle.manifest import GpuTarget
from edgekit.runtime import jetson, raspberrypi
from edgekit.runtime.sysfs import ROOT

__all__ = ["Board", "find"]


class Board(Protocol):
    """One kind of board; a module for each. What a look gives, only that module reads."""

    @property
    def most_round_spread(self) -> float:
        """How far the speed-ups of a bench's rounds may lie apart here, over their median."""

    @property
    def has_rails(self) -> bool:
        """Whether boards of this kind can tell what they draw."""

    def snapshot(self) -> Any:
        """A look at the board, now. Never raises."""

    def conditions(self, seen: Sequence[Any], target: GpuTarget | None = None) -> dict[str, Any]:
        """What a run met between the first and the last of these looks, as plain data.

        `target` is the GPU that the bundle is for. Of every kind of board: `board`,
        `temperatures_c` and `clocks`, each `before` and `after`; `throttled`, how it was, in words,
        with the way out; `notes`.
        """


def find(root: Path = ROOT) -> Board | None:
    """The board that this is, or None. `root` stands for `/`."""
    return jetson.find(root) or raspberrypi.find(root)
