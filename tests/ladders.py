"""Ladders for tests: two small networks of three exits, one wider than the other."""

import json
import shutil
from pathlib import Path
from typing import Any

from edgekit.bundle.ladder import seal_ladder
from edgekit.bundle.manifest import LADDER_NAME
from edgekit.bundle.reader import read_bundle

NARROW, WIDE = "w0.5", "w1.0"


def entry_of(folder: Path, width: float) -> dict[str, Any]:
    """What `ladder.json` says of the bundle in `folder`."""
    manifest = read_bundle(folder).manifest
    segments = manifest.variant().segments
    return {
        "name": folder.name,
        "bundle_id": manifest.bundle_id,
        "settings": {"width_mult": width},
        "parameters": sum(one.parameters for one in segments),
        "macs": sum(one.macs for one in segments),
        "size_bytes": sum(one.size_bytes for one in segments),
        "accuracy": width / 2,
        "accuracy_of": "labels",
    }


def cascade_of(thresholds: list[float], **changes: Any) -> dict[str, Any]:
    """What `ladder.json` says of a cascade that was tuned to these thresholds."""
    variants = len(thresholds) + 1
    return {
        "thresholds": thresholds,
        "samples": 24,
        "accuracy": 0.95,
        "goal": {"max_accuracy_drop": 0.01},
        "rates": [1 / variants] * variants,
        "unit": "MACs",
        "mean_cost": 2000.0,
        "widest_cost": 16000.0,
        **changes,
    }


def document_of(**changes: Any) -> dict[str, Any]:
    """A document of three variants, for reading alone: there are no such bundles."""
    variants = [
        {
            "name": f"w{width}",
            "bundle_id": f"{place:064}",
            "settings": {"width_mult": width},
            "parameters": 1000 * 4**place,
            "macs": 1000 * 4**place,
            "size_bytes": 4000 * 4**place,
            "accuracy": 0.90 + 0.03 * place,
            "accuracy_of": "labels",
        }
        for place, width in enumerate((0.25, 0.5, 1.0))
    ]
    return {
        "name": "net",
        "variants": variants,
        "policy": {"kind": "fixed", "variant": "w1.0"},
        "cascade": cascade_of([0.9, 0.8]),
        **changes,
    }


def rewrite(folder: Path, **changes: Any) -> Path:
    """The ladder in `folder` with parts of its document changed, and sealed again."""
    document = json.loads((folder / LADDER_NAME).read_bytes())
    (folder / LADDER_NAME).write_bytes(seal_ladder({**document, **changes}))
    return folder


def assemble(folder: Path, bundles: dict[str, tuple[Path, float]]) -> Path:
    """A ladder of copies of these bundles, given narrowest first, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, (bundle, width) in bundles.items():
        shutil.copytree(bundle, folder / name)
        entries.append(entry_of(folder / name, width))
    document = {
        "name": "tiny",
        "variants": entries,
        "policy": {"kind": "fixed", "variant": entries[-1]["name"]},
        "cascade": None,
    }
    (folder / LADDER_NAME).write_bytes(seal_ladder(document))
    return folder
