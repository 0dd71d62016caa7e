"""What a bundle says of itself: `manifest.json` as dataclasses, with its rules.

A pure module: values in, values or `BundleError` out. Files are read and written next door, in
`reader.py` and `writer.py`.

Two hashes stand in every manifest. `bundle_id` covers what is deployed (`DEPLOYED`) and nothing
that was measured or chosen for checking, so it is the same for the same inputs. `seal` covers the
whole document, so that no byte of it changes unseen. Neither is a signature: they detect damage,
not an attacker who recomputes them.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from edgekit.errors import BundleError
from edgekit.limits import LIMITS

__all__ = [
    "DEPLOYED",
    "DTYPES",
    "EVIDENCE_NAME",
    "FORMAT_VERSION",
    "GIVEN",
    "LADDER_NAME",
    "MANIFEST_NAME",
    "ONLY_INPUT",
    "REPORT_NAME",
    "Axis",
    "Baselines",
    "Certificate",
    "Drift",
    "Exit",
    "File",
    "Golden",
    "GoldenSample",
    "GpuTarget",
    "Image",
    "Input",
    "Left",
    "Manifest",
    "Point",
    "Policy",
    "Requirements",
    "Segment",
    "Target",
    "TensorSpec",
    "TestData",
    "Tuning",
    "Variant",
    "axis_text",
    "boundaries",
    "canonical_json",
    "check_path",
    "decode",
    "identify",
    "parse_manifest",
    "parse_policy",
    "parse_tuning",
    "seal",
    "seal_page",
    "unseal",
    "unseal_page",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
LADDER_NAME = "ladder.json"
EVIDENCE_NAME = "evidence.json"
REPORT_NAME = "report.html"

_PAGE_SEAL = b"<!-- SHA-256 of all before: %s -->\n"

_HUGE = 1e300
"""JSON's integers have no end, and one beyond this may not become a float."""

