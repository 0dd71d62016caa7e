"""Small multi-exit networks, each written in another style: `STYLES` lists them.

Weights are random, from a fixed seed. The nets are written as their authors would, and know nothing
of who cuts them: activations in place, exits in dicts, lists, generators and hooks, features whose
batch is not in front.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from data import Shapes, fixed, waves
from published import CLASSES, efficientnet, from_timm, from_torchvision
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Style:
    """A network's class, what one sample of its input looks like, and its exits by depth.

    `shape` is by name where there are several inputs, and has a range where a size varies; with
    `rows` the input is whole numbers below that. `exits` are as in a recipe, `recipe` has what that
    says besides, by dotted key. `needs` names the package that the network is out of.
    """

    network: Callable[..., nn.Module]
    shape: Shapes
    exits: tuple[str | Mapping[str, Any], ...] = ("exit1", "exit2", "final")
    rows: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None


def build(style: str, shape: Shapes | None = None, classes: int | None = None) -> nn.Module:
    """The network of that style, in eval mode, with random weights from a fixed seed.

    With `shape` and `classes` a published one is for pictures and classes other than the page's.

    As training would, it brings every normalisation to what its layer sees, and every head to
    logits of a like size: else no exit is surer of one sample than of another, and in a deep
    network rounding grows from layer to layer.
    """
    torch.manual_seed(0)
    chosen = STYLES[style]
    shape = chosen.shape if shape is None else shape
    net = chosen.network() if classes is None else chosen.network(classes=classes)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # The mean over all batches.
    net.train()
    samples = waves(shape if isinstance(shape, Mapping) else fixed(shape), 64, 0, chosen.rows)
    with torch.no_grad():
        if isinstance(samples, dict):
            logits = net(**{name: torch.from_numpy(one) for name, one in samples.items()})
        else:
            logits = net(torch.from_numpy(samples))
        if isinstance(logits, Iterator):
            list(logits)  # Nothing of it has run yet.
    return net.eval()


def conv(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A 3x3 convolution, normalised, with a ReLU in place."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def head(inputs: int) -> nn.Sequential:
    """A pooled linear classifier over [batch, inputs, h, w], with logits of unlike sizes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classifier(inputs))


def classifier(inputs: int) -> tuple[nn.Module, nn.Module]:
    """A linear classifier over [batch, inputs], on features that are normalised first."""
    linear = nn.Linear(inputs, CLASSES)
    nn.init.normal_(linear.weight, std=2 / math.sqrt(inputs))
    return nn.BatchNorm1d(inputs), linear


