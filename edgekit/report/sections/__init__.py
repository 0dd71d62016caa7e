"""What a bundle's page says, a section a file: `Facts` in, a `Section` or None out.

Who has something to say adds a function to `SECTIONS`. Where a bundle lacks what it tells of, the
function gives None, or says in words what is not there.
"""

from collections.abc import Callable

from edgekit.report.facts import Facts, LadderFacts
from edgekit.report.page import Section
from edgekit.report.sections.checks import checks
from edgekit.report.sections.classes import classes
from edgekit.report.sections.exits import exits
from edgekit.report.sections.ladder import ladder, trade, widths
from edgekit.report.sections.latency import latency
from edgekit.report.sections.origin import origin
from edgekit.report.sections.overview import overview
from edgekit.report.sections.sizes import sizes
from edgekit.report.sections.split import split
from edgekit.report.sections.temperatures import temperatures
from edgekit.report.sections.thresholds import thresholds

__all__ = ["LADDER_SECTIONS", "SECTIONS"]

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    overview,
    split,
    thresholds,
    temperatures,
    exits,
    classes,
    latency,
    checks,
    sizes,
    origin,
)
"""The page from top to bottom."""

LADDER_SECTIONS: tuple[Callable[[LadderFacts], Section], ...] = (ladder, trade, widths)
"""The page of a ladder from top to bottom."""