DTYPES = {
    "float16": 2,
    "float32": 4,
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
"""Bytes of the element types that may cross a boundary, by their numpy names."""

GIVEN = "given"
"""The criterion of exits that bring their own confidence, an output of their segment."""

ONLY_INPUT = "input"
"""The name of an input that has no others beside it."""

BUILDERS = ("tensorrt", "torch2trt")
"""What may build engines on a device."""

INPUT_DTYPES = ("float32", "int32", "int64")
"""What a network's input may hold."""

DEPLOYED = (
    "format_version",
    "target",
    "inputs",
    "labels",
    "policy",
    "tuning",
    "variants",
    "requirements",
)
"""The keys that `bundle_id` covers."""


@dataclass(frozen=True)
class File:
    """A file of the bundle: its path within, its exact size, and the SHA-256 of its bytes."""

    path: str
    size_bytes: int
    sha256: str

    @staticmethod
    def of(path: str, content: bytes) -> "File":
        """The file that holds `content`."""
        return File(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class TensorSpec:
    """One tensor between segments.

    A `None` in `shape` is the batch, and stands first; others are sizes that vary with the input's.
    """

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def bytes_per_sample(self) -> int | None:
        """Bytes that one sample takes; None where that varies."""
        sizes = [size for size in self.shape[1:] if size is not None]
        return math.prod(sizes) * DTYPES[self.dtype] if len(sizes) + 1 == len(self.shape) else None


@dataclass(frozen=True)
class Exit:
    """An exit that a segment computes, and the output that holds its logits.

    Where the manifest has no labels, `logits` is whatever the exit gives instead of class scores.
    `confidence` is the output that holds the confidence of an exit that gives its own, float32
    `[batch]`.
    """

    name: str
    logits: str
    confidence: str | None = None


@dataclass(frozen=True)
class Segment(File):
    """One segment's file and contract.

    `inputs` and `outputs` name tensors of the variant; `exits` are in order of depth, a single one
    but in an undivided network. `parameters` counts weights, `macs` the multiply-accumulate
    operations of one sample.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exits: tuple[Exit, ...]
    parameters: int
    macs: int


class Part(Protocol):
    """Whatever has inputs and outputs by name: a segment here, a graph on the host."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that are read."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that are made."""


@dataclass(frozen=True)
class Variant:
    """One materialised configuration of the network: its chain, and the tensors that cross it."""

    name: str
    exits: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Baselines:
    """The undivided network, built the same way, for `bench` to stand beside the chain.

    `plain` has the final exit only, `whole` all of them. Not deployed: no part of `bundle_id`.
    """

    variant: str
    plain: Segment
    whole: Segment


@dataclass(frozen=True)
class Policy:
    """When a sample may leave: at the first exit whose confidence is `>=` its threshold.

    `thresholds` has one entry per early exit, in order; the final exit takes what is left.
    `combine` says how an exit is joined with those before it, by `weights`, one per exit; `None`
    weighs all alike. `otherwise` says who answers where no early exit is sure. `temperatures`, one
    per exit, divide its logits before anything else; `None` leaves them as they are. The names are
    those of `edgekit.runtime.criteria`.
    """

    criterion: str
    thresholds: tuple[float, ...]
    combine: str = "last"
    weights: tuple[float, ...] | None = None
    otherwise: str = "last"
    temperatures: tuple[float, ...] | None = None

    def problem(self, exits: Sequence[Exit], *, scores: bool) -> str | None:
        """Words about what does not fit a chain of these exits; None where all fits.

        `scores` says that the exits give class scores.
        """
        count = len(exits)
        if len(self.thresholds) != count - 1:
            return f"{count} exits need {count - 1} thresholds, found {len(self.thresholds)}"
        if words := self._unsure(exits, scores=scores) or self._scaled(count):
            return words
        if self.weights is None:
            return None
        if self.combine == "last":
            return "weights need combine: sum or geometric; found last"
        if len(self.weights) != count:
            return f"{count} exits need {count} weights, found {len(self.weights)}"
        if not all(0 < one < math.inf for one in self.weights):
            return f"weights are finite and above 0; found {list(self.weights)}"
        return None

    def _scaled(self, count: int) -> str | None:
        """Words about temperatures that are not for so many exits; None where all fits."""
        if self.temperatures is None:
            return None
        if self.criterion == GIVEN:
            return "temperatures scale class scores, and a given confidence is none"
        if len(self.temperatures) != count:
            return f"{count} exits need {count} temperatures, found {len(self.temperatures)}"
        if not all(0 < one < math.inf for one in self.temperatures):
            return f"temperatures are finite and above 0; found {list(self.temperatures)}"
        return None

    def _unsure(self, exits: Sequence[Exit], *, scores: bool) -> str | None:
        """Words about exits that have no confidence under this policy; None where all have one."""
        if self.criterion != GIVEN:
            return (
                None
                if scores
                else f"criterion {self.criterion!r} needs class scores, and the exits give none; "
                f"theirs is {GIVEN!r}"
            )
        if self.combine != "last":
            return (
                f"a given confidence is of its exit alone, and combine is {self.combine!r}; it can "
                "only be last"
            )
        # The final exit takes what is left, and may do without.
        asked = exits if self.otherwise == "max_confidence" else exits[:-1]
        if silent := [one.name for one in asked if one.confidence is None]:
            return f"criterion {GIVEN!r} needs the confidence of {', '.join(silent)}"
        return None


@dataclass(frozen=True)
class Left:
    """The samples of the tuning split that left at one exit, by the confidence of their answer.

    `counts` has one entry more than `edges`: how many were below the first edge, then from each
    edge up to the next, and last from the last one on, where a NaN is counted as well.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many left here."""
        return sum(self.counts)


@dataclass(frozen=True)
class Point:
    """Thresholds that the chain may run at, and what came of them on the tuning split.

    `right` is how many answers counted as right, see `Tuning`, `cost` what a sample cost on
    average, in `Tuning.unit`; `left` has an entry per exit.
    """

    thresholds: tuple[float, ...]
    right: int | None
    cost: float
    left: tuple[Left, ...]


@dataclass(frozen=True)
class Certificate:
    """What was proven of every point: at this `confidence`, a risk of at most `risk`.

    `of` says which: `disagreement` with the final exit, or `accuracy_loss`.
    """

    risk: float
    confidence: float
    of: str


@dataclass(frozen=True)
class Drift:
    """When a stream is another one than the tuning split: see `edgekit.runtime.drift`.

    Every `window` samples are compared; they have drifted where they, or any further from it, were
    less probable than `p_value`. `safe` says that the chain is then to go to the last point.
    """

    window: int
    p_value: float
    safe: bool


@dataclass(frozen=True)
class Tuning:
    """What is known of the policy from `samples`: what else it could be, and what to expect of it.

    `points` are the front of accuracy against cost, cheapest first, and `chosen` is the place of
    the policy's own thresholds among them. With a certificate they are points that it covers.
    `right_by` says what counts as a right answer: `label`, `agreement` with the final exit, or None
    where nobody knows. `costs` has, per exit, what a sample costs that leaves there, in `unit`:
    `MACs`, `ms` or `mJ`; the points' own rise. At the last point nobody leaves early.
    `reference_right` is how many the final exit of the model in PyTorch had right. `held_out` says
    that the half of the samples that a certificate tests on had no part in making what is deployed.
    `seen` is the path of what every exit said of every sample (`edgekit.tuning.seen`).
    """

    samples: int
    right_by: str | None
    unit: str
    costs: tuple[float, ...]
    points: tuple[Point, ...]
    chosen: int
    certificate: Certificate | None
    drift: Drift
    reference_right: int | None
    held_out: bool
    seen: str


@dataclass(frozen=True)
class Image:
    """How a picture becomes the input tensor.

    Decoded to `mode` ("L" or "RGB"), scaled to `resize` (the shorter side, or height and width),
    cut to `crop` (height and width, centred), then `(pixel * scale - mean) / std` per channel,
    channels first. `None` leaves a step out.
    """

    mode: str
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


Axis = int | tuple[int, int, int]
"""A size, or the least and the greatest one and the step between those that are taken."""


@dataclass(frozen=True)
class Input:
    """An input of the network: the tensor's name, dtype and shape without the batch.

    `name` is how a sample names it where there are several; a single one is called `input`.
    `range` is the least and the greatest value that an input of integers may hold; None for floats.
    """

    tensor: str
    dtype: str
    shape: tuple[Axis, ...]
    image: Image | None
    range: tuple[int, int] | None = None
    name: str = ONLY_INPUT

    @property
    def varying(self) -> tuple[int, ...]:
        """The places in `shape` whose size varies."""
        return tuple(place for place, axis in enumerate(self.shape) if isinstance(axis, tuple))

    @property
    def least(self) -> tuple[int, ...]:
        """The shape of the smallest sample."""
        return tuple(axis[0] if isinstance(axis, tuple) else axis for axis in self.shape)

    @property
    def greatest(self) -> tuple[int, ...]:
        """The shape of the largest sample."""
        return tuple(axis[1] if isinstance(axis, tuple) else axis for axis in self.shape)

    @property
    def spec(self) -> TensorSpec:
        """The input as a tensor of the chain."""
        sizes = (None if isinstance(axis, tuple) else axis for axis in self.shape)
        return TensorSpec(self.dtype, (None, *sizes))

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a sample may have this shape."""
        return shape == self.shape or (
            len(shape) == len(self.shape)
            and all(
                axis[0] <= size <= axis[1] and size % axis[2] == 0
                if isinstance(axis, tuple)
                else size == axis
                for size, axis in zip(shape, self.shape, strict=True)
            )
        )

    def shape_text(self) -> str:
        """The shape in words: `[3, 64..128 by 32, 64]`."""
        return f"[{', '.join(axis_text(axis) for axis in self.shape)}]"


@dataclass(frozen=True)
class GpuTarget:
    """The GPU that engines are built for on the device, out of the segments' files.

    `compute_capability` is as "8.7", `tensorrt` the versions that may build and run them, as pip
    reads them. Engines take batches of up to the last of `batch_sizes`, which ascend, and are
    fastest at these; while it builds one, `builder` may use `workspace_bytes` of the GPU's memory.
    `power_modes` are named as on the device, the one with most power first.
    """

    compute_capability: str
    tensorrt: str
    builder: str
    workspace_bytes: int
    batch_sizes: tuple[int, ...]
    power_modes: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """The target that the segments were built for.

    `machine` is what `uname -m` says there, `board` how its name in the device tree begins; None
    where any will do. `gpu` says for which GPU engines are built there, if any are.
    """

    name: str
    engine: str
    precision: str
    threads: int
    machine: str | None
    board: str | None
    gpu: GpuTarget | None


@dataclass(frozen=True)
class Requirements:
    """What the device must have: Python (`>=3.10,<3.14`) and packages, as pip reads them.

    The packages are edgekit's own wheel, whose version is a hash of its content, and exact versions
    of everything that it needs; `install/requirements.txt` holds the same lines.
    """

    python: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class GoldenSample:
    """A sample as a user would have it, a path by each input's name, and the policy's decision.

    `class_index` is None where the exits give no class scores, `confidence` where the final exit
    has none.
    """

    inputs: dict[str, str]
    exit: str
    class_index: int | None
    confidence: float | None


@dataclass(frozen=True)
class Golden:
    """Samples and what the chain must say of them on any device.

    `logits` has, per exit, the path of an array `[samples, classes]` (or what it gives instead),
    `confidences` that of an array `[samples]` per exit that gives its confidence;
    `max_relative_error` is how far a device's may be from them, over the largest magnitude in the
    array.
    """

    samples: tuple[GoldenSample, ...]
    logits: dict[str, str]
    confidences: dict[str, str]
    max_relative_error: float


@dataclass(frozen=True)
class TestData:
    """The test split as paths of arrays.

    `inputs` has, by each input's name, `[samples, ...]`: pixels where it is an image, else tensors.
    Where sizes vary it is an `.npz` file of an array per sample, named `0` and on.
    `labels` is int64 `[samples]`, or absent.
    """

    inputs: dict[str, str]
    labels: str | None
    samples: int


@dataclass(frozen=True)
class Manifest:
    """The whole of `manifest.json`, less its two hashes' computation.

    No `labels` at all say that the exits give something else than class scores.
    """

    format_version: int
    bundle_id: str
    name: str
    target: Target
    inputs: tuple[Input, ...]
    labels: tuple[str, ...]
    policy: Policy
    tuning: Tuning | None
    variants: tuple[Variant, ...]
    baselines: tuple[Baselines, ...]
    requirements: Requirements
    golden: Golden
    test_data: TestData | None
    files: tuple[File, ...]
    tools: dict[str, str]
    recipe: dict[str, Any]

    def all_files(self) -> tuple[File, ...]:
        """Every file that the bundle must hold beside manifest, evidence and report."""
        segments = [segment for variant in self.variants for segment in variant.segments]
        undivided = [one for pair in self.baselines for one in (pair.plain, pair.whole)]
        return (*segments, *undivided, *self.files)

    def variant(self, name: str | None = None) -> Variant:
        """The variant called `name`, or the first. Raises BundleError if there is none."""
        for variant in self.variants:
            if name in {None, variant.name}:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise BundleError(f"the bundle has no variant {name!r}; it has {known}")


def axis_text(axis: Axis) -> str:
    """An axis in words: `64`, `64..128`, or `64..128 by 32`."""
    if isinstance(axis, int):
        return str(axis)
    least, most, step = axis
    return f"{least}..{most}" + (f" by {step}" if step > 1 else "")


def boundaries(sources: Sequence[str], parts: Sequence[Part]) -> list[list[str]]:
    """Per part of a chain, the tensors known after it that a later part reads: what crosses.

    `sources` names the network's inputs, which cross as well where a later part reads them.
    """
    result = []
    known = [*sources]
    for index, part in enumerate(parts):
        known += part.outputs
        later = {name for after in parts[index + 1 :] for name in after.inputs}
        result.append([name for name in known if name in later])
    return result


def canonical_json(document: Any) -> bytes:
    """The one byte form of a document: sorted keys, one-space indent, ASCII, ends in a newline."""
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def identify(document: dict[str, Any]) -> str:
    """The `bundle_id` of a manifest document: SHA-256 over its deployed keys."""
    return _digest({key: document[key] for key in DEPLOYED})


def seal(document: dict[str, Any]) -> bytes:
    """The bytes of a document with its own digest in it, under `seal`."""
    return canonical_json({**document, "seal": _digest(document)})


def unseal(raw: bytes, name: str) -> dict[str, Any]:
    """The document in `raw`, without its `seal`.

    Raises BundleError where `raw` is no JSON object, is nested too deep, is not in canonical form,
    or does not match its seal: a single changed byte is one of these.
    """
    if len(raw) > LIMITS.manifest_bytes:
        raise BundleError(
            f"{name}: {len(raw)} bytes, limit {LIMITS.manifest_bytes}; rebuild the bundle"
        )
    try:
        document = json.loads(raw)
        if _depth(document) > LIMITS.json_depth:
            raise BundleError(f"{name}: nested more than {LIMITS.json_depth} deep; rebuild it")
        sound = (
            isinstance(document, dict)
            and canonical_json(document) == raw
            and document.pop("seal", None) == _digest(document)
        )
    except (ValueError, RecursionError):
        raise BundleError(f"{name}: is not valid JSON; copy or build the bundle again") from None
    if not sound:
        raise BundleError(f"{name}: was changed after it was written; copy or build it again")
    return typing.cast(dict[str, Any], document)


def _depth(document: Any) -> int:
    """How many lists and objects of a JSON document are within one another."""
    depth, level = 0, [document]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [x for one in level for x in (one.values() if isinstance(one, dict) else one)]
    return depth


def seal_page(page: str) -> bytes:
    """The bytes of a page of HTML with a comment behind it: the SHA-256 of all before."""
    raw = page.encode("utf-8", "replace")
    return raw + _PAGE_SEAL % hashlib.sha256(raw).hexdigest().encode()


def unseal_page(raw: bytes, name: str) -> str:
    """The page in `raw`, without its seal.

    Raises BundleError where it is too large, or not as `seal_page` gave it.
    """
    if len(raw) > LIMITS.report_bytes:
        raise BundleError(
            f"{name}: {len(raw)} bytes, limit {LIMITS.report_bytes}; edgekit report makes it anew"
        )
    page = raw[: -len(_PAGE_SEAL % (b"0" * 64))]
    if raw != page + _PAGE_SEAL % hashlib.sha256(page).hexdigest().encode():
        raise BundleError(f"{name}: was changed after it was written; edgekit report makes it anew")
    return page.decode("utf-8", "replace")


def parse_manifest(raw: bytes) -> Manifest:
    """`manifest.json`'s bytes as a Manifest whose every rule holds.

    Raises BundleError that names the place: wrong type, unknown or missing key, unknown format
    version, an id that does not match, a path that leaves the bundle, a contract that does not
    chain.
    """
    document = unseal(raw, MANIFEST_NAME)
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST_NAME}: format version {version!r}, and this edgekit reads "
            f"{FORMAT_VERSION}; build it again, or install the edgekit that built it"
        )
    manifest: Manifest = decode(Manifest, document, MANIFEST_NAME)
    if identify(document) != manifest.bundle_id:
        raise BundleError(f"{MANIFEST_NAME}: bundle_id does not match what it covers; rebuild it")
    names = [one.name for one in manifest.inputs]
    if not names or len(set(names)) != len(names):
        raise BundleError(f"{MANIFEST_NAME}: has no inputs, or two of one name; rebuild it")
    _check_files(manifest)
    for one in manifest.inputs:
        _check_input(one)
    for variant in manifest.variants:
        _check_variant(manifest, variant)
    if manifest.tuning is not None:
        _check_tuning(manifest.tuning, manifest.policy)
    if not manifest.variants:
        raise BundleError(f"{MANIFEST_NAME}: has no variant; rebuild it")
    return manifest


