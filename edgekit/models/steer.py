"""What a `forward` decides on data, and how it is run to its end in spite of that.

A multi-exit network often leaves by itself: `if confidence > threshold: return`. A graph has no
such line, so where the exits are modules, `forward` is steered: whenever it asks a tensor that
depends on the input for its truth, it gets an answer under which it runs to its end.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import edgekit
from edgekit.errors import ModelError

__all__ = ["Question", "Replay", "Steering"]

_OWN = tuple(f"{Path(one).parent}{os.sep}" for one in (edgekit.__file__, torch.__file__))

_TRUTHS = {"__bool__", "is_nonzero", "equal", "allclose"}
"""What makes one truth of tensors."""

_NUMBERS = {"tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__"}
"""What takes Python numbers out of a tensor. `item` does too, and is watched further."""

_SELECTIONS = {"__getitem__", "nonzero", "masked_select", "argwhere"}
"""What may take some of the samples out of a batch."""


@dataclass(frozen=True)
class Question:
    """What `forward` asked a tensor for, and at which line.

    `answer` is the truth that it was given; None where it was given what the tensor holds (one that
    does not depend on the input), or a number that may only be compared (`number`).
    """

    place: str
    answer: bool | None = None
    number: bool = False


class Steering(TorchFunctionMode):
    """Inside, what depends on `data` is true or false as `answers` say, in order, then false.

    Other tensors tell what they hold. All that was asked is kept in `questions`. Raises ModelError
    where numbers are read out of data, or samples are taken out of the batch: neither can be
    steered.
    """

    def __init__(self, answers: Sequence[bool], data: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.questions: list[Question] = []
        self._answers = list(answers)
        # By identity, and kept alive: an id is given out again.
        self._data = {id(one): one for one in data}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = _tensors((args, kwargs))
        depends = any(id(one) in self._data for one in given)
        if name in _TRUTHS or name == "item":
            if not depends:
                self.questions.append(Question(_place()))
                return func(*args, **kwargs)
            if name in _TRUTHS or given[0].dtype == torch.bool:
                return self.decide()
            self.questions.append(Question(_place(), number=True))
            return _Number(self)
        if depends:
            self._demand_steerable(name, args)
        result = func(*args, **kwargs)
        if depends:
            # What is written into holds data from now on, whatever the call returns.
            written = (kwargs.get("out"), args[:1] if _writes(name) else ())
            self._data |= {id(one): one for one in _tensors((result, written))}
        return result

    def _demand_steerable(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _NUMBERS:
            raise _cannot_be_steered(f"reads numbers out of data with {name.strip('_')}()")
        if name in _SELECTIONS and any(
            # A mask over the batch. One that is the model's own takes out channels, not samples.
            one.dtype == torch.bool and one.dim() == 1 and id(one) in self._data
            for one in _tensors(args[-1:])
        ):
            raise ModelError(
                f"forward takes samples out of the batch at {_place()}; every sample must go the "
                "whole way, for the chain lets them leave: give model.method or model.arguments "
                "under which it does"
            )

    def decide(self) -> bool:
        """The next answer."""
        asked = sum(one.answer is not None for one in self.questions)
        answer = self._answers[asked] if asked < len(self._answers) else False
        self.questions.append(Question(_place(), answer))
        return answer


class Replay(TorchFunctionMode):
    """Inside, `forward` is answered as it was under a `Steering`, also while it is exported.

    Raises ModelError where it asks for something else than then.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        super().__init__()
        self._left = list(questions)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TRUTHS or name == "item":
            question = self._next()
            if question.answer is not None:
                return question.answer
            if question.number:
                return _Number(self)
        return func(*args, **(kwargs or {}))

    def decide(self) -> bool:
        """The next answer."""
        return bool(self._next().answer)

    def _next(self) -> Question:
        if not self._left or self._left[0].place != _place():
            raise ModelError(
                f"forward decides at {_place()}, and did not when it was tried; it goes another "
                "way from call to call, or asks sample by sample: give model.method or "
                "model.arguments under which it does not"
            )
        return self._left.pop(0)


class _Number:
    """A number that `item()` read out of data: it may be compared, and nothing else."""

    def __init__(self, steering: Steering | Replay) -> None:
        self._steering = steering

    def __bool__(self) -> bool:
        return self._steering.decide()

    def __eq__(self, other: object) -> bool:
        return self._steering.decide()

    def __lt__(self, other: object) -> bool:
        return self._steering.decide()

    __ne__ = __eq__
    __le__ = __gt__ = __ge__ = __lt__

    __hash__ = None  # type: ignore[assignment]

    def __format__(self, spec: str) -> str:
        return "?"

    def _refuse(self, *_: object) -> Any:
        raise _cannot_be_steered("calculates with a number that item() read")

    __float__ = __int__ = __index__ = __neg__ = __abs__ = __round__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rpow__ = _refuse


def _cannot_be_steered(doing: str) -> ModelError:
    return ModelError(
        f"forward {doing} at {_place()}, which no graph can hold; give model.method or "
        "model.arguments under which it does not, or compare the tensor itself and name the exits "
        "by module:"
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    return [one for one in pytree.tree_leaves(value) if isinstance(one, torch.Tensor)]


def _writes(name: str) -> bool:
    return name == "__setitem__" or (name.endswith("_") and not name.startswith("_"))


def _place() -> str:
    """The line that is being run, of whoever's code is neither ours nor torch's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
