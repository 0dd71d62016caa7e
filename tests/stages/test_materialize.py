"""What is made of weights alone is a weight, in every engine's file; what is not is named."""

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from edgekit.backends import backend_for
from edgekit.errors import ModelError
from edgekit.models.exits import Exits
from edgekit.stages import Network, Segments
from edgekit.stages.export import Export
from edgekit.stages.materialize import materialize
from edgekit.stages.split import Split
from edgekit.target import load_target

ATEN = torch.ops.aten


class Narrow(nn.Module):
    """A quarter of 64 channels, sliced, with BatchNorm over a slice; two exits."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.count = channels // 4
        self.a = nn.Conv2d(3, channels, 3, padding=1)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.heads = nn.ModuleList(nn.Linear(channels, 5) for _ in range(2))

    def forward(self, x):
        n, norm = self.count, self.norm
        x = F.conv2d(x, self.a.weight[:n], self.a.bias[:n], padding=1)
        early = F.linear(x.mean((2, 3)), self.heads[0].weight[:, :n], self.heads[0].bias)
        x = F.conv2d(x, self.b.weight[:n, :n], padding=1)
        x = F.batch_norm(
            x, norm.running_mean[:n], norm.running_var[:n], norm.weight[:n], norm.bias[:n]
        )
        # torch.narrow and index_select, as others write it.
        x = F.conv2d(x.relu(), self.depthwise.weight.narrow(0, 0, n), None, 1, 1, 1, n)
        wanted = self.heads[1].weight.index_select(1, torch.arange(n))
        return [early, x.mean((2, 3)) @ wanted.t() + self.heads[1].bias]

    @property
    def own(self) -> int:
        """The parameters of a plain network of this width."""
        n = self.count
        return 3 * n * 9 + n + n * n * 9 + 2 * n + n * 9 + 2 * (n * 5 + 5)


def exported(model: nn.Module, x: torch.Tensor, *, setting: bool = True, exits: int = 2):
    names = tuple(f"exit{index + 1}" for index in range(exits))
    network = Network(Exits(model, names).eval(), names, x, setting=setting)
    return Export()(network, lambda text: None).artifact


def segments_of(model: nn.Module, x: torch.Tensor) -> Segments[fx.GraphModule]:
    return Split()(exported(model, x), lambda text: None).artifact


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8)


def test_a_narrow_network_has_its_own_weights_only_and_computes_the_same():
    model = Narrow().eval()
    graph = exported(model, images()).graph
    targets = {node.target for node in graph.graph.nodes}
    assert targets.isdisjoint({ATEN.slice.Tensor, ATEN.index_select.default, ATEN.t.default})
    x = images(5)
    with torch.no_grad():
        for found, expected in zip(graph(x), model(x), strict=True):
            assert torch.allclose(found, expected, atol=1e-6)


def test_the_parameters_that_are_counted_are_the_widths_own():
    model = Narrow()
    segments = segments_of(model, images())
    assert sum(part.parameters for part in segments.chain) == model.own
    assert segments.whole.parameters == model.own


@pytest.mark.parametrize(("engine", "target"), [("onnxruntime", "host"), ("tensorrt", "jetson")])
def test_an_onnx_file_has_constant_weights_before_any_folding_and_the_size_of_its_own(
    engine, target
):
    model, x = Narrow(256), images()
    whole = segments_of(model, x).whole
    program = backend_for(engine).lower(whole, (x,), load_target(target))
    graph = onnx.load_from_string(program).graph
    weights = {one.name for one in graph.initializer}
    for node in graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            assert node.input[1] in weights, node.name
        assert node.op_type not in {"Slice", "Gather"}, node.name
    # Of BatchNorm the mean and the variance stand in the file until it is folded.
    own_bytes = 4 * (model.own + 2 * model.count)
    assert own_bytes <= len(program) <= 1.05 * own_bytes


def broken(weight) -> nn.Module:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(8, 6)
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return [self.head(F.linear(x, weight(self.wide.weight, x), self.wide.bias))]

    return Net()


@pytest.mark.parametrize(
    ("weight", "node"),
    [
        (lambda w, x: w * (x.mean() > 0), "mul"),
        (lambda w, x: w.index_select(0, x.sum(0)[:6].argsort()), "index_select"),
    ],
    ids=["masked by data", "chosen by data"],
)
def test_a_weight_that_cannot_be_folded_is_named_with_its_line(weight, node):
    words = (
        rf"weight of linear \(test_materialize.py, line \d+\) is no constant: {node}.*wide\.weight"
    )
    with pytest.raises(ModelError, match=words):
        exported(broken(weight), torch.randn(3, 8), exits=1)


class Places(nn.Module):
    """As many places as there are tokens."""

    def __init__(self, take):
        super().__init__()
        self.places = nn.Parameter(torch.randn(64, 8))
        self.head = nn.Linear(8, 4)
        self.take = take

    def forward(self, x):
        return [self.head((x + self.take(self.places, x.shape[1])).mean(1))]


def test_a_slice_whose_length_depends_on_the_input_is_named():
    x = torch.randn(2, 16, 8)
    axes = {"input": ((4, 16, 1), 8)}
    places = Places(lambda table, count: table[:count])
    varying = Network(Exits(places, ("only",)).eval(), ("only",), x, axes=axes, setting=True)
    with pytest.raises(ModelError, match=r"slice_1 .*takes a part of a weight, places.*size"):
        Export()(varying, lambda text: None)
    assert exported(places, x, exits=1).problems() == []


def test_a_part_that_is_larger_than_its_weight_is_named():
    places = Places(lambda table, count: table.repeat(2, 1)[:80])
    with pytest.raises(ModelError, match=r"takes a part of a weight, places.*larger .*a buffer"):
        exported(places, torch.randn(2, 1, 8), exits=1)


def test_without_a_setting_weights_may_depend_on_the_input():
    model = broken(lambda w, x: w * (x.mean() > 0))
    assert exported(model, torch.randn(3, 8), setting=False, exits=1).problems() == []


class Mixed(nn.Module):
    """A small buffer that becomes a large mask, and one slice that is taken twice."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bias", torch.randn(1, 8))
        self.weight = nn.Parameter(torch.randn(16, 8))

    def forward(self, x):
        mask = (2 * self.bias[:, :4]).repeat(512, 2)
        x = F.linear(x, self.weight[:8]) + mask[0]
        return [F.linear(x.relu(), self.weight[:8])]


