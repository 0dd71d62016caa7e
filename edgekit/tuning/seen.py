"""What every exit of a chain said of every sample of a split: all that a search needs to know.

It travels with a bundle, so that other thresholds can be fitted without a segment being run.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Left, Policy
from edgekit.errors import BundleError
from edgekit.runtime.criteria import Walk
from edgekit.tuning.search import Observed, between, taken

__all__ = ["Seen"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SHARES = (0.25, 0.5, 0.75)
"""Where the confidences of those that left at an exit are parted."""

_ENOUGH = 10_000
"""So many confidences tell where a quarter of them ends."""


@dataclass(frozen=True)
class Seen:
    """What a policy makes of all exits, for samples that were run to the end.

    `confidences` is float64 `[exits, samples]`. `classes` is int64 `[exits, samples]`: what is
    answered to a sample that leaves there. In the last row of both, to one that leaves nowhere
    early, which may be another exit's answer. `final` is the final exit's own, int64 `[samples]`.
    Classes are -1 where exits give no class scores. `labels` is int64 `[samples]`, or None.
    """

    confidences: Floats
    classes: Integers
    final: Integers
    labels: Integers | None

    @classmethod
    def of(
        cls,
        policy: Policy,
        logits: Sequence[Array],
        given: Sequence[Array],
        labels: Integers | None,
    ) -> "Seen":
        """By the logits `[samples, classes]` of every exit, and the confidences that they give."""
        walk = Walk(policy)
        answers = [walk.look(*pair) for pair in zip_longest(logits, given)]
        final = answers[-1].classes
        answers[-1] = walk.otherwise()
        confidences = np.array([one.confidences for one in answers])
        return cls(confidences, np.array([one.classes for one in answers]), final, labels)

    @classmethod
    def joined(cls, several: Sequence["Seen"], labels: Integers | None) -> "Seen":
        """Those of all samples; their labels are given anew."""
        return cls(
            np.concatenate([one.confidences for one in several], axis=1),
            np.concatenate([one.classes for one in several], axis=1),
            np.concatenate([one.final for one in several]),
            labels,
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "Seen":
        """What `to_bytes` gave. Raises BundleError for anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            labels = found.pop("labels", None)
            seen = cls(
                found.pop("confidences").astype(np.float64),
                found.pop("classes").astype(np.int64),
                found.pop("final").astype(np.int64),
                None if labels is None else labels.astype(np.int64),
            )
        except Exception:
            raise BundleError("the samples of tuning cannot be read; rebuild the bundle") from None
        shape = seen.confidences.shape
        alike = len(shape) == 2 and seen.classes.shape == shape and seen.final.shape == shape[1:]
        if found or not alike or (labels is not None and labels.shape != shape[1:]):
            raise BundleError("the samples of tuning do not fit together; rebuild the bundle")
        return seen

    def to_bytes(self) -> bytes:
        """As an `.npz` file, the same bytes for the same content."""
        stream = io.BytesIO()
        arrays: dict[str, Array] = {"confidences": self.confidences}
        for name, values in (
            ("classes", self.classes),
            ("final", self.final),
            ("labels", self.labels),
        ):
            if values is not None:
                arrays[name] = values.astype(np.int32)
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        return stream.getvalue()

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.final)

    @property
    def told(self) -> bool:
        """Whether the exits tell classes."""
        return bool((self.final >= 0).all())

    def right(self, by: str = "label") -> Bools:
        """Which answers count as right, bool `[exits, samples]`.

        By the `label`; as much by `disagreement` as is the final exit's; by `accuracy_loss`, all
        but those that are wrong where the final exit is right.
        """
        if by == "disagreement":
            return self.classes == self.final
        correct: Bools = self.classes == self.labels
        return correct if by == "label" else correct | (self.final != self.labels)

    def observed(self, by: str, costs: Floats) -> Observed:
        """For a search, where a sample costs as much as `costs` `[exits]` says of its exit."""
        return Observed(self.confidences[:-1], self.right(by), costs)

    def taken(self, thresholds: npt.ArrayLike) -> Integers:
        """The exit that each sample leaves at, int64 `[samples]`."""
        return taken(self.confidences[:-1], thresholds)

    def left(self, thresholds: npt.ArrayLike) -> tuple[Left, ...]:
        """Per exit, how many samples leave there, by quarters of their confidence."""
        exits = self.taken(thresholds)
        found = []
        for depth, row in enumerate(self.confidences):
            here = row[exits == depth]
            edges = _edges(here[np.isfinite(here)])
            bins = np.searchsorted(edges, here, side="right")
            counts = np.bincount(bins, minlength=len(edges) + 1)
            found.append(Left(tuple(edges.tolist()), tuple(counts.tolist())))
        return tuple(found)


def _edges(confidences: Floats) -> Floats:
    """Where confidences fall into about equal parts: between two of them, never on one."""
    some = confidences[:: max(1, len(confidences) // _ENOUGH)]
    levels, counts = np.unique(some, return_counts=True)
    if len(levels) < 2:
        return np.zeros(0)
    ends = np.searchsorted(np.cumsum(counts), np.array(_SHARES) * len(some))
    below = np.unique(ends[ends + 1 < len(levels)])
    return np.array([between(float(levels[k]), float(levels[k + 1])) for k in below])
