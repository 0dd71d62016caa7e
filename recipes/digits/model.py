"""The networks of the digits recipe: a residual net with four exits, and a plain small one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, projected by a 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, stride)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        return torch.relu(self.norm(self.second(self.first(x))) + self.shortcut(x))


class Head(nn.Module):
    """A linear classifier of pooled feature maps.

    Pools to 4x4 rather than to 1x1: shallow features say little without where they were seen.
    """

    GRID = 4

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(size // self.GRID)
        self.linear = nn.Linear(channels * self.GRID**2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [batch, channels, size, size] to logits [batch, 10]."""
        return self.linear(torch.flatten(self.pool(x), 1))


class MultiExit(nn.Module):
    """A CIFAR-style residual net with a head after each of its four stages.

    Each stage hands exactly one tensor to its own head and to the next stage.
    """

    def __init__(self) -> None:
        super().__init__()
        # Exits after about a fifth, two fifths, three quarters and all of the time. Most digits are
        # settled at the first, so it has to be cheap beside the whole net, but not so cheap that
        # the call around it costs more than what it computes.
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    ConvBlock(1, 16), ConvBlock(16, 16), Residual(16, 16), Residual(16, 16)
                ),
                nn.Sequential(Residual(16, 32, stride=2), Residual(32, 32)),
                nn.Sequential(Residual(32, 48), Residual(48, 48)),
                nn.Sequential(Residual(48, 48), Residual(48, 48, stride=2)),
            ]
        )
        self.heads = nn.ModuleList([Head(16, 32), Head(32, 16), Head(48, 16), Head(48, 8)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map float32 [batch, 1, 32, 32] to the logits [batch, 10] of each exit, in order."""
        logits = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(head(x))
        return logits


class Static(nn.Module):
    """`depth` 3x3 convolutions, the first two of which halve the size, and one head."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"a static net has at least 2 convolutions, not {depth}")
        self.features = nn.Sequential(
            ConvBlock(1, width, stride=2),
            ConvBlock(width, 2 * width, stride=2),
            *[ConvBlock(2 * width, 2 * width) for _ in range(depth - 2)],
        )
        self.head = Head(2 * width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [batch, 1, 32, 32] to logits [batch, 10]."""
        return self.head(self.features(x))


def multi_exit() -> nn.Module:
    """Build the multi-exit net, of which `digits.safetensors` is the state."""
    return MultiExit()


def static(width: int, depth: int) -> nn.Module:
    """Build a plain single-exit net; `training.json` says which one `static.safetensors` is of."""
    return Static(width, depth)
