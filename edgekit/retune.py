"""Other thresholds for a bundle that is built: no segment is lowered, quantized or run for them."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends import checked_with
from edgekit.bundle import manifest as m
from edgekit.bundle.reader import Bundle, read_bundle, read_evidence
from edgekit.bundle.writer import new_bundle, write_files
from edgekit.config import parse
from edgekit.errors import DeviceError, InputError, RecipeError
from edgekit.plan import Built
from edgekit.recipe import Recipe
from edgekit.runtime.bench import brief, load_test_data
from edgekit.runtime.chain import Chain
from edgekit.runtime.criteria import decide
from edgekit.runtime.preprocess import encode, unstack
from edgekit.runtime.verify import decisions, load_array, verify_golden
from edgekit.tuning.doubt import sureness
from edgekit.tuning.goal import Costs, settle
from edgekit.tuning.seen import Seen

__all__ = ["measured_costs", "recipe_of", "retune", "source_of"]

_OF_POLICY = ("tune", "thresholds", "drift")
"""What of a recipe's policy may be another: the rest decides what the exits' confidences are."""

_LONGEST_MS = 1e9
"""No sample takes eleven days."""

_IN_DOUBT = 0.05
"""A golden sample whose decision is nearer than this to another one, in log-odds, is left out:
another processor might decide it otherwise, and be no worse for it."""


def recipe_of(bundle: Bundle, overrides: dict[str, Any]) -> Recipe:
    """The recipe that the bundle was built from, with these of its values changed, by dotted key.

    Raises RecipeError for a value that is not of its policy's goal, thresholds or drift, or for a
    certificate that no sample is left to test, and InputError for a bundle that holds no tuning
    split.
    """
    if bundle.manifest.tuning is None:
        raise InputError(
            f"{bundle.path}: holds no samples of a tuning split to fit thresholds to: name "
            "data.tuning in the recipe and build it again"
        )
    values = json.loads(json.dumps(bundle.manifest.recipe))
    policy = values["policy"]
    for key, value in overrides.items():
        path = key.split(".")
        if path[0] != "policy" or path[1:2] not in [[one] for one in _OF_POLICY]:
            raise RecipeError(
                f"--set {key}: a bundle that is built can be tuned by policy.tune, "
                "policy.thresholds and policy.drift; anything else is built in: edgekit build"
            )
        place = values
        for part in path[:-1]:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[path[-1]] = value
        # Of a goal and thresholds that are given there is one; who names it means it.
        other = {"tune": "thresholds", "thresholds": "tune"}.get(path[1])
        if other is not None and value is not None:
            policy[other] = None
    recipe = parse(Recipe, values, "--set")
    if recipe.certified and not bundle.manifest.tuning.held_out:
        raise RecipeError(
            "policy.tune.certificate: the bundle's temperatures, or what its segments were "
            "calibrated with, were fitted to samples that would be tested on: build with the "
            "certificate, which fits them to the others"
        )
    return recipe


def measured_costs(bundle: Bundle, report: dict[str, Any], source: str) -> Costs:
    """How long a sample takes to each exit, in a report of `edgekit bench --json`.

    Raises InputError where that is no such report, or of other segments, or of other threads than
    the chain has there by itself.
    """
    segments = bundle.manifest.variant().segments
    try:
        found = [one["sha256"] for one in report["segments"]]
        times = [one["cumulative_ms"] for one in report["exits"]]
        mean_ms = np.array([float(one["mean"]) for one in times])
        latency_ms = np.array([[float(x) for x in one["quantiles"]] for one in times], ndmin=2)
        threads, cores = int(report["threads"]), int(report["device"]["cores"])
    except (ValueError, TypeError, LookupError):
        raise InputError(
            f"{source}: is no report with the exits' times; edgekit bench BUNDLE --json FILE "
            "writes one"
        ) from None
    if found != [one.sha256 for one in segments]:
        raise InputError(
            f"{source}: was measured on other segments than {bundle.path} has; measure with "
            f"edgekit bench {bundle.path} --json FILE"
        )
    sound = (
        len(mean_ms) == len(segments)
        and latency_ms.shape[1] > 1
        and all(((one > 0) & (one < _LONGEST_MS)).all() for one in (mean_ms, latency_ms))
        and (np.diff(mean_ms) > 0).all()
    )
    if not sound:
        raise InputError(
            f"{source}: its exits' times do not rise from exit to exit, or are no times; measure "
            f"again with edgekit bench {bundle.path} --json FILE"
        )
    wanted = min(bundle.manifest.target.threads, cores)
    if threads != wanted:
        raise InputError(
            f"{source}: was measured with --threads {threads}, and there the chain has {wanted} by "
            "itself; measure without --threads"
        )
    return Costs("ms", mean_ms, mean_ms, np.sort(latency_ms, axis=1))


def source_of(report: dict[str, Any], profile: Path | None) -> dict[str, Any]:
    """Whose times they are that a chain was tuned to, for the evidence.

    `profile` is the file that the report of `measured_costs` came from, None where it was measured
    here; of its place only the name is noted.
    """
    return {
        "device": report["device"],
        "engine": report.get("engine"),
        "source": "here" if profile is None else profile.name,
        "on_target": report.get("on_target"),
    }


def retune(
    bundle: Bundle,
    recipe: Recipe,
    costs: Costs,
    output: Path,
    *,
    command: str | None = None,
    costs_from: dict[str, Any] | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Built:
    """A bundle with the same segments and the policy that the recipe now comes to, in `output`.

    What was measured of the old policy is measured anew where this machine has the engine, on the
    samples that the bundle carries. `command` and `costs_from`, see `source_of`, are noted in the
    evidence. Raises CheckError where no thresholds keep what the recipe asks
    for, and BuildError where the bundle cannot be written; `output` is as it was then.
    """
    manifest = bundle.manifest
    before = manifest.tuning
    assert before is not None  # noqa: S101  (see `recipe_of`)
    exits = manifest.variant().exits
    step("search")
    seen = Seen.from_bytes(bundle.read(before.seen))
    if seen.confidences.shape != (len(exits), before.samples):
        raise InputError(f"{bundle.path}: {before.seen} is not of its exits; build it again")
    temperatures = manifest.policy.temperatures
    found = settle(recipe, exits, seen, costs, before.reference_right, temperatures)
    policy = replace(manifest.policy, thresholds=found.thresholds)
    golden, files = _golden(bundle, policy)
    changed = replace(
        manifest,
        policy=policy,
        tuning=replace(found.tuning, seen=before.seen, held_out=before.held_out),
        golden=golden,
        files=tuple(
            m.File.of(one.path, files[one.path]) if one.path in files else one
            for one in manifest.files
        ),
        recipe=recipe.model_dump(mode="json"),
    )
    document = asdict(changed)
    document["bundle_id"] = m.identify(document)
    with new_bundle(output) as folder:
        for file in manifest.all_files():
            step(f"copy {file.path}")
            content = files.get(file.path) or bundle.read(file.path)
            write_files(folder, {file.path: content})
        write_files(folder, {m.MANIFEST_NAME: m.seal(document)})
        again = read_bundle(folder)
        evidence = {
            **(read_evidence(bundle) or {}),
            **_measured(again, step),
            "bundle_id": again.manifest.bundle_id,
            "tuned_from": manifest.bundle_id,
            "tuned_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tune_command": command,
            "costs_from": costs_from,
        }
        new = {"tune": found.notes, "verify": _of_decisions(again, evidence["decisions"])}
        evidence["stages"] = [
            {**stage, "notes": _kept(stage["notes"]) | new[stage["name"]]}
            if stage["name"] in new
            else stage
            for stage in evidence.get("stages", ())
        ]
        # How the decisions agreed with PyTorch's was counted under the policy before.
        evidence["checks"] = [
            check
            for check in evidence.get("checks", ())
            if check["stage"] not in {"tune", "verify"}
        ]
        write_files(folder, {m.EVIDENCE_NAME: m.seal(evidence)})
    return Built(output, again.manifest, evidence)


def _kept(notes: dict[str, Any]) -> dict[str, Any]:
    """What a stage's notes say of temperatures, which are as they were."""
    return {key: one for key, one in notes.items() if key == "temperature"}


