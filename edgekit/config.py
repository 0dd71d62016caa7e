"""YAML into strict pydantic models: the part that recipes and targets share."""

import difflib
import inspect
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.errors import RecipeError

__all__ = ["Strict", "apply_overrides", "parse", "read_yaml", "split_overrides"]


class Strict(BaseModel):
    """A model that refuses unknown keys and cannot be changed after it was read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        serialize_by_alias=True,
    )


Model = TypeVar("Model", bound=Strict)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises yaml.constructor.ConstructorError at a key's second place."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice", key.start_mark
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises RecipeError where the file is missing, is not YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not UTF-8 text") from None
    try:
        value = yaml.load(text, _UniqueKeys)  # noqa: S506  (it is a SafeLoader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}: " if place else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise RecipeError(f"{path}: {where}{problem}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected `key: value` lines, found {_kind(value)}")
    return value


def split_overrides(settings: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`key.path=value` settings as (those of the recipe, those of the target).

    Values are YAML, so `0.9`, `[1, 2]` and `null` mean what they mean in a file. Keys that begin
    with `target.` belong to the target, without that word.
    """
    recipe: dict[str, Any] = {}
    target: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {setting}: expected key.path=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"--set {setting}: the value is not valid YAML") from None
        if key.startswith("target."):
            target[key.removeprefix("target.")] = value
        else:
            recipe[key] = value
    return recipe, target


def apply_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of `values` in which each dotted key of `overrides` has its new value."""
    result = dict(values)
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        place = result
        for parent in parents:
            child = place.get(parent)
            if child is not None and not isinstance(child, dict):
                raise RecipeError(f"--set {dotted}: {parent!r} holds a value, not further keys")
            place[parent] = place = dict(child or {})
        place[last] = value
    return result


def parse(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """`values` as a `model`. Raises RecipeError that names the key, and the nearest right one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = list(dict.fromkeys(_describe(model, dict(one)) for one in error.errors()))
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise RecipeError(f"{source}: {'; '.join(problems[:3])}{more}") from None


def _describe(model: type[BaseModel], problem: dict[str, Any]) -> str:
    # Pydantic names the branch of a union as well; those are types, and no keys of the user's.
    location = [str(one) for one in problem["loc"] if str(one).isidentifier() or type(one) is int]
    location = [one for one in location if one not in {"int", "float", "str", "dict", "tuple"}]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        names = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that the model takes at a place, for the hint beside an unknown one."""
    for part in location:
        field = _keys(model).get(part)
        inner = _models_in(field.annotation) if field else []
        if inner:
            model = inner[0]
    return list(_keys(model))


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    """The model's fields, by what they are called in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in _models_in(part)]


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
