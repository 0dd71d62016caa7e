"""Which of a model's outputs are its exits."""

from typing import Any

import torch
from torch import nn

from edgekit.errors import ModelError

__all__ = ["Exits"]


class Exits(nn.Module):
    """A model whose `forward` returns its exits' logits as a tuple, in the recipe's order.

    The model may return a tensor (one exit), or a list, tuple or dict of them, nested or not. The
    number of tensors is held against the recipe on every call, so an export cannot lose an exit.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits `[batch, classes]` per exit. Raises ModelError where their number is not right."""
        outputs = tuple(_tensors(self.model(x)))
        if len(outputs) != len(self.names):
            raise ModelError(
                f"the model returns {len(outputs)} outputs in eval(), and the recipe names "
                f"{len(self.names)} exits ({', '.join(self.names)}); name as many as it returns"
                + (", or let it return all exits outside train() too" if len(outputs) == 1 else "")
            )
        for name, output in zip(self.names, outputs, strict=True):
            if output.dim() != 2 or not output.is_floating_point():
                raise ModelError(
                    f"exit {name!r} is {str(output.dtype).removeprefix('torch.')} "
                    f"{list(output.shape)}; an exit's logits are floats [batch, classes]"
                )
        return outputs


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        raise ModelError(
            f"the model returns a {type(value).__name__}; expected tensors, or a list, tuple or "
            "dict of them"
        )
    return [tensor for part in value for tensor in _tensors(part)]
