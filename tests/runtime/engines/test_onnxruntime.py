"""ONNX Runtime on the CPU: models that it must not stumble over."""

import subprocess
import sys

import numpy as np
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
