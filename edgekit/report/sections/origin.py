"""Where the bundle is from: commands, versions, machine, recipe."""

import json
from typing import Any

from edgekit.report.facts import Facts
from edgekit.report.page import Code, Part, Section, Table
from edgekit.report.words import ABSENT

__all__ = ["origin"]

WORDS = frozenset({0, 1})

_HOST = (
    ("processor", "cpu"),
    ("architecture", "machine"),
    ("cores", "cores"),
    ("system", "system"),
)


def origin(facts: Facts) -> Section:
    """The exact commands and versions, and the recipe."""
    manifest, evidence = facts.manifest, facts.evidence
    host = evidence.get("host", {})
    command = evidence.get("command")
    lines = [one for one in (command, evidence.get("tune_command")) if one is not None]
    lines += ["edgekit verify BUNDLE", "edgekit bench BUNDLE", "edgekit report BUNDLE"]
    versions = {**manifest.tools, "Python": host.get("python", ABSENT)}
    parts: list[Part] = [
        Code("Commands", "\n".join(lines)),
        Table("Versions", ("package", "version"), tuple(sorted(versions.items())), WORDS),
        Table(
            "The machine that built it",
            ("", "is"),
            (
                *((name, str(host.get(key, ABSENT))) for name, key in _HOST),
                ("built at", evidence.get("built_at", ABSENT)),
            ),
            WORDS,
        ),
        *_tuned(evidence),
        Table(
            "Stages",
            ("stage", "seconds"),
            tuple((one["name"], f"{one['seconds']:.1f}") for one in evidence.get("stages", [])),
        ),
        Table(
            "How far each segment was proven",
            ("segment", "proven", "by", "for compute capability"),
            tuple(
                (one["segment"], one["proven"], one["by"], one.get("compute_capability") or "-")
                for one in evidence.get("proof", [])
            ),
            frozenset({0, 1, 2}),
        ),
        Table(
            "Identity",
            ("hash", "SHA-256"),
            (
                ("bundle_id, what is deployed", manifest.bundle_id),
                ("seal, the whole manifest", facts.bundle.seal),
            ),
            WORDS,
        ),
        Code("The device needs", "\n".join(
            (f"Python {manifest.requirements.python}", *manifest.requirements.packages)
        ), folded=True),
        Code("The recipe, resolved", json.dumps(manifest.recipe, indent=1), folded=True),
    ]  # fmt: skip
    return Section("Commands and versions", tuple(parts))


def _tuned(evidence: dict[str, Any]) -> list[Part]:
    """Of what `edgekit tune` made the bundle; nothing of one that a build made."""
    if "tuned_from" not in evidence:
        return []
    rows = [
        ("tuned at", str(evidence.get("tuned_at", ABSENT))),
        ("from the bundle", str(evidence["tuned_from"])),
    ]
    if found := evidence.get("costs_from"):
        device = found["device"]
        rows += [
            (
                "to the times of",
                f"{device.get('cpu')} ({device.get('machine')}), {found['engine']}",
            ),
            ("measured", "here" if found["source"] == "here" else f"in {found['source']}"),
            ("on the target", "yes" if found["on_target"] else "no"),
        ]
    return [Table("Tuned", ("", "is"), tuple(rows), WORDS)]
