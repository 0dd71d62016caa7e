"""Which of a model's outputs, or of its modules' outputs, are its exits."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgekit.bundle.manifest import GIVEN, ONLY_INPUT
from edgekit.errors import EdgekitError, ModelError, RecipeError, describe_failure
from edgekit.models.heads import make_confidence, make_head
from edgekit.models.load import way_out
from edgekit.models.steer import Question, Replay, Steering
from edgekit.recipe import Confidence, ExitPlace, Recipe
from edgekit.runtime.preprocess import Sample, by_name
from edgekit.stages import Tensors

__all__ = ["Exits", "eager_logits", "find_exits", "to_numpy", "to_torch"]

_MOST_WAYS = 64
"""Ways through a `forward` that are tried; a chain of exits has one more than it has exits."""

_SAME = 1e-4
"""How far logits may differ between two ways to the same module: other kernels round otherwise."""


class Exits(nn.Module):
    """A model whose `forward` returns its exits' logits as a tuple, in the recipe's order.

    Where exits give their own confidence, these stand behind all logits, of as many exits as do.

    An exit with a name alone is an output of the model: it may return a tensor (one exit, or all of
    them stacked as `[exits, batch, classes]`), a list or tuple of tensors, nested or not, a
    generator of them, or a dict of them by the exits' names. What it returns is held against the
    recipe on every call, so an export cannot lose an exit. Other exits are taken by a path, or
    where a module gives them; on the user's model nothing is left of that. `questions` is how
    `forward` is steered.
    """

    def __init__(
        self,
        model: nn.Module,
        exits: Sequence[str | ExitPlace],
        *,
        method: str = "forward",
        arguments: Mapping[str, Any] | None = None,
        given: Sequence[Confidence | None] | None = None,
    ) -> None:
        """`given` says where each exit's confidence comes from, and with it exits may be anything.

        None for the final exit's where it has none; None for all where logits are looked at.
        """
        super().__init__()
        self.model = model
        self.places = [one if isinstance(one, ExitPlace) else ExitPlace(name=one) for one in exits]
        self.names = tuple(place.name for place in self.places)
        self.given = given
        # What the model gives beside its exits is come by as they are.
        self.places += [
            ExitPlace(name=_beside(name), output=one.output, module=one.module, call=one.call)
            for name, one in zip(self.names, given or (), strict=False)
            if one is not None and one.factory is None
        ]
        self.method = method
        self.arguments = dict(arguments or {})
        self.heads = nn.ModuleDict()
        self.judges = nn.ModuleDict()
        self.questions: list[Question] = []

    @property
    def confident(self) -> int:
        """How many exits give their confidence: all, or all but the final one, or none."""
        return sum(one is not None for one in self.given or ())

    def forward(self, x: Tensors) -> tuple[torch.Tensor, ...]:
        """Logits `[batch, classes]` per exit, of one input or several by their names.

        Or whatever the exits give instead, `[batch, ...]`; then the confidences `[batch]`, float32.
        Raises ModelError where they are not the recipe's.
        """
        found = self.found(x)
        batch = next(iter(by_name(x).values())).shape[0]
        for name in self.names:
            output = found[name]
            if self.given is not None:
                fits = output.dim() > 0 and output.shape[0] == batch
                wanted = "what an exit gives is floats [batch, ...]"
            else:
                fits = output.dim() == 2
                wanted = (
                    "an exit's logits are floats [batch, classes]; for anything else say "
                    "policy.criterion: given"
                )
            if not fits or not output.is_floating_point():
                raise ModelError(f"exit {name!r} is {_kind_and_shape(output)}; {wanted}")
        return (*(found[name] for name in self.names), *self._confidences(found, batch))

    def found(self, x: Tensors) -> dict[str, torch.Tensor]:
        """What lies at every place of `places`, by name."""
        with Replay(self.questions) if self.questions else nullcontext(), self.watched() as seen:
            returned = self.call(x)
        return self.outputs(returned, seen)

    def _confidences(self, found: dict[str, torch.Tensor], batch: int) -> Iterator[torch.Tensor]:
        for index, (name, one) in enumerate(zip(self.names, self.given or (), strict=False)):
            if one is None:
                continue
            if one.factory is None:
                value = found[_beside(name)]
            else:
                # A copy: the user's module may work in place on it.
                value = self.judges[str(index)](found[name].clone())
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise ModelError(_no_confidence(name, value))
            if value.dim() == 2 and value.shape[1] == 1:
                value = value.squeeze(1)
            if value.dim() != 1 or value.shape[0] != batch:
                raise ModelError(_no_confidence(name, value))
            yield value.float()

    def call(self, x: Tensors) -> Any:
        """What the model itself returns."""
        # The module, not its forward: a user's own hooks are run then.
        called = self.model if self.method == "forward" else getattr(self.model, self.method)
        if isinstance(x, dict):
            return called(**x, **self.arguments)
        return called(x, **self.arguments)

    @contextmanager
    def watched(self) -> Iterator[list[list[Any]]]:
        """Inside, what the exits' modules give is kept: per exit, one value for each call.

        A head works at once, and logits are copied: the model may go on in place on both.
        """
        seen: list[list[Any]] = [[] for _ in self.places]
        handles = []
        try:
            for index, place in enumerate(self.places):
                if place.hooked is not None:
                    module = self.model.get_submodule(place.hooked)
                    hook = self._hook(index, seen[index])
                    handles.append(module.register_forward_hook(hook))
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def outputs(self, returned: Any, seen: list[list[Any]]) -> dict[str, torch.Tensor]:
        """Every exit's tensor, by name. Raises ModelError where one is missing or left over."""
        found = self.captured(seen)
        for place, calls in zip(self.places, seen, strict=True):
            if place.hooked is not None and place.name not in found:
                raise ModelError(_miscounted(place, len(calls)))
        return found | self.returned(returned)

    def captured(self, seen: list[list[Any]]) -> dict[str, torch.Tensor]:
        """The exits at modules that ran as often as the recipe says."""
        found = {}
        for place, calls in zip(self.places, seen, strict=True):
            wanted = 0 if place.call is None and len(calls) == 1 else place.call
            if place.hooked is not None and wanted is not None and wanted < len(calls):
                found[place.name] = calls[wanted]
        return found

    def returned(self, value: Any) -> dict[str, torch.Tensor]:
        """The exits in what the model returns. Raises ModelError where it returns others."""
        free = [place for place in self.places if place.hooked is None]
        by_path = {
            place.name: _one_tensor(_at(value, place.output), place)
            for place in free
            if place.output is not None
        }
        names = [place.name for place in free if place.output is None]
        if not names:
            return by_path
        if isinstance(value, Mapping):
            # By name, never by order: a dict is often filled from the last exit to the first.
            tops = {place.output.partition(".")[0] for place in free if place.output is not None}
            if set(value) != {*names, *tops}:
                raise ModelError(
                    f"the model returns exits by name: {', '.join(map(str, value))}; the recipe "
                    f"names {', '.join(names)}; use the model's names, in order of depth, or give "
                    "each exit its output: to leave others out"
                )
            value = [value[name] for name in names]
        elif isinstance(value, torch.Tensor) and (
            # A single map may have any number of dimensions.
            value.dim() == 3 if self.given is None else len(names) > 1
        ):
            value = value.unbind(0)
        taken = [id(one) for one in by_path.values()]
        tensors = [one for one in _tensors(value) if id(one) not in taken]
        if len(tensors) != len(names):
            raise ModelError(
                f"the model returns {len(tensors)} outputs in eval(), and the recipe names "
                f"{len(names)} exits ({', '.join(names)}); name as many as it returns, or give "
                "each exit its output: to leave others out"
                + (", or let it return all exits outside train() too" if len(tensors) == 1 else "")
            )
        return by_path | dict(zip(names, tensors, strict=True))

    def _hook(self, index: int, calls: list[Any]) -> Any:
        place = self.places[index]

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            value = _one_tensor(
                output if place.output is None else _at(output, place.output), place
            )
            if str(index) in self.heads:
                calls.append(self.heads[str(index)](value))
            else:
                calls.append(value.clone())

        return keep


