"""What was built for what, and what came of it."""

from edgekit.report.facts import Facts
from edgekit.report.page import Numbers, Part, Section, Text
from edgekit.report.words import bytes_text, macs_text, ms_text, of_samples, share_text, times_text

__all__ = ["overview"]


def overview(facts: Facts) -> Section:
    """What was built for what, and what came of it."""
    manifest, bench = facts.manifest, facts.bench
    target = manifest.target
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    items = []
    parts: list[Part] = []
    if bench is not None and facts.benched_as_deployed:
        plain_ms = bench["plain"]["latency_ms"]["mean"]
        chain_ms = bench["latency_ms"]["mean"]
        items += [
            (times_text(bench["speedup"]), "as fast as plain", "the network with one exit"),
            (f"{ms_text(chain_ms)} ms", "mean latency", f"plain {ms_text(plain_ms)} ms"),
        ]
    accuracy = facts.tested.get("accuracy")
    reference = facts.notes("verify").get("pytorch_accuracy") or {}
    if accuracy is not None:
        # After `edgekit tune` it is of other samples, and PyTorch's is not known of those.
        final = reference.get(facts.exits[-1])
        remark = f"; PyTorch, final exit {share_text(final)}" if final is not None else ""
        items.append((share_text(accuracy), "accuracy", of_samples(*facts.tested_on) + remark))
    rates = facts.rates
    if rates:
        items.append((share_text(1 - rates[-1]), "leave early", of_samples(*facts.rated_on)))
    work = facts.work
    if rates and work[-1]:
        mean = sum(rate * macs for rate, macs in zip(rates, work, strict=True))
        items.append((macs_text(mean), "MACs a sample", f"of {macs_text(work[-1])} with no exit"))
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
        if facts.benched_as_deployed:
            parts.append(Text(bench["verdict"], warns=not (bench["valid"] and bench["on_target"])))
        else:
            parts.append(Text(facts.other_policy, warns=True))
        parts.append(Text(facts.where))
    else:
        parts.append(Text("Nothing was measured of it, so nobody knows how fast it is."))
    for stage in facts.evidence.get("stages", []):
        if "warning" in stage["notes"]:
            parts.append(Text(f"{stage['name']}: {stage['notes']['warning']}", warns=True))
    return Section("In short", tuple(parts))
