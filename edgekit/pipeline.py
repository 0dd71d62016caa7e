"""The whole way of the data: a recipe and a target in, a bundle out."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from edgekit.backends import backend_for
from edgekit.bundle.manifest import EVIDENCE_NAME, MANIFEST_NAME, Manifest, Policy, seal
from edgekit.bundle.reader import read_bundle
from edgekit.bundle.writer import new_bundle, write_files
from edgekit.check import Agreement, Reference, runner_for
from edgekit.data import Split, first_of, load_splits
from edgekit.errors import EdgekitError
from edgekit.models.exits import Exits
from edgekit.models.load import load_model, user_code
from edgekit.recipe import Recipe
from edgekit.runtime.chain import Chain
from edgekit.runtime.device import describe
from edgekit.runtime.verify import verify_golden
from edgekit.stages import Artifact, Exported, Network, Segments, Stage, Step
from edgekit.stages.build import Build
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.stages.split import Split as SplitStage
from edgekit.target import Target

__all__ = ["Built", "Progress", "build", "inspect"]


def build(
    recipe: Recipe, target: Target, output: Path, progress: "Progress | None" = None
) -> "Built":
    """Build the recipe for the target into the folder `output`.

    The bundle takes its place only after it was read back and agreed with PyTorch; until then, and
    whatever happens, `output` is as it was. Raises an EdgekitError that names the stage.
    """
    run = _Run(recipe, target, progress or Silent())
    with user_code(recipe.folder), new_bundle(output) as folder:
        network = run.load()
        exported = run(Export(), network)
        split = run(SplitStage(), exported)
        lowered = run(Lower(run.backend, target, network.sample), split)
        optimized = run(Optimize(run.backend), lowered)
        contents = run(Build(recipe, target, run.backend, run.splits), optimized)
        write_files(folder, {**contents.files, MANIFEST_NAME: seal(contents.document)})
        evidence = run.accept(folder)
        write_files(folder, {EVIDENCE_NAME: seal(evidence)})
    return Built(output, contents.manifest(), evidence)


def inspect(
    recipe: Recipe, target: Target, progress: "Progress | None" = None
) -> tuple[Segments[Any], str | None]:
    """The recipe's network cut into segments, with nothing lowered or written; and a warning."""
    run = _Run(recipe, target, progress or Silent())
    with user_code(recipe.folder):
        segments = run(SplitStage(), run(Export(), run.load()))
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


@dataclass(frozen=True)
class Built:
    """A bundle that lies in `path`, with its evidence as plain data."""

    path: Path
    manifest: Manifest
    evidence: dict[str, Any]


Taken = TypeVar("Taken", bound=Artifact)
Given = TypeVar("Given", bound=Artifact)


@dataclass
class _Run:
    """One build under way: runs stages, holds each result against the model, keeps the record."""

    recipe: Recipe
    target: Target
    progress: Progress
    splits: dict[str, Split] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Agreement] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend = backend_for(self.target.engine)
        self.policy = Policy(self.recipe.policy.criterion, self.recipe.thresholds)
        self.source = self.recipe.manifest_input("")

    def load(self) -> Network:
        """The user's data and model, and what the model says of the samples to check with."""
        with self._recorded("load") as (step, notes):
            step("data")
            self.splits = load_splits(self.recipe)
            notes["samples"] = {name: len(split) for name, split in self.splits.items()}
            step("model")
            module = Exits(load_model(self.recipe), self.recipe.exits).eval()
            split = first_of(self.splits, "tuning", "calibration", "test")
            # torch.export fixes a batch of one, so a single sample stands twice.
            pair = np.stack([split.tensor(row % len(split), self.source) for row in range(2)])
            network = Network(module, self.recipe.exits, torch.from_numpy(pair))
            step("reference")
            self.reference = self._reference(network, split, self.recipe.check.samples)
            return network

    def __call__(self, stage: Stage[Taken, Given], artifact: Taken) -> Given:
        """Run one stage, and check what it gives."""
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
            if isinstance(given, Segments):
                step("check against PyTorch")
                source = self.recipe.manifest_input(given.input)
                make = runner_for(given, source, self.target)
                self.checks.append(self.reference.check(stage.name, given, self.exported, make))
            return given

    def accept(self, folder: Path) -> dict[str, Any]:
        """Read the written bundle as a device would, hold it against PyTorch, and say how it did.

        Returns the evidence: what was measured, all of it beside what `bundle_id` covers.
        """
        with self._recorded("verify") as (step, notes):
            step("golden samples")
            bundle = read_bundle(folder)
            chain = Chain.from_bundle(bundle)
            golden = verify_golden(bundle, chain)
            step("test split")
            split = first_of(self.splits, "test", "tuning", "calibration")
            reference = self._reference(self.reference.network, split, None)
            self.checks.append(reference.accept("verify", chain))
            if split.labels is not None:
                notes["pytorch_accuracy"] = reference.accuracies(split.labels)
            notes["exit_rates"] = reference.exit_rates()
        return {
            "bundle_id": bundle.manifest.bundle_id,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "golden": dataclasses.asdict(golden),
            "stages": self.stages,
            "proof": [
                {"segment": one.name, "proven": "executed", "by": engine.version}
                for one, engine in zip(chain.spec.segments, chain.engines, strict=True)
            ],
            "host": describe(),
            "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def _reference(self, network: Network, split: Split, most: int | None) -> Reference:
        def batches() -> Iterator[npt.NDArray[Any]]:
            return split.batches(self.source, most=most)

        return Reference(network, self.policy, batches, self.recipe.check)

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
