"""What a ladder's variants take on this machine, and what its policy makes of them, in one process.

The variants' chains and the ladder under its policy take turns (`edgekit.runtime.turns`). The clock
runs from a prepared tensor to the decision. Of the same times the ladder's profile is made.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.ladder import (
    Fixed,
    LadderDocument,
    LadderPolicy,
    LatencyBudget,
    Load,
    policy_document,
    read_ladder,
    read_variant,
)
from edgekit.bundle.reader import Bundle
from edgekit.runtime import board, memory, preprocess
from edgekit.runtime.bench import MOST_ACCURACY_LOSS, caveats, start_engine, to_tensors
from edgekit.runtime.chain import Chain, left_at
from edgekit.runtime.device import describe, other_than_target
from edgekit.runtime.engines import HostMemory
from edgekit.runtime.ladder import Ladder
from edgekit.runtime.preprocess import Sample, Samples
from edgekit.runtime.profile import Latency, seal_profile
from edgekit.runtime.profile import Measured as Profiled
from edgekit.runtime.sysfs import ROOT
from edgekit.runtime.turns import (
    CLOCK,
    LEAST_SAMPLES,
    MOST_ROUND_SPREAD,
    Measured,
    accuracy_of,
    doubts,
    latency_summary,
    take_turns,
    timed,
)

__all__ = ["bench_ladder", "ladder_verdict"]

Array = npt.NDArray[Any]

_BLANKS = LEAST_SAMPLES["p95"]
"""So many runs a round make a 95th percentile where there are no samples."""

BY_PROFILE = (LatencyBudget, Load)
"""Policies that need a profile: while one is measured they have none that is of now."""

_OWN_INPUTS = CLOCK + " but under the policy, which makes each variant's own input of a sample"


def bench_ladder(
    path: str | os.PathLike[str],
    samples: Samples | None,
    labels: Array | None,
    *,
    engine: str | None = None,
    threads: int | None = None,
    rounds: int = 10,
    policy: LadderPolicy | None = None,
    profiling: bool = False,
    step: Callable[[str], None] = lambda text: None,
    root: Path = ROOT,
) -> tuple[dict[str, Any], bytes]:
    """Measure every variant of the ladder at `path`, and the ladder under its policy.

    `samples` are pixels or tensors `[samples, ...]` as `Ladder.one` takes them one by one, by name
    where there are several inputs, or a list of them; `labels` is int64 `[samples]` or None. Each
    is measured `rounds` times. Without samples every variant runs on zeros to its last exit, which
    is the most that it takes. `policy` is the ladder's own by default; with `profiling` one that
    goes by a profile is left out, and so is every one without samples. `root` stands for `/` where
    the board is looked at.

    Returns the report as plain data (`docs/reference.md` lists its keys), and the ladder's profile,
    sealed. Raises BundleError where the ladder is not as it was built, DeviceError where an engine
    fails or a variant does not fit, InputError where the samples or the policy do not.
    """
    document = read_ladder(path)
    widest = document.names[-1]
    policy = policy or document.policy
    left_out = None
    if samples is None:
        left_out = "there are no samples to choose by"
    elif profiling and isinstance(policy, BY_PROFILE):
        left_out = "it goes by the profile, which is only measured now"
    ladder = Ladder.load(path, policy=Fixed(widest), engine=engine, threads=threads)
    if left_out is None:
        ladder.set_policy(policy)  # What does not fit is refused before anything is loaded.
    bundle = read_variant(path, document, widest)
    manifest = bundle.manifest
    inputs, given = _inputs(path, document, bundle, samples)
    if not manifest.labels:
        labels = None  # Its exits tell no classes: there is nothing to count.
    if labels is not None:
        labels = preprocess.check_labels(labels, len(given), len(manifest.labels))
    chains, grown_bytes = _loaded(ladder, bundle)
    if samples is None:
        chains = {name: _to_the_end(one) for name, one in chains.items()}
    here = board.find(root)
    seen: list[Any] = []

    def look() -> None:
        if here is not None:
            seen.append(here.snapshot())

    asked = None if left_out else ladder
    measured, under_policy, cpu_share = _measure(chains, asked, inputs, given, rounds, step, look)
    threads = ladder.threads
    if threads > 1 or not isinstance(chains[widest].engines[0].memory, HostMemory):
        cpu_share = 1.0  # A processor that waits for a GPU, or for its other cores, is not taken.
    most_spread = MOST_ROUND_SPREAD if here is None else here.most_round_spread
    reasons = _reasons(measured, cpu_share, most_spread, alike=samples is None)
    met = None if here is None else here.conditions(seen, manifest.target.gpu)
    if met is not None:
        reasons += [f"the board was throttled: {one}" for one in met["throttled"]]
    if labels is None and manifest.labels and samples is not None:
        reasons.append("the samples have no labels, so they may be noise")
    if profiling and len(given) < LEAST_SAMPLES["p95"]:
        reasons.append(
            f"{len(given)} samples are too few to say where the profile's 95th percentiles are, "
            f"which takes {LEAST_SAMPLES['p95']}"
        )
    device = describe(gpu=manifest.target.gpu is not None)
    other_device = other_than_target(manifest.target, device, engine)
    widest_ms = measured[widest].mean_ms
    report: dict[str, Any] = {
        "ladder_id": document.ladder_id,
        "name": document.name,
        "target": manifest.target.name,
        "on_target": other_device is None,
        "other_device": other_device,
        "engine": chains[widest].engines[0].version,
        "precision": manifest.target.precision,
        "classes": len(manifest.labels),
        "policy": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in policy_document(policy if left_out else ladder.policy).items()
        },
        "threads": threads,
        "samples": len(given),
        "zeros": samples is None,
        "rounds": rounds,
        "clock": _OWN_INPUTS if samples is not None and given is not inputs[widest] else CLOCK,
        "variants": [
            {
                "name": one.name,
                "bundle_id": one.bundle_id,
                "latency_ms": latency_summary(measured[one.name].latency_ns),
                "accuracy": accuracy_of(measured[one.name].classes, labels),
                "speedup": widest_ms / measured[one.name].mean_ms,
                "exits": _rates(chains[one.name], measured[one.name]),
                "resident_bytes": grown_bytes[one.name],
            }
            for one in document.variants
        ],
        "ladder": under_policy
        and {
            "latency_ms": latency_summary(under_policy.latency_ns),
            **_answered(document.names, under_policy.answers, labels),
            "speedup": widest_ms / (float(under_policy.latency_ns.mean()) / 1e6),
            "moves": under_policy.moves,
            "shortfall": ladder.shortfall,
        },
        "left_out": left_out,
        "memory": dict(zip(("resident_bytes", "peak_bytes"), memory.resident(), strict=True)),
        "conditions": met,
        "valid": not reasons,
        "reasons": reasons,
        "device": device,
    }
    report["verdict"] = ladder_verdict(report)
    profile = seal_profile(
        ladder.engine,
        report["engine"],
        threads,
        {
            one.name: Profiled(
                one.bundle_id, _latency(measured[one.name].latency_ns), grown_bytes[one.name]
            )
            for one in document.variants
        },
        reasons,
    )
    return report, profile


@dataclass(frozen=True)
class _UnderPolicy:
    """Nanoseconds `[rounds, samples]` of the ladder, and who answered what, round after round.

    `moves` is how often the policy `load` went to another variant meanwhile.
    """

    latency_ns: npt.NDArray[np.int64]
    answers: list[tuple[str | None, int | None]]
    moves: int


def _measure(
    chains: dict[str, Chain],
    ladder: Ladder | None,
    inputs: dict[str, list[Sample]],
    given: list[Sample],
    rounds: int,
    step: Callable[[str], None],
    look: Callable[[], None],
) -> tuple[dict[str, Measured], _UnderPolicy | None, float]:
    """Every chain on its inputs and the ladder on what it is given, in turn, `rounds` times.

    Returns both, and the share of the time that this process was running. Without a ladder, the
    chains alone.
    """
    found = {name: [one.one(x) for x in inputs[name]] for name, one in chains.items()}
    jobs, latency_ns = [], {}
    for name, one in chains.items():
        job, latency_ns[name] = timed(one.one, inputs[name], rounds)
        jobs.append(job)
    answers: list[tuple[str | None, int | None]] = []
    if ladder is not None:
        ladder.one(given[0])  # Whatever it makes at its first call is not timed.
        moves = ladder.moves
        keep = lambda one: answers.append((one.variant, one.class_index))  # noqa: E731
        job, ladder_ns = timed(ladder.one, given, rounds, keep)
        jobs.append(job)
    cpu_share = take_turns(jobs, len(given), rounds, step, look)
    measured = {
        name: Measured(
            latency_ns[name],
            np.array([one.class_index for one in found[name]]),
            [left_at(one, chain.spec.segments[-1].exits[-1].name) for one in found[name]],
        )
        for name, chain in chains.items()
    }
    if ladder is None:
        return measured, None, cpu_share
    return measured, _UnderPolicy(ladder_ns, answers, ladder.moves - moves), cpu_share


def _reasons(
    measured: dict[str, Measured], cpu_share: float, most_spread: float, *, alike: bool
) -> list[str]:
    """Why the machine was not quiet enough, by the widest variant and the narrowest."""
    narrowest, *others = measured
    widest = others[-1] if others else narrowest
    other_ns = measured[narrowest].latency_ns if others else None
    return doubts(
        (widest, measured[widest].latency_ns), other_ns, cpu_share, most_spread, alike=alike
    )


def ladder_verdict(report: dict[str, Any]) -> str:
    """What a ladder's report comes to, in a sentence or some, also where nothing is gained."""
    variants = report["variants"]
    widest, narrowest = variants[-1], variants[0]
    found = report["ladder"]
    one = narrowest if found is None else found
    widest_ms, ms = widest["latency_ms"]["mean"], one["latency_ms"]["mean"]
    times = f"{ms:.3f} ms against {widest_ms:.3f} ms on average"
    factor = f"{one['speedup']:.2f} times as fast as {widest['name']}"
    lost = None if one["accuracy"] is None else widest["accuracy"] - one["accuracy"]
    kind = report["policy"]["kind"]
    name = f"The policy {kind}"
    alone = [] if found is None else [x["name"] for x in found["answers"] if x["share"] == 1]
    if found is None:
        text = f"{narrowest['name']} is {factor} ({times})"
    elif alone == [widest["name"]]:
        text = f"Under {kind}, {alone[0]} answers every sample ({times} without the ladder)"
    elif alone:
        text = f"Under {kind}, {alone[0]} answers every sample: {factor} ({times})"
    elif one["speedup"] < 1 / 1.05:
        text = f"{name} does not pay here: {widest['name']} alone is faster ({times})"
    elif one["speedup"] < 1.05:
        text = f"{name} gains nothing here: {widest['name']} alone is as fast ({times})"
    elif lost is not None and lost > MOST_ACCURACY_LOSS:
        text = f"{name} costs {100 * lost:.1f} points of accuracy; it is {factor} ({times})"
    else:
        text = f"{name} pays: {factor} ({times})"
    if report["zeros"]:
        text += "; on zeros, to the last exit."
    elif not report["classes"]:
        text += "; its exits tell no classes, so nobody knows here what it costs in quality."
    elif one["accuracy"] is None:
        text += "; without labels nobody knows what it costs in accuracy."
    else:
        text += f", at {one['accuracy']:.1%} accuracy against {widest['accuracy']:.1%}."
        if found is not None and (better := _better(found, variants, alone)):
            text += (
                f" But {better['name']} alone is faster and no less accurate: "
                f"{better['latency_ms']['mean']:.3f} ms at {better['accuracy']:.1%}."
            )
    return text + caveats(report)