class TapBeforeActivation(nn.Module):
    """Exits read a convolution's output; the backbone goes on behind its activation, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, s, padding=1), nn.BatchNorm2d(b))
            for a, b, s in ((3, 24, 1), (24, 48, 2), (48, 64, 2))
        )
        self.heads = nn.ModuleList(head(width) for width in (24, 48, 64))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        logits = []
        for layer, exit in zip(self.convs, self.heads, strict=True):
            x = layer(x)
            logits.append(exit(x))
            x = self.relu(x)
        return logits


class MultiScaleDense(nn.Module):
    """Features of three scales at every depth, each from all before it (MSDNet, arXiv 1703.09844).

    All scales, and at the finer ones all earlier depths, are read behind the next cut.
    """

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        widths = [16, 24, 32]
        self.stem = nn.ModuleList(
            [conv(3, widths[0]), conv(widths[0], widths[1], 2), conv(widths[1], widths[2], 2)]
        )
        self.same, self.down, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            self.same.append(nn.ModuleList(conv(width, growth) for width in widths))
            self.down.append(nn.ModuleList(conv(width, growth, 2) for width in widths[:2]))
            widths = [widths[0] + growth, widths[1] + 2 * growth, widths[2] + 2 * growth]
            self.heads.append(head(widths[-1]))

    def forward(self, x: Tensor) -> list[Tensor]:
        scales, logits = [], []
        for layer in self.stem:
            x = layer(x)
            scales.append(x)
        for same, down, exit in zip(self.same, self.down, self.heads, strict=True):
            new = [
                [features, layer(features)] for features, layer in zip(scales, same, strict=True)
            ]
            for number, layer in enumerate(down):
                new[number + 1].append(layer(scales[number]))
            scales = [torch.cat(one, dim=1) for one in new]
            logits.append(exit(scales[-1]))
        return logits


class SkipsASegment(nn.Module):
    """The first segment's features come back in the third, and not in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 32), conv(32, 32), conv(32, 32)
        self.heads = nn.ModuleList(head(32) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.a(x)
        b = self.b(a)
        c = self.c(b) + a
        first, second, third = self.heads
        return first(a), second(b), third(c)


class ExitsFeedLaterExits(nn.Module):
    """Every exit also reads the logits of the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(a, b, 2) for a, b in ((3, 24), (24, 32), (32, 48)))
        self.norms = nn.ModuleList(
            nn.Sequential(*classifier(width)) for width in (24, 32 + CLASSES, 48 + CLASSES)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        logits: list[Tensor] = []
        for block, exit in zip(self.blocks, self.norms, strict=True):
            x = block(x)
            logits.append(exit(torch.cat([x.mean((2, 3)), *logits[-1:]], dim=1)))
        return logits


class SharedHead(nn.Module):
    """One block and one head, with one set of weights, used again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = conv(3, 32, 2), conv(32, 32), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits = []
        for _ in range(3):
            x = x + self.block(x)
            logits.append(self.head(x))
        return torch.stack(logits)


class ExitBlock(nn.Module):
    """A block that keeps its exit's logits on itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body, self.exit = conv(inputs, outputs, 2), head(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        self.logits = self.exit(x)
        return x


class CachedOnModules(nn.Module):
    """Blocks keep their exits' logits on themselves; the net collects them at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ExitBlock(3, 24), ExitBlock(24, 32), ExitBlock(32, 48))

    def forward(self, x: Tensor) -> list[Tensor]:
        self.blocks(x)
        return [block.logits for block in self.blocks]


class CollectedByHooks(nn.Module):
    """Forward hooks on a plain backbone's blocks hand their features to the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 24, 2), conv(24, 32, 2), conv(32, 48, 2))
        self.heads = nn.ModuleList(head(width) for width in (24, 32, 48))
        self.collected: list[Tensor] = []
        for block, exit in zip(self.backbone, self.heads, strict=True):
            block.register_forward_hook(
                lambda _, __, features, exit=exit: self.collected.append(exit(features))
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        self.collected.clear()
        self.backbone(x)
        return list(self.collected)


class CollectsFromAGenerator(nn.Module):
    """A generator yields one exit after the other, so that a caller may stop; forward takes all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(a, b, 2) for a, b in ((3, 24), (24, 32), (32, 48)))
        self.heads = nn.ModuleList(head(width) for width in (24, 32, 48))

    def exits(self, x: Tensor) -> Iterator[Tensor]:
        for block, exit in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            yield exit(x)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.exits(x))


class IsAGenerator(CollectsFromAGenerator):
    """As before, and forward is the generator itself."""

    def forward(self, x: Tensor) -> Iterator[Tensor]:  # type: ignore[override]
        yield from self.exits(x)


class DictOfExits(nn.Module):
    """Exits by name, filled from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 24, 2), conv(24, 32, 2), conv(32, 48, 2)
        self.heads = nn.ModuleDict({"early": head(24), "middle": head(32), "late": head(48)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.a(x)
        b = self.b(a)
        features = {"late": self.c(b), "middle": b, "early": a}
        return {name: self.heads[name](one) for name, one in features.items()}


class ResizeAndConcat(nn.Module):
    """An encoder and a decoder: deep features come back up and meet the shallow ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 24), conv(24, 32, 2), conv(32, 48, 2)
        self.up, self.out = conv(48 + 32, 32), conv(32 + 24, 24)
        self.heads = nn.ModuleList(head(width) for width in (48, 32, 24))

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.a(x)
        b = self.b(a)
        c = self.c(b)
        c_up = functional.interpolate(c, size=b.shape[2:], mode="bilinear", align_corners=False)
        up = self.up(torch.cat([c_up, b], dim=1))
        out = self.out(torch.cat([functional.interpolate(up, scale_factor=2), a], dim=1))
        return [exit(one) for exit, one in zip(self.heads, (c, up, out), strict=True)]


