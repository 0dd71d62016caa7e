"""What a ladder's variants take on one device: `profile.json`, beside the ladder's bundles.

`edgekit bench LADDER --profile` measures it there. It holds for that processor, that engine, those
threads and those bundles, and for others it says nothing.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.ladder import PROFILE_NAME, LadderDocument, LadderVariant
from edgekit.bundle.manifest import FORMAT_VERSION, decode, seal, unseal
from edgekit.bundle.reader import read_at_most
from edgekit.errors import BundleError, InputError
from edgekit.limits import LIMITS
from edgekit.runtime.device import describe

__all__ = [
    "Latency",
    "Measured",
    "Profile",
    "parse_profile",
    "profile_beside",
    "read_profile",
    "seal_profile",
]


@dataclass(frozen=True)
class Latency:
    """Times of one sample in ms, from a prepared tensor to the decision."""

    mean: float
    p50: float
    p95: float


@dataclass(frozen=True)
class Measured:
    """What one variant took.

    `resident_bytes` is by how much the process's own memory grew while its chain was loaded and run
    once; None where the kernel does not tell.
    """

    bundle_id: str
    latency_ms: Latency
    resident_bytes: int | None


@dataclass(frozen=True)
class Profile:
    """The whole of `profile.json`.

    `device` is the machine as `edgekit.runtime.device.describe` has it, `engine` what ran the
    segments (`onnxruntime`), `engine_version` its kind and version, `variants` by name. `reasons`
    say why the bench that measured it called its own figures unreliable, if it did.
    """

    format_version: int
    device: dict[str, Any]
    engine: str
    engine_version: str
    threads: int
    variants: dict[str, Measured]
    reasons: tuple[str, ...]

    @property
    def doubts(self) -> str | None:
        """Words about why the times are not to be relied on; None where nothing spoke against."""
        if not self.reasons:
            return None
        return (
            f"the ladder's profile is doubtful: {'; '.join(self.reasons)}: measure it again on a "
            "quiet board with edgekit bench LADDER --profile"
        )

    def problem(self, variants: Sequence[LadderVariant], engine: str, threads: int) -> str | None:
        """Words about why it does not hold for these variants here; None where it does."""
        if (cpu := self.device.get("cpu")) != (here := describe()["cpu"]):
            return f"it is of {cpu!r:.80}, this is {here}"
        if (self.engine, self.threads) != (engine, threads):
            return (
                f"it is of {self.engine} at {self.threads} threads, and {engine} at {threads} runs "
                "here"
            )
        for one in variants:
            found = self.variants.get(one.name)
            if found is None or found.bundle_id != one.bundle_id:
                return f"it is of another bundle than this {one.name}, or of none"
        return None


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """The profile in the file `path`.

    Raises InputError where it cannot be read, and where it is none or was changed.
    """
    try:
        return parse_profile(read_at_most(Path(path), LIMITS.manifest_bytes), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except BundleError as error:
        words = str(error).rpartition("; ")[0]
        raise InputError(f"{words}; edgekit bench LADDER --profile measures it anew") from None


def profile_beside(
    path: str | os.PathLike[str], document: LadderDocument
) -> tuple[Profile | None, str | None]:
    """The profile beside the ladder in the folder `path`, of whatever device it is; to be shown.

    None where there is none, and with words about why where what is there is none of its bundles'.
    """
    place = Path(path) / PROFILE_NAME
    if not place.exists():
        return None, None
    try:
        found = read_profile(place)
    except InputError as error:
        return None, str(error)
    for one in document.variants:
        if one.name not in found.variants or found.variants[one.name].bundle_id != one.bundle_id:
            return None, f"{place}: is of another bundle than this {one.name}; measure it anew"
    return found, None


def parse_profile(raw: bytes, name: str) -> Profile:
    """The bytes of `profile.json` as a profile; `name` stands in messages.

    Raises BundleError for a changed byte, another format version, a wrong type, an unknown or
    missing key, and for times and sizes that nothing takes.
    """
    document = unseal(raw, name)
    if (version := document.get("format_version")) != FORMAT_VERSION:
        raise BundleError(f"{name}: format version {version!r}, and {FORMAT_VERSION} is read; redo")
    profile: Profile = decode(Profile, document, name)
    if not all(isinstance(profile.device.get(one), str) for one in ("cpu", "machine")):
        raise BundleError(f"{name}: does not say which device it is of; redo")
    for variant, one in profile.variants.items():
        times = dataclasses.astuple(one.latency_ms)
        if min(times) <= 0 or (one.resident_bytes or 0) < 0:
            raise BundleError(
                f"{name}: {variant!r:.60} took {times} ms, or less than no bytes; redo"
            )
    return profile


def seal_profile(
    engine: str,
    engine_version: str,
    threads: int,
    variants: dict[str, Measured],
    reasons: Sequence[str] = (),
) -> bytes:
    """The bytes of `profile.json` with what was measured on this device."""
    found = (describe(), engine, engine_version, threads, variants, tuple(reasons))
    profile = Profile(FORMAT_VERSION, *found)
    # Through JSON, so that what is sealed is what is read.
    return seal(json.loads(json.dumps(dataclasses.asdict(profile))))
