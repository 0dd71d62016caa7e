"""What was built for what, and what came of it."""

from edgekit.report.facts import Facts
from edgekit.report.page import Numbers, Part, Section, Text
from edgekit.report.words import bytes_text, macs_text, ms_text, share_text, times_text

__all__ = ["overview"]


def overview(facts: Facts) -> Section:
    """What was built for what, and what came of it."""
    manifest, bench = facts.manifest, facts.bench
    target = manifest.target
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    items = []
    parts: list[Part] = []
    if bench is not None:
        plain_ms = bench["plain"]["latency_ms"]["mean"]
        chain_ms = bench["latency_ms"]["mean"]
        items += [
            (times_text(bench["speedup"]), "as fast as plain", "the network with one exit"),
            (f"{ms_text(chain_ms)} ms", "mean latency", f"plain {ms_text(plain_ms)} ms"),
        ]
    accuracy = facts.tested.get("accuracy")
    reference = facts.notes("verify").get("pytorch_accuracy") or {}
    if accuracy is not None:
        final = reference.get(facts.exits[-1])
        items.append((share_text(accuracy), "test accuracy", f"PyTorch, final {share_text(final)}"))
    rates = facts.rates
    if rates:
        items.append((share_text(1 - rates[-1]), "leave early", "before the final exit"))
    work = facts.work
    if rates and work[-1]:
        mean = sum(rate * macs for rate, macs in zip(rates, work, strict=True))
        items.append(
            (f"{mean / 1e6:,.2f} M", "MACs a sample", f"of {macs_text(work[-1])} with no exit")
        )
    size = sum(one.size_bytes for one in manifest.variant().segments)
    items.append(
        (bytes_text(size), "the chain's files", f"{len(manifest.variant().segments)} segments")
    )
    parts.append(
        Text(
            f"{manifest.name}, a network of {len(facts.exits)} exits, built for {target.name}: "
            f"{target.engine}, {target.precision}, {threads}"
            + (f", {target.machine}" if target.machine else "")
            + (f", {target.board}" if target.board else "")
            + "."
        )
    )
    parts.append(Numbers(tuple(items)))
    if bench is not None:
        parts.append(Text(bench["verdict"], warns=not (bench["valid"] and bench["on_target"])))
        parts.append(Text(facts.where))
    for stage in facts.evidence.get("stages", []):
        if "warning" in stage["notes"]:
            parts.append(Text(f"{stage['name']}: {stage['notes']['warning']}", warns=True))
    return Section("In short", tuple(parts))
