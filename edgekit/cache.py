"""What earlier builds worked out, by the hash of everything that went into it.

A folder that any number of builds may share, and that may be deleted at any time:

    blobs/ab/ab12...      files, each under the SHA-256 of its bytes
    entries/KEY.json      the result of a stage: a document, and names for some of the blobs
    notes/KIND/KEY/*.json small documents that help to find keys, or to say why one is new

Every file is written beside its place and then renamed, so that a reader sees all of it or none,
whoever else is at work and whenever a build is killed. What is damaged is a miss: blobs are held
against their names when they are read, documents against a seal. The cache may fail (a full disk, a
folder that is read-only); the build then goes on without it, and `problem` says why.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import canonical_json, seal, unseal
from edgekit.errors import BundleError
from edgekit.limits import LIMITS

__all__ = ["Cache", "Entry", "default_folder", "digest"]

_UNDER_WAY = ".under-way-"
"""How the name of a file begins that is still written."""


_MOST_NOTES = 16
"""Notes under one key: whoever looks for the one that fits reads them all."""


@dataclass(frozen=True)
class Entry:
    """A stage's result: a document of plain data, and files by name."""

    document: dict[str, Any]
    blobs: dict[str, bytes]


@dataclass(frozen=True)
class Listed:
    """An entry as `edgekit cache` shows it. `size_bytes` counts the blobs that it names."""

    key: str
    stage: str
    title: str
    size_bytes: int
    used_at: float


def digest(document: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(canonical_json(document)).hexdigest()


def default_folder() -> Path:
    """`edgekit` in the user's cache folder, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit"


class Cache:
    """See this module's docstring. Nothing here raises for want of a healthy disk."""

    def __init__(self, folder: Path, limit_bytes: int = LIMITS.cache_bytes) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.problem: str | None = None

    def has(self, key: str) -> bool:
        """Whether there is an entry; `get` may still find it damaged."""
        return self._entry(key).is_file()

    def get(self, key: str) -> Entry | None:
        """The entry of this key, every byte of it as it was put; None if it is not there."""
        path = self._entry(key)
        record = self._read(path)
        if record is None:
            return None
        blobs = {}
        for name, sha256 in record["blobs"].items():
            content = self._blob(sha256)
            if content is None:
                self._drop(path)
                return None
            blobs[name] = content
        with suppress(OSError):
            os.utime(path)  # Used now: it is among the last that `put` removes for want of room.
        return Entry(record["document"], blobs)

    def put(self, key: str, stage: str, title: str, entry: Entry) -> None:
        """Keep an entry. `stage` and `title` say what it is to whoever lists the cache."""
        names = {name: hashlib.sha256(content).hexdigest() for name, content in entry.blobs.items()}
        record = {"stage": stage, "title": title, "document": entry.document, "blobs": names}
        with self._excused(), self._locked(fcntl.LOCK_SH):
            for name, content in entry.blobs.items():
                path = self._blob_path(names[name])
                if not path.is_file() or path.stat().st_size != len(content):
                    _write(path, content)
            _write(self._entry(key), seal(record))
        with self._excused():
            self._make_room()

    def notes(self, kind: str, key: str) -> list[dict[str, Any]]:
        """The notes that were left under a key, the latest first."""
        found = (self._read(path) for path in _latest_first(self.folder / "notes" / kind / key))
        return [note for note in found if note is not None]

    def note(self, kind: str, key: str, document: dict[str, Any], *, alone: bool = False) -> None:
        """Leave a note under a key, beside others or in their place."""
        name = "note" if alone else digest(document)
        folder = self.folder / "notes" / kind / key
        with self._excused(), self._locked(fcntl.LOCK_SH):
            _write(folder / f"{name}.json", seal(document))
            for path in _latest_first(folder)[_MOST_NOTES:]:
                path.unlink(missing_ok=True)

    def listing(self) -> list[Listed]:
        """Every entry, the latest used first."""
        found = []
        for path in self._entries():
            record = self._read(path)
            if record is not None:
                blobs = {self._blob_path(sha256) for sha256 in record["blobs"].values()}
                size_bytes = sum(_stat(blob)[0] for blob in blobs)
                used_at = _stat(path)[1] / 1e9
                found.append(
                    Listed(path.stem, record["stage"], record["title"], size_bytes, used_at)
                )
        return found

    def size_bytes(self) -> int:
        """What all of it takes on the disk."""
        return sum(_stat(path)[0] for path in self._files())

    def clear(self) -> int:
        """Remove everything; returns the bytes that this freed."""
        freed = self.size_bytes()
        with self._excused(), self._locked(fcntl.LOCK_EX):
            for name in ("entries", "blobs", "notes"):
                if (self.folder / name).exists():
                    shutil.rmtree(self.folder / name)
        return freed

    def _make_room(self) -> None:
        """Over the limit, remove the entries that were used longest ago, and what they held."""
        if self.size_bytes() <= self.limit_bytes:
            return
        with self._locked(fcntl.LOCK_EX):
            entries = self._entries()
            while entries and self.size_bytes() > self.limit_bytes:
                # A few at a time: finding what is not named any more reads every entry.
                for path in entries[-max(1, len(entries) // 4) :]:
                    path.unlink(missing_ok=True)
                    entries.remove(path)
                self._drop_unnamed()

    def _drop_unnamed(self) -> None:
        """Remove blobs that no entry names, and what killed builds left half written."""
        named: set[str] = set()
        for path in self._entries():
            record = self._read(path)
            named |= set(record["blobs"].values()) if record else set()
        for path in self._files():
            blob = path.parent.parent == self.folder / "blobs" and path.name not in named
            if blob or path.name.startswith(_UNDER_WAY):
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [Path(parent, name) for parent, _, names in os.walk(self.folder) for name in names]

    def _entries(self) -> list[Path]:
        """The entries' files, the latest used first."""
        return _latest_first(self.folder / "entries")

    def _entry(self, key: str) -> Path:
        return self.folder / "entries" / f"{key}.json"

    def _blob_path(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256[:2] / sha256

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return unseal(path.read_bytes(), path.name)
        except (OSError, BundleError):
            return None

    def _blob(self, sha256: str) -> bytes | None:
        path = self._blob_path(sha256)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        self._drop(path)
        return None

    def _drop(self, path: Path) -> None:
        """Remove what is damaged, so that it is put anew."""
        with self._excused():
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Many may put at once; who removes is alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _excused(self) -> Iterator[None]:
        """A cache that fails costs time and nothing else."""
        try:
            yield
        except OSError as error:
            self.problem = f"{self.folder}: {error.strerror or error}"


def _latest_first(folder: Path) -> list[Path]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".json")]  # noqa: PTH208
    except OSError:
        return []
    return sorted((folder / name for name in names), key=lambda path: -_stat(path)[1])


def _stat(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; zeros where another process just removed it."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=_UNDER_WAY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
