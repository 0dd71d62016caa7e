"""torch2trt as a builder: its ONNX mode, as it is published, with the segment put in its way.

torch2trt itself is on no package index. What stands in for it here takes its arguments and does in
its ONNX mode what it does: exports the module, parses the file that came out, sets one profile, and
builds, with the real TensorRT-RTX. That does not prove that any of its versions builds on a device.
"""

import io
import sys
import types

import pytest
import tensorrt_rtx_bindings as trt
import torch

from edgekit.bundle.reader import read_bundle
from edgekit.errors import DeviceError
from edgekit.runtime.tensorrt_api import RTX, find
from edgekit.runtime.tensorrt_build import Options
from edgekit.runtime.torch2trt_build import build_plan

TENSORRT = find((RTX,))


class Module:
    """What torch2trt gives: a module with its engine, which is serialized on its way out."""

    def __init__(self, plan):
        self.engine = types.SimpleNamespace(serialize=lambda: plan)


class StandIn(types.ModuleType):
    """torch2trt's function, and what it was given."""

    def __init__(self, place="path"):
        super().__init__("torch2trt")
        self.place = place
        self.given = {}
        self.parsed = b""
        self.profile = []

    def torch2trt(self, module, inputs, **given):
        self.given = given
        outputs = module(*inputs)
        assert len(outputs) == len(given["output_names"])
        assert given["use_onnx"]
        assert not module.training
        stream = io.BytesIO()
        if self.place == "stream":  # As older versions do it, and by position.
            torch.onnx.export(module, inputs, stream, input_names=given["input_names"])
            self.parsed = stream.getvalue()
        else:
            torch.onnx.export(model=module, args=inputs, f=self.place, dynamo=False)
            self.parsed = self.place.read_bytes()
        builder = trt.Builder(TENSORRT.log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, TENSORRT.log).parse(self.parsed)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        profile = builder.create_optimization_profile()
        for place, name in enumerate(given["input_names"]):
            ends = [given[f"{which}_shapes"][place] for which in ("min", "opt", "max")]
            profile.set_shape(name, *ends)
            self.profile.append((name, *ends))
        config.add_optimization_profile(profile)
        return Module(builder.build_serialized_network(network, config))


@pytest.fixture
def segment(jetson_tiny):
    bundle = read_bundle(jetson_tiny)
    return bundle.segments[bundle.manifest.variant().segments[1].path]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    found = StandIn(tmp_path / "model_in.onnx")
    monkeypatch.setitem(sys.modules, "torch2trt", found)
    return found


def build(segment, **options):
    given = Options(**{"batch_sizes": (1, 8), "workspace_bytes": 2**28, **options})
    return build_plan(TENSORRT, segment, "segment-2", given, step=lambda text: None)


@pytest.mark.parametrize("place", ["path", "stream"])
def test_what_it_parses_is_the_segment_whatever_it_exports(segment, stand_in, place):
    if place == "stream":
        stand_in.place = "stream"
    before = torch.onnx.export
    plan = build(segment)
    assert stand_in.parsed == segment
    assert len(plan.content) > 1000
    assert plan.timing_cache is None
    assert torch.onnx.export is before


def test_one_profile_holds_all_batch_sizes(segment, stand_in):
    build(segment, batch_sizes=(2, 8, 32))
    ((name, least, best, most),) = stand_in.profile
    assert (least[0], best[0], most[0]) == (1, 2, 32)
    assert {name} == set(stand_in.given["input_names"])
    assert stand_in.given["max_workspace_size"] == 2**28


def test_types_are_the_files_where_networks_are_typed(segment, stand_in):
    build(segment)
    # TensorRT-RTX has typed networks alone, as TensorRT 11 has.
    assert not stand_in.given["fp16_mode"]
    assert not stand_in.given["int8_mode"]


def test_older_tensorrt_is_allowed_the_types_that_the_file_has(segment, stand_in):
    flags = type("BuilderFlag", (), {"FP16": 1})
    weak = types.SimpleNamespace(**{**vars(trt), "BuilderFlag": flags})
    options = Options((1, 8), 2**28)
    build_plan(
        TENSORRT._replace(module=weak), segment, "segment-2", options, step=lambda text: None
    )
    assert stand_in.given["fp16_mode"]
    assert not stand_in.given["int8_mode"]


def test_where_it_is_not_importable_the_way_out_is_named(segment, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch2trt", None)
    with pytest.raises(DeviceError, match=r"not importable here.*target\.gpu\.builder=tensorrt"):
        build(segment)


def test_what_it_ends_in_becomes_one_line_and_leaves_torch_as_it_was(segment, stand_in):
    def broken(*given, **named):
        raise RuntimeError("Failed to parse ONNX model.\nAnd more.")

    stand_in.torch2trt = broken
    before = torch.onnx.export
    with pytest.raises(DeviceError, match=r"segment-2: torch2trt builds no engine: RuntimeError"):
        build(segment)
    assert torch.onnx.export is before


def test_no_engine_without_a_word_is_refused(segment, stand_in):
    stand_in.torch2trt = lambda *given, **named: types.SimpleNamespace(engine=None)
    with pytest.raises(DeviceError, match="gives no reason"):
        build(segment)


def test_it_cannot_build_for_a_gpu_that_is_not_there(segment, stand_in):
    with pytest.raises(DeviceError, match="for the GPU beside it only"):
        build(segment, compute_capability="8.6")
