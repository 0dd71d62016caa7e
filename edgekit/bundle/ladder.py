"""What a folder of bundles says of itself: `ladder.json`, one network at several widths.

Every variant of a ladder is a whole bundle of its own, in the folder of its name. The document
beside them says which they are, narrowest first, what each holds and is worth, and who is to
answer: a policy, which is decided in `edgekit.runtime.choose`.

`ladder_id` covers everything in the document but itself and the seal.
"""

import dataclasses
import difflib
import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import (
    FORMAT_VERSION,
    LADDER_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
    Manifest,
    canonical_json,
    decode,
    seal,
    unseal,
    unseal_page,
)
from edgekit.bundle.reader import Bundle, read_at_most, read_bundle, read_manifest
from edgekit.errors import BundleError
from edgekit.limits import LIMITS

__all__ = [
    "POLICIES",
    "PROFILE_NAME",
    "AccuracyFloor",
    "Cascade",
    "Fixed",
    "LadderDocument",
    "LadderPolicy",
    "LadderVariant",
    "LatencyBudget",
    "Load",
    "MemoryBudget",
    "TunedCascade",
    "is_ladder",
    "names_problem",
    "parse_ladder",
    "parse_ladder_policy",
    "policy_document",
    "read_ladder",
    "read_ladder_page",
    "read_variant",
    "read_variant_manifest",
    "seal_ladder",
]

