"""What the user's code reads: the modules that it imports, the files that it opens.

A build is the same as an earlier one only if all of these are. They are found by watching, since no
recipe could list them. Not seen are files that a library opens without Python, over the network, or
in another process.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Reads", "recorded"]

_PACKAGE = Path(__file__).resolve().parent.parent

_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/")
"""Files here are the machine's, and say nothing of the user's model."""


@dataclass
class Reads:
    """Files by absolute path, folders that were listed, and installed packages by name.

    Whatever belongs to an installed package stands under the package, with its version, and not as
    a file.
    """

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    packages: dict[str, str] = field(default_factory=dict)


_watching: list[tuple[Reads, set[str]]] = []
"""The records under way, each with the files that were written meanwhile: those are no inputs."""


@contextmanager
def recorded() -> Iterator[Reads]:
    """Inside, what is read is recorded; the record is complete when the block ends."""
    _install_hook()
    before = set(sys.modules)
    reads, written = Reads(), set[str]()
    _watching.append((reads, written))
    try:
        yield reads
    finally:
        _watching.remove((reads, written))
    # The program that builds is not the user's model, though tracebacks and tracers look into it.
    written.add(os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or ""))
    modules = {name: module for name, module in sys.modules.items() if name not in before}
    installed = _installed_folders()
    # A module is read from its compiled copy, which changes with no one's hand.
    reads.files |= {
        str(Path(file).resolve())
        for name, module in list(sys.modules.items())
        if name != "__main__" and (file := getattr(module, "__file__", None))
    }
    reads.files = {
        name
        for name in reads.files
        if name not in written and _is_the_users(name, installed) and Path(name).is_file()
    }
    # Looking for a module lists every folder on the path.
    listed = {str(Path(one or ".").resolve()) for one in sys.path}
    reads.folders = {
        name
        for name in reads.folders - listed
        if _is_the_users(f"{name}/", installed) and Path(name).is_dir()
    }
    reads.packages = _packages(modules, installed)


def _packages(modules: dict[str, Any], installed: tuple[str, ...]) -> dict[str, str]:
    top = {
        name.partition(".")[0]
        for name, module in modules.items()
        if str(getattr(module, "__file__", None) or "").startswith(installed)
    }
    if not top:
        return {}
    owners = metadata.packages_distributions()
    found = {package for name in top for package in owners.get(name, ())}
    return {package: metadata.version(package) for package in sorted(found)}


def _is_the_users(name: str, installed: tuple[str, ...]) -> bool:
    return (
        not name.startswith((*installed, *_SYSTEM, f"{_PACKAGE}{os.sep}"))
        and "__pycache__" not in name
    )


def _installed_folders() -> tuple[str, ...]:
    """Where Python and its packages are."""
    paths = sysconfig.get_paths()
    found = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {str(Path(one).resolve()) for one in found}
    return tuple(f"{one}{os.sep}" for one in sorted(found))


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in {"open", "os.listdir", "os.scandir"}:
        return
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return
    name = os.path.realpath(os.fsdecode(path))
    for reads, written in _watching:
        if event != "open":
            reads.folders.add(name)
        elif _writes(arguments[1], arguments[2]):
            written.add(name)
        else:
            reads.files.add(name)


def _writes(mode: str | None, flags: int) -> bool:
    if mode is not None:
        return bool(set(mode) & set("wax+"))
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


@cache
def _install_hook() -> None:
    # Python never lets a hook go, so there is one, and it looks away when nothing is recorded.
    sys.addaudithook(_watch)
