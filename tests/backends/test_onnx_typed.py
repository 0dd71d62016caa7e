"""Segments typed for TensorRT: scales, what is quantized, what crosses; TensorRT-RTX takes them."""

import dataclasses
import inspect

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, numpy_helper

from edgekit.backends import onnx_typed
from edgekit.errors import BuildError
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.backends.typed import BACKEND, compile_all, noise


def nodes_of(part, kind):
    return [one for one in onnx.load_from_string(part.program).graph.node if one.op_type == kind]


def kinds_of(part):
    """The element types of the file's own tensors: inputs, outputs, and constants but indices."""
    model = onnx.load_from_string(part.program)
    edges = {
        one.name: one.type.tensor_type.elem_type
        for one in (*model.graph.input, *model.graph.output)
    }
    constants = {one.data_type for one in model.graph.initializer}
    return edges, constants - {TensorProto.INT64}


def assert_agrees(one, segments, relative):
    floats, ours = one.run(one.optimized, noise(7)), one.run(segments, noise(7))
    for part in segments.chain:
        for tensor in part.logits.values():
            assert ours[tensor].dtype == np.float32
            error = np.abs(ours[tensor] - floats[tensor]).max() / np.abs(floats[tensor]).max()
            assert error < relative, (part.name, tensor)


@given(st.floats(0, 3e6, allow_nan=False, width=32))
def test_a_scale_of_float16_clips_nothing_and_is_never_zero(magnitude):
    scale = float(onnx_typed._scale(magnitude))
    assert scale > 0
    assert scale * 127 >= magnitude
    # No coarser than the next smaller one, which would clip.
    below = float(np.nextafter(np.float16(scale), np.float16(0)))
    assert magnitude == 0 or below * 127 < magnitude


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=4),
           elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(0, 1),
)  # fmt: skip
def test_weights_are_quantized_with_the_scale_that_the_file_has(weight, axis):
    integers, scales = onnx_typed._quantized(weight, axis)
    along = [1] * weight.ndim
    along[axis] = -1
    wide = scales.astype(np.float32).reshape(along)
    assert np.abs(integers.astype(int)).max() <= 127
    assert (np.abs(integers * wide - weight) <= wide * 0.5001).all()


@pytest.mark.parametrize("network", ["residual", "scaled", "masked"])
@pytest.mark.parametrize(("precision", "relative"), [("fp16", 2e-3), ("int8", 5e-2)])
def test_what_is_typed_agrees_with_float32_and_compiles(network, precision, relative, request):
    one = request.getfixturevalue(network)
    segments = one.quantize(precision, min_integer_share=0.5).artifact
    assert_agrees(one, segments, relative)
    compile_all(segments.chain, (1, 4))


def test_nothing_but_inputs_and_logits_is_float32(residual, scaled, masked):
    for one in (residual, scaled, masked):
        for precision in ("fp16", "int8"):
            for part in one.quantize(precision, min_integer_share=0.5).artifact.parts():
                edges, constants = kinds_of(part)
                wide = {name for name, kind in edges.items() if kind == TensorProto.FLOAT}
                assert wide == {"x", *part.looked_at} & edges.keys()
                assert TensorProto.FLOAT not in constants
                for name in part.looked_at:
                    assert [node.output for node in nodes_of(part, "Cast")].count([name]) == 1


def test_a_convolution_reads_integers_and_nothing_is_quantized_behind_it(residual):
    first = residual.quantize("int8").artifact.chain[0]
    model = onnx.load_from_string(first.program)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in nodes_of(first, "Conv"):
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert node.input[2] not in makers
        readers = [one.op_type for one in model.graph.node if node.output[0] in one.input]
        assert set(readers) <= {"Relu", "Add"}
    (add,) = nodes_of(first, "Add")
    # The shortcut is what the convolution before it reads: it is kept once, in INT8.
    kinds = sorted(makers[name].op_type for name in add.input)
    assert kinds == ["Conv", "DequantizeLinear"]
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        for node in nodes_of(first, kind):
            scale, zero_point = (constants[name] for name in node.input[1:])
            assert scale.dtype == np.float16
            assert zero_point.dtype == np.int8
            assert not zero_point.any()


def test_heads_multiply_in_float16(residual):
    for part in residual.quantize("int8").artifact.parts():
        model = onnx.load_from_string(part.program)
        made = {node.output[0]: node.op_type for node in model.graph.node}
        for node in nodes_of(part, "Gemm"):
            assert made.get(node.input[0]) != "DequantizeLinear"
            assert node.input[1] not in made