PROFILE_NAME = "profile.json"
"""What `edgekit bench --profile` measured on the device, beside the ladder's bundles."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Fixed:
    """The variant of this name answers."""

    variant: str

    def problem(self, names: Sequence[str]) -> str | None:
        """Words about what does not fit a ladder of these variants; None where all fits."""
        if self.variant in names:
            return None
        near = difflib.get_close_matches(self.variant[: LIMITS.path_chars], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
        return f"the ladder has no variant {self.variant!r:.60}; {hint}"


@dataclass(frozen=True)
class LatencyBudget:
    """The widest variant answers whose 95th percentile on this device is within `budget_ms`."""

    budget_ms: float

    def problem(self, names: Sequence[str]) -> str | None:
        """Words about what does not fit a ladder of these variants; None where all fits."""
        return _above_zero("budget_ms", self.budget_ms)


@dataclass(frozen=True)
class AccuracyFloor:
    """The cheapest variant answers whose accuracy, from 0 to 1, is at least `accuracy`."""

    accuracy: float

    def problem(self, names: Sequence[str]) -> str | None:
        """Words about what does not fit a ladder of these variants; None where all fits."""
        if 0 <= self.accuracy <= 1:
            return None
        return f"accuracy is a share from 0 to 1; found {self.accuracy!r}"


@dataclass(frozen=True)
class MemoryBudget:
    """The widest variant answers that takes at most so many `bytes` once it is loaded."""

    bytes: int

    def problem(self, names: Sequence[str]) -> str | None:
        """Words about what does not fit a ladder of these variants; None where all fits."""
        return _above_zero("bytes", self.bytes)


@dataclass(frozen=True)
class Cascade:
    """The narrowest variant is asked first, and the next wider one until the answer is sure.

    It is where its confidence is `>=` the variant's threshold, one for each variant but the last;
    or with `agree` where two variants in a row tell the same class. With neither, the thresholds
    are those that tuning found, the document's `cascade`.
    """

    thresholds: tuple[float, ...] | None = None
    agree: bool = False

    def problem(self, names: Sequence[str]) -> str | None:
        """Words about what does not fit a ladder of these variants; None where all fits."""
        if self.thresholds is None:
            return None
        if self.agree:
            return "a cascade goes by thresholds or by agreement; found both"
        if len(self.thresholds) != len(names) - 1:
            return (
                f"a cascade over {len(names)} variants needs {len(names) - 1} thresholds, found "
                f"{len(self.thresholds)}"
            )
        if any(math.isnan(one) for one in self.thresholds):
            return f"thresholds are numbers; found {list(self.thresholds)}"
        return None


@dataclass(frozen=True)
class Load:
    """The widest variant answers whose 95th percentile stays within `target_ms`, as it is now.

    It is looked at after every `window` samples, or as soon as more than a twentieth of so many was
    over the target. A narrower variant is gone to at once where most of the last samples were over
    it, else after two such windows of three; a wider one only when it was expected to leave the
    share `margin` of the target free in `calm` windows in a row.
    """

    target_ms: float
    window: int = 200
    margin: float = 0.1
    calm: int = 3

    def problem(self, names: Sequence[str]) -> str | None:
        """Words about what does not fit a ladder of these variants; None where all fits."""
        if words := _above_zero("target_ms", self.target_ms):
            return words
        if not (20 <= self.window <= LIMITS.load_window):
            # Of fewer than 20 a single one is more than a twentieth: one hiccup, and it moves.
            return f"window is from 20 to {LIMITS.load_window} samples; found {self.window}"
        if self.calm < 1 or not 0 <= self.margin < 1:
            return (
                "calm is at least 1, margin from 0 to below 1; found "
                f"{self.calm} and {self.margin!r}"
            )
        return None


LadderPolicy = Fixed | LatencyBudget | AccuracyFloor | MemoryBudget | Cascade | Load

POLICIES: dict[str, type[LadderPolicy]] = {
    "fixed": Fixed,
    "latency_budget": LatencyBudget,
    "accuracy_floor": AccuracyFloor,
    "memory_budget": MemoryBudget,
    "cascade": Cascade,
    "load": Load,
}
"""The policies by their `kind`."""


@dataclass(frozen=True)
class LadderVariant:
    """A bundle of the ladder: its folder, and what it holds and is worth.

    `settings` are those of the recipe that made it. `parameters` counts weights, `macs` the
    multiply-accumulate operations of one sample that takes no early exit, `size_bytes` is of its
    segments. `accuracy` is of its chain on the tuning split, a share of `labels` met or of
    `agreement` with its reference, as `accuracy_of` says; both are None where there was no data.
    """

    name: str
    bundle_id: str
    settings: dict[str, Any]
    parameters: int
    macs: int
    size_bytes: int
    accuracy: float | None
    accuracy_of: str | None


@dataclass(frozen=True)
class TunedCascade:
    """Thresholds that were fitted to a `goal` on so many `samples`, and what came of them there.

    `accuracy` is counted as that of the variants. `rates` has the share of the samples that each
    variant answers, narrowest first. On average a sample costs `mean_cost`, and the widest variant
    alone `widest_cost`, in `unit`: "MACs", or "ms" where a device's profile was given.
    """

    thresholds: tuple[float, ...]
    samples: int
    accuracy: float
    goal: dict[str, Any]
    rates: tuple[float, ...]
    unit: str
    mean_cost: float
    widest_cost: float


@dataclass(frozen=True)
class LadderDocument:
    """The whole of `ladder.json`. The variants stand narrowest first: by `macs`."""

    format_version: int
    name: str
    ladder_id: str
    variants: tuple[LadderVariant, ...]
    policy: LadderPolicy
    cascade: TunedCascade | None

    @property
    def names(self) -> tuple[str, ...]:
        """The variants' names, narrowest first."""
        return tuple(one.name for one in self.variants)

    def variant(self, name: str) -> LadderVariant:
        """The variant called `name`. Raises BundleError if there is none."""
        if words := Fixed(name).problem(self.names):
            raise BundleError(words)
        return self.variants[self.names.index(name)]


def is_ladder(path: str | os.PathLike[str]) -> bool:
    """Whether the folder `path` holds a ladder, sound or not."""
    return (Path(path) / LADDER_NAME).is_file()


def read_ladder(path: str | os.PathLike[str]) -> LadderDocument:
    """The document of the ladder in the folder `path`; its bundles are not looked at yet.

    Raises BundleError for a folder that is no ladder, and as `parse_ladder`.
    """
    file = Path(path) / LADDER_NAME
    try:
        if not file.is_file():
            raise BundleError(f"{path}: is not a ladder: it has no {LADDER_NAME}")
        return parse_ladder(read_at_most(file, LIMITS.manifest_bytes))
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from None


