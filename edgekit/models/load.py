"""Loads what the user wrote: Python factories and checkpoints. The host side runs user code here,
and only here; it leaves no trace in the interpreter.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, RecipeError, describe_failure
from edgekit.models.reads import sources

if TYPE_CHECKING:
    import torch

    from edgekit.recipe import Recipe

__all__ = [
    "call_factory",
    "call_with",
    "load_checkpoint",
    "load_model",
    "load_weights",
    "reads_at_import",
    "set_up",
    "user_code",
    "way_out",
]


@contextmanager
def user_code(folder: Path, *, anew: bool = False) -> Iterator[None]:
    """Inside, modules in `folder` can be imported; after, nothing of it remains.

    `sys.path`, `sys.argv`, the environment and the working directory are as before, and modules
    that were imported from `folder` are forgotten, so that two recipes may both have a `model.py`.
    With `anew` that holds for all source files that belong to no installed package, wherever they
    lie, and what was imported of them before is imported once more inside: what a module reads when
    it is imported may be another setting now.
    """
    folder = folder.resolve()
    path, argv, environment, working = sys.path[:], sys.argv[:], dict(os.environ), _cwd()
    modules = dict(sys.modules)
    if anew:
        for name in sources():
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:], sys.argv[:] = path, argv
        # Only what changed: every assignment to the environment is a call into the C library.
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if working is not None:
            os.chdir(working)
        if anew:
            for name in sources():
                del sys.modules[name]
            sys.modules.update(
                {name: one for name, one in modules.items() if name not in sys.modules}
            )
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if modules.get(name) is not module and file and folder in Path(file).resolve().parents:
                del sys.modules[name]
                if name in modules:
                    sys.modules[name] = modules[name]


def call_factory(reference: str, arguments: dict[str, Any], folder: Path) -> Any:
    """What the factory `file.py:function` or `package.module:function` returns.

    A file is relative to `folder`, the recipe's. To be called inside `user_code`. Raises
    RecipeError where there is no such file, module or function, ModelError where the factory
    itself fails, with the place in the user's code.
    """
    return _called(reference, functools.partial(_resolve(reference, folder), **arguments))


def call_with(reference: str, arguments: tuple[Any, ...], folder: Path) -> Any:
    """As `call_factory`, with arguments by their place."""
    return _called(reference, functools.partial(_resolve(reference, folder), *arguments))


def _called(reference: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{reference} failed: {describe_failure(error)}{way_out(error)}"
        ) from error


def set_up(recipe: "Recipe") -> None:
    """Call the recipe's `model.setup`, if it has one, before anything else of the user's.

    Then the set-up of its setting, with the value. To be called inside `user_code`. Raises what
    `call_factory` raises.
    """
    if recipe.model.setup is not None:
        call_factory(recipe.model.setup, {}, recipe.folder)
    setting = recipe.model.setting
    if setting is not None and setting.setup is not None:
        call_with(setting.setup, (setting.value,), recipe.folder)


def reads_at_import(recipe: "Recipe") -> bool:
    """Whether the recipe's setting is read when modules are imported: see `user_code`."""
    return recipe.model.setting is not None and recipe.model.setting.setup is not None


def way_out(error: BaseException) -> str:
    """What to do about a model that wants a GPU where torch has none."""
    import torch

    if "cuda" not in str(error).lower() or torch.cuda.is_available():
        return ""
    return "; there is no CUDA here: build it on the CPU, by model.args or map_location='cpu'"


def _cwd() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None  # It was deleted under us; there is nothing to come back to.


def load_checkpoint(path: Path) -> "dict[str, torch.Tensor]":
    """The state dict in a safetensors file, or in a PyTorch file read with `weights_only=True`.

    In a PyTorch file it may also lie under `state_dict` or `model`, as trainers write it. Raises
    RecipeError where the file is missing, is neither, or is no plain state dict.
    """
    import torch

    if not path.is_file():
        raise RecipeError(f"checkpoint {path}: there is no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise RecipeError(f"checkpoint {path}: is not safetensors: {error}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # An unpickler's errors are of every kind, all mean the same here, and some advise the user
        # to read the file unsafely.
        raise RecipeError(
            f"checkpoint {path}: is no plain state dict ({type(error).__name__}); save "
            "model.state_dict() alone, best as safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise RecipeError(f"checkpoint {path}: holds no state dict; save model.state_dict()")
    return content


def load_model(recipe: "Recipe") -> "torch.nn.Module":
    """The recipe's model with its checkpoint, in eval mode. To be called inside `user_code`.

    Raises ModelError where the factory fails or returns no nn.Module, RecipeError where the
    checkpoint does not fit, naming the first keys that differ.
    """
    import torch

    model = call_factory(recipe.model.factory, recipe.model.args, recipe.folder)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{recipe.model.factory} returned a {type(model).__name__}, no nn.Module")
    if recipe.model.checkpoint is not None:
        load_weights(model, recipe.folder / recipe.model.checkpoint, recipe.model.prefix)
    if recipe.model.setting is not None:
        from edgekit.models.settings import applied

        model = applied(recipe.model.setting, model, recipe.folder)
    try:
        model.eval()  # What was exported before gives nothing back.
    except NotImplementedError as error:
        raise ModelError(
            f"the model refuses eval() ({error}): of one that was exported, as for quantization, "
            "call torchao.quantization.pt2e.allow_exported_model_train_eval before you return it"
        ) from None
    return model.requires_grad_(False)


def load_weights(module: "torch.nn.Module", path: Path, prefix: str = "") -> None:
    """Give a module the weights in a checkpoint whose names begin with `prefix`, without that.

    Raises RecipeError where they do not fit exactly, naming the first keys that differ.
    """
    state = load_checkpoint(path)
    found = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    if state and not found:
        raise RecipeError(
            f"checkpoint {path}: no weight's name begins with {prefix!r}; the first are "
            f"{', '.join(list(state)[:3])}"
        )
    _check_fits(path, {name: value.shape for name, value in found.items()}, module)
    module.load_state_dict(found)


def _check_fits(path: Path, found: "dict[str, torch.Size]", model: "torch.nn.Module") -> None:
    expected = {name: value.shape for name, value in model.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not the model's" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name])}, the model has {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise RecipeError(
            f"checkpoint {path}: does not fit the model: {'; '.join(problems[:3])}{more}"
        )


def _resolve(reference: str, folder: Path) -> Callable[..., Any]:
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise RecipeError(f"{reference!r}: expected file.py:function or package.module:function")
    try:
        module = _import_file(folder / place) if place.endswith(".py") else _import(place)
    except RecipeError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{place} failed on import: {describe_failure(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise RecipeError(f"{reference!r}: {place} has no function {name!r}")
    return factory


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise RecipeError(f"there is no Python module {name!r}; is it installed?") from None
        raise


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such file")
    # The stem is also the name under which the user's other files import it.
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", "") == str(path):
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101  (a path that ends in .py has one)
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
