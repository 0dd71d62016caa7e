"""What a bundle's page is made of, and the few numbers that several of its sections show."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reader import Bundle
from edgekit.report.words import count_text, macs_text, ms_text
from edgekit.tuning.seen import Seen

__all__ = ["BOUNDED", "Facts"]

Array = npt.NDArray[Any]

BOUNDED = frozenset({"max_prob", "margin", "entropy"})
"""Criteria whose confidence ends at 1, and lies near it for most samples."""


@dataclass(frozen=True)
class Facts:
    """A bundle and what is known of it.

    `evidence` is the bundle's; `bench` a report of `edgekit bench --json`, and `measured` says in
    words where it is from, where it is not of the build. `seen` is what every exit said of the
    tuning split. `samples` are the images of the test split that the bundle carries, one by one,
    `labels` their classes.
    """

    bundle: Bundle
    evidence: dict[str, Any]
    bench: dict[str, Any] | None = None
    measured: str = ""
    seen: Seen | None = None
    samples: Sequence[Array] = ()
    labels: Array | None = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return self.bundle.manifest

    @property
    def exits(self) -> tuple[str, ...]:
        """Names of the exits, in order of depth."""
        return self.manifest.variant().exits

    @property
    def told(self) -> bool:
        """Whether the exits tell classes."""
        return bool(self.manifest.labels)

    @property
    def unit(self) -> str:
        """What costs are counted in: `MACs`, `ms` or `mJ`."""
        return self.manifest.tuning.unit if self.manifest.tuning else "MACs"

    @property
    def axis(self) -> tuple[float, str]:
        """What costs are divided by beside an axis, and its name."""
        return (1e6, "million MACs") if self.unit == "MACs" else (1.0, self.unit)

    @functools.cached_property
    def work(self) -> list[int]:
        """MACs of a sample that leaves at each exit."""
        return [int(x) for x in np.cumsum([one.macs for one in self.manifest.variant().segments])]

    @functools.cached_property
    def costs(self) -> npt.NDArray[np.float64]:
        """What a sample costs that leaves at each exit, in `unit`."""
        tuning = self.manifest.tuning
        return np.array(tuning.costs if tuning else self.work, float)

    @property
    def tested(self) -> dict[str, Any]:
        """`exit_rates` by exit, and `accuracy` where there are labels, of the test split."""
        return self.notes("verify")

    @functools.cached_property
    def rates(self) -> list[float]:
        """The share that leaves at each exit, of the test split if there is one; else empty."""
        found = self.tested.get("exit_rates") or self.notes("tune").get("exit_rates")
        return [float(found.get(name, 0)) for name in self.exits] if found else []

    @property
    def where(self) -> str:
        """On which machine the bench was measured, and whether that is the target."""
        assert self.bench is not None  # noqa: S101  (asked by the caller)
        device = self.bench["device"]
        other = self.bench["other_device"]
        return (
            f"Measured {self.measured or 'at the end of the build'} with "
            f"{count_text(self.bench['samples'])} samples on {device['cpu']} "
            f"({device['machine']}), {self.bench['engine']}: "
            + ("the target." if self.bench["on_target"] else f"not the target, {other}.")
        )

    def notes(self, stage: str) -> dict[str, Any]:
        """What a stage noted; empty where it is not known."""
        for one in self.evidence.get("stages", []):
            if one["name"] == stage:
                return dict(one["notes"])
        return {}

    def priced(self, cost: float) -> str:
        """A cost with its unit."""
        return f"{macs_text(cost)} MACs" if self.unit == "MACs" else f"{ms_text(cost)} {self.unit}"
