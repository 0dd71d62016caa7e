"""How long each segment is expected to take: what a deadline is held against.

An expected time covers a segment and the look at its exit, and is the 90th percentile: a mean is
exceeded about every other time.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.manifest import Segment
from edgekit.bundle.reader import Bundle, read_evidence
from edgekit.errors import BundleError, InputError
from edgekit.runtime.device import describe

__all__ = ["budget_ns", "expected_ms", "expected_ns", "from_evidence", "from_report"]

EXPECTED_PERCENTILE = 90


def budget_ns(deadline_ms: float) -> float:
    """A deadline in ns. Raises InputError where it is no finite number of ms above zero."""
    try:
        found = float(deadline_ms)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 < found < math.inf:
        raise InputError(f"a deadline is a finite number of ms above 0; found {deadline_ms!r}")
    return found * 1e6


def expected_ms(latency_ms: Sequence[Sequence[float]]) -> list[float]:
    """The expected time per segment, of measured times in ms `[runs, segments]`."""
    return [float(one) for one in np.percentile(latency_ms, EXPECTED_PERCENTILE, axis=0)]


def expected_ns(segment_ms: Sequence[float], segments: int) -> list[float]:
    """Times in ms that somebody gave, in ns; one per segment, finite and not below zero.

    Raises InputError for anything else.
    """
    try:
        found = [float(one) for one in segment_ms]
    except (TypeError, ValueError, OverflowError):
        found = []
    if len(found) != segments or not all(0 <= one < math.inf for one in found):
        raise InputError(
            f"segment times are one finite number of ms per segment, {segments} here; found "
            f"{segment_ms!r}"
        )
    return [one * 1e6 for one in found]


def from_report(
    path: str | os.PathLike[str],
    bundle: Bundle,
    segments: Sequence[Segment],
    threads: int,
    engine: str,
) -> list[float]:
    """The expected times in ms that a report of `edgekit bench --json` has for these segments.

    `engine` is the version of the chain's, as `Engine.version` has it. Raises InputError where the
    file is no such report, or was measured on other segments, with other threads, in another kind
    of engine or on another processor.
    """
    file = Path(path)
    try:
        report = json.loads(file.read_bytes())
        found = {one["sha256"]: float(one["p90_ms"]) for one in report["segments"]}
        measured = report["bundle_id"], report["threads"], str(report["engine"])
        cpu = report["device"]["cpu"]
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InputError(
            f"{file}: is no report with segment times; edgekit bench BUNDLE --json FILE writes one"
        ) from None
    again = f"edgekit bench {bundle.path} --threads {threads} --json FILE measures them"
    # By their bytes: the same segments under another policy take the same time.
    if missing := [one.name for one in segments if one.sha256 not in found]:
        raise InputError(
            f"{file}: holds the times of bundle {str(measured[0])[:12]}, which has another "
            f"{missing[0]} than {bundle.manifest.bundle_id[:12]}; {again}"
        )
    if measured[1] != threads:
        raise InputError(
            f"{file}: holds times at {measured[1]} threads, the chain has {threads}; {again}"
        )
    if not _alike(measured[2], engine):
        raise InputError(
            f"{file}: holds the times of {measured[2]}, the chain runs in {engine}; {again}"
        )
    if cpu != (here := describe()["cpu"]):
        raise InputError(f"{file}: holds the times of {cpu}, this is {here}; {again}")
    return [found[one.sha256] for one in segments]


def from_evidence(
    bundle: Bundle, segments: Sequence[Segment], threads: int, engine: str
) -> list[float] | None:
    """The expected times in ms that were measured when the bundle was built.

    None where there are none, or they are not of this processor, these threads, these segments and
    this kind of engine.
    """
    if tuple(segments) != bundle.manifest.variant().segments:
        return None
    try:
        evidence: dict[str, Any] = read_evidence(bundle) or {}
    except BundleError:
        # Damaged: `edgekit verify` refuses it. Here the times can be measured instead.
        return None
    here = describe()
    host = evidence.get("host")
    alike = isinstance(host, dict) and host.get("cpu") == here["cpu"]
    # A processor that does not say its name is called after its kind, and may be any of that.
    if not alike or here["cpu"] == here["machine"] or evidence.get("threads") != threads:
        return None
    if not _alike(str(evidence.get("engine")), engine):
        return None
    try:
        found = evidence["segment_latency_ms"]
        expected_ns(found, len(segments))
    except (KeyError, InputError):
        return None
    return [float(one) for one in found]


def _alike(one: str, other: str) -> bool:
    """Whether two engines are of one kind, whatever their versions."""
    return one.partition(" ")[0] == other.partition(" ")[0]
