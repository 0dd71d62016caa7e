"""build: what a bundle carries, and the device that could not hold it."""

import dataclasses

import pytest

from edgekit.backends import backend_for
from edgekit.bundle.manifest import Policy, Segment, TensorSpec
from edgekit.bundle.reader import read_bundle
from edgekit.data import load_splits
from edgekit.errors import BuildError
from edgekit.models.load import user_code
from edgekit.recipe import load_recipe
from edgekit.stages import Part, Segments, Tuned
from edgekit.stages.build import Build
from edgekit.target import load_target
from edgekit.wheels import own_wheel, pins

SEGMENTS = Segments(
    exits=("first",),
    inputs={"input": "x"},
    tensors={"x": TensorSpec("float32", (None, 1, 8, 8)), "a": TensorSpec("float32", (None, 4))},
    chain=(Part("segment-1", bytes(600_000), ("x",), ("a",), {"first": "a"}, 0, 0),),
    plain=Part("plain", bytes(500_000), ("x",), ("a",), {"first": "a"}, 0, 0),
    whole=Part("whole", bytes(500_000), ("x",), ("a",), {"first": "a"}, 0, 0),
)

POLICY = Policy("max_prob", ())


def test_a_chain_that_the_devices_memory_cannot_hold_is_refused(tiny_recipe):
    target = load_target("rpi4b", {"memory_bytes": 2**20})
    stage = Build(load_recipe(str(tiny_recipe)), target, backend_for(target.engine), {})
    words = r"needs 1\.2 MB.*rpi4b has 1\.0 MB; .*--set target\.memory_bytes"
    with pytest.raises(BuildError, match=words):
        stage(Tuned(SEGMENTS, POLICY), lambda text: None)
    # A program of half that size passes on, to where golden samples are looked for.
    smaller = dataclasses.replace(SEGMENTS.chain[0], program=bytes(500_000))
    with pytest.raises(Exception, match="onnxruntime refuses segment-1"):
        segments = dataclasses.replace(SEGMENTS, chain=(smaller,))
        stage(Tuned(segments, POLICY), lambda text: None)


def test_a_device_that_can_run_but_not_bench_is_a_note(built_tiny, tiny_recipe):
    bundle = read_bundle(built_tiny)
    manifest = bundle.manifest
    (baselines,) = manifest.baselines

    def part(one: Segment) -> Part[bytes]:
        logits = {exit.name: exit.logits for exit in one.exits}
        return Part(one.name, bundle.read(one.path), one.inputs, one.outputs, logits, 0, 0)

    segments = Segments(
        manifest.variant().exits,
        {"input": manifest.inputs[0].tensor},
        manifest.variant().tensors,
        tuple(map(part, manifest.variant().segments)),
        part(baselines.plain),
        part(baselines.whole),
    )
    recipe = load_recipe(str(tiny_recipe))
    with user_code(recipe.folder):
        splits = load_splits(recipe)
    chain_bytes = sum(segment.size_bytes for segment in manifest.variant().segments)
    for memory_bytes, noted in ((2 * chain_bytes, True), (2**20, False), (None, False)):
        # Less than a target may have, as the network is smaller than any.
        target = load_target("host").model_copy(update={"memory_bytes": memory_bytes})
        stage = Build(recipe, target, backend_for(target.engine), splits)
        notes = stage(Tuned(segments, manifest.policy), lambda text: None).notes
        assert ("bench also loads the undivided networks" in notes.get("warning", "")) is noted


def test_a_bundle_carries_what_its_device_installs(built_tiny):
    bundle = read_bundle(built_tiny)
    wheel = own_wheel()
    assert bundle.read(f"install/{wheel.name}") == wheel.content
    wanted = (f"edgekit=={wheel.version}", *pins("onnxruntime"))
    assert bundle.manifest.requirements.packages == wanted
    assert bundle.manifest.requirements.python == ">=3.10,<3.14"
    lines = bundle.read("install/requirements.txt").decode().splitlines()
    assert lines[1:] == ["--find-links .", "--only-binary :all:", *wanted]
    carried = [file.path for file in bundle.manifest.files if file.path.startswith("install/")]
    assert sorted(carried) == [f"install/{wheel.name}", "install/requirements.txt"]
