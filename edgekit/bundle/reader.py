"""Reads a bundle, and lets nothing through that its manifest does not vouch for."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.bundle.manifest import (
    EVIDENCE_NAME,
    LADDER_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
    File,
    Manifest,
    parse_manifest,
    unseal,
    unseal_page,
)
from edgekit.errors import BundleError
from edgekit.limits import LIMITS

__all__ = ["Bundle", "read_at_most", "read_bundle", "read_evidence", "read_manifest", "read_report"]

BESIDE = frozenset({MANIFEST_NAME, EVIDENCE_NAME, REPORT_NAME})
"""Files that a bundle may hold without listing them; each carries its own seal."""

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found as listed, with the segments' bytes as they were hashed.

    `segments` maps the path of each segment of a chain to its bytes; engines take these, never the
    path. `seal` is the hash over the whole manifest, `bundle_id` over what is deployed.
    """

    path: Path
    manifest: Manifest
    seal: str
    segments: dict[str, bytes]

    def read(self, path: str) -> bytes:
        """The bytes of any listed file, hashed again now. Raises BundleError if it changed."""
        file = next(file for file in self.manifest.all_files() if file.path == path)
        return _read(self.path, file)


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in the folder `path`.

    Raises BundleError for a folder that is no bundle, and for a missing, extra, changed or
    oversized file and for links, before any engine sees a byte.
    """
    folder = Path(path)
    try:
        raw = _manifest_of(folder)
        manifest = parse_manifest(raw)
        _check_listing(folder, manifest)
        deployed = {one.path for variant in manifest.variants for one in variant.segments}
        segments = {}
        for file in manifest.all_files():
            if file.path in deployed:
                segments[file.path] = _read(folder, file)
            else:
                _hash(folder, file)
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None
    return Bundle(folder, manifest, json.loads(raw)["seal"], segments)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """What the bundle in the folder `path` says of itself; its files are not looked at.

    Raises BundleError for a folder that is no bundle, and for a manifest that does not hold.
    """
    try:
        return parse_manifest(_manifest_of(Path(path)))
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read: {error.strerror}") from None


def read_evidence(bundle: Bundle) -> dict[str, Any] | None:
    """What was measured when the bundle was built; None if it does not come with it.

    Raises BundleError where it was changed, or belongs to another bundle.
    """
    path = bundle.path / EVIDENCE_NAME
    try:
        document = unseal(read_at_most(path, LIMITS.manifest_bytes), EVIDENCE_NAME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    if document.get("bundle_id") != bundle.manifest.bundle_id:
        raise BundleError(f"{path}: belongs to another bundle; remove it, or build again")
    return document


def read_report(bundle: Bundle) -> tuple[str, bool] | None:
    """The page that comes with a bundle, and whether it is of the evidence that lies beside it.

    None where there is none. Raises BundleError where it was changed.
    """
    path = bundle.path / REPORT_NAME
    try:
        page = unseal_page(read_at_most(path, LIMITS.report_bytes), REPORT_NAME)
        evidence = read_at_most(bundle.path / EVIDENCE_NAME, LIMITS.manifest_bytes)
    except FileNotFoundError as error:
        return None if error.filename == str(path) else (page, False)
    except OSError as error:
        raise BundleError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return page, f'content="{hashlib.sha256(evidence).hexdigest()}"' in page


def _manifest_of(folder: Path) -> bytes:
    if not (folder / MANIFEST_NAME).is_file():
        if (folder / LADDER_NAME).is_file():
            raise BundleError(f"{folder}: is a ladder of bundles; name one, {folder / 'VARIANT'}")
        raise BundleError(f"{folder}: is not a bundle: it has no {MANIFEST_NAME}")
    return read_at_most(folder / MANIFEST_NAME, LIMITS.manifest_bytes)


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
            if name in folders or (relative in BESIDE and full.is_file()):
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
    content = read_at_most(folder / file.path, file.size_bytes)
    _compare(folder, file, hashlib.sha256(content).hexdigest())
    return content


def read_at_most(path: Path, most: int) -> bytes:
    """A file's bytes; one more than `most` where it holds more, which no check then accepts."""
    with _open(path) as stream:
        return stream.read(most + 1)


def _hash(folder: Path, file: File) -> None:
    digest = hashlib.sha256()
    left = file.size_bytes + 1
    with _open(folder / file.path) as stream:
        while chunk := stream.read(min(_CHUNK_BYTES, left)):
            digest.update(chunk)
            left -= len(chunk)
    _compare(folder, file, digest.hexdigest())


def _open(path: Path) -> IO[bytes]:
    # A link or a pipe that took the file's place after it was looked at is not followed or awaited.
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def _compare(folder: Path, file: File, digest: str) -> None:
    if digest != file.sha256:
        raise BundleError(
            f"{folder}: {file.path} was changed: SHA-256 {digest[:12]}…, "
            f"{file.sha256[:12]}… expected; copy the bundle again"
        )
