"""What ONNX graphs cost: shapes that nothing infers, heads, and what the engine makes of them."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgekit.backends.onnx_graph import costs, executed, head_nodes, with_names
from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.target import load_target
from tests.stages.test_split import split


class Mixed(nn.Module):
    """Groups, strides, a matrix product in 3 dimensions, an MLP head and a convolutional one."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.convolved = nn.Conv2d(8, 3, 1)
        self.b = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.c = nn.Linear(16, 8)
        self.hidden, self.last = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        a = self.a(x).relu()
        early = self.convolved(a).relu().mean((2, 3))
        b = self.b(a).relu()
        c = self.c(b.flatten(2)[:, :, :16]).relu().flatten(1)
        return early, self.last(self.hidden(c).relu())


def lowered(model, sample):
    graphs = split(model, 2, sample)
    backend = OnnxRuntimeBackend()
    files = Lower(backend, load_target("host"), sample)(graphs, lambda text: None).artifact
    # What passes break is another test's concern.
    optimize = Optimize(backend, lambda segments, name: 0.0, 1e-3)
    return optimize(files, lambda text: None).artifact


@pytest.fixture(scope="module")
def parts():
    return lowered(Mixed(), torch.randn(2, 4, 8, 8))


def read(part) -> onnx.ModelProto:
    return with_names(onnx.load_from_string(part.program))


def test_macs_are_those_that_torch_counts_before_and_after_the_engines_fusions(parts):
    for part in parts.parts():
        assert sum(one.macs for one in costs(read(part), {})) == part.macs
    for part in parts.chain:
        # The engine's own operators and layouts have no shapes that onnx could infer.
        found = costs(executed(part.program, {}, signed=False), {})
        assert {one.operator for one in found} <= {"Conv", "FusedConv", "ConvTranspose",
                                                   "FusedMatMul", "MatMul", "Gemm",
                                                   "FusedGemm"}  # fmt: skip


class Recurrent(nn.Module):
    """One direction, two, and what hands on its state alone."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.gru = nn.GRU(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.rnn = nn.RNN(8, 3, batch_first=True)
        self.early, self.last = nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, x):
        x, (hidden, _) = self.lstm(x)
        return self.early(hidden[-1]), self.last(self.rnn(self.gru(x)[0])[1][-1])


def test_recurrent_layers_are_counted_with_every_step():
    steps = 3  # Each is written out by PyTorch, and optimized: more take long.
    parts = lowered(Recurrent(), torch.randn(2, steps, 6))
    expected = [steps * 4 * 5 * (6 + 5) + 5 * 3]
    gru = steps * 2 * 3 * 4 * ((5 + 4) + (8 + 4))
    expected.append(gru + steps * 3 * (8 + 3) + 3 * 3)
    assert [part.macs for part in parts.chain] == expected
    for part in parts.parts():
        assert sum(one.macs for one in costs(read(part), {})) == part.macs
    # So a network of them is refused in INT8 for what stays float, by name.
    first = parts.chain[0]
    work = OnnxRuntimeBackend().integer_work(first, first, load_target("host"), {})
    assert (work.macs, work.integer_macs) == (steps * 4 * 5 * (6 + 5), 0)
    assert [kind for _, kind, _ in work.floats] == ["LSTM"]


def test_heads_reach_to_the_first_weights_and_over_pools_that_nobody_else_needs(parts):
    for part in (*parts.chain, parts.whole):
        model = read(part)
        types = {node.name: node.op_type for node in model.graph.node}
        for exit, tensor in part.logits.items():
            found = sorted(types[name] for name in head_nodes(model, [tensor]))
            weighted = [name for name in found if name in {"Conv", "Gemm", "MatMul"}]
            # Of the MLP the last layer alone; of the convolutional head all from its convolution.
            assert weighted == (["Conv"] if exit == "exit1" else ["Gemm"])
            if exit == "exit1":
                assert {"Relu", "ReduceMean"} <= set(found)


def test_a_pool_that_the_backbone_needs_too_is_no_part_of_the_head():
    def model(backbone_reads: str) -> onnx.ModelProto:
        nodes = [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"], "pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
            helper.make_node("Gemm", ["flat", "w"], ["logits"], "classify"),
            helper.make_node("Relu", [backbone_reads], ["y"], "backbone"),
        ]
        weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in (("x", [4, 2, 2]), ("logits", [2]), ("y", [4, None, None]))
        ]
        return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]))

    assert head_nodes(model("x"), ["logits"]) == {"pool", "flatten", "classify"}
    assert head_nodes(model("pooled"), ["logits"]) == {"flatten", "classify"}


def test_nodes_without_a_name_get_one_that_is_not_taken():
    nodes = [helper.make_node("Relu", ["x"], ["y"], name) for name in ("", "Relu-0", "Relu-0")]
    named = with_names(helper.make_model(helper.make_graph(nodes, "g", [], [])))
    assert len({node.name for node in named.graph.node}) == 3
