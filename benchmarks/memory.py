"""What EfficientNet-B1 takes in INT8 with LiteRT, on disk and in memory: a section of a page.

    python benchmarks/memory.py

Builds benchmarks/styles/efficientnet-b1.yaml for a Raspberry Pi 4B and runs it here, each contender
to its end in a process of its own that has numpy and the runtime alone, as a device does.
"""

import argparse
import json
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from page import PAGE, write_section

from edgekit.bundle.manifest import Segment
from edgekit.bundle.reader import Bundle, read_bundle, read_evidence
from edgekit.runtime.device import describe

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "benchmarks/styles/efficientnet-b1.yaml"
TARGET = "rpi4b-litert"

HEADING = "## What EfficientNet-B1 takes"

HEAD = """{heading}

Written by `python benchmarks/memory.py` ({date}), on {cpu}, {machine}, Python {python};
ai-edge-litert {litert}, {target}, {threads} thread(s). EfficientNet-B1 at 240x240 with 1,000
classes, two exits attached, {integers:.1%} of its multiply-accumulates outside the heads on
integers. Weights are random: bytes do not depend on them. `peak` is the most that a process had
resident so far (VmHWM), the median of {repeats} processes. Python, numpy and the engine's own code
are in it, and `over the engine` is what the network adds to those: its file, the weights as the
engine packs them, and its features. `chain` runs all segments to the last exit, `plain` is the
undivided network with its final exit only, `whole` with all exits.

Published elsewhere for a quantized EfficientNet-B1: 87 MB of memory. What was counted there is not
known to us, nor whether it was resident memory at all, so the two are no like for like.

"""

CHILD = """
import json, sys
what, bundle, segments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if what != "python":
    import numpy
if what not in {"python", "numpy"}:
    from pathlib import Path
    from edgekit.bundle.manifest import MANIFEST_NAME, Policy, parse_manifest
    from edgekit.runtime.chain import Chain, ChainSpec
    manifest = parse_manifest((Path(bundle) / MANIFEST_NAME).read_bytes())
    engine, threads = manifest.target.engine, int(sys.argv[4])
    if engine == "litert":
        import ai_edge_litert.interpreter
    else:
        import onnxruntime
if segments:
    (pair,) = (one for one in manifest.baselines if one.variant == manifest.variant().name)
    every = {one.name: one for one in (*manifest.variant().segments, pair.plain, pair.whole)}
    chosen = tuple(every[name] for name in segments)
    policy = Policy("max_prob", (2.0,) * (len(chosen) - 1))  # No exit is so sure.
    spec = ChainSpec(
        manifest.inputs, manifest.labels, manifest.variant().tensors, chosen, policy
    )
    files = [(Path(bundle) / one.path).read_bytes() for one in chosen]
    chain = Chain.from_segments(spec, files, engine=engine, threads=threads)
    (one,) = manifest.inputs
    chain.one(numpy.zeros(one.shape, one.dtype))
if loaded := {"torch", "onnx", "jax"} & set(sys.modules):
    sys.exit(f"{loaded} are no part of a device")
print(next(x for x in open("/proc/self/status") if x.startswith("VmHWM:")).split()[1])
"""
"""Prints the process's peak in kB, once it has gone as far as it is told."""


def main() -> None:
    """Build, measure, write the section."""
    parser = argparse.ArgumentParser(description="Measure the memory of EfficientNet-B1.")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--output", type=Path, default=ROOT / "build/memory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    command = ["-m", "edgekit.cli", "build", str(RECIPE), "--target", TARGET]
    subprocess.run([sys.executable, *command, "--output", str(options.output)], check=True)
    bundle = read_bundle(options.output)
    evidence = read_evidence(bundle)
    assert evidence is not None  # noqa: S101  (it was built just now)
    stages = {one["name"]: one["notes"] for one in evidence["stages"]}
    facts = describe()
    peaks = peaks_of(bundle, options.repeats, options.threads)
    text = HEAD.format(
        heading=HEADING,
        date=datetime.now(timezone.utc).date(),
        litert=facts["packages"]["ai-edge-litert"],
        target=TARGET,
        threads=options.threads,
        repeats=options.repeats,
        integers=stages["quantize"]["integer_share"]["chain"],
        **{key: facts[key] for key in ("cpu", "machine", "python")},
    )
    text += "\n".join([*sizes(bundle), "", *table(peaks)]) + "\n"
    write_section(options.page, text)
    print(text)


def undivided(bundle: Bundle) -> dict[str, Segment]:
    """The network with its final exit only, and with all."""
    name = bundle.manifest.variant().name
    (pair,) = (one for one in bundle.manifest.baselines if one.variant == name)
    return {"plain": pair.plain, "whole": pair.whole}


def peaks_of(bundle: Bundle, repeats: int, threads: int) -> dict[str, int]:
    """The peak of resident memory of each contender, in bytes: the median of some processes.

    Of bare Python, numpy and the engine first, each with what is before it.
    """
    chain = [one.name for one in bundle.manifest.variant().segments]
    contenders: dict[str, list[str]] = {"python": [], "numpy": [], "engine": [], "chain": chain}
    contenders |= {name: [one.name] for name, one in undivided(bundle).items()}
    found = {}
    for name, segments in contenders.items():
        given = [name, str(bundle.path), json.dumps(segments), str(threads)]
        command = [sys.executable, "-c", CHILD, *given]
        kilobytes = [
            int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for _ in range(repeats)
        ]
        found[name] = round(statistics.median(kilobytes) * 1024)
    return found


def sizes(bundle: Bundle) -> list[str]:
    """The table of what lies on the disk."""
    segments = bundle.manifest.variant().segments
    lines = ["| file | bytes |", "|---|---|"]
    lines += [f"| {one.name} | {one.size_bytes:,} |" for one in segments]
    lines.append(f"| chain | {sum(one.size_bytes for one in segments):,} |")
    lines += [f"| {name} | {one.size_bytes:,} |" for name, one in undivided(bundle).items()]
    return lines


def table(peaks: dict[str, int]) -> list[str]:
    """The table of what processes held."""
    lines = ["| process | peak MB | over the engine MB |", "|---|---|---|"]
    for name, size_bytes in peaks.items():
        over = size_bytes - peaks["engine"]
        words = f"{over / 1e6:.1f}" if name not in {"python", "numpy", "engine"} else "-"
        lines.append(f"| {name} | {size_bytes / 1e6:.1f} | {words} |")
    return lines


if __name__ == "__main__":
    main()
