"""How far confidence is from accuracy."""

from typing import Any

from edgekit.report import plots
from edgekit.report.facts import Facts
from edgekit.report.page import Figure, Section, Table, Text
from edgekit.report.words import count_text, of_samples, share_text, short

__all__ = ["temperatures"]


def temperatures(facts: Facts) -> Section | None:
    """How far confidence is from accuracy, before and after each exit's temperature."""
    found = facts.notes("tune").get("temperature")
    if not found:
        return None
    table = Table(
        "Expected calibration error",
        ("exit", "temperature", "before", "after"),
        tuple(
            (
                name,
                f"{one['temperature']:.4g}",
                share_text(one["ece_before"], 2),
                share_text(one["ece_after"], 2),
            )
            for name, one in found.items()
        ),
    )
    drawn = [
        (title, [plots.Line(short(name, 10), *_diagram(one[key])) for name, one in found.items()])
        for title, key in (("before", "bins_before"), ("after", "bins_after"))
        if all(key in one for one in found.values())
    ]
    text = Text(
        "An exit's logits are divided by its temperature, so that of the answers with a confidence "
        "of 90 % about 90 % are right. The expected calibration error is how far confidence is "
        "from accuracy, on average."
    )
    if not drawn:
        return Section("Temperatures", (text, table))
    bins = Table(
        "Answers by confidence",
        ("exit", "temperature", "confidence", "right", "samples"),
        tuple(
            (name, title, share_text(bin["confidence"]), share_text(bin["accuracy"]),
             count_text(bin["count"]))
            for name, one in found.items()
            for title in ("before", "after")
            for bin in one.get(f"bins_{title}", ())
            if bin["count"]
        ),
        frozenset({0, 1}),
    )  # fmt: skip
    figure = Figure(
        "Accuracy against confidence, "
        + of_samples("tuning split", _fitted_to(next(iter(found.values())))),
        plots.calibration("temperature", drawn),
        ", ".join(
            f"{name} from {share_text(one['ece_before'], 2)} to {share_text(one['ece_after'], 2)}"
            for name, one in found.items()
        ),
        (bins,),
    )
    return Section("Temperatures", (text, figure, table))


def _fitted_to(one: dict[str, Any]) -> int:
    """How many samples an exit's temperature was fitted to: each lies in one bin."""
    return sum(bin["count"] for bin in one.get("bins_before", one.get("bins_after", ())))


def _diagram(bins: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean confidence and accuracy of the bins that hold samples."""
    held = [one for one in bins if one["count"]]
    return tuple(one["confidence"] for one in held), tuple(one["accuracy"] for one in held)
