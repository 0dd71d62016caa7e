"""The page that lies in a ladder's folder: collected out of the ladder, drawn, sealed, put there.

Nothing is run and nothing is measured here, so the same ladder and profile give the same page.
"""

import hashlib
from pathlib import Path

from edgekit.bundle.ladder import (
    PROFILE_NAME,
    read_ladder,
    read_ladder_page,
    read_variant_manifest,
)
from edgekit.bundle.manifest import LADDER_NAME, REPORT_NAME, seal_page
from edgekit.bundle.writer import replace_file
from edgekit.errors import BundleError
from edgekit.report.benches import demand_of_ladder, read_ladder_report_file
from edgekit.report.facts import LadderFacts
from edgekit.report.page import render
from edgekit.report.sections import LADDER_SECTIONS
from edgekit.runtime.profile import profile_beside

__all__ = ["collect_ladder", "draw_ladder", "drawn_already", "write_ladder_report"]


def write_ladder_report(path: Path, bench: Path | None = None) -> Path:
    """Draw the page of the ladder in the folder `path`, and put it there; where it lies.

    `bench` is a file with a report of `edgekit bench LADDER --json` to show. Raises BundleError
    where the ladder is not as it was built, InputError where the report is of another one,
    DeviceError without matplotlib, BuildError where the page cannot be written.
    """
    page = draw_ladder(collect_ladder(path, bench), _sources(path))
    place = path / REPORT_NAME
    replace_file(place, seal_page(page))
    return place


def collect_ladder(path: Path, bench: Path | None = None) -> LadderFacts:
    """What a ladder's page is made of. Raises as `write_ladder_report`."""
    document = read_ladder(path)
    manifests = {name: read_variant_manifest(path, document, name) for name in document.names}
    profile, odd = profile_beside(path, document)
    report = None
    if bench is not None:
        report = read_ladder_report_file(bench)
        demand_of_ladder(document, report, str(bench))
    return LadderFacts(
        document,
        manifests[document.names[-1]],
        profile,
        odd,
        report,
        "" if bench is None else bench.name,
        frozenset(name for name in document.names if (path / name / REPORT_NAME).is_file()),
    )


def draw_ladder(facts: LadderFacts, sources: str = "") -> str:
    """The page; `sources` is a hash of what it is drawn from. Raises DeviceError as plots do."""
    document, edgekit = facts.document, facts.manifest.tools.get("edgekit", "")
    return render(
        f"{document.name} for {facts.manifest.target.name}",
        f"ladder {document.ladder_id[:12]}, built by edgekit {edgekit}",
        [make(facts) for make in LADDER_SECTIONS],
        {
            "generator": f"edgekit {edgekit}",
            "edgekit-ladder": document.ladder_id,
            "edgekit-sources": sources,
        },
        "Everything on this page comes out of the ladder. edgekit report LADDER makes it anew.",
    )


def drawn_already(path: Path) -> bool:
    """Whether the ladder in the folder `path` has a page of what lies there now, unchanged."""
    try:
        page = read_ladder_page(path)
    except BundleError:
        return False
    return page is not None and f'content="{_sources(path)}"' in page


def _sources(path: Path) -> str:
    """A hash of the files that a page without a bench is drawn from."""
    found = hashlib.sha256()
    for name in (LADDER_NAME, PROFILE_NAME):
        file = path / name
        found.update(file.read_bytes() if file.is_file() else b"")
    return found.hexdigest()
