"""Figures as SVG text: values in, markup out. The one module that knows matplotlib.

Each colour is drawn as a stand-in that the page's style sheet then decides, so that one figure
serves light and dark. The same values give the same text. No figure tells by colour alone: what
differs in colour differs in its place, its shape or its line as well, and is named.

A figure is as wide as a phone's page; where there is more room two stand side by side. matplotlib
is imported on use: it takes half a second, and a device has none.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeviceError
from edgekit.quiet import quiet
from edgekit.report.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Bar",
    "Box",
    "Histogram",
    "Line",
    "Marks",
    "Scale",
    "Skip",
    "bars",
    "calibration",
    "cells",
    "chain",
    "demand",
    "errors",
    "histograms",
    "panels",
    "stacks",
]

WIDTH = 3.5
"""Inches; at 360 pixels of a phone a point of type is then a little more than one pixel."""

INK, SOFT, LINE, PAPER, PANEL = "#010203", "#020304", "#030405", "#040506", "#050607"
SERIES = ("#a10001", "#a10002", "#a10003", "#a10004")

_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    PAPER: "paper",
    PANEL: "panel",
    **{one: f"s{number}" for number, one in enumerate(SERIES)},
}
"""Stand-ins by the variable of the page's style sheet."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # A name may hold a dollar sign, and is no formula.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "hatch.linewidth": 0.7,
}

_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
"""What may stand in no SVG; matplotlib writes it down as it comes."""

_MARKERS = ("o", "s", "D", "^")
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Bar:
    """A bar with its name at the left and its value in words at its end.

    `mark` is a second value on the same scale, drawn as a tick; `text` tells it as well. `main`
    bars are filled.
    """

    name: str
    value: float
    text: str
    mark: float | None = None
    main: bool = False


@dataclass(frozen=True)
class Box:
    """A segment: what stands in it, what leaves it at its exit, and its share of all work."""

    name: str
    detail: str
    exit: str
    leaves: str
    share: float


@dataclass(frozen=True)
class Skip:
    """A tensor that passes over segments: from behind box `first` (-1: the input) to box `last`."""

    first: int
    last: int


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, of answers that are right and of those that are not, and a threshold.

    `wrong` is None where nobody knows what is right.
    """

    name: str
    edges: tuple[float, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...] | None
    threshold: float


@dataclass(frozen=True)
class Line:
    """Points joined by a line; by `steps` where what lies between them is one or the other."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    steps: bool = False


