"""What the thresholds trade, and what is promised of them."""

import numpy as np

from edgekit.bundle.manifest import GIVEN
from edgekit.report import plots
from edgekit.report.facts import BOUNDED, Facts
from edgekit.report.page import Figure, Part, Section, Table, Text
from edgekit.report.words import count_text, ms_text, share_text
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
    parts: list[Part] = [
        Text(
            f"A sample leaves at the first exit whose confidence ({looked_at}) is at least its "
            "threshold; the final exit takes the rest"
            + (
                "."
                if policy.otherwise == "last"
                else ", and of all exits the one of the greatest confidence then answers."
            )
        )
    ]
    rates = facts.notes("tune").get("exit_rates", {})
    columns = {
        "threshold": [*(f"{one:.6g}" for one in policy.thresholds), "takes all"],
        "leave, tuning split": [share_text(rates.get(name)) for name in facts.exits],
        "cost up to here": [facts.priced(one) for one in facts.costs],
    }
    if policy.temperatures is not None:
        columns["temperature"] = [f"{one:.4g}" for one in policy.temperatures]
    rows = tuple(zip(facts.exits, *columns.values(), strict=True))
    parts.append(Table("As deployed", ("exit", *columns), rows))
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
    scale = plots.Scale.of(finite if facts.manifest.policy.criterion in BOUNDED else ())
    policy = facts.manifest.policy
    deployed = observed.taken(policy.thresholds)
    now_right = float(observed.right[deployed, np.arange(samples)].mean())
    now_cost = float(costs[deployed].mean())
    told = facts.told
    found: list[tuple[str, list[plots.Line | plots.Marks]]] = [
        (f"mean {axis}", [plots.Line("one threshold for all", x, cost)])
    ]
    levels: list[tuple[str, float] | None] = [("as deployed", now_cost / divisor)]
    if told:
        found.insert(0, (what, [plots.Line("one threshold for all", x, accuracy)]))
        levels.insert(0, ("as deployed", now_right))
    table = Table(
        "One threshold for all exits",
        ("threshold", *((what,) if told else ()), f"mean {axis}", "leave early"),
        tuple(
            (
                f"{threshold:.6g}",
                *((share_text(right, 2),) if told else ()),
                ms_text(price),
                share_text(1 - float(last) / samples),
            )
            for threshold, right, price, last in zip(
                x, accuracy, cost, curve.counts[:, -1], strict=True
            )
        ),
        frozenset(),
    )
    parts: list[Part] = [
        Figure(
            f"{what.capitalize() if told else 'Cost'} against the threshold",
            plots.panels(
                "threshold",
                "threshold, the same for all early exits",
                found,
                percent=[True, False] if told else [False],
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
    return parts


def _front(facts: Facts, alike: Points, now_right: float, now_cost: float, what: str) -> Figure:
    """The front of accuracy against cost, with what is deployed on it."""
    tuning, seen = facts.manifest.tuning, facts.seen
    assert seen is not None  # noqa: S101  (asked by the caller)
    samples = len(seen.final)
    divisor, axis = facts.axis
    costs = facts.costs
    by = "label" if seen.labels is not None else "disagreement"
    alone = [float(one) for one in seen.right(by).mean(axis=1)]
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
            ("exit", what, f"mean {axis}"),
            tuple(
                (name, share_text(right, 2), ms_text(float(cost) / divisor))
                for name, right, cost in zip(facts.exits, alone, costs, strict=True)
            ),
        )
    ]
    points = [one for one in (tuning.points if tuning else ()) if one.right is not None]
    if tuning is not None and points:
        certified = tuning.certificate is not None
        series.append(
            plots.Marks(
                "the front" + (", certified" if certified else ""),
                tuple(one.cost / divisor for one in points),
                tuple((one.right or 0) / tuning.samples for one in points),
            )
        )
        chosen = tuning.points[tuning.chosen]
        tables.insert(
            0,
            Table(
                "The front" + (", all of it certified" if certified else ""),
                (*(f"at {one}" for one in facts.exits[:-1]), what, f"mean {axis}", ""),
                tuple(
                    (
                        *(f"{x:.6g}" for x in one.thresholds),
                        share_text((one.right or 0) / tuning.samples, 2),
                        ms_text(one.cost / divisor),
                        "deployed" if one is chosen else "",
                    )
                    for one in points
                ),
                frozenset({len(facts.exits) + 1}),
            ),
        )
    series.append(plots.Marks("deployed", (now_cost / divisor,), (now_right,), large=True))
    reference = tuning.reference_right if tuning else None
    level = (
        ("PyTorch, final exit", reference / tuning.samples)
        if tuning and reference is not None
        else None
    )
    return Figure(
        f"{what.capitalize()} against cost, tuning split",
        plots.panels(
            "front", f"mean {axis} a sample", [(what, series)], percent=[True], level=[level]
        ),
        f"Deployed: {share_text(now_right, 2)} at {facts.priced(now_cost)} a sample; with no "
        f"exit taken {share_text(alone[-1], 2)} at {facts.priced(facts.costs[-1])}.",
        tuple(tables),
    )


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