def parse_policy(document: Any) -> Policy:
    """A policy out of JSON. Raises BundleError for anything else, and for a missing key."""
    policy: Policy = decode(Policy, document, "policy")
    return policy


def parse_tuning(document: Any) -> Tuning:
    """What is known from tuning, out of JSON. Raises BundleError for anything else."""
    tuning: Tuning = decode(Tuning, document, "tuning")
    return tuning


def check_path(path: str) -> None:
    """Refuse a path that is absolute, leaves the bundle, or is not in plain POSIX form."""
    parts = PurePosixPath(path).parts
    plain = (
        0 < len(path) <= LIMITS.path_chars
        and path.isprintable()
        and not set(path) & set('\\:*?"<>|')
        and ".." not in parts
        and not path.startswith("/")
        and "/".join(parts) == path
    )
    if not plain:
        raise BundleError(f"{MANIFEST_NAME}: {path!r} is not a path inside the bundle; rebuild it")


def _check_files(manifest: Manifest) -> None:
    files = manifest.all_files()
    if len(files) > LIMITS.bundle_files:
        raise BundleError(f"{MANIFEST_NAME}: {len(files)} files, limit {LIMITS.bundle_files}")
    seen: set[str] = set()
    for file in files:
        check_path(file.path)
        if file.path.lower() in seen | {MANIFEST_NAME, EVIDENCE_NAME, REPORT_NAME}:
            raise BundleError(f"{MANIFEST_NAME}: {file.path!r} is listed twice; rebuild it")
        seen.add(file.path.lower())
        limit = LIMITS.segment_bytes if isinstance(file, Segment) else LIMITS.file_bytes
        if not 0 <= file.size_bytes <= limit:
            raise BundleError(f"{MANIFEST_NAME}: {file.path}: {file.size_bytes} bytes > {limit}")
    listed = {file.path for file in manifest.files}
    if not manifest.golden.samples:
        raise BundleError(f"{MANIFEST_NAME}: has no golden sample; rebuild it")
    if not 0 < manifest.golden.max_relative_error < 1:
        raise BundleError(f"{MANIFEST_NAME}: golden.max_relative_error lies outside 0 to 1")
    if manifest.target.threads < 1:
        raise BundleError(f"{MANIFEST_NAME}: target.threads is {manifest.target.threads}")
    if gpu := manifest.target.gpu:
        sizes = gpu.batch_sizes
        if not sizes or list(sizes) != sorted({*sizes}) or sizes[0] < 1 or gpu.workspace_bytes < 1:
            raise BundleError(f"{MANIFEST_NAME}: target.gpu has batch sizes {list(sizes)}")
        if gpu.builder not in BUILDERS:
            raise BundleError(
                f"{MANIFEST_NAME}: target.gpu.builder is {gpu.builder!r}, and this edgekit has "
                f"{', '.join(BUILDERS)}; install the edgekit that built the bundle"
            )
    samples = [one.inputs for one in manifest.golden.samples]
    tuned = {manifest.tuning.seen} if manifest.tuning else set()
    named = tuned | {*manifest.golden.logits.values(), *manifest.golden.confidences.values()}
    if manifest.test_data:
        samples.append(manifest.test_data.inputs)
        named |= {manifest.test_data.labels} if manifest.test_data.labels else set()
    for paths in samples:
        if paths.keys() != {one.name for one in manifest.inputs}:
            raise BundleError(f"{MANIFEST_NAME}: a sample has other inputs: {', '.join(paths)}")
        named |= set(paths.values())
    if missing := named - listed:
        raise BundleError(f"{MANIFEST_NAME}: {min(missing)!r} is used but not listed; rebuild it")


