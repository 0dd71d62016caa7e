"""What takes room."""

from edgekit.report import plots
from edgekit.report.facts import Facts
from edgekit.report.page import Figure, Section, Table, Text
from edgekit.report.words import ABSENT, bytes_text, count_text, pair

__all__ = ["sizes"]


def sizes(facts: Facts) -> Section:
    """What takes room, on the disk and in each segment."""
    manifest = facts.manifest
    lowered = facts.notes("lower").get("size_bytes", {})
    (undivided,) = (one for one in manifest.baselines if one.variant == manifest.variant().name)
    parts = [*manifest.variant().segments, undivided.plain, undivided.whole]
    rows = tuple(
        (
            one.name,
            count_text(one.parameters),
            bytes_text(lowered[one.name]) if one.name in lowered else ABSENT,
            bytes_text(one.size_bytes),
        )
        for one in parts
    )
    table = Table("Networks", ("file", "parameters", "lowered, FP32", "as built"), rows)
    bars = [
        plots.Bar(
            one.name,
            one.size_bytes / 1e3,
            pair(
                bytes_text(one.size_bytes),
                bytes_text(lowered[one.name]) if one.name in lowered else None,
            ),
            lowered[one.name] / 1e3 if one.name in lowered else None,
            main=one not in {undivided.plain, undivided.whole},
        )
        for one in parts
    ]
    folders: dict[str, int] = {}
    for file in manifest.all_files():
        folder = file.path.partition("/")[0]
        folders[folder] = folders.get(folder, 0) + file.size_bytes
    kinds = Table(
        "The bundle's folders",
        ("folder", "size"),
        (
            *((name, bytes_text(size)) for name, size in sorted(folders.items())),
            ("all of it", bytes_text(sum(folders.values()))),
        ),
    )
    figure = Figure(
        "Size of each network's file",
        plots.bars("sizes", "kB, as built" + (" | as lowered, FP32" if lowered else ""), bars),
        ", ".join(f"{one.name} {one.text}" for one in bars),
        (table,),
    )
    return Section(
        "Sizes",
        (
            figure,
            kinds,
            Text(
                "baselines, golden and test are there to measure and to verify with; a chain runs "
                "without them."
            ),
        ),
    )
