"""The network of the glyphs recipe: a residual net with four exits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 36


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, projected by a 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        last = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.body = nn.Sequential(
            conv_block(inputs, outputs, stride), last, nn.BatchNorm2d(outputs)
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [batch, inputs, h, w] to [batch, outputs, h / stride, w / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


def head(channels: int, size: int) -> nn.Sequential:
    """A linear classifier of maps [channels, size, size], pooled to 4x4: place counts."""
    return nn.Sequential(nn.AvgPool2d(size // 4), nn.Flatten(), nn.Linear(channels * 16, CLASSES))


class Glyphs(nn.Module):
    """Four stages, a head behind each: about a tenth, a fifth, two fifths and all of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(conv_block(1, 16), conv_block(16, 24, 2), Residual(24, 24)),
                nn.Sequential(Residual(24, 48, 2), Residual(48, 48)),
                Residual(48, 96),
                nn.Sequential(Residual(96, 96), Residual(96, 96)),
            ]
        )
        self.heads = nn.ModuleList([head(24, 16), head(48, 8), head(96, 8), head(96, 8)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map float32 [batch, 1, 32, 32] to the logits [batch, 36] of each exit, in order."""
        logits = []
        for stage, classify in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(classify(x))
        return logits


def glyphs() -> nn.Module:
    """Build the net, of which `glyphs.safetensors` is the state."""
    return Glyphs()
