"""The check after every stage: the chain on real samples, held against the model in PyTorch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from edgekit.backends import checked_with
from edgekit.bundle.manifest import GIVEN, Policy
from edgekit.data import Split
from edgekit.errors import CheckError, DeviceError, ModelError
from edgekit.models.exits import eager_logits, to_torch
from edgekit.recipe import Check, Tolerance
from edgekit.runtime.chain import Chain, ChainSpec, Prediction, most_rows
from edgekit.runtime.criteria import Decisions, Walk, decide
from edgekit.runtime.device import threads_here
from edgekit.runtime.preprocess import (
    Inputs,
    Sample,
    arrays_of,
    by_name,
    sample_of,
    stack,
    unstack,
)
from edgekit.runtime.verify import differences
from edgekit.stages import Exported, Network, Part, Segments
from edgekit.target import Target

__all__ = [
    "Agreement",
    "Reference",
    "Runner",
    "chain_of",
    "demand_range",
    "ends_logits",
    "even_policy",
    "model_logits",
    "never",
    "runner_for",
]

Array = npt.NDArray[Any]


_ALONE = 4
"""Samples that the model is also asked about one by one."""

_FEW = 8
"""Samples that tell a right program from a wrong one; what is still right meets the whole check."""

_WHAT = ("logits", "confidences")
"""What an exit gives, and what it may give beside that."""

_STEADY = 1e-3
"""How far the model's answers to the same sample may differ: other kernels round otherwise."""


@dataclass(frozen=True)
class Agreement:
    """How far a chain is from the model in PyTorch, over `samples` samples.

    `max_abs_error` and `max_relative_error` are over all exits' logits, and the confidences that
    they give; relative to the largest magnitude among an exit's. `top1_agreement` is the share of
    (sample, exit) pairs with the same class, None where exits tell no classes; `exit_agreement` the
    share of samples that leave at the same exit with the same class.
    """

    stage: str
    samples: int
    max_abs_error: float
    max_relative_error: float
    top1_agreement: float | None
    exit_agreement: float


Runner = Callable[[Sample], dict[str, Array]]
"""Samples `[batch, *shape]` to every tensor of a chain, by name."""


def model_logits(network: Network, batches: Iterator[Sample]) -> list[Array]:
    """The model's logits `[samples, classes]` per exit, if a chain can be held to its answers.

    Then the confidences `[samples]` of the exits that give theirs; see `Network`. Raises
    ModelError where they are not finite, are others the second time, or depend on the batch that a
    sample is in.
    """
    exits = [*network.exits, *network.exits[: network.given]]
    outputs: list[list[Array]] = [[] for _ in exits]
    for number, batch in enumerate(batches):
        logits = eager_logits(network.module, batch)
        for place, (exit, output, one) in enumerate(zip(exits, outputs, logits, strict=True)):
            given = place >= len(network.exits)
            # A masked class is -inf and may stay; NaN and +inf make every class as good.
            if np.isnan(one).any() or (np.isinf if given else np.isposinf)(one).any():
                raise ModelError(
                    f"the model itself gives NaN or infinite {_WHAT[given]} at exit {exit!r}; look "
                    "at its checkpoint and at the recipe's preprocessing"
                )
            output.append(one)
        if number == 0:
            _demand_steady(network, batch, logits)
    return [np.concatenate(output) for output in outputs]


def demand_range(network: Network, inputs: Inputs, sample: Sample) -> None:
    """Raises ModelError where the model fails at an end of the range of an input of integers.

    A table with fewer rows than the recipe says would be read beyond its end on a device. `sample`
    is what the other inputs are given.
    """
    for place, one in enumerate(inputs):
        for end in one.range or ():
            arrays = arrays_of(sample, inputs)
            arrays[place] = np.full_like(arrays[place], end)
            try:
                eager_logits(network.module, stack([sample_of(arrays, inputs)] * 2))
            except ModelError as error:
                key = f"inputs.{one.name}" if len(inputs) > 1 else "input"
                raise ModelError(f"{key}.range goes to {end}, and there {error}") from None


