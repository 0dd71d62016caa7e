"""The check after every stage: it names stage, segment and tensor, and lets nothing wrong pass."""

import dataclasses

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.bundle.manifest import Policy
from edgekit.check import Reference, runner_for
from edgekit.errors import CheckError
from edgekit.models.exits import Exits
from edgekit.recipe import Check, load_recipe
from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.split import Split
from edgekit.target import load_target
from tests.conftest import reference_of
from tests.stages.test_split import IMAGES, SequenceFirst, SkipsASegment

RNG = np.random.default_rng(0)
SAMPLES = [RNG.standard_normal((8, 1, 4, 4)).astype(np.float32) for _ in range(3)]


@dataclasses.dataclass
class World:
    """A network, its graph and its lowered segments, with what they are held to."""

    network: Network
    exported: object
    split: object
    lowered: object

    def reference(self, thresholds=(0.4, 0.4), **limits) -> Reference:
        policy = Policy("max_prob", thresholds)
        return reference_of(self.network, policy, lambda: iter(SAMPLES), Check(**limits))

    def check(self, segments, **limits):
        recipe = load_recipe("digits", {"input.shape": [1, 4, 4]})
        make = runner_for(segments, recipe.manifest_inputs({"input": "x"}), load_target("host"))
        return self.reference(**limits).check("lower", segments, self.exported, make)


@pytest.fixture(scope="module")
def world() -> World:
    return world_of(SkipsASegment())


def world_of(model) -> World:
    names = ("first", "second", "last")
    network = Network(Exits(model, names).eval(), names, IMAGES)
    exported = Export()(network, lambda text: None).artifact
    split = Split()(exported, lambda text: None).artifact
    lower = Lower(OnnxRuntimeBackend(), load_target("host"), IMAGES)
    return World(network, exported, split, lower(split, lambda text: None).artifact)


def with_changed_weight(program: bytes, weight: str, factor: float) -> bytes:
    model = onnx.load_from_string(program)
    (tensor,) = (one for one in model.graph.initializer if one.name == weight)
    changed = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, weight))
    return model.SerializeToString()


def break_part(segments, name: str, weight: str, factor: float = 1.5):
    programs = {part.name: part.program for part in segments.parts()}
    programs[name] = with_changed_weight(programs[name], weight, factor)
    return segments.lowered(programs)


def test_graphs_and_files_agree_with_the_model(world):
    for segments in (world.split, world.lowered):
        found = world.check(segments)
        assert found.samples == 24
        assert found.max_relative_error < 1e-5
        assert found.top1_agreement == found.exit_agreement == 1


def weights(world, name: str, ending: str) -> str:
    (part,) = (part for part in world.lowered.parts() if part.name == name)
    model = onnx.load_from_string(part.program)
    return next(one.name for one in model.graph.initializer if one.name.endswith(ending))


def test_a_wrong_backbone_is_named_by_stage_segment_and_tensor(world):
    broken = break_part(world.lowered, "segment-2", weights(world, "segment-2", "b.weight"))
    boundary = next(
        name
        for name in world.lowered.chain[1].outputs
        if name not in world.lowered.chain[1].logits.values()
    )
    words = (
        rf"after lower: exit 'second' of the chain.*segment-2 is the first, at tensor {boundary}"
    )
    with pytest.raises(CheckError, match=words):
        world.check(broken)


def test_what_was_turned_to_cross_does_not_hide_the_part_that_is_wrong():
    world = world_of(SequenceFirst())
    broken = break_part(world.lowered, "segment-1", weights(world, "segment-1", "a.weight"))
    with pytest.raises(CheckError, match="segment-1 is the first, at tensor"):
        world.check(broken)


def test_a_wrong_head_is_named_though_its_boundary_is_right(world):
    broken = break_part(world.lowered, "segment-1", weights(world, "segment-1", "heads.0.weight"))
    logits = world.lowered.chain[0].logits["first"]
    with pytest.raises(
        CheckError, match=f"exit 'first'.*segment-1 is the first, at tensor {logits}"
    ):
        world.check(broken)


@pytest.mark.parametrize("baseline", ["plain", "whole"])
def test_a_wrong_baseline_is_refused_too(world, baseline):
    broken = break_part(world.lowered, baseline, weights(world, baseline, "heads.2.weight"))
    with pytest.raises(CheckError, match=f"exit 'last' of the {baseline}"):
        world.check(broken)


def test_a_network_that_gives_nan_is_refused(world):
    broken = break_part(
        world.lowered, "segment-3", weights(world, "segment-3", "c.weight"), float("nan")
    )
    with pytest.raises(CheckError, match=r"differs from PyTorch by inf"):
        world.check(broken)


def test_errors_within_tolerance_that_change_decisions_are_refused(world):
    broken = break_part(
        world.lowered, "segment-1", weights(world, "segment-1", "heads.0.weight"), 1.02
    )
    with pytest.raises(CheckError, match=r"exit decisions agree.*least 100\.00% asked"):
        world.check(
            broken,
            thresholds=(tight_threshold(world, broken), 0.4),
            max_relative_error=0.5,
            min_top1_agreement=0.0,
            min_exit_agreement=1.0,
        )