def _of_decisions(bundle: Bundle, decided: dict[str, Any] | None) -> dict[str, Any]:
    """What can be said of the test split's samples that travel: as the stage verify says it."""
    if decided is None:
        return {}
    left, data = decided["left"], bundle.manifest.test_data
    rates = {one: left.count(one) / len(left) for one in bundle.manifest.variant().exits}
    if data is None or data.labels is None or not bundle.manifest.labels:
        return {"exit_rates": rates}
    right = np.array(decided["classes"]) == load_array(bundle, data.labels)
    return {"exit_rates": rates, "accuracy": float(np.mean(right))}


def _golden(bundle: Bundle, policy: m.Policy) -> tuple[m.Golden, dict[str, bytes]]:
    """The golden samples that are in no doubt under the policy, and the files that are others now.

    What the policy makes of them follows from the logits that travel.
    """
    golden = bundle.manifest.golden
    exits = bundle.manifest.variant().exits
    classes = bool(bundle.manifest.labels)
    # By depth: what is written by name is in the order of the alphabet.
    paths = [
        [one[exit] for exit in exits if exit in one] for one in (golden.logits, golden.confidences)
    ]
    logits, given = ([load_array(bundle, path) for path in one] for one in paths)
    sure = [
        sureness(policy, [x[[row]] for x in logits], [x[[row]] for x in given], classes=classes)
        for row in range(len(golden.samples))
    ]
    kept = [row for row, one in enumerate(sure) if one >= _IN_DOUBT] or [int(np.argmax(sure))]
    found = decide([one[kept] for one in logits], policy, [one[kept] for one in given])
    samples = [
        replace(
            golden.samples[row],
            exit=exits[found.exits[place]],
            class_index=int(found.classes[place]) if classes else None,
            confidence=float(found.confidences[place]),
        )
        for place, row in enumerate(kept)
    ]
    samples = [
        one if math.isfinite(one.confidence or 0.0) else replace(one, confidence=None)
        for one in samples
    ]
    arrays = zip((*paths[0], *paths[1]), (*logits, *given), strict=True)
    files = {path: encode(array[kept]) for path, array in arrays}
    return replace(golden, samples=tuple(samples)), files


def _measured(bundle: Bundle, step: Callable[[str], None]) -> dict[str, Any]:
    """What the evidence says of a policy, measured here; None of each where that cannot be."""
    engine = checked_with(bundle.manifest.target.engine)
    try:
        step("golden samples")
        # As where it was built: this command belongs to the host.
        chain = Chain.from_bundle(bundle, engine=engine)
    except DeviceError:
        return {"golden": None, "decisions": None, "bench": None}
    found: dict[str, Any] = {"golden": asdict(verify_golden(bundle, chain)), "decisions": None}
    if (carried := load_test_data(bundle)) is not None:
        step("test split")
        found["decisions"] = decisions(
            [chain.one(one) for one in unstack(carried[0])], bundle.manifest.variant().exits[-1]
        )
    step("bench")
    return {**found, "bench": brief(bundle, engine=engine)}
