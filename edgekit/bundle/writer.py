"""Writes a bundle so that a reader sees the old one, the new one or none: never a part of one."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.bundle.manifest import LADDER_NAME, MANIFEST_NAME
from edgekit.errors import BuildError

__all__ = ["check_output", "new_bundle", "replace_file", "write_files"]


@contextmanager
def new_bundle(output: Path) -> Iterator[Path]:
    """A fresh folder beside `output` that takes its place when the block ends well.

    When it does not (an error, Ctrl-C), the folder is removed and `output` is as it was. A process
    that is killed leaves its folder behind; the next call for the same `output` removes it. An
    `output` that exists is replaced only if it is a bundle, a ladder or empty.

    Raises BuildError where `output` holds something else, or cannot be written.
    """
    output = output.resolve()
    check_output(output)
    prefix = f".{output.name}.partial-"
    with _as_build_error(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        for stale in output.parent.iterdir():
            if stale.name.startswith(prefix):
                _remove_if_abandoned(stale)
        fresh, lock = _locked_folder(output.parent, prefix)
    try:
        yield fresh
        with _as_build_error(output):
            _put_in_place(fresh, output)
    finally:
        os.close(lock)
        shutil.rmtree(fresh, ignore_errors=True)


def check_output(output: Path) -> None:
    """Raises BuildError where `output` holds something that a bundle may not replace."""
    if output.exists() and not _replaceable(output):
        raise BuildError(
            f"{output}: exists and is not a bundle or a ladder; choose another --output"
        )


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files`, by their path within `folder`, and make them durable.

    Raises BuildError where the disk is full or refuses.
    """
    with _as_build_error(folder):
        for path, content in files.items():
            full = folder / path
            full.parent.mkdir(parents=True, exist_ok=True)
            with full.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for parent, _, _ in os.walk(folder):
            _sync_folder(Path(parent))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one.

    It is first written beside its folder, where a reader of the bundle does not take it for a file
    too many. Where nothing can be put there, or not moved from there (the folder is a mount point,
    or all that may be written), it is written in its place: a reader may then see a part of it,
    which its seal tells, and a write that fails leaves no file. Raises BuildError where the disk is
    full or refuses.
    """
    path = path.resolve()
    with _as_build_error(path, "free some"):
        try:
            handle, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent.parent)
        except OSError as error:
            if error.errno not in _NOT_BESIDE:
                raise
            _write_in_place(path, content)
            return
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(fresh).chmod(0o644)  # mkstemp's is private; a bundle is to be copied.
            Path(fresh).replace(path)
        except BaseException as error:
            Path(fresh).unlink(missing_ok=True)
            if not isinstance(error, OSError) or error.errno != errno.EXDEV:
                raise
            _write_in_place(path, content)
        _sync_folder(path.parent)


_NOT_BESIDE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""A folder above the bundle's that is not this user's to write to."""


def _write_in_place(path: Path, content: bytes) -> None:
    # What has the name may be a link, or a pipe.
    path.unlink(missing_ok=True)
    try:
        with path.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the lock on it, which the kernel lets go however this process ends."""
    while True:
        fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        fresh.chmod(0o755)  # mkdtemp's is private; a bundle is to be copied.
        lock = os.open(fresh, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if fresh.exists():
            return fresh, lock
        os.close(lock)  # Another build took it for abandoned before it was locked.


def _put_in_place(fresh: Path, output: Path) -> None:
    # POSIX has no rename over a folder that is not empty, so the old bundle steps aside first. A
    # kill between the two renames leaves no bundle at `output`, and the next build cleans up.
    if not output.exists():
        fresh.rename(output)
        _sync_folder(output.parent)
        return
    aside = output.parent / f"{fresh.name}-old"
    lock = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output.rename(aside)
        try:
            fresh.rename(output)
        except BaseException:
            aside.rename(output)
            raise
        _sync_folder(output.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        os.close(lock)


def _replaceable(output: Path) -> bool:
    """Whether a folder is empty, a bundle or a ladder: others have a manifest.json as well."""
    if not output.is_dir():
        return False
    for name, key in ((MANIFEST_NAME, "bundle_id"), (LADDER_NAME, "ladder_id")):
        with suppress(OSError, ValueError):
            document = json.loads((output / name).read_bytes())
            return isinstance(document, dict) and {"format_version", key} <= document.keys()
    return not any(output.iterdir())


def _remove_if_abandoned(folder: Path) -> None:
    """Remove what a killed build left behind: a folder whose lock nobody holds."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_build_error(
    place: Path, remedy: str = "free some, or choose another --output"
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise BuildError(f"{place}: no space left for it; {remedy}") from None
        raise BuildError(f"{place}: cannot be written: {error.strerror}") from None
