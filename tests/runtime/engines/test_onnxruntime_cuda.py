"""The engine for ONNX Runtime on CUDA, over the stand-in; and what it says where there is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.errors import DeviceError
from edgekit.runtime.chain import Chain
from edgekit.runtime.engines import load_engines, onnxruntime_cuda
from tests.runtime.cuda_standin import (
    CLASSES,
    FEATURES,
    CudaStandIn,
    OnnxRuntimeStandIn,
    plan,
    plans,
    spec,
)

X = np.ones(FEATURES, np.float32)


def loaded(contents: list[bytes] | None = None) -> Chain:
    return Chain.from_segments(spec(), contents or plans(), engine="onnxruntime-cuda", threads=1)


@pytest.fixture
def module(gpu: CudaStandIn) -> OnnxRuntimeStandIn:
    return onnxruntime_cuda.onnxruntime


def test_one_sample_costs_a_copy_in_and_at_each_exit_a_run_a_copy_of_logits_and_a_wait(
    gpu: CudaStandIn,
) -> None:
    chain = loaded()
    chain.logits(X[None])
    gpu.tensor(chain._room.buffers["z0"])[:] = 0
    gpu.tensor(chain._room.buffers["z1"])[:] = [0, 0, 9, 0]
    gpu.calls.clear()
    found = chain.one(X)
    assert (found.exit, found.class_index) == ("exit1", 2)
    assert gpu.calls == [
        "to device 24",
        "run segment-1 on 1", "to host 16", "wait",
        "run segment-2 on 1", "to host 16", "wait",
    ]  # fmt: skip


def test_sessions_go_before_the_stream_that_they_run_on(gpu: CudaStandIn) -> None:
    chain = loaded()
    chain.one(X)
    chain.segment_runs(np.stack([X, X]))[0]()
    gpu.calls.clear()
    del chain
    ended = [one for one in gpu.calls if one.startswith("destroy")]
    assert ended == ["destroy session"] * 3 + ["destroy stream"]


def test_reports_name_onnxruntime_cuda_and_the_gpu(gpu: CudaStandIn) -> None:
    assert loaded().engines[0].version == "onnxruntime 1.23.0 cuda on Orin (8.7)"


def test_a_build_without_cuda_says_what_to_install() -> None:
    """The real ONNX Runtime of this machine, if it has no CUDA."""
    if "CUDAExecutionProvider" in onnxruntime_cuda.onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(DeviceError, match=r"has no CUDAExec.*edgekit\[onnxruntime-cuda\]"):
        load_engines("onnxruntime-cuda", [("segment-1", b"")], threads=1)


def test_a_provider_that_falls_back_to_the_processor_is_an_error(
    gpu: CudaStandIn, module: OnnxRuntimeStandIn
) -> None:
    module.started = ["CPUExecutionProvider"]
    with pytest.raises(DeviceError, match=r"could not start CUDA.* segment-1 on the proc"):
        loaded()


def graph(*operators: str) -> bytes:
    """A graph as ONNX Runtime writes it, of operators in a row, under names to trip over."""
    nodes = [
        helper.make_node(one, [f"t{place}"], [f"t{place + 1}"], name=f"of MemcpyToHost {place}")
        for place, one in enumerate(operators)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        for name in ("t0", f"t{len(operators)}")
    ]
    return helper.make_model(
        helper.make_graph(nodes, "made", ends[:1], ends[1:])
    ).SerializeToString()


def test_sizes_may_be_computed_on_the_processor(
    gpu: CudaStandIn, module: OnnxRuntimeStandIn
) -> None:
    module.on_cpu = graph("Shape", "Gather")
    loaded().one(X)


@pytest.mark.parametrize("copy", ["MemcpyToHost", "MemcpyFromHost"])
def test_a_tensor_that_would_cross_to_the_processor_is_refused(
    gpu: CudaStandIn, module: OnnxRuntimeStandIn, copy: str
) -> None:
    module.on_cpu = graph("Conv", copy, "Relu")
    with pytest.raises(DeviceError, match="a part of segment-1 on the processor, with copies"):
        loaded()


def softmax() -> bytes:
    """A model that ONNX Runtime takes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    node = helper.make_node("Softmax", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 18)]
    found = helper.make_model(
        helper.make_graph([node], "one", [x], [y]), opset_imports=opsets, ir_version=10
    )
    return found.SerializeToString()


def test_onnxruntime_refuses_the_processor_in_the_words_that_are_looked_for() -> None:
    """The real one, with a provider that takes no node, as CUDA takes none of some operators."""
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes nothing")
    options = onnxruntime_cuda._options(1)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="fallback to CPU EP"):
        onnxruntime.InferenceSession(
            softmax(), options, providers=["AzureExecutionProvider"], enable_fallback=False
        )


def test_the_graph_that_onnxruntime_makes_can_be_searched(tmp_path: Path) -> None:
    """Its real file has operators as they are looked for."""
    import onnxruntime

    options = onnxruntime_cuda._options(1)
    options.optimized_model_filepath = str(tmp_path / "made.onnx")
    onnxruntime.InferenceSession(softmax(), options, providers=["CPUExecutionProvider"])
    made = (tmp_path / "made.onnx").read_bytes()
    assert [node.op_type for node in onnx.load_from_string(made).graph.node] == ["Softmax"]
    assert b'"\x07Softmax' in made


def test_sizes_that_vary_are_asked_of_the_session(gpu: CudaStandIn) -> None:
    (first, *_) = loaded().engines
    buffer = first.memory.allocate((1, FEATURES), "float32")
    assert first.shapes({"x": buffer}) == {"z0": (CLASSES,), "f0": (FEATURES,)}


def wrong_dtype(found: dict[str, Any]) -> None:
    found["f0"][1] = "FLOAT"


def wrong_shape(found: dict[str, Any]) -> None:
    found["z1"][2] = [-1, 1]


@pytest.mark.parametrize("change", [wrong_dtype, wrong_shape])
def test_another_contract_is_a_device_error_naming_the_segment(
    gpu: CudaStandIn, change: Callable[[dict[str, Any]], None]
) -> None:
    tensors = json.loads(plan(1))["tensors"]
    change(tensors)
    chain = loaded(plans(segment_2={"tensors": tensors}))
    with pytest.raises(DeviceError, match="onnxruntime refuses segment-2: Unexpected input data"):
        chain.one(X)


def test_a_run_that_fails_is_a_device_error_in_one_line(gpu: CudaStandIn) -> None:
    chain = loaded(plans(segment_3={"fault": "execute"}))
    with pytest.raises(DeviceError, match=r"^onnxruntime refuses segment-3: CUDA failure.*tered$"):
        chain.logits(X[None])
