"""Reads a bundle, and lets nothing through that its manifest does not vouch for."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.manifest import EVIDENCE_NAME, MANIFEST_NAME, File, Manifest, parse_manifest
from edgekit.errors import BundleError
from edgekit.limits import LIMITS

__all__ = ["Bundle", "read_bundle"]

BESIDE = frozenset({MANIFEST_NAME, EVIDENCE_NAME})
"""Files that a bundle may hold without listing them; each carries its own seal."""

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found as listed, with the segments' bytes as they were hashed.

    `segments` maps a path to the bytes of that segment; engines take these, never the path.
    """

    path: Path
    manifest: Manifest
    segments: dict[str, bytes]

    def read(self, path: str) -> bytes:
        """The bytes of another listed file, hashed again now. Raises BundleError if it changed."""
        file = next(file for file in self.manifest.files if file.path == path)
        return _read(self.path, file)


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in the folder `path`.

    Raises BundleError for a folder that is no bundle, and for a missing, extra, changed or
    oversized file and for links, before any engine sees a byte.
    """
    folder = Path(path)
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        raise BundleError(f"{folder}: is not a bundle: it has no {MANIFEST_NAME}")
    size_bytes = manifest_path.stat().st_size
    if manifest_path.is_symlink() or size_bytes > LIMITS.manifest_bytes:
        raise BundleError(f"{manifest_path}: is a link or too large ({size_bytes} bytes)")
    manifest = parse_manifest(manifest_path.read_bytes())
    _check_listing(folder, manifest)
    unlisted = {file.path for file in manifest.files}
    segments = {}
    for file in manifest.all_files():
        if file.path in unlisted:
            _hash(folder, file)
        else:
            segments[file.path] = _read(folder, file)
    return Bundle(folder, manifest, segments)


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """Hold the folder's files and their sizes against the manifest's."""
    expected = {file.path: file.size_bytes for file in manifest.all_files()}
    found = set()
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            full = Path(parent, name)
            relative = full.relative_to(folder).as_posix()
            if full.is_symlink():
                raise BundleError(f"{folder}: {relative} is a link; copy the bundle with its files")
            if name in folders or relative in BESIDE:
                continue
            if relative not in expected:
                raise BundleError(f"{folder}: {relative} does not belong to it; remove that file")
            size_bytes = full.stat().st_size
            if size_bytes != expected[relative]:
                raise BundleError(
                    f"{folder}: {relative} has {size_bytes} bytes, {expected[relative]} expected; "
                    "copy the bundle again"
                )
            found.add(relative)
    if missing := sorted(expected.keys() - found):
        raise BundleError(f"{folder}: {missing[0]} is missing; copy the bundle again")


def _read(folder: Path, file: File) -> bytes:
    with (folder / file.path).open("rb") as stream:
        content = stream.read(file.size_bytes + 1)
    _compare(folder, file, hashlib.sha256(content).hexdigest())
    return content


def _hash(folder: Path, file: File) -> None:
    digest = hashlib.sha256()
    with (folder / file.path).open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    _compare(folder, file, digest.hexdigest())


def _compare(folder: Path, file: File, digest: str) -> None:
    if digest != file.sha256:
        raise BundleError(
            f"{folder}: {file.path} was changed: SHA-256 {digest[:12]}…, "
            f"{file.sha256[:12]}… expected; copy the bundle again"
        )
