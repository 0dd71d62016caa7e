"""TFLite segments of small networks, lowered once for all tests, and their files run for real."""

import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from edgekit.backends.tflite_graph import Graph
from edgekit.quiet import quiet
from edgekit.stages import Part


class First(nn.Module):
    """A stem, depthwise, squeeze-excite and a residual addition; two boundaries and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        # Padded with minus infinity, and features may be below zero.
        a = nn.functional.max_pool2d(self.norm(self.stem(x)), 3, stride=2, padding=1)
        b = self.pointwise(self.depthwise(a).relu())
        scale = self.excite(self.squeeze(b.mean((2, 3), keepdim=True)).relu()).sigmoid()
        c = (a + b * scale).relu()
        return a, c, self.head(c.mean((2, 3)))


class Second(nn.Module):
    """Reads one boundary in a concatenation with what is far greater, and in its early head too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.early, self.head = nn.Linear(8, 10), nn.Linear(4, 10)

    def forward(self, a, c):
        d = torch.cat([self.a(a) * 50, c], 1)
        return self.a(c), self.early(c.mean((2, 3))), self.head(self.b(d).relu().mean((2, 3)))


class Tokens(nn.Module):
    """A transformer's block over tokens, under a causal mask."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.before, self.behind = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)
        # Samples whose features are far apart: what a layer normalization is there for.
        with torch.no_grad():
            self.embedding.weight *= torch.logspace(-1, 0.5, 20)[:, None]

    def forward(self, x):
        z = self.embedding(x)
        y = self.before(z)
        mask = torch.full((6, 6), float("-inf")).triu(1)
        z = z + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        z = z + self.down(nn.functional.gelu(self.up(self.behind(z))))
        return z, self.head(z.mean(1))


class Spread(nn.Module):
    """Groups, strides, a transposed convolution and a product of two activations."""

    def __init__(self):
        super().__init__()
        self.groups = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.spread = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.hidden, self.last = nn.Linear(36, 16), nn.Linear(16, 3)

    def forward(self, x):
        rows = self.spread(self.groups(x).relu()).flatten(2)
        return self.last(self.hidden((rows @ rows.transpose(1, 2)).flatten(1)).relu())


@dataclass(frozen=True)
class Lowered:
    """A part, the module that it is of, and inputs that it has samples of, laid out as its file."""

    module: nn.Module
    part: Part
    features: dict[str, np.ndarray]

    def rows(self):
        """The samples one by one, as the file takes them."""
        for row in range(len(next(iter(self.features.values())))):
            yield {name: values[row : row + 1] for name, values in self.features.items()}


@contextlib.contextmanager
def silent():
    """Keep what the tools print, from C++ too, out of the tests' output."""
    streams = [sys.__stdout__.fileno(), sys.__stderr__.fileno()]
    with tempfile.TemporaryFile() as sink, quiet():
        kept = [os.dup(one) for one in streams]
        try:
            for one in streams:
                os.dup2(sink.fileno(), one)
            yield
        finally:
            for one, copy in zip(streams, kept, strict=True):
                os.dup2(copy, one)
                os.close(copy)


def lowered(name, module, features, outputs, logits):
    """The module as a TFLite part; `features` are its inputs by name, feature maps NHWC."""
    module.eval()
    with silent():
        import litert_torch

        given = [torch.from_numpy(values[:1]) for values in features.values()]
        with torch.no_grad():
            results = module(*(_channels_first(one) for one in given))
        results = results if isinstance(results, tuple) else (results,)
        maps = [[place for place, x in enumerate(all) if x.dim() == 4] for all in (given, results)]
        wrapped = litert_torch.to_channel_last_io(module, args=maps[0], outputs=maps[1])
        program = litert_torch.convert(wrapped.eval(), tuple(given)).model_content()
    graph = Graph(bytes(program))
    for ends, names in (
        (graph.signature.inputs, tuple(features)),
        (graph.signature.outputs, outputs),
    ):
        for one in ends:
            one.name = names[int(one.name.decode().rpartition("_")[2])].encode()
    part = Part(
        name, graph.program(), tuple(features), outputs, {exit: exit for exit in logits}, 0, 0
    )
    return Lowered(module, part, features)


def _channels_first(x):
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x


class File:
    """A TFLite file loaded by the engine."""

    def __init__(self, program, rows=1):
        with silent():
            self._interpreter = Interpreter(model_content=program, num_threads=1)
            for one in self._interpreter.get_input_details() if rows > 1 else ():
                self._interpreter.resize_tensor_input(one["index"], [rows, *one["shape"][1:]])
            self._interpreter.allocate_tensors()
        self._run = self._interpreter.get_signature_runner()
        self._dtypes = {name: one["dtype"] for name, one in self._run.get_input_details().items()}

    def __call__(self, **given):
        """What it gives for its rows, by name: integers as they are."""
        return self._run(**{name: x.astype(self._dtypes[name]) for name, x in given.items()})


def in_batches(features):
    """Batches of three rows, as calibration has them."""
    count = len(next(iter(features.values())))

    def batches():
        for start in range(0, count, 3):
            yield {name: values[start : start + 3] for name, values in features.items()}

    return batches


def samples(count, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
