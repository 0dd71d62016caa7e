"""Writes what the emulated Pi is made of: `make pins-pi`. Review what changes."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from edgekit.wheels import pins, pins_for
from tests.pi.emulated import CACHE, PINS, PYTHON, SUITE, apt, pip_download

__all__ = ["ENGINES", "main"]

ENGINES = ("onnxruntime", "litert")

SYSTEM = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libncursesw6",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libstdc++6",
    "libtinfo6",
    "libuuid1",
    "zlib1g",
)
"""Python's standard library without its tests and tools, and what its modules and wheels link."""

HEAD = "# Written by `make pins-pi`.\n"


def main() -> None:
    """Fetch everything, and write down what came."""
    CACHE.mkdir(parents=True, exist_ok=True)
    PINS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _demand(apt()("download", *SYSTEM, cwd=Path(folder)))
        lines = []
        for name in SYSTEM:
            (deb,) = Path(folder).glob(f"{name}_*.deb")
            version = deb.name.split("_")[1].replace("%3a", ":")
            lines.append(f"{name} {version} {_sha256(deb)}")
        _write("debian.txt", [f"# Debian {SUITE}, main, arm64: package, version, sha256.", *lines])
    for engine in ENGINES:
        wanted = pins_for(pins(engine), PYTHON, "aarch64")
        with tempfile.TemporaryDirectory() as folder:
            _demand(pip_download(wanted, Path(folder)))
            found = {
                (name, str(version)): _sha256(wheel)
                for wheel in Path(folder).iterdir()
                for name, version, _, _ in [parse_wheel_filename(wheel.name)]
            }
        asked = [one.split("==") for one in wanted]
        hashes = [found[canonicalize_name(name), version] for name, version in asked]
        _write(
            f"{engine}.txt",
            [f"{x} --hash=sha256:{y}" for x, y in zip(wanted, hashes, strict=True)],
        )


def _write(name: str, lines: Iterable[str]) -> None:
    (PINS / name).write_text(HEAD + "\n".join(lines) + "\n")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _demand(ended: subprocess.CompletedProcess[str]) -> None:
    if ended.returncode:
        sys.exit(ended.stderr)


if __name__ == "__main__":
    main()