def test_a_boundary_that_a_later_convolution_reads_crosses_as_integers(residual, masked):
    segments = residual.quantize("int8").artifact
    (boundary,) = segments.chain[1].inputs
    assert segments.tensors[boundary].dtype == "int8"
    edges = [kinds_of(part)[0][boundary] for part in segments.chain]
    assert edges == [TensorProto.INT8] * 2
    scales = []
    for part, kind in zip(segments.chain, ("QuantizeLinear", "DequantizeLinear"), strict=True):
        constants = {
            one.name: numpy_helper.to_array(one)
            for one in onnx.load_from_string(part.program).graph.initializer
        }
        (node,) = [one for one in nodes_of(part, kind) if boundary in (*one.input, *one.output)]
        scales.append(float(constants[node.input[1]]))
    assert scales[0] == scales[1]


def test_a_boundary_that_no_product_reads_crosses_as_float16(residual):
    first, second = residual.optimized.chain
    options = load_recipe("digits").quantize
    target = load_target("host", {"precision": "int8"})
    features = lambda: iter([{"x": noise(1)}])  # noqa: E731
    (boundary,) = second.inputs
    for later, dtype in (((second,), "int8"), ((), "float16")):
        found = BACKEND.quantize(first, features, {}, later, options, target)
        assert found.leaving[boundary].dtype == dtype
        ends = dataclasses.replace(first, program=found.program)
        assert (len(nodes_of(ends, "QuantizeLinear")) == 4) == (dtype == "int8")


def test_a_mask_of_minus_infinity_is_neither_quantized_nor_makes_a_nan(masked):
    for precision in ("fp16", "int8"):
        segments = masked.quantize(precision, min_integer_share=0.5).artifact
        values = masked.run(segments, noise(7))
        for part in segments.chain:
            assert all(np.isfinite(values[name]).all() for name in part.looked_at)
            (softmax,) = nodes_of(part, "Softmax")
            model = onnx.load_from_string(part.program)
            made = {name: node for node in model.graph.node for name in node.output}
            assert made[softmax.input[0]].op_type == "Add"
            assert all(
                made[name].op_type != "DequantizeLinear"
                for name in made[softmax.input[0]].input
                if name in made
            )


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_methods_never_reach_further_than_what_was_seen(residual, method):
    model = onnx.load_from_string(residual.optimized.whole.program)
    names = ["x", model.graph.node[0].output[0]]

    def features():
        return iter([{"x": noise(1)}, {"x": 2 * noise(2)}])

    seen = onnx_typed._magnitudes(model, names, features, "minmax")
    assert seen["x"] == max(np.abs(noise(1)).max(), np.abs(2 * noise(2)).max())
    found = onnx_typed._magnitudes(model, names, features, method)
    assert found.keys() == seen.keys()
    assert all(0 < found[name] <= seen[name] for name in names)
    assert found != seen


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_tensor_that_no_float16_holds_is_refused_with_its_name(residual, precision):
    # ONNX Runtime would compute it in float32 on a processor, and find nothing wrong.
    part = residual.optimized.chain[0]
    target, options = load_target("host", {"precision": precision}), load_recipe("digits").quantize

    def quantize(factor):
        samples = [{"x": noise(1) * np.float32(factor)}]
        return BACKEND.quantize(part, lambda: iter(samples), {}, (), options, target)

    assert quantize(1.0).program
    with pytest.raises(BuildError, match=r"tensor \w+ reaches .*float16 ends at 65,504"):
        quantize(1e5)


def test_entropy_and_percentile_see_as_many_bins_as_onnxruntimes_own():
    from onnxruntime.quantization import calibrate

    for method, maker in (
        ("entropy", calibrate.EntropyCalibrater),
        ("percentile", calibrate.PercentileCalibrater),
    ):
        bins = inspect.signature(maker.__init__).parameters["num_bins"].default
        assert onnx_typed._BINS.get(method, 2048) == bins


def test_two_builds_of_one_segment_are_the_same_bytes(residual):
    programs = [
        [part.program for part in residual.quantize("int8").artifact.parts()] for _ in range(2)
    ]
    assert programs[0] == programs[1]


def test_int8_wants_an_opset_whose_dequantize_gives_float16(residual):
    with pytest.raises(BuildError, match=r"opset 19 or newer, and target\.opset is 18"):
        residual.quantize("int8", opset=18)


def test_a_precision_that_tensorrt_lacks_is_refused(residual):
    with pytest.raises(BuildError, match="TensorRT has no int8-dynamic"):
        residual.quantize("int8-dynamic")
