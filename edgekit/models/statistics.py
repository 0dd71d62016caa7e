"""BatchNorm's statistics where one network has several settings: each needs its own.

A width that reads what another width's features left behind is wrong by tens of points, and nothing
but its accuracy says so.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from edgekit.data import Split
from edgekit.errors import ModelError
from edgekit.models.exits import eager_logits, to_numpy
from edgekit.recipe import Recalibrate
from edgekit.runtime.preprocess import Inputs, Sample
from edgekit.stages import Network

__all__ = ["Layer", "own_statistics", "statistics_read", "take_anew"]

_BATCH = 32
"""Samples of a batch that statistics are taken from."""

_SHOWN = 3

Layer = dict[str, Any]
"""What is known of a layer's statistics, as plain data.

`channels` that are read of those that it `holds`; how many batches it `tracked` (None where it does
not say); `sha256` of mean and variance as read; the `mean` and the `std` of what it normalizes.
"""


def own_statistics(
    how: Recalibrate | None, network: Network, splits: Mapping[str, Split], inputs: Inputs
) -> dict[str, Any]:
    """See to it that the network reads statistics of its own, as the recipe says; notes on that.

    `layers` has a `Layer` by name for all whose statistics are as they were loaded. Where some were
    taken anew: how many are `recalibrated`, from how many `batches`, and where the data has labels
    every exit's `accuracy_before` and `accuracy_after`. Raises ModelError where a layer has none of
    its own and the recipe does not say what to do.
    """
    sample = to_numpy(network.sample)
    layers = statistics_read(
        network.module,
        lambda: eager_logits(network.module, sample),
        all_known=how is None or how.when != "never",
    )
    lacking = {name: why for name, one in layers.items() if (why := _lacks(one))}
    if how is None and lacking:
        raise ModelError(f"{_named(lacking)}; {_REMEDY}")
    when = how.when if how is not None else "never"
    chosen = {"never": [], "missing": [*lacking], "always": [*layers]}[when]
    if how is None or not chosen:
        return {"layers": layers}
    before = _accuracies(network, splits, inputs)
    calibration = splits["calibration"]
    order = np.random.default_rng(0).permutation(len(calibration))[: how.batches * _BATCH]
    batches = list(calibration.of(order).batches(inputs, size=_BATCH))
    # A batch of a few would count for as much as any other.
    full = [one for one in batches if _rows(one) == _rows(batches[0])]
    runs = (partial(eager_logits, network.module, one) for one in full)
    count = take_anew(network.module, chosen, runs)
    notes = {
        "layers": {name: one for name, one in layers.items() if name not in chosen},
        "recalibrated": len(chosen),
        "batches": count,
    }
    if before is not None:
        notes |= {
            "accuracy_before": before,
            "accuracy_after": _accuracies(network, splits, inputs),
        }
    return notes


_REMEDY = (
    "say recalibrate: {when: missing} to take them from data.calibration, or {when: never} to "
    "take them as they are"
)


def statistics_read(
    network: nn.Module, run: Callable[[], object], *, all_known: bool = False
) -> dict[str, Layer]:
    """The layers whose BatchNorm statistics `run`, a call of the network, reads, by name.

    With `all_known`, raises ModelError where some lie in no buffer of the network's: a copy, such
    as channels picked by an index, does not tell whose they are.
    """
    found: dict[str, Layer] = {}

    def note(owner: str | None, given: dict[str, Any]) -> dict[str, Any]:
        if owner is None:
            if all_known:
                raise ModelError(
                    f"BatchNorm takes {len(given['running_mean'])} statistics that are computed, "
                    "or lie in no buffer, so whose they are is not to be seen; read a slice of a "
                    "layer's, or say recalibrate: {when: never} to take them as they are"
                )
            return given
        layer, mean, x = network.get_submodule(owner), given["running_mean"], given["input"]
        tracked = getattr(layer, "num_batches_tracked", None)
        content = torch.cat([mean, given["running_var"]]).numpy().tobytes()
        found[owner] = {
            "channels": len(mean),
            "holds": max(len(one) for one in layer.buffers(recurse=False) if one.dim() == 1),
            "tracked": None if tracked is None else int(tracked),
            "sha256": hashlib.sha256(content).hexdigest(),
            "mean": float(x.mean()),
            "std": float(x.std()),
        }
        return given

    with _Watch(network, note), torch.no_grad():
        run()
    return found


def take_anew(
    network: nn.Module, names: Iterable[str], batches: Iterable[Callable[[], object]]
) -> int:
    """Take the statistics of these BatchNorm layers anew, as the mean over all batches.

    Each of `batches` calls the network with one. Everything else stays in eval(): dropout is off,
    and other layers' statistics are as they were. Returns the number of batches. Raises ModelError
    where a batch has no variance, or is not finite.

    The mean is the cumulative average that `momentum=None` stands for (Yu and Huang, arXiv
    1903.05134, section 3.4).
    """
    chosen = frozenset(names)
    # A layer may be called several times a batch: each counts, as in PyTorch.
    seen = dict.fromkeys(chosen, 0)
    count = 0

    def track(owner: str | None, given: dict[str, Any]) -> dict[str, Any]:
        if owner is None or owner not in chosen:
            return given
        x = given["input"]
        if x.numel() == x.shape[1]:
            raise ModelError(
                f"BatchNorm {owner} gets one value per channel of a batch, which has no variance; "
                "give data.calibration more samples"
            )
        seen[owner] += 1
        # At the first call this is 1: what was there before is gone.
        return {**given, "training": True, "momentum": 1 / seen[owner]}

    with _Watch(network, track), torch.no_grad():
        for run in batches:
            count += 1
            run()
    for name in chosen:
        layer = network.get_submodule(name)
        if getattr(layer, "num_batches_tracked", None) is not None:
            layer.num_batches_tracked.fill_(seen[name])
        if not all(bool(one.isfinite().all()) for one in layer.buffers(recurse=False)):
            raise ModelError(
                f"BatchNorm {name} gets NaN or infinite features of the calibration split; look at "
                "the checkpoint and at the recipe's preprocessing"
            )
    return count


def _lacks(layer: Layer) -> str | None:
    """Why the statistics are not of this setting's own; None if nothing says so."""
    if layer["channels"] < layer["holds"]:
        return f"{layer['channels']} of its {layer['holds']} channels are read"
    return "it has tracked no batch" if layer["tracked"] == 0 else None


