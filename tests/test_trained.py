"""Models from quantization-aware training: a real PT2E run, and whole bundles of what it gives."""

import re

import pytest
import torch

from edgekit.backends.tflite_graph import Graph
from edgekit.bundle.manifest import EVIDENCE_NAME, unseal
from edgekit.bundle.reader import read_bundle
from edgekit.errors import ModelError
from edgekit.models.load import load_model, user_code
from edgekit.pipeline import build
from edgekit.quiet import quiet
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.conftest import write_recipe

MODEL = '''
import numpy as np
import torch
from torch import nn
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    allow_exported_model_train_eval,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)


def spec(scheme, least, observer, **options):
    made = FusedMovingAvgObsFakeQuantize.with_args(observer=observer)
    return QuantizationSpec(torch.int8, made, least, 127, scheme, **options)


FEATURES = spec(torch.per_tensor_affine, -128, MovingAverageMinMaxObserver)
WEIGHTS = spec(
    torch.per_channel_symmetric, -127, MovingAveragePerChannelMinMaxObserver, ch_axis=0
)


class Convolutions(Quantizer):
    """Convolutions and additions, with the ReLU behind them."""

    def annotate(self, model):
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.conv2d.default:
                kinds = (FEATURES, WEIGHTS)
            elif node.target is torch.ops.aten.add.Tensor:
                kinds = (FEATURES, FEATURES)
            else:
                continue
            users = list(node.users)
            relu = users[0] if users[0].target is torch.ops.aten.relu.default else None
            node.meta["quantization_annotation"] = QuantizationAnnotation(
                dict(zip(node.args, kinds)), None if relu else FEATURES, _annotated=True
            )
            if relu:
                relu.meta["quantization_annotation"] = QuantizationAnnotation(
                    output_qspec=FEATURES, _annotated=True
                )
        return model

    def validate(self, model):
        pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.heads = nn.ModuleList(nn.Linear(8 * 64, 4) for _ in range(2))

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a) + a)
        return [head(y.flatten(1)) for head, y in zip(self.heads, (a, b))]


def trained():
    torch.manual_seed(0)
    x = torch.from_numpy(samples(4, 64)[0][:, None] / 63.75 - 2).float()
    batch = torch.export.Dim("batch")
    program = torch.export.export(Net().train(), (x[:2],), dynamic_shapes=({0: batch},))
    model = prepare_qat_pt2e(program.module(), Convolutions())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    labels = torch.from_numpy(samples(4, 64)[1])
    for _ in range(8):
        loss = sum(nn.functional.cross_entropy(one, labels) for one in model(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return allow_exported_model_train_eval(convert_pt2e(model))


def samples(seed, count=24):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return pixels, generator.integers(0, 4, count)
'''

RECIPE = """
name: trained
model: {factory: "trained.py:trained"}
input: {shape: [1, 8, 8], image: {mode: L, mean: [0.5], std: [0.25]}}
exits: [early, last]
policy: {thresholds: {early: 0.4}}
data:
  calibration: {factory: "trained.py:samples", args: {seed: 3}}
  tuning: {factory: "trained.py:samples", args: {seed: 1}}
  test: {factory: "trained.py:samples", args: {seed: 2}}
"""


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(str(write_recipe(tmp_path / "trained", "trained", MODEL, RECIPE)))


@pytest.mark.filterwarnings("ignore")  # torchao remarks on what it could not load.
@pytest.mark.parametrize("target", ["rpi4b", "rpi4b-litert"])
def test_a_trained_network_keeps_its_scales_to_the_bundle(target, recipe, tmp_path):
    build(recipe, load_target(target), tmp_path / "bundle")
    evidence = unseal((tmp_path / "bundle" / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
    notes = {one["name"]: one["notes"] for one in evidence["stages"]}
    assert notes["quantize"]["integer_share"]["chain"] == 1.0
    (found,) = (one for one in evidence["checks"] if one["stage"] == "quantize")
    # Calibrated, these weights are some hundredths off: there is no other scale to come to.
    assert found["max_relative_error"] < 0.01
    assert found["top1_agreement"] == 1.0
    bundle = read_bundle(tmp_path / "bundle")
    first, last = bundle.manifest.variant().segments
    (boundary,) = last.inputs
    assert bundle.manifest.variant().tensors[boundary].dtype == "int8"
    if target == "rpi4b-litert":
        graph = Graph(bundle.read(first.path))
        crossing = graph.crossing(graph.outputs[boundary])
        assert (pytest.approx(crossing.scale, rel=1e-6), crossing.zero_point) in scales(recipe)


def scales(recipe) -> list[tuple[float, int]]:
    """What the network quantizes its features with, as training left it."""
    with quiet(), user_code(recipe.folder):
        graph = load_model(recipe).graph
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    nodes = graph.find_nodes(op="call_function", target=quantize)
    return [(one.args[1], one.args[2]) for one in nodes]


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_refuses_eval_is_told_what_allows_it(recipe):
    file = recipe.folder / "trained.py"
    file.write_text(re.sub(r"allow_exported_model_train_eval\((convert_pt2e.*)\)", r"\1", MODEL))
    with user_code(recipe.folder), pytest.raises(ModelError, match="allow_exported_model_train_e"):
        load_model(recipe)
