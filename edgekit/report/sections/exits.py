"""Who leaves where, how sure, and what that looks like."""

import math
from collections.abc import Sequence

import numpy as np

from edgekit.report import plots
from edgekit.report.facts import BOUNDED, Facts
from edgekit.report.page import Figure, Gallery, Part, Picture, Section, Table, Text
from edgekit.report.pictures import thumbnail
from edgekit.report.words import (
    confidence_text,
    count_text,
    of_samples,
    pair,
    share_text,
    short,
)

__all__ = ["exits"]

_EXAMPLES = 8
"""Images in a row of examples."""

_HISTOGRAMS = 8
"""Exits with a histogram of their own, the first ones."""

_BINS = 24

WORDS = frozenset({0, 1})


def exits(facts: Facts) -> Section:
    """Who leaves where, how sure, and what that looks like."""
    parts = _leaving(facts)
    parts += _sureness(facts)
    parts += _examples(facts)
    if not parts:
        return Section("Exits", (Text("No data was run through the chain, so nobody knows."),))
    return Section("Exits", tuple(parts))


def _leaving(facts: Facts) -> list[Part]:
    """The share that leaves at each exit, of every data there is."""
    tuned = facts.notes("tune")
    splits = ((*facts.tested_on, facts.tested), ("tuning split", tuned.get("samples"), tuned))
    tried: dict[str, dict[str, float]] = {
        _of(name, count): counted.get("exit_rates", {}) for name, count, counted in splits
    }
    if facts.bench is not None and facts.measured:
        name = "bench" if facts.benched_as_deployed else "bench, another policy"
        rates = {one["name"]: one["rate"] for one in facts.bench["exits"]}
        tried[_of(name, facts.bench["samples"])] = rates
    known = {name: rates for name, rates in tried.items() if rates}
    if not known:
        return []
    table = Table(
        "Share of the samples that leave",
        ("exit", *known),
        tuple(
            (name, *(share_text(rates.get(name, 0)) for rates in known.values()))
            for name in facts.exits
        ),
    )
    first, *others = known.values()
    bars = [
        plots.Bar(
            name,
            100 * first.get(name, 0),
            pair(*(share_text(one.get(name, 0)) for one in (first, *others[:1]))),
            100 * others[0].get(name, 0) if others else None,
            main=True,
        )
        for name in facts.exits
    ]
    return [
        Figure(
            "Where samples leave",
            plots.bars("leave", f"%: {pair(*[*known][:2])}", bars),
            ", ".join(f"{one.name} {one.text}" for one in bars),
            (table,),
        )
    ]


def _of(name: str, count: int | None) -> str:
    return name if count is None else f"{name} ({count_text(count)})"


def _sureness(facts: Facts) -> list[Part]:
    """Histograms of the confidences of those that reach each early exit."""
    seen, policy = facts.seen, facts.manifest.policy
    if seen is None or len(facts.exits) == 1:
        return []
    early = seen.confidences[: len(facts.exits) - 1]
    taken = seen.taken(policy.thresholds)
    finite = early[np.isfinite(early)]
    if not len(finite):
        return []
    scale = plots.Scale.of(finite if policy.criterion in BOUNDED else ())
    # Bins are alike in width as they are drawn.
    low, high = scale.place(float(finite.min())), scale.place(float(finite.max()))
    places = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    edges = tuple(scale.value(float(one)) for one in places)
    told = facts.told
    right = seen.right("label" if seen.labels is not None else "disagreement")
    found, rows = [], []
    for number, name in enumerate(facts.exits[:-1][:_HISTOGRAMS]):
        here = taken >= number
        drawn = np.array([scale.place(one) for one in early[number, here]])
        good = right[number, here]
        counted = [
            np.histogram(drawn[mask], places)[0]
            for mask in ((good, ~good) if told else (good | True,))
        ]
        found.append(
            plots.Histogram(
                name,
                edges,
                tuple(int(one) for one in counted[0]),
                tuple(int(one) for one in counted[1]) if told else None,
                policy.thresholds[number],
            )
        )
        for bin in np.flatnonzero(sum(counted)):
            rows.append(
                (
                    name,
                    f"{confidence_text(edges[bin])} to {confidence_text(edges[bin + 1])}",
                    *(count_text(int(one[bin])) for one in counted),
                )
            )
    which = ("right", "wrong") if seen.labels is not None else ("as the final exit", "otherwise")
    return [
        Figure(
            "How sure those are that reach an exit, of " + of_samples("tuning split", seen.samples),
            plots.histograms("sure", "confidence", found, scale, which),
            "What lies right of the dashed line leaves there. "
            + " ".join(
                f"{name}: {count_text(int((taken >= number).sum()))} reach it, "
                f"{count_text(int((taken == number).sum()))} leave."
                for number, name in enumerate(facts.exits[:-1][:_HISTOGRAMS])
            ),
            (
                Table(
                    "Samples that reach an exit, by confidence",
                    ("exit", "confidence", *(which if told else ("samples",))),
                    tuple(rows),
                    WORDS,
                ),
            ),
        )
    ]


