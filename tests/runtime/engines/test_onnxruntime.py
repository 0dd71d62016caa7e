"""ONNX Runtime on the CPU: models that it must not stumble over."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.runtime.engines.onnxruntime import load
from tests.conftest import ROOT

HALF = TensorProto.FLOAT16


def test_float16_that_is_turned_in_front_of_a_product_does_not_take_the_process_down():
    def drawn(name, *shape):
        values = np.random.default_rng(0).standard_normal(shape)
        return numpy_helper.from_array(values.astype(np.float16), name)

    nodes = [
        helper.make_node("Conv", ["x", "filters"], ["features"], strides=[4, 4]),
        helper.make_node("Reshape", ["features", "shape"], ["sequence"]),
        helper.make_node("LayerNormalization", ["sequence", "gain", "shift"], ["normal"]),
        # Sequence first, as the attention layers of PyTorch want it.
        helper.make_node("Transpose", ["normal"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "weights"], ["y"]),
    ]
    constants = [drawn("filters", 8, 3, 4, 4), drawn("gain", 16), drawn("shift", 16)]
    constants += [drawn("weights", 16, 4), numpy_helper.from_array(np.array([0, 8, 16]), "shape")]
    graph = helper.make_graph(
        nodes,
        "turned",
        [helper.make_tensor_value_info("x", HALF, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", HALF, [8, "batch", 4])],
        constants,
    )
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    (engine,) = load([("segment-1", model.SerializeToString())], threads=1)
    shapes = engine.shapes({"x": np.zeros((2, 3, 16, 16), np.float16)})
    assert shapes == {"y": (2, 4)}


def integers(activations: type[np.generic], product: str) -> bytes:
    """A product of 64 inputs with the largest weights there are, as edgekit quantizes it."""
    shape, axis = ([64, 4], 1) if product == "MatMul" else ([4, 64, 1, 1], 0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "nothing"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "nothing"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["wd"], axis=axis),
        helper.make_node(product, ["xd", "wd"], ["yd"]),
        helper.make_node("QuantizeLinear", ["yd", "coarse", "nothing"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "coarse", "nothing"], ["y"]),
    ]
    constants = {
        "one": np.float32(1),
        "coarse": np.float32(2**14),
        "nothing": activations(0),
        "weights": np.full(shape, 127, np.int8),
        "scales": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.int8),
    }
    space = [] if product == "MatMul" else [1, 1]
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64, *space])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, *space])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


@pytest.mark.parametrize("product", ["MatMul", "Conv"])
@pytest.mark.parametrize("activations", [np.int8, np.uint8])
def test_sums_of_integers_do_not_saturate_on_any_processor(activations, product):
    (engine,) = load([("segment-1", integers(activations, product))], threads=1)
    most = np.iinfo(activations).max
    x = np.full((1, 64) if product == "MatMul" else (1, 64, 1, 1), most, np.float32)
    found = np.zeros((1, 4, *x.shape[2:]), np.float32)
    engine.bind({"x": x}, {"y": found}, 1)()
    assert np.abs(found - 64 * 127 * float(most)).max() <= 2**13


def started(home, code, **environment: str) -> str:
    """What a program prints that runs as on a device, not as in CI, where telemetry is off."""
    alone = {"PYTHONPATH": str(ROOT), "HOME": str(home), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout


def test_nobody_is_told_what_runs_here(tmp_path):
    started(tmp_path, "import edgekit.runtime.engines.onnxruntime")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "an identifier was left"


def test_who_wants_telemetry_keeps_it(tmp_path):
    code = "import os, edgekit; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert started(tmp_path, code, ORT_DISABLE_TELEMETRY="0") == "0\n"