def _check_input(network_input: Input) -> None:
    for axis in network_input.shape:
        least, most, step = axis if isinstance(axis, tuple) else (0, axis, 1)
        if not (step > 0 and least < most and least % step == most % step == 0) or (
            isinstance(axis, tuple) and least < 1
        ):
            raise BundleError(
                f"{MANIFEST_NAME}: an input of shape {network_input.shape_text()}; rebuild it"
            )
    image, span = network_input.image, network_input.range
    # Without a range an index beyond its table would reach an engine.
    if network_input.dtype not in INPUT_DTYPES or (
        (span is None) != (network_input.dtype == "float32") or (span and span[0] > span[1])
    ):
        raise BundleError(
            f"{MANIFEST_NAME}: an input of {network_input.dtype} with the range {span}; rebuild it"
        )
    if image is None:
        return
    channels = {"L": 1, "RGB": 3}.get(image.mode)
    fits = (
        channels is not None
        and network_input.dtype == "float32"
        and len(network_input.shape) == 3
        and network_input.shape[0] == channels == len(image.mean) == len(image.std)
        and all(image.std)
        and min(_sizes(image), default=1) > 0
    )
    if not fits:
        raise BundleError(
            f"{MANIFEST_NAME}: an image of mode {image.mode!r} with {len(image.mean)} means cannot "
            f"fill {network_input.dtype} {list(network_input.shape)}; rebuild it"
        )


