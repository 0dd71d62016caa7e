"""What a build proves of engines for a GPU that is not there, with TensorRT-RTX itself."""

import json

import pytest

from edgekit.bundle.reader import read_bundle
from edgekit.cache import Cache
from edgekit.errors import BuildError
from edgekit.pipeline import build
from edgekit.prove import UNPROVEN, Proof, compiled
from edgekit.recipe import load_recipe
from edgekit.runtime import tensorrt_api
from edgekit.target import load_target
from tests.conftest import ROOT

PARTS = ["segment-1", "segment-2", "segment-3", "plain", "whole"]


def test_every_segment_is_compiled_for_the_targets_nearest_gpu(jetson_tiny):
    said = []
    found = compiled(read_bundle(jetson_tiny), load_target("jetson"), said.append)
    by = str(tensorrt_api.find((tensorrt_api.RTX,)))
    assert found == [Proof(name, "built", by, "8.6") for name in PARTS]
    assert any(one.startswith("segment-1: ") for one in said)


def test_the_evidence_says_what_ran_and_what_was_built_for_what(jetson_tiny):
    proof = json.loads((jetson_tiny / "evidence.json").read_bytes())["proof"]
    ran = [one for one in proof if one["proven"] == "executed"]
    assert [one["segment"] for one in ran] == PARTS[:3]
    assert {one["by"].split()[0] for one in ran} == {"onnxruntime"}
    built = [one for one in proof if one["proven"] == "built"]
    assert [one["segment"] for one in built] == PARTS
    assert {(one["by"].split()[0], one["compute_capability"]) for one in built} == {
        ("tensorrt_rtx", "8.6")
    }


def test_without_tensorrt_rtx_nothing_is_claimed_and_the_command_is_named(jetson_tiny, monkeypatch):
    monkeypatch.setattr(tensorrt_api, "_found", {})
    monkeypatch.setattr(tensorrt_api, "_MODULES", {tensorrt_api.RTX: "no_such_module"})
    found = compiled(read_bundle(jetson_tiny), load_target("jetson"), lambda text: None)
    assert {one.proven for one in found} == {UNPROVEN}
    assert "pip install 'edgekit[tensorrt-rtx]'" in found[0].by


@pytest.mark.parametrize("capability", ["5.3", None])
def test_for_a_gpu_that_tensorrt_rtx_does_not_know_segments_are_only_parsed(
    jetson_tiny, monkeypatch, capability
):
    target = load_target("jetson", {"gpu.proof_capability": capability})
    bundle = read_bundle(jetson_tiny)
    found = compiled(bundle, target, lambda text: None)
    by = str(tensorrt_api.find((tensorrt_api.RTX,)))
    assert found == [Proof(name, "parsed", by) for name in PARTS]
    monkeypatch.setattr(type(bundle), "read", lambda self, path: b"no network")
    with pytest.raises(BuildError, match=r"segment-1: .* cannot read it"):
        compiled(bundle, target, lambda text: None)


def test_a_processors_bundle_needs_no_such_proof(built_tiny):
    assert compiled(read_bundle(built_tiny), load_target("host"), lambda text: None) == []


def test_what_tensorrt_refuses_ends_the_build_and_names_the_segment(jetson_tiny, monkeypatch):
    bundle = read_bundle(jetson_tiny)
    monkeypatch.setattr(type(bundle), "read", lambda self, path: b"no network")
    with pytest.raises(BuildError, match=r"verify: for jetson: segment-1: .* cannot read it"):
        compiled(bundle, load_target("jetson"), lambda text: None)


def test_every_gpu_target_builds_the_tiny_network(cli, tiny_recipe, tmp_path):
    with tiny_recipe.open("a") as stream:
        stream.write('  calibration: {factory: "tiny.py:samples", args: {seed: 3}}\n')
    for target, precision, capability in [
        ("t4", "fp16", "7.5"),
        ("t4", "int8", "7.5"),
        ("jetson-orin-nano", "int8", "8.6"),
        ("jetson-thor", "fp16", "12.0"),
    ]:
        output = tmp_path / f"{target}-{precision}"
        ended = cli(
            *("build", tiny_recipe, "--target", target, "--output", output),
            *("--set", f"target.precision={precision}", "--set", "test_samples=0"),
            *("--set", "check.quantized.min_exit_agreement=0"),
            *("--set", "check.quantized.min_top1_agreement=0.5"),
        )
        assert ended.code == 0, ended.err
        assert f"for compute capability {capability}" in ended.out
        assert f"edgekit install {output.name}" in ended.out
        found = {one.dtype for one in read_bundle(output).manifest.variant().tensors.values()}
        assert found == {"float32", {"fp16": "float16", "int8": "int8"}[precision]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "lower"),
    [
        ("recipes/digits", {}),
        ("recipes/glyphs", {}),
        # Its weights are drawn, and its exits are about as sure of every class.
        ("benchmarks/resnet18", {"min_top1_agreement": 0.5, "min_exit_agreement": 0.0}),
    ],
)
def test_whole_networks_build_for_a_jetson_and_a_t4(recipe, lower, tmp_path):
    found = load_recipe(
        str(ROOT / recipe / "recipe.yaml"),
        {f"check.quantized.{key}": value for key, value in lower.items()},
    )
    cache = Cache(tmp_path / "cache")
    for name, precision, capability in [
        ("jetson", "fp16", "8.6"),
        ("jetson", "int8", "8.6"),
        ("t4", "fp16", "7.5"),
        ("t4", "int8", "7.5"),
        # A T4 multiplies no float32: see docs/t4.md.
        ("jetson", "fp32", "8.6"),
    ]:
        target = load_target(name, {"precision": precision})
        built = build(found, target, tmp_path / f"{name}-{precision}", cache=cache)
        parts = [one.name for one in built.manifest.variant().segments]
        proof = [one for one in built.evidence["proof"] if one["proven"] == "built"]
        assert [one["segment"] for one in proof] == [*parts, "plain", "whole"]
        assert {one["compute_capability"] for one in proof} == {capability}
        agreement = built.evidence["checks"][-1]["top1_agreement"]
        assert agreement >= lower.get("min_top1_agreement", 0.99)
