"""Networks whose segments are typed for TensorRT, by the stages themselves."""

import dataclasses

import numpy as np
import torch
from torch import nn

from edgekit.backends.tensorrt import TensorRTBackend
from edgekit.bundle.manifest import Policy
from edgekit.check import chain_of, never
from edgekit.data import Split
from edgekit.recipe import load_recipe
from edgekit.runtime import tensorrt_api
from edgekit.runtime.tensorrt_build import Options, build_plan
from edgekit.stages import Segments
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.stages.quantize import Quantize
from edgekit.target import load_target
from tests.stages.test_split import split

BACKEND = TensorRTBackend()
SHAPE = (3, 16, 16)


def silent(text: str) -> None:
    pass


def noise(seed, shape=SHAPE, count=24) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


class Block(nn.Module):
    """Two convolutions beside a shortcut, as a ResNet has them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return (self.second(self.first(x).relu()) + x).relu()


class Residual(nn.Module):
    """The boundary is read by a convolution and by the shortcut beside it."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.heads = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])

    def forward(self, x):
        x = self.pool(self.stem(x).relu())
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits.append(head(x.mean((2, 3))))
        return logits


class Scaled(nn.Module):
    """Depthwise convolution, SiLU and HardSwish, squeeze and excite: EfficientNet's parts."""

    def __init__(self):
        super().__init__()
        self.widen, self.each = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.narrow, self.turn = nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(8, 5)])

    def forward(self, x):
        silu, swish = nn.functional.silu, nn.functional.hardswish
        x = silu(self.each(silu(self.widen(x))))
        early = self.heads[0](x.mean((2, 3)))
        x = x * self.excite(silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = self.turn(swish(self.narrow(x)))
        return early, self.heads[1](x.amax((2, 3)))


class Attention(nn.Module):
    """One head of attention with its shortcut, LayerNorm, and GELU behind it."""

    def __init__(self, width):
        super().__init__()
        self.three, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x, mask):
        queries, keys, values = self.three(x).chunk(3, dim=-1)
        shares = (queries @ keys.transpose(1, 2) / 4 + mask).softmax(dim=-1)
        return self.norm(x + nn.functional.gelu(self.out(shares @ values)))


class Masked(nn.Module):
    """Attention over what a convolution gives, under a causal mask of minus infinity."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.layers = nn.ModuleList([Attention(16), Attention(16)])
        self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])
        self.register_buffer("mask", torch.triu(torch.full((16, 16), float("-inf")), 1))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        logits = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            x = layer(x, self.mask)
            logits.append(head(x.mean(1)))
        return logits


@dataclasses.dataclass
class Typed:
    """A network's segments in float32, and quantized for TensorRT by the stage itself."""

    optimized: Segments[bytes]
    samples: np.ndarray

    @property
    def exits(self):
        return len(self.optimized.exits)

    def quantize(self, precision, opset=20, **options):
        target = load_target("host", {"precision": precision, "opset": opset})
        given = {"calibration": Split("calibration", list(self.samples), None)}
        policy = Policy("max_prob", (0.5,) * (self.exits - 1))
        return Quantize(BACKEND, self._recipe(**options), target, given, policy)(
            self.optimized, silent
        )

    def _recipe(self, **options):
        overrides = {f"quantize.{key}": value for key, value in options.items()}
        shape = list(self.samples.shape[1:])
        return load_recipe("digits", {"input": {"shape": shape}, **overrides})

    def run(self, segments, samples):
        """Every tensor that leaves a segment of the chain, by name."""
        inputs = self._recipe().manifest_inputs(segments.inputs)
        policy = never(segments.chain)
        chain = chain_of(segments, segments.chain, inputs, (), policy, load_target("host"))
        return chain.tensors(samples)


def compile_all(parts, batch_sizes=(1,)):
    """Build each part for a T4, and for the elder of an Orin, which cannot be built for here."""
    tensorrt = tensorrt_api.find([tensorrt_api.RTX])
    for part in parts:
        for capability in ("7.5", "8.6"):
            options = Options(batch_sizes, compute_capability=capability)
            assert build_plan(tensorrt, part.program, part.name, options, step=silent).content


def typed(model, shape=SHAPE, exits=2, samples=None) -> Typed:
    """`model` makes the network; `samples` to calibrate with, noise if there are none."""
    torch.manual_seed(0)
    samples = noise(1, shape) if samples is None else samples
    sample = torch.from_numpy(samples[:2])
    graphs = split(model().eval(), exits, sample)
    lowered = Lower(BACKEND, load_target("host"), sample)(graphs, silent).artifact
    # What passes break is another test's concern.
    optimize = Optimize(BACKEND, lambda segments, name: 0.0, 1e-3)
    return Typed(optimize(lowered, silent).artifact, samples)
