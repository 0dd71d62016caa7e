"""The export: everything at once, batch free, and a reason where it cannot be."""

import threading

import pytest
import torch
from torch import nn

from edgekit.errors import ModelError
from edgekit.models.exits import Exits
from edgekit.stages import Exported, Network
from edgekit.stages.export import Export


def export(forward, exits=2) -> Exported:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x):
            return forward(self, x)

    names = tuple(f"exit{index + 1}" for index in range(exits))
    network = Network(Exits(Net(), names).eval(), names, torch.randn(2, 6))
    return Export()(network, lambda text: None).artifact


@pytest.mark.parametrize(
    "outputs",
    [
        lambda m, x: (m.head(x), m.head(m.a(x))),
        lambda m, x: [m.head(x), m.head(m.a(x))],
        lambda m, x: ([m.head(x)], m.head(m.a(x))),
        lambda m, x: torch.stack([m.head(x), m.head(m.a(x))]),
        lambda m, x: {"exit2": m.head(m.a(x)), "exit1": m.head(x)},
    ],
    ids=["tuple", "list", "nested", "stacked", "dict filled from the end"],
)
def test_any_collection_of_exits_becomes_outputs_in_order(outputs):
    exported = export(outputs)
    assert exported.problems() == []
    x = torch.randn(7, 6)
    first, last = exported.graph(x)
    assert first.shape == last.shape == (7, 3)
    state = exported.graph.state_dict()
    head = {name: value for name, value in state.items() if "head" in name}
    assert torch.allclose(first, torch.nn.functional.linear(x, *head.values()), atol=1e-6)
    assert not torch.allclose(first, last)


def test_a_failed_export_leaves_the_users_module_as_it_was():
    class Net(nn.Module):
        def forward(self, x):
            self.seen = x.shape
            return (x.sum().item() > 0 and x, x)

    names = ("early", "late")
    model = Net()
    with pytest.raises(ModelError):
        Export()(Network(Exits(model, names).eval(), names, torch.ones(2, 6)), lambda text: None)
    assert all(type(size) is int for size in model.seen), "the export ran in the user's module"


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: m.head(x), "returns 1 outputs in eval.*names 2 exits.*train"),
        (lambda m, x: (m.head(x),) * 3, "returns 3 outputs.*exit1, exit2"),
        (lambda m, x: (m.head(x), "sure"), "returns a str"),
        (lambda m, x: (m.head(x), m.head(x)[None]), r"exit2.*\[1, \w+, 3\].*\[batch, classes\]"),
        (lambda m, x: (m.head(x), m.head(x).argmax(1, keepdim=True)), "exit2.*int64"),
        (
            lambda m, x: {"early": m.head(x), "exit2": m.head(x)},
            "by name: early, exit2.*exit1, exit2",
        ),
        (lambda m, x: (m.head(x), m.head(x) if x.sum() > 0 else m.a(x)), "cannot follow"),
        (lambda m, x: (m.head(x), m.head(x.reshape(2, 6))), "cannot follow.*batch"),
    ],
    ids=["one exit", "three", "a word", "rank", "classes", "names", "branch", "fixed batch"],
)
def test_what_cannot_be_exported_is_refused_with_the_cause(forward, words):
    with pytest.raises(ModelError, match=words):
        export(forward)


def test_dropout_does_nothing_in_a_segment():
    x = torch.ones(2, 6)
    exported = export(lambda m, x: (m.head(m.dropout(x)), m.head(m.a(x))))
    assert torch.equal(exported.graph(x)[0], exported.graph(x)[0])


class Hooked(nn.Module):
    """Its hooks are closures over itself, which a deep copy still calls."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(3, 3)
        self.found = []
        for layer in (self.a, self.b):
            layer.register_forward_hook(lambda _, __, given: self.found.append(given))

    def forward(self, x):
        self.found.clear()
        self.b(self.a(x))
        return list(self.found)


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.lock = nn.Linear(6, 3), nn.Linear(3, 3), threading.Lock()

    def forward(self, x):
        with self.lock:
            yield (x := self.a(x))
            yield self.b(x)


@pytest.mark.parametrize("model", [Hooked, Uncopyable])
def test_a_model_whose_copy_is_another_is_exported_itself(model):
    net = Exits(model(), ("early", "late")).eval()
    network = Network(net, net.names, torch.randn(2, 6))
    exported = Export()(network, lambda text: None).artifact
    x = torch.randn(5, 6)
    for ours, theirs in zip(exported.graph(x), net(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dim", [0, -3])
@pytest.mark.parametrize(
    "take", [torch.unbind, lambda stack, dim: [stack.select(dim, i) for i in (0, 1)]]
)
def test_no_exit_waits_for_the_others_of_a_stack(dim, take):
    exported = export(lambda m, x: take(torch.stack([m.head(x), m.head(m.a(x))], dim), dim=dim))
    early, late = exported.graph.graph.output_node().args[0]
    assert early.target is late.target is torch.ops.aten.linear.default


def test_what_is_taken_along_another_dimension_than_stacked_is_left_as_it_is():
    exported = export(lambda m, x: torch.stack([m.head(x), m.head(m.a(x))], 1).unbind(2)[:2])
    x = torch.randn(5, 6)
    assert exported.graph(x)[0].shape == (5, 2)
    targets = [node.target for node in exported.graph.graph.nodes]
    assert torch.ops.aten.stack.default in targets
