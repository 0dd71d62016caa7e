"""optimize: less work and the same numbers, also where a pass of somebody else's is wrong."""

import hashlib
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import onnx.numpy_helper
import onnxoptimizer
import onnxslim
import pytest
import torch
from torch import nn

from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.bundle.manifest import Input, Policy
from edgekit.check import runner_for
from edgekit.models.exits import Exits
from edgekit.recipe import Check
from edgekit.stages import Network, Segments, StageResult
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import ErrorOf, Optimize
from edgekit.target import load_target
from tests.conftest import reference_of
from tests.stages.test_split import IMAGES, StepsThroughTime, split

BACKEND = OnnxRuntimeBackend()
LIMIT = 1e-3


def silent(text: str) -> None:
    pass


def error_of(model: nn.Module, exits: int, shape: tuple[int, ...]) -> ErrorOf:
    """What the pipeline proves with: the logits of these samples, held against the model's."""
    names = tuple(f"exit{index + 1}" for index in range(exits))
    samples = np.random.default_rng(0).standard_normal((12, *shape)).astype(np.float32)
    network = Network(Exits(model.eval(), names).eval(), names, torch.from_numpy(samples[:2]))
    policy = Policy("max_prob", (0.5,) * (exits - 1))
    reference = reference_of(network, policy, lambda: iter([samples]), Check())

    def error(segments: Segments[bytes], name: str) -> float:
        source = (Input(segments.inputs["input"], "float32", shape, None),)
        make = runner_for(segments, source, load_target("host"))
        return reference.error_of(segments, name, make)

    return error


@cache
def lowered(kind: type[nn.Module]) -> tuple[Segments[bytes], ErrorOf]:
    """A model of this kind (the same in every test), and how to prove what becomes of it."""
    torch.manual_seed(0)
    model = kind()
    graphs = split(model, 2, IMAGES)
    segments = Lower(BACKEND, load_target("host"), IMAGES)(graphs, silent).artifact
    return segments, error_of(model, 2, (1, 4, 4))


def optimize(kind: type[nn.Module], prove: ErrorOf | None = None) -> StageResult[Segments[bytes]]:
    segments, error = lowered(kind)
    return Optimize(BACKEND, prove or error, LIMIT)(segments, silent)


def operators(segments: Segments[bytes], name: str) -> list[str]:
    graph = onnx.load_from_string(segments.part(name).program).graph
    return [node.op_type for node in graph.node]


class Narrow(nn.Module):
    """A slimmable network at half its width: every weight is sliced in the graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.early, self.last = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x):
        x = nn.functional.conv2d(x, self.a.weight[:32], self.a.bias[:32], padding=1).relu()
        early = nn.functional.linear(x.mean((2, 3)), self.early.weight[:, :32], self.early.bias)
        x = nn.functional.conv2d(x, self.b.weight[:32, :32], padding=1)
        x = self.norm(x).relu()
        return early, nn.functional.linear(x.mean((2, 3)), self.last.weight[:, :32], self.last.bias)


class Pads(nn.Module):
    """Padding of its own before a pooling, which onnxoptimizer alone puts into it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.early, self.last = nn.Linear(64, 3), nn.Linear(36, 3)

    def forward(self, x):
        x = self.a(x).relu()
        padded = nn.functional.pad(self.b(x).relu(), (1, 1, 1, 1))
        return self.early(x.flatten(1)), self.last(nn.functional.avg_pool2d(padded, 2).flatten(1))


