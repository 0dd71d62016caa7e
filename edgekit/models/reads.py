"""What the user's code reads: the modules that it imports, the files that it opens.

A build is the same as an earlier one only if all of these are. They are found by watching, since no
recipe could list them. Not seen are files that a library opens without Python (safetensors apart),
what comes over the network or from another process, and environment variables.
"""

import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

__all__ = ["Reads", "origin_of", "recorded", "sources"]

_PACKAGE = Path(__file__).resolve().parent.parent

_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/")
"""Files here are the machine's, and say nothing of the user's model."""


@dataclass
class Reads:
    """What was read since `started_ns` on the clock of files, by absolute path.

    `files` may be absent: code that looks for a file in vain does otherwise once it is there.
    `folders` were listed. `modules` has, by name, where the top-level modules among the files were
    found on Python's path. Python itself and the packages that edgekit needs are not among them.
    """

    started_ns: int
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class _Watch:
    """A record under way; files that were `written` meanwhile are no inputs."""

    reads: Reads
    written: set[str] = field(default_factory=set)


_watching: list[_Watch] = []


@contextmanager
def recorded() -> Iterator[Reads]:
    """Inside, what is read is recorded; the record is complete when the block ends."""
    _install_hook()
    # The user's code may lengthen it; whoever compares later has only what it is now.
    path = sys.path[:]
    watch = _Watch(Reads(time.time_ns()))
    # The program that builds is not the user's model, though tracebacks and tracers look into it.
    watch.written.add(os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or ""))
    _watching.append(watch)
    try:
        with _safetensors_seen():
            yield watch.reads
    finally:
        _watching.remove(watch)
    reads = watch.reads
    for name, file in _users_modules().items():
        reads.files.add(file)
        if "." not in name and origin_of(name, path) == file:
            reads.modules[name] = file
    # A module's compiled copy is written behind the user's back, and its source is in the record.
    reads.files = {
        name
        for name in reads.files - watch.written
        if _is_the_users(name) and not Path(name).is_dir() and name not in sys.path
    }
    reads.folders = {name for name in reads.folders if _is_the_users(f"{name}{os.sep}")}


def origin_of(module: str, path: list[str]) -> str | None:
    """The file that Python would import a top-level module from, along this path; None if none."""
    spec = PathFinder.find_spec(module, path)
    return os.path.realpath(spec.origin) if spec is not None and spec.origin else None


def _users_modules() -> dict[str, str]:
    """The files of all modules that belong neither to Python nor to what edgekit needs.

    Of all that are loaded, and not only of those that are new: a notebook has imported them before.
    """
    ours = _own_modules()
    return {
        name: os.path.realpath(file)
        for name, module in list(sys.modules.items())
        if name != "__main__"
        and name.partition(".")[0] not in ours
        and (file := getattr(module, "__file__", None))
        and _is_the_users(os.path.realpath(file))
    }


@cache
def _own_modules() -> frozenset[str]:
    """The top-level modules of edgekit and of every package that it needs, near or far."""
    packages, left = {"edgekit"}, ["edgekit"]
    while left:
        package = left.pop()
        try:
            wanted = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        for line in wanted:
            name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
            # Of edgekit's own extras all count but the tools of its developers.
            if extra and (package != "edgekit" or extra[1] == "dev"):
                continue
            if _plain(name) not in packages:
                packages.add(_plain(name))
                left.append(name)
    owners = metadata.packages_distributions()
    found = {top for top, names in owners.items() if {_plain(name) for name in names} & packages}
    return frozenset(found | {"edgekit"})


def _plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def sources() -> list[str]:
    """The names of the imported modules that are Python files of no installed package."""
    python, packages = _library_folders()
    return [
        name
        for name, file in _users_modules().items()
        if file.endswith(".py") and not file.startswith((python, *packages))
    ]


def _is_the_users(name: str) -> bool:
    """Whether a path is neither the system's, nor Python's, nor of a package that edgekit needs."""
    if name.startswith((*_SYSTEM, f"{_PACKAGE}{os.sep}")) or "__pycache__" in name:
        return False
    python, packages = _library_folders()
    for folder in packages:
        if name.startswith(folder):
            top = name.removeprefix(folder).partition(os.sep)[0]
            # What a package says of itself goes with what it does.
            return not top.endswith("-info") and top.partition(".")[0] not in _own_modules()
    return not name.startswith(python)


@cache
def _library_folders() -> tuple[str, tuple[str, ...]]:
    """Where the standard library is, and where packages are; these may lie within that."""
    paths = sysconfig.get_paths()
    packages = {f"{os.path.realpath(paths[key])}{os.sep}" for key in ("purelib", "platlib")}
    return f"{os.path.realpath(paths['stdlib'])}{os.sep}", tuple(sorted(packages))


@contextmanager
def _safetensors_seen() -> Iterator[None]:
    """Inside, what safetensors opens is seen as well, though it does that without Python."""
    try:
        import safetensors
        import safetensors.torch as for_torch
    except ImportError:
        yield
        return

    def seen(opening: Callable[..., Any]) -> Callable[..., Any]:
        def spy(filename: Any, *arguments: Any, **options: Any) -> Any:
            for watch in _watching:
                watch.reads.files.add(os.path.realpath(os.fspath(filename)))
            return opening(filename, *arguments, **options)

        return spy

    places = [(safetensors, "safe_open"), (for_torch, "safe_open")]
    originals = [getattr(place, name) for place, name in places]
    for (place, name), original in zip(places, originals, strict=True):
        setattr(place, name, seen(original))
    try:
        yield
    finally:
        for (place, name), original in zip(places, originals, strict=True):
            setattr(place, name, original)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in {"open", "os.listdir", "os.scandir"}:
        return
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return
    # Python looks for modules in every folder of its path.
    if event != "open" and "importlib" in sys._getframe(1).f_code.co_filename:
        return
    name = os.path.realpath(os.fsdecode(path))
    for watch in _watching:
        if event != "open":
            watch.reads.folders.add(name)
        elif _makes(arguments[1], arguments[2]):
            watch.written.add(name)
        else:
            watch.reads.files.add(name)


def _makes(mode: str | None, flags: int) -> bool:
    """Whether a file is opened to be made anew; one that is opened for both is an input."""
    if mode is not None:
        return bool(set(mode) & set("wax"))
    return bool(flags & (os.O_CREAT | os.O_TRUNC))


@cache
def _install_hook() -> None:
    # Python never lets a hook go, so there is one, and it looks away when nothing is recorded.
    sys.addaudithook(_watch)
