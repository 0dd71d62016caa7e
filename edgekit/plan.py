"""What a build has to run, and why: decided from hashes alone, before torch is imported.

A stage's key is a hash over the key of the stage before it and its own ingredients: the values of
the recipe and the target that it reads, and at the beginning of the way the content of every file
that the user's code reads, edgekit's own code and the versions of its tools. Which files those are
is known only after that code has run; a note in the cache keeps the list, and a build whose files
are all as in one of these notes has its keys at once.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.backends import RTX_PACKAGE, TOOLS
from edgekit.bundle.manifest import (
    EVIDENCE_NAME,
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
    unseal,
)
from edgekit.bundle.reader import read_bundle
from edgekit.bundle.writer import new_bundle, write_files
from edgekit.cache import Cache, Entry, digest
from edgekit.errors import BundleError, RecipeError
from edgekit.models.reads import Reads, origin_of
from edgekit.recipe import Recipe, check_sizes
from edgekit.shipped import shipped
from edgekit.target import Target
from edgekit.wheels import own_wheel

__all__ = ["KEPT", "STAGES", "Built", "Plan", "lies_there", "restore"]

STAGES = ("load", "export", "split", "lower", "optimize", "quantize", "tune", "build", "verify")
"""Every stage, in order."""

KEPT = ("lower", "optimize", "quantize", "tune", "verify")
"""The stages whose results are kept. What comes before `lower` lives in PyTorch alone."""

_GROUPS = {"load": "lower", "quantize": "quantize", "tune": "tune", "build": "verify"}
"""Where the ingredients of a kept stage come in: at the first stage of those that lead to it."""

_TICK_NS = 10_000_000
"""File systems take their time from a clock that ticks; a change is up to this much later."""

_NOTE_FORMAT = 2
"""To be raised when what a note of the last build holds is another: older ones are not read."""

_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Built:
    """A bundle that lies in `path`, with its evidence as plain data.

    `written` is false where it lay there already.
    """

    path: Path
    manifest: Manifest
    evidence: dict[str, Any]
    written: bool = True


class Plan:
    """What is known of a build before it runs. Raises RecipeError where the target cannot be.

    `resume` is the kept stage after which it goes on, and `entry` that stage's result; both None
    where it begins at the beginning.
    """

    def __init__(
        self,
        recipe: Recipe,
        target: Target,
        cache: Cache | None = None,
        *,
        wheelhouse: bool = False,
    ) -> None:
        if recipe.variants is not None:
            names = ", ".join(recipe.variants.each)
            raise RecipeError(
                f"{recipe.name} has variants ({names}), each a network of its own: edgekit build "
                "makes a ladder of them; for one alone, say model.setting in place of variants"
            )
        if target.gpu is not None or target.engine == "litert":
            check_sizes(recipe, target.name)
        self.recipe = recipe
        self.target = target
        self.cache = cache
        self.wheelhouse = wheelhouse
        self.resume: str | None = None
        self.entry: Entry | None = None
        self._ingredients = _ingredients(recipe, target, wheelhouse)
        self._files: dict[str, Any] | None = None
        self._keys: dict[str, str] = {}
        if cache is not None:
            self._find(cache)

    @property
    def finished(self) -> bool:
        """Whether nothing has to run."""
        return self.resume == KEPT[-1]

    def runs(self, stage: str) -> bool:
        """Whether this stage has to run."""
        return self.resume is None or STAGES.index(stage) > STAGES.index(self.resume)

    def learn(self, reads: Reads) -> None:
        """What the user's code read, now that it has run: from here on results can be kept."""
        if self.cache is None:
            return
        files = _fingerprints(reads, self.recipe.folder)
        if files is not None:
            self._set_files(files)
            self.cache.note("reads", self._first_key(), files)

    def keep(self, stage: str, entry: Entry) -> None:
        """Put a stage's result into the cache, if there is one."""
        if self.cache is None or not self._keys:
            return
        title = f"{self.recipe.name} for {self.target.name}, {self.target.precision}"
        self.cache.put(self._keys[stage], stage, title, entry)
        if stage == KEPT[-1]:
            record = {"ingredients": self._ingredients, "files": self._files}
            self.cache.note("builds", self._place(), record, alone=True)

    def start_over(self) -> None:
        """Run everything: what was kept does not belong to what the user's code gives now."""
        self.resume = self.entry = None

    def reasons(self) -> dict[str, str]:
        """Why each stage runs, by its name; those that are cached are not in it.

        In comparison to the last build of this recipe for this target that ended well.
        """
        if self.cache is None:
            return dict.fromkeys(STAGES, "the cache is not used")
        last = next(iter(self.cache.notes("builds", self._place())), None)
        result: dict[str, str] = {}
        origin = None
        for stage in filter(self.runs, STAGES):
            differing = self._differences(stage, last) if last else []
            if not differing and origin:
                result[stage] = f"follows {origin}"
                continue
            origin = stage
            if last is None:
                result[stage] = "no earlier build of this recipe for this target is known"
            else:
                result[stage] = "; ".join(differing) or "its result is no longer in the cache"
        return result

    def _find(self, cache: Cache) -> None:
        for note in cache.notes("reads", self._first_key()):
            if next(_changes(note, self.recipe.folder), None) is None:
                self._set_files(note)
                break
        for stage in reversed(KEPT if self._keys else ()):
            if entry := cache.get(self._keys[stage]):
                self.resume, self.entry = stage, entry
                break

    def _set_files(self, files: dict[str, Any]) -> None:
        self._files = files
        contents = {name: one["sha256"] for name, one in files["files"].items()}
        key = digest([self._first_key(), contents, files["folders"], files["modules"]])
        self._keys = {KEPT[0]: key}
        for stage in KEPT[1:]:
            key = digest([key, stage, self._ingredients[stage]])
            self._keys[stage] = key

    def _first_key(self) -> str:
        return digest(self._ingredients[KEPT[0]])

    def _place(self) -> str:
        return digest([_NOTE_FORMAT, str(self.recipe.folder), self.recipe.name, self.target.name])

    def _differences(self, stage: str, last: dict[str, Any]) -> list[str]:
        """What of a stage's own ingredients is not as in the last build, in words."""
        group = _GROUPS.get(stage)
        if group is None:
            return []
        before, now = last["ingredients"][group], self._ingredients[group]
        found = [
            _difference(key, before.get(key), now.get(key))
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        return found + (
            list(_changes(last["files"], self.recipe.folder)) if stage == "load" else []
        )


def restore(plan: Plan, output: Path) -> Built:
    """Put the bundle of a finished plan into `output`; where it lies there already, it stays.

    Raises BuildError where it cannot be written.
    """
    assert plan.entry is not None  # noqa: S101  (a finished plan has the last stage's result)
    blobs = plan.entry.blobs
    written = not lies_there(plan, output)
    if written:
        with new_bundle(output) as folder:
            write_files(folder, blobs)
    evidence = unseal(blobs[EVIDENCE_NAME], EVIDENCE_NAME)
    return Built(output, parse_manifest(blobs[MANIFEST_NAME]), evidence, written)


def lies_there(plan: Plan, output: Path) -> bool:
    """Whether `output` is the bundle of a finished plan already."""
    assert plan.entry is not None  # noqa: S101  (see `restore`)
    blobs = plan.entry.blobs
    try:
        read_bundle(output)
        names = (MANIFEST_NAME, EVIDENCE_NAME)
        return all((output / name).read_bytes() == blobs[name] for name in names)
    except (OSError, BundleError):
        return False


def _ingredients(recipe: Recipe, target: Target, wheelhouse: bool) -> dict[str, dict[str, Any]]:
    """What each kept stage depends on, beside the stages before it and the user's files."""
    whole, device = recipe.model_dump(mode="json"), target.model_dump(mode="json")
    left = _flat(whole, "recipe.") | _flat(device, "target.")

    def take(*prefixes: str) -> dict[str, Any]:
        """Whatever no stage before has taken: its key is part of all keys after it."""
        return {key: left.pop(key) for key in sorted(left) if key.startswith(prefixes)}

    reached = recipe.quantize.features == "reached"
    quantize = take("recipe.check.quantized")
    lower = take(
        "recipe.model",
        "recipe.input",
        "recipe.labels",
        "recipe.exits",
        "recipe.data",
        "recipe.check",
        "recipe.policy.criterion",
        "recipe.policy.confidence",
        "recipe.policy.combine",
        "recipe.policy.weights",
        "recipe.policy.otherwise",
        "target.engine",
        "target.opset",
        "target.ir_version",
    )
    quantize |= take("recipe.quantize", "target.precision", "target.activations", "target.machine")
    quantize |= take("recipe.policy") if reached else {}
    lower |= {f"the version of {name}": _version(name) for name in TOOLS[target.engine]}
    lower |= {
        "the order of the inputs": list(recipe.inputs or ()),
        "the version of Python": platform.python_version(),
        "the machine": platform.machine(),
        "edgekit's own code": _own_code(),
    }
    return {
        "lower": lower,
        "optimize": {},
        "quantize": quantize,
        "tune": take("recipe.policy"),
        "verify": {
            **left,
            # What proves the segments, where there is a GPU to prove them for.
            **({"the version of TensorRT-RTX": _version(RTX_PACKAGE)} if target.gpu else {}),
            "--wheelhouse": wheelhouse,
            "the version of edgekit's wheel": own_wheel().version,
        },
    }


def _fingerprints(reads: Reads, folder: Path) -> dict[str, Any] | None:
    """A note on what was read, with paths relative to the recipe's folder.

    None where a file changed while it was read: what it gave may be of before or after.
    """
    files = {}
    for name in sorted(reads.files):
        signature = _signature(Path(name))
        if signature and signature["ctime_ns"] >= reads.started_ns - _TICK_NS:
            return None
        files[_relative(name, folder)] = {**(signature or {}), "sha256": _hash(Path(name))}
    folders = {_relative(name, folder): _listing(Path(name)) for name in sorted(reads.folders)}
    modules = {name: _relative(file, folder) for name, file in sorted(reads.modules.items())}
    return {"files": files, "folders": folders, "modules": modules}


def _changes(note: dict[str, Any], folder: Path) -> Iterator[str]:
    """What is not any more as in a note, in words."""
    for name, before in note["files"].items():
        path = folder / name
        signature = _signature(path)
        # As for git: a file whose size and times are as they were is as it was.
        if signature and signature == {key: before.get(key) for key in signature}:
            continue
        now = _hash(path)
        if now != before["sha256"]:
            what = "is gone" if now is None else "changed" if before["sha256"] else "is there now"
            yield f"{name} {what}"
    for name, before in note["folders"].items():
        if _listing(folder / name) != before:
            yield f"other files are in {name}"
    path = [str(folder), *sys.path]  # As it is when the user's code begins.
    for name, before in note["modules"].items():
        found = origin_of(name, path)
        if found is not None and _relative(found, folder) != before:
            yield f"the module {name} is another, {found}"
        elif found is None and (folder / before).exists():
            yield f"the module {name} is not on Python's path any more"


def _signature(path: Path) -> dict[str, int] | None:
    """What the file system says of a file's content; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    # The time of change, unlike that of modification, is nobody's to set.
    return {
        "size_bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "edgekit's own code":
        return f"{key} changed"
    shown = [json.dumps(one) for one in (before, now)]
    if max(map(len, shown)) > _SHOWN_CHARS:
        return f"{key} changed"
    return f"{key} was {shown[0]}, is {shown[1]}"


def _relative(name: str, folder: Path) -> str:
    # Never absolute: of two clones that share a cache, each looks at its own files.
    return os.path.relpath(name, folder.resolve())


def _listing(folder: Path) -> str | None:
    try:
        names = os.listdir(folder)  # noqa: PTH208  (names are all that is wanted)
    except OSError:
        return None
    # What Python and a build leave in the folder that they run in is no input of theirs.
    return digest(sorted(set(names) - {"__pycache__", "build"}))


def _hash(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _own_code() -> str:
    """A hash of edgekit's own files, and of what ships beside them for devices."""
    package = Path(__file__).resolve().parent
    hasher = hashlib.sha256()
    for path in (*sorted(package.rglob("*.py")), *sorted(shipped("targets").glob("*.txt"))):
        hasher.update(path.name.encode() + path.read_bytes())
    return hasher.hexdigest()


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    """Nested data as one level, by dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix("."): value}
    return {
        key: one
        for name, part in value.items()
        for key, one in _flat(part, f"{prefix}{name}.").items()
    }
