"""What the commands share that write docs/benchmarks.md: its sections, and how they measure."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "PAGE",
    "edgekit",
    "measured",
    "printed",
    "section_of",
    "vnni",
    "with_section",
    "write_section",
]

PAGE = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"


def section_of(page: str, heading: str) -> str:
    """The section under this heading, which begins with `## `; nothing where there is none."""
    found = re.search(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", page, re.M | re.S)
    return found.group().strip() + "\n" if found else ""


def with_section(page: str, section: str) -> str:
    """The page with this section in place of the one of its heading, or behind all others."""
    heading, _, _ = section.partition("\n")
    before = section_of(page, heading)
    if before:
        return page.replace(before, section.strip() + "\n")
    return f"{page.rstrip()}\n\n{section.strip()}\n"


def write_section(path: Path, section: str) -> None:
    """Put the section into the page at `path`."""
    path.write_text(with_section(path.read_text("utf-8"), section), "utf-8")


def vnni() -> str:
    """Words on whether an x86 processor adds products of 8-bit integers exactly, and fast."""
    if platform.machine() != "x86_64":
        return ""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return " with VNNI" if "vnni" in flags else " without VNNI"


def measured(bundle: Path, *options: object) -> dict[str, Any]:
    """The bench report of a bundle on the test split that it carries."""
    report: dict[str, Any] = json.loads(edgekit("bench", bundle, *options, "--json", "-"))
    return report


def edgekit(*arguments: object, **environment: str) -> str:
    """What a command prints. Each runs in a process of its own, without torch, as on a device."""
    print("edgekit", *arguments, flush=True)
    return printed(sys.executable, "-m", "edgekit.cli", *map(str, arguments), **environment)


def printed(*command: str, **environment: str) -> str:
    """What a program writes to its standard output."""
    variables = {**os.environ, **environment}
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=variables
    ).stdout