def _better(
    found: dict[str, Any], variants: Sequence[dict[str, Any]], alone: Sequence[str]
) -> dict[str, Any] | None:
    """The fastest variant that leaves the policy nothing, by more than a twentieth of its time.

    Where one variant answers `alone`, another one than that.
    """
    fit = [
        one
        for one in variants
        if one["name"] not in alone
        and one["latency_ms"]["mean"] < found["latency_ms"]["mean"] / 1.05
        and one["accuracy"] >= found["accuracy"]
    ]
    return min(fit, key=lambda one: float(one["latency_ms"]["mean"]), default=None)


def _inputs(
    path: str | os.PathLike[str], document: LadderDocument, bundle: Bundle, samples: Samples | None
) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """Each variant's tensors, sample by sample, and what the ladder is given.

    `bundle` is the widest variant's. Variants of one input share its tensors, and if all do the
    ladder is given those: it need not make them within the clock.
    """
    prepared: dict[str, list[Sample]] = {}
    takes: dict[str, Any] = {}
    for name in reversed(document.names):
        here = bundle if not prepared else read_variant(path, document, name)
        takes[name] = [replace(one, tensor="") for one in here.manifest.inputs]
        like = next((one for one in prepared if takes[one] == takes[name]), None)
        if like is not None:
            prepared[name] = prepared[like]
        elif samples is None:
            prepared[name] = [preprocess.blank(here.manifest.inputs)] * _BLANKS
        else:
            prepared[name] = preprocess.unstack(to_tensors(here, samples))
    first = prepared[document.names[-1]]
    same = samples is None or all(one is first for one in prepared.values())
    return prepared, first if same else preprocess.unstack(samples)  # type: ignore[arg-type]


