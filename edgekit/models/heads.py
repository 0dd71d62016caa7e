"""Modules beside the model: heads on layers that have none, and what tells an exit's confidence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import ModelError, RecipeError
from edgekit.models.load import call_factory, load_weights
from edgekit.recipe import Confidence, Head

__all__ = ["ConvPoolMLP", "PoolLinear", "make_confidence", "make_head"]


class PoolLinear(nn.Linear):
    """Global average pool and one linear layer; its weights are `weight` and `bias`.

    Takes feature maps `[batch, channels, height, width]`, sequences `[batch, tokens, channels]`
    (their mean, or the first of them with `tokens="class"`) or vectors `[batch, channels]`.
    """

    def __init__(self, features: torch.Size, classes: int, tokens: str = "mean") -> None:
        """`features` is the shape of what the layer gives."""
        if tokens not in {"mean", "class"}:
            raise ValueError(f"tokens is {tokens!r}; it may be mean or class")
        if len(features) not in {2, 3, 4}:
            raise ValueError(f"the layer gives {list(features)}, no map, sequence or vectors")
        if tokens == "class" and len(features) != 3:
            raise ValueError(f"tokens=class is for sequences, and the layer gives {list(features)}")
        super().__init__(features[1 if len(features) == 4 else -1], classes)
        self.tokens = tokens

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]`."""
        if features.dim() == 4:
            features = features.mean((2, 3))
        elif features.dim() == 3:
            features = features[:, 0] if self.tokens == "class" else features.mean(1)
        return super().forward(features)


class ConvPoolMLP(nn.Module):
    """A 1x1 convolution, ReLU, global average pool and two linear layers, for shallow layers.

    Its weights are `conv`, `hidden` and `linear`, each `.weight` and `.bias`. Takes feature maps
    `[batch, channels, height, width]`.
    """

    def __init__(
        self,
        features: torch.Size,
        classes: int,
        channels: int | None = None,
        hidden: int | None = None,
    ) -> None:
        """`channels` of the convolution and `hidden` units; both as many as the map's channels."""
        super().__init__()
        if len(features) != 4:
            raise ValueError(
                f"conv_pool_mlp takes feature maps, and the layer gives {list(features)}; take "
                "pool_linear"
            )
        channels = channels or features[1]
        hidden = hidden or features[1]
        self.conv = nn.Conv2d(features[1], channels, 1)
        self.hidden = nn.Linear(channels, hidden)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]`."""
        pooled = self.conv(features).relu().mean((2, 3))
        return self.linear(self.hidden(pooled).relu())


_KINDS = {"pool_linear": PoolLinear, "conv_pool_mlp": ConvPoolMLP}


def make_head(exit: str, head: Head, features: torch.Size, classes: int, folder: Path) -> nn.Module:
    """The head of an exit, with its weights, in eval mode; to be called inside `user_code`.

    `features` is the shape of what its layer gives, batch in front; `classes` is for a head of a
    kind. Raises RecipeError where the head does not suit the layer or the checkpoint does not fit,
    where weights would be random without `untrained`, and ModelError where the user's factory fails
    or returns no nn.Module.
    """

    def make() -> nn.Module:
        assert head.kind is not None  # noqa: S101  (asked below)
        try:
            return _KINDS[head.kind](features, classes, **head.args)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"exit {exit!r}: {head.kind}: {error}") from None

    return _with_weights(exit, head, folder, make if head.kind else None)


def make_confidence(exit: str, confidence: Confidence, folder: Path) -> nn.Module:
    """The module of a factory that makes an exit's confidence of what the exit gives.

    With its weights, in eval mode; to be called inside `user_code`. Raises as `make_head`.
    """
    return _with_weights(exit, confidence, folder, None)


def _with_weights(
    exit: str, one: Head | Confidence, folder: Path, make: Callable[[], nn.Module] | None
) -> nn.Module:
    """What `make`, or the user's factory, makes, with the weights that the recipe names."""
    made = _seeded(one, folder, make, seed=0)
    if one.checkpoint is not None:
        load_weights(made, folder / one.checkpoint, one.prefix)
    elif not one.untrained:
        # Weights that another seed changes were drawn, not learned.
        other = _seeded(one, folder, make, seed=1).state_dict()
        drawn = [
            name for name, value in made.state_dict().items() if not torch.equal(value, other[name])
        ]
        if drawn:
            raise RecipeError(
                f"exit {exit!r}: {one.factory} draws {drawn[0]} at random; give its checkpoint, "
                "or untrained: true to build it all the same"
            )
    return made.eval().requires_grad_(False)


def _seeded(
    one: Head | Confidence, folder: Path, make: Callable[[], nn.Module] | None, *, seed: int
) -> nn.Module:
    """The module with its first weights: always the same ones, whatever has drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any
        if make is None:
            assert one.factory is not None  # noqa: S101  (the recipe has one where no kind is)
            made = call_factory(one.factory, one.args, folder)
        else:
            made = make()
    if not isinstance(made, nn.Module):
        raise ModelError(f"{one.factory} returned a {type(made).__name__}, no nn.Module")
    return made