def ends_logits(network: Network, inputs: Inputs, ends: Split) -> list[Array]:
    """As `model_logits`, of the samples `ends` of the least and the greatest sizes.

    Raises ModelError where the model fails on one, with its shape.
    """
    found = []
    for batch in ends.batches(inputs):
        shapes = ", ".join(
            (f"inputs.{one.name}" if len(inputs) > 1 else "input")
            + f".shape {list(array.shape[1:])}"
            for one, array in zip(inputs, arrays_of(batch, inputs), strict=True)
        )
        try:
            found.append(model_logits(network, iter([batch])))
        except ModelError as error:
            raise ModelError(
                f"{shapes} is among the recipe's ranges, and there {error}; raise the least size, "
                "give a step where it takes multiples alone, or one number in place of a range"
            ) from None
    outputs = list(zip(*found, strict=True))
    for exit, one in zip(network.exits, outputs, strict=False):
        if len({array.shape[1:] for array in one}) > 1:
            shapes = " and ".join(str(list(array.shape[1:])) for array in (one[0], one[-1]))
            raise ModelError(
                f"exit {exit!r} gives {shapes} for samples of two sizes; give maps of one size, "
                "resized in the model, or input.shape without a range"
            )
    return [np.concatenate(one) for one in outputs]


def even_policy(policy: Policy, logits: Sequence[Array], given: Sequence[Array] = ()) -> Policy:
    """The policy with thresholds under which about as many samples leave at each exit.

    What exit decisions are compared under before the thresholds are known: every exit is put to the
    test, whatever the recipe's thresholds. `logits` are the model's, `[samples, classes]` per exit,
    `given` the confidences `[samples]` of the first exits, as many as give theirs.
    """
    remaining = np.arange(len(logits[-1]))
    thresholds = []
    walk = Walk(policy)
    for depth, pair in enumerate(list(zip_longest(logits, given))[:-1]):
        confidences = walk.look(*pair).confidences[remaining]
        threshold = _widest_gap(confidences, len(remaining) / (len(logits) - depth))
        thresholds.append(threshold)
        remaining = remaining[~(confidences >= threshold)]
    return replace(policy, thresholds=tuple(thresholds))


def _widest_gap(confidences: Array, leaving: float) -> float:
    """The middle of the widest gap that lets about `leaving` samples leave, half as many or more.

    The widest, because engines round differently and no decision should hang on that.
    """
    values, counts = np.unique(confidences[~np.isnan(confidences)], return_counts=True)
    if len(values) < 2:
        return float(values.max(initial=0.0)) + 1.0
    above = counts[::-1].cumsum()[::-1][1:]  # Samples over each gap.
    near = np.flatnonzero((above >= leaving / 2) & (above <= leaving * 3 / 2))
    if not len(near):
        near = np.array([np.abs(above - leaving).argmin()])
    gap = near[np.diff(values)[near].argmax()]
    return float((values[gap] + values[gap + 1]) / 2)


def _demand_steady(network: Network, batch: Sample, logits: list[Array]) -> None:
    again = eager_logits(network.module, batch)
    rows = [eager_logits(network.module, stack([one])) for one in unstack(batch)[:_ALONE]]
    alone = [np.concatenate(one) for one in zip(*rows, strict=True)]
    together = [one[:_ALONE] for one in logits]
    for what, ours, theirs in (
        ("gives another answer the second time; is something random in eval()?", again, logits),
        (
            "answers otherwise when a sample comes alone than in a batch; a device runs one "
            "sample at a time",
            alone,
            together,
        ),
    ):
        error = max(differences(*pair)[1] for pair in zip(ours, theirs, strict=True))
        if not error <= _STEADY:
            raise ModelError(f"the model {what} (logits differ by {error:.1e})")


