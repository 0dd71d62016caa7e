"""`edgekit doctor`: what this machine can do, and what it lacks."""

import struct
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.ladder import is_ladder, read_ladder, read_variant
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reader import read_bundle
from edgekit.cli.output import JsonOption, Terminal
from edgekit.errors import DeviceError
from edgekit.runtime import memory, nvidia, raspberrypi
from edgekit.runtime.device import (
    describe,
    other_than_target,
    package_versions,
    pip_refuses,
    unmet,
)

__all__ = ["doctor"]

HOST_PACKAGES = (
    "torch", "onnx", "onnxscript", "pydantic", "pyyaml", "rich", "safetensors", "matplotlib",
)  # fmt: skip


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle or ladder that is to run here.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Say what this machine is, whether it can run and build bundles, and what would help."""
    terminal = Terminal(json_to)
    gpu = nvidia.look()
    pi = raspberrypi.find()
    seen = None if pi is None else pi.snapshot()
    facts = describe(gpu=gpu is not None)
    for key in ("cpu", "machine", "cores", "system", "python"):
        terminal.line(f"{key:<10}{facts[key]}")
    terminal.line(f"{'memory':<10}{facts['memory_bytes'] / 1e9:.1f} GB")
    if gpu is not None:
        _print_gpu(terminal, gpu, facts["gpu"])
    if pi is not None and seen is not None:
        _print_pi(terminal, pi, seen)
    terminal.line()
    engines = nvidia.engines(gpu)
    images = package_versions(("pillow",))
    host = package_versions(HOST_PACKAGES)
    lacking = [name for name in HOST_PACKAGES if name not in host]
    advice = []
    bits = 8 * struct.calcsize("P")
    installable = pi is None or bits == 64
    if not engines and installable:
        advice.append("run bundles: pip install 'edgekit[onnxruntime]'")
    if not images:
        advice.append("read image files: pip install 'edgekit[images]'")
    if lacking and bundle is None:  # Who has a bundle here is on a device.
        advice.append(f"build bundles ({', '.join(lacking)}): pip install 'edgekit[build]'")
    if gpu is not None:
        advice += nvidia.advice(gpu)
    if pi is not None and seen is not None:
        advice += raspberrypi.advice(pi, seen, facts["machine"], bits)
    found = {**facts["packages"], **images, **host}
    for name, version in found.items():
        terminal.line(f"{name:<24}{version}")
    terminal.line()
    terminal.line(f"run bundles      {'yes, with ' + ', '.join(engines) if engines else 'no'}")
    terminal.line(f"build bundles    {'no' if lacking else 'yes'}")
    report = {**facts, "engines": engines, "host_packages": host, "advice": advice}
    report["raspberry_pi"] = pi and seen and pi.facts(seen)
    report["nvidia"] = None if gpu is None else {**gpu.facts(), "refusal": nvidia.refusal(gpu)}
    if bundle is not None:
        told, wishes = _for_bundle(terminal, bundle, facts)
        report |= told
        advice += wishes
    if pip_refuses() and any("pip install" in line for line in advice):
        advice.append(
            "install with pip, which the system's own Python refuses (PEP 668): python3 -m venv "
            "~/edgekit, and take ~/edgekit/bin/pip for it"
        )
    for line in advice:
        terminal.line(f"To {line}")
    terminal.json(report)
    if not engines:
        way = "pip install 'edgekit[onnxruntime]'" if installable else "they want a 64-bit system"
        raise DeviceError(f"no inference engine is installed: {way}")


def _for_bundle(
    terminal: Terminal, path: Path, facts: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What the machine of `facts` lacks for a bundle or ladder: for the report, and as advice."""
    if not is_ladder(path):
        manifest = read_bundle(path).manifest
        told, advice = _unmet(terminal, path, manifest.name, manifest, facts)
        needed, wishes = _memory(manifest, "its chain")
        return {**told, **needed}, advice + wishes
    document = read_ladder(path)
    manifests = {name: read_variant(path, document, name).manifest for name in document.names}
    # The variants are of one target, and want the same.
    first = document.names[0]
    told, advice = _unmet(terminal, path / first, document.name, manifests[first], facts)
    told["variants"] = {}
    for name, manifest in manifests.items():
        needed, wishes = _memory(manifest, f"the chain of {name}")
        told["variants"][name] = needed
        advice += wishes
    return told, advice


def _unmet(
    terminal: Terminal, path: Path, name: str, manifest: Manifest, facts: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What the bundle at `path` wants that the machine has not."""
    wishes = unmet(manifest.requirements, facts)
    other_device = other_than_target(manifest.target, facts)
    terminal.line(f"{name:<17}{'as it wants' if not wishes else 'wants'}")
    for line in filter(None, (*wishes, other_device)):
        terminal.line(f"  {line}")
    advice = []
    if wishes:
        advice.append(
            "give it what it wants, in an environment of its own: "
            f"pip install -r {path / 'install/requirements.txt'}"
        )
    return {"unmet": wishes, "other_device": other_device}, advice


def _memory(manifest: Manifest, what: str) -> tuple[dict[str, Any], list[str]]:
    """What loading a bundle's chain, `what`, takes and what is free."""
    available = memory.available_bytes()
    needed = memory.needed_bytes(one.size_bytes for one in manifest.variant().segments)
    advice = []
    if available is not None and available < needed:
        advice.append(
            f"load {what}, which needs {needed / 1e6:,.1f} MB (twice its files' size) where "
            f"{available / 1e6:,.1f} MB are free: end other programs, or build a smaller one"
        )
    return {"available_bytes": available, "needed_bytes": needed}, advice


def _print_pi(terminal: Terminal, pi: raspberrypi.RaspberryPi, seen: raspberrypi.Snapshot) -> None:
    facts = pi.facts(seen)
    clock, since = seen.clock, facts["throttled_since_boot"]
    degrees = max(seen.temperatures_c.values(), default=None)
    told = {
        "governor": pi.governor,
        "clock": clock and f"{clock.mhz:.0f} of {clock.most_mhz:.0f} MHz",
        "heat": None if degrees is None else f"{degrees:.0f} degrees",
        "throttled": "not known" if since is None else ", ".join(since) or "not since boot",
    }
    for key, value in told.items():
        if value:
            terminal.line(f"{key:<10}{value}")


def _print_gpu(terminal: Terminal, gpu: nvidia.Nvidia, of_cuda: dict[str, Any] | None) -> None:
    facts = gpu.facts()
    names = facts["gpus"]
    if of_cuda is not None:
        names = ["{name}, compute capability {compute_capability}, CUDA {cuda}".format(**of_cuda)]
    jetpack = f"{facts['jetpack'] or 'unknown'} (Jetson Linux {facts['jetson_linux'] or 'unknown'})"
    told = {
        "board": facts["board"],
        "jetpack": jetpack if gpu.board is not None else None,
        "power": facts["power_mode"],
        "gpu": ", ".join(names),
        "driver": facts["driver"],
        "gpu python": ", ".join(facts["python_modules"]),
    }
    for key, value in told.items():
        if value:
            terminal.line(f"{key:<10}{value}")
    refused = nvidia.refusal(gpu)
    if refused is not None:
        terminal.line(f"\n{refused}")
