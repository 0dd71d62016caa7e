"""What early exit gains on this machine: the chain beside the undivided network, in one process.

Contenders take turns (`edgekit.runtime.turns`). The clock runs from a prepared tensor to the
decision.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Policy, Segment
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, InputError
from edgekit.runtime import board, energy, memory, power, preprocess
from edgekit.runtime.chain import MOST_SHAPES, Chain, ChainSpec, Shapes, contents, left_at
from edgekit.runtime.criteria import PATIENCE
from edgekit.runtime.deadline import expected_ms
from edgekit.runtime.device import describe, other_than_target, threads_here
from edgekit.runtime.engines import ENGINES, HostMemory, load_engines
from edgekit.runtime.preprocess import Sample, Samples
from edgekit.runtime.sysfs import ROOT
from edgekit.runtime.turns import (
    CLOCK,
    MOST_ROUND_SPREAD,
    Measured,
    accuracy_of,
    doubts,
    latency_summary,
    take_turns,
    timed,
)
from edgekit.runtime.verify import load_array, load_arrays

__all__ = [
    "bench",
    "brief",
    "caveats",
    "load_test_data",
    "load_test_samples",
    "start_engine",
    "to_tensors",
    "verdict",
]

Array = npt.NDArray[Any]

_BRIEF_MS, _BRIEF_ROUNDS, _LEAST_BRIEF = 2000, 3, 8
"""How long a brief run may take, and of how many rounds and at least how many samples it is."""

_RUNS_A_SAMPLE = 6
"""A sample goes through as many networks in a round: four contenders, and the segments twice."""

_QUANTILES = 41
"""As many times say how long it takes to an exit: one for each 2.5 % of the runs, and the least."""

MOST_ACCURACY_LOSS = 0.01
"""Beyond this the verdict says first what early exit costs."""


@dataclass(frozen=True)
class _Segments:
    """The segments' own times: bare ns `[rounds, samples, segments]`, the engine's calls alone.

    `in_chain_ms` has a row per run of the chain to its end: each segment with the look at its exit.
    """

    bare_ns: npt.NDArray[np.int64]
    in_chain_ms: list[tuple[float, ...]]


def bench(
    bundle: Bundle,
    inputs: Samples,
    labels: Array | None,
    *,
    engine: str | None = None,
    threads: int | None = None,
    rounds: int = 10,
    policy: Policy | None = None,
    beside: Sequence[Bundle] = (),
    step: Callable[[str], None] = lambda text: None,
    energy_s: float = energy.PHASE_S,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Measure the bundle's chain, its `plain` and `whole` networks and the chains of `beside`.

    `inputs` are prepared tensors `[samples, *shape]`, by name where there are several, or where
    sizes vary a list of them sample by sample; `labels` is int64 `[samples]` or None. Each sample
    is measured `rounds` times, in `engine`, the target's by default. The chain is measured under
    `policy`, which is the bundle's own by default. Where a board's power can be read, each
    contender then runs alone for `energy_s` seconds, and so does the chain to each exit; 0 leaves
    that out. `root` stands for `/` where the board is looked at. Returns the report as plain data;
    `docs/reference.md` lists its keys. Raises DeviceError where an engine fails, InputError where
    the samples do not fit.
    """
    manifest = bundle.manifest
    threads = threads or threads_here(manifest.target.threads)
    for other in beside:
        _demand_alike(bundle, other)
    samples = preprocess.unstack(inputs)
    if not manifest.labels:
        labels = None  # Its exits tell no classes: there is nothing to count.
    if labels is not None:
        labels = preprocess.check_labels(labels, len(samples), len(manifest.labels))
    contenders, held = _loaded(bundle, engine, threads, policy, samples[0])
    chain = contenders["chain"]
    for number, other in enumerate(beside):
        contenders[f"beside-{number}"] = Chain.from_bundle(other, engine=engine, threads=threads)
    here = board.find(root)
    seen: list[Any] = []

    def look() -> None:
        if here is not None:
            seen.append(here.snapshot())

    measured, segments, cpu_share = _measure(contenders, chain, samples, rounds, step, look)

    exits = manifest.variant().exits
    rates = {name: measured["chain"].exits.count(name) / len(samples) for name in exits}
    cumulative_ms = np.cumsum(segments.in_chain_ms, axis=1)
    bare_ms = [float(one) / 1e6 for one in segments.bare_ns.mean(axis=(0, 1))]
    predicted_ms = sum(
        rate * sum(bare_ms[: depth + 1]) for depth, rate in enumerate(rates.values())
    )
    mean_ms = {name: one.mean_ms for name, one in measured.items()}
    speedup = mean_ms["plain"] / mean_ms["chain"]
    vary = any(one.varying for one in manifest.inputs)
    spent = _energy(contenders, samples, max(mean_ms.values()), energy_s, root, step)
    look()
    met = None if here is None else here.conditions(seen, manifest.target.gpu)
    most_spread = MOST_ROUND_SPREAD if here is None else here.most_round_spread
    if threads > 1 or not isinstance(chain.engines[0].memory, HostMemory):
        cpu_share = 1.0  # A processor that waits for a GPU, or for its other cores, is not taken.
    reasons = doubts(
        ("the plain network", measured["plain"].latency_ns),
        measured["chain"].latency_ns,
        cpu_share,
        most_spread,
        alike=not vary,
    )
    if here is not None and met is not None:
        reasons += [f"the board was throttled: {one}" for one in met["throttled"]]
        if spent is None and energy_s and here.has_rails:
            met["notes"].append("the power rails could not be read, so there is no energy")
    if labels is None and manifest.labels:
        reasons.append("the samples have no labels, so they may be noise")
    device = describe(gpu=manifest.target.gpu is not None)
    other_device = other_than_target(manifest.target, device, engine)

    def summary(name: str) -> dict[str, Any]:
        one = measured[name]
        return {
            "latency_ms": latency_summary(one.latency_ns),
            "accuracy": accuracy_of(one.classes, labels),
        }

    others = [
        {
            "name": other.manifest.name,
            "bundle_id": other.manifest.bundle_id,
            "speedup": mean_ms["plain"] / mean_ms[f"beside-{number}"],
            **summary(f"beside-{number}"),
        }
        for number, other in enumerate(beside)
    ]
    report: dict[str, Any] = {
        "bundle_id": manifest.bundle_id,
        "seal": bundle.seal,
        "name": manifest.name,
        "target": manifest.target.name,
        "on_target": other_device is None,
        "other_device": other_device,
        "engine": chain.engines[0].version,
        "precision": manifest.target.precision,
        "classes": len(manifest.labels),
        "policy": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(chain.spec.policy).items()
        },
        "threads": threads,
        "samples": len(samples),
        "rounds": rounds,
        "clock": CLOCK,
        **summary("chain"),
        "exits": [
            {
                "name": name,
                "rate": rates[name],
                **_at_exit(measured["chain"], name, labels),
                "cumulative_ms": _spread(here),
                "cumulative_mj": spent and spent["exits"][depth]["above_idle_mj"],
            }
            for depth, (name, here) in enumerate(zip(exits, cumulative_ms.T, strict=True))
        ],
        "segments": [
            {"name": segment.name, "sha256": segment.sha256, "latency_ms": one, "p90_ms": p90}
            for segment, one, p90 in zip(
                chain.spec.segments, bare_ms, expected_ms(segments.in_chain_ms), strict=True
            )
        ],
        "plain": summary("plain"),
        "whole": summary("whole"),
        "full_depth": summary("full_depth"),
        "beside": others,
        "speedup": speedup,
        "full_depth_ratio": mean_ms["full_depth"] / mean_ms["whole"],
        "efficiency": predicted_ms / mean_ms["chain"],
        "energy": spent,
        "memory": {
            **dict(zip(("resident_bytes", "peak_bytes"), memory.resident(), strict=True)),
            **held,
        },
        "conditions": met,
        "valid": not reasons,
        "reasons": reasons,
        "device": device,
    }
    report["verdict"] = verdict(report)
    return report


