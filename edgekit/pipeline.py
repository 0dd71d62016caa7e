"""The whole way of the data: a recipe and a target in, a bundle out."""

import dataclasses
import io
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from edgekit.backends import backend_for, checked_with
from edgekit.bundle.manifest import (
    EVIDENCE_NAME,
    MANIFEST_NAME,
    Policy,
    parse_policy,
    parse_tuning,
    seal,
)
from edgekit.bundle.reader import read_bundle
from edgekit.bundle.writer import new_bundle, write_files
from edgekit.cache import Cache, Entry
from edgekit.check import (
    Agreement,
    Reference,
    chain_of,
    demand_range,
    ends_logits,
    even_policy,
    model_logits,
    never,
    runner_for,
)
from edgekit.data import Split, check_disjoint, ends_of, first_of, load_splits
from edgekit.errors import EdgekitError
from edgekit.models.exits import find_exits, to_torch
from edgekit.models.load import load_model, reads_at_import, set_up, user_code
from edgekit.models.reads import recorded
from edgekit.models.statistics import own_statistics
from edgekit.plan import KEPT, STAGES, Built, Plan, restore
from edgekit.prove import UNPROVEN, Proof, compiled
from edgekit.recipe import Recipe, Tolerance
from edgekit.runtime.bench import brief
from edgekit.runtime.chain import Chain, left_at
from edgekit.runtime.device import describe, threads_here
from edgekit.runtime.preprocess import Sample, encode, enlarged, stack
from edgekit.runtime.verify import decisions, verify_golden
from edgekit.stages import Artifact, Exported, Network, Segments, Stage, Step, Tensors, Tuned
from edgekit.stages.build import Build
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.stages.quantize import Quantize
from edgekit.stages.split import Split as SplitStage
from edgekit.stages.tune import Tune
from edgekit.target import Target
from edgekit.tuning.goal import fit
from edgekit.tuning.seen import Seen

__all__ = ["Progress", "build", "carry_out", "inspect"]

Array = npt.NDArray[Any]


def build(
    recipe: Recipe,
    target: Target,
    output: Path,
    progress: "Progress | None" = None,
    *,
    cache: Cache | None = None,
    wheelhouse: bool = False,
) -> Built:
    """Build the recipe for the target into the folder `output`.

    What an earlier build left in `cache` is not worked out again. The bundle takes its place only
    after it was read back and agreed with PyTorch; until then, and whatever happens, `output` is as
    it was. Raises an EdgekitError that names the stage.
    """
    return carry_out(Plan(recipe, target, cache, wheelhouse=wheelhouse), output, progress)


def carry_out(
    plan: Plan, output: Path, progress: "Progress | None" = None, *, command: str | None = None
) -> Built:
    """Build what a plan says; see `build`. `command` is what the user typed, for the evidence."""
    if plan.finished:
        return restore(plan, output)
    recipe, target = plan.recipe, plan.target
    with user_code(recipe.folder, anew=reads_at_import(recipe)), new_bundle(output) as folder:
        # A stage whose result is at hand gives it, and those before it give nothing.
        run = _Run(plan, progress or Silent(), command)
        network = run.load()
        tune = Tune(recipe, run.splits.get("tuning"), run.final, run.chain)
        exported = run(Export(), network)
        split = run(SplitStage(channels_last=run.backend.channels_last), exported)
        lowered = run(Lower(run.backend, target, run.sample), split)
        optimized = run(
            Optimize(run.backend, run.error_of, run.limits("optimize").max_relative_error), lowered
        )
        quantized = run(Quantize(run.backend, recipe, target, run.splits, run.reach()), optimized)
        tuned = run(tune, quantized)
        contents = run(
            Build(recipe, target, run.backend, run.splits, wheelhouse=plan.wheelhouse), tuned
        )
        assert contents is not None  # noqa: S101  (what is built is never kept without its proof)
        files = {**contents.files, MANIFEST_NAME: seal(contents.document)}
        write_files(folder, files)
        evidence = run.accept(folder)
        files[EVIDENCE_NAME] = seal(evidence)
        write_files(folder, {EVIDENCE_NAME: files[EVIDENCE_NAME]})
    plan.keep("verify", Entry({}, files))
    return Built(output, contents.manifest(), evidence)


def inspect(
    recipe: Recipe, target: Target, progress: "Progress | None" = None
) -> tuple[Segments[Any], str | None]:
    """The recipe's network cut into segments, with nothing lowered or written; and a warning."""
    with user_code(recipe.folder, anew=reads_at_import(recipe)):
        run = _Run(Plan(recipe, target), progress or Silent())
        split = SplitStage(channels_last=run.backend.channels_last)
        segments = run(split, run(Export(), run.load()))
    assert segments is not None  # noqa: S101  (nothing is kept without a cache)
    return segments, run.stages[-1]["notes"].get("warning")


