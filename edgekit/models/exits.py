"""Which of a model's outputs are its exits."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgekit.errors import EdgekitError, ModelError, describe_failure

__all__ = ["Exits", "eager_logits"]


class Exits(nn.Module):
    """A model whose `forward` returns its exits' logits as a tuple, in the recipe's order.

    The model may return a tensor (one exit, or all of them stacked as `[exits, batch, classes]`), a
    list or tuple of tensors, nested or not, or a dict of them by the exits' names. What it returns
    is held against the recipe on every call, so an export cannot lose an exit.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits `[batch, classes]` per exit. Raises ModelError where they are not the recipe's."""
        outputs = self._in_order(self.model(x))
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

    def _in_order(self, returned: Any) -> tuple[torch.Tensor, ...]:
        if isinstance(returned, dict):
            # By name, never by order: a dict is often filled from the last exit to the first.
            if set(returned) != set(self.names):
                raise ModelError(
                    f"the model returns exits by name: {', '.join(map(str, returned))}; the recipe "
                    f"names {', '.join(self.names)}; use the model's names, in order of depth"
                )
            returned = [returned[name] for name in self.names]
        if isinstance(returned, torch.Tensor) and returned.dim() == 3:
            returned = returned.unbind(0)
        return tuple(_tensors(returned))


def eager_logits(module: nn.Module, batch: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """What the model in PyTorch says of a batch: logits float32 `[batch, classes]` per exit.

    Raises ModelError, with the place in the user's code, where the model fails.
    """
    try:
        with torch.no_grad():
            # A copy: a model may work in place on its input.
            logits = module(torch.from_numpy(np.array(batch)))
    except EdgekitError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"the model fails on an input {list(batch.shape)}: {describe_failure(error)}"
        ) from error
    return [one.float().numpy() for one in logits]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if not isinstance(value, list | tuple):
        raise ModelError(
            f"the model returns a {type(value).__name__}; expected tensors, a list or tuple of "
            "them, or a dict of them by the exits' names"
        )
    return [tensor for part in value for tensor in _tensors(part)]