def brief(
    bundle: Bundle,
    *,
    engine: str | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """What `bench` says of some of the samples that the bundle carries, in a few seconds.

    None where it carries none. Raises as `bench`.
    """
    carried = load_test_data(bundle)
    if carried is None:
        return None
    samples, labels = preprocess.unstack(carried[0]), carried[1]
    once_ms = sum(Chain.from_bundle(bundle, engine=engine).measure())
    most = max(_LEAST_BRIEF, int(_BRIEF_MS / (_BRIEF_ROUNDS * _RUNS_A_SAMPLE * once_ms)))
    rows = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples)), dtype=int))
    return bench(
        bundle,
        [samples[row] for row in rows],
        None if labels is None else labels[rows],
        engine=engine,
        rounds=_BRIEF_ROUNDS,
        step=step,
        energy_s=0,
    )


def load_test_data(bundle: Bundle) -> tuple[Samples, Array | None] | None:
    """The test split that the bundle carries, as (tensors, labels); None if it carries none.

    Where sizes vary, the tensors are a list, sample by sample.
    """
    carried = load_test_samples(bundle)
    return None if carried is None else (to_tensors(bundle, carried[0]), carried[1])


def load_test_samples(bundle: Bundle) -> tuple[Samples, Array | None] | None:
    """As `load_test_data`, the samples as they are carried: images as pixels."""
    data = bundle.manifest.test_data
    if data is None:
        return None
    labels = load_array(bundle, data.labels) if data.labels else None
    columns = {x: _carried(bundle, path) for x, path in data.inputs.items()}
    if all(isinstance(one, np.ndarray) for one in columns.values()):
        return columns, labels
    if {len(one) for one in columns.values()} != {data.samples}:
        raise BundleError(
            f"the test split has not {data.samples} samples of each input; rebuild it"
        )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows], labels