def _examples(facts: Facts) -> list[Part]:
    """Images that left first and surest, and such that left last; wrong ones in words."""
    decided = facts.decisions
    if decided is None or not facts.samples:
        return []
    confidences = [math.nan if x is None else float(x) for x in decided["confidences"]]
    rows = range(min(len(facts.samples), len(confidences)))
    # Where a sample left is what it cost; another exit's answer may have been taken there.
    depth = [facts.exits.index(one) for one in decided["left"]]
    first, deepest = min(depth, default=0), max(depth, default=0)

    def at(number: int) -> list[int]:
        found = [row for row in rows if depth[row] == number]
        return sorted(found, key=lambda row: -np.nan_to_num(confidences[row], nan=-1))

    def wrong(row: int) -> bool:
        return facts.labels is not None and decided["classes"][row] != facts.labels[row]

    def gallery(title: str, chosen: Sequence[int]) -> list[Part]:
        pictures = tuple(_picture(facts, row, confidences[row], wrong(row)) for row in chosen)
        return [Gallery(title, pictures)] if pictures else []

    answers = decided["classes"]
    surest = _varied(answers, at(first))
    parts = gallery(f"Left at {facts.exits[first]}, the surest", surest)
    if deepest > first:
        last = at(deepest)[::-1]
        parts += gallery(f"Left last, at {facts.exits[deepest]}", last[:_EXAMPLES])
    parts += gallery("Answered wrongly", [row for row in rows if wrong(row)][:_EXAMPLES])
    return parts


def _varied(answers: Sequence[int | None], rows: Sequence[int]) -> list[int]:
    """The first of every answer, then the first ones, as many as are shown."""
    firsts = list({answers[row]: row for row in reversed(rows)}.values())
    order = {row: place for place, row in enumerate(rows)}
    firsts.sort(key=order.__getitem__)
    return (firsts + [row for row in rows if row not in firsts])[:_EXAMPLES]


def _picture(facts: Facts, row: int, confidence: float, wrong: bool) -> Picture:
    decided, labels = facts.decisions, facts.manifest.labels
    assert decided is not None  # noqa: S101  (asked by the caller)
    answer = decided["classes"][row]
    said = labels[answer] if labels and answer is not None else "an output"
    exit = decided["exits"][row]
    says = f"answered {said} at {exit}"
    lines = [short(said)]
    if wrong and facts.labels is not None:
        truth = labels[facts.labels[row]]
        says += f", which is wrong: it is {truth}"
        lines = [f"said {short(said)}, is {short(truth)}", f"at {short(exit)}"]
    if math.isfinite(confidence):
        lines.append(confidence_text(confidence))
    return Picture(thumbnail(facts.samples[row]), says, ", ".join(lines))
