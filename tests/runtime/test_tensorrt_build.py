"""Engines of real ONNX files by the real TensorRT-RTX, for GPUs that are not here."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import DeviceError
from edgekit.runtime import tensorrt_api, tensorrt_build
from edgekit.runtime.tensorrt_build import Options, build_plan, capabilities, parse

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def rtx():
    return tensorrt_api.find([tensorrt_api.RTX])


def value(name, shape, kind=HALF):
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def segment(nodes, inputs, outputs, **weights):
    graph = helper.make_graph(
        [helper.make_node(*node, **more) for node, more in nodes],
        "segment",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def drawn(*shape, dtype=np.float16):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.fixture(scope="module")
def convolution():
    return segment(
        [(("Conv", ["x", "w"], ["y"]), {"pads": [1] * 4}), (("Relu", ["y"], ["z"]), {})],
        [value("x", [3, 8, 8])],
        [value("z", [4, 8, 8])],
        w=drawn(4, 3, 3, 3),
    )


def product(dtype, kind):
    nodes = [(("MatMul", ["x", "w"], ["y"]), {"name": "classifier"})]
    return segment(
        nodes, [value("x", [8], kind)], [value("y", [3], kind)], w=drawn(8, 3, dtype=dtype)
    )


def silent(text):
    pass


def built(rtx, content, step=silent, **options):
    given = {"batch_sizes": (1,), "compute_capability": "8.6"} | options
    return build_plan(rtx, content, "segment-1", Options(**given), step=step)


@pytest.mark.parametrize("capability", ["7.5", "8.6"])
def test_a_float16_segment_is_built_for_a_gpu_that_is_not_here(rtx, convolution, capability):
    plan = built(rtx, convolution, compute_capability=capability, workspace_bytes=2**26)
    assert len(plan.content) > len(convolution)
    assert plan.timing_cache is None


def test_what_it_can_build_for_is_read_from_tensorrt_and_sorted_by_number(rtx):
    known = capabilities(rtx)
    assert {"7.5", "8.6", "12.0"} <= set(known)
    assert list(known) == sorted(known, key=lambda one: [int(x) for x in one.split(".")])
    assert capabilities(rtx._replace(name=tensorrt_api.FULL)) == ()


def test_a_gpu_that_cannot_be_built_for_is_refused_with_those_that_can(rtx, convolution):
    with pytest.raises(DeviceError, match=r"segment-1: .*capability 8\.7 from here; .*7\.5, 8\.0"):
        built(rtx, convolution, compute_capability="8.7")
    full = rtx._replace(name=tensorrt_api.FULL)
    with pytest.raises(DeviceError, match=r"8\.6 from here; it builds for the GPU beside it only"):
        built(full, convolution)


def test_every_batch_size_gets_a_profile_that_is_optimal_for_it(rtx, convolution, monkeypatch):
    profiles = []
    make = tensorrt_build._profile

    def kept(*args):
        profiles.append(make(*args))
        return profiles[-1]

    monkeypatch.setattr(tensorrt_build, "_profile", kept)
    assert built(rtx, convolution, batch_sizes=(1, 4, 16)).content
    shapes = [[next(iter(shape)) for shape in one.get_shape("x")] for one in profiles]
    assert shapes == [[1, 1, 1], [2, 4, 4], [5, 16, 16]]


@given(st.sets(st.integers(1, 512), min_size=1, max_size=6).map(sorted))
def test_each_batch_has_exactly_one_profile(sizes):
    ranges = tensorrt_build._ranges(sizes)
    batches = itertools.chain.from_iterable(range(low, high + 1) for low, high in ranges)
    assert list(batches) == list(range(1, sizes[-1] + 1))


def test_an_operator_that_tensorrt_lacks_is_named_with_segment_and_node(rtx):
    nodes = [(("Det", ["x"], ["y"]), {"name": "volume"})]
    content = segment(nodes, [value("x", [3, 3], FLOAT)], [value("y", [], FLOAT)])
    for act in (lambda: parse(rtx, content, "segment-2"), lambda: built(rtx, content)):
        with pytest.raises(DeviceError, match=r"operator Det of node 'volume'; compute") as caught:
            act()
        assert "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match="segment-2: tensorrt_rtx 1"):
        parse(rtx, content, "segment-2")


def test_types_that_do_not_go_together_are_refused_with_the_reason_alone(rtx):
    content = product(np.float32, HALF)
    with pytest.raises(DeviceError) as caught:
        parse(rtx, content, "segment-1")
    text = str(caught.value)
    assert "MatMul of node 'classifier'" in text
    assert "must have same input types" in text
    assert "_src" not in text
    assert "driver" not in text
    assert "\n" not in text


def test_a_product_in_float32_is_refused_for_a_t4_and_says_what_it_takes(rtx):
    content = product(np.float32, FLOAT)
    assert built(rtx, content).content
    with pytest.raises(DeviceError, match=r"FP32 GEMM is not supported; .*fp16 or int8") as caught:
        built(rtx, content, compute_capability="7.5")
    assert "classifier" in str(caught.value)
    assert "_src" not in str(caught.value)
    assert built(rtx, product(np.float16, HALF), compute_capability="7.5").content


def test_a_file_that_is_cut_short_is_no_engine(rtx, convolution):
    for content in (convolution[:200], convolution[:-20], b"", b"not a network" * 20):
        with pytest.raises(DeviceError, match=r"segment-1: .*; build the bundle again") as caught:
            built(rtx, content)
        assert "\n" not in str(caught.value)


def test_a_size_that_varies_behind_the_batch_is_refused(rtx):
    nodes = [(("Relu", ["x"], ["y"]), {})]
    content = segment(nodes, [value("x", [3, "height", 8])], [value("y", [3, "height", 8])])
    with pytest.raises(DeviceError, match=r"size of x varies \(\?x3x\?x8\).*without a range"):
        parse(rtx, content, "segment-1")


def test_a_batch_that_is_fixed_is_refused(rtx):
    fixed = helper.make_tensor_value_info("x", HALF, [2, 3])
    given = helper.make_tensor_value_info("y", HALF, [2, 3])
    content = segment([(("Relu", ["x"], ["y"]), {})], [fixed], [given])
    with pytest.raises(DeviceError, match=r"batch of x is fixed \(2x3\)"):
        built(rtx, content)


def test_too_little_workspace_names_the_limit_and_its_key(rtx, convolution):
    with pytest.raises(DeviceError, match=r"target\.memory_bytes.* \(1 bytes now\)"):
        built(rtx, convolution, workspace_bytes=1)


def test_without_a_gpu_to_build_for_the_line_says_so(rtx, convolution):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is one")
    with pytest.raises(DeviceError, match="here is no GPU with a driver"):
        built(rtx, convolution, compute_capability=None)


def test_progress_names_segment_and_phase(rtx, convolution):
    told = []
    built(rtx, convolution, told.append)
    assert told
    assert all(one.startswith("segment-1: ") and "/" in one for one in told)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_the_display_raises_ends_the_build_and_comes_out(rtx, convolution, error):
    calls = []

    def stop(text):
        calls.append(text)
        raise error

    with pytest.raises(error):
        built(rtx, convolution, stop)
    assert len(calls) == 1


def test_an_interrupt_before_the_callbacks_first_line_ends_the_build(
    rtx, convolution, monkeypatch, capfd
):
    make = tensorrt_build._watcher

    def interrupted(*args):
        class Interrupted(type(make(*args))):
            def step_complete(self, phase_name, step_index):
                raise KeyboardInterrupt

        return Interrupted()

    monkeypatch.setattr(tensorrt_build, "_watcher", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built(rtx, convolution)
    assert "KeyboardInterrupt" in capfd.readouterr().err


def test_a_cache_of_timings_is_taken_and_one_of_another_device_is_left_aside(rtx):
    class Config:
        def __init__(self):
            self.cache = None

        def create_timing_cache(self, content):
            return None if content == b"damaged" else content

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            if cache == b"another device":
                return False
            self.cache = cache
            return True

    for given_here, taken in (
        (b"mine", b"mine"),
        (b"another device", b""),
        (b"damaged", b""),
        (None, b""),
    ):
        config = Config()
        tensorrt_build._recall(config, given_here)
        assert config.cache == taken