def test_equal_weights_are_one_and_what_is_small_in_the_end_is_a_weight():
    model = Mixed()
    graph = exported(model, torch.randn(3, 8), exits=1).graph
    weights = {
        getattr(graph, str(node.target)).shape for node in graph.graph.find_nodes(op="get_attr")
    }
    assert weights == {(8, 8), (8,)}
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert torch.equal(graph(x)[0], model(x)[0])


def test_a_mask_larger_than_what_it_is_made_of_stays_an_operator():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("row", torch.randn(1, 1, 64))

        def forward(self, x):
            return [(x[:, None, :] * self.row[:, :, :32].expand(1, 500, 32)).mean(1)]

    graph = exported(Net(), torch.randn(3, 32), setting=False, exits=1).graph
    (row,) = graph.graph.find_nodes(op="get_attr")
    assert getattr(graph, str(row.target)).shape == (1, 1, 32)
    assert any(node.target is ATEN.expand.default for node in graph.graph.nodes)


@given(st.data())
def test_any_chain_of_views_of_a_weight_is_the_weight_that_pytorch_has(data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    weight = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    graph = fx.Graph()
    node, value = graph.get_attr("weight"), weight
    node.meta["val"] = value
    for _ in range(data.draw(st.integers(1, 5))):
        dim = data.draw(st.integers(0, value.dim() - 1))
        start = data.draw(st.integers(0, value.shape[dim] - 1))
        end = data.draw(st.integers(start + 1, value.shape[dim]))
        steps = {
            ATEN.slice.Tensor: (dim, start, end, data.draw(st.integers(1, 3))),
            ATEN.transpose.int: (0, dim),
            ATEN.mul.Tensor: (2.0,),
            ATEN.clone.default: (),
            ATEN.flip.default: ([dim],),
        }
        operator = data.draw(st.sampled_from(list(steps)))
        value = operator(value, *steps[operator])
        node = graph.call_function(operator, (node, *steps[operator]))
        node.meta["val"] = value
    x = graph.placeholder("x")
    graph.output((graph.call_function(ATEN.add.Tensor, (x, node)),))
    module = fx.GraphModule({"weight": weight}, graph)
    materialize(module)
    assert [one.op for one in module.graph.nodes if one.op == "get_attr"] == ["get_attr"]
    assert [one.target for one in module.graph.nodes if one.op == "call_function"] == [
        ATEN.add.Tensor
    ]
    module.recompile()
    assert torch.equal(module(torch.zeros(()))[0], value)


def test_what_is_drawn_at_random_is_no_weight():
    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    drawn = graph.call_function(ATEN.bernoulli.default, (weight,))
    drawn.meta["val"] = torch.zeros(3)
    graph.output((graph.call_function(ATEN.add.Tensor, (x, drawn)),))
    module = fx.GraphModule({"weight": torch.full((3,), 0.5)}, graph)
    materialize(module)
    assert drawn in module.graph.nodes