@dataclass(frozen=True)
class Marks:
    """Points on their own; `large` ones are what is looked for, `labels` are names beside them.

    `hollow` ones look like those before them, and are not quite such. With `below` a name at the
    right of its point stands there, where a line that rises leaves room.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    large: bool = False
    hollow: bool = False
    labels: tuple[str, ...] = ()
    below: bool = False


@dataclass(frozen=True)
class Scale:
    """How an axis is drawn: `place` of a value on it, and back; and the values that have a tick.

    Without ticks they are chosen where it is drawn.
    """

    place: Callable[[float], float] = float
    value: Callable[[float], float] = float
    ticks: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Iterable[float]) -> "Scale":
        """By nines, for numbers up to 1 of which most lie near 1; else as they are."""
        found = sorted(value for value in values if math.isfinite(value))
        if not found or found[0] < 0 or found[-1] > 1 or found[len(found) // 2] < 0.9:
            return cls()
        # No further than anything was seen: float32 logits tell no more than some seven nines.
        least = max(1e-7, 1 - max((one for one in found if one < 1 - 1e-7), default=0.99))
        # So many digits have no room beside one another: every second power of ten then.
        powers = range(0, 1 - math.floor(math.log10(least)), 1 if least > 1e-4 else 2)
        # What is certain stands a little beyond the last one seen, and beyond the last tick.
        end = min(least / 2, 10.0 ** -powers[-1])
        return cls(
            lambda value: -math.log10(max(1 - value, end)),
            lambda place: 1 - 10.0**-place,
            tuple(1 - 10.0**-power for power in powers),
        )


def demand() -> None:
    """Raises DeviceError where there is nothing to draw with."""
    try:
        import matplotlib.figure  # noqa: F401  (one that lacks a part of its own is found here)
    except ImportError as error:
        raise DeviceError(
            f"figures need matplotlib, which is not installed or cannot be loaded ({error}): pip "
            "install 'edgekit[build]' (Python 3.11 or newer)"
        ) from None


def chain(name: str, source: str, boxes: Sequence[Box], crossings: Sequence[str],
          skips: Sequence[Skip]) -> str:  # fmt: skip
    """The chain from top to bottom: input, segments, what crosses each cut, exits to the right.

    `crossings` has a line for each cut between two boxes.
    """

    def paint(axes: "Axes") -> None:
        axes.set_xlim(0, 10)
        axes.set_ylim(-1.25 * len(boxes) + 0.3, 0.75)
        axes.axis("off")
        left, right = 1.5, 6.9
        arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": SOFT, "lw": 1, "shrinkA": 0,
                                 "shrinkB": 0}  # fmt: skip
        axes.text((left + right) / 2, 0.62, source, ha="center", va="center")
        for number, (box, above) in enumerate(zip(boxes, ("", *crossings), strict=True)):
            top = -1.25 * number
            middle = (left + right) / 2
            axes.annotate("", (middle, top), (middle, top + 0.45), arrowprops=arrow)
            axes.text(middle + 0.25, top + 0.23, above, ha="left", va="center", fontsize=7,
                      color=SOFT)  # fmt: skip
            axes.add_patch(_rectangle(left, top - 0.8, right - left, 0.8, PANEL, SOFT))
            axes.add_patch(
                _rectangle(left, top - 0.8, (right - left) * box.share, 0.14, SERIES[0], "none")
            )
            axes.text(left + 0.2, top - 0.22, short(box.name, 20), va="center", weight="bold")
            axes.text(left + 0.2, top - 0.47, box.detail, va="center", fontsize=7.5)
            axes.annotate("", (right + 0.75, top - 0.4), (right, top - 0.4), arrowprops=arrow)
            axes.text(right + 0.85, top - 0.27, short(box.exit, 13), va="center", weight="bold")
            axes.text(right + 0.85, top - 0.53, box.leaves, va="center", fontsize=7.5)
        for lane, skip in enumerate(skips[:_LANES]):
            x = left - 0.3 - 0.25 * lane
            start = 0.55 if skip.first < 0 else -1.25 * skip.first - 0.65
            end = -1.25 * skip.last - 0.25
            axes.plot([left, x, x], [start, start, end], color=SERIES[0], lw=1, ls="--")
            axes.annotate("", (left, end), (x, end), arrowprops=arrow | {"color": SERIES[0]})

    return _drawn(name, 0.62 * len(boxes) + 0.5, lambda figure: paint(figure.add_subplot()))


_LANES = 4
"""So many tensors that pass over segments are drawn; all are in the table."""


def bars(name: str, axis: str, found: Sequence[Bar]) -> str:
    """Horizontal bars from 0, first at the top. `axis` names what is measured, and the marks."""

    def paint(axes: "Axes") -> None:
        rows = range(len(found))
        for row, bar in zip(rows, found, strict=True):
            axes.barh(row, bar.value, 0.62, color=SERIES[0] if bar.main else PANEL,
                      edgecolor=SERIES[0] if bar.main else SOFT, lw=0.8)  # fmt: skip
            if bar.mark is not None:
                axes.plot([bar.mark] * 2, [row - 0.31, row + 0.31], color=SERIES[1], lw=2)
        end = max((max(bar.value, bar.mark or 0) for bar in found), default=1) or 1
        for row, bar in zip(rows, found, strict=True):
            axes.text(max(bar.value, bar.mark or 0) + end * 0.03, row, bar.text, va="center")
        # What stands behind the longest bar needs room, whichever bar has the longest text.
        axes.set_xlim(0, end * (1.1 + 0.042 * max((len(bar.text) for bar in found), default=0)))
        axes.set_yticks(rows, [short(bar.name) for bar in found])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        # Where only words stand, an axis has no ticks: no share is above 100 %.
        axes.set_xticks([one for one in _few_ticks(4).tick_values(0, end) if one <= end * 1.01])
        axes.set_xlabel(axis)
        axes.grid(axis="x")

    return _drawn(name, 0.27 * len(found) + 0.6, lambda figure: paint(figure.add_subplot()))


def stacks(
    name: str,
    axis: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    marks: Sequence[float | None],
    mark: str,
) -> str:
    """A bar per row made of numbered parts, first at the top, and a diamond for what was measured.

    `marks` has one entry per row.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        end = max([sum(parts) for _, parts in rows] + [one for one in marks if one] + [1e-9])
        for row, (_, parts) in enumerate(rows):
            start = 0.0
            for number, part in enumerate(parts, 1):
                axes.barh(row, part, 0.62, left=start, color=SERIES[0], edgecolor=SOFT, lw=0.8,
                          alpha=0.3 if number % 2 else 0.12)  # fmt: skip
                if len(parts) > 1 and part > end * 0.05:
                    axes.text(start + part / 2, row, str(number), ha="center", va="center")
                start += part
        here = [(x, row) for row, x in enumerate(marks) if x is not None]
        axes.plot(*zip(*here, strict=True) if here else ((), ()), "D", color=SERIES[1], ms=5,
                  label=mark)  # fmt: skip
        axes.set_xlim(0, end * 1.06)
        axes.set_yticks(range(len(rows)), [short(one) for one, _ in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(_few_ticks())
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        _legend(figure)

    return _drawn(name, 0.27 * len(rows) + 0.85, paint)


def panels(
    name: str,
    axis: str,
    found: Sequence[tuple[str, Sequence[Line | Marks]]],
    *,
    percent: Sequence[bool],
    scale: Scale = Scale(),
    level: Sequence[tuple[str, float] | None] = (),
) -> str:
    """Panels one above the other with one x axis: each the name of its y axis and what is in it.

    `percent` says of each panel whether its y is a share. `level` has a value of y per panel, drawn
    as a line and named.
    """
    place = scale.place

    def paint(figure: "Figure") -> None:
        every = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        levels = [*level, *[None] * (len(found) - len(level))]
        for axes, (label, series), share, line in zip(every, found, percent, levels, strict=True):
            number = -1
            for one in series:
                # Hollow marks have the colour and the shape of those that they belong to.
                number += not (isinstance(one, Marks) and one.hollow)
                x = [place(value) for value in one.x]
                color = SERIES[number % len(SERIES)]
                if isinstance(one, Line):
                    axes.plot(x, one.y, color=color, ls=_DASHES[number % 4], lw=1.6,
                              drawstyle="steps-mid" if one.steps else "default",
                              label=one.name)  # fmt: skip
                elif one.large:
                    axes.plot(x, one.y, "*", color=color, ms=13, mec=PAPER, mew=0.8, zorder=5,
                              clip_on=False, label=one.name)  # fmt: skip
                else:
                    axes.plot(x, one.y, _MARKERS[number % 4], color=color, ms=4.5,
                              mfc=PAPER if one.hollow else color,
                              mec=color if one.hollow else PAPER,
                              mew=1 if one.hollow else 0.5, clip_on=False,
                              label=one.name)  # fmt: skip
            if line is not None:
                axes.axhline(line[1], color=SOFT, lw=1, ls=(0, (4, 2)), label=line[0])
            axes.set_ylabel(label)
            axes.grid()
            _roomy(axes, least=0.002 if share else 0)
            axes.yaxis.set_major_locator(_few_ticks(4))
            if share:
                axes.set_ylim(top=min(axes.get_ylim()[1], 1.0))
                axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.5g}%")
            marks = [one for one in series if isinstance(one, Marks)]
            _named(axes, [(one, [place(value) for value in one.x]) for one in marks])
        _legend(figure)
        _ticks(every[-1], scale)
        every[-1].set_xlabel(axis)

    return _drawn(name, 1.15 + 1.45 * len(found), paint)


def histograms(
    name: str,
    axis: str,
    found: Sequence[Histogram],
    scale: Scale,
    kinds: tuple[str, str] = ("right", "wrong"),
) -> str:
    """One histogram an exit, one above the other; what is sure enough lies right of its line.

    `kinds` says what the two counts of a histogram are.
    """
    place = scale.place

    def paint(figure: "Figure") -> None:
        every = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, one in zip(every, found, strict=True):
            edges = [place(edge) for edge in one.edges]
            widths = [after - before for before, after in itertools.pairwise(edges)]
            right = kinds[0] if one.wrong is not None else "samples"
            axes.bar(edges[:-1], one.right, widths, align="edge", color=SERIES[0], alpha=0.55,
                     edgecolor=PAPER, lw=0.3, label=right)  # fmt: skip
            here = [place for place, count in enumerate(one.wrong or ()) if count]
            if one.wrong is not None and here:
                axes.bar([edges[k] for k in here], [one.wrong[k] for k in here],
                         [widths[k] for k in here], bottom=[one.right[k] for k in here],
                         align="edge", color=SERIES[1], edgecolor=INK, lw=0.3, hatch="////",
                         label=kinds[1])  # fmt: skip
            if math.isfinite(one.threshold):
                inside = min(max(place(one.threshold), edges[0]), edges[-1])
                axes.axvline(inside, color=INK, lw=1.3, ls="--", label="threshold")
            nobody = "" if any(one.right) or here else ": none reach it"
            axes.set_title(short(one.name, 24) + nobody, loc="left", pad=3)
            axes.set_ylim(0, max(axes.get_ylim()[1], 1) if not nobody else 1)
            axes.yaxis.set_major_locator(_few_ticks(3, whole=True))
            axes.grid(axis="y")
        _legend(figure)
        _ticks(every[-1], scale)
        every[-1].set_xlabel(axis)
        figure.supylabel("samples", fontsize=8)

    return _drawn(name, 0.95 + 0.85 * len(found), paint)


def cells(
    name: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]]
) -> str:
    """A grid of shares in words; the further below 1, the darker."""

    def paint(axes: "Axes") -> None:
        for row, some in enumerate(values):
            for column, value in enumerate(some):
                if value is None:
                    continue
                patch = _rectangle(column - 0.5, row - 0.5, 1, 1, SERIES[1], "none")
                # By the root, so that the first percent lost is seen.
                patch.set_alpha(0.6 * math.sqrt(1 - value))
                axes.add_patch(patch)
                axes.text(column, row, f"{value:.1%}".removesuffix("%"), ha="center", va="center",
                          fontsize=7)  # fmt: skip
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [short(one, 44 // len(columns)) for one in columns])
        axes.set_yticks(range(len(rows)), [short(one, 12) for one in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    return _drawn(name, 0.19 * len(rows) + 0.45, lambda figure: paint(figure.add_subplot()))


def errors(name: str, axis: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """Errors on a logarithmic scale, each with its limit; an error of 0 lies at the left end."""
    known = [one for _, *pair in rows for one in pair if one > 0]
    floor = 10.0 ** math.floor(math.log10(min(known, default=1e-6)) - 0.5)

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for row, (_, error, limit) in enumerate(rows):
            axes.plot([floor, max(error, floor)], [row, row], color=SERIES[0], lw=1.6)
            axes.plot([limit] * 2, [row - 0.3, row + 0.3], color=SERIES[1], lw=2,
                      label="limit" if row == 0 else None)  # fmt: skip
            axes.plot(max(error, floor), row, "o", color=SERIES[0], ms=5, clip_on=False,
                      label="found" if row == 0 else None)  # fmt: skip
            if error == 0:
                axes.annotate("exactly 0", (floor, row), (6, 0), textcoords="offset points",
                              va="center")  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(floor, max([one for _, *pair in rows for one in pair] + [floor]) * 3)
        axes.minorticks_off()
        axes.xaxis.set_major_locator(_decades())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.set_yticks(range(len(rows)), [one for one, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        _legend(figure)

    return _drawn(name, 0.24 * len(rows) + 0.85, paint)


def calibration(name: str, found: Sequence[tuple[str, Sequence[Line]]]) -> str:
    """Panels of accuracy against confidence, each with a line where both are alike."""

    def paint(figure: "Figure") -> None:
        every = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (title, lines) in zip(every, found, strict=True):
            axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls=(0, (4, 2)))
            for number, one in enumerate(lines):
                axes.plot(one.x, one.y, color=SERIES[number % 4], marker=_MARKERS[number % 4],
                          ms=3.5, lw=1.2, label=one.name)  # fmt: skip
            axes.set_title(title, loc="left")
            axes.set_xlabel("confidence")
            axes.set_aspect("equal")
            axes.set_xlim(-0.03, 1.03)
            axes.set_ylim(-0.03, 1.03)
            axes.xaxis.set_major_locator(_few_ticks(3))
            axes.grid()
        every[0].set_ylabel("accuracy")
        _legend(figure)

    rows = -(-max(len(lines) for _, lines in found) // 2)
    return _drawn(name, 2.1 + 0.17 * rows, paint)


def _drawn(name: str, height: float, paint: "Callable[[Figure], None]") -> str:
    """The figure that `paint` makes, `height` inches high, as the text of an SVG element."""
    demand()
    # Nobody asked for its remarks on its cache, or on the characters that its font lacks.
    with quiet("matplotlib"):
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # Whatever the user's own settings are.
            matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            paint(figure)
            stream = io.StringIO()
            figure.savefig(stream, format="svg", metadata={"Date": None})
    return _inline(stream.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """An SVG file's text as an element: no header, names of its own, colours of the page."""
    text = _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", svg[svg.index("<svg") :])
    # A page has its own style sheet, which would not stay inside the figure.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    (view_box,) = re.findall(r'viewBox="[^"]*"', text[: text.index(">")])
    text = f'<svg {view_box} stroke-linejoin="round"{text[text.index(">") :]}'
    text = text.replace(" xlink:href=", " href=").replace(' id="', f' id="{name}-')
    text = re.sub(r'(url\(#| href="#)', rf"\g<1>{name}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _legend(figure: "Figure") -> None:
    """Names above all axes: over the data there is no room on a phone."""
    known: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    if known:
        figure.legend(
            known.values(),
            known.keys(),
            loc="outside upper left",
            ncols=2 if max(map(len, known)) > 12 else 3,
            borderaxespad=0.1,
            borderpad=0,
            handlelength=1.6,
            columnspacing=1.2,
        )


def _named(axes: "Axes", every: Sequence[tuple[Marks, Sequence[float]]]) -> None:
    """Names beside points, on whichever side is free; without room none, for a table has all."""
    (least, most), (low, top) = axes.get_xlim(), axes.get_ylim()
    # A line of type, a character and a point, as shares of the axes.
    high, letter, point = 0.11, 0.02, 0.02

    def shares(at: float, up: float) -> tuple[float, float]:
        return (at - least) / (most - least), (up - low) / (top - low)

    # Left, bottom, width and height of what nothing may be written over.
    taken = [
        (across - point / 2, above - point, point, 2 * point)
        for marks, x in every
        for across, above in itertools.starmap(shares, zip(x, marks.y, strict=True))
    ]
    for marks, x in every:
        for words, *(at, up) in zip(map(short, marks.labels), x, marks.y, strict=False):
            across, above = shares(at, up)
            wide = point + letter * len(words)
            right = across > 0.5
            under = marks.below and not right and above > 0.15
            for to_left, below in itertools.product((right, not right), (under, not under)):
                left = across - point - wide if to_left else across + point
                bottom = above - point - high if below else above + point
                free = -0.05 < left < 1.05 - wide and -0.05 < bottom < 1.15 - high
                if free and not any(
                    left < a + w and a < left + wide and bottom < b + h and b < bottom + high
                    for a, b, w, h in taken
                ):
                    taken.append((left, bottom, wide, high))
                    axes.annotate(words, (at, up), (-6 if to_left else 6, -10 if below else 4),
                                  textcoords="offset points", ha="right" if to_left else "left",
                                  fontsize=7)  # fmt: skip
                    break


def _roomy(axes: "Axes", least: float) -> None:
    """Some air above and below, also where all values are alike."""
    low, high = axes.get_ylim()
    air = max((high - low) * 0.06, least)
    axes.set_ylim(low - air, high + air)


def _ticks(axes: "Axes", scale: Scale) -> None:
    if not scale.ticks:
        axes.xaxis.set_major_locator(_few_ticks())
        return
    axes.set_xticks([scale.place(one) for one in scale.ticks], [f"{x:.8g}" for x in scale.ticks])


def _few_ticks(most: int = 5, *, whole: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=whole)


def _decades() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(numticks=5)


def _rectangle(x: float, y: float, width: float, height: float, face: str, edge: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, lw=0.8)
