"""The TensorRT backend: what it counts as integer work; trained and published networks."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.backends import TOOLS, backend_for
from edgekit.backends.tensorrt import TensorRTBackend
from edgekit.errors import BuildError
from edgekit.models.load import call_factory, load_model, user_code
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.backends.typed import BACKEND, compile_all, noise, typed
from tests.conftest import ROOT


def test_the_backend_of_tensorrt_is_found_by_name():
    assert isinstance(backend_for("tensorrt"), TensorRTBackend)
    assert TOOLS["tensorrt"] == TOOLS["onnxruntime"]


def test_all_that_multiplies_weights_outside_the_heads_is_integer_work(residual):
    notes = residual.quantize("int8").notes
    assert set(notes["integer_share"].values()) == {1.0}


def test_products_of_two_activations_are_counted_as_float_and_named(masked):
    segments = masked.quantize("int8", min_integer_share=0.5).artifact
    before, after = masked.optimized.chain[0], segments.chain[0]
    target = load_target("host", {"precision": "int8"})
    work = BACKEND.integer_work(before, after, target, {})
    # Of 16 channels over 16 tokens, once to compare and once to gather.
    assert [(kind, macs) for _, kind, macs in work.floats] == [("MatMul", 16**3)] * 2
    assert work.integer_macs == work.macs - 2 * 16**3
    unquantized = BACKEND.integer_work(before, before, target, {})
    assert unquantized.integer_macs == 0
    assert unquantized.macs == work.macs
    with pytest.raises(BuildError, match=r"MatMul.*two activations.*stay in float16"):
        masked.quantize("int8", min_integer_share=0.95)


def test_trained_digits_are_told_as_in_float32():
    recipe = load_recipe(str(ROOT / "recipes/digits/recipe.yaml"))
    with user_code(recipe.folder):
        model = load_model(recipe)
        images, labels = call_factory("data.py:load", {"split": "test"}, recipe.folder)
    x = ((images[:, None] / 255 - 0.5) / 0.5).astype(np.float32)
    one = typed(lambda: model, x.shape[1:], len(recipe.exits), x[:128])
    floats = one.run(one.optimized, x)
    for precision in ("fp16", "int8"):
        segments = one.quantize(precision).artifact
        ours = one.run(segments, x)
        for part in segments.chain:
            (tensor,) = part.looked_at
            classes, same = ours[tensor].argmax(axis=1), floats[tensor].argmax(axis=1)
            assert np.mean(classes == same) >= 0.99
            assert np.mean(classes == labels) >= np.mean(same == labels) - 0.01
        compile_all((*segments.chain, segments.plain))


class Tapped(nn.Module):
    """Layers in a row with a pooled classifier behind each of these places, the last one too."""

    def __init__(self, layers: nn.Sequential, places: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.places = layers, (*places, len(layers) - 1)
        x, widths = torch.zeros(1, 3, 64, 64), []
        for place, layer in enumerate(layers.eval()):
            x = layer(x)
            if place in self.places:
                widths.append(x.shape[1])
        self.heads = nn.ModuleList(nn.Linear(width, 10) for width in widths)

    def forward(self, x):
        logits = []
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place in self.places:
                logits.append(self.heads[len(logits)](x.mean((2, 3))))
        return logits


def resnet18():
    path = ROOT / "benchmarks/resnet18/model.py"
    spec = importlib.util.spec_from_file_location("resnet18_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ResNet18(10)


def published(name, *places):
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    models = pytest.importorskip("torchvision", exc_type=ImportError).models
    return Tapped(getattr(models, name)().features, places)


def settled(net, samples):
    """The network with every normalisation brought to what its layer sees, in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # The mean over all batches.
        if hasattr(module, "p") and "StochasticDepth" in type(module).__name__:
            module.p = 0.0
    with torch.no_grad():
        net.train()(torch.from_numpy(samples))
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet18", ()),
        ("mobilenet_v2", (6, 13)),
        ("efficientnet_b0", (3, 5)),
        ("efficientnet_b4", (3, 5)),
    ],
)
def test_published_networks_are_typed_and_compile(name, places):
    data = noise(0, (3, 64, 64))
    torch.manual_seed(0)
    net = settled(published(name, *places) if places else resnet18(), data)
    one = typed(lambda: net, (3, 64, 64), len(net.heads), data)
    floats = one.run(one.optimized, data)
    (first,) = one.optimized.chain[0].looked_at
    for precision, relative in (("fp16", 0.02), ("int8", 0.3)):
        result = one.quantize(precision)
        if precision == "int8":
            assert set(result.notes["integer_share"].values()) == {1.0}
        values = one.run(result.artifact, data)
        # Random weights amplify rounding from layer to layer: the first exit is near the input.
        error = np.abs(values[first] - floats[first]).max() / np.abs(floats[first]).max()
        assert error < relative
        for part in one.optimized.chain:
            assert all(np.isfinite(values[tensor]).all() for tensor in part.looked_at)
        compile_all((*result.artifact.chain, result.artifact.plain))
