"""Heads attached to layers by name: their features, their weights, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekit.errors import ModelError, RecipeError
from edgekit.models.exits import find_exits
from edgekit.models.heads import ConvPoolMLP, PoolLinear
from edgekit.models.load import user_code
from tests.models.test_exits import chain, recipe

MAPS = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Plain(nn.Module):
    """A network without early exits: maps, then tokens, then vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.mixer = nn.Linear(6, 7)
        self.pool = nn.Linear(7, 9)
        self.fc = nn.Linear(9, 4)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.mixer(x.flatten(2).transpose(1, 2))
        return self.fc(self.pool(x.mean(1)).relu())


def find(tmp_path, *heads, **more):
    exits = [{"name": f"e{index}", "head": head} for index, head in enumerate(heads)]
    made = recipe([*exits, "final"], **more)
    made._folder = tmp_path
    with user_code(tmp_path):
        return find_exits(made, Plain().eval(), MAPS[:2])


def trained(path, head, prefix=""):
    torch.manual_seed(7)
    for one in head.parameters():
        nn.init.normal_(one)
    save_file({f"{prefix}{name}": value for name, value in head.state_dict().items()}, path)
    return head.eval()


def test_heads_on_maps_tokens_and_vectors_give_what_their_weights_say(tmp_path):
    stem = trained(tmp_path / "a.safetensors", ConvPoolMLP(torch.Size((1, 6, 3, 3)), 4, 8, 5))
    maps = trained(tmp_path / "b.safetensors", PoolLinear(torch.Size((1, 6, 3, 3)), 4))
    mean = trained(tmp_path / "c.safetensors", PoolLinear(torch.Size((1, 9, 7)), 4))
    vector = trained(tmp_path / "d.safetensors", PoolLinear(torch.Size((1, 9)), 4))
    exits = find(
        tmp_path,
        {"at": "stem", "kind": "conv_pool_mlp", "args": {"channels": 8, "hidden": 5},
         "checkpoint": "a.safetensors"},
        {"at": "act", "kind": "pool_linear", "checkpoint": "b.safetensors"},
        {"at": "mixer", "kind": "pool_linear", "checkpoint": "c.safetensors"},
        {"at": "mixer", "kind": "pool_linear", "args": {"tokens": "class"},
         "checkpoint": "c.safetensors"},
        {"at": "pool", "kind": "pool_linear", "checkpoint": "d.safetensors"},
    )  # fmt: skip
    model = exits.model
    with torch.no_grad():
        before = model.stem(MAPS)
        after = before.relu()
        tokens = model.mixer(after.flatten(2).transpose(1, 2))
        pooled = model.pool(tokens.mean(1))
        wanted = [
            # The layer's own output, though the next layer works on it in place.
            stem.linear(stem.hidden(stem.conv(before).relu().mean((2, 3))).relu()),
            maps.weight @ after.mean((2, 3)).mT,
            tokens.mean(1) @ mean.weight.mT + mean.bias,
            tokens[:, 0] @ mean.weight.mT + mean.bias,
            pooled @ vector.weight.mT + vector.bias,
            model(MAPS),
        ]
        wanted[1] = wanted[1].mT + maps.bias
        for one, two, theirs in zip(exits(MAPS), chain(exits, MAPS), wanted, strict=True):
            assert torch.allclose(one, theirs, atol=1e-5)
            assert torch.allclose(two, theirs, atol=1e-5)