def _carried(bundle: Bundle, path: str) -> Any:
    """An input's samples in the bundle: an array, or a list of them where sizes vary."""
    return load_arrays(bundle, path) if path.endswith(".npz") else load_array(bundle, path)


def to_tensors(bundle: Bundle, samples: Samples) -> Samples:
    """Samples `[samples, ...]` or one by one, pixels or tensors, as the network takes them.

    Raises InputError where they do not fit.
    """
    inputs = bundle.manifest.inputs
    if isinstance(samples, Sequence):
        if not samples:
            raise InputError("there are no samples to measure with")
        prepared = [preprocess.prepare(one, inputs) for one in samples]
        return prepared if any(one.varying for one in inputs) else preprocess.stack(prepared)
    arrays = preprocess.arrays_of(samples, inputs)
    if any(one.ndim == 0 or not len(one) for one in arrays):
        raise InputError("there are no samples to measure with")
    if len({len(one) for one in arrays}) > 1:
        raise InputError(f"every input needs as many samples; found {[len(x) for x in arrays]}")
    return to_tensors(bundle, preprocess.unstack(preprocess.sample_of(arrays, inputs)))


def verdict(report: dict[str, Any]) -> str:
    """What a report comes to, in a sentence or two, also where early exit does not pay."""
    chain_ms, plain_ms = report["latency_ms"]["mean"], report["plain"]["latency_ms"]["mean"]
    accuracy, plain_accuracy = report["accuracy"], report["plain"]["accuracy"]
    times = f"{chain_ms:.3f} ms against {plain_ms:.3f} ms on average"
    factor = f"{report['speedup']:.2f} times as fast as the plain network"
    if report["speedup"] < 1 / 1.05:
        text = f"Early exit does not pay here: the plain network is faster ({times})"
    elif report["speedup"] < 1.05:
        text = f"Early exit gains nothing here: the plain network is as fast ({times})"
    elif accuracy is not None and accuracy < plain_accuracy - MOST_ACCURACY_LOSS:
        lost = 100 * (plain_accuracy - accuracy)
        text = f"Early exit costs {lost:.1f} points of accuracy; it is {factor} ({times})"
    else:
        text = f"Early exit pays: {factor} ({times})"
    if not report["classes"]:
        text += "; its exits tell no classes, so nobody knows here what it costs in quality."
    elif accuracy is None:
        text += "; without labels nobody knows what it costs in accuracy."
    else:
        text += f", at {accuracy:.1%} accuracy against {plain_accuracy:.1%}."
    for other in report["beside"]:
        other_ms = other["latency_ms"]["mean"]
        if other_ms < chain_ms:
            text += f" But {other['name']} is faster still: {other_ms:.3f} ms"
            text += f" at {other['accuracy']:.1%}." if accuracy is not None else "."
    return text + caveats(report)