def find_exits(recipe: Recipe, model: nn.Module, sample: Tensors) -> Exits:
    """The recipe's exits in the model, with their heads; to be called inside `user_code`.

    `sample` is a batch of real inputs, on which `forward` is run to its end. Where it decides on
    data whether to go on, it is steered there, and it is proven on every sample that no decision
    changes an exit's logits: with each of the answers turned round, and with the model left to
    itself. Raises RecipeError for names that the model has not and heads that do not fit, and
    ModelError where exits are missing or depend on such a decision, with the line of the user's
    code.
    """
    exits = Exits(
        model,
        recipe.places,
        method=recipe.model.method,
        arguments=recipe.model.arguments,
        given=recipe.confidences if recipe.policy.criterion == GIVEN else None,
    ).eval()
    _demand_names(exits)
    way = _whole_way(exits, sample)
    for index, place in enumerate(recipe.places):
        if place.head is not None:
            classes = _classes(recipe, way.logits) if place.head.kind else 0
            shape = way.logits[place.name].shape
            head = make_head(place.name, place.head, shape, classes, recipe.folder)
            exits.heads[str(index)] = head
    for index, one in enumerate(exits.given or ()):
        if one is not None and one.factory is not None:
            exits.judges[str(index)] = make_confidence(exits.names[index], one, recipe.folder)
    if way.decisions:
        exits.questions = way.questions
        _demand_independence(exits, sample)
    if exits.given is not None:
        _demand_one_kind(recipe, eager_logits(exits, to_numpy(sample)))
    return exits


