"""`edgekit doctor`: what this machine can do, and what it lacks."""

import importlib.util

from edgekit.cli.output import JsonOption, Terminal
from edgekit.errors import DeviceError
from edgekit.runtime.device import describe, package_versions
from edgekit.runtime.engines import ENGINES

__all__ = ["doctor"]

HOST_PACKAGES = ("torch", "onnx", "onnxscript", "pydantic", "pyyaml", "rich", "safetensors")


def doctor(json_to: JsonOption = None) -> None:
    """Say what this machine is, whether it can run and build bundles, and what would help."""
    terminal = Terminal(json_to)
    facts = describe()
    for key in ("cpu", "machine", "cores", "system", "python"):
        terminal.line(f"{key:<10}{facts[key]}")
    terminal.line(f"{'memory':<10}{facts['memory_bytes'] / 1e9:.1f} GB\n")
    engines = [name for name in ENGINES if importlib.util.find_spec(name)]
    images = package_versions(("pillow",))
    host = package_versions(HOST_PACKAGES)
    lacking = [name for name in HOST_PACKAGES if name not in host]
    advice = []
    if not engines:
        advice.append("run bundles: pip install 'edgekit[onnxruntime]'")
    if not images:
        advice.append("read image files: pip install 'edgekit[images]'")
    if lacking:
        advice.append(f"build bundles ({', '.join(lacking)}): pip install 'edgekit[build]'")
    found = {**facts["packages"], **images, **host}
    for name, version in found.items():
        terminal.line(f"{name:<16}{version}")
    terminal.line()
    terminal.line(f"run bundles      {'yes, with ' + ', '.join(engines) if engines else 'no'}")
    terminal.line(f"build bundles    {'no' if lacking else 'yes'}")
    for line in advice:
        terminal.line(f"To {line}")
    terminal.json({**facts, "engines": engines, "host_packages": host, "advice": advice})
    if not engines:
        raise DeviceError("no inference engine is installed: pip install 'edgekit[onnxruntime]'")
