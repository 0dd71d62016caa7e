"""Reports of `edgekit bench --json`: read from where they lie, and held against one another."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.ladder import POLICIES, LadderDocument
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reader import read_bundle, read_evidence
from edgekit.errors import InputError
from edgekit.limits import LIMITS
from edgekit.report.words import confidence_text

__all__ = [
    "Bench",
    "demand",
    "demand_ladder",
    "demand_of",
    "demand_of_ladder",
    "differences",
    "ladder_policy_text",
    "policy_text",
    "read_bench",
    "read_ladder_report_file",
    "read_report_file",
]

_LATENCY = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Bench:
    """A report and where it is from; `brief` is one of a few samples, of the end of a build."""

    source: str
    report: dict[str, Any]
    brief: bool = False

    @property
    def name(self) -> str:
        """What was measured."""
        return str(self.report["name"])

    @property
    def device(self) -> str:
        """On what."""
        return str(self.report["device"]["cpu"])


def read_bench(path: Path) -> Bench:
    """The report in a JSON file, or the one that was made at the end of a bundle's build.

    Raises InputError where there is none, BundleError for a bundle that is not as it was built.
    """
    if not path.is_dir():
        return Bench(str(path), read_report_file(path))
    evidence = read_evidence(read_bundle(path)) or {}
    report = evidence.get("bench")
    if report is None:
        raise InputError(
            f"{path}: nothing was measured at its build; edgekit bench {path} --json FILE does, "
            "then name the FILE"
        )
    return Bench(str(path), demand(report, str(path)), brief=True)


def read_report_file(path: Path) -> dict[str, Any]:
    """The report of `edgekit bench --json` in a file. Raises InputError for anything else."""
    return demand(_read(path), str(path))


def read_ladder_report_file(path: Path) -> dict[str, Any]:
    """As `read_report_file`, of a ladder."""
    return demand_ladder(_read(path), str(path))


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            raw = stream.read(LIMITS.manifest_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if len(raw) > LIMITS.manifest_bytes:
        raise InputError(f"{path}: larger than {LIMITS.manifest_bytes} bytes, so it is no report")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise InputError(
            f"{path}: is no JSON; edgekit bench BUNDLE --json FILE writes it"
        ) from None


def demand_of(manifest: Manifest, report: dict[str, Any], where: str) -> None:
    """Raises InputError where a report is of another bundle."""
    if report["bundle_id"] != manifest.bundle_id:
        raise InputError(
            f"{where}: is of bundle {report['bundle_id'][:12]}, this is "
            f"{manifest.bundle_id[:12]}; edgekit bench BUNDLE --json FILE measures it"
        )
    variant = manifest.variant()
    segments = [one["name"] for one in report["segments"]]
    exits = [one["name"] for one in report["exits"]]
    if segments != [one.name for one in variant.segments] or exits != [*variant.exits]:
        raise InputError(f"{where}: has other segments or exits than the bundle; measure it again")


def demand_of_ladder(document: LadderDocument, report: dict[str, Any], where: str) -> None:
    """Raises InputError where a ladder's report is of other bundles."""
    for one, measured in itertools.zip_longest(document.variants, report["variants"]):
        if one is None or measured is None or one.bundle_id != measured["bundle_id"]:
            raise InputError(
                f"{where}: is of other variants than this ladder's; edgekit bench LADDER --json "
                "FILE measures them"
            )


def differences(benches: Sequence[Bench]) -> list[str]:
    """Why some of these cannot be held against one another, in words."""
    found = []
    for key, words in (
        ("samples", _samples_words(benches)),
        (
            "classes",
            "They tell different numbers of classes: {}. Accuracies are of different tasks",
        ),
        ("threads", "Not with as many threads: {}"),
    ):
        values = [one.report[key] for one in benches]
        if len(set(values)) > 1:
            found.append(words.format(", ".join(map(str, values))) + ".")
    policies = [policy_text(one.report["policy"]) for one in benches]
    if len(set(policies)) > 1:
        found.append(
            f"Not under the same policy: {'; '.join(policies)}. What that changes in speed and "
            "accuracy is in the figures."
        )
    for one in benches:
        if not one.report["valid"]:
            reasons = "; ".join(one.report["reasons"])
            found.append(f"Do not rely on the figures of {one.source}: {reasons}.")
        if not one.report["on_target"]:
            found.append(
                f"{one.source} was not measured on its target: {one.report['other_device']}."
            )
    return found


def policy_text(policy: dict[str, Any]) -> str:
    """A report's policy in a line: what is usual is left out."""
    words = [str(policy["criterion"])]
    if policy["combine"] != "last":
        words.append(f"of the {policy['combine']}")
    for key in ("weights", "temperatures"):
        if policy[key] is not None:
            words.append(f"with {key} {', '.join(f'{one:.4g}' for one in policy[key])}")
    words.append(f"at {', '.join(map(confidence_text, policy['thresholds'])) or 'no early exit'}")
    if policy["otherwise"] != "last":
        words.append(f"otherwise {policy['otherwise']}")
    return " ".join(words)


