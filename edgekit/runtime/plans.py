"""Engines that are built on the device: kept beside the bundle, and never taken for another's.

`edgekit install BUNDLE` builds one engine (a plan) for each segment, into the folder
`BUNDLE.engines`:

    KEY.plan     the engine
    KEY.json     its record, under a seal: what it is tied to, and the plan's size and SHA-256
    timing-*     what the builder measured, so that it need not measure it again

A plan is tied to the segment's content, the GPU, its compute capability, the versions of TensorRT
and CUDA, and how it was built; KEY is a hash over all of that. The record is written last, so that
what a kill leaves behind counts as nothing. A plan's bytes are held against the record before
anything reads them.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import GpuTarget, Segment, canonical_json, seal, unseal
from edgekit.bundle.writer import replace_file
from edgekit.errors import (
    BuildError,
    BundleError,
    DeviceError,
    MismatchError,
    NotInstalledError,
    PlanError,
)
from edgekit.limits import LIMITS
from edgekit.runtime.gpu import Gpu

__all__ = ["BUILT", "EXECUTED", "REFUSED", "Record", "Store", "Tie", "folder_of", "wanted"]

BUILT, EXECUTED, REFUSED = "built", "executed", "refused"
"""How far a plan was proven: by its builder, or by the golden samples that it answered, rightly or
not.
"""

_FORMAT = 1

_KEY_CHARS = 32
"""Half of a SHA-256: room in a file's name, and still nothing that two ties share."""


@dataclass(frozen=True)
class Tie:
    """What a plan is tied to. On any other device, or by any other version, it is another plan.

    `tensorrt` names the library and its version ("tensorrt 10.3.0"), `cuda` the driver's version.
    """

    segment_sha256: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    tensorrt: str
    cuda: str
    builder: str
    batch_sizes: tuple[int, ...]
    workspace_bytes: int

    @property
    def key(self) -> str:
        """The name of the plan's files."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()[:_KEY_CHARS]


_WORDS = {
    "gpu": "the GPU {}",
    "compute_capability": "compute capability {}",
    "multiprocessors": "{} multiprocessors",
    "tensorrt": "{}",
    "cuda": "CUDA {}",
    "builder": "the builder {}",
    "batch_sizes": "batches of {}",
    "workspace_bytes": "a workspace of {} bytes",
}


@dataclass(frozen=True)
class Record:
    """What is known of a plan that lies in a store: see this module."""

    segment: str
    tie: Tie
    size_bytes: int
    sha256: str
    seconds: float
    built_at: str
    proven: str


def folder_of(bundle: Path) -> Path:
    """Where a bundle's plans lie: beside it, for nothing may be added to what is hashed."""
    place = bundle.resolve()
    return place.with_name(f"{place.name}.engines")


def wanted(segments: Sequence[Segment], target: GpuTarget, gpu: Gpu, tensorrt: str) -> list[Tie]:
    """The tie of each segment's plan on a device with this GPU and this TensorRT."""
    return [
        Tie(
            segment.sha256,
            gpu.name,
            gpu.compute_capability,
            gpu.multiprocessors,
            tensorrt,
            gpu.cuda,
            target.builder,
            target.batch_sizes,
            target.workspace_bytes,
        )
        for segment in segments
    ]