def read_variant(path: str | os.PathLike[str], document: LadderDocument, name: str) -> Bundle:
    """The bundle of a variant of the ladder in the folder `path`, whose document this is.

    Raises BundleError where there is none of the name, its folder is a link or no sound bundle, or
    is another bundle than the one that the ladder was built with.
    """
    variant = document.variant(name)
    folder = _folder(path, name)
    bundle = read_bundle(folder)
    _check_bundle(folder, variant, bundle.manifest)
    return bundle


def read_variant_manifest(
    path: str | os.PathLike[str], document: LadderDocument, name: str
) -> Manifest:
    """As `read_variant`, the manifest alone; the bundle's other files are not looked at."""
    variant = document.variant(name)
    folder = _folder(path, name)
    manifest = read_manifest(folder)
    _check_bundle(folder, variant, manifest)
    return manifest


def _folder(path: str | os.PathLike[str], name: str) -> Path:
    folder = Path(path) / name
    if folder.is_symlink():
        raise BundleError(f"{folder}: is a link; copy the ladder with its files")
    return folder


def _check_bundle(folder: Path, variant: LadderVariant, manifest: Manifest) -> None:
    if manifest.bundle_id != variant.bundle_id:
        raise BundleError(
            f"{folder}: is bundle {manifest.bundle_id[:12]}, and the ladder is of "
            f"{variant.bundle_id[:12]}; copy or build the whole ladder again"
        )
    size_bytes = sum(one.size_bytes for one in manifest.variant().segments)
    if len(manifest.variants) > 1 or size_bytes != variant.size_bytes:
        raise BundleError(
            f"{folder}: has {len(manifest.variants)} chains and {size_bytes} bytes of segments, "
            f"and the ladder says 1 and {variant.size_bytes}; build the ladder again"
        )


def read_ladder_page(path: str | os.PathLike[str]) -> str | None:
    """The page that lies in a ladder's folder; None where there is none.

    Raises BundleError where it was changed, or cannot be read.
    """
    place = Path(path) / REPORT_NAME
    try:
        return unseal_page(read_at_most(place, LIMITS.report_bytes), REPORT_NAME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{place}: cannot be read: {error.strerror}") from None


def seal_ladder(document: dict[str, Any]) -> bytes:
    """The bytes of `ladder.json`: the document with its format version, its id and its seal."""
    rest = {key: value for key, value in document.items() if key not in {"ladder_id", "seal"}}
    rest["format_version"] = FORMAT_VERSION
    return seal({**rest, "ladder_id": _identify(rest)})


def parse_ladder(raw: bytes) -> LadderDocument:
    """`ladder.json`'s bytes as a document whose every rule holds.

    Raises BundleError that names the place: a changed byte, a wrong type, an unknown or missing
    key, an unknown format version, an id that does not match, a variant's name that is no plain
    folder's or stands twice, variants that are too many or not narrowest first, a policy that does
    not fit them.
    """
    given = unseal(raw, LADDER_NAME)
    if given.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{LADDER_NAME}: format version {given.get('format_version')!r}, and this edgekit "
            f"reads {FORMAT_VERSION}; build it again, or install the edgekit that built it"
        )
    if (known := {one.name for one in dataclasses.fields(LadderDocument)}) != given.keys():
        odd = ", ".join(sorted(known ^ given.keys()))
        raise BundleError(f"{LADDER_NAME}: unknown or missing keys: {odd}; rebuild it")
    kinds = {
        "name": str,
        "ladder_id": str,
        "variants": tuple[LadderVariant, ...],
        "cascade": TunedCascade | None,
    }
    parts = {key: decode(kind, given[key], f"{LADDER_NAME}: {key}") for key, kind in kinds.items()}
    if (
        _identify({key: one for key, one in given.items() if key != "ladder_id"})
        != given["ladder_id"]
    ):
        raise BundleError(f"{LADDER_NAME}: ladder_id does not match what it covers; rebuild it")
    _check_variants(parts["variants"])
    names = [one.name for one in parts["variants"]]
    policy = parse_ladder_policy(given["policy"], names, f"{LADDER_NAME}: policy")
    tuned = parts["cascade"]
    if tuned is not None:
        words = Cascade(tuned.thresholds).problem(names)
        shares = (tuned.accuracy, *tuned.rates)
        sound = tuned.samples > 0 and all(0 <= one <= 1 for one in shares)
        sound = sound and tuned.mean_cost >= 0 and tuned.widest_cost > 0
        if words or not sound or len(tuned.rates) != len(names):
            words = words or f"{tuned.samples} samples, and the shares {shares}"
            raise BundleError(f"{LADDER_NAME}: cascade: {words}; rebuild it")
    elif policy == Cascade():
        raise BundleError(f"{LADDER_NAME}: policy: a cascade without thresholds; rebuild it")
    return LadderDocument(FORMAT_VERSION, policy=policy, **parts)


