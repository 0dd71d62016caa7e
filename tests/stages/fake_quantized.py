"""A network as quantization-aware training leaves it, with scales set by hand."""

import torch
import torch.ao.quantization.fx._decomposed  # Makes the operators known.
from torch import nn

OPERATORS = torch.ops.quantized_decomposed
INPUT, EARLY, CONVOLVED, LATE = (0.03, 1), (0.01, -128), (0.02, 5), (0.025, -128)
"""Scale and zero point of what enters, of the boundary, and of what is behind it."""


def fake_quantized(x, scale_and_zero_point, readers=1, integers=(-128, 127, torch.int8)):
    """What each reader gets, as PT2E has it: one quantized tensor, dequantized for each."""
    how = (*scale_and_zero_point, *integers)
    integers = OPERATORS.quantize_per_tensor.default(x, *how)
    return [OPERATORS.dequantize_per_tensor.default(integers, *how) for _ in range(readers)]


class TrainedConv(nn.Module):
    """A convolution whose weights are integers; 120 of 127 steps, so that no rule gives those."""

    def __init__(self, inputs, outputs, groups=1):
        super().__init__()
        weight = torch.randn(outputs, inputs // groups, 3, 3) / 5
        self.register_buffer("scale", weight.abs().amax((1, 2, 3)) / 120)
        self.register_buffer("zero_point", torch.zeros(outputs, dtype=torch.int64))
        self.register_buffer(
            "weight",
            OPERATORS.quantize_per_channel.default(
                weight, self.scale, self.zero_point, 0, -127, 127, torch.int8
            ),
        )
        self.bias = nn.Parameter(torch.randn(outputs) / 5)
        self.groups = groups

    def forward(self, x):
        weight = OPERATORS.dequantize_per_channel.default(
            self.weight, self.scale, self.zero_point, 0, -127, 127, torch.int8
        )
        return nn.functional.conv2d(x, weight, self.bias, padding=1, groups=self.groups)


class Trained(nn.Module):
    """Two exits; the tensor at the cut is quantized once and read three times."""

    def __init__(self):
        super().__init__()
        self.a, self.b = TrainedConv(3, 8), TrainedConv(8, 8, groups=8)
        self.early, self.last = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        (x,) = fake_quantized(x, INPUT)
        for_head, for_b, for_sum = fake_quantized(self.a(x).relu(), EARLY, readers=3)
        (b,) = fake_quantized(self.b(for_b), CONVOLVED)
        (late,) = fake_quantized((b + for_sum).relu(), LATE)
        return self.early(for_head.mean((2, 3))), self.last(late.mean((2, 3)))


class ReadsItsInputTwice(nn.Module):
    """Both exits read the quantized input, which so crosses as it is."""

    def __init__(self):
        super().__init__()
        self.a, self.b = TrainedConv(3, 8), TrainedConv(11, 8)
        self.early, self.last = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        (x,) = fake_quantized(x, INPUT)
        (a,) = fake_quantized(self.a(x).relu(), EARLY)
        (late,) = fake_quantized(self.b(torch.cat([a, x], 1)).relu(), LATE)
        return self.early(a.mean((2, 3))), self.last(late.mean((2, 3)))