def _loaded(ladder: Ladder, bundle: Bundle) -> tuple[dict[str, Chain], dict[str, int | None]]:
    """Every variant's chain, the one that the ladder uses, and by how much memory grew with it."""
    start_engine(bundle, ladder.engine, ladder.threads)
    found = {name: memory.growth(partial(ladder.chain, name)) for name in ladder.names}
    return {name: one for name, (one, _) in found.items()}, {
        name: grown for name, (_, grown) in found.items()
    }


def _to_the_end(chain: Chain) -> Chain:
    """The chain with every early exit refused."""
    refused = (math.inf,) * (len(chain.spec.segments) - 1)
    return chain.with_policy(replace(chain.spec.policy, thresholds=refused))


def _rates(chain: Chain, measured: Measured) -> list[dict[str, Any]]:
    names = [segment.exits[-1].name for segment in chain.spec.segments]
    count = len(measured.exits)
    return [{"name": name, "rate": measured.exits.count(name) / count} for name in names]


def _answered(
    names: Sequence[str], answers: Sequence[tuple[str | None, int | None]], labels: Array | None
) -> dict[str, Any]:
    """Accuracy under the policy, and what share each variant answered, over all rounds.

    `answers` are of one round after the other: under the policy `load` they need not be the same.
    """
    who = np.array([one for one, _ in answers])
    classes = np.array([one for _, one in answers])
    right = None if labels is None else np.resize(labels, len(classes))
    shares = []
    for name in names:
        rows = who == name
        known = right is not None and rows.any()
        shares.append(
            {
                "name": name,
                "share": float(rows.mean()),
                "accuracy": accuracy_of(classes[rows], right[rows])
                if known and right is not None
                else None,
            }
        )
    return {"accuracy": accuracy_of(classes, right), "answers": shares}


def _latency(latency_ns: npt.NDArray[np.int64]) -> Latency:
    """Mean, median and 95th percentile in ms of all measurements, however few."""
    p50, p95 = (float(one) / 1e6 for one in np.percentile(latency_ns, (50, 95)))
    return Latency(float(latency_ns.mean()) / 1e6, p50, p95)