def caveats(report: dict[str, Any]) -> str:
    """Sentences about what should not be made of a report's figures; empty where all is well."""
    text = ""
    if not report["on_target"]:
        text += f" These are not the target's figures: {report['other_device']}."
    if not report["valid"]:
        text += " Do not rely on these figures: " + "; ".join(report["reasons"]) + "."
    return text


def _loaded(
    bundle: Bundle, engine: str | None, threads: int, policy: Policy | None, sample: Sample
) -> tuple[dict[str, Chain], dict[str, Any]]:
    """The contenders of the bundle, each run once, and what the engine and each of them hold.

    What the engine adds is None where it was there already.
    """
    manifest = bundle.manifest

    def whole_way() -> dict[str, Chain]:
        chain = Chain.from_bundle(bundle, engine=engine, threads=threads)
        if policy is not None:
            chain = chain.with_policy(policy)
        refused = (math.inf,) * (len(chain.spec.segments) - 1)
        full_depth = chain.with_policy(replace(chain.spec.policy, thresholds=refused))
        full_depth.one(sample)
        return {"chain": chain, "full_depth": full_depth}

    def alone(segment: Segment) -> Chain:
        network = _undivided(bundle, segment, engine, threads)
        network.one(sample)
        return network

    (baselines,) = (pair for pair in manifest.baselines if pair.variant == manifest.variant().name)
    grown: dict[str, int | None] = {"engine": start_engine(bundle, engine, threads)}
    chains, grown["chain"] = memory.growth(whole_way)
    plain, grown["plain"] = memory.growth(lambda: alone(baselines.plain))
    whole, grown["whole"] = memory.growth(lambda: alone(baselines.whole))
    contenders = {
        "chain": chains["chain"],
        "plain": plain,
        "whole": whole,
        "full_depth": chains["full_depth"],
    }
    return contenders, {
        key: {
            "growth_bytes": size,
            "arena_bytes": contenders[key].engines[0].memory.arena_bytes
            if key in contenders
            else None,
        }
        for key, size in grown.items()
    }


def start_engine(bundle: Bundle, engine: str | None, threads: int) -> int | None:
    """Load an engine for what is loaded next not to be charged with it; by how much that grew.

    It is the bundle's smallest segment that is loaded, and goes again. None where the engine was
    there already, or the kernel does not tell.
    """
    manifest = bundle.manifest
    name = engine or manifest.target.engine
    if ENGINES.get(name) in sys.modules:
        return None
    smallest = min(manifest.variant().segments, key=lambda one: one.size_bytes)

    def start() -> None:
        (content,) = contents(bundle, (smallest,), name)
        load_engines(name, [(smallest.name, content)], threads=threads)

    return memory.growth(start)[1]


def _undivided(bundle: Bundle, segment: Segment, engine: str | None, threads: int) -> Chain:
    manifest = bundle.manifest
    engine = engine or manifest.target.engine
    spec = ChainSpec(
        manifest.inputs,
        manifest.labels,
        manifest.variant().tensors,
        (segment,),
        Policy(_alone(manifest.policy.criterion), ()),
    )
    return Chain.from_segments(
        spec, contents(bundle, (segment,), engine), engine=engine, threads=threads
    )


def _alone(criterion: str) -> str:
    """What an undivided network is sure by: one exit has no other to agree with."""
    return "max_prob" if criterion == PATIENCE else criterion


def _measure(
    contenders: dict[str, Chain],
    chain: Chain,
    inputs: Sequence[Sample],
    rounds: int,
    step: Callable[[str], None],
    look: Callable[[], None],
) -> tuple[dict[str, Measured], _Segments, float]:
    """Every contender on every sample, `rounds` times, and the chain's segments one by one.

    Returns both, and the share of the time that this process was running. Takes a `look` at the
    board before and after each round.
    """
    bare = np.zeros((rounds, len(inputs), len(chain.spec.segments)), np.int64)
    predictions = {name: [one.one(x) for x in inputs] for name, one in contenders.items()}
    in_chain: list[tuple[float, ...]] = []
    # Bound once: copying the sample in just before would warm the caches for the bare run alone.
    # What they compute on is what the chain was given last, which takes as long as any such sample.
    bound: dict[Shapes, list[Callable[[], None]]] = {}
    _bound(chain, inputs[0], bound)

    def run_bare(turn: int, index: int) -> None:
        bare[turn, index] = _bare_ns(_bound(chain, inputs[index], bound))

    def run_in_chain(turn: int, index: int) -> None:
        found = contenders["full_depth"].one(inputs[index], timings=True)
        in_chain.append(found.segment_latency_ms or ())

    jobs, latency_ns = {}, {}
    for name, one in contenders.items():
        jobs[name], latency_ns[name] = timed(one.one, inputs, rounds)
    turns = [*jobs.values(), run_bare, run_in_chain]
    cpu_share = take_turns(turns, len(inputs), rounds, step, look)
    measured = {
        name: Measured(
            latency_ns[name],
            np.array([one.class_index for one in predictions[name]]),
            [
                left_at(one, contenders[name].spec.segments[-1].exits[-1].name)
                for one in predictions[name]
            ],
        )
        for name in contenders
    }
    return measured, _Segments(bare, in_chain), cpu_share


