"""How one setting of a network that holds several is applied to it."""

import operator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import ModelError, RecipeError, describe_failure
from edgekit.models.load import call_with
from edgekit.recipe import Setting

__all__ = ["applied"]


def applied(setting: Setting, network: nn.Module, folder: Path) -> nn.Module:
    """The network with the setting applied: itself, or what the user's own call returned.

    To be called inside `user_code`, with a network that nobody else uses. Raises RecipeError where
    the network has no such attribute or method, ModelError where its own code fails or refuses.
    """
    if setting.set is None:
        return network
    value = setting.value
    if setting.set.attribute is not None:
        _set_everywhere(network, setting.set.attribute, value)
        return network
    if setting.set.call is not None:
        given = call_with(setting.set.call, (network, value), folder)
    else:
        assert setting.set.method is not None  # noqa: S101  (the recipe has one of the three)
        given = _call_method(network, setting.set.method, value)
    return given if isinstance(given, nn.Module) else network


def _set_everywhere(network: nn.Module, attribute: str, value: Any) -> None:
    owners = {
        name: one
        for name, one in network.named_modules(remove_duplicate=True)
        if hasattr(one, attribute)
    }
    if not owners:
        raise RecipeError(
            f"no module of the network has an attribute {attribute!r}; name the one that its "
            "layers read, or give set.method or set.call"
        )
    for name, one in owners.items():
        held = getattr(one, attribute)
        if isinstance(held, nn.Module | torch.Tensor):
            raise RecipeError(
                f"{attribute!r} of {name or 'the network'} is a {type(held).__name__}, no setting; "
                "give set.method or set.call"
            )
        try:
            setattr(one, attribute, _as_held(value, held))
        except Exception as error:
            raise ModelError(
                f"{attribute} of {name or 'the network'} cannot be {value!r}: "
                f"{describe_failure(error)}"
            ) from error


def _as_held(value: Any, held: Any) -> Any:
    """The value in the type that the network holds: `1` for `1.0`, a list for a tuple."""
    if isinstance(held, float) and type(value) is int:
        return float(value)
    if isinstance(held, tuple) and isinstance(value, list):
        return tuple(value)
    return value


def _call_method(network: nn.Module, name: str, value: Any) -> Any:
    try:
        method = operator.attrgetter(name)(network)
    except AttributeError:
        raise RecipeError(f"the network has no method {name!r}; give set.call") from None
    try:
        return method(value)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name}({value!r}) failed: {describe_failure(error)}") from error