class SegmentationMaps(nn.Module):
    """An encoder whose exits each give a map [batch, classes, h, w] of the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 24, 2), conv(24, 48), conv(48, 64, 2)])
        self.maps = nn.ModuleList(nn.Conv2d(width, CLASSES, 1) for width in (24, 48, 64))

    def forward(self, x: Tensor) -> list[Tensor]:
        size, found = x.shape[2:], []
        for stage, to_map in zip(self.stages, self.maps, strict=True):
            x = stage(x)
            found.append(functional.interpolate(to_map(x), size=size, mode="bilinear"))
        return found


class MeanOfLargest(nn.Module):
    """How sure a map is: the mean over its pixels of the largest probability."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map logits [batch, classes, height, width] to confidences [batch]."""
        return maps.softmax(dim=1).amax(dim=1).mean(dim=(1, 2))


class MBConv(nn.Module):
    """An inverted bottleneck: depthwise convolution, squeeze-excite and SiLU (EfficientNet)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        width = inputs * expand
        self.widen = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(inplace=True),
        )
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, inputs // 4, 1),
            nn.SiLU(inplace=True),
            nn.Conv2d(inputs // 4, width, 1),
            nn.Sigmoid(),
        )
        self.narrow = nn.Sequential(
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.widen(x))
        y = self.narrow(y * self.excite(y))
        return x + y if self.residual else y


class MBConvNet(nn.Module):
    """Inverted bottlenecks in three stages, an exit behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(MBConv(a, b, 2), MBConv(b, b, 1))
            for a, b in ((16, 24), (24, 32), (32, 48))
        )
        self.heads = nn.ModuleList(head(width) for width in (24, 32, 48))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        logits = []
        for stage, exit in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            logits.append(exit(x))
        return logits