@pytest.fixture
def torchvision():
    """The package, without the compiled operators that its builds for other torches lack."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("torchvision", exc_type=ImportError)


def test_a_resnet_that_was_never_meant_to_leave_early_gets_heads_at_its_layers(
    torchvision, tmp_path
):
    def head(name, at, kind):
        return {"name": name, "head": {"at": at, "kind": kind, "untrained": True}}

    exits = [
        head("early", "layer1.1", "conv_pool_mlp"),
        head("middle", "layer2", "pool_linear"),
        head("late", "layer3.1.bn2", "pool_linear"),
        "final",
    ]
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    x = torch.randn(3, 3, 64, 64)
    found = find_exits(recipe(exits), model, x[:2])
    with torch.no_grad():
        whole = found(x)
        assert torch.equal(whole[-1], model(x))
    for one, theirs in zip(chain(found, x), whole, strict=True):
        assert theirs.shape == (3, 10)
        assert torch.allclose(one, theirs, atol=1e-5)


def test_heads_in_one_file_are_told_apart_by_their_prefix(tmp_path):
    made = trained(tmp_path / "one.safetensors", nn.ModuleDict(
        {"first": nn.Linear(6, 4), "second": nn.Linear(7, 4)}), "heads.")  # fmt: skip
    heads = [
        {"at": at, "kind": "pool_linear", "checkpoint": "one.safetensors", "prefix": prefix}
        for at, prefix in (("stem", "heads.first."), ("mixer", "heads.second."))
    ]
    exits = find(tmp_path, *heads)
    assert torch.equal(exits.heads["0"].weight, made["first"].weight)
    assert torch.equal(exits.heads["1"].weight, made["second"].weight)
    with pytest.raises(RecipeError, match=r"begins with 'haeds.'; the first are heads.first.bias"):
        find(tmp_path, {**heads[0], "prefix": "haeds."})


def test_a_checkpoint_that_does_not_fit_the_head_lists_the_keys(tmp_path):
    save_file({"weight": torch.zeros(4, 64), "stray": torch.zeros(1)}, tmp_path / "w.safetensors")
    words = (
        r"bias is missing; stray is not the model's; weight is \[4, 64\], the model has \[4, 6\]"
    )
    with pytest.raises(RecipeError, match=words):
        find(tmp_path, {"at": "stem", "kind": "pool_linear", "checkpoint": "w.safetensors"})


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"kind": "pool_linear"}, "needs its checkpoint; or untrained: true"),
        ({"kind": "pool_linear", "untrained": True, "checkpoint": "a.pt"}, "needs its checkpoint"),
        ({"untrained": True}, "exactly one of kind and factory"),
        ({"kind": "pool_linear", "factory": "a:b", "untrained": True}, "exactly one of kind and"),
        ({"kind": "pool_liner", "untrained": True}, "'pool_linear' or 'conv_pool_mlp'"),
        ({"factory": "a:b", "prefix": "x."}, "a prefix belongs to a checkpoint"),
    ],
)
def test_a_head_whose_weights_nobody_names_is_refused(head, words):
    with pytest.raises(ValueError, match=words):
        recipe([{"name": "e", "head": {"at": "stem", **head}}, "final"])


def test_an_untrained_head_is_the_same_in_every_build(tmp_path):
    head = {"at": "stem", "kind": "pool_linear", "untrained": True}
    torch.manual_seed(1)
    first = find(tmp_path, head)
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    second = find(tmp_path, head)
    assert torch.equal(first.heads["0"].weight, second.heads["0"].weight)
    torch.manual_seed(2)
    assert torch.equal(torch.get_rng_state(), drawn)


OWN = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, 4)
    def forward(self, x):
        return self.out(x.amax((2, 3)))

def learned(width):
    head = Head(width)
    for one in head.parameters():
        nn.init.constant_(one, 0.5)
    return head

def none():
    return 3
"""


def test_a_head_of_the_users_own(tmp_path):
    (tmp_path / "heads.py").write_text(OWN)
    own = {"at": "stem", "factory": "heads.py:Head", "args": {"width": 6}}
    with pytest.raises(RecipeError, match=r"heads.py:Head draws out.weight at random; .*untrained"):
        find(tmp_path, own)
    state = {"out.weight": torch.ones(4, 6), "out.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "own.pt")
    given = find(tmp_path, {**own, "checkpoint": "own.pt"})
    assert torch.equal(given.heads["0"].out.weight, state["out.weight"])
    assert find(tmp_path, {**own, "untrained": True}).heads["0"].out.weight.shape == (4, 6)
    learned = find(tmp_path, {**own, "factory": "heads.py:learned"})
    assert (learned.heads["0"].out.bias == 0.5).all()
    with pytest.raises(ModelError, match=r"heads.py:none returned a int, no nn.Module"):
        find(tmp_path, {"at": "stem", "factory": "heads.py:none"})


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"at": "mixer", "kind": "conv_pool_mlp"}, "takes feature maps.*pool_linear"),
        ({"at": "stem", "kind": "pool_linear", "args": {"tokens": "class"}}, "is for sequences"),
        ({"at": "mixer", "kind": "pool_linear", "args": {"tokens": "last"}}, "mean or class"),
        ({"at": "stem", "kind": "pool_linear", "args": {"width": 3}}, "unexpected keyword.*width"),
        ({"at": "stme", "kind": "pool_linear"}, "no module 'stme'; did you mean 'stem'"),
    ],
)
def test_a_head_that_does_not_suit_its_layer_is_refused(tmp_path, head, words):
    with pytest.raises(RecipeError, match=words):
        find(tmp_path, {**head, "untrained": True})


def test_classes_are_the_labels_or_the_final_exits(tmp_path):
    head = {"at": "stem", "kind": "pool_linear", "untrained": True}
    assert find(tmp_path, head).heads["0"].out_features == 4
    assert find(tmp_path, head, labels=list("abcde")).heads["0"].out_features == 5
    made = recipe([{"name": "only", "head": head}])
    with pytest.raises(RecipeError, match="labels: give them"):
        find_exits(made, Plain().eval(), MAPS[:2])