def ladder_policy_text(policy: dict[str, Any]) -> str:
    """A ladder's policy, as its document has it, in a line: what is usual is left out."""
    kind = policy["kind"]
    usual = {one.name: one.default for one in dataclasses.fields(POLICIES[kind])}
    parts = []
    for key, value in policy.items():
        if key == "kind" or value == usual[key]:
            continue
        said = str(value)
        if isinstance(value, list | tuple):
            said = ", ".join(map(confidence_text, value))
        parts.append(key if value is True else f"{key} {said}")
    return f"{kind}: {'; '.join(parts)}" if parts else kind


def _samples_words(benches: Sequence[Bench]) -> str:
    if any(one.brief for one in benches):
        return (
            "Brief runs, as a build ends with, of as many samples as there was time for: {}; "
            "measure with edgekit bench BUNDLE --json FILE for a fair comparison"
        )
    return "Not of the same samples: {}. Accuracies and exit rates are of different data"


def demand(report: Any, where: str) -> dict[str, Any]:
    """A report that has what is shown of it. Raises InputError where it has not."""
    try:
        texts = [report[key] for key in ("name", "target", "engine", "precision", "bundle_id")]
        texts += [report["verdict"], report["clock"], report["device"]["cpu"]]
        texts += [report["device"]["machine"], *report["reasons"]]
        texts += [one["name"] for key in ("exits", "segments", "beside") for one in report[key]]
        numbers = [report[key] for key in ("speedup", "full_depth_ratio", "efficiency")]
        numbers += [report[key] for key in ("samples", "rounds", "threads", "classes")]
        numbers += [one["rate"] for one in report["exits"]]
        numbers += [one["cumulative_ms"]["mean"] for one in report["exits"]]
        policy = report["policy"]
        texts += [policy[key] for key in ("criterion", "combine", "otherwise")]
        numbers += policy["thresholds"]
        for key in ("weights", "temperatures"):
            numbers += () if policy[key] is None else policy[key]
        numbers += [one["latency_ms"] for one in report["segments"]]
        maybe = []
        measured = [report, *(report[key] for key in ("plain", "whole", "full_depth"))]
        for one in (*measured, *report["beside"]):
            numbers.append(one["latency_ms"]["mean"])
            maybe += [one["accuracy"], *(one["latency_ms"][key] for key in _LATENCY)]
        for one in report["exits"]:
            maybe += [one["accuracy"], *(one["latency_ms"] or {}).values()]
        sound = (
            all(isinstance(one, str) for one in texts)
            and all(type(one) in {int, float} for one in numbers)
            and all(one is None or type(one) in {int, float} for one in maybe)
            and all(type(report[key]) is bool for key in ("valid", "on_target"))
            and type(report["other_device"]) in {str, type(None)}
            and len(policy["thresholds"]) == len(report["exits"]) - 1
            and len(report["exits"]) == len(report["segments"])
            and min(one["latency_ms"]["mean"] for one in measured) > 0
        )
    except (TypeError, LookupError, AttributeError):
        sound = False
    if not sound:
        raise InputError(
            f"{where}: is no report of this edgekit's bench; edgekit bench BUNDLE --json FILE "
            "writes one"
        )
    return dict(report)


def demand_ladder(report: Any, where: str) -> dict[str, Any]:
    """A ladder's report that has what is shown of it. Raises InputError where it has not."""
    try:
        texts = [report[key] for key in ("name", "target", "engine", "verdict", "clock")]
        texts += [report["device"]["cpu"], report["device"]["machine"], *report["reasons"]]
        texts += [one[key] for one in report["variants"] for key in ("name", "bundle_id")]
        numbers = [report[key] for key in ("samples", "rounds", "threads")]
        measured = [*report["variants"]]
        found = report["ladder"]
        if found is not None:
            measured.append(found)
            texts += [one["name"] for one in found["answers"]]
            numbers += [one["share"] for one in found["answers"]]
        numbers += [one["speedup"] for one in measured]
        numbers += [one["latency_ms"]["mean"] for one in measured]
        maybe = [one["latency_ms"][key] for one in measured for key in _LATENCY]
        maybe += [one["accuracy"] for one in (*measured, *(found["answers"] if found else ()))]
        maybe += [one["resident_bytes"] for one in report["variants"]]
        ladder_policy_text(report["policy"])
        sound = (
            all(isinstance(one, str) for one in texts)
            and all(type(one) in {int, float} for one in numbers)
            and all(one is None or type(one) in {int, float} for one in maybe)
            and all(type(report[key]) is bool for key in ("valid", "on_target", "zeros"))
            and type(report["other_device"]) in {str, type(None)}
            and min(one["latency_ms"]["mean"] for one in measured) > 0
        )
    except (TypeError, LookupError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise InputError(
            f"{where}: is no report of a ladder by this edgekit's bench; edgekit bench LADDER "
            "--json FILE writes one"
        )
    return dict(report)
