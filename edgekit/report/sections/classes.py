"""Which classes an early answer costs."""

import numpy as np

from edgekit.report import plots
from edgekit.report.facts import Facts
from edgekit.report.page import Figure, Section, Table, Text
from edgekit.report.words import count_text, of_samples, share_text

__all__ = ["classes"]

_CLASSES = 40
"""Classes with a row of their own, those with the lowest accuracy; more are no picture any more."""

_EXITS = 6
"""Exits with a column in the picture, evenly spaced, the first and the final one among them."""


def classes(facts: Facts) -> Section:
    """How often each class is right at each exit, and in the chain."""
    title = "Accuracy by class and exit"
    if not facts.told:
        return Section(
            title, (Text("The exits tell no classes: nobody knows here what is right."),)
        )
    seen = facts.seen
    if seen is None or seen.labels is None:
        return Section(title, (Text("The tuning split has no labels to count accuracy with."),))
    labels = facts.manifest.labels
    taken = seen.taken(facts.manifest.policy.thresholds)
    right = seen.right()
    chain = right[taken, np.arange(len(taken))]
    counts = np.bincount(seen.labels, minlength=len(labels))
    present = np.flatnonzero(counts)
    mean = {int(one): float(chain[seen.labels == one].mean()) for one in present}
    shown = sorted(sorted(mean, key=lambda one: (mean[one], one))[:_CLASSES])
    rows, values = [], []
    for one in shown:
        of_class = seen.labels == one
        each = [float(row[of_class].mean()) for row in right]
        values.append([*each, mean[one]])
        left = np.bincount(taken[of_class], minlength=len(right))
        rows.append(
            (
                labels[one],
                count_text(int(counts[one])),
                *(share_text(x) for x in each),
                share_text(mean[one]),
                " / ".join(count_text(int(x)) for x in left),
            )
        )
    everything = [float(row.mean()) for row in right]
    rows.append(
        (
            "all classes",
            count_text(len(taken)),
            *(share_text(x) for x in everything),
            share_text(float(chain.mean())),
            " / ".join(count_text(int(x)) for x in np.bincount(taken, minlength=len(right))),
        )
    )
    values.append([*everything, float(chain.mean())])
    table = Table(
        "Accuracy by class",
        ("class", "samples", *facts.exits, "chain", f"left at {' / '.join(facts.exits)}"),
        tuple(rows),
    )
    worst = min(mean, key=lambda one: (mean[one], one))
    # So many numbers fit beside one another on a phone; the table has every exit.
    drawn = np.unique(np.linspace(0, len(right) - 1, _EXITS).round().astype(int))
    figure = Figure(
        f"Accuracy in %, {of_samples('tuning split', seen.samples)}; darker is worse",
        plots.cells(
            "classes",
            [*(labels[one] for one in shown), "all"],
            [*(facts.exits[one] for one in drawn), "chain"],
            [[*(row[one] for one in drawn), row[-1]] for row in values],
        ),
        f"A row a class, a column an exit and the chain. The lowest in the chain is "
        f"{labels[worst]} with {share_text(mean[worst])}, all classes have "
        f"{share_text(float(chain.mean()))}.",
        (table,),
    )
    hidden = len(present) - len(shown)
    return Section(
        title,
        (
            Text(
                "A column of an exit counts all samples as if each left there; the chain's counts "
                "each where it did leave. All of the tuning split"
                + (
                    f"; {hidden} more classes are right at least as often as those shown."
                    if hidden
                    else "."
                )
            ),
            figure,
        ),
    )
