"""A ladder's variants: what each holds, takes and is worth, and which are worth having."""

from collections.abc import Sequence

from edgekit.bundle.ladder import TunedCascade, policy_document
from edgekit.report import plots
from edgekit.report.benches import ladder_policy_text
from edgekit.report.facts import LadderFacts
from edgekit.report.page import Figure, Links, Numbers, Part, Section, Table, Text
from edgekit.report.words import (
    ABSENT,
    bytes_text,
    confidence_text,
    count_text,
    macs_text,
    ms_text,
    share_text,
    times_text,
)

__all__ = ["ladder", "trade", "undominated", "widths"]

NOT_YET = (
    "edgekit bench LADDER --profile measures it on the device; edgekit report LADDER shows it."
)


def ladder(facts: LadderFacts) -> Section:
    """What was built for what, and what came of it."""
    document, target = facts.document, facts.manifest.target
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    parts: list[Part] = [
        Text(
            f"{document.name}, one network in {len(document.variants)} variants, built for "
            f"{target.name}: {target.engine}, {target.precision}, {threads}. Each is a bundle of "
            f"its own, {', '.join(document.names)}, narrowest first."
        )
    ]
    items = []
    means, accuracies = facts.means, facts.accuracies
    if means is not None:
        items.append(
            (
                times_text(means[-1] / means[0]),
                f"as fast as {document.names[-1]}",
                f"{document.names[0]}: {ms_text(means[0])} ms against {ms_text(means[-1])} ms",
            )
        )
    if accuracies[-1] is not None:
        items.append(
            (
                share_text(accuracies[-1]),
                facts.worth,
                f"{document.names[-1]}; {document.names[0]} {share_text(accuracies[0])}",
            )
        )
    if facts.bench is not None and (found := facts.bench["ladder"]) is not None:
        kind, mean_ms = facts.bench["policy"]["kind"], found["latency_ms"]["mean"]
        items.append(
            (
                times_text(found["speedup"]),
                f"as fast as {document.names[-1]}",
                f"{kind}: {ms_text(mean_ms)} ms, {share_text(found['accuracy'])}",
            )
        )
    size = sum(one.size_bytes for one in document.variants)
    items.append((bytes_text(size), "the chains' files", f"{len(document.variants)} variants"))
    parts.append(Numbers(tuple(items)))
    if facts.bench is not None:
        fine = facts.bench["valid"] and facts.bench["on_target"]
        parts.append(Text(facts.bench["verdict"], warns=not fine))
    parts.append(Text(facts.where, warns=facts.odd is not None))
    return Section("In short", tuple(parts))


def trade(facts: LadderFacts) -> Section:
    """Accuracy against latency, or against work where no time was measured; and the front."""
    document, means, worth = facts.document, facts.means, facts.worth
    title = f"{worth.capitalize()} against {'work' if means is None else 'latency'}"
    known = [one for one in facts.accuracies if one is not None]
    if len(known) < len(document.variants):
        return Section(
            title,
            (Text("Nobody knows what the variants are worth: build them with data.tuning."),),
        )
    macs = [one.macs for one in document.variants]
    million = macs[-1] >= 1e6
    costs = [one / (1e6 if million else 1e3) for one in macs] if means is None else means
    axis = "mean latency in ms"
    if means is None:
        axis = f"{'million' if million else 'thousand'} MACs, no exit taken"
    best = undominated([*zip(costs, known, strict=True)])
    series: list[plots.Line | plots.Marks] = []
    kept = [row for row, on_it in enumerate(best) if on_it]
    # By cost: a wider variant may be the faster one.
    kept.sort(key=lambda row: costs[row])
    series.append(
        plots.Line(
            "Pareto front",
            tuple(costs[row] for row in kept),
            tuple(known[row] for row in kept),
        )
    )
    for on_it, name in ((True, "on the front"), (False, "off the front")):
        rows = [row for row, one in enumerate(best) if one is on_it]
        if rows:
            series.append(
                plots.Marks(
                    name,
                    tuple(costs[row] for row in rows),
                    tuple(known[row] for row in rows),
                    hollow=not on_it,
                    below=True,
                    labels=tuple(document.names[row] for row in rows),
                )
            )
    table = [
        (name, share_text(one, 2), ms_text(cost), "on it" if on_it else "off it")
        for name, one, cost, on_it in zip(document.names, known, costs, best, strict=True)
    ]
    found = facts.bench["ladder"] if facts.bench is not None else None
    if found is not None and found["accuracy"] is not None and facts.bench is not None:
        kind = facts.bench["policy"]["kind"]
        mean_ms = found["latency_ms"]["mean"]
        series.append(plots.Marks(kind, (mean_ms,), (found["accuracy"],), large=True))
        table.append(
            (f"ladder ({kind})", share_text(found["accuracy"], 2), ms_text(mean_ms), ABSENT)
        )
    elif (at_ms := facts.tuned_ms) is not None and (tuned := document.cascade) is not None:
        series.append(plots.Marks("cascade, as tuned", (at_ms,), (tuned.accuracy,), large=True))
        table.append(("cascade", share_text(tuned.accuracy, 2), ms_text(at_ms), ABSENT))
    figure = Figure(
        "The variants and their Pareto front",
        plots.panels("ladder", axis, [(worth, series)], percent=[True]),
        ", ".join(f"{one[0]}: {one[1]} at {one[2]}, {one[3]}" for one in table),
        (Table(title, ("variant", worth, axis, "front"), tuple(table), frozenset({0, 3})),),
    )
    parts: list[Part] = [figure]
    source = "" if means is None else "; latency is the profile's"
    if facts.bench is not None:
        source = f"; latency is that of {facts.source}"
    parts.append(Text(f"{worth.capitalize()} is of {facts.worth_of}{source}."))
    if means is None:
        parts.append(Text(f"No time was measured, so work stands for it. {NOT_YET}", warns=True))
    if not all(best):
        lost = [name for name, on_it in zip(document.names, best, strict=True) if not on_it]
        parts.append(
            Text(
                f"Off the front: {', '.join(lost)}. Another variant costs no more and is at least "
                "as good."
            )
        )
    return Section(title, tuple(parts))


