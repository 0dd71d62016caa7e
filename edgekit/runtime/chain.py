"""The chain: segments in order, a look at the confidence after each, and a stop when it may."""

import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.bundle.ladder import is_ladder, read_ladder, read_variant
from edgekit.bundle.manifest import (
    GIVEN,
    Input,
    Policy,
    Segment,
    TensorSpec,
    Tuning,
    boundaries,
)
from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.errors import BundleError, InputError
from edgekit.runtime import deadline, preprocess
from edgekit.runtime.criteria import CRITERIA, Answers, Walk, scaled, unknown
from edgekit.runtime.device import threads_here
from edgekit.runtime.engines import BUILT_ON_DEVICE, Buffer, Engine, HostMemory, load_engines
from edgekit.runtime.metrics import Metrics
from edgekit.runtime.preprocess import Sample
from edgekit.runtime.watcher import Watcher

__all__ = [
    "MOST_SHAPES",
    "Chain",
    "ChainSpec",
    "Prediction",
    "Shapes",
    "contents",
    "left_at",
    "most_rows",
]

Array = npt.NDArray[Any]

_MOST_ROWS = 64
"""Samples that run at once: more gain nothing on a CPU, and their features would fill a device."""

_MEASURED_RUNS = 20
"""Least runs whose 90th percentile is taken for the expected time of each segment."""

_MEASURED_NS = 300_000_000
"""So long a fast network is run on: of a few runs, two that were disturbed make the percentile."""

MOST_SHAPES = 8
"""Shapes of samples whose buffers are kept, where sizes vary; the one not used for longest goes."""

_MOST_SIZES = 4096
"""Shapes of samples for which the sizes of what crosses are known without asking the engines."""

Shapes = tuple[tuple[int, ...], ...]
"""The shape of one sample, for each input."""

Stop = Literal["sure", "final", "deadline"]
"""Why a sample went no further: an early exit was sure, it was the final exit, or time was up."""


class Prediction(NamedTuple):
    """What the chain says of one sample.

    `exit` is the one that answers, and `class_index` and `confidence` are its, combined with those
    before it where the policy says so. `stop` is "sure" where the sample left at an early exit that
    was sure enough, "final" where it came to the final exit, "deadline" where the next segment was
    not expected to end in time. In the last two an earlier exit may be the one that answers, if the
    policy says `otherwise: max_confidence`.
    `segment_latency_ms` has the time of each segment that ran, with the look at its exit, where
    the call asked for timings. In a batch it is the time of the batch that the sample ran in.

    Where the exits give something else than class scores, `class_index` and `label` are None, and
    `output` is what the exit that answers gives for the sample, an array of its own. `confidence`
    is NaN at a final exit that gives none.

    `variant` is the one of a ladder that answers, see `Ladder`; None where a chain was asked.
    """

    class_index: int | None
    label: str | None
    exit: str
    confidence: float
    stop: Stop
    segment_latency_ms: tuple[float, ...] | None = None
    output: Array | None = None
    variant: str | None = None  # The last: `Ladder` puts it behind what the chain said.


def contents(bundle: Bundle, segments: Sequence[Segment], engine: str) -> list[bytes]:
    """What this engine loads for these segments: their files, or what was built of them here.

    Raises as `edgekit.runtime.install.contents`; BundleError where a file was changed.
    """
    if engine in BUILT_ON_DEVICE:
        from edgekit.runtime import install

        return install.contents(bundle, segments)
    known = bundle.segments
    return [known[one.path] if one.path in known else bundle.read(one.path) for one in segments]


def left_at(found: Prediction, final: str) -> str:
    """The last exit that was computed, where no deadline was set; `final` names the final one.

    Under `max_confidence` an earlier one may have answered.
    """
    return found.exit if found.stop == "sure" else final


@dataclass(frozen=True)
class ChainSpec:
    """What a chain is, apart from its engines: contracts, labels and policy.

    `most_rows` is how many samples run at once (see the function of that name); `bundle_id` says
    which bundle the segments are of, if they are of one, and `tuning` what is known of its policy.
    """

    inputs: tuple[Input, ...]
    labels: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    segments: tuple[Segment, ...]
    policy: Policy
    most_rows: int = _MOST_ROWS
    bundle_id: str | None = None
    tuning: Tuning | None = None