def _sizes(image: Image) -> tuple[int, ...]:
    resize = (image.resize,) if isinstance(image.resize, int) else image.resize
    return (*(resize or ()), *(image.crop or ()))


def _check_variant(manifest: Manifest, variant: Variant) -> None:
    where = f"{MANIFEST_NAME}: variant {variant.name!r}"
    vary = any(source.varying for source in manifest.inputs)
    for name, spec in variant.tensors.items():
        plain = spec.dtype in DTYPES and 1 <= len(spec.shape) <= LIMITS.tensor_rank
        sizes = [int(vary) if size is None else size for size in spec.shape[1:]]
        if not plain or spec.shape[0] is not None or min(sizes, default=1) < 1:
            raise BundleError(f"{where}: tensor {name!r} is {spec.dtype} {list(spec.shape)}")
    for source in manifest.inputs:
        if variant.tensors.get(source.tensor) != source.spec:
            raise BundleError(f"{where}: no tensor {source.tensor!r} like the input")
    if manifest.golden.logits.keys() != set(variant.exits):
        raise BundleError(f"{where}: golden logits are not of its exits; rebuild it")
    confident = {one.name for part in variant.segments for one in part.exits if one.confidence}
    if manifest.golden.confidences.keys() != confident:
        raise BundleError(f"{where}: golden confidences are not of its exits; rebuild it")
    if confident and manifest.policy.criterion != GIVEN:
        raise BundleError(f"{where}: its exits give a confidence that the policy does not look at")
    pairs = [pair for pair in manifest.baselines if pair.variant == variant.name]
    if len(pairs) != 1:
        raise BundleError(f"{where}: has {len(pairs)} pairs of baselines; rebuild it")
    chains = [variant.segments, (pairs[0].plain,), (pairs[0].whole,)]
    for chain in chains:
        known, exits = {source.tensor for source in manifest.inputs}, []
        for segment in chain:
            if absent := [name for name in segment.inputs if name not in known]:
                raise BundleError(f"{where}: {segment.name} reads {absent[0]!r} before it is there")
            known |= set(segment.outputs)
            exits += [exit.name for exit in segment.exits]
            strange = [name for name in segment.outputs if name not in variant.tensors]
            looked_at = [x for one in segment.exits for x in (one.logits, one.confidence) if x]
            strange += [name for name in looked_at if name not in segment.outputs]
            if strange:
                raise BundleError(f"{where}: {segment.name} has no tensor {strange[0]!r}")
            for one in segment.exits:
                shape = variant.tensors[one.logits].shape
                if manifest.labels and shape != (None, len(manifest.labels)):
                    raise BundleError(
                        f"{where}: exit {one.name!r} is {shape}, and there are "
                        f"{len(manifest.labels)} labels"
                    )
                sure = one.confidence and variant.tensors[one.confidence]
                if sure and sure != TensorSpec("float32", (None,)):
                    raise BundleError(
                        f"{where}: the confidence of {one.name!r} is {sure.dtype} "
                        f"{list(sure.shape)}, and one number per sample is wanted"
                    )
        if not exits or exits[-1] != variant.exits[-1]:
            raise BundleError(f"{where}: the chain does not end in {variant.exits[-1]!r}")
    if [[exit.name for exit in one.exits] for one in variant.segments] != [
        [exit] for exit in variant.exits
    ]:
        raise BundleError(
            f"{where}: its segments have not one exit each: {', '.join(variant.exits)}"
        )
    last = [segment.exits[-1] for segment in variant.segments]
    if problem := manifest.policy.problem(last, scores=bool(manifest.labels)):
        raise BundleError(f"{where}: {problem}")