class Reference:
    """The model's answers on fixed samples, and what a chain is held to."""

    def __init__(
        self,
        exits: tuple[str, ...],
        outputs: list[Array],
        batches: Callable[[], Iterator[Sample]],
        policy: Policy,
        limits: Tolerance,
        *,
        classes: bool = True,
    ) -> None:
        """`outputs` are the model's, as `model_logits` gives them.

        `batches` gives their samples anew on every call; `classes` says that exits tell classes.
        """
        self.exits = exits
        self.outputs = outputs
        self.batches = batches
        self.policy = policy
        self.limits = limits
        self.classes = classes
        self.decisions = self._decide(outputs)

    def _decide(self, outputs: list[Array]) -> Decisions:
        count = len(self.exits)
        return decide(outputs[:count], self.policy, outputs[count:])

    def _of(self, what: int, exit: str) -> Array:
        """The model's logits at an exit, or its confidences: `what` is a place in `_WHAT`."""
        return self.outputs[what * len(self.exits) + self.exits.index(exit)]

    @property
    def _key(self) -> str:
        """Where the limits stand in the recipe."""
        return "check" if isinstance(self.limits, Check) else "check.quantized"

    def compare(self, stage: str, outputs: list[Array]) -> Agreement:
        """What a chain gives, as `model_logits` has it, against what the model gives."""
        pairs = list(zip(outputs, self.outputs, strict=True))
        errors = [differences(ours, theirs) for ours, theirs in pairs]
        ours, theirs = self._decide(outputs), self.decisions
        alike = ours.exits == theirs.exits
        agreement = None
        if self.classes:
            alike &= ours.classes == theirs.classes
            logits = pairs[: len(self.exits)]
            same = [one.argmax(axis=1) == its.argmax(axis=1) for one, its in logits]
            agreement = float(np.mean(same))
        return Agreement(
            stage=stage,
            samples=len(outputs[-1]),
            max_abs_error=max(error[0] for error in errors),
            max_relative_error=max(error[1] for error in errors),
            top1_agreement=agreement,
            exit_agreement=float(np.mean(alike)),
        )

    def accept(self, stage: str, chain: Chain) -> tuple[Agreement, list[Prediction]]:
        """As `check`, of a loaded chain, whose own decisions are held against the model's.

        Gives these decisions, too, one a sample.
        """
        outputs: list[list[Array]] = [[] for _ in self.outputs]
        taken: list[Prediction] = []
        for batch in self.batches():
            found_here = [one for part in chain.exits(batch) for one in part.values()]
            for output, one in zip(outputs, found_here, strict=True):
                output.append(one)
            together = chain.many(batch)
            # One by one is how a device is called, and how `run` and `bench` call it.
            alone = [chain.one(sample) for sample in unstack(batch)]
            taken += alone
            if [(p.exit, p.class_index) for p in alone] != [
                (p.exit, p.class_index) for p in together
            ]:
                raise CheckError(
                    f"{stage}: samples leave elsewhere in a batch than alone; a confidence lies on "
                    "a threshold: move the threshold"
                )
        found = self.compare(stage, [np.concatenate(output) for output in outputs])
        exits, classes = self.decisions.exits, self.decisions.classes
        alike = [
            (self.exits[exit], index if self.classes else None) == (one.exit, one.class_index)
            for exit, index, one in zip(exits, classes, taken, strict=True)
        ]
        found = replace(found, exit_agreement=float(np.mean(alike)))
        if not found.max_relative_error <= self.limits.max_relative_error:
            raise CheckError(
                f"{stage}: the bundle differs from PyTorch by {found.max_relative_error:.1e}, and "
                f"{self._key}.max_relative_error is {self.limits.max_relative_error:.1e}"
            )
        self._refuse_disagreement(found)
        return found, taken

    def accuracies(self, labels: Array) -> dict[str, float]:
        """The model's accuracy in PyTorch, per exit, and of the policy's decisions (`policy`)."""
        shares = {
            exit: float(np.mean(logits.argmax(axis=1) == labels))
            for exit, logits in zip(self.exits, self.outputs, strict=False)
        }
        return {**shares, "policy": float(np.mean(self.decisions.classes == labels))}

    def check(
        self,
        stage: str,
        segments: Segments[Any],
        exported: Exported | None,
        make: "RunnerMaker",
    ) -> Agreement:
        """Hold all of a stage's chains against the model.

        Raises CheckError outside the recipe's tolerance, naming stage, segment and tensor.
        """
        result = None
        for name, parts in segments.chains().items():
            run = make(parts)
            places = _places(parts)
            outputs: list[list[Array]] = [[] for _ in places]
            for batch in self.batches():
                values = run(batch)
                for output, (_, _, tensor) in zip(outputs, places, strict=True):
                    output.append(values[tensor])
            ours = [np.concatenate(output) for output in outputs]
            for (what, exit, _), one in zip(places, ours, strict=True):
                _, relative = differences(one, self._of(what, exit))
                if not relative <= self.limits.max_relative_error:
                    culprit = self._culprit(parts, run, exported)
                    raise CheckError(
                        f"after {stage}: {'the confidence of ' if what else ''}exit {exit!r} of "
                        f"the {name} differs from PyTorch by {relative:.1e}, and "
                        f"{self._key}.max_relative_error is {self.limits.max_relative_error:.1e}; "
                        f"{culprit}"
                    )
            if name == "chain":
                result = self.compare(stage, ours)
                self._refuse_disagreement(result)
        assert result is not None  # noqa: S101  (every Segments has a chain)
        return result

    def error_of(self, segments: Segments[Any], name: str, make: "RunnerMaker") -> float:
        """Greatest relative error of what the chains give that the part `name` is in.

        Their logits, and confidences. Over a few samples, together and the first one alone, as a
        device runs them. Infinite where the engine refuses, or where a NaN comes out.
        """
        worst = 0.0
        for parts in segments.chains().values():
            if name not in [part.name for part in parts]:
                continue
            try:
                run = make(parts)
                for start, few in self._few():
                    for batch in (few, few[:1]):
                        values = run(stack(batch))
                        for what, exit, tensor in _places(parts):
                            theirs = self._of(what, exit)[start : start + len(batch)]
                            worst = max(worst, differences(values[tensor], theirs)[1])
            except DeviceError:
                return float("inf")
        return worst

    def _few(self) -> Iterator[tuple[int, list[Sample]]]:
        """The first few samples, those of one shape together, and how many came before them."""
        start = 0
        for batch in self.batches():
            yield start, unstack(batch)[: _FEW - start]
            start += len(unstack(batch))
            if start >= _FEW:
                return

    def _refuse_disagreement(self, found: Agreement) -> None:
        for what, share, least in (
            ("top-1 classes", found.top1_agreement, self.limits.min_top1_agreement),
            ("exit decisions", found.exit_agreement, self.limits.min_exit_agreement),
        ):
            if share is not None and share < least:
                raise CheckError(
                    f"after {found.stage}: {what} agree with PyTorch on {share:.2%} of "
                    f"{found.samples} samples, at least {least:.2%} asked; logits differ by "
                    f"{found.max_relative_error:.1e} at most, so thresholds may lie on a "
                    f"confidence: move them, or lower {self._key}.min_exit_agreement"
                )

    def _culprit(self, parts: Sequence[Part[Any]], run: Runner, exported: Exported | None) -> str:
        """Words for the first tensor that differs from the same tensor of the exported graph."""
        if exported is None:
            return "build with --no-cache to learn which tensor is the first that differs"
        for batch in self.batches():
            ours, theirs = run(batch), _every_tensor(exported, batch)
            for part in parts:
                for tensor in part.outputs:
                    if tensor not in theirs:
                        continue  # Turned to cross the cut: the model has no such tensor.
                    if ours[tensor].dtype.kind != theirs[tensor].dtype.kind:
                        continue  # A quantized boundary holds steps, not values.
                    _, relative = differences(ours[tensor], theirs[tensor])
                    if not relative <= self.limits.max_relative_error:
                        return f"{part.name} is the first, at tensor {tensor} ({relative:.1e})"
        return "the exported graph does too, so torch.export changed what the model computes"


