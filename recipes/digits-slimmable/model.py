"""The network of the digits-slimmable recipe: a residual net of four widths, with three exits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from edgekit.models.slimmable import SlimmableConv2d, SlimmableLinear, SwitchableBatchNorm2d

CLASSES = 10
WIDTHS = (0.25, 0.5, 0.75, 1.0)

Conv = partial(SlimmableConv2d, bias=False, widths=WIDTHS)
Norm = partial(SwitchableBatchNorm2d, widths=WIDTHS)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, projected by a 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(inputs, outputs, 3, stride, 1),
            Norm(outputs),
            nn.ReLU(),
            Conv(outputs, outputs, 3, 1, 1),
            Norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(Conv(inputs, outputs, 1, stride), Norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Head(nn.Sequential):
    """A linear classifier of maps pooled to 4x4: place counts."""

    GRID = 4

    def __init__(self, channels: int, size: int) -> None:
        features = channels * self.GRID**2
        super().__init__(
            nn.AvgPool2d(size // self.GRID),
            nn.Flatten(),
            SlimmableLinear(features, CLASSES, widths=WIDTHS, slim_out=False),
        )


class Slimmable(nn.Module):
    """Three stages, a head behind each; counts are those of the widest width."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    Conv(1, 32, 3, 2, 1, slim_in=False), Norm(32), nn.ReLU(), Residual(32, 64)
                ),
                nn.Sequential(Residual(64, 64), Residual(64, 64)),
                nn.Sequential(Residual(64, 96, stride=2), Residual(96, 96)),
            ]
        )
        self.heads = nn.ModuleList([Head(64, 16), Head(64, 16), Head(96, 8)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map float32 [batch, 1, 32, 32] to the logits [batch, 10] of each exit, in order."""
        logits = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(head(x))
        return logits


def slimmable() -> nn.Module:
    """Build the net at its widest, of which `digits.safetensors` is the state."""
    return Slimmable()
