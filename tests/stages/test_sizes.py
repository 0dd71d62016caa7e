"""What torch.export makes of sizes that vary: followed, or refused with what to write."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.bundle.manifest import Axis
from edgekit.errors import ModelError
from edgekit.models.exits import Exits
from edgekit.stages import Network, Segments
from edgekit.stages.export import Export
from edgekit.stages.sizes import refusal, varying
from edgekit.stages.split import Split


class TwoExits(nn.Module):
    """An exit on what `body` makes of the input, and one on that again."""

    def __init__(self, body: Any, features: int = 3) -> None:
        super().__init__()
        self.body = body
        self.a, self.b = nn.Linear(features, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = self.a(self.body(x))
        return a, self.b(torch.relu(a))


def cut(model: nn.Module, *shape: Axis) -> Segments[Any]:
    """The model's segments, exported with the greatest size."""
    torch.manual_seed(0)
    module = Exits(model, ["a", "b"]).eval()
    greatest = [axis[1] if isinstance(axis, tuple) else axis for axis in shape]
    network = Network(module, ("a", "b"), torch.randn(2, *greatest), axes={"input": shape})
    exported = Export()(network, lambda text: None).artifact
    return Split()(exported, lambda text: None).artifact


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).mean((2, 3))


def halved(x: torch.Tensor) -> torch.Tensor:
    return (x + F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)).mean((2, 3))


def crossed(x: torch.Tensor) -> torch.Tensor:
    return (x + x.transpose(2, 3)).mean((2, 3))


def brighter(x: torch.Tensor) -> torch.Tensor:
    return (x * 2 if x.shape[2] > 12 else x).mean((2, 3))


FLAT = TwoExits(lambda x: x.flatten(1), 3 * 256)
PLAIN, EVEN = (8, 16, 1), (8, 16, 2)


@pytest.mark.parametrize(
    ("model", "height", "width", "words"),
    [
        (TwoExits(Weighted()), PLAIN, PLAIN, "axis 1 (8..16): the model takes no size but 16"),
        (TwoExits(Weighted()), EVEN, EVEN, "axis 1 (8..16 by 2): the model takes no size but 16"),
        (TwoExits(Weighted()), 16, PLAIN, "input.shape, axis 2 (8..16)"),
        (TwoExits(halved), PLAIN, PLAIN, "at others than [8, 16, 2]; write that"),
        (TwoExits(brighter), PLAIN, 16, "at others than [13, 16]; write that"),
        (TwoExits(brighter), EVEN, 16, "at others than [14, 16, 2]; write that"),
        (TwoExits(crossed), PLAIN, PLAIN, "as large as axis 1 of input"),
        (TwoExits(crossed), EVEN, EVEN, "as large as axis 1 of input"),
        (FLAT, PLAIN, 16, "axis 1 (8..16): the model takes no size but 16 there; write 16"),
        (FLAT, PLAIN, PLAIN, "(8..16) and input.shape, axis 2 (8..16): the model does not take 8"),
    ],
)
def test_a_size_that_the_model_fixes_is_refused(model, height, width, words):
    with pytest.raises(ModelError) as caught:
        cut(model, 3, height, width)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [TwoExits(halved), TwoExits(lambda x: x.mean((2, 3)))])
def test_a_size_that_the_model_follows_is_none_in_the_chain(model):
    segments = cut(model, 3, EVEN, (10, 20, 10))
    assert segments.tensors[segments.inputs["input"]].shape == (None, 3, None, None)
    assert segments.greatest[segments.inputs["input"]] == (3, 16, 20)


class LengthFirst(nn.Module):
    """What crosses has the length in front, and the batch behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 6)
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.mix(x.transpose(0, 1).cumsum(0)))
        return self.a(x.mean(0)), self.b(x.amax(0))


@pytest.mark.parametrize("length", [2, 7, 12])
def test_a_length_in_front_of_the_batch_is_turned_behind_it(length):
    torch.manual_seed(0)
    model = LengthFirst()
    segments = cut(model, (2, 12, 1), 3)
    first, second = segments.chain
    (crossing,) = second.inputs
    assert segments.tensors[crossing].shape == (None, None, 6)
    x = torch.randn(5, length, 3)
    values = dict(zip(first.outputs, first.program(x), strict=True))
    (late,) = second.program(values[crossing])
    for ours, theirs in zip((values[first.logits["a"]], late), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


class Windows(nn.Module):
    """What crosses has a number of windows that varies, folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, length, features = x.shape
        x = torch.relu(x.reshape(-1, 4, features))
        a = self.a(x.reshape(batch, length, features).mean(1))
        x = x.softmax(1).reshape(-1, 4 * features)
        return a, self.b(x.reshape(batch, -1, 4 * features).mean(1))


def test_a_number_that_varies_folded_into_the_batch_is_refused_with_its_line():
    with pytest.raises(ModelError, match=r"\(test_sizes\.py, line \d+\) is .*\*batch, 4, 3\]"):
        cut(Windows(), (8, 16, 4), 3)


def test_logits_as_many_as_the_input_is_long_stand_in_no_chain_of_classes():
    class Pointer(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean(2), torch.relu(x).mean(2)

    segments = cut(Pointer(), (2, 12, 1), 3)
    assert segments.tensors[segments.chain[-1].logits["b"]].shape == (None, None)


def test_another_refusal_than_of_an_axis_is_left_to_others():
    axes = varying({"input": (3, PLAIN)})
    assert refusal("Could not guard on data-dependent expression Eq(u0, 1)", axes) is None
    assert refusal("Suggested fixes:\n  batch = 2\n", axes) is None