class Progress(Protocol):
    """Who is told how far a build has come."""

    def stage(self, name: str) -> AbstractContextManager[Step]:
        """Entered while a stage runs; gives the function that is told each of its steps."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str) -> AbstractContextManager[Step]:
        """See `Progress.stage`."""
        return nullcontext(lambda text: None)


Taken = TypeVar("Taken", bound=Artifact)
Given = TypeVar("Given", bound=Artifact)


class _Run:
    """One build under way: runs stages, holds each result against the model, keeps the record.

    `answers` are the model's logits per exit, then the confidences that exits give, by split: of
    the samples of the tuning split that the stages are checked on, and of the whole test split;
    where sizes vary also of `ends`, samples of the least and the greatest.
    """

    def __init__(self, plan: Plan, progress: Progress, command: str | None = None) -> None:
        self.plan = plan
        self.command = command
        self.recipe = plan.recipe
        self.target = plan.target
        self.progress = progress
        self.backend = backend_for(plan.target.engine)
        self.inputs = plan.recipe.manifest_inputs({})
        self.splits: dict[str, Split] = {}
        self.ends: Split | None = None
        self.answers: dict[str, list[Array]] = {}
        self.policy: Policy | None = None
        self.exported: Exported | None = None
        self.sample: Tensors = torch.empty(0)
        self.stages: list[dict[str, Any]] = []
        self.checks: list[Agreement] = []
        self._data = ""
        self._fickle = False
        if plan.entry is not None:
            self._go_on(plan.entry)

    def load(self) -> Network | None:
        """The user's data and model, and what the model says of the samples to check with."""
        if not self.plan.runs("load"):
            return None
        with self._recorded("load") as (step, notes), recorded() as reads:
            step("data")
            self._load_data()
            notes["samples"] = {name: len(split) for name, split in self.splits.items()}
            if self._fickle:
                notes["warning"] = (
                    "the data's factory gave other samples than in the last build, so nothing of "
                    "that was used; seed it"
                )
            step("model")
            model = load_model(self.recipe)
            checked, accepted = self._checked(), self._accepted()
            # torch.export fixes a batch of one, so a single sample stands twice.
            pair = [checked.tensor(row % len(checked), self.inputs) for row in range(2)]
            self.sample = to_torch(stack([enlarged(one, self.inputs) for one in pair]))
            module = find_exits(self.recipe, model, self.sample)
            axes = {one.name: one.shape for one in self.inputs}
            setting = self.recipe.model.setting
            network = Network(
                module,
                self.recipe.exits,
                self.sample,
                module.confident,
                axes,
                setting=setting is not None,
            )
            if setting is not None:
                step("statistics")
                found = own_statistics(setting.recalibrate, network, self.splits, self.inputs)
                notes["statistics"] = found
            demand_range(network, self.inputs, pair[0])
            step("reference")
            if self.ends is not None:
                self.answers["ends"] = ends_logits(network, self.inputs, self.ends)
            # Of the whole tuning split: what accuracy may be lost is counted from, also later.
            few = self.recipe.check.samples
            rows = {checked.name: None if checked.name == "tuning" else few, accepted.name: None}
            for name, most in rows.items():
                batches = self.splits[name].batches(self.inputs, most=most)
                self.answers[name] = model_logits(network, batches)
            if self._forget_labels() and not self._fickle:
                notes["warning"] = (
                    "the data has labels, and the exits tell no classes: nothing is counted by them"
                )
        self.plan.learn(reads)
        return network

    def __call__(self, stage: Stage[Taken, Given], artifact: Taken | None) -> Given | None:
        """Run one stage, and check what it gives; or give what was kept of it."""
        if not self.plan.runs(stage.name):
            return self._kept if stage.name == self.plan.resume else None  # type: ignore[return-value]
        assert artifact is not None  # noqa: S101  (the stage before has run, or was kept)
        with self._recorded(stage.name) as (step, notes):
            _demand(stage.name, "takes", stage.requires, artifact)
            try:
                result = stage(artifact, step)
            except EdgekitError as error:
                raise type(error)(f"{stage.name}: {error}") from error
            given = result.artifact
            _demand(stage.name, "gives", stage.ensures, given)
            notes.update(result.notes)
            if isinstance(given, Exported):
                self.exported = given
            if isinstance(given, Tuned):
                self.policy = given.policy
            # In fp32 there is nothing to quantize, and so nothing new to check.
            if isinstance(given, Segments | Tuned) and given is not artifact:
                step("check against PyTorch")
                segments = given.segments if isinstance(given, Tuned) else given
                make = runner_for(
                    segments, self.recipe.manifest_inputs(segments.inputs), self.target
                )
                reference = self._reference(stage.name, self._checked(), self.recipe.check.samples)
                self.checks.append(reference.check(stage.name, segments, self.exported, make))
        if stage.name in KEPT:
            self.plan.keep(stage.name, self._entry(given))
        return given

    def error_of(self, segments: Segments[bytes], name: str) -> float:
        """See `edgekit.stages.optimize.ErrorOf`."""
        make = runner_for(segments, self.recipe.manifest_inputs(segments.inputs), self.target)
        reference = self._reference("optimize", self._checked(), self.recipe.check.samples)
        return reference.error_of(segments, name, make)

    @property
    def final(self) -> Array | None:
        """The model's final exit on the tuning split, if there is one."""
        answers = self.answers.get("tuning")
        return None if answers is None else answers[len(self.recipe.exits) - 1]

    @property
    def classes(self) -> bool:
        """Whether the exits tell classes: by what the model gave."""
        logits = self._parted(next(iter(self.answers.values())))[0]
        return self.recipe.labels != () and all(one.ndim == 2 for one in logits)

    def chain(self, segments: Segments[bytes]) -> Chain:
        """The chain of these segments, for what its exits give alone: any policy will do."""
        inputs = self.recipe.manifest_inputs(segments.inputs)
        return chain_of(segments, segments.chain, inputs, (), never(segments.chain), self.target)

    def reach(self) -> Policy:
        """Who reaches a segment while it is quantized: by what the goal comes to in PyTorch."""
        given = self.recipe.thresholds
        if given is not None and not self.recipe.policy.temperature:
            return self.recipe.manifest_policy(given)
        logits, confidences = self._parted(self.answers["tuning"])
        return fit(self.recipe, logits, confidences, self.splits["tuning"].labels)

    def accept(self, folder: Path) -> dict[str, Any]:
        """Read the written bundle as a device would, hold it against PyTorch, and say how it did.

        Returns the evidence: what was measured, all of it beside what `bundle_id` covers.
        """
        with self._recorded("verify") as (step, notes):
            step("golden samples")
            bundle = read_bundle(folder)
            engine = checked_with(self.target.engine)
            chain = Chain.from_bundle(bundle, engine=engine)
            golden = verify_golden(bundle, chain)
            step("test split")
            split = self._accepted()
            found, taken = self._reference("verify", split, None).accept("verify", chain)
            self.checks.append(found)
            taken = taken[-len(split) :]
            if split.labels is not None:
                classes = [one.class_index for one in taken]
                reference = self._reference("verify", split, None, ends=False)
                notes["accuracy"] = float(np.mean(classes == split.labels))
                notes["pytorch_accuracy"] = reference.accuracies(split.labels)
            exits = self.recipe.exits
            left = [left_at(one, exits[-1]) for one in taken]
            notes["exit_rates"] = {name: left.count(name) / len(left) for name in exits}
            step("bench")
            measured = brief(bundle, engine=engine)
            proof = [
                *(
                    Proof(one.name, "executed", loaded.version)
                    for one, loaded in zip(chain.spec.segments, chain.engines, strict=True)
                ),
                *compiled(bundle, self.target, step),
            ]
            if lacking := [one.by for one in proof if one.proven == UNPROVEN]:
                notes["warning"] = lacking[0]
        shown = [taken[row] for row in split.spread(self.recipe.test_samples)]
        return {
            "bundle_id": bundle.manifest.bundle_id,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "golden": dataclasses.asdict(golden),
            "decisions": decisions(shown, exits[-1]) if bundle.manifest.test_data else None,
            "bench": measured,
            "segment_latency_ms": chain.measure(),
            "threads": threads_here(self.target.threads),
            "stages": self.stages,
            "engine": chain.engines[0].version,
            "proof": [dataclasses.asdict(one) for one in proof],
            "host": describe(),
            "command": self.command,
            "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _load_data(self) -> None:
        set_up(self.recipe)  # Data and model may come out of one file.
        self.splits = load_splits(self.recipe)
        self._data = check_disjoint(self.splits, self.inputs)
        self.ends = ends_of(self._checked(), self.inputs)

    def _parted(self, answers: list[Array]) -> tuple[list[Array], list[Array]]:
        """What the model gave: logits per exit, and the confidences of the first exits."""
        count = len(self.recipe.exits)
        return answers[:count], answers[count:]

    def _forget_labels(self) -> bool:
        """Take the labels from the data where no exit tells classes; whether there were any."""
        if self.classes:
            return False
        labelled = [name for name, split in self.splits.items() if split.labels is not None]
        self.splits |= {
            name: dataclasses.replace(self.splits[name], labels=None) for name in labelled
        }
        return bool(labelled)

    def _checked(self) -> Split:
        """The split that stages are checked on."""
        return first_of(self.splits, "tuning", "calibration", "test")

    def _accepted(self) -> Split:
        """The split that the finished bundle is checked on."""
        return first_of(self.splits, "test", "tuning", "calibration")

    def _reference(
        self, stage: str, split: Split, most: int | None, *, ends: bool = True
    ) -> Reference:
        """The model's answers on `ends`, and on a split or the first of its samples."""
        answers = [one[:most] for one in self.answers[split.name]]
        rows = len(answers[0])
        policy = self.policy or even_policy(self.recipe.manifest_policy(()), *self._parted(answers))
        before = self.ends if ends else None
        if before is not None:
            answers = [
                np.concatenate(pair) for pair in zip(self.answers["ends"], answers, strict=True)
            ]

        def batches() -> Iterator[Sample]:
            if before is not None:
                yield from before.batches(self.inputs)
            yield from split.batches(self.inputs, most=rows)

        return Reference(
            self.recipe.exits,
            answers,
            batches,
            policy,
            self.limits(stage),
            classes=self.classes,
        )

    def limits(self, stage: str) -> Tolerance:
        """What a stage's result is held to: INT8 and FP16 are other numbers than the model's."""
        check = self.recipe.check
        # A model that rounds features itself rounds some to the next step in another engine.
        rounds = any(one["notes"].get("fake_quantized") for one in self.stages)
        exact = self.target.precision == "fp32" or STAGES.index(stage) < STAGES.index("quantize")
        if exact and not rounds:
            return check
        # Which of them leave is decided by thresholds that tune has yet to fit to these numbers.
        tuned = STAGES.index(stage) > STAGES.index("quantize")
        least = check.quantized.min_exit_agreement if tuned else 0.0
        return check.quantized.model_copy(update={"min_exit_agreement": least})

    def _entry(self, given: Artifact) -> Entry:
        """Everything that a build needs to go on from here."""
        assert isinstance(given, Segments | Tuned)  # noqa: S101  (what KEPT names gives these)
        segments = given.segments if isinstance(given, Tuned) else given
        described, programs = segments.kept()
        blobs = {f"program/{name}": program for name, program in programs.items()}
        for split, outputs in self.answers.items():
            blobs |= {f"answers/{split}/{place}": encode(one) for place, one in enumerate(outputs)}
        document = {
            "data": self._data,
            "stages": self.stages,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "segments": described,
            "policy": dataclasses.asdict(self.policy) if self.policy else None,
            "tuning": None,
        }
        if isinstance(given, Tuned) and given.tuning is not None and given.seen is not None:
            document["tuning"] = dataclasses.asdict(given.tuning)
            blobs["seen"] = given.seen.to_bytes()
        return Entry(document, blobs)

    def _go_on(self, entry: Entry) -> None:
        """Take up a build where an earlier one left this entry."""
        document, blobs = entry.document, entry.blobs
        with self.progress.stage("data"):
            self._load_data()
        if document["data"] != self._data:
            # A factory that draws its samples anew: what the old ones showed holds no more.
            self._fickle = True
            self.plan.start_over()
            return
        self.stages = [{**stage, "cached": True} for stage in document["stages"]]
        self.checks = [Agreement(**check) for check in document["checks"]]
        kept = [name.split("/")[1] for name in blobs if name.startswith("answers/")]
        for split in set(kept):
            self.answers[split] = [
                np.load(io.BytesIO(blobs[f"answers/{split}/{place}"]), allow_pickle=False)
                for place in range(kept.count(split))
            ]
        self._forget_labels()
        programs = {
            name.removeprefix("program/"): content
            for name, content in blobs.items()
            if name.startswith("program/")
        }
        segments = Segments.from_kept(document["segments"], programs)
        self._kept: Segments[bytes] | Tuned = segments
        if document["policy"] is not None:
            self.policy = parse_policy(document["policy"])
            self._kept = Tuned(segments, self.policy)
            if document["tuning"] is not None:
                tuning, seen = parse_tuning(document["tuning"]), Seen.from_bytes(blobs["seen"])
                self._kept = Tuned(segments, self.policy, tuning, seen)

    @contextmanager
    def _recorded(self, name: str) -> Iterator[tuple[Step, dict[str, Any]]]:
        notes: dict[str, Any] = {}
        start = time.perf_counter()
        with self.progress.stage(name) as step:
            yield step, notes
        seconds = round(time.perf_counter() - start, 3)
        self.stages.append({"name": name, "seconds": seconds, "notes": notes})


def _demand(stage: str, verb: str, kind: type, artifact: Artifact) -> None:
    """The contract of a stage; a breach is a bug of edgekit's, not the user's fault."""
    if not isinstance(artifact, kind):
        raise TypeError(f"{stage} {verb} {kind.__name__}, found {type(artifact).__name__}")
    if problems := artifact.problems():
        raise AssertionError(f"{stage} {verb} what does not hold: {'; '.join(problems)}")