def eager_logits(module: nn.Module, batch: Sample) -> list[npt.NDArray[Any]]:
    """What the model in PyTorch says of a batch: logits float32 `[batch, classes]` per exit.

    Then the confidences `[batch]` of the exits that give theirs; see `Exits`.
    Raises ModelError, with the place in the user's code, where the model fails.
    """
    try:
        with torch.no_grad():
            # A copy: a model may work in place on its input.
            logits = module(to_torch(batch))
    except EdgekitError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(batch, error) from error
    return [one.float().numpy() for one in logits]


def to_torch(batch: Sample) -> Tensors:
    """A batch as tensors of its own, in the form that `Exits` takes."""
    if isinstance(batch, Mapping):
        # By name, so that export and split find the same order whatever the recipe's.
        return {name: torch.from_numpy(np.array(batch[name])) for name in sorted(batch)}
    return torch.from_numpy(np.array(batch))


def to_numpy(batch: Tensors) -> Sample:
    """The reverse of `to_torch`, without a copy."""
    if isinstance(batch, dict):
        return {name: one.numpy() for name, one in batch.items()}
    return batch.numpy()


@dataclass(frozen=True)
class _Way:
    """One way through `forward`: what it asked, and the exits that it came by.

    `calls` is what each exit's module gave, in every call. `error` says why it is not the whole
    way: an exit is missing, or (`failed`) it did not end.
    """

    questions: list[Question]
    logits: dict[str, torch.Tensor]
    calls: list[list[torch.Tensor]]
    error: EdgekitError | None
    failed: bool

    @property
    def decisions(self) -> list[Question]:
        """The questions whose answer was ours."""
        return [one for one in self.questions if one.answer is not None]