def parse_ladder_policy(given: Any, names: Sequence[str], where: str = "policy") -> LadderPolicy:
    """A policy out of JSON, `{"kind": "latency_budget", "budget_ms": 5}`, for these variants.

    What it does not name, and need not, is as in the policy's class. Raises BundleError that begins
    with `where` for anything else, and where it does not fit the variants.
    """
    kind = given.get("kind") if isinstance(given, dict) else given
    if not isinstance(given, dict) or not isinstance(kind, str) or kind not in POLICIES:
        raise BundleError(
            f"{where}: {kind!r:.60} is no kind of policy; it is {', '.join(POLICIES)}"
        )
    fields = dataclasses.fields(POLICIES[kind])
    usual = {one.name: one.default for one in fields if one.default is not dataclasses.MISSING}
    known = {key: value for key, value in given.items() if key != "kind"}
    policy: LadderPolicy = decode(POLICIES[kind], {**usual, **known}, f"{where} {kind}")
    if words := policy.problem(names):
        raise BundleError(f"{where} {kind}: {words}")
    return policy


def policy_document(policy: LadderPolicy) -> dict[str, Any]:
    """A policy as JSON has it: the reverse of `parse_ladder_policy`."""
    kind = next(kind for kind, one in POLICIES.items() if type(policy) is one)
    return {"kind": kind, **dataclasses.asdict(policy)}


def _identify(rest: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def names_problem(names: Sequence[str]) -> str | None:
    """Words about why variants may not have these names, or be so many; None where they may."""
    if not 0 < len(names) <= LIMITS.ladder_variants:
        return f"{len(names)} variants, and 1 to {LIMITS.ladder_variants} are read"
    # Some file systems do not tell cases apart.
    seen = {LADDER_NAME, PROFILE_NAME, MANIFEST_NAME, REPORT_NAME}
    for name in names:
        plain = len(name) <= LIMITS.path_chars and _NAME.fullmatch(name) and name.strip(".")
        # Beside a bundle lie its engines, in a folder of its name and this ending.
        if not plain or name.lower().endswith(".engines"):
            return f"variant {name!r:.60}: is no name of a folder in the ladder"
        if name.lower() in seen:
            return f"variant {name!r:.60}: stands twice, or for a file of the ladder"
        seen.add(name.lower())
    return None


def _check_variants(variants: Sequence[LadderVariant]) -> None:
    if words := names_problem([one.name for one in variants]):
        raise BundleError(f"{LADDER_NAME}: {words}; rebuild it")
    cost = 0
    for variant in variants:
        where = f"{LADDER_NAME}: variant {variant.name!r:.60}"
        if min(variant.parameters, variant.size_bytes) < 0 or variant.macs < cost:
            raise BundleError(
                f"{where}: {variant.macs} MACs after {cost}, or a count below 0: variants stand "
                "narrowest first; rebuild it"
            )
        cost = variant.macs
        worth = variant.accuracy is None or 0 <= variant.accuracy <= 1
        said = variant.accuracy_of in ({None} if variant.accuracy is None else _ACCURACY_OF)
        if not (worth and said):
            raise BundleError(
                f"{where}: accuracy {variant.accuracy} of {variant.accuracy_of!r:.60}; rebuild it"
            )


_ACCURACY_OF = {"labels", "agreement"}


def _above_zero(key: str, value: float) -> str | None:
    return None if 0 < value < math.inf else f"{key} is a finite number above 0; found {value!r}"