def _check_tuning(tuning: Tuning, policy: Policy) -> None:
    where = f"{MANIFEST_NAME}: tuning"
    exits = len(policy.thresholds) + 1
    if not (0 <= tuning.chosen < len(tuning.points) and len(tuning.costs) == exits):
        raise BundleError(f"{where}: has no chosen point, or not {exits} costs; rebuild it")
    if tuning.points[tuning.chosen].thresholds != policy.thresholds:
        raise BundleError(f"{where}: its chosen point has not the policy's thresholds; rebuild it")
    costs = [point.cost for point in tuning.points]
    if any(one >= dearer for one, dearer in itertools.pairwise(costs)):
        raise BundleError(f"{where}: its points do not stand cheapest first; rebuild it")
    for point in tuning.points:
        sound = (
            len(point.thresholds) == exits - 1
            and len(point.left) == exits
            and sum(one.count for one in point.left) == tuning.samples
            and all(len(one.counts) == len(one.edges) + 1 for one in point.left)
            and all(min(one.counts) >= 0 for one in point.left)
            and all(list(one.edges) == sorted(one.edges) for one in point.left)
        )
        if not sound:
            raise BundleError(
                f"{where}: a point is not of {exits} exits and all samples; rebuild it"
            )
    if tuning.drift.window < 1 or not 0 < tuning.drift.p_value < 1:
        raise BundleError(
            f"{where}: drift has no window, or no p-value between 0 and 1; rebuild it"
        )