def test_a_slice_of_a_large_weight_becomes_a_weight():
    """Otherwise neither quantization nor the fusion of BatchNormalization sees a constant."""
    result = optimize(Narrow)
    for part in result.artifact.parts():
        graph = onnx.load_from_string(part.program).graph
        weights = {one.name: list(one.dims) for one in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert convolutions
        assert all(weights[node.input[1]][0] == 32 for node in convolutions)
        assert "Slice" not in operators(result.artifact, part.name)
        assert "BatchNormalization" not in operators(result.artifact, part.name)
    whole = result.notes["nodes"]["whole"]
    assert whole["after"] == len(operators(result.artifact, "whole")) < whole["before"] / 2
    assert whole["fold"] == whole["after"], "left to onnxslim, which takes no weight over 1 MiB"
    assert result.notes["dropped"] == []


def test_a_small_parameter_spread_wide_is_not_written_out():
    class Spread(nn.Module):
        def __init__(self):
            super().__init__()
            self.row, self.scale = nn.Parameter(torch.randn(1, 2048)), nn.Linear(16, 1)
            self.early, self.last = nn.Linear(16, 3), nn.Linear(2048, 3)

        def forward(self, x):
            x = x.flatten(1)
            wide = self.scale(x)[:, None] + self.row.expand(2048, 2048)
            return self.early(x), self.last(wide.mean(1))

    result = optimize(Spread)
    assert result.notes["dropped"] == []
    assert len(result.artifact.plain.program) < 2**20


def test_each_entry_of_passes_takes_its_share():
    pads = optimize(Pads).notes["nodes"]["plain"]
    assert pads["before"] > pads["fold"] > pads["onnxoptimizer"] >= pads["after"]
    steps = optimize(StepsThroughTime).notes["nodes"]["whole"]
    assert steps["fold"] > steps["onnxoptimizer"] > steps["onnxslim"] >= steps["after"]


def changed_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def failed(model: onnx.ModelProto) -> onnx.ModelProto:
    raise RuntimeError("Assertion `outputs_.size() == 1` failed")


def fixed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def renamed_output(model: onnx.ModelProto) -> onnx.ModelProto:
    name = model.graph.output[-1].name
    for node in model.graph.node:
        node.output[:] = ["renamed" if one == name else one for one in node.output]
    model.graph.output[-1].name = "renamed"
    return model


def refused(model: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX's checker has nothing against a reshape to the wrong size; the engine has."""
    one = onnx.helper.make_node("Reshape", ["cut", "cut shape"], [model.graph.output[-1].name])
    for node in model.graph.node:
        node.output[:] = ["cut" if x == one.output[0] else x for x in node.output]
    shape = onnx.numpy_helper.from_array(np.array([-1, 7]), "cut shape")
    model.graph.initializer.append(shape)
    middle = onnx.helper.make_node("Reshape", ["cut", "cut shape"], ["odd"])
    back = onnx.helper.make_node("Reshape", ["odd", "three"], [one.output[0]])
    three = onnx.numpy_helper.from_array(np.array([-1, 3]), "three")
    model.graph.initializer.append(three)
    model.graph.node.extend([middle, back])
    return model


def invalid(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[-1].input[0] = "nowhere"
    return model


WRONG = [
    (changed_numbers, r"logits differ from PyTorch's by \d\.\de-\d\d, limit 1\.0e-03"),
    (failed, r"RuntimeError: Assertion `outputs_"),
    (fixed_batch, r"contract: .*\['batch', .* became .*\[1, "),
    (renamed_output, r"contract: output linear.* became output renamed"),
    (refused, "engine refuses"),
    (invalid, "no valid ONNX model.*nowhere"),
]


@pytest.mark.parametrize(("wrong", "reason"), WRONG, ids=[one.__name__ for one, _ in WRONG])
def test_a_pass_that_breaks_a_part_is_dropped_and_the_rest_goes_on(monkeypatch, wrong, reason):
    monkeypatch.setattr(onnxslim, "slim", lambda model, **options: wrong(model))
    before, prove = lowered(Pads)
    result = optimize(Pads)
    names = [part.name for part in result.artifact.parts()]
    assert [(one["part"], one["pass"]) for one in result.notes["dropped"]] == [
        (name, "slim") for name in names
    ]
    for one in result.notes["dropped"]:
        assert re.search(reason, one["reason"]), one["reason"]
    for name in names:
        assert BACKEND.contract(result.artifact.part(name)) == BACKEND.contract(before.part(name))
        assert prove(result.artifact, name) < 1e-5
    assert "Pad" not in operators(result.artifact, "plain")


def test_the_one_wrong_pass_of_many_is_found_and_the_others_kept(monkeypatch):
    real = onnxoptimizer.optimize

    def one_is_wrong(model, passes):
        model = real(model, passes)
        return changed_numbers(model) if "fuse_pad_into_conv" in passes else model

    monkeypatch.setattr(onnxoptimizer, "optimize", one_is_wrong)
    result = optimize(Pads)
    assert {one["pass"] for one in result.notes["dropped"]} == {"fuse_pad_into_conv"}
    assert len(result.notes["dropped"]) == len(result.artifact.parts())
    assert "Pad" not in operators(result.artifact, "plain")


def test_everything_kept_has_been_proven_and_nothing_for_nothing():
    real, proven = lowered(StepsThroughTime)[1], []

    def recorded(segments: Segments[bytes], name: str) -> float:
        proven.append(segments.part(name).program)
        return real(segments, name)

    first = optimize(StepsThroughTime, recorded).artifact
    assert {part.program for part in first.parts()} <= set(proven)
    assert len(proven) == len(set(proven))
    proven.clear()
    second = Optimize(BACKEND, recorded, LIMIT)(first, silent).artifact
    assert second == first
    assert not proven


def test_a_pass_that_only_renames_and_reorders_changes_nothing(monkeypatch):
    def other_words(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        kept = {one.name for one in (*model.graph.input, *model.graph.output)}
        for node in model.graph.node:
            node.name += "_slimmed"
            for names in (node.input, node.output):
                names[:] = [one if one in kept or not one else f"{one}_slim" for one in names]
        for tensor in model.graph.initializer:
            tensor.name += "_slim"
        del model.graph.value_info[:]
        return model

    result = optimize(Pads)
    monkeypatch.setattr(onnxslim, "slim", other_words)
    for part in result.artifact.parts():
        assert BACKEND.apply(("slim",), part) == part.program


def test_the_passes_are_those_of_onnxoptimizer_less_those_that_hurt():
    passes = BACKEND.passes["onnxoptimizer"]
    assert "fuse_bn_into_conv" in passes
    assert "eliminate_identity" in passes
    assert "fuse_qkv" in onnxoptimizer.get_available_passes()
    assert "fuse_qkv" not in passes


AGAIN = """
import hashlib, sys
from pathlib import Path
from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.stages import Part
backend = OnnxRuntimeBackend()
for file in sys.argv[1:]:
    part = Part(file, Path(file).read_bytes(), (), (), {}, 0, 0)
    for passes in backend.passes.values():
        part = Part(file, backend.apply(passes, part), (), (), {}, 0, 0)
        print(hashlib.sha256(part.program).hexdigest())
"""


def test_another_process_gives_the_same_bytes(tmp_path):
    """Sets are ordered otherwise in every process, and graph libraries are full of them."""
    files = []
    for kind in (StepsThroughTime, Narrow):
        files.append(tmp_path / f"{kind.__name__}.onnx")
        files[-1].write_bytes(lowered(kind)[0].whole.program)
    printed = [
        subprocess.run(
            [sys.executable, "-c", AGAIN, *map(str, files)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(printed[0].split()) == len(files) * len(BACKEND.passes)
    assert printed[0] == printed[1]
    assert hashlib.sha256(files[0].read_bytes()).hexdigest() not in printed[0]
