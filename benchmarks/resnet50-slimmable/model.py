"""ResNet-50 (He et al., arXiv 1512.03385) whose every layer slims, at random weights."""

from functools import partial

import torch
from torch import Tensor, nn

from edgekit.models.slimmable import (
    SlimmableConv2d,
    SlimmableLinear,
    SwitchableBatchNorm2d,
    set_width,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
BLOCKS = (3, 4, 6, 3)
EXPANSION = 4

Conv = partial(SlimmableConv2d, bias=False, widths=WIDTHS)
# No momentum: the statistics are the mean of all batches seen, here of one.
Norm = partial(SwitchableBatchNorm2d, momentum=None, widths=WIDTHS)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (figure 5, right)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.body = nn.Sequential(
            Conv(inputs, width, 1),
            Norm(width),
            nn.ReLU(inplace=True),
            Conv(width, width, 3, stride, 1),
            Norm(width),
            nn.ReLU(inplace=True),
            Conv(width, outputs, 1),
            Norm(outputs),
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(Conv(inputs, outputs, 1, stride), Norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, h, w] to [batch, 4 * width, h / stride, w / stride]."""
        return self.relu(self.body(x) + self.downsample(x))


class ResNet50(nn.Module):
    """The published layers, one exit at the end; counts are those of the widest width."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Conv(3, 64, 7, 2, 3, slim_in=False),
            Norm(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        blocks, inputs = [], 64
        for stage, count in enumerate(BLOCKS):
            width = 64 * 2**stage
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if stage > 0 and index == 0 else 1))
                inputs = width * EXPANSION
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = SlimmableLinear(inputs, classes, widths=WIDTHS, slim_out=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 3, 224, 224] to logits [batch, classes]."""
        return self.classify(self.pool(self.blocks(self.stem(x))))


@torch.no_grad()
def resnet50(classes: int = 1000) -> nn.Module:
    """The net with random weights from a fixed seed: for sizes and times.

    Every width has statistics of its own, of noise: without any, features vanish at the narrow ones
    and all pictures get one answer.
    """
    torch.manual_seed(0)
    net = ResNet50(classes)
    # Small, since statistics of noise are much the same at any size.
    noise = torch.randn(16, 3, 64, 64)
    for width in WIDTHS:
        set_width(net, width)
        net(noise)
    return net
