"""Who leaves where, how sure, and what that looks like."""

import math
from collections.abc import Sequence

import numpy as np

from edgekit.report import plots
from edgekit.report.facts import BOUNDED, Facts
from edgekit.report.page import Figure, Gallery, Part, Picture, Section, Table, Text
from edgekit.report.pictures import thumbnail
from edgekit.report.words import count_text, pair, share_text, short

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
    splits = (("test split", facts.tested), ("tuning split", facts.notes("tune")))
    tried: dict[str, dict[str, float]] = {
        name: counted.get("exit_rates", {}) for name, counted in splits
    }
    if facts.bench is not None and facts.measured:
        tried["bench"] = {one["name"]: one["rate"] for one in facts.bench["exits"]}
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
            plots.bars("leave", f"% of the samples: {pair(*[*known][:2])}", bars),
            ", ".join(f"{one.name} {one.text}" for one in bars),
            (table,),
        )
    ]


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
                    f"{edges[bin]:.4g} to {edges[bin + 1]:.4g}",
                    *(count_text(int(one[bin])) for one in counted),
                )
            )
    which = "right by its label" if seen.labels is not None else "as the final exit says"
    return [
        Figure(
            "How sure those are that reach an exit, tuning split",
            plots.histograms("sure", "confidence", found, scale),
            "What lies right of the dashed line leaves there. "
            + " ".join(
                f"{name}: {count_text(int((taken >= number).sum()))} reach it, "
                f"{count_text(int((taken == number).sum()))} leave."
                for number, name in enumerate(facts.exits[:-1][:_HISTOGRAMS])
            ),
            (
                Table(
                    "Samples that reach an exit, by confidence",
                    ("exit", "confidence", *((which, "not") if told else ("samples",))),
                    tuple(rows),
                    WORDS,
                ),
            ),
        )
    ]


def _examples(facts: Facts) -> list[Part]:
    """Images that left first and surest, and such that left last; wrong ones in words."""
    decided = facts.evidence.get("decisions")
    if not decided or not facts.samples:
        return []
    confidences = [math.nan if x is None else float(x) for x in decided["confidences"]]
    rows = range(min(len(facts.samples), len(confidences)))
    depth = {name: number for number, name in enumerate(facts.exits)}
    deepest = max((depth[decided["exits"][row]] for row in rows), default=0)
    first = min((depth[decided["exits"][row]] for row in rows), default=0)

    def at(number: int) -> list[int]:
        found = [row for row in rows if depth[decided["exits"][row]] == number]
        return sorted(found, key=lambda row: -np.nan_to_num(confidences[row], nan=-1))

    def wrong(row: int) -> bool:
        return facts.labels is not None and decided["classes"][row] != facts.labels[row]

    def gallery(title: str, chosen: Sequence[int]) -> list[Part]:
        pictures = tuple(_picture(facts, row, confidences[row], wrong(row)) for row in chosen)
        return [Gallery(title, pictures)] if pictures else []

    parts = gallery(f"Left at {facts.exits[first]}, the surest", _varied(facts, at(first)))
    if deepest > first:
        last = at(deepest)[::-1]
        parts += gallery(f"Left last, at {facts.exits[deepest]}", last[:_EXAMPLES])
    parts += gallery("Answered wrongly", [row for row in rows if wrong(row)][:_EXAMPLES])
    return parts


def _varied(facts: Facts, rows: Sequence[int]) -> list[int]:
    """The first of every answer, then the first ones, as many as are shown."""
    answers = facts.evidence["decisions"]["classes"]
    firsts = list({answers[row]: row for row in reversed(rows)}.values())
    order = {row: place for place, row in enumerate(rows)}
    firsts.sort(key=order.__getitem__)
    return (firsts + [row for row in rows if row not in firsts])[:_EXAMPLES]


def _picture(facts: Facts, row: int, confidence: float, wrong: bool) -> Picture:
    decided, labels = facts.evidence["decisions"], facts.manifest.labels
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
        lines.append(f"{confidence:.4f}")
    return Picture(thumbnail(facts.samples[row]), says, ", ".join(lines))
