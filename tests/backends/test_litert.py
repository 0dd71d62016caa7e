"""TFLite segments: what crosses a cut, samples together and alone, and clear refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.backends.litert import LiteRTBackend
from edgekit.backends.tflite_graph import Graph
from edgekit.bundle.manifest import Input
from edgekit.check import chain_of, never
from edgekit.errors import BuildError
from edgekit.models.exits import Exits
from edgekit.runtime.engines import litert
from edgekit.runtime.verify import differences
from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.stages.split import Split
from edgekit.target import load_target
from tests.stages.test_materialize import Narrow, images, segments_of

BACKEND = LiteRTBackend()
TARGET = load_target("rpi4b-litert", {"precision": "fp32"})
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Pooled(nn.Module):
    """Global pools written for channels first, and a feature map that two segments read."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(3))

    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(a).relu()
        c = (self.c(b) + a).relu()
        return [head(y.mean((2, 3))) for head, y in zip(self.heads, (a, b, c), strict=True)]


class Tokens(nn.Module):
    """A token before each sample's own, which the converter makes for as many as it is shown."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        logits = []
        for mix, head in zip(self.mix, self.heads, strict=True):
            x = x + mix(x).softmax(1)
            logits.append(head(x[:, 0]))
        return logits


class Bessel(nn.Module):
    def __init__(self):
        super().__init__()
        self.early, self.last = nn.Linear(192, 3), nn.Linear(192, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.early(x), self.last(torch.special.i0e(x))


def silent(text: str) -> None:
    pass


def cut(model, exits):
    names = tuple(f"exit{number}" for number in range(exits))
    network = Network(Exits(model.eval(), names).eval(), names, IMAGES)
    exported = Export()(network, silent).artifact
    return Split(channels_last=True)(exported, silent).artifact


def lowered(model, exits):
    segments = Lower(BACKEND, TARGET, IMAGES)(cut(model, exits), silent).artifact
    return Optimize(BACKEND, lambda *_: 0.0, 1.0)(segments, silent).artifact


@pytest.fixture(scope="module")
def pooled():
    model = Pooled()
    return model, lowered(model, 3)


@pytest.fixture(scope="module")
def tokens():
    model = Tokens()
    return model, lowered(model, 2)


def transposes(part):
    graph = Graph(part.program)
    return [graph.kind(one) for one in graph.operators].count("TRANSPOSE")


def assert_as_in_pytorch(model, segments, rows):
    tensor = segments.inputs["input"]
    source = Input(name="input", tensor=tensor, shape=(3, 8, 8), dtype="float32", image=None)
    x = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = dict(zip(segments.exits, model(x), strict=True))
    for parts in segments.chains().values():
        values = chain_of(segments, parts, (source,), (), never(parts), TARGET).tensors(x.numpy())
        for part in parts:
            for exit, tensor in part.logits.items():
                assert differences(values[tensor], expected[exit].numpy())[1] < 1e-5, part.name


# One sample, a group, and a group with some over.
@pytest.mark.parametrize("rows", [1, litert.GROUP_ROWS, litert.GROUP_ROWS + 3])
@pytest.mark.parametrize("network", ["pooled", "tokens"])
def test_batches_of_any_size_are_what_pytorch_gives(request, network, rows):
    assert_as_in_pytorch(*request.getfixturevalue(network), rows)


def test_nothing_is_transposed_at_a_cut_or_before_a_global_pool(pooled):
    _, segments = pooled
    assert segments.chain[2].inputs == ("relu_sent", "relu_1_sent")
    for part in segments.chain:
        graph = Graph(part.program)
        for name in (*part.inputs, *part.outputs):
            tensor = (graph.inputs | graph.outputs)[name]
            shape = segments.tensors[name].shape
            assert graph.shape(tensor) == (1, *shape[1:])
            if part is not segments.chain[0] and len(shape) == 4:
                assert shape[1:] == (8, 8, 8)
    # The network's own input comes with channels first, and is turned once.
    assert [transposes(part) for part in segments.chain] == [1, 0, 0]


def test_what_the_chain_is_compared_with_transposes_no_more_than_the_chain(pooled):
    _, segments = pooled
    assert transposes(segments.whole) == transposes(segments.plain) == 1


def test_only_what_gives_the_same_for_samples_together_runs_them_together(pooled, tokens):
    def together(segments):
        loaded = litert.load([(one.name, one.program) for one in segments.chain], threads=1)
        return [one.runs_groups for one in loaded]

    assert together(pooled[1]) == [True, True, True]
    # The token of one sample, and sums that drop a dimension, which only one sample may do.
    assert together(tokens[1]) == [False, False]


def test_the_same_segment_has_the_same_bytes(pooled):
    model, segments = pooled
    part, before = cut(model, 3).chain[1], segments.chain[1].program
    program = BACKEND.lower(part, (torch.zeros(2, 8, 8, 8),), TARGET)
    assert BACKEND.apply(("transposes",), replace(segments.chain[1], program=program)) == before
    assert BACKEND.apply(("transposes",), segments.chain[1]) == before
    assert str(Path.cwd()).encode() not in before
    assert str(Path.home()).encode() not in before


def test_a_refused_operator_is_named_with_its_line_and_nothing_else_is_said(capfd):
    with pytest.raises(
        BuildError, match=r"segment-2: operator aten\.special_i0e \(test_litert\.py"
    ):
        lowered(Bessel(), 2)
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_a_narrow_network_has_constant_weights_and_the_size_of_its_own():
    model, x = Narrow(256), images()
    program = BACKEND.lower(segments_of(model, x).whole, (x,), TARGET)
    graph = Graph(program)
    kinds = [graph.kind(one) for one in graph.operators]
    assert {"SLICE", "STRIDED_SLICE", "GATHER"}.isdisjoint(kinds)
    assert {"CONV_2D", "DEPTHWISE_CONV_2D"} <= set(kinds)
    own_bytes = 4 * model.own
    assert own_bytes <= len(program) <= 1.05 * own_bytes
