"""TFLite segments of lower precision: what crosses, what stays float, and what the engine does."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.backends import Crossing
from edgekit.backends.litert import LiteRTBackend
from edgekit.backends.tflite_graph import Graph
from edgekit.backends.tflite_lower import batch_freed, without_transposes
from edgekit.backends.tflite_quantize import to_lower
from edgekit.errors import BuildError
from edgekit.recipe import Quantize
from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.split import Split
from edgekit.target import load_target
from tests.backends.tflite import File, Lowered, in_batches, lowered, samples
from tests.stages.fake_quantized import CONVOLVED, EARLY, INPUT, LATE, Trained

STATIC = ("int8", "int16x8")


def quantized(one, precision, entering=None, features=None, method="minmax"):
    return to_lower(
        one.part,
        in_batches(one.features if features is None else features),
        entering or {},
        Quantize(method=method),
        SimpleNamespace(precision=precision),
    )


def behind(first, result):
    """What the segment behind is given by the quantized file: integers, and what they mean."""
    run = File(result.program)
    given = [run(**row) for row in first.rows()]
    integers = {name: np.concatenate([one[name] for one in given]) for name in ("a", "c")}
    return integers, {name: result.leaving[name].floats(x) for name, x in integers.items()}


def conversions(graph, kind):
    """What the operators of this kind read."""
    return [one.inputs[0] for one in graph.operators if graph.kind(one) == kind]


@pytest.mark.parametrize("precision", STATIC)
def test_a_boundary_has_one_scale_on_both_sides_and_no_conversion_at_the_cut(
    first, second, precision
):
    one = quantized(first, precision)
    assert set(one.leaving) == {"a", "c"}
    _, floats = behind(first, one)
    two = quantized(second, precision, one.leaving, floats)
    maker, reader = Graph(one.program), Graph(two.program)
    for name, crossing in one.leaving.items():
        assert crossing.dtype == {"int8": "int8", "int16x8": "int16"}[precision]
        given, taken = maker.outputs[name], reader.inputs[name]
        assert maker.crossing(given) == crossing == reader.crossing(taken)
        assert maker.kind(maker.maker(given)) not in {"QUANTIZE", "DEQUANTIZE"}
    # Floats are quantized once, where they enter the network, and integers dequantized for heads
    # alone; a concatenation gets what it takes to its own scale from integers.
    assert [maker.name(one) for one in conversions(maker, "QUANTIZE")] == ["serving_default_args_0"]
    assert len(conversions(maker, "DEQUANTIZE")) == 1
    assert [reader.is_float(one) for one in conversions(reader, "QUANTIZE")] == [False]
    assert len(conversions(reader, "DEQUANTIZE")) == 2


@pytest.mark.parametrize("precision", STATIC)
def test_two_integer_files_in_a_row_compute_what_their_integers_mean(first, second, precision):
    one = quantized(first, precision)
    integers, floats = behind(first, one)
    two = quantized(second, precision, one.leaving, floats)
    # The float file, with the weights that the integers of the other stand for.
    original, graph = Graph(second.part.program), Graph(two.program)
    exact, other = original.maker(original.outputs["e"]), graph.maker(graph.outputs["e"])
    for place in (1, 2):
        tensor = graph.tensors[other.inputs[place]]
        scale = np.reshape(tensor.quantization.scale, (-1,) + (1,) * (len(tensor.shape) - 1))
        meant = (graph.constant(other.inputs[place]) * scale).astype(np.float32)
        exact.inputs[place] = original.add_constant(exact.inputs[place], meant)
    exact, run = File(original.program()), File(two.program)
    crossing = two.leaving["e"]
    for row in range(len(integers["a"])):
        meant = exact(**{name: x[row : row + 1] for name, x in floats.items()})["e"]
        found = run(**{name: x[row : row + 1] for name, x in integers.items()})["e"]
        assert np.abs(crossing.floats(found) - meant).max() <= crossing.scale


@pytest.mark.parametrize("precision", [*STATIC, "int8-dynamic", "int8-weights"])
def test_logits_stay_near_the_float_files_and_heads_in_float(first, precision):
    result = quantized(first, precision)
    exact, run = File(first.part.program), File(result.program)
    for row in first.rows():
        meant, found = exact(**row), run(**row)
        assert found["exit1"].dtype == np.float32
        assert np.abs(found["exit1"] - meant["exit1"]).max() < 0.02 * np.abs(meant["exit1"]).max()
        # Where pads of minus infinity had been taken for features, a would have no steps left.
        for name in ("a", "c"):
            crossing = result.leaving.get(name)
            values = crossing.floats(found[name]) if crossing else found[name]
            assert np.abs(values - meant[name]).max() < 0.04 * np.abs(meant[name]).max()
    graph = Graph(result.program)
    classify = graph.maker(graph.outputs["exit1"])
    assert all(graph.is_float(tensor) for tensor in classify.inputs)
    assert (precision in STATIC) == bool(result.leaving)
    assert graph.is_float(graph.inputs["x"])


@pytest.mark.parametrize("precision", [*STATIC, "int8-dynamic", "int8-weights"])
def test_weights_have_a_scale_per_channel(first, precision):
    graph = Graph(quantized(first, precision).program)
    channels = {
        graph.name(tensor): len(graph.tensors[tensor].quantization.scale)
        for tensor in range(len(graph.tensors))
        if graph.is_constant(tensor)
        and graph.shape(tensor)[1:]
        and graph.constant(tensor).dtype == np.int8
    }
    # Stem, depthwise, pointwise, squeeze and excite.
    assert sorted(channels.values()) == [4, 8, 8, 8, 8]


def test_the_first_samples_extremes_count_as_much_as_the_lasts(first):
    exact = File(first.part.program)
    most = [exact(**row)["c"].max() for row in first.rows()]
    assert most[0] == max(most)
    # A moving average would have come down from it.
    assert quantized(first, "int8").leaving["c"].scale == pytest.approx(most[0] / 255, rel=1e-6)


def test_a_method_that_cuts_outliers_has_finer_steps(first):
    x = np.repeat(first.features["x"], 8, axis=0)
    x[-1, 3, 3] = 40  # One pixel in thousands.
    scales = {
        method: quantized(first, "int8", features={"x": x}, method=method).leaving["c"].scale
        for method in ("minmax", "percentile", "entropy")
    }
    assert scales["percentile"] < scales["minmax"]
    assert scales["entropy"] < scales["minmax"]


@pytest.mark.parametrize("precision", [*STATIC, "int8-dynamic", "int8-weights"])
def test_the_file_is_the_same_each_time_and_says_nothing_of_this_machine(first, precision):
    program = quantized(first, precision).program
    assert program == quantized(first, precision).program
    assert str(Path.cwd()).encode() not in program
    assert b"/tmp" not in program


@pytest.mark.parametrize("precision", [*STATIC, "int8-dynamic", "int8-weights"])
def test_samples_that_run_together_are_quantized_as_they_are_alone(first, precision):
    # Were ranges read at run time over the whole batch, the brightest sample would set them.
    x = first.features["x"][:4] * np.float32([[[[0.1]]], [[[1]]], [[[3]]], [[[0.01]]]])
    freed = replace(first, part=replace(first.part, program=batch_freed(first.part.program)))
    program = quantized(freed, precision).program
    alone = File(program)
    expected = [alone(x=x[row : row + 1]) for row in range(4)]
    together = File(program, rows=4)(x=x)
    for name, values in together.items():
        assert np.array_equal(values, np.concatenate([one[name] for one in expected]))


@pytest.mark.parametrize("precision", [*STATIC, "int8-dynamic", "int8-weights"])
def test_normalizations_and_masked_attention_keep_their_accuracy(tokens, precision):
    result = quantized(tokens, precision)
    exact, run = File(tokens.part.program), File(result.program)
    meant, found = (
        np.concatenate([file(**row)["exit1"] for row in tokens.rows()]) for file in (exact, run)
    )
    # With the statistics in integers, too, INT8 is 0.19 off.
    near = 0.1 if precision == "int8" else 0.02
    assert np.abs(found - meant).max() < near * np.abs(meant).max()
    graph = Graph(result.program)
    for kind in ("RSQRT", "SQUARED_DIFFERENCE", "SOFTMAX"):
        found = [one for one in graph.operators if graph.kind(one) == kind]
        assert found
        assert all(graph.is_float(x) for one in found for x in (*one.inputs, *one.outputs))
    # A boundary may end in an operator that stays in float, or in none.
    assert all(isinstance(one, Crossing) for one in result.leaving.values())


class ReadTwice(nn.Module):
    """A boundary and an exit that operators in float give, and operators of integers read."""

    def __init__(self):
        super().__init__()
        self.a, self.early, self.b, self.last = (
            nn.Linear(*sizes) for sizes in ((8, 8), (8, 4), (12, 8), (8, 4))
        )

    def forward(self, x):
        a = self.a(x)
        w = (a @ a.transpose(1, 2)).softmax(-1)
        features = (w @ a).mean(1)
        early = self.early(features)
        return w, early, self.last(self.b(torch.cat([features, early], 1)).relu())


@pytest.mark.parametrize("precision", STATIC)
def test_what_comes_out_as_floats_is_floats_though_integer_operators_read_it(precision):
    torch.manual_seed(5)
    exits = ("exit1", "exit2")
    one = lowered("whole", ReadTwice(), {"x": samples(12, 6, 8)}, ("w", *exits), exits)
    result = quantized(one, precision)
    assert result.leaving == {}
    exact, run = File(one.part.program), File(result.program)
    for row in one.rows():
        meant, found = exact(**row), run(**row)
        for name in ("w", *exits):
            assert found[name].dtype == np.float32
            assert np.abs(found[name] - meant[name]).max() < 0.05 * np.abs(meant[name]).max()


def test_features_that_no_integers_stand_for_are_refused_with_the_tensor(first):
    x = first.features["x"].copy()
    x[5, 2, 2, 0] = np.nan
    with pytest.raises(BuildError, match=r"^segment-1: tensor \S+ runs from nan to nan"):
        quantized(first, "int8", features={"x": x})


def test_what_the_tools_cannot_do_is_a_build_error_that_names_the_part(first):
    with pytest.raises(BuildError, match=r"^segment-1: .* fp16; .*int16x8, .*or fp32$"):
        quantized(first, "fp16")
    broken = replace(first, part=replace(first.part, program=b"no file at all"))
    with pytest.raises(BuildError, match=r"^segment-1 cannot be quantized to int8: "):
        quantized(broken, "int8")


@pytest.fixture(scope="module")
def trained():
    """A model from quantization-aware training, its chain's parts, and samples."""
    torch.manual_seed(4)
    model = Trained().eval()
    x = torch.randn(12, 3, 8, 8)
    exported = Export()(Network(model, ("exit1", "exit2"), x[:2]), lambda text: None).artifact
    backend, target = LiteRTBackend(), load_target("rpi4b-litert")
    given, parts = {"x": x[:2]}, []
    for part in Split(channels_last=True)(exported, lambda text: None).artifact.chain:
        examples = tuple(given[name] for name in part.inputs)
        file = replace(part, program=backend.lower(part, examples, target))
        parts.append(replace(file, program=without_transposes(file.program)))
        with torch.no_grad():
            given |= dict(zip(part.outputs, part.program(*examples), strict=True))
    return model, parts, x.numpy()