class Store:
    """The plans of one bundle. `bundle` is named in messages, as the user would type it."""

    def __init__(self, bundle: Path, folder: Path | None = None) -> None:
        self.bundle = bundle
        self.folder = folder or folder_of(bundle)

    def look(self, tie: Tie) -> Record | None:
        """The record of this plan, None where there is none; the plan itself is not read.

        Raises PlanError where the record was damaged.
        """
        path = self.folder / f"{tie.key}.json"
        return self._record(path) if path.is_file() else None

    def size_bytes(self, tie: Tie) -> int | None:
        """How large the plan's file is; None where there is none."""
        try:
            return (self.folder / f"{tie.key}.plan").stat().st_size
        except OSError:
            return None

    def read(self, segment: Segment, tie: Tie) -> bytes:
        """The plan's bytes, held against its record.

        Raises NotInstalledError where the segment has no plan at all, MismatchError where it has
        one for another device or of another version, PlanError where the plan or its record was
        damaged or cannot be read. All name the command that builds it.
        """
        record = self.look(tie)
        if record is None:
            raise self._absent(segment, tie)
        if record.proven == REFUSED:
            raise PlanError(
                f"the engine of {segment.name} answered the golden samples otherwise than the host "
                f"did: {self._remedy()} builds it anew"
            )
        path = self.folder / f"{tie.key}.plan"
        try:
            found_bytes = path.stat().st_size
            if found_bytes == record.size_bytes:
                # Not through a link, which may lead to what somebody else can change.
                with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
                    content = stream.read(record.size_bytes + 1)
                found_bytes = len(content)
        except OSError as error:
            raise self._damaged(segment, f"{path} cannot be read: {error.strerror}") from None
        if found_bytes != record.size_bytes:
            raise self._damaged(
                segment, f"{path} has {found_bytes} bytes, {record.size_bytes} were built"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != record.sha256:
            raise self._damaged(
                segment,
                f"{path} was changed: SHA-256 {digest[:12]}…, {record.sha256[:12]}… was built",
            )
        return content

    def put(self, segment: Segment, tie: Tie, content: bytes, seconds: float) -> Record:
        """Keep a plan. Raises BuildError where the disk is full or refuses."""
        record = Record(
            segment.name,
            tie,
            len(content),
            hashlib.sha256(content).hexdigest(),
            round(seconds, 3),
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            BUILT,
        )
        # The old record first: it is not this plan's.
        with _as_build_error(self.folder):
            (self.folder / f"{tie.key}.json").unlink(missing_ok=True)
        replace_file(self.folder / f"{tie.key}.plan", content)
        self._write(record)
        return record

    def prove(self, record: Record, how: str = EXECUTED) -> Record:
        """Note how the plan answered the golden samples. Raises as `put`."""
        proven = replace(record, proven=how)
        if proven != record:
            self._write(proven)
        return proven

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Nobody else builds into this store within the block; `waiting` is told of a wait.

        Raises BuildError where the folder cannot be made or written.
        """
        with _as_build_error(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with _as_build_error(self.folder):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def timing(self, tie: Tie) -> bytes | None:
        """What was measured for this device and TensorRT, if it lies here undamaged."""
        try:
            raw = self._timing_path(tie).read_bytes()
        except OSError:
            return None
        digest, content = raw[:32], raw[32:]
        return content if hashlib.sha256(content).digest() == digest else None

    def keep_timing(self, tie: Tie, content: bytes) -> None:
        """Keep what was measured. Raises as `put`."""
        replace_file(self._timing_path(tie), hashlib.sha256(content).digest() + content)

    def _timing_path(self, tie: Tie) -> Path:
        device = [
            *(tie.gpu, tie.compute_capability, tie.multiprocessors),
            *(tie.tensorrt, tie.cuda),
        ]
        digest = hashlib.sha256(canonical_json(device)).hexdigest()
        return self.folder / f"timing-{digest[:_KEY_CHARS]}"

    def _write(self, record: Record) -> None:
        document = {"format": _FORMAT, **asdict(record)}
        replace_file(self.folder / f"{record.tie.key}.json", seal(document))

    def _record(self, path: Path) -> Record:
        """Raises PlanError where the record is none, or not the one of its name."""
        try:
            with path.open("rb") as stream:
                document = unseal(stream.read(LIMITS.manifest_bytes + 1), path.name)
            record = _parse(document)
        except (OSError, BundleError, TypeError, KeyError, ValueError):
            raise PlanError(f"{path} is damaged: {self._remedy()}") from None
        if path.stem != record.tie.key:
            raise PlanError(f"{path} is another engine's record: {self._remedy()}")
        return record

    def _absent(self, segment: Segment, tie: Tie) -> DeviceError:
        """Why there is no plan: none was built, or one for another device."""
        others = []
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(PlanError):
                others.append(self._record(path).tie)
        others = [one for one in others if one.segment_sha256 == tie.segment_sha256]
        if not others:
            return NotInstalledError(
                f"{self.bundle} is not installed on this device: {segment.name} has no engine for "
                f"{tie.gpu} yet: {self._remedy()}"
            )
        nearest = min(others, key=lambda one: len(_differences(one, tie)))
        there, here = (
            ", ".join(_WORDS[name].format(_shown(one, name)) for name in _differences(nearest, tie))
            for one in (nearest, tie)
        )
        return MismatchError(
            f"the engine of {segment.name} was built for {there}; here is {here}: {self._remedy()}"
        )

    def _damaged(self, segment: Segment, what: str) -> PlanError:
        return PlanError(f"the engine of {segment.name} is damaged: {what}: {self._remedy()}")

    def _remedy(self) -> str:
        return f"edgekit install {self.bundle}"


@contextlib.contextmanager
def _as_build_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"{folder}: cannot be written: {error.strerror}; the engines lie beside the bundle: "
            "copy it to where you may write"
        ) from None


def _differences(one: Tie, other: Tie) -> list[str]:
    names = [field.name for field in fields(Tie)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def _shown(tie: Tie, name: str) -> str:
    value = getattr(tie, name)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(document: dict[str, Any]) -> Record:
    """Raises TypeError, KeyError or ValueError for anything that is no record."""
    if document.pop("format") != _FORMAT:
        raise ValueError
    tie = document.pop("tie")
    return Record(tie=Tie(**{**tie, "batch_sizes": tuple(tie["batch_sizes"])}), **document)
