"""What a device installs: edgekit's own wheel, and exact versions of all that it needs beside it.

Host side, and without torch. The versions are data, `targets/ENGINE.txt`, written by `make pins`.
"""

import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

import edgekit
from edgekit.errors import BuildError
from edgekit.shipped import shipped

__all__ = ["Wheel", "own_wheel", "pins", "pins_for", "requirements_file", "wheelhouse"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first moment that a zip file can tell: a wheel must not depend on when it was made."""

_CARRIED = (
    "Summary",
    "License-Expression",
    "License-File",
    "Requires-Python",
    "Provides-Extra",
    "Requires-Dist",
)
"""What the wheel says of edgekit as it was installed here; not the long description."""


class Wheel(NamedTuple):
    """A wheel in memory: its version, its file name and its bytes."""

    version: str
    name: str
    content: bytes


def own_wheel() -> Wheel:
    """This edgekit as a wheel.

    The version ends in a hash of the content (`0.1.0+h1a2b3c4d`), so that pip replaces an older
    copy of the same release, and nothing on an index can be taken for it. The same files give the
    same bytes, in a checkout or installed, wherever that lies. The recipes and targets that come
    with edgekit stay on the host.

    Raises BuildError where edgekit's code and its installed metadata are of different versions.
    """
    release, metadata = edgekit.__version__, importlib.metadata.distribution("edgekit")
    if metadata.version.partition("+")[0] != release:
        raise BuildError(
            f"edgekit's code is of version {release}, its installed metadata of "
            f"{metadata.version}; install it again (in a checkout: pip install -e .)"
        )
    files = _package_files()
    about = [
        f"{key}: {value}" for key in _CARRIED for value in metadata.metadata.get_all(key) or ()
    ]
    tail = {
        "METADATA": "\n".join(about),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: edgekit\nRoot-Is-Purelib: true\nTag: py3-none-any",
        "entry_points.txt": (metadata.read_text("entry_points.txt") or "").strip(),
        "licenses/LICENSE": (metadata.read_text("licenses/LICENSE") or "").rstrip(),
    }
    digest = hashlib.sha256()
    for name, content in [*files.items(), *((name, tail[name].encode()) for name in tail)]:
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    # The letter, because digits alone would be a number to pip, which has no leading zeros.
    version = f"{release}+h{digest.hexdigest()[:8]}"
    head = f"Metadata-Version: 2.4\nName: edgekit\nVersion: {version}\n"
    tail["METADATA"] = head + tail["METADATA"]
    info = f"edgekit-{version}.dist-info"
    files |= {f"{info}/{name}": f"{text}\n".encode() for name, text in tail.items()}
    return Wheel(version, f"edgekit-{version}-py3-none-any.whl", _zip(files, f"{info}/RECORD"))


def pins(engine: str) -> tuple[str, ...]:
    """What an engine needs beside edgekit, as pip reads it: `name==version`, some with a marker."""
    lines = (shipped("targets") / f"{engine}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))


def pins_for(lines: Iterable[str], python: str, machine: str | None) -> list[str]:
    """Those of the pins whose marker holds on Python `python` ("3.13") of a Linux `machine`.

    pip itself, asked for another Python's wheels, still holds markers against its own.
    """
    device = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": machine or platform.machine(),
    }
    found = map(Requirement, lines)
    return [
        f"{one.name}{one.specifier}"
        for one in found
        if one.marker is None or one.marker.evaluate(device)
    ]


def requirements_file(packages: Iterable[str]) -> bytes:
    """`requirements.txt` for a folder that holds edgekit's wheel, and others if they travel too."""
    head = "# pip install -r this file. The wheels beside it are found wherever the folder lies."
    # A source package would be compiled for an hour, or fail, on a device that has no wheel.
    return "\n".join([head, "--find-links .", "--only-binary :all:", *packages, ""]).encode()


def wheelhouse(
    lines: Iterable[str],
    pythons: Iterable[str],
    platforms: Iterable[str],
    machine: str | None,
    step: Callable[[str], None],
) -> dict[str, bytes]:
    """The wheels of the pinned packages by file name, each once, fetched with pip.

    `pythons` are versions such as "3.13", `platforms` wheel tags, best first; without any, wheels
    for this machine. Raises BuildError where pip is not there or does not find one of them.
    """
    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"wheelhouse: {sys.executable} has no pip: python -m ensurepip")
    lines = tuple(lines)
    tags = [f"--platform={tag}" for tag in platforms]
    with tempfile.TemporaryDirectory(prefix="edgekit-wheels-") as folder:
        for python in pythons:
            step(f"wheels for Python {python}")
            command = [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", f"--python-version={python}", *tags, "--dest", folder),
                *pins_for(lines, python, machine),
            ]
            ended = subprocess.run(command, check=False, capture_output=True, text=True)
            if ended.returncode:
                raise BuildError(
                    f"wheelhouse: pip found not every wheel for Python {python} on "
                    f"{machine or platform.machine()} ({_reason(ended.stderr)}); is the package "
                    "index reachable (pip config list)? A Python that the device has not can be "
                    "left out: --set 'target.python=[\"3.13\"]'"
                )
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _package_files() -> dict[str, bytes]:
    """The package's files as a wheel names them, sorted."""
    package = Path(edgekit.__file__).parent
    found = {}
    # Source code alone: editors and checkers leave files of their own in a checkout.
    for path in (*package.rglob("*.py"), package / "py.typed"):
        parts = path.relative_to(package.parent).parts
        if not any(part.startswith(".") or part == "_shipped" for part in parts):
            found["/".join(parts)] = path.read_bytes()
    return dict(sorted(found.items()))


def _zip(files: dict[str, bytes], record: str) -> bytes:
    """A wheel of these files and their list; stored, since compressors differ in their bytes."""
    listing = io.StringIO()
    rows = csv.writer(listing, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([record, "", ""])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in [*files.items(), (record, listing.getvalue().encode())]:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, so that the mode counts.
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def _reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return (
        errors[0].removeprefix("ERROR: ").partition(" (from versions")[0] if errors else "no reason"
    )
