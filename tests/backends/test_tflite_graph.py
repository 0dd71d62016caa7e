"""What TFLite graphs cost, their heads, and how a file is written."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgekit.backends.tflite_graph import Graph, contract, integer_work, node_count
from tests.backends.test_tflite_quantize import quantized
from tests.backends.tflite import File


def torch_macs(one):
    """What torch counts of one sample, heads and all."""
    given = [torch.from_numpy(x[:1]) for x in one.features.values()]
    given = [x.permute(0, 3, 1, 2) if x.dim() == 4 else x for x in given]
    # On a processor, attention is one operator that torch does not count.
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        one.module(*given)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["first", "second", "tokens", "spread"])
@pytest.mark.parametrize("precision", [None, "int8", "int16x8", "int8-dynamic", "int8-weights"])
def test_macs_are_those_that_torch_counts_in_every_precision(request, name, precision):
    one = request.getfixturevalue(name)
    program = quantized(one, precision).program if precision else one.part.program
    assert sum(cost.macs for cost in Graph(program).costs()) == torch_macs(one)


def test_weights_that_are_dequantized_first_count_as_float_work(first):
    def work(precision):
        after = replace(first.part, program=quantized(first, precision).program)
        return integer_work(first.part, after)

    macs = torch_macs(first) - 8 * 10  # Less the head.
    for precision in ("int8", "int16x8", "int8-dynamic"):
        found = work(precision)
        assert (found.macs, found.integer_macs, found.floats) == (macs, macs, ())
    found = work("int8-weights")
    assert (found.macs, found.integer_macs) == (macs, 0)
    assert found.floats[0] == ("Conv2d_stem", "CONV_2D", 12 * 12 * 8 * 27)
    assert sum(one for _, _, one in found.floats) == macs
    assert integer_work(first.part, first.part).integer_macs == 0


def test_a_product_of_two_activations_is_float_where_only_weights_are_integers(tokens):
    def floats(precision):
        after = replace(tokens.part, program=quantized(tokens, precision).program)
        return {kind for _, kind, _ in integer_work(tokens.part, after).floats}

    assert floats("int8") == set()
    assert floats("int8-dynamic") == {"BATCH_MATMUL"}


def test_a_head_is_a_classifier_and_pools_that_nobody_else_needs(first, second):
    graph = Graph(first.part.program)
    found = [graph.kind(graph.operators[place]) for place in sorted(graph.head(["exit1"]))]
    assert found[-1] == "FULLY_CONNECTED"
    # The addition in front of it is a boundary, and the squeeze's pool is the backbone's.
    assert set(found[:-1]) <= {"TRANSPOSE", "MEAN", "RESHAPE"}
    assert found.count("MEAN") == 1
    graph = Graph(second.part.program)
    both = [graph.kind(graph.operators[place]) for place in graph.head(["exit2", "exit3"])]
    assert both.count("FULLY_CONNECTED") == 2
    assert "CONV_2D" not in both


def test_a_hidden_layer_of_a_head_is_quantized_and_the_last_is_not(spread):
    graph = Graph(quantized(spread, "int8").program)
    last = graph.maker(graph.outputs["exit1"])
    hidden = [
        one for one in graph.operators if graph.kind(one) == "FULLY_CONNECTED" and one is not last
    ]
    assert not any(graph.is_float(tensor) for one in hidden for tensor in one.inputs[:2])
    assert graph.is_float(last.inputs[0])
    assert graph.is_float(last.inputs[1])


def test_no_two_tensors_of_a_file_have_the_same_name(first):
    graph = Graph(first.part.program)
    for tensor in graph.tensors:
        tensor.name = b""
    again = Graph(graph.program())
    names = [again.name(tensor) for tensor in range(len(again.tensors))]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("precision", [None, "int8"])
def test_weights_lie_as_the_format_wants_them(first, precision):
    program = quantized(first, precision).program if precision else first.part.program
    whole = np.frombuffer(program, np.uint8)
    model = schema.Model.GetRootAs(program)
    places = [
        model.Buffers(n).DataAsNumpy().__array_interface__["data"][0]
        - whole.__array_interface__["data"][0]
        for n in range(model.BuffersLength())
        if model.Buffers(n).DataLength()
    ]
    assert len(places) > 10
    assert not any(place % 16 for place in places)


def test_a_file_written_anew_is_the_same_and_computes_the_same(first):
    again = Graph(first.part.program).program()
    assert again == Graph(again).program()
    row = next(first.rows())
    meant, found = File(first.part.program)(**row), File(again)(**row)
    assert all(np.array_equal(meant[name], found[name]) for name in meant)


def test_the_contract_says_how_a_boundarys_integers_are_meant(first):
    result = quantized(first, "int8")
    crossing = result.leaving["a"]
    assert contract(result.program) == (
        "input x: FLOAT32 [1, 12, 12, 3]",
        f"output a: INT8 [1, 6, 6, 8] x {crossing.scale!r} from {crossing.zero_point}",
        f"output c: INT8 [1, 6, 6, 8] x {result.leaving['c'].scale!r} from -128",
        "output exit1: FLOAT32 [1, 10]",
        "schema version 3",
    )
    # The input is quantized, and what the head reads is dequantized; nothing else came along.
    assert node_count(result.program) == node_count(first.part.program) + 2


def test_zero_points_that_are_all_the_same_are_in_a_file_once(first):
    graph = Graph(quantized(first, "int8").program)
    before = len(graph.program())
    channels = 1000
    for tensor in graph.tensors[:8]:
        tensor.quantization.zeroPoint = np.zeros(channels, np.int64)
        tensor.quantization.scale = np.ones(channels, np.float32)
    program = graph.program()
    assert len(program) - before < 2 * channels * (8 + 4)
    for tensor in Graph(program).tensors[:8]:
        assert np.array_equal(tensor.quantization.zeroPoint, np.zeros(channels))
        assert np.array_equal(tensor.quantization.scale, np.ones(channels))