def _places(parts: Sequence[Part[Any]]) -> list[tuple[int, str, str]]:
    """The exits' logits, then the confidences: what it is (see `_WHAT`), the exit, the tensor."""
    return [
        (what, exit, tensor)
        for what in range(len(_WHAT))
        for part in parts
        for exit, tensor in (part.confidences if what else part.logits).items()
    ]


RunnerMaker = Callable[[Sequence[Part[Any]]], Runner]


def runner_for(segments: Segments[Any], inputs: Inputs, target: Target) -> RunnerMaker:
    """How to run parts of these segments: graphs in PyTorch, files in the target's engine."""
    if isinstance(segments.whole.program, fx.GraphModule):
        return lambda parts: _in_torch(segments.inputs, parts)
    return lambda parts: _in_engine(segments, parts, inputs, target)


def never(parts: Sequence[Part[Any]]) -> Policy:
    """A policy for a chain of these parts that is only asked for tensors."""
    given = any(part.confidences for part in parts)
    return Policy(GIVEN if given else "max_prob", (1.0,) * (len(parts) - 1))


def chain_of(
    segments: Segments[bytes],
    parts: Sequence[Part[bytes]],
    inputs: Inputs,
    labels: tuple[str, ...],
    policy: Policy,
    target: Target,
) -> Chain:
    """The parts as the runtime runs them, from memory."""
    records = tuple(part.record() for part in parts)
    return Chain.from_segments(
        ChainSpec(
            inputs,
            labels,
            segments.tensors,
            records,
            policy,
            most_rows(segments.precision),
        ),
        [part.program for part in parts],
        engine=checked_with(target.engine),
        threads=threads_here(target.threads),
    )


def _in_engine(
    segments: Segments[bytes], parts: Sequence[Part[bytes]], inputs: Inputs, target: Target
) -> Runner:
    return chain_of(segments, parts, inputs, (), never(parts), target).tensors


def _in_torch(inputs: Mapping[str, str], parts: Sequence[Part[fx.GraphModule]]) -> Runner:
    def run(samples: Sample) -> dict[str, Array]:
        values = {inputs[name]: one for name, one in by_name(to_torch(samples)).items()}
        with torch.no_grad():
            for part in parts:
                given = part.program(*(values[name] for name in part.inputs))
                values.update(zip(part.outputs, given, strict=True))
        return {name: value.numpy() for name, value in values.items()}

    return run


def _every_tensor(exported: Exported, samples: Sample) -> dict[str, Array]:
    """Every tensor of the exported graph, computed in PyTorch."""
    found = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                found[n.name] = value.numpy()
            return value

    with torch.no_grad():
        Recorder(exported.graph).run(to_torch(samples))
    return found
