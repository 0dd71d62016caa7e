"""What a bundle's page is made of, or a ladder's, and what several of its sections show."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.ladder import LadderDocument
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reader import Bundle
from edgekit.report.benches import policy_text
from edgekit.report.words import confidence_text, count_text, macs_text, ms_text
from edgekit.runtime.device import other_than_target
from edgekit.runtime.profile import Profile
from edgekit.tuning.seen import Seen

__all__ = ["BOUNDED", "Facts", "LadderFacts"]

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
        if self.unit != "MACs":
            return 1.0, self.unit
        return (1e6, "million MACs") if self.costs[-1] >= 1e6 else (1e3, "thousand MACs")

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

    @functools.cached_property
    def decisions(self) -> dict[str, Any] | None:
        """What was said of the samples that travel; None where that is not known of all of them.

        By exit, `exits` answered and the samples `left`, by class and by confidence.
        """
        found, data = self.evidence.get("decisions"), self.manifest.test_data
        if not isinstance(found, dict) or data is None:
            return None
        lists = [found.get(key) for key in ("exits", "left", "classes", "confidences")]
        if not all(isinstance(one, list) and len(one) == data.samples for one in lists):
            return None
        known = {*found["exits"], *found["left"]} <= {*self.exits}
        classes = {type(one) for one in found["classes"]} <= {int, type(None)}
        sure = {type(one) for one in found["confidences"]} <= {int, float, type(None)}
        within = all(one is None or one < len(self.manifest.labels) for one in found["classes"])
        return found if known and classes and sure and within else None

    @property
    def benched_as_deployed(self) -> bool:
        """Whether the bench was measured under the bundle's own policy."""
        assert self.bench is not None  # noqa: S101  (asked by the caller)
        own = json.loads(json.dumps(asdict(self.manifest.policy)))
        return bool(self.bench["policy"] == own)

    @functools.cached_property
    def ms(self) -> npt.NDArray[np.float64] | None:
        """How long a sample takes to each exit, as the bench has it, float64 `[exits]`.

        None where nothing was measured, and where the costs are times themselves.
        """
        if self.bench is None or self.unit == "ms":
            return None
        return np.array([one["cumulative_ms"]["mean"] for one in self.bench["exits"]], float)

    @property
    def tested_on(self) -> tuple[str, int | None]:
        """The split that `tested` is of, and how many samples; None where that is not noted.

        After `edgekit tune` those that travel, else the whole split that the build accepted.
        """
        splits = self.notes("load").get("samples", {})
        name = next((one for one in ("test", "tuning", "calibration") if one in splits), "test")
        count = splits.get(name)
        if "tuned_from" in self.evidence:
            count = None if self.decisions is None else len(self.decisions["left"])
        return f"{name} split", count

    @property
    def rated_on(self) -> tuple[str, int | None]:
        """The split that `rates` are of, and how many samples, as `tested_on`."""
        if self.tested.get("exit_rates"):
            return self.tested_on
        return "tuning split", self.notes("tune").get("samples")

    @property
    def other_policy(self) -> str:
        """Words about a bench that was measured under another policy than the bundle's."""
        assert self.bench is not None  # noqa: S101  (asked by the caller)
        return (
            f"The bench was measured under another policy, {policy_text(self.bench['policy'])}, "
            f"than the one that is deployed, {policy_text(asdict(self.manifest.policy))}: its "
            "chain's speed, exit rates and accuracy are not those of this bundle. edgekit bench "
            "without --policy measures them."
        )

    @property
    def whose_costs(self) -> str:
        """On which machine the costs were measured, where they are times; else empty."""
        if self.unit != "ms":
            return ""
        found = self.evidence.get("costs_from")
        if not found:
            return "Nobody noted on which machine these times were measured."
        device = found["device"]
        source = "here" if found["source"] == "here" else f"in {found['source']}"
        target = "the target" if found["on_target"] else "not the target"
        return (
            f"A sample's times to each exit are those of {device.get('cpu')} "
            f"({device.get('machine')}), "
            f"{found['engine']}, measured {source}: {target}."
        )

    def threshold_text(self, number: int, value: float) -> str:
        """An early exit's threshold, or that nobody leaves there."""
        if self.seen is not None:
            row = self.seen.confidences[number]
            finite = row[np.isfinite(row)]
            nobody = not len(finite) or value > finite.max()
        else:
            nobody = self.manifest.policy.criterion in BOUNDED and value > 1
        return "nobody leaves" if nobody else confidence_text(value)

    @property
    def where(self) -> str:
        """On which machine the bench was measured, and whether that is the target."""
        assert self.bench is not None  # noqa: S101  (asked by the caller)
        device = self.bench["device"]
        other = self.bench["other_device"]
        when = "when it was tuned" if "tuned_from" in self.evidence else "at the end of the build"
        return (
            f"Measured {self.measured or when} with "
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


@dataclass(frozen=True)
class LadderFacts:
    """A ladder and what is known of it.

    `manifest` is the widest variant's: target and tools are those of all. `profile` is what lies
    beside it, of whatever device; `odd` says why one that lies there is not shown. `bench` is a
    report of `edgekit bench LADDER --json`, and `source` its file's name. `pages` are the variants
    with a page of their own.
    """

    document: LadderDocument
    manifest: Manifest
    profile: Profile | None = None
    odd: str | None = None
    bench: dict[str, Any] | None = None
    source: str = ""
    pages: frozenset[str] = frozenset()

    @functools.cached_property
    def means(self) -> list[float] | None:
        """Each variant's mean latency in ms, by the bench or else the profile; None without."""
        if self.bench is not None:
            return [float(one["latency_ms"]["mean"]) for one in self.bench["variants"]]
        if self.profile is not None:
            names = self.document.names
            return [self.profile.variants[name].latency_ms.mean for name in names]
        return None

    @functools.cached_property
    def p95s(self) -> list[float | None]:
        """Each variant's 95th percentile in ms, as `means`; None where nobody knows it."""
        if self.bench is not None:
            return [one["latency_ms"]["p95"] for one in self.bench["variants"]]
        if self.profile is not None:
            names = self.document.names
            return [self.profile.variants[name].latency_ms.p95 for name in names]
        return [None for _ in self.document.names]

    @functools.cached_property
    def resident(self) -> list[int | None]:
        """By how many bytes the process grew with each variant, as `means`."""
        if self.bench is not None:
            return [one["resident_bytes"] for one in self.bench["variants"]]
        if self.profile is not None:
            return [self.profile.variants[name].resident_bytes for name in self.document.names]
        return [None for _ in self.document.names]

    @property
    def tested(self) -> bool:
        """Whether accuracies are of the bench's samples, else of the tuning split."""
        return self.bench is not None and self.bench["variants"][-1]["accuracy"] is not None

    @functools.cached_property
    def accuracies(self) -> list[float | None]:
        """Each variant's accuracy; None where nobody knows it."""
        if self.bench is not None and self.tested:
            return [one["accuracy"] for one in self.bench["variants"]]
        return [one.accuracy for one in self.document.variants]

    @property
    def worth(self) -> str:
        """What the accuracies are: of labels met, or of answers that are the widest one's."""
        return "accuracy" if self.tested else self.tuned_worth

    @property
    def tuned_worth(self) -> str:
        """As `worth`, of what the tuning split showed."""
        by = {one.accuracy_of for one in self.document.variants}
        return "agreement" if "agreement" in by else "accuracy"

    @property
    def tuned_ms(self) -> float | None:
        """What a sample takes on average under the tuned cascade, in ms of the profile's.

        None where it was tuned to something else, or the bench says what it takes.
        """
        tuned, means = self.document.cascade, self.means
        if tuned is None or means is None or self.bench is not None or tuned.unit != "ms":
            return None
        return tuned.mean_cost if math.isclose(tuned.widest_cost, means[-1]) else None

    @property
    def worth_of(self) -> str:
        """Which samples the accuracies are of."""
        if self.bench is not None and self.tested:
            return f"{count_text(self.bench['samples'])} samples of {self.source}"
        return "the tuning split"

    @property
    def where(self) -> str:
        """On which machine times were measured, in a sentence; or that they were not."""
        if self.bench is not None:
            device, engine = self.bench["device"], self.bench["engine"]
            how = f"by edgekit bench ({self.source})"
        elif self.profile is not None:
            device, engine = self.profile.device, self.profile.engine_version
            how = "for the ladder's profile"
            if self.profile.reasons:
                how += f" (doubtful: {'; '.join(self.profile.reasons)})"
        else:
            return self.odd or "Nothing was measured of it, so nobody knows how fast it is."
        other = other_than_target(self.manifest.target, device)
        return f"Measured {how} on {device['cpu']} ({device['machine']}), {engine}: " + (
            "the target." if other is None else f"not the target, {other}."
        )
