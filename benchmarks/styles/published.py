"""Networks of torchvision and timm, as they are published: nobody meant them to leave early."""

from typing import Any

import torch
from torch import nn

CLASSES = 10


def from_torchvision(name: str, *, classes: int = CLASSES, **arguments: Any) -> nn.Module:
    """The network of that name, with random weights.

    Raises ImportError where torchvision is not installed.
    """
    _import_torchvision()
    from torchvision import models

    net: nn.Module = models.get_model(name, weights=None, num_classes=classes, **arguments)
    return net


def efficientnet(name: str, *, classes: int = CLASSES) -> nn.Module:
    """An EfficientNet in which rounding does not grow, with random weights.

    A strong sample opens random gates, and up to 26 in a row make its features, and their
    rounding, a thousand times as large. So the gates move little; and no block is left out while
    statistics are taken.
    """
    net = from_torchvision(name, classes=classes, stochastic_depth_prob=0.0)
    from torchvision.ops import SqueezeExcitation

    for module in net.modules():
        if isinstance(module, SqueezeExcitation):
            with torch.no_grad():
                module.fc2.weight.mul_(0.1)
    return net


def from_timm(name: str, **arguments: Any) -> nn.Module:
    """The network of that name, with random weights. Raises ImportError where there is no timm."""
    _import_torchvision()  # timm does, too.
    import timm

    net: nn.Module = timm.create_model(name, num_classes=CLASSES, **arguments)
    return net


def _import_torchvision() -> None:
    """Import it beside a torch without CUDA, too.

    A build of torchvision for CUDA does not find its libraries there, and then stumbles over two
    operators of its own, which no classifier calls.
    """
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import torchvision  # noqa: F401


_KEPT: list[Any] = []
"""What a library defines is forgotten with it."""