def _named(lacking: Mapping[str, str]) -> str:
    some = list(lacking.items())[:_SHOWN]
    named = [f"{name.removeprefix('model.')} ({why})" for name, why in some]
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    return f"BatchNorm has no statistics of this setting's own: {', '.join(named)}{more}"


def _accuracies(
    network: Network, splits: Mapping[str, Split], inputs: Inputs
) -> dict[str, float] | None:
    """Every exit's accuracy on the tuning split, else the test split; None without labels."""
    split = next((splits[name] for name in ("tuning", "test") if name in splits), None)
    if split is None or split.labels is None:
        return None
    exits: list[list[Any]] = [[] for _ in network.exits]
    for batch in split.batches(inputs):
        for found, logits in zip(exits, eager_logits(network.module, batch), strict=False):
            if logits.ndim != 2:
                return None
            found.append(logits.argmax(axis=1))
    return {
        name: float(np.mean(np.concatenate(found) == split.labels))
        for name, found in zip(network.exits, exits, strict=True)
    }


def _rows(batch: Sample) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)


class _Watch(TorchFunctionMode):
    """Inside, sees every BatchNorm, however it is written, and whose statistics it takes.

    `on_read(owner, arguments)` returns the arguments to go on with; they go by the names that
    `torch.nn.functional.batch_norm` has for them. The owner is None where no buffer holds them.
    """

    def __init__(
        self, network: nn.Module, on_read: Callable[[str | None, dict[str, Any]], dict[str, Any]]
    ) -> None:
        super().__init__()
        self._on_read = on_read
        # A layer may take a slice of them: that lies in the same storage.
        self._owners = {
            _storage(buffer): name.rpartition(".")[0]
            for name, buffer in network.named_buffers()
            if buffer.dim() == 1
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        names = _ARGUMENTS.get(func)
        if names is None:
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        mean = given.get("running_mean")
        if mean is None:
            return func(**given)  # Of the batch itself.
        return func(**self._on_read(self._owners.get(_storage(mean)), given))


_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    nn.functional.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var"),
        *("training", "momentum", "eps", "cudnn_enabled"),
    ),
}
"""The functions that every BatchNorm comes to, and their arguments' names in order."""


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