def _walk(exits: Exits, x: Tensors, answers: Sequence[bool] | None) -> _Way:
    """Run the model with these answers, or left to itself."""
    # A copy: a model may work in place on its input.
    x = _cloned(x)
    steering = None if answers is None else Steering(answers, list(by_name(x).values()))
    error: EdgekitError | None = None
    returned = None
    with exits.watched() as seen:
        try:
            with torch.no_grad(), steering or nullcontext():
                returned = exits.call(x)
        except EdgekitError as refusal:
            error = refusal
        except (Exception, SystemExit) as failure:
            error = _failed(x, failure)
    failed = error is not None
    logits = exits.captured(seen)
    if not failed:
        try:
            logits = exits.outputs(returned, seen)
        except ModelError as missing:
            error = missing
            with suppress(ModelError):
                logits |= exits.returned(returned)
    return _Way(steering.questions if steering else [], logits, seen, error, failed)


def _whole_way(exits: Exits, x: Tensors) -> _Way:
    """The first way on which every exit is come by, depth first; two directions per decision."""
    stack: list[tuple[bool, ...]] = [()]
    best: _Way | None = None
    for _ in range(_MOST_WAYS):
        if not stack:
            break
        answers = stack.pop()
        way = _walk(exits, x, answers)
        if way.error is None:
            return way
        if best is None or len(way.logits) > len(best.logits):
            best = way
        given = [bool(one.answer) for one in way.decisions]
        stack += [(*given[:index], not given[index]) for index in range(len(answers), len(given))]
    assert best is not None  # noqa: S101  (one way at least was gone)
    assert best.error is not None  # noqa: S101
    if best.decisions:
        places = ", ".join(dict.fromkeys(one.place for one in best.decisions))
        raise ModelError(
            f"{best.error}; forward decides on data ({places}), and no answer there lets it come "
            "by all exits"
        )
    for place in exits.places:
        if not best.failed and place.hooked is not None and place.name not in best.logits:
            raise ModelError(f"{best.error}{_why_silent(exits, place, x)}")
    raise best.error


def _demand_independence(exits: Exits, x: Tensors) -> None:
    """Refuse an exit whose logits depend on what was answered, not only whether it is reached."""
    with torch.no_grad():
        whole = exits.found(_cloned(x))
    decisions = [one for one in exits.questions if one.answer is not None]
    if len(decisions) > _MOST_WAYS:
        raise ModelError(
            f"forward decides on data {len(decisions)} times ({decisions[-1].place}), and "
            f"{_MOST_WAYS} are tried at most; give model.method or model.arguments under which it "
            "decides less often"
        )
    answers = [bool(one.answer) for one in decisions]
    for index, decision in enumerate(decisions):
        other = _walk(exits, x, [*answers[:index], not answers[index], *answers[index + 1 :]])
        _demand_same(exits, whole, other, decision.place)
    for row in range(len(next(iter(by_name(x).values())))):
        one = _cloned(x, slice(row, row + 1))
        with torch.no_grad():
            alone = exits.found(_cloned(one))
        _demand_same(exits, alone, _walk(exits, one, None), decisions[0].place)


def _demand_same(exits: Exits, whole: dict[str, torch.Tensor], other: _Way, place: str) -> None:
    """Hold every exit that another way came by against the whole way's."""
    for exit, calls in zip(exits.places, other.calls, strict=True):
        if exit.hooked is None:
            # It may have left before it returned, by an error of the user's.
            same = other.failed or _alike(whole[exit.name], other.logits.get(exit.name))
            remedy = "name the exit by module: (what is returned differs, the modules may not)"
        else:
            meant = calls if exit.call is None else calls[exit.call : exit.call + 1]
            same = all(_alike(whole[exit.name], one) for one in meant)
            remedy = "a chain computes one of the two, so let both come to the same"
        if not same:
            raise ModelError(
                f"forward decides on data at {place}, and exit {exit.name!r} depends on the "
                f"answer; {remedy}"
            )


def _alike(ours: torch.Tensor, theirs: torch.Tensor | None) -> bool:
    if theirs is None or ours.shape != theirs.shape:
        return False
    scale = float(ours.nan_to_num(posinf=0, neginf=0).abs().max())
    return torch.allclose(ours, theirs, rtol=0, atol=_SAME * scale, equal_nan=True)