def test_a_trained_models_scales_are_those_of_the_file(trained):
    model, (one, two), x = trained
    first = quantized(Lowered(model, one, {"x": x}), "int8")
    # float32, as the file has them.
    boundary = Crossing("int8", float(np.float32(EARLY[0])), EARLY[1])
    (name,) = two.inputs
    assert first.leaving == {name: boundary}
    run = File(first.program)
    integers = np.concatenate([run(x=row[None])[name] for row in x])
    features = {name: boundary.floats(integers)}
    second = quantized(Lowered(model, two, features), "int8", first.leaving)
    graphs = [Graph(first.program), Graph(second.program)]
    found = {graph.crossing(x) for graph in graphs for one in graph.operators for x in one.outputs}
    wanted = {(float(np.float32(scale)), zero) for scale, zero in (INPUT, EARLY, CONVOLVED, LATE)}
    assert {(one.scale, one.zero_point) for one in found - {None}} == wanted
    for graph, module, kind in zip(
        graphs, (model.a, model.b), ("CONV_2D", "DEPTHWISE_CONV_2D"), strict=True
    ):
        (operator,) = (one for one in graph.operators if graph.kind(one) == kind)
        scales = graph.tensors[operator.inputs[1]].quantization.scale
        np.testing.assert_allclose(scales, module.scale.numpy(), rtol=1e-6)
        assert sorted(np.unique(graph.constant(operator.inputs[1]))) == sorted(
            np.unique(module.weight.numpy())
        )
    # So the integers compute what training saw; only sums are rounded otherwise.
    last = File(second.program)
    with torch.no_grad():
        meant = [one.numpy() for one in model(torch.from_numpy(x))]
    for row, (early, late) in enumerate(zip(*meant, strict=True)):
        (found,) = (run(x=x[row : row + 1])[exit] for exit in one.logits.values())
        assert np.abs(found - early).max() < 5e-3
        (found,) = last(**{name: integers[row : row + 1]}).values()
        assert np.abs(found - late).max() < 2e-2


def test_a_file_of_a_trained_model_quantizes_nothing_twice(trained):
    model, (one, _), x = trained
    graph = Graph(one.program)
    assert len(conversions(graph, "QUANTIZE")) == len(conversions(graph, "DEQUANTIZE")) > 1
    graph = Graph(quantized(Lowered(model, one, {"x": x}), "int8").program)
    assert len(conversions(graph, "QUANTIZE")) == len(conversions(graph, "DEQUANTIZE")) == 1
    # What the pairs kept apart is laid out once.
    assert [graph.kind(one) for one in graph.operators].count("TRANSPOSE") == 1
    # Where activations are floats at run time, the pairs would be all that computes.
    for precision in ("int8-dynamic", "int8-weights"):
        graph = Graph(quantized(Lowered(model, one, {"x": x}), precision).program)
        assert not conversions(graph, "QUANTIZE")