def _digest(document: Any) -> str:
    return hashlib.sha256(canonical_json(document)).hexdigest()


def decode(kind: Any, value: Any, where: str) -> Any:
    """`value`, out of JSON, as the annotated type `kind`, strictly.

    Raises BundleError that names the place, `where`, for a wrong type or an unknown or missing key.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if value.keys() != hints.keys():
            odd = sorted(value.keys() ^ hints.keys())
            raise BundleError(f"{where}: unknown or missing keys: {', '.join(odd)}; rebuild it")
        parts = {key: decode(hints[key], value[key], f"{where}: {key}") for key in hints}
        return kind(**parts)  # type: ignore[operator]
    if origin is types.UnionType:
        some = [one for one in arguments if one is not types.NoneType]
        if len(some) == 1 and value is not None:
            return decode(some[0], value, where)  # And let it say what is wrong.
        for one in arguments:
            try:
                return decode(one, value, where)
            except BundleError:
                continue
    elif kind is types.NoneType:
        if value is None:
            return None
    elif origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(decode(arguments[0], part, where) for part in value)
        if len(value) == len(arguments):
            return tuple(
                decode(one, part, where) for one, part in zip(arguments, value, strict=True)
            )
    elif origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], part, f"{where}.{key}") for key, part in value.items()}
    elif kind in {int, float} and type(value) in {int, kind} and abs(value) < _HUGE:
        return kind(value)
    elif kind in {str, bool} and type(value) is kind:
        return value
    raise BundleError(f"{where}: {value!r:.60} is not what belongs there; rebuild it")
