"""The page that lies in a bundle: collected out of the bundle alone, drawn, sealed and put there.

Nothing is run and nothing is measured here, so the same bundle gives the same page.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import EVIDENCE_NAME, REPORT_NAME, Manifest, seal_page
from edgekit.bundle.reader import Bundle, read_evidence
from edgekit.bundle.writer import replace_file
from edgekit.errors import BundleError, InputError
from edgekit.report.benches import demand, demand_of, read_report_file
from edgekit.report.facts import Facts
from edgekit.report.page import render
from edgekit.report.sections import SECTIONS
from edgekit.runtime.verify import load_array, load_arrays
from edgekit.tuning.seen import Seen

__all__ = ["collect", "draw", "write_report"]

Array = npt.NDArray[Any]


def write_report(bundle: Bundle, bench: Path | None = None) -> Path:
    """Draw a bundle's page and put it beside the manifest; where it lies.

    `bench` is a file with a report of `edgekit bench --json` to show instead of the build's own.
    Raises InputError where the bundle has no evidence, or the report is of another one,
    BundleError where either was changed, DeviceError without matplotlib, BuildError where the page
    cannot be written.
    """
    page = draw(collect(bundle, bench))
    path = bundle.path / REPORT_NAME
    replace_file(path, seal_page(page))
    return path


def collect(bundle: Bundle, bench: Path | None = None) -> Facts:
    """What a bundle's page is made of. Raises InputError and BundleError, see `write_report`."""
    manifest = bundle.manifest
    evidence = read_evidence(bundle)
    if evidence is None:
        raise InputError(
            f"{bundle.path}: comes without {EVIDENCE_NAME}, which a report is made of; copy or "
            "build it again"
        )
    report, measured = _own_bench(manifest, evidence), ""
    if bench is not None:
        report = read_report_file(bench)
        demand_of(manifest, report, str(bench))
        measured = f"by edgekit bench ({bench.name})"
    tuning = manifest.tuning
    seen = None if tuning is None else Seen.from_bytes(bundle.read(tuning.seen))
    if seen is not None and seen.confidences.shape != (len(manifest.variant().exits), seen.samples):
        raise BundleError(
            f"{bundle.path}: its samples of tuning are of other exits; build it again"
        )
    samples, labels = _carried(bundle)
    return Facts(bundle, evidence, report, measured, seen, samples, labels)


def draw(facts: Facts) -> str:
    """The page. Raises DeviceError without matplotlib."""
    manifest = facts.manifest
    evidence = (facts.bundle.path / EVIDENCE_NAME).read_bytes()
    sections = [one for make in SECTIONS if (one := make(facts)) is not None]
    return render(
        f"{manifest.name} for {manifest.target.name}",
        f"bundle {manifest.bundle_id[:12]}, built {facts.evidence.get('built_at', '')} by edgekit "
        f"{manifest.tools.get('edgekit', '')}"
        + (f", tuned {facts.evidence['tuned_at']}" if "tuned_at" in facts.evidence else ""),
        sections,
        {
            "generator": f"edgekit {manifest.tools.get('edgekit', '')}",
            "edgekit-bundle": manifest.bundle_id,
            # By it a page is known to be of the evidence that lies beside it.
            "edgekit-evidence": hashlib.sha256(evidence).hexdigest(),
        },
        "Everything on this page comes out of the bundle. edgekit report BUNDLE makes it anew, "
        "edgekit verify BUNDLE says whether it was changed.",
    )


def _own_bench(manifest: Manifest, evidence: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured at the build; None where that is not of this edgekit or this bundle."""
    try:
        report = demand(evidence.get("bench"), EVIDENCE_NAME)
        demand_of(manifest, report, EVIDENCE_NAME)
    except InputError:
        return None
    return report


def _carried(bundle: Bundle) -> tuple[Sequence[Array], Array | None]:
    """The images of the test split that the bundle carries, and its classes; none if none."""
    data = bundle.manifest.test_data
    if data is None:
        return (), None
    labels = load_array(bundle, data.labels) if data.labels else None
    pictured = [one.name for one in bundle.manifest.inputs if one.image is not None]
    if not pictured:
        return (), labels
    path = data.inputs[pictured[0]]
    images = load_arrays(bundle, path) if path.endswith(".npz") else load_array(bundle, path)
    return [np.asarray(one) for one in images], labels