class VisionTransformer(nn.Module):
    """A Vision Transformer with an exit over the class token behind every second block."""

    def __init__(self, width: int = 48, *, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width) * 0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, 0.0, "gelu", batch_first=batch_first, norm_first=True
            )
            for _ in range(6)
        )
        self.heads = nn.ModuleList(nn.Sequential(*classifier(width)) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        if not self.batch_first:
            x = x.transpose(0, 1)
        logits = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number % 2:
                token = x[:, 0] if self.batch_first else x[0]
                logits.append(self.heads[number // 2](token))
        return logits


def sequence_first_transformer() -> nn.Module:
    """The same with its features as [tokens, batch, width], as PyTorch's default is."""
    return VisionTransformer(batch_first=False)


class WindowAttention(nn.Module):
    """Attention within windows of 4x4, which are folded into the batch (Swin, arXiv 2103.14030)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.heads = nn.ModuleList(nn.Sequential(*classifier(width)) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patches(x)
        batch, width, height, _ = x.shape
        cells = x.unfold(2, 4, 4).unfold(3, 4, 4)  # [batch, width, rows, columns, 4, 4]
        windows = cells.permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, width)
        logits = []
        for norm, qkv, out, exit in zip(self.norms, self.qkv, self.out, self.heads, strict=True):
            q, k, v = qkv(norm(windows)).reshape(-1, 16, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v)
            windows = windows + out(mixed.transpose(1, 2).reshape(-1, 16, width))
            logits.append(exit(windows.view(batch, (height // 4) ** 2 * 16, width).mean(1)))
        return logits


class FramesFoldedIntoTheBatch(nn.Module):
    """A clip whose frames go through 2-D convolutions as [batch * frames, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(a, b, 2) for a, b in ((1, 24), (24, 32), (32, 48)))
        self.heads = nn.ModuleList(nn.Sequential(*classifier(width)) for width in (24, 32, 48))

    def forward(self, clip: Tensor) -> list[Tensor]:
        frames = clip.shape[1]
        x = clip.flatten(0, 1).unsqueeze(1)
        logits = []
        for block, exit in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits.append(exit(x.mean((2, 3)).unflatten(0, (-1, frames)).mean(1)))
        return logits


class AudioConvolutions(nn.Module):
    """1-D convolutions along the time of an audio spectrum's frames."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(a, b, 5, 2, padding=2, bias=False), nn.BatchNorm1d(b), nn.ReLU(True)
            )
            for a, b in ((40, 48), (48, 64), (64, 64))
        )
        self.heads = nn.ModuleList(nn.Sequential(*classifier(width)) for width in (48, 64, 64))

    def forward(self, x: Tensor) -> list[Tensor]:
        logits = []
        for block, exit in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits.append(exit(x.mean(-1)))
        return logits


class LSTMLayers(nn.Module):
    """An LSTM layer before each exit, with features [time, batch, width], PyTorch's default."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(inputs, 48) for inputs in (20, 48, 48))
        self.heads = nn.ModuleList(nn.Sequential(*classifier(48)) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.transpose(0, 1)
        logits = []
        for layer, exit in zip(self.layers, self.heads, strict=True):
            x, (hidden, _) = layer(x)
            logits.append(exit(hidden[-1]))
        return logits


class GRULayers(nn.Module):
    """A bidirectional GRU layer before each exit, which hands its last state to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.GRU(inputs, 24, batch_first=True, bidirectional=True) for inputs in (20, 48, 48)
        )
        self.heads = nn.ModuleList(nn.Sequential(*classifier(48)) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        logits, state = [], None
        for layer, exit in zip(self.layers, self.heads, strict=True):
            x, state = layer(x, state)
            logits.append(exit(x.mean(1)))
        return logits


class TwoInputs(nn.Module):
    """A picture, and what is known of it besides, which only the deeper exits look at."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(a, b, 2) for a, b in ((3, 24), (24, 32), (32, 48)))
        self.known = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.heads = nn.ModuleList(nn.Sequential(*classifier(width)) for width in (24, 48, 64))

    def forward(self, image: Tensor, known: Tensor) -> list[Tensor]:
        logits = []
        for depth, (block, exit) in enumerate(zip(self.blocks, self.heads, strict=True)):
            image = block(image)
            pooled = image.mean((2, 3))
            logits.append(exit(torch.cat([pooled, self.known(known)], 1) if depth else pooled))
        return logits


class Tokens(nn.Module):
    """Whole numbers through a table and masked attention; 0 is padding, and the exits skip it."""

    def __init__(self, rows: int = 50, width: int = 48) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(12, width) * 0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True) for _ in range(3)
        )
        self.heads = nn.ModuleList(nn.Sequential(*classifier(width)) for _ in range(3))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        padding = tokens == 0
        there = (~padding).to(torch.float32)
        share = (there / there.sum(1, keepdim=True).clamp(min=1)).unsqueeze(-1)
        mask = torch.zeros_like(there).masked_fill(padding, -1e9)[:, None, None]
        mask = mask.expand(-1, 4, 12, 12).reshape(-1, 12, 12)  # One for each of the four heads.
        x = self.table(tokens) + self.places
        logits = []
        for block, exit in zip(self.blocks, self.heads, strict=True):
            x = block(x, src_mask=mask)
            logits.append(exit((x * share).sum(1)))
        return logits


def pooled(name: str, layer: str, **args: Any) -> dict[str, Any]:
    """An exit of that name at a layer: a linear classifier over what the layer gives, pooled."""
    return {"name": name, "head": {"at": layer, "kind": "pool_linear", **HEAD, "args": args}}


def convolved(name: str, layer: str) -> dict[str, Any]:
    """As before, for a layer whose features are not deep enough for a linear classifier."""
    args = {"channels": 32, "hidden": 64}
    return {"name": name, "head": {"at": layer, "kind": "conv_pool_mlp", **HEAD, "args": args}}


HEAD = {"untrained": True}
PICTURE, CLIP, SPECTRUM, SEQUENCE = (3, 16, 16), (4, 16, 16), (40, 64), (16, 20)
PHOTO = (3, 64, 64)

STYLES = {
    "tap-before-activation": Style(TapBeforeActivation, PICTURE),
    "multi-scale-dense": Style(MultiScaleDense, PICTURE),
    "skips-a-segment": Style(SkipsASegment, PICTURE),
    "exits-feed-later-exits": Style(ExitsFeedLaterExits, PICTURE),
    "shared-head": Style(SharedHead, PICTURE),
    "cached-on-modules": Style(CachedOnModules, PICTURE),
    "collected-by-hooks": Style(CollectedByHooks, PICTURE),
    "collects-from-a-generator": Style(CollectsFromAGenerator, PICTURE),
    "is-a-generator": Style(IsAGenerator, PICTURE),
    "dict-of-exits": Style(DictOfExits, PICTURE, ("early", "middle", "late")),
    "resize-and-concat": Style(ResizeAndConcat, PICTURE),
    "variable-size": Style(ResizeAndConcat, (3, (16, 32, 4), (16, 32, 4))),
    "segmentation-maps": Style(
        SegmentationMaps,
        PICTURE,
        recipe={
            "policy.criterion": "given",
            "policy.confidence.factory": "model.py:MeanOfLargest",
        },
    ),
    "mbconv": Style(MBConvNet, PICTURE),
    "vision-transformer": Style(VisionTransformer, PICTURE),
    "transformer-sequence-first": Style(sequence_first_transformer, PICTURE),
    "window-attention": Style(WindowAttention, PICTURE),
    "frames-in-the-batch": Style(FramesFoldedIntoTheBatch, CLIP),
    "audio-convolutions": Style(AudioConvolutions, SPECTRUM),
    "lstm-layers": Style(LSTMLayers, SEQUENCE),
    "gru-layers": Style(GRULayers, SEQUENCE),
    "two-inputs": Style(TwoInputs, {"image": PICTURE, "known": (6,)}),
    "tokens": Style(Tokens, (12,), rows=50),
    "torchvision-resnet18": Style(
        partial(from_torchvision, "resnet18"),
        PHOTO,
        (
            convolved("exit1", "layer1"),
            pooled("exit2", "layer2"),
            pooled("exit3", "layer3"),
            "final",
        ),
        needs="torchvision",
    ),
    "torchvision-mobilenet-v2": Style(
        partial(from_torchvision, "mobilenet_v2"),
        PHOTO,
        (pooled("exit1", "features.6"), pooled("exit2", "features.13"), "final"),
        needs="torchvision",
    ),
    "torchvision-efficientnet-b0": Style(
        partial(efficientnet, "efficientnet_b0"),
        PHOTO,
        (pooled("exit1", "features.3"), pooled("exit2", "features.5"), "final"),
        needs="torchvision",
    ),
    "torchvision-efficientnet-b1": Style(
        partial(efficientnet, "efficientnet_b1"),
        PHOTO,
        (pooled("exit1", "features.3"), pooled("exit2", "features.5"), "final"),
        needs="torchvision",
    ),
    "torchvision-efficientnet-b3": Style(
        partial(efficientnet, "efficientnet_b3"),
        PHOTO,
        (pooled("exit1", "features.3"), pooled("exit2", "features.5"), "final"),
        needs="torchvision",
    ),
    "timm-vit-tiny": Style(
        partial(from_timm, "vit_tiny_patch16_224", img_size=64),
        PHOTO,
        (pooled("exit1", "blocks.3", tokens="class"), pooled("exit2", "blocks.7"), "final"),
        needs="timm",
    ),
}
