"""`edgekit doctor`: what this machine can do, and what it lacks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.bundle.reader import read_bundle
from edgekit.cli.output import JsonOption, Terminal
from edgekit.errors import DeviceError
from edgekit.runtime import nvidia
from edgekit.runtime.device import describe, other_than_target, package_versions, unmet

__all__ = ["doctor"]

HOST_PACKAGES = (
    "torch", "onnx", "onnxscript", "pydantic", "pyyaml", "rich", "safetensors", "matplotlib",
)  # fmt: skip


def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle that is to run here.")] = None,
    json_to: JsonOption = None,
) -> None:
    """Say what this machine is, whether it can run and build bundles, and what would help."""
    terminal = Terminal(json_to)
    gpu = nvidia.look()
    facts = describe(gpu=gpu is not None)
    for key in ("cpu", "machine", "cores", "system", "python"):
        terminal.line(f"{key:<10}{facts[key]}")
    terminal.line(f"{'memory':<10}{facts['memory_bytes'] / 1e9:.1f} GB")
    if gpu is not None:
        _print_gpu(terminal, gpu, facts["gpu"])
    terminal.line()
    engines = nvidia.engines(gpu)
    images = package_versions(("pillow",))
    host = package_versions(HOST_PACKAGES)
    lacking = [name for name in HOST_PACKAGES if name not in host]
    advice = []
    if not engines:
        advice.append("run bundles: pip install 'edgekit[onnxruntime]'")
    if not images:
        advice.append("read image files: pip install 'edgekit[images]'")
    if lacking and bundle is None:  # Who has a bundle here is on a device.
        advice.append(f"build bundles ({', '.join(lacking)}): pip install 'edgekit[build]'")
    if gpu is not None:
        advice += nvidia.advice(gpu)
    found = {**facts["packages"], **images, **host}
    for name, version in found.items():
        terminal.line(f"{name:<24}{version}")
    terminal.line()
    terminal.line(f"run bundles      {'yes, with ' + ', '.join(engines) if engines else 'no'}")
    terminal.line(f"build bundles    {'no' if lacking else 'yes'}")
    report = {**facts, "engines": engines, "host_packages": host, "advice": advice}
    report["nvidia"] = None if gpu is None else {**gpu.facts(), "refusal": nvidia.refusal(gpu)}
    if bundle is not None:
        manifest = read_bundle(bundle).manifest
        wishes = unmet(manifest.requirements, facts)
        other_device = other_than_target(manifest.target, facts)
        terminal.line(f"{manifest.name:<17}{'as it wants' if not wishes else 'wants'}")
        for line in filter(None, (*wishes, other_device)):
            terminal.line(f"  {line}")
        if wishes:
            advice.append(
                "give it what it wants, in an environment of its own: "
                f"pip install -r {bundle / 'install/requirements.txt'}"
            )
        report |= {"unmet": wishes, "other_device": other_device}
    for line in advice:
        terminal.line(f"To {line}")
    terminal.json(report)
    if not engines:
        raise DeviceError("no inference engine is installed: pip install 'edgekit[onnxruntime]'")


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
