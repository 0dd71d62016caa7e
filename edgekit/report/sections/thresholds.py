"""What the thresholds trade, and what is promised of them."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import GIVEN, Point
from edgekit.report import plots
from edgekit.report.facts import BOUNDED, Facts
from edgekit.report.page import Figure, Part, Section, Table, Text
from edgekit.report.words import (
    ABSENT,
    confidence_text,
    count_text,
    ms_text,
    of_samples,
    share_text,
)
from edgekit.tuning.search import Points, shared

__all__ = ["thresholds"]

_CURVE = 60
"""Points of a curve; its table has a row for each."""


def thresholds(facts: Facts) -> Section:
    """The policy, what its thresholds trade, and what is promised of them."""
    policy = facts.manifest.policy
    looked_at = {
        "last": f"{policy.criterion}, of its own logits",
        "sum": f"{policy.criterion}, of the sum of the logits so far",
        "geometric": f"{policy.criterion}, of the geometric mean of the probabilities so far",
    }[policy.combine]
    if policy.criterion == GIVEN:
        looked_at = "which it gives itself"
    rates = facts.notes("tune").get("exit_rates", {})
    counted = of_samples("tuning split", facts.notes("tune").get("samples"))
    parts: list[Part] = [
        Text(
            f"A sample leaves at the first exit whose confidence ({looked_at}) is at least its "
            "threshold; the final exit takes the rest"
            + (
                "."
                if policy.otherwise == "last"
                else ", and of all exits the one of the greatest confidence then answers."
            )
            + (f" The shares that leave are of {counted}." if rates else "")
        )
    ]
    early = [facts.threshold_text(*one) for one in enumerate(policy.thresholds)]
    columns = {
        "threshold": [*early, "takes all"],
        "leave": [share_text(rates.get(name)) for name in facts.exits],
        "cost up to here": [facts.priced(one) for one in facts.costs],
    }
    if facts.ms is not None:
        columns["mean ms up to here"] = [ms_text(one) for one in facts.ms]
    if policy.temperatures is not None:
        columns["temperature"] = [f"{one:.4g}" for one in policy.temperatures]
    rows = tuple(zip(facts.exits, *columns.values(), strict=True))
    parts.append(Table("As deployed", ("exit", *columns), rows))
    if facts.whose_costs:
        parts.append(Text(facts.whose_costs))
    elif facts.ms is not None:
        parts.append(Text(f"Times are counted from those to each exit. {facts.where}"))
    parts += _trade(facts)
    parts += _promise(facts)
    return Section("Thresholds, and what is promised", tuple(parts))


def _trade(facts: Facts) -> list[Part]:
    """Accuracy and cost against a threshold that all exits share, and the front of both."""
    seen = facts.seen
    if seen is None or len(facts.exits) == 1:
        return [] if len(facts.exits) == 1 else [Text("No tuning split: nothing to trade by.")]
    by = "label" if seen.labels is not None else "disagreement"
    what = "accuracy" if by == "label" else "agreement with the final exit"
    costs, (divisor, axis) = facts.costs, facts.axis
    observed = seen.observed(by, costs)
    samples = observed.samples
    every = shared(observed)
    rows = np.unique(np.linspace(0, len(every) - 1, _CURVE).round().astype(int))
    curve = every.of(rows)
    finite = seen.confidences[:-1][np.isfinite(seen.confidences[:-1])]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    # Below and above all confidences a threshold decides no more than at their ends.
    x = tuple(float(one) for one in np.clip(curve.thresholds[:, 0], low, high))
    accuracy = tuple(float(one) / samples for one in curve.right)
    cost = tuple(float(one) / divisor for one in curve.costs)
    ms = [] if facts.ms is None else (curve.counts @ facts.ms / samples).tolist()
    scale = plots.Scale.of(finite if facts.manifest.policy.criterion in BOUNDED else ())
    policy = facts.manifest.policy
    deployed = observed.taken(policy.thresholds)
    now_right = float(observed.right[deployed, np.arange(samples)].mean())
    now_cost = float(costs[deployed].mean())
    told = facts.told
    found: list[tuple[str, list[plots.Line | plots.Marks]]] = [
        (f"mean {axis}", [plots.Line("one threshold for all", x, cost, steps=True)])
    ]
    levels: list[tuple[str, float] | None] = [("as deployed", now_cost / divisor)]
    if told:
        found.insert(0, (what, [plots.Line("one threshold for all", x, accuracy, steps=True)]))
        levels.insert(0, ("as deployed", now_right))
    if facts.ms is not None:
        line = plots.Line("one threshold for all", x, tuple(ms), steps=True)
        found.append(("mean ms", [line]))
        levels.append(("as deployed", float(facts.ms[deployed].mean())))
    table = Table(
        "One threshold for all exits",
        (
            "threshold",
            *((what,) if told else ()),
            f"mean {axis}",
            *(("mean ms",) if ms else ()),
            "leave early",
        ),
        tuple(
            (
                confidence_text(x[row]) if curve.counts[row, -1] < samples else "nobody leaves",
                *((share_text(accuracy[row], 2),) if told else ()),
                ms_text(cost[row]),
                *((ms_text(ms[row]),) if ms else ()),
                share_text(1 - float(curve.counts[row, -1]) / samples),
            )
            for row in range(len(x))
        ),
        frozenset(),
    )
    parts: list[Part] = [
        Figure(
            f"{what.capitalize() if told else 'Cost'} against the threshold, "
            + of_samples("tuning split", samples),
            plots.panels(
                "threshold",
                "threshold, the same for all early exits",
                found,
                percent=[told, *[False] * (len(found) - 1)],
                scale=scale,
                level=levels,
            ),
            f"As deployed: {what} {share_text(now_right, 2)} at {facts.priced(now_cost)} a sample"
            if told
            else f"As deployed: {facts.priced(now_cost)} a sample",
            (table,),
        )
    ]
    if told:
        parts.append(_front(facts, curve, now_right, now_cost, what))
        if not all(_undominated(_counted(facts))):
            parts.append(
                Text(
                    "Hollow points are off the front: by what is drawn here, a cheaper one is as "
                    "good."
                )
            )
    return parts


def _front(facts: Facts, alike: Points, now_right: float, now_cost: float, what: str) -> Figure:
    """Accuracy against cost: what the bundle may run at, and what is deployed."""
    tuning, seen = facts.manifest.tuning, facts.seen
    assert seen is not None  # noqa: S101  (asked by the caller)
    samples = len(seen.final)
    divisor, axis = facts.axis
    costs = facts.costs
    by = "label" if seen.labels is not None else "disagreement"
    alone = [float(one) for one in seen.right(by).mean(axis=1)]
    ms = facts.ms
    reference = tuning.reference_right if tuning else None
    level: tuple[str, float] | None = None
    reference_row: tuple[tuple[str, ...], ...] = ()
    if tuning is not None and reference is not None:
        level = "PyTorch, final exit", reference / tuning.samples
        blank = (ABSENT,) * (1 if ms is None else 2)
        reference_row = ((level[0], share_text(level[1], 2), *blank),)
    series: list[plots.Line | plots.Marks] = [
        plots.Line(
            "one threshold for all",
            tuple(float(one) / divisor for one in alike.costs),
            tuple(float(one) / samples for one in alike.right),
        ),
        plots.Marks(
            "all at one exit",
            tuple(float(one) / divisor for one in costs),
            tuple(alone),
            labels=facts.exits,
        ),
    ]
    tables = [
        Table(
            "All samples at one exit",
            ("exit", what, f"mean {axis}", *(("mean ms",) if ms is not None else ())),
            tuple(
                (
                    name,
                    share_text(alone[row], 2),
                    ms_text(float(costs[row]) / divisor),
                    *((ms_text(float(ms[row])),) if ms is not None else ()),
                )
                for row, name in enumerate(facts.exits)
            )
            + reference_row,
        )
    ]
    points = _counted(facts)
    if tuning is not None and points:
        best = _undominated(points)
        certified = tuning.certificate is not None
        for on_it in (True, False):
            some = [one for one, here in zip(points, best, strict=True) if here is on_it]
            name = "the front" if on_it else "off the front"
            series.append(
                plots.Marks(
                    f"certified, {name}" if certified else name,
                    tuple(one.cost / divisor for one in some),
                    tuple((one.right or 0) / tuning.samples for one in some),
                    hollow=not on_it,
                )
            )
            if not some:
                series.pop()
        chosen = tuning.points[tuning.chosen]
        title = "Points that the certificate covers" if certified else "Points to run at"
        tables.insert(
            0,
            Table(
                f"{title}; the front are those that no cheaper one is as good as",
                (
                    *(f"at {one}" for one in facts.exits[:-1]),
                    what,
                    f"mean {axis}",
                    *(("mean ms",) if ms is not None else ()),
                    "",
                ),
                tuple(
                    (
                        *(facts.threshold_text(*x) for x in enumerate(one.thresholds)),
                        share_text((one.right or 0) / tuning.samples, 2),
                        ms_text(one.cost / divisor),
                        *((ms_text(_mean_ms(one, ms)),) if ms is not None else ()),
                        ("the front" if here else "off the front")
                        + (", deployed" if one is chosen else ""),
                    )
                    for one, here in zip(points, best, strict=True)
                ),
                frozenset({len(facts.exits) + (2 if ms is not None else 1)}),
            ),
        )
    series.append(plots.Marks("deployed", (now_cost / divisor,), (now_right,), large=True))
    return Figure(
        f"{what.capitalize()} against cost, {of_samples('tuning split', samples)}",
        plots.panels(
            "front", f"mean {axis} a sample", [(what, series)], percent=[True], level=[level]
        ),
        f"Deployed: {share_text(now_right, 2)} at {facts.priced(now_cost)} a sample; with no "
        f"exit taken {share_text(alone[-1], 2)} at {facts.priced(facts.costs[-1])}.",
        tuple(tables),
    )


def _counted(facts: Facts) -> list[Point]:
    """The points that the bundle may run at, cheapest first, where right answers were counted."""
    tuning = facts.manifest.tuning
    return [one for one in (tuning.points if tuning else ()) if one.right is not None]


def _undominated(points: Sequence[Point]) -> list[bool]:
    """Which of these, cheapest first, no cheaper one is as good as."""
    best = list(itertools.accumulate((one.right or 0 for one in points), max, initial=-1))
    return [(one.right or 0) > before for one, before in zip(points, best, strict=False)]


def _mean_ms(point: Point, ms: npt.NDArray[np.float64]) -> float:
    counts = np.array([one.count for one in point.left])
    return float(counts @ ms / counts.sum())


def _promise(facts: Facts) -> list[Part]:
    """What a certificate says, in words; or that there is none."""
    noted = facts.notes("tune").get("certificate")
    tuning = facts.manifest.tuning
    found = noted or (
        {
            "risk": tuning.certificate.risk,
            "confidence": tuning.certificate.confidence,
            "of": tuning.certificate.of,
        }
        if tuning and tuning.certificate
        else None
    )
    if found is None:
        return [
            Text(
                "No certificate: these figures are of the tuning split, and promise nothing of "
                "other samples. policy.tune.certificate in the recipe asks for one."
            )
        ]
    what = {
        "disagreement": "get another answer than the built chain's final exit gives",
        "accuracy_loss": "are answered wrongly where the built chain's final exit is right",
    }[found["of"]]
    text = (
        f"Certified, with {share_text(found['confidence'], 0)} confidence: of samples drawn as the "
        f"tuning split was, no more than {share_text(found['risk'], 2)} {what}."
    )
    if "tested" in found:
        text += (
            f" Tested on {count_text(found['tested'])} samples that had no part in the search, "
            f"{count_text(found['errors'])} of them such (p = {found['p_value']:.2g})."
        )
    return [Text(text), Text("Another policy, a deadline, or other data voids it.")]