def _demand_one_kind(recipe: Recipe, outputs: Sequence[npt.NDArray[Any]]) -> None:
    """Refuse exits of which some give class scores, and labels or a goal for those that give none.

    Vectors are class scores, unless `labels: []` says otherwise.
    """
    shapes = {name: list(one.shape[1:]) for name, one in zip(recipe.exits, outputs, strict=False)}
    maps = [name for name, shape in shapes.items() if len(shape) != 1]
    vectors = [name for name in shapes if name not in maps]
    if not maps and recipe.labels != ():
        return
    name = (maps or vectors)[0]
    if recipe.labels:
        raise RecipeError(
            f"labels: exit {name!r} gives {shapes[name]} for a sample, which are no class scores; "
            "leave labels out"
        )
    if recipe.labels is None and vectors:
        raise RecipeError(
            f"exit {vectors[0]!r} gives {shapes[vectors[0]]} for a sample, as class scores are, "
            f"and exit {name!r} {shapes[name]}; say labels: [] if none of them tells classes"
        )
    if recipe.policy.tune is not None and recipe.policy.tune.exit_rates is None:
        raise RecipeError(
            f"policy.tune: exit {name!r} gives {shapes[name]} for a sample, no "
            "class scores, and what is right of that nobody knows here; give policy.thresholds, "
            "from a measure of your own, or policy.tune.exit_rates"
        )


def _beside(exit: str) -> str:
    """The name of the place where an exit's confidence is; no exit's name has a space."""
    return f"{exit} (confidence)"


def _no_confidence(exit: str, value: Any) -> str:
    found = _kind_and_shape(value) if isinstance(value, torch.Tensor) else _kind(value)
    return (
        f"the confidence of exit {exit!r} is {found}; it is one number per sample, floats [batch] "
        "or [batch, 1]"
    )


def _kind_and_shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _demand_names(exits: Exits) -> None:
    """Refuse a method or module that the model has not."""
    methods = [name for name in dir(type(exits.model)) if not name.startswith("_")]
    if not callable(getattr(exits.model, exits.method, None)):
        raise RecipeError(
            f"model.method: the model has no method {exits.method!r}{_near(exits.method, methods)}"
        )
    # A module may be there under several names.
    modules = dict(exits.model.named_modules(remove_duplicate=False))
    for place in exits.places:
        if place.hooked is None:
            continue
        if place.hooked not in modules:
            raise RecipeError(
                f"exit {place.name!r}: the model has no module {place.hooked!r}"
                f"{_near(place.hooked, list(modules)[1:])}"
            )
        module = modules[place.hooked]
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            parts = ", ".join(f"{place.hooked}.{name}" for name, _ in module.named_children())
            raise RecipeError(
                f"exit {place.name!r}: {place.hooked} is a {type(module).__name__}, which is never "
                f"called; name one of its modules: {parts}"
            )


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; it has {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}"


def _miscounted(place: ExitPlace, calls: int) -> str:
    where = f"exit {place.name!r}: module {place.hooked!r}"
    if calls == 0:
        return f"{where} never runs in eval()"
    if place.call is not None:
        return f"{where} runs {calls} times, and call is {place.call}; they count from 0"
    return f"{where} runs {calls} times; say which it is with call: 0 to {calls - 1}"


def _why_silent(exits: Exits, place: ExitPlace, x: Tensors) -> str:
    """Why a module never runs, as far as that can be seen, as words to put behind that it does."""
    assert place.hooked is not None  # noqa: S101  (asked by the caller)
    module = exits.model.get_submodule(place.hooked)
    parts = [f"{place.hooked}.{name}" for name, _ in module.named_modules() if name]
    ran = _running(exits, parts, x)
    if _forwards(exits, module, x):
        others = f", or name one of its parts ({', '.join(ran[:3])})" if ran else ""
        return (
            ", though its forward does: .forward(x) passes hooks by; let the model call the module "
            f"itself{others}"
        )
    if ran:
        return (
            f", though its parts do: it is called by another method than forward; name one of "
            f"those ({', '.join(ran[:3])})"
        )
    training = copy.deepcopy(exits)
    training.model.train()
    if _running(training, [place.hooked], x):
        return ", only in train(); give a method or arguments that run it in eval() too"
    return f", nor in train(): {exits.method} does not call it"


