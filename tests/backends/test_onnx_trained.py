"""Models from quantization-aware training in ONNX: their own scales, and nothing twice."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.recipe import Quantize
from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.stages.split import Split
from edgekit.target import load_target
from tests.stages.fake_quantized import (
    CONVOLVED,
    EARLY,
    INPUT,
    LATE,
    ReadsItsInputTwice,
    Trained,
)

BACKEND = OnnxRuntimeBackend()


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def trained():
    return prepared(Trained)


def prepared(kind):
    torch.manual_seed(4)
    model = kind().eval()
    x = torch.randn(12, 3, 8, 8)
    exported = Export()(Network(model, ("exit1", "exit2"), x[:2]), silent).artifact
    files = Lower(BACKEND, load_target("host"), x[:2])(Split()(exported, silent).artifact, silent)
    optimize = Optimize(BACKEND, lambda segments, name: 0.0, 1e-3)
    return model, optimize(files.artifact, silent).artifact.chain, x.numpy()


def run(program, **given):
    options = onnxruntime.SessionOptions()
    # Exact on processors without VNNI too, as edgekit's engine is.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def quantized(trained, target):
    """Both parts, and the logits of their chain."""
    _, (one, two), x = trained
    (name,) = two.inputs
    first = BACKEND.quantize(one, lambda: iter([{"x": x}]), {}, [two], Quantize(), target)
    given = run(first.program, x=x)
    crossing = first.leaving.get(name)
    floats = crossing.floats(given[name]) if crossing else given[name].astype(np.float32)
    features = lambda: iter([{name: floats}])  # noqa: E731  (anew on each call)
    second = BACKEND.quantize(two, features, first.leaving, [], Quantize(), target)
    last = run(second.program, **{name: given[name]})
    logits = [given[one.logits["exit1"]], last[two.logits["exit2"]]]
    return first, second, logits


@pytest.mark.parametrize(("target", "shift"), [("rpi4b", 0), ("host", 128)])
def test_a_trained_models_scales_are_those_of_the_file(trained, target, shift):
    model, _, x = trained
    target = load_target(target, {"precision": "int8"})
    first, second, logits = quantized(trained, target)
    found, weights = set(), []
    for part in (first, second):
        graph = onnx.load_from_string(part.program).graph
        constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                scale, zero_point = (constants[name] for name in node.input[1:])
                found.add((float(scale), int(zero_point)))
            elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
                scale = constants[node.input[1]]
                if constants[node.input[0]].ndim == 4:
                    weights.append((scale, constants[node.input[0]]))
    assert found == {
        (float(np.float32(scale)), zero + shift) for scale, zero in (INPUT, EARLY, CONVOLVED, LATE)
    }
    for (scale, integers), module in zip(weights, (model.a, model.b), strict=True):
        np.testing.assert_allclose(scale, module.scale.numpy(), rtol=1e-6)
        assert np.array_equal(integers, module.weight.numpy())
    with torch.no_grad():
        for values, meant in zip(logits, model(torch.from_numpy(x)), strict=True):
            assert np.abs(values - meant.numpy()).max() < 5e-3


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic"])
def test_in_other_precisions_nothing_is_quantized_as_in_training(trained, precision):
    model, _, x = trained
    first, second, logits = quantized(trained, load_target("host", {"precision": precision}))
    for part in (first, second):
        kinds = {node.op_type for node in onnx.load_from_string(part.program).graph.node}
        assert not kinds & {"QuantizeLinear"}
    with torch.no_grad():
        for values, meant in zip(logits, model(torch.from_numpy(x)), strict=True):
            assert np.abs(values - meant.numpy()).max() < 0.05


@pytest.mark.parametrize(("target", "dtype"), [("rpi4b", "int8"), ("host", "uint8")])
def test_a_quantized_input_that_a_later_segment_reads_crosses_in_the_targets_integers(
    target, dtype
):
    model, (one, two), x = prepared(ReadsItsInputTwice)
    target = load_target(target, {"precision": "int8"})
    first = BACKEND.quantize(one, lambda: iter([{"x": x}]), {}, [two], Quantize(), target)
    assert {first.leaving[name].dtype for name in two.inputs} == {dtype}
    given = run(first.program, x=x)
    features = {name: first.leaving[name].floats(given[name]) for name in two.inputs}
    second = BACKEND.quantize(two, lambda: iter([features]), first.leaving, [], Quantize(), target)
    last = run(second.program, **{name: given[name] for name in two.inputs})
    with torch.no_grad():
        meant = [one.numpy() for one in model(torch.from_numpy(x))]
    for found, logits in zip(
        (given[one.logits["exit1"]], last[two.logits["exit2"]]), meant, strict=True
    ):
        assert np.abs(found - logits).max() < 0.02 * np.abs(logits).max()