def most_rows(precision: str) -> int:
    """How many samples of a batch may run at once in a target's precision.

    One where activations' ranges are read at run time: they are read over the batch, and what is
    said of a sample would depend on the others.
    """
    return 1 if precision == "int8-dynamic" else _MOST_ROWS


class _Step(NamedTuple):
    """A segment bound to buffers: run it, read what is looked at, and hold that to a threshold.

    `depth` counts from 0. `stop` is why a sample that leaves here does. `read` gives what the
    criterion is computed from: the exit's logits, for one sample over their temperature if there is
    one, or the confidences that it gives itself; `output` its logits, or what it has instead.
    """

    depth: int
    run: Callable[[], None]
    read: Callable[[], Array]
    exit: str
    threshold: float | None
    stop: Stop
    output: Callable[[], Array]


class _Entry(NamedTuple):
    """What an input is held to, and how to copy samples into its buffer."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    floats: bool
    input: Input
    write: Callable[[Array], None]


class _Plan(NamedTuple):
    """Everything that a number of samples needs: copy them in, then one step after the other."""

    entries: list[_Entry]
    steps: list[_Step]


@dataclass
class _Room:
    """Buffers for up to `capacity` samples of one shape, and the plans bound to them, by rows.

    `sizes` has the shape of each tensor without the batch.
    """

    sizes: dict[str, tuple[int, ...]]
    capacity: int = 0
    buffers: dict[str, Buffer] = field(default_factory=dict)
    plans: dict[int, _Plan] = field(default_factory=dict)


class Chain:
    """Segments that run one after the other, and stop at the first exit that is sure enough.

    A chain may be called from several threads: calls take turns under a lock, because all of them
    use the same buffers. For calls side by side, load a chain per thread.

    Where sizes vary, a chain keeps buffers for the last few shapes that it was given; the first
    call with a new one also makes buffers, and runs each segment once more to learn their sizes.
    """

    def __init__(self, spec: ChainSpec, engines: Sequence[Engine]) -> None:
        self.spec = spec
        self.engines = tuple(engines)
        self._memory = engines[0].memory
        policy = spec.policy
        if words := unknown(policy):
            raise BundleError(f"{words}: install the edgekit that built the bundle")
        # Its exit is the last that a segment computes: the undivided network computes them all.
        self._exits = [segment.exits[-1] for segment in spec.segments]
        # The host's own chains have no labels: it asks them for tensors.
        scores = bool(spec.labels) or not any(exit.confidence for exit in self._exits)
        if words := policy.problem(self._exits, scores=scores):
            raise InputError(f"policy: {words}")
        # An exit that is looked at alone needs no Walk: one sample then costs two calls an exit.
        alone = (policy.combine, policy.otherwise) == ("last", "last")
        self._given = policy.criterion == GIVEN
        known: dict[str, Callable[[Any], Any]] = {**CRITERIA, GIVEN: float}
        self._criterion = known.get(policy.criterion) if alone else None
        # Class scores, each exit's alone: nothing is left to do then but to take the largest.
        self._plain = self._criterion is not None and not self._given and bool(spec.labels)
        # Of what a temperature divides, the largest is taken before that, as `Walk` does.
        self._plain &= policy.temperatures is None
        # The last exit takes every sample that comes to it, also one whose confidence is NaN.
        self._thresholds = [*policy.thresholds, None]
        self._single = len(spec.inputs) == 1
        self._dtypes = [np.dtype(one.dtype) for one in spec.inputs]
        # What `prepare` has nothing to do with: the only input's tensor. Pixels are no float32.
        self._ready = (spec.inputs[0].shape, self._dtypes[0]) if self._single else None
        self.lock = threading.Lock()
        self.watchers: tuple[Watcher, ...] = ()
        self._varying = any(one.varying for one in spec.inputs)
        self._sizes: dict[Shapes, dict[str, tuple[int, ...]]] = {}
        self._rooms: dict[Shapes, _Room] = {}
        self._shapes: Shapes | None = None
        self._room = _Room({})
        if not self._varying:
            self._room.sizes = {
                name: tuple(size or 0 for size in one.shape[1:])
                for name, one in spec.tensors.items()
            }
        self._plans = self._room.plans
        self._crossing = boundaries([one.tensor for one in spec.inputs], spec.segments)
        if not spec.labels and policy.otherwise == "max_confidence":
            # What an exit gave is wanted after later ones have run, of the samples that go on.
            for depth, crossing in enumerate(self._crossing):
                given = [exit.logits for exit in self._exits[: depth + 1]]
                crossing += [name for name in given if name not in crossing]
        # Expected ns per segment; empty until a deadline needs them. Copies share the list.
        self._segment_ns: list[float] = []
        self._recorded: Callable[[], Sequence[float] | None] = lambda: None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        variant: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        segment_ms: Sequence[float] | None = None,
        profile: str | os.PathLike[str] | None = None,
        metrics: str | os.PathLike[str] | None = None,
    ) -> "Chain":
        """The chain of the bundle at `path`, or of a variant of the ladder there.

        `variant` must name one of a ladder's, and is the first of a bundle's by default. `engine`
        is the target's (another that reads the same segments may run them), `threads` what the
        target says, or the cores of this machine where those are fewer. For deadlines, `segment_ms`
        or `profile` says how long segments take: see `Chain.segment_ms`; a profile is a report that
        `edgekit bench --json` wrote of this bundle on this device. `metrics` is a file for what the
        chain does (`Metrics`).

        Raises BundleError where the bundle is not exactly what was built, DeviceError where its
        engine is missing or refuses a segment (NotInstalledError, MismatchError and PlanError where
        `edgekit install` helps), InputError where the times do not fit, the file cannot be written,
        or no variant of a ladder is named.
        """
        if is_ladder(path):
            document = read_ladder(path)
            if variant is None:
                raise InputError(
                    f"{path}: is a ladder of {', '.join(document.names)}: name a variant, or let "
                    "Ladder.load choose"
                )
            bundle, variant = read_variant(path, document, variant), None
        else:
            bundle = read_bundle(path)
        return cls.from_bundle(
            bundle,
            variant=variant,
            engine=engine,
            threads=threads,
            segment_ms=segment_ms,
            profile=profile,
            metrics=metrics,
        )

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        variant: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        segment_ms: Sequence[float] | None = None,
        profile: str | os.PathLike[str] | None = None,
        metrics: str | os.PathLike[str] | None = None,
    ) -> "Chain":
        """As `load`, from a bundle that was read already."""
        manifest = bundle.manifest
        chosen = manifest.variant(variant)
        threads = threads or threads_here(manifest.target.threads)
        engine = engine or manifest.target.engine
        gpu = manifest.target.gpu
        built = engine in BUILT_ON_DEVICE
        chain = cls.from_segments(
            ChainSpec(
                manifest.inputs,
                manifest.labels,
                chosen.tensors,
                chosen.segments,
                manifest.policy,
                gpu.batch_sizes[-1] if built and gpu else most_rows(manifest.target.precision),
                manifest.bundle_id,
                manifest.tuning,
            ),
            contents(bundle, chosen.segments, engine),
            engine=engine,
            threads=threads,
        )
        if profile is not None:
            if segment_ms is not None:
                raise InputError("give segment_ms or a profile: each says how long segments take")
            segment_ms = deadline.from_report(
                profile, bundle, chosen.segments, threads, chain.engines[0].version
            )
        if segment_ms is not None:
            chain.segment_ms = segment_ms
        # Kept without the segments' bytes, which the engines hold already.
        chain._recorded = functools.partial(
            deadline.from_evidence,
            replace(bundle, segments={}),
            chosen.segments,
            threads,
            chain.engines[0].version,
        )
        if metrics is not None:
            Metrics(chain, metrics)
        return chain

    @classmethod
    def from_segments(
        cls, spec: ChainSpec, segments: Sequence[bytes], *, engine: str, threads: int
    ) -> "Chain":
        """A chain of segments in memory: what `load` ends in, and what the host checks with."""
        named = zip([one.name for one in spec.segments], segments, strict=True)
        return cls(spec, load_engines(engine, list(named), threads=threads))

    def with_policy(self, policy: Policy) -> "Chain":
        """The same segments, already loaded, under another policy and with buffers of their own.

        The two share what is known of the segments' times, and who watches the first is told
        nothing of the other. What tuning found is of thresholds alone: where anything else of the
        policy is another, it goes.
        """
        alike = replace(policy, thresholds=self.spec.policy.thresholds) == self.spec.policy
        tuning = self.spec.tuning if alike else None
        other = Chain(replace(self.spec, policy=policy, tuning=tuning), self.engines)
        # The engines are shared, and not every engine may run twice at once.
        other.lock = self.lock
        other._segment_ns, other._recorded = self._segment_ns, self._recorded
        return other

    @property
    def metrics(self) -> Metrics | None:
        """Who counts the chain's samples; None where nobody does."""
        return next((one for one in self.watchers if isinstance(one, Metrics)), None)

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` of every sample from the next call on.

        Samples of a batch are told in their order, once all have left. Raises InputError where one
        of its kind watches the chain.
        """
        with self.lock:
            if any(type(one) is type(watcher) for one in self.watchers):
                kind = type(watcher).__name__
                raise InputError(f"the chain has its {kind} already: close that one first")
            every = (*self.watchers, watcher)
            self.watchers = tuple(sorted(every, key=lambda one: one.sets_thresholds))

    def unwatch(self, watcher: Watcher) -> None:
        """Tell `watcher` no more. For those who hold the chain's lock; again does nothing."""
        self.watchers = tuple(one for one in self.watchers if one is not watcher)

    def set_thresholds(self, thresholds: Sequence[float]) -> None:
        """Hold samples to these thresholds from the next call on, one per early exit.

        Nothing is loaded, bound or allocated. `spec.policy` has them afterwards. Raises InputError
        where they are not as many numbers as there are early exits.
        """
        try:
            found = tuple(float(one) for one in thresholds)
        except (TypeError, ValueError):
            found = (math.nan,)
        if any(math.isnan(one) for one in found):
            raise InputError(f"thresholds are numbers, one per early exit; found {thresholds!r}")
        with self.lock:
            self.retune(found)

    def retune(self, thresholds: tuple[float, ...]) -> None:
        """As `set_thresholds`, for those who hold the chain's lock: watchers, as they are told."""
        if len(thresholds) != len(self._thresholds) - 1:
            raise InputError(
                f"policy: {len(self._thresholds)} exits need {len(self._thresholds) - 1} "
                f"thresholds, found {len(thresholds)}"
            )
        self.spec = replace(self.spec, policy=replace(self.spec.policy, thresholds=thresholds))
        self._thresholds = [*thresholds, None]
        for room in self._rooms.values() or [self._room]:
            for plan in room.plans.values():
                pairs = zip(plan.steps, self._thresholds, strict=True)
                plan.steps[:] = [step._replace(threshold=one) for step, one in pairs]

    def read(self, path: str | os.PathLike[str]) -> Sample:
        """An image or `.npy` file as the input's tensor, an `.npz` file as several inputs' tensors.

        Raises InputError, DeviceError.
        """
        return preprocess.prepare(preprocess.read_sample(Path(path)), self.spec.inputs)

    def prepare(self, sample: Sample) -> Sample:
        """Pixels uint8 `[height, width(, 3)]`, or a tensor, as the input's tensor.

        Or those by the inputs' names, where there are several. Raises InputError where they do not
        fit.
        """
        if type(sample) is np.ndarray and (sample.shape, sample.dtype) == self._ready:
            return sample
        return preprocess.prepare(sample, self.spec.inputs)

    @property
    def segment_ms(self) -> tuple[float, ...] | None:
        """The expected ms of each segment with the look at its exit; None while nobody knows them.

        A deadline is held against them. Whoever sets them gives a number per segment, or InputError
        is raised; the first deadline looks for them in the bundle's evidence if that was measured
        on a processor like this one, and else measures (`measure`).
        """
        return tuple(one / 1e6 for one in self._segment_ns) or None

    @segment_ms.setter
    def segment_ms(self, segment_ms: Sequence[float]) -> None:
        self._segment_ns[:] = deadline.expected_ns(segment_ms, len(self.spec.segments))

    def measure(self, sample: Sample | None = None) -> tuple[float, ...]:
        """Run every segment some twenty times on `sample`, or on zeros, and set `segment_ms`.

        Returns what it set, the 90th percentiles in ms. Raises as `one`.
        """
        refused = (math.inf,) * (len(self.spec.segments) - 1)
        chain = self.with_policy(replace(self.spec.policy, thresholds=refused))
        if sample is None:
            sample = preprocess.blank(self.spec.inputs)
        chain.one(sample)  # The first run also makes buffers, the engine's among them.
        runs: list[Prediction] = []
        end_ns = time.perf_counter_ns() + _MEASURED_NS
        while len(runs) < _MEASURED_RUNS or time.perf_counter_ns() < end_ns:
            runs.append(chain.one(sample, timings=True))
        found = deadline.expected_ms([run.segment_latency_ms or () for run in runs])
        self.segment_ms = found
        return tuple(found)

    def __call__(
        self,
        x: Sample | Sequence[Array],
        *,
        timings: bool = False,
        deadline_ms: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Answer one sample (`one`), or each sample of a batch (`many`), by the shape of `x`.

        Raises InputError for a batch with a deadline.
        """
        given: Any = x if isinstance(x, Mapping) else preprocess.as_array(x)
        first, source = preprocess.arrays_of(given, self.spec.inputs)[0], self.spec.inputs[0]
        if first.ndim == len(source.shape):
            return self.one(given, timings=timings, deadline_ms=deadline_ms)
        if deadline_ms is not None:
            raise InputError(
                f"a deadline is for one sample, {source.shape_text()}; found {list(first.shape)}: "
                "call the chain for each"
            )
        return self.many(given, timings=timings)

    def one(
        self, sample: Sample, *, timings: bool = False, deadline_ms: float | None = None
    ) -> Prediction:
        """Classify one sample: an array of the input's shape and dtype, or arrays by input's name.

        With a deadline the first segment runs in any case. Each further one runs only if it is
        expected (`segment_ms`) to end within `deadline_ms` of the call; else the answer is that of
        the exits computed, as the policy has it where none of them is sure. Waiting for another
        thread's call counts; finding out the expected times, once, does not.

        Raises InputError for other inputs, another shape or dtype, values that are not finite or
        outside the input's range, or a deadline that is not finite and above 0; DeviceError where
        an engine fails.
        """
        due_ns = None if deadline_ms is None else self._due_ns(deadline_ms)
        # Of one input, no look at names: this path is short on purpose, see below.
        single = self._single and type(sample) is np.ndarray
        given: Any = (sample,) if single else preprocess.arrays_of(sample, self.spec.inputs)
        with self.lock:
            # Few calls and no layers between them: after a segment has filled the processor's
            # caches, every Python or numpy call on this path costs several times what it should.
            clock = time.perf_counter_ns
            watchers = self.watchers
            started_ns = clock() if watchers else 0
            times = [clock()] if timings else None
            if self._varying:
                self._turn_to(tuple([array.shape for array in given]), given)
            plan = self._plans.get(1) or self._plan(1)
            for array, (shape, dtype, floats, source, write) in zip(given, plan.entries):  # noqa: B905
                if array.shape != shape or array.dtype != dtype:
                    raise self._misfit(array, source)
                write(array)
                if not floats or not np.logical_and.reduce(np.isfinite(array), axis=None):
                    self._check_values(array, source)
            criterion = self._criterion
            walk = Walk(self.spec.policy) if criterion is None else None
            for depth, run, read, exit, threshold, stop, output in plan.steps:  # noqa: B007
                run()
                if walk is None:
                    logits = read()[0]
                    confidence = float(criterion(logits))  # type: ignore[misc]
                else:
                    answer = walk.look(output(), read())
                    confidence = float(answer.confidences[0])
                if times is not None:
                    times.append(clock())
                if threshold is None or confidence >= threshold:
                    break
                if due_ns is not None and clock() + self._segment_ns[depth + 1] > due_ns:
                    stop = "deadline"  # noqa: PLW2901
                    break
            result = None
            if self._plain:
                index = int(logits.argmax())
            else:
                taken = depth
                if walk is not None:
                    sure = stop == "sure"
                    taken, index, confidence = _row(answer if sure else walk.otherwise(), 0)
                    exit = self._exits[taken].name
                if not self.spec.labels:
                    result = plan.steps[taken].output()[0].copy()
                elif walk is None:
                    index = int(output()[0].argmax())
            if watchers:
                ended_ns = clock()
                for watcher in watchers:
                    watcher.add(depth, confidence, started_ns, ended_ns, stop)
        if result is not None:
            return Prediction(None, None, exit, confidence, stop, _latencies(times), result)
        return Prediction(index, self.spec.labels[index], exit, confidence, stop, _latencies(times))

    def many(self, samples: Sample, *, timings: bool = False) -> list[Prediction]:
        """Classify a batch: the input's shape behind any number of samples, none included.

        Where there are several inputs, such arrays by the inputs' names. Where sizes vary, the
        samples of a batch have one shape: call it once for each.

        Every sample leaves at its own exit, and only those that remain go on. A large batch is run
        in parts. Raises as `one`.
        """
        with self.lock:
            given = self._batch(samples)
            found: list[Prediction] = []
            most = self.spec.most_rows
            for start in range(0, len(given[0]), most):
                found += self._many([one[start : start + most] for one in given], timings)
            return found

    def logits(self, samples: Sample) -> dict[str, Array]:
        """Every exit's logits `[samples, classes]`, by name in order, with no exit taken.

        Or `[samples, ...]`, what the exits give instead of class scores.
        """
        return self.exits(samples)[0]

    def exits(self, samples: Sample) -> tuple[dict[str, Array], dict[str, Array]]:
        """The `logits`, and by name the confidences `[samples]` of the exits that give their own.

        With no exit taken.
        """
        exits = [exit for segment in self.spec.segments for exit in segment.exits]
        # These alone: what crosses between segments may be on a GPU, and stays there.
        tensors = self._parts(samples, {x for one in exits for x in (one.logits, one.confidence)})
        return {exit.name: tensors[exit.logits] for exit in exits}, {
            exit.name: tensors[exit.confidence] for exit in exits if exit.confidence is not None
        }

    def tensors(self, samples: Sample) -> dict[str, Array]:
        """Every tensor of the chain by name, with no exit taken: to find where an error begins."""
        return self._parts(samples, None)

    def _parts(self, samples: Sample, wanted: set[str | None] | None) -> dict[str, Array]:
        """Of these tensors, or of all, what the whole chain gives: large samples in parts."""
        with self.lock:
            given = self._batch(samples)
            most = self.spec.most_rows
            parts = [
                self._tensors([one[start : start + most] for one in given], wanted)
                for start in range(0, max(len(given[0]), 1), most)
            ]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def segment_runs(self, samples: Sample) -> list[Callable[[], None]]:
        """The engine's own calls, bound to these samples: for timing segments outside the chain.

        Each returns when its segment is done. They use the chain's buffers, so they must not run
        beside a call of the chain.
        """
        memory = self._memory
        with self.lock:
            runs = [step.run for step in self._start(self._batch(samples))]
            memory.finish()
        if isinstance(memory, HostMemory):
            return runs  # Nothing around them: that would be timed as well.
        return [_to_its_end(run, memory.finish) for run in runs]

    def _tensors(self, given: Sequence[Array], wanted: set[str | None] | None) -> dict[str, Array]:
        for step in self._start(given):
            step.run()
        memory, rows = self._memory, len(given[0])
        return {
            name: memory.reader(buffer, rows)().copy()
            for name, buffer in self._room.buffers.items()
            if wanted is None or name in wanted
        }

    def _due_ns(self, deadline_ms: float) -> float:
        """When a call that begins now must end, on the clock; the expected times are known then."""
        budget_ns = deadline.budget_ns(deadline_ms)
        if not self._segment_ns:
            recorded = self._recorded()
            if recorded is None:
                self.measure()
            else:
                self.segment_ms = recorded
        return time.perf_counter_ns() + budget_ns

    def _many(self, given: Sequence[Array], timings: bool) -> list[Prediction]:
        clock = time.perf_counter_ns
        watchers = self.watchers
        started_ns = clock() if watchers else 0
        times = [clock()] if timings else None
        steps = self._start(given)
        walk = Walk(self.spec.policy)
        remaining = np.arange(len(given[0]))
        result: dict[int, Prediction] = {}
        left: dict[int, tuple[int, float, int, int, Stop]] = {}
        for k in range(len(steps)):
            _, run, read, _, threshold, stop, output = steps[k]
            run()
            answers = walk.look(output(), read())
            if threshold is None:
                leaves = np.ones(len(remaining), bool)
                answers = walk.otherwise()
            else:
                leaves = answers.confidences >= threshold
            if times is not None:
                times.append(clock())
            ended_ns = clock() if watchers else 0
            for row in np.flatnonzero(leaves):
                taken, index, confidence = _row(answers, int(row))
                if watchers:
                    left[int(remaining[row])] = (k, confidence, started_ns, ended_ns, stop)
                labels = self.spec.labels
                result[int(remaining[row])] = Prediction(
                    index if labels else None,
                    labels[index] if labels else None,
                    self._exits[taken].name,
                    confidence,
                    stop,
                    _latencies(times),
                    None if labels else steps[taken].output()[row].copy(),
                )
            if leaves.all():
                break
            if leaves.any():
                kept = np.flatnonzero(~leaves)
                remaining = remaining[kept]
                walk.keep(kept)
                for tensor in self._crossing[k]:
                    self._memory.keep(self._room.buffers[tensor], kept)
                steps = (self._plans.get(len(kept)) or self._plan(len(kept))).steps
        # Only now, for a watcher may set thresholds, and in order: by exit, a window that ends amid
        # a batch would have more of the first exits than the stream has.
        for _, told in sorted(left.items()):
            for watcher in watchers:
                watcher.add(*told)
        return [result[row] for row in range(len(given[0]))]

    def _batch(self, samples: Sample) -> list[Array]:
        """What a batch gives each input, in order; refuses what does not fit."""
        given = preprocess.arrays_of(samples, self.spec.inputs)
        for array, source, dtype in zip(given, self.spec.inputs, self._dtypes, strict=True):
            if not array.ndim or not source.takes(array.shape[1:]) or array.dtype != dtype:
                raise self._misfit(array, source)
        counts = [len(one) for one in given]
        if len(set(counts)) > 1:
            named = zip(counts, self.spec.inputs, strict=True)
            found = ", ".join(f"{count} of {source.name}" for count, source in named)
            raise InputError(f"every input needs as many samples; found {found}")
        if self._varying:
            self._turn_to(tuple([one.shape[1:] for one in given]), given)
        return given

    def _turn_to(self, shapes: Shapes, given: Sequence[Array]) -> None:
        """Go on in the room for samples of these shapes, which are `given`; refuses others."""
        if shapes == self._shapes:
            return
        room = self._rooms.pop(shapes, None)
        if room is None:
            for array, shape, source in zip(given, shapes, self.spec.inputs, strict=True):
                if not source.takes(shape):
                    raise self._misfit(array, source)
            room = _Room(self._sizes_for(shapes))
            if len(self._rooms) >= MOST_SHAPES:
                del self._rooms[next(iter(self._rooms))]
        self._rooms[shapes] = room  # Last, as the one just used.
        self._shapes, self._room, self._plans = shapes, room, room.plans

    def _sizes_for(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor for samples of these shapes: what the engines say, once."""
        if shapes in self._sizes:
            return self._sizes[shapes]
        memory, tensors = self._memory, self.spec.tensors
        sizes: dict[str, tuple[int, ...]] = {}
        buffers = {}
        for source, shape in zip(self.spec.inputs, shapes, strict=True):
            sizes[source.tensor] = shape
            buffers[source.tensor] = memory.allocate((1, *shape), source.dtype)
            memory.writer(buffers[source.tensor], 1)(np.full(shape, preprocess.nothing(source)))
        for segment, engine in zip(self.spec.segments, self.engines, strict=True):
            found = engine.shapes({name: buffers[name] for name in segment.inputs})
            for name in segment.outputs:
                fixed = tensors[name].shape[1:]
                if len(found[name]) != len(fixed) or any(
                    size not in {None, one} for size, one in zip(fixed, found[name], strict=True)
                ):
                    raise BundleError(
                        f"{segment.name} gives {name} as {list(found[name])}, and the manifest "
                        f"says {list(fixed)}; build the bundle again"
                    )
                sizes[name] = found[name]
                buffers[name] = memory.allocate((1, *found[name]), tensors[name].dtype)
        if len(self._sizes) >= _MOST_SIZES:
            del self._sizes[next(iter(self._sizes))]
        self._sizes[shapes] = sizes
        return sizes

    def _misfit(self, array: Array, source: Input) -> InputError:
        """The refusal of an array of another dtype, or whose samples have another shape."""
        error = InputError(
            f"expected {source.dtype} {source.shape_text()}, or that behind a batch; "
            f"found {array.dtype} {list(array.shape)}"
            + ("; pixels become a tensor with chain.prepare()" if source.image else "")
        )
        return preprocess.named_error(error, source, self.spec.inputs)

    def _check_values(self, array: Array, source: Input) -> None:
        try:
            preprocess.check_values(array, source)
        except InputError as error:
            raise preprocess.named_error(error, source, self.spec.inputs) from None

    def _start(self, given: Sequence[Array]) -> "list[_Step]":
        """Copy samples into the inputs' buffers; the steps that then run on that many."""
        rows = len(given[0])
        plan = self._plans.get(rows) or self._plan(rows)
        for array, entry in zip(given, plan.entries, strict=True):
            self._check_values(array, entry.input)
            entry.write(array)
        return plan.steps

    def _plan(self, rows: int) -> "_Plan":
        """Bind every segment to `rows` samples; kept, and made once per number of samples."""
        memory, segments, room = self._memory, self.spec.segments, self._room
        if rows > room.capacity or not room.buffers:
            room.plans.clear()
            used = {one.tensor for one in self.spec.inputs}
            used = used.union(*(x.inputs + x.outputs for x in segments))
            room.buffers = {
                name: memory.allocate((rows, *room.sizes[name]), spec.dtype)
                for name, spec in self.spec.tensors.items()
                if name in used
            }
            room.capacity = rows
        buffers = room.buffers
        temperatures = self.spec.policy.temperatures
        steps = []
        bound = zip(segments, self.engines, self._thresholds, strict=True)
        for depth, (segment, engine, threshold) in enumerate(bound):
            run = engine.bind(
                {name: buffers[name] for name in segment.inputs},
                {name: buffers[name] for name in segment.outputs},
                rows,
            )
            exit = self._exits[depth]
            output = memory.reader(buffers[exit.logits], rows)
            read = output
            if self._given:
                read = _nothing(rows, memory.finish)
                if exit.confidence is not None:
                    read = memory.reader(buffers[exit.confidence], rows)
            elif rows == 1 and self._criterion is not None and temperatures is not None:
                read = _scaled(output, temperatures[depth])
            stop: Stop = "final" if threshold is None else "sure"
            steps.append(_Step(depth, run, read, exit.name, threshold, stop, output))
        entries = [
            _Entry(
                room.sizes[one.tensor],
                dtype,
                one.range is None,
                one,
                memory.writer(buffers[one.tensor], rows),
            )
            for one, dtype in zip(self.spec.inputs, self._dtypes, strict=True)
        ]
        plan = _Plan(entries, steps)
        room.plans[rows] = plan
        return plan


def _row(answers: Answers, row: int) -> tuple[int, int, float]:
    """One sample's exit, class and confidence."""
    exits, classes, confidences = answers
    return int(exits[row]), int(classes[row]), float(confidences[row])


def _to_its_end(run: Callable[[], None], finish: Callable[[], None]) -> Callable[[], None]:
    """Runs a segment whose engine only starts it, and waits for it."""

    def call() -> None:
        run()
        finish()

    return call


def _nothing(rows: int, finish: Callable[[], None]) -> Callable[[], Array]:
    """Reads the confidences of an exit that gives none, once its segment is done."""
    unknown = np.full(rows, np.nan)

    def read() -> Array:
        finish()
        return unknown

    return read


def _scaled(output: Callable[[], Array], temperature: float) -> Callable[[], Array]:
    """Reads an exit's logits over its temperature."""
    return lambda: scaled(output(), temperature)


def _latencies(times: list[int] | None) -> tuple[float, ...] | None:
    if times is None:
        return None
    return tuple((after - before) / 1e6 for before, after in itertools.pairwise(times))