def _energy(
    contenders: dict[str, Chain],
    samples: Sequence[Sample],
    mean_ms: float,
    phase_s: float,
    root: Path,
    step: Callable[[str], None],
) -> dict[str, Any] | None:
    """What the contenders cost, and samples that leave at each exit; None where nobody can tell."""
    meter = power.find(root) if phase_s else None
    if meter is None:
        return None
    chain, last = contenders["chain"], len(contenders["chain"].spec.segments) - 1
    forced = {
        f"exit {depth + 1}": chain.with_policy(
            replace(
                chain.spec.policy,
                thresholds=tuple(-math.inf if one == depth else math.inf for one in range(last)),
            )
        )
        for depth in range(last)
    }
    runs = {name: one.one for name, one in (contenders | forced).items()}
    found = energy.measure(meter, runs, samples, mean_ms, phase_s=phase_s, step=step)
    if found is None:
        return None
    costs, facts = found
    each = {name: one._asdict() for name, one in costs.items()}
    # Whoever leaves at the last exit was refused at all others.
    exits = [each.pop(name) for name in forced] + [each["full_depth"]]
    beside = [each.pop(name) for name in list(each) if name.startswith("beside-")]
    return {**facts, **each, "beside": beside, "exits": exits}


def _bound(
    chain: Chain, x: Sample, bound: dict[Shapes, list[Callable[[], None]]]
) -> list[Callable[[], None]]:
    """The engine's own calls for samples of this shape; a few shapes are kept in `bound`."""
    shapes = tuple(one.shape for one in preprocess.arrays_of(x, chain.spec.inputs))
    if shapes not in bound:
        if len(bound) >= MOST_SHAPES:
            bound.clear()
        bound[shapes] = chain.segment_runs(preprocess.stack([x]))
    return bound[shapes]


def _bare_ns(runs: list[Callable[[], None]]) -> list[int]:
    """The time of each of the engine's calls, one after the other."""
    clock = time.perf_counter_ns
    times = [clock()]
    for call in runs:
        call()
        times.append(clock())
    return [after - before for before, after in itertools.pairwise(times)]


def _demand_alike(bundle: Bundle, other: Bundle) -> None:
    """Refuse to measure networks that take other inputs, or tell other classes, side by side."""
    ours, theirs = bundle.manifest, other.manifest
    takes = [[replace(one, tensor="") for one in each.inputs] for each in (ours, theirs)]
    if takes[0] != takes[1]:
        raise InputError(
            f"{theirs.name} takes another input than {ours.name}: shape or image steps"
        )
    if ours.labels != theirs.labels:
        raise InputError(f"{theirs.name} tells other classes than {ours.name}")


def _spread(latency_ms: Array) -> dict[str, Any]:
    """Mean and quantiles in ms, evenly spaced from the least to the greatest."""
    levels = np.linspace(0, 1, _QUANTILES)
    return {
        "mean": float(latency_ms.mean()),
        "quantiles": [float(one) for one in np.quantile(latency_ms, levels)],
    }


def _at_exit(measured: Measured, name: str, labels: Array | None) -> dict[str, Any]:
    """Accuracy and latency of the samples that left at an exit; None where none did."""
    rows = [row for row, taken in enumerate(measured.exits) if taken == name]
    if not rows:
        return {"accuracy": None, "latency_ms": None}
    chosen = None if labels is None else labels[rows]
    return {
        "accuracy": accuracy_of(measured.classes[rows], chosen),
        "latency_ms": latency_summary(measured.latency_ns[:, rows]),
    }
