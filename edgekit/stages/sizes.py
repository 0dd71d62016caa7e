"""The axes of an input whose size varies: as torch.export takes them, and what it made of them.

torch.export refuses a size that it had to fix, or says nothing and leaves a guard behind: an
equation that held for the sample. Every guard is therefore tried on the sizes of the recipe.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from edgekit.bundle.manifest import ONLY_INPUT, Axis, axis_text
from edgekit.errors import ModelError
from edgekit.stages.crossing import symbol

__all__ = ["Varying", "demand_free", "dims", "refusal", "varying"]

_MOST_TRIED = 4096
"""Sizes, or combinations of them, that a guard is tried on: all that a usual range has."""


@dataclass(frozen=True)
class Varying:
    """An axis whose size varies: that at `place` of the shape of the input `name`."""

    name: str
    place: int
    least: int
    most: int
    step: int
    only: bool

    @property
    def symbol(self) -> str:
        """What torch.export calls it; the size itself, or its multiple of the step."""
        return f"axis_{self.place}_of_{self.name}"

    @property
    def where(self) -> str:
        """The axis in the recipe, in words."""
        key = "input.shape" if self.only else f"inputs.{self.name}.shape"
        return f"{key}, axis {self.place} ({axis_text((self.least, self.most, self.step))})"

    def sizes(self, most: int = _MOST_TRIED) -> list[int]:
        """Sizes that it may have: all, or `most` of them evenly spaced, the ends among them."""
        steps = range(self.least // self.step, self.most // self.step + 1)
        every = max(1, -(-len(steps) // most))
        return [self.step * one for one in dict.fromkeys((*steps[::every], steps[-1]))]


def varying(axes: Mapping[str, Sequence[Axis]]) -> list[Varying]:
    """The axes that vary, of the inputs' shapes by name."""
    only = list(axes) == [ONLY_INPUT]
    return [
        Varying(name, place, *axis, only)
        for name, shape in axes.items()
        for place, axis in enumerate(shape)
        if isinstance(axis, tuple)
    ]


def dims(axes: Iterable[Varying]) -> dict[str, dict[int, Any]]:
    """For each input's name, torch.export's symbols by their places in a batch."""
    found: dict[str, dict[int, Any]] = {}
    for one in axes:
        ends = {"min": one.least // one.step, "max": one.most // one.step}
        dim = torch.export.Dim(one.symbol, **ends)
        found.setdefault(one.name, {})[one.place + 1] = one.step * dim if one.step > 1 else dim
    return found


def refusal(message: str, axes: Sequence[Varying]) -> str | None:
    """One line for torch.export's refusal of an axis, with what to write; None for another one.

    It suggests other symbols, a line for each: a number, another symbol, a multiple of a new one,
    or a shorter range.
    """
    known = {one.symbol: one for one in axes}
    fixes = dict(re.findall(r"^ *(\w+) = (.+)$", message, re.MULTILINE))
    for name, one in known.items():
        fixed = re.search(rf"marked (?:\d+\*)?{name} .* a constant \((\d+)\)", message)
        if fixed:
            return _takes_only(one, [int(fixed[1])])
        fix = fixes.get(name, "")
        if fix in known:
            return _as_another(one, known[fix])
        if times := re.fullmatch(rf"(\d+)\*_{name}", fix):
            return _takes_only(one, [x for x in one.sizes() if x % int(times[1]) == 0])
        if ends := re.fullmatch(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", fix):
            least, most = int(ends[1] or one.least), int(ends[2] or one.most)
            return _takes_only(one, [x for x in one.sizes() if least <= x <= most])
    for name, one in known.items():
        if found := re.search(rf"^.*\b{name}\b.*$", message, re.MULTILINE):
            return f"{one.where}: torch.export cannot let it vary: {found[0].strip(' -')}"
    return None


def demand_free(sources: Mapping[str, fx.Node], axes: Sequence[Varying]) -> None:
    """Raises ModelError where the exported graph holds for some of the sizes only, naming the axis.

    `sources` are the inputs of the graph by name.
    """
    if not axes:
        return
    bases: dict[Any, Varying] = {}
    for one in axes:
        size = sources[one.name].meta["val"].shape[one.place + 1]
        expression = symbol(size)
        if expression is None:
            raise ModelError(_takes_only(one, [int(size)]))
        (base,) = expression.free_symbols
        if base in bases:
            raise ModelError(_as_another(one, bases[base]))
        bases[base] = one
    guards = _guards(size.node.shape_env, set(bases))
    for base, one in bases.items():
        alone = [guard for guard in guards if guard.free_symbols == {base}]
        taken = [x for x in one.sizes() if all(_holds(y, {base: x // one.step}) for y in alone)]
        if len(taken) < len(one.sizes()):
            raise ModelError(_takes_only(one, taken))
    for guard in guards:
        among = [base for base in bases if base in guard.free_symbols]
        if len(among) < 2:
            continue
        each = max(2, int(_MOST_TRIED ** (1 / len(among))))
        for sizes in itertools.product(*(bases[base].sizes(each) for base in among)):
            values = {base: x // bases[base].step for base, x in zip(among, sizes, strict=True)}
            if not _holds(guard, values):
                places = " and ".join(bases[base].where for base in among)
                raise ModelError(
                    f"{places}: the model does not take {' and '.join(map(str, sizes))} together; "
                    "where a layer takes a fixed number of features, pool before it, or give one "
                    "number in place of each range"
                )


def _guards(environment: Any, bases: set[Any]) -> list[Any]:
    """What was taken for granted, in terms of the symbols `bases`, for a batch of any size.

    An axis that goes by steps has two symbols, and an equation between them.
    """
    found = [guard.expr for guard in environment.guards]
    same = {
        one.lhs: one.rhs
        for one in found
        if isinstance(one, sympy.Eq)
        and one.lhs.is_Symbol
        and one.lhs not in bases
        and one.rhs.free_symbols
        and one.rhs.free_symbols <= bases
    }
    in_bases = [one.xreplace(same) for one in found]
    batch = sympy.Integer(3)
    return [
        one.xreplace(dict.fromkeys(one.free_symbols - bases, batch))
        for one in in_bases
        if one.free_symbols & bases
    ]


def _holds(guard: Any, values: Mapping[Any, int]) -> bool:
    return bool(guard.xreplace({base: sympy.Integer(value) for base, value in values.items()}))


def _takes_only(one: Varying, sizes: Sequence[int]) -> str:
    """Words for an axis on which the model takes only these of its sizes."""
    if len(sizes) < 2:
        size = sizes[0] if sizes else one.most
        return f"{one.where}: the model takes no size but {size} there; write {size}"
    steps = {after - before for before, after in itertools.pairwise(sizes)}
    step = steps.pop()
    if steps or sizes[0] % step:
        return (
            f"{one.where}: the model does not take every size, or computes otherwise at some; "
            f"write the range around one of {', '.join(map(str, sizes[:8]))}"
        )
    ends = [sizes[0], sizes[-1], *([step] if step > 1 else [])]
    return f"{one.where}: the model fails, or computes otherwise, at others than {ends}; write that"


def _as_another(one: Varying, other: Varying) -> str:
    return (
        f"{one.where}: the model takes another way, or fails, where it is not as large as axis "
        f"{other.place} of {other.name}, and every range varies by itself; give one number for "
        f"both, such as {one.most}"
    )