def tight_threshold(world, broken) -> float:
    """A threshold that one sample passes in PyTorch and not in the broken chain, or the reverse."""
    from edgekit.runtime.criteria import CRITERIA

    recipe = load_recipe("digits", {"input.shape": [1, 4, 4]})
    make = runner_for(broken, recipe.manifest_inputs({"input": "x"}), load_target("host"))
    run = make(broken.chain)
    ours = np.concatenate([run(batch)[broken.chain[0].logits["first"]] for batch in SAMPLES])
    theirs = world.reference().outputs[0]
    left, right = (CRITERIA["max_prob"](logits) for logits in (ours, theirs))
    widest = np.argmax(np.abs(left - right))
    return float((left[widest] + right[widest]) / 2)


def test_accuracies_are_of_the_model(world):
    reference = world.reference(thresholds=(0.0, 0.0))
    labels = reference.outputs[0].argmax(axis=1)
    assert reference.accuracies(labels)["first"] == 1
    assert reference.accuracies(labels)["policy"] == 1


def error_of(world, segments, name: str, make=None) -> float:
    recipe = load_recipe("digits", {"input.shape": [1, 4, 4]})
    make = make or runner_for(segments, recipe.manifest_inputs({"input": "x"}), load_target("host"))
    return world.reference().error_of(segments, name, make)


def test_the_error_of_a_part_is_that_of_the_chains_it_is_in(world):
    broken = break_part(world.lowered, "segment-2", weights(world, "segment-2", "b.weight"))
    for name in ("segment-1", "segment-2", "segment-3"):
        assert error_of(world, world.lowered, name) < 1e-5
        assert error_of(world, broken, name) > 0.01
    for name in ("plain", "whole"):
        assert error_of(world, broken, name) < 1e-5


def test_a_part_that_the_engine_refuses_or_that_gives_nan_is_infinitely_wrong(world):
    nan = break_part(
        world.lowered, "segment-3", weights(world, "segment-3", "c.weight"), float("nan")
    )
    assert error_of(world, nan, "segment-1") == float("inf")
    programs = {part.name: part.program for part in world.lowered.parts()}
    refused = world.lowered.lowered({**programs, "plain": b"no model"})
    assert error_of(world, refused, "plain") == float("inf")
    assert error_of(world, refused, "whole") < 1e-5


def test_a_part_that_is_wrong_only_for_a_sample_alone_is_wrong(world):
    """A squeeze without axes, for one, takes the batch with it where it is 1."""
    right = runner_for(world.split, None, None)

    def make(parts):
        def run(samples):
            factor = 2 if len(samples) == 1 else 1
            return {name: value * factor for name, value in right(parts)(samples).items()}

        return run

    assert error_of(world, world.split, "plain", right) < 1e-5
    assert error_of(world, world.split, "plain", make) > 0.5


@pytest.mark.parametrize("combine", ["last", "sum", "geometric"])
@pytest.mark.parametrize("otherwise", ["last", "max_confidence"])
def test_even_thresholds_put_every_exit_to_the_test(combine, otherwise):
    from edgekit.check import even_policy
    from edgekit.runtime.criteria import decide

    rng = np.random.default_rng(0)
    logits = [3 * rng.standard_normal((300, 5)) for _ in range(3)]
    found = even_policy(Policy("max_prob", (), combine, None, otherwise), logits)
    assert (found.combine, found.otherwise) == (combine, otherwise)
    shares = np.bincount(decide(logits, found).depths, minlength=3) / 300
    assert (shares > 1 / 8).all()


def test_even_thresholds_of_patience_lie_between_counts():
    from edgekit.check import even_policy

    logits = [np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 1, 1, 0]], np.eye(2)[[0, 1, 0, 1]]]
    assert even_policy(Policy("patience", ()), [*logits, logits[0]]).thresholds == (1.0, 0.5, 0.5)


def test_exit_decisions_are_compared_at_their_temperatures():
    from edgekit.check import even_policy
    from edgekit.runtime.criteria import decide

    rng = np.random.default_rng(0)
    logits = [3 * rng.standard_normal((300, 5)) for _ in range(3)]
    hot = Policy("max_prob", (), temperatures=(5.0, 3.0, 1.0))
    found = even_policy(hot, logits)
    assert found.temperatures == hot.temperatures
    shares = np.bincount(decide(logits, found).depths, minlength=3) / 300
    assert (shares > 1 / 8).all()
    cold = Reference(("a", "b", "c"), logits, lambda: iter(()), found, Check())
    plain = dataclasses.replace(found, temperatures=None)
    warm = Reference(("a", "b", "c"), logits, lambda: iter(()), plain, Check())
    assert (cold.decisions.depths != warm.decisions.depths).any()
    assert cold.compare("tune", logits).exit_agreement == 1