def widths(facts: LadderFacts) -> Section:
    """Every variant in a row of a table, its page, and who answers by the policy."""
    document, bench = facts.document, facts.bench
    means: Sequence[float | None] = facts.means or [None] * len(document.names)
    rows = tuple(
        (
            one.name,
            ", ".join(f"{key} {value}" for key, value in one.settings.items()),
            count_text(one.parameters),
            macs_text(one.macs),
            bytes_text(one.size_bytes),
            share_text(accuracy, 2),
            ms_text(mean),
            ms_text(p95),
            ABSENT if resident is None else bytes_text(resident),
        )
        for one, accuracy, mean, p95, resident in zip(
            document.variants, facts.accuracies, means, facts.p95s, facts.resident, strict=True
        )
    )
    columns = (
        "variant", "settings", "parameters", "MACs", "segments", facts.worth, "mean ms", "p95 ms",
        "memory",
    )  # fmt: skip
    parts: list[Part] = [Table("What each holds and takes", columns, rows, frozenset({0, 1}))]
    if facts.pages:
        parts.append(
            Links(
                "The variants' own pages",
                tuple(
                    (one.name, f"{one.name}/report.html", f"bundle {one.bundle_id[:12]}")
                    for one in document.variants
                    if one.name in facts.pages
                ),
            )
        )
    own = policy_document(document.policy)
    parts.append(Text(f"The ladder's policy: {ladder_policy_text(own)}."))
    if (tuned := document.cascade) is not None:
        parts.append(
            Table(
                f"The cascade, as it was tuned on {count_text(tuned.samples)} samples",
                ("variant", "answers from confidence", "of the samples"),
                tuple(
                    (name, sure, share_text(rate))
                    for name, sure, rate in zip(
                        document.names,
                        (*map(confidence_text, tuned.thresholds), "whatever is left"),
                        tuned.rates,
                        strict=True,
                    )
                ),
            )
        )
        parts.append(
            Text(
                f"There it has {share_text(tuned.accuracy, 2)} {facts.tuned_worth}, and a sample "
                f"costs {_cost(tuned, tuned.mean_cost)} on average; "
                f"{document.names[-1]} alone {_cost(tuned, tuned.widest_cost)}."
            )
        )
    if bench is not None and bench["ladder"] is not None:
        parts.append(
            Table(
                f"Who answered under {ladder_policy_text(bench['policy'])}",
                ("variant", "answered", "accuracy"),
                tuple(
                    (one["name"], share_text(one["share"]), share_text(one["accuracy"], 2))
                    for one in bench["ladder"]["answers"]
                ),
            )
        )
    return Section("The variants", tuple(parts))


def _cost(tuned: TunedCascade, cost: float) -> str:
    return f"{macs_text(cost)} MACs" if tuned.unit == "MACs" else f"{ms_text(cost)} {tuned.unit}"


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (cost, worth), which are on the Pareto front.

    Those that none beats in one without losing in the other; of equal ones the first.
    """
    order = sorted(range(len(points)), key=lambda row: (points[row][0], -points[row][1]))
    best = float("-inf")
    on_it = [False] * len(points)
    for row in order:
        on_it[row] = points[row][1] > best
        best = max(best, points[row][1])
    return on_it
