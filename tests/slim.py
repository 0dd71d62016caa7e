"""A slimmable network of two exits for tests, as a user would write it: no layer of edgekit's."""

from pathlib import Path

from tests.conftest import write_recipe

WIDTHS = {"w0.25": 0.25, "w1.0": 1.0}

SLIM_MODEL = '''
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = [0.25, 1.0]


class SlimConv(nn.Conv2d):
    """The first channels of a convolution, and BatchNorm statistics for each width."""

    def __init__(self, inputs, outputs, first=False):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.first = first
        self.width_mult = 1.0
        self.norms = nn.ModuleList(nn.BatchNorm2d(int(outputs * one)) for one in WIDTHS)

    def forward(self, x):
        at = WIDTHS.index(self.width_mult)
        inputs = self.in_channels if self.first else int(self.in_channels * self.width_mult)
        weight = self.weight[: int(self.out_channels * self.width_mult), :inputs]
        return torch.relu(self.norms[at](F.conv2d(x, weight, padding=1)))


class SlimLinear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.width_mult = 1.0

    def forward(self, x):
        return F.linear(x, self.weight[:, : int(self.in_features * self.width_mult)], self.bias)


class Slim(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a = SlimConv(1, channels, first=True)
        self.b = SlimConv(channels, channels)
        self.c = SlimConv(channels, channels)
        self.heads = nn.ModuleList(SlimLinear(channels, 4) for _ in range(2))

    def forward(self, x):
        x = self.a(x)
        early = self.heads[0](x.mean((2, 3)))
        x = self.c(self.b(F.max_pool2d(x, 2)))
        return [early, self.heads[1](x.mean((2, 3)))]

    def set_width(self, width):
        for one in self.modules():
            if hasattr(one, "width_mult"):
                one.width_mult = width


def set_width(network, width):
    network.set_width(width)


def slim(channels=16):
    torch.manual_seed(0)
    network = Slim(channels)
    # As after training: every width has seen features of its own.
    network.train()
    with torch.no_grad():
        for width in WIDTHS:
            network.set_width(width)
            for _ in range(8):
                network(torch.randn(16, 1, 8, 8))
    network.set_width(1.0)
    return network.eval()


def samples(seed, count=24):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return pixels, generator.integers(0, 4, count)
'''

SLIM_RECIPE = """
name: slim
model: {factory: "slim.py:slim"}
input: {shape: [1, 8, 8], image: {mode: L, mean: [0.5], std: [0.25]}}
labels: [north, east, south, west]
exits: [early, late]
policy: {thresholds: 0.30}
data:
  calibration: {factory: "slim.py:samples", args: {seed: 3, count: 64}}
  tuning: {factory: "slim.py:samples", args: {seed: 1}}
  test: {factory: "slim.py:samples", args: {seed: 2}}
variants:
  set: {attribute: width_mult}
  each: {w1.0: 1.0, w0.25: 0.25}
"""


def write_slim_recipe(folder: Path) -> Path:
    """A recipe of two widths, the widest first; its path."""
    return write_recipe(folder, "slim", SLIM_MODEL, SLIM_RECIPE)