def _forwards(exits: Exits, module: nn.Module, x: Tensors) -> bool:
    """Whether the module's `forward` runs, whoever calls it."""
    forward, ran = module.forward, []

    def watching(*args: Any, **kwargs: Any) -> Any:
        ran.append(True)
        return forward(*args, **kwargs)

    own = "forward" in vars(module)
    module.forward = watching
    try:
        _walk(exits, x, ())
    finally:
        if own:
            module.forward = forward
        else:
            del module.forward
    return bool(ran)


def _running(exits: Exits, modules: list[str], x: Tensors) -> list[str]:
    """Which of these modules run."""
    watching = Exits(
        exits.model,
        [ExitPlace(name=str(index), module=name, call=0) for index, name in enumerate(modules)],
        method=exits.method,
        arguments=exits.arguments,
    )
    return [modules[int(name)] for name in _walk(watching, x, ()).logits]


def _classes(recipe: Recipe, logits: Mapping[str, torch.Tensor]) -> int:
    """How many classes a head has to tell apart."""
    if recipe.labels == ():
        raise RecipeError(
            "labels: none at all say that exits tell no classes, and a head of a kind does; give "
            "exits.head.factory"
        )
    if recipe.labels is not None:
        return len(recipe.labels)
    if recipe.places[-1].head is not None:
        raise RecipeError("labels: give them, for the final exit's head has as many classes")
    return logits[recipe.exits[-1]].shape[-1]


def _cloned(x: Tensors, rows: slice = slice(None)) -> Tensors:
    """A copy of a batch, or of some of its samples."""
    if isinstance(x, dict):
        return {name: one[rows].clone() for name, one in x.items()}
    return x[rows].clone()


def _failed(batch: Sample | Tensors, error: BaseException) -> ModelError:
    named: Mapping[str, Any] = by_name(batch)
    shapes = " and ".join(f"{name} {list(one.shape)}" for name, one in named.items())
    shapes = shapes.removeprefix(f"{ONLY_INPUT} ")
    failure = ModelError(
        f"the model fails on an input {shapes}: {describe_failure(error)}{way_out(error)}"
    )
    failure.__cause__ = error
    return failure


def _at(value: Any, path: str) -> Any:
    """What lies at a path of keys, indices and attributes: `aux.0`."""
    for depth, part in enumerate(path.split(".")):
        stacked = isinstance(value, torch.Tensor) and value.dim() == 3
        index = int(part) if part.isdecimal() else None
        try:
            if isinstance(value, Mapping):
                value = value[part] if part in value else value[index]
            elif index is not None and (stacked or isinstance(value, list | tuple)):
                value = value[index]
            elif isinstance(value, torch.Tensor) or part.startswith("_"):
                raise AttributeError(part)
            else:
                value = getattr(value, part)
        except (AttributeError, KeyError, IndexError):
            walked = ".".join(path.split(".")[:depth])
            raise ModelError(
                f"there is no output {path!r}: {walked or 'what is returned'} is {_kind(value)}, "
                f"without {part!r}"
            ) from None
    return value


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _one_tensor(value: Any, place: ExitPlace) -> torch.Tensor:
    tensors = _tensors(value)
    if len(tensors) != 1:
        raise ModelError(
            f"exit {place.name!r}: found {_kind(value)} there, and one tensor is wanted; say which "
            "with output:"
        )
    return tensors[0]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if not isinstance(value, list | tuple | Iterator):
        raise ModelError(
            f"the model returns {_kind(value)}; expected tensors, a list or tuple of them, or a "
            "dict of them by the exits' names; or give each exit its output: as a path"
        )
    return [tensor for part in value for tensor in _tensors(part)]
