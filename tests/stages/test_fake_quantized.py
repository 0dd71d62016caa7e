"""Models from quantization-aware training: their graph in the form that the stages expect."""

import pytest
import torch
from torch import fx, nn

from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.fake_quantized import apart
from edgekit.stages.split import Split
from tests.stages.fake_quantized import Trained, fake_quantized


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Trained().eval()


@pytest.fixture(scope="module")
def exported(model):
    sample = torch.randn(2, 3, 8, 8)
    return Export()(Network(model, ("early", "last"), sample), lambda text: None).artifact


def named(graph: fx.Graph, operator: str) -> list[fx.Node]:
    return [node for node in graph.nodes if str(node.target).startswith(operator)]


def test_trained_weights_become_floats_of_the_same_values_and_are_counted(model, exported):
    graph = exported.graph
    assert not named(graph.graph, "quantized_decomposed.dequantize_per_channel")
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        for found, expected in zip(graph(x), model(x), strict=True):
            assert torch.equal(found, expected)
    (plain,) = (
        part.parameters
        for part in Split()(exported, lambda text: None).artifact.parts()
        if part.name == "whole"
    )
    assert plain == 3 * 8 * 9 + 8 + 8 * 9 + 8 + 2 * (8 * 4 + 4)


def test_what_is_quantized_once_crosses_once_and_as_floats(exported):
    graph = exported.graph.graph
    quantized = named(graph, "quantized_decomposed.quantize_per_tensor")
    assert len(quantized) == len(named(graph, "quantized_decomposed.dequantize_per_tensor")) == 4
    segments = Split()(exported, lambda text: None).artifact
    (boundary,) = segments.chain[1].inputs
    assert segments.tensors[boundary].dtype == "float32"
    # Behind the cut it is not quantized again.
    inside = named(segments.chain[1].program.graph, "quantized_decomposed.quantize_per_tensor")
    assert len(inside) == 2


class Bounded(nn.Module):
    """Activations in integers that a test chooses: their type, and the least and greatest."""

    def __init__(self, integers):
        super().__init__()
        self.integers, self.head = integers, nn.Linear(4, 3)

    def forward(self, x):
        zero_point = (self.integers[0] + self.integers[1] + 1) // 2
        (x,) = fake_quantized(x, (0.02, zero_point), integers=self.integers)
        return [self.head(x)]


@pytest.mark.parametrize(
    "integers",
    [(0, 255, torch.uint8), (0, 127, torch.uint8), (0, 15, torch.uint8), (-64, 63, torch.int8)],
)
def test_integers_are_signed_and_bounds_narrower_than_their_type_still_bound(integers):
    model = Bounded(integers).eval()
    sample = torch.randn(2, 4)
    graph = Export()(Network(model, ("exit",), sample), lambda text: None).artifact.graph
    for node in named(graph.graph, "quantized_decomposed."):
        # No file says of other bounds: whoever converts this takes all that the type holds.
        assert node.args[3:] == (-128, 127, torch.int8)
    x = 3 * torch.randn(50, 4)
    with torch.no_grad():
        (found,), (expected,) = graph(x), model(x)
    assert torch.equal(found, expected)


def test_every_reader_can_have_a_dequantized_tensor_of_its_own(exported):
    whole = Split()(exported, lambda text: None).artifact.whole.program
    found = apart(whole)
    for node in named(found.graph, "quantized_decomposed.dequantize"):
        assert len(node.users) == 1
    assert len(named(found.graph, "quantized_decomposed.dequantize")) == 6
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert all(map(torch.equal, found(x), whole(x)))
    floats = fx.symbolic_trace(nn.ReLU())
    assert apart(floats) is floats
