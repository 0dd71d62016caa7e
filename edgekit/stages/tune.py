"""tune: the thresholds at which the finished chain is as fast as its accuracy allows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Policy
from edgekit.data import Split
from edgekit.errors import RecipeError
from edgekit.recipe import Recipe
from edgekit.runtime.chain import Chain
from edgekit.stages import Segments, Stage, StageResult, Step, Tuned
from edgekit.tuning.certificate import demand_enough
from edgekit.tuning.goal import NO_LABELS, Costs, check_buildable, settle
from edgekit.tuning.seen import Seen
from edgekit.tuning.temperature import calibrated, fitted_on

__all__ = ["Tune"]

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


class Tune(Stage[Segments[bytes], Tuned]):
    """Fits the thresholds to the recipe's goal on the whole tuning split, or hands on those given.

    It runs on the chain as it will be deployed: what quantization does to the confidences is in
    what the thresholds are fitted to.
    """

    name = "tune"
    requires = Segments
    ensures = Tuned

    def __init__(
        self,
        recipe: Recipe,
        tuning: Split | None,
        final_logits: Array | None,
        chain_for: Callable[[Segments[bytes]], Chain],
    ) -> None:
        """`final_logits` is the final exit of the model in PyTorch on the whole tuning split.

        `[samples, classes]`; None will do where thresholds are given. `chain_for` makes the chain,
        of any policy. Raises RecipeError where the recipe's goal, or a temperature, needs labels
        and there are none, CheckError where a certificate needs more samples.
        """
        self.recipe = recipe
        self.tuning = tuning
        self.final_logits = final_logits
        self.chain_for = chain_for
        goal = recipe.policy.tune
        if goal is not None and (tuning is None or (goal.needs_labels and tuning.labels is None)):
            raise RecipeError(NO_LABELS)
        if recipe.policy.temperature and (tuning is None or tuning.labels is None):
            raise RecipeError(
                "policy.temperature: data.tuning has no labels to fit temperatures to; give them, "
                "or leave temperature out"
            )
        check_buildable(recipe)
        if goal is not None and goal.certificate is not None:
            assert tuning is not None  # noqa: S101  (see above)
            demand_enough(len(tuning), goal.certificate.risk, goal.certificate.confidence)

    def __call__(self, artifact: Segments[bytes], step: Step) -> StageResult[Tuned]:
        """Raises CheckError where no threshold keeps what the recipe asks for.

        RecipeError where that is counted by classes, and the exits tell none.
        """
        if self.tuning is None:
            given = self.recipe.thresholds
            assert given is not None  # noqa: S101  (the recipe has either)
            return StageResult(Tuned(artifact, self.recipe.manifest_policy(given)))
        policy = self.recipe.manifest_policy(())
        notes: dict[str, Any] = {}
        if self.recipe.policy.temperature:
            temperatures, mended = self._calibrated(artifact, self.tuning, step)
            policy, notes["temperature"] = replace(policy, temperatures=temperatures), mended
        seen = self._see(artifact, self.tuning, policy, step)
        step("search")
        # A build measures no time, so that the next one is the same: what a sample costs is MACs.
        costs = Costs("MACs", np.cumsum([float(part.macs) for part in artifact.chain]))
        right = self._right_in_pytorch(seen.labels)
        found = settle(self.recipe, artifact.exits, seen, costs, right, policy.temperatures)
        policy = replace(policy, thresholds=found.thresholds)
        return StageResult(Tuned(artifact, policy, found.tuning, seen), {**found.notes, **notes})

    def _calibrated(
        self, segments: Segments[bytes], tuning: Split, step: Step
    ) -> tuple[tuple[float, ...], dict[str, Any]]:
        """See `calibrated`, of some samples of the tuning split (`fitted_on`)."""
        inputs = self.recipe.manifest_inputs(segments.inputs)
        chain = self.chain_for(segments)
        rows = fitted_on(len(tuning), certified=self.recipe.certified)
        some = tuning.of(rows)
        assert some.labels is not None  # noqa: S101  (see above)
        every: list[list[Array]] = []
        for batch in some.batches(inputs):
            step(f"temperatures: sample {sum(len(one[-1]) for one in every)} of {len(some)}")
            every.append(list(chain.logits(batch).values()))
        logits = [np.concatenate(exit) for exit in zip(*every, strict=True)]
        return calibrated(segments.exits, logits, some.labels)

    def _see(self, segments: Segments[bytes], tuning: Split, policy: Policy, step: Step) -> Seen:
        """See `Seen`, of the whole tuning split."""
        inputs = self.recipe.manifest_inputs(segments.inputs)
        chain = self.chain_for(segments)
        found: list[Seen] = []
        for batch in tuning.batches(inputs):
            step(f"sample {sum(one.samples for one in found)} of {len(tuning)}")
            logits, given = (list(one.values()) for one in chain.exits(batch))
            found.append(Seen.of(policy, logits, given, None))
        return Seen.joined(found, tuning.labels)

    def _right_in_pytorch(self, labels: Integers | None) -> int | None:
        if self.final_logits is None or labels is None:
            return None
        return int(np.sum(self.final_logits.argmax(axis=1) == labels))
