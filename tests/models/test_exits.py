"""How exits are named: by path, by module, at heads; steered past decisions on data; refused."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from edgekit.errors import EdgekitError, ModelError, RecipeError
from edgekit.models.exits import Exits, find_exits
from edgekit.recipe import Recipe
from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.split import Split

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def recipe(exits, model=None, **more) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "mine",
            "model": {"factory": "a:b", **(model or {})},
            "input": {"shape": [6]},
            "exits": exits,
            "policy": {"thresholds": 0.5},
            **more,
        }
    )


def find(model: nn.Module, exits, sample=X[:2], call=None, **more) -> Exits:
    return find_exits(recipe(exits, call, **more), model.eval(), sample)


def segments_of(exits: Exits, sample=X[:2]):
    network = Network(exits, exits.names, sample)
    return Split()(Export()(network, lambda text: None).artifact, lambda text: None).artifact


def chain(exits: Exits, x: torch.Tensor) -> list[torch.Tensor]:
    """What the segments give, one after the other."""
    segments = segments_of(exits, x[:2])
    values, found = {segments.inputs["input"]: x}, []
    with torch.no_grad():
        for part in segments.chain:
            given = part.program(*(values[name] for name in part.inputs))
            values.update(zip(part.outputs, given, strict=True))
            found += [values[tensor] for tensor in part.logits.values()]
    return found


class Net(nn.Module):
    """Three layers with a head each; `forward` is what the test wants."""

    def __init__(self, forward=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.shared = nn.Linear(6, 4)
        self.threshold = 0.3
        self.how = forward

    def forward(self, x, **options):
        return self.how(self, x, **options)

    def logits(self, x):
        """What the heads say, with no decision in between."""
        found = []
        with torch.no_grad():
            for layer, head in zip(self.body, self.exits, strict=True):
                x = layer(x).relu()
                found.append(head(x))
        return found


def assert_logits(exits: Exits, expected: list[torch.Tensor]) -> None:
    """The exits say so in PyTorch, in the segments, and in a batch of another size."""
    with torch.no_grad():
        ours = exits(X)
    for one, two, theirs in zip(ours, chain(exits, X), expected, strict=True):
        assert torch.equal(one, theirs)
        assert torch.allclose(two, theirs, atol=1e-6)


class Pair(NamedTuple):
    out: torch.Tensor
    aux: list


@dataclass
class Result:
    final: torch.Tensor
    hidden: torch.Tensor
    early: tuple


SHAPES = {
    "list": (lambda a, b, c, h: [h, a, [b, c]], ["1", "2.0", "2.1"]),
    "dict": (lambda a, b, c, h: {"e": {"x": a, 1: b}, "out": c, "h": h}, ["e.x", "e.1", "out"]),
    "named tuple": (lambda a, b, c, h: Pair(c, [a, b, h]), ["aux.0", "aux.1", "out"]),
    "dataclass": (lambda a, b, c, h: Result(c, h, (a, b)), ["early.0", "early.1", "final"]),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_an_output_that_is_no_exit_can_be_left_out(shape):
    made, paths = SHAPES[shape]

    def forward(m, x):
        features, found = x, []
        for layer, head in zip(m.body, m.exits, strict=True):
            features = layer(features).relu()
            found.append(head(features))
        return made(*found, features)

    model = Net(forward)
    named = [{"name": f"e{index}", "output": path} for index, path in enumerate(paths)]
    assert_logits(find(model, named), model.logits(X))


def test_exits_stacked_beside_something_else_are_taken_by_index():
    model = Net(lambda m, x: (torch.stack(m.logits(x)), x))
    exits = find(model, [{"name": "e", "output": "0.0"}, {"name": "f", "output": "0.2"}])
    for ours, theirs in zip(exits(X), model.logits(X)[::2], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("aux.7", r"'aux.7': aux is a list of 2, without '7'"),
        ("axu", r"is a dict of aux, out, without 'axu'"),
        ("out.0", r"out is a tensor \[2, 4\]"),
        ("aux", r"'e': found a list of 2 there, and one tensor is wanted"),
        ("aux.__len__", "aux is a list of 2, without '__len__'"),
    ],
)
def test_a_path_that_leads_nowhere_says_how_far_it_came(path, words):
    model = Net(lambda m, x: {"aux": [m.exits[0](x), x], "out": m.exits[1](m.body[0](x))})
    with pytest.raises(ModelError, match=words):
        find(model, [{"name": "e", "output": path}, {"name": "f", "output": "out"}])


def test_plain_names_are_what_no_path_takes_and_an_output_left_over_is_refused():
    def forward(m, x):
        a, b, c = m.logits(x)
        return [b], a, c

    model = Net(forward)
    assert_logits(
        find(model, ["first", {"name": "second", "output": "0.0"}, "third"]), model.logits(X)
    )
    with pytest.raises(ModelError, match=r"returns 2 outputs.*names 1 exits \(third\).*output:"):
        find(model, [{"name": "second", "output": "0.0"}, "third"])


def test_a_name_in_a_dict_and_a_path_beside_it():
    def forward(m, x):
        first, _, last = m.logits(x)
        return {"aux": [first], "out": last}

    model = Net(forward)
    first, _, last = model.logits(X)
    assert_logits(find(model, [{"name": "e", "output": "aux.0"}, "out"]), [first, last])
    with pytest.raises(ModelError, match=r"by name: aux, out; the recipe names out; .*output:"):
        find(model, [{"name": "e", "module": "exits.0"}, "out"])


def walk(m, x):
    """Runs everything, and returns the last exit."""
    for layer, head in zip(m.body, m.exits, strict=True):
        x = layer(x).relu()
        out = head(x)
    return out


MODULES = [{"name": f"e{index}", "module": f"exits.{index}"} for index in range(3)]


def test_modules_are_exits_beside_outputs():
    model = Net(walk)
    assert_logits(find(model, [*MODULES[:2], "final"]), model.logits(X))


def test_nothing_is_left_on_the_users_model():
    def fails(m, x):
        m.exits[0](x)
        raise ValueError

    for forward in (walk, fails):
        model = Net(forward).eval()
        before = {name: dict(vars(one)) for name, one in model.named_modules()}
        hooks = {name: dict(one._forward_hooks) for name, one in model.named_modules()}
        try:
            exits = find(model, MODULES)
            exits(X)
        except EdgekitError:
            assert forward is fails
        assert {name: dict(vars(one)) for name, one in model.named_modules()} == before
        assert {name: dict(one._forward_hooks) for name, one in model.named_modules()} == hooks


def test_logits_that_the_model_changes_in_place_afterwards_are_as_the_module_gave_them():
    def forward(m, x):
        early = m.exits[0](m.body[0](x))
        late = m.exits[1](early.softmax(1) @ m.exits[2].weight)
        early.mul_(0)
        return late

    model = Net(forward)
    with torch.no_grad():
        wanted = model.exits[0](model.body[0](X))
    exits = find(model, [MODULES[0], "late"])
    for given in (exits(X)[0], chain(exits, X)[0]):
        assert torch.allclose(given, wanted)


def test_a_module_that_returns_more_than_logits_is_followed_by_a_path():
    class Head(nn.Linear):
        def forward(self, x):
            return {"features": x, "logits": super().forward(x)}

    model = Net(lambda m, x: walk(m, x)["logits"])
    model.exits = nn.ModuleList(Head(6, 4) for _ in range(3))
    with pytest.raises(ModelError, match="dict of features, logits"):
        find(model, MODULES)
    exits = find(model, [{**one, "output": "logits"} for one in MODULES])
    assert_logits(exits, [one["logits"] for one in model.logits(X)])


def test_which_call_of_a_shared_head_is_meant_must_be_said():
    def forward(m, x):
        for layer in m.body:
            x = layer(x).relu()
            out = m.shared(x)
        return out

    model = Net(forward)
    model.exits = nn.ModuleList([model.shared] * 3)
    calls = [{"name": f"e{call}", "module": "shared", "call": call} for call in range(3)]
    assert_logits(find(model, calls), model.logits(X))
    with pytest.raises(ModelError, match=r"'shared' runs 3 times; .* call: 0 to 2"):
        find(model, [{"name": "e", "module": "shared"}, "final"])
    with pytest.raises(ModelError, match="runs 3 times, and call is 3"):
        find(model, [{**calls[0], "call": 3}, "final"])


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("exit.0", "no module 'exit.0'; did you mean 'exits.0'"),
        ("zzz", "no module 'zzz'; it has body, body.0"),
        ("exits", "is a ModuleList, which is never called; .* exits.0, exits.1, exits.2"),
    ],
)
def test_an_unknown_module_is_refused_with_the_nearest(module, words):
    with pytest.raises(RecipeError, match=words):
        find(Net(walk), [{"name": "e", "module": module}, "final"])


class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def classify(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda m, x: m.training and m.early(x), "only in train"),
        (lambda m, x: m.early.classify(x), r"another method than forward; .*\(early.linear\)"),
        (lambda m, x: m.early.forward(x), r"its forward does: \.forward\(x\) passes hooks by; let"),
        (lambda m, x: None, "nor in train"),
    ],
    ids=["train only", "by another method", "past its hooks", "never"],
)
def test_a_module_that_never_runs_is_refused_with_the_reason(use, words):
    def forward(m, x):
        use(m, x)
        return m.exits[0](x)

    model = Net(forward)
    model.early = Called() if "method" in words else nn.Linear(6, 4)
    with pytest.raises(ModelError, match=f"'early' never runs in eval.*{words}"):
        find(model, [{"name": "e", "module": "early"}, "final"])
    assert not model.training
    assert "forward" not in vars(model.early), "something is left on the user's module"


@pytest.mark.parametrize(
    "exits",
    [[MODULES[2], MODULES[1]], [MODULES[2], {"name": "same", "module": "exits.2"}]],
    ids=["a later one feeds it", "twice the same"],
)
def test_an_exit_that_needs_nothing_of_its_own_is_refused(exits):
    def forward(m, x):
        return m.exits[2](m.exits[1](x) @ m.exits[0].weight)

    with pytest.raises(ModelError, match="needs nothing that an exit before it has not computed"):
        segments_of(find(Net(forward), exits))


def test_an_exit_that_does_not_depend_on_the_input_is_refused():
    model = Net(lambda m, x: m.exits[2](x + m.exits[0](m.body[0].weight[:1]).sum()))
    with pytest.raises(ModelError, match="'e0' does not depend on the input"):
        segments_of(find(model, [MODULES[0], "final"]))


def test_another_method_and_its_arguments_are_called():
    class Other(Net):
        def every(self, x, *, temperature, names):
            assert names == ["a", "b"]
            return [one / temperature for one in self.logits(x)]

    model = Other()
    call = {"method": "every", "arguments": {"temperature": 2.0, "names": ["a", "b"]}}
    exits = find(model, ["a", "b", "c"], call=call)
    assert_logits(exits, [one / 2 for one in model.logits(X)])
    with pytest.raises(RecipeError, match="no method 'evry'; did you mean 'every'"):
        find(model, ["a"], call={"method": "evry"})
    with pytest.raises(ModelError, match="unexpected keyword argument 'temprature'"):
        find(model, ["a"], call={"method": "every", "arguments": {"temprature": 1}})
