"""build: the final parts, with everything a device needs to know, as the contents of a bundle."""

import dataclasses
import importlib.metadata
import io
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import edgekit
from edgekit import wheels
from edgekit.backends import TOOLS, Backend
from edgekit.bundle import manifest as m
from edgekit.check import chain_of
from edgekit.data import Split, first_of
from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Recipe
from edgekit.runtime import preprocess
from edgekit.runtime.chain import Chain
from edgekit.runtime.memory import needed_bytes
from edgekit.runtime.preprocess import Inputs
from edgekit.stages import Part, Segments, Stage, StageResult, Step, Tuned
from edgekit.target import Target
from edgekit.tuning.doubt import sureness

__all__ = ["Build", "Contents"]

Array = npt.NDArray[Any]

_CANDIDATES = 512
"""Samples among which golden ones are looked for: enough to meet the rarer exits."""

_OTHER_KERNELS = 0.05
"""How far another device's logits may be from the host's where they are not computed in float32.

Integer kernels round otherwise from processor to processor, one step here and there, and what this
host has no integer kernel for it computes in float. A wrong weight or scale moves logits by more.
"""


_SEEN = "tuning/seen.npz"

_GPU_BYTES = 8 * 2**30
"""What a GPU has whose target does not say."""

_WORKSPACE_PART = 4
"""A kernel may use this part of the memory while an engine is built: tensors need the rest."""


@dataclass(frozen=True)
class Contents:
    """A bundle in memory: its manifest as a document, and every other file's bytes by path."""

    document: dict[str, Any]
    files: dict[str, bytes]

    def manifest(self) -> m.Manifest:
        """The document as a reader sees it."""
        return m.parse_manifest(m.seal(self.document))

    def problems(self) -> list[str]:
        """What is not as it must be: a reader must accept the manifest."""
        self.manifest()
        return []


class Build(Stage[Tuned, Contents]):
    """Collects the bundle: segments, baselines, golden samples, test split, what to install."""

    name = "build"
    requires = Tuned
    ensures = Contents

    def __init__(
        self,
        recipe: Recipe,
        target: Target,
        backend: Backend,
        splits: dict[str, Split],
        *,
        wheelhouse: bool = False,
    ) -> None:
        """With `wheelhouse` the wheels of everything that a device installs travel with it."""
        self.recipe = recipe
        self.target = target
        self.backend = backend
        self.splits = splits
        self.wheelhouse = wheelhouse

    def __call__(self, artifact: Tuned, step: Step) -> StageResult[Contents]:
        """Raises RecipeError where the labels do not fit the classes the network has.

        BuildError where the chain does not fit the target's memory, or wheels cannot be had.
        """
        recipe, target = self.recipe, self.target
        parts, policy = artifact.segments, artifact.policy
        inputs = recipe.manifest_inputs(parts.inputs)
        labels = self._labels(parts)
        notes = self._memory(parts)
        files: dict[str, bytes] = {}
        step("golden samples")
        chain = chain_of(parts, parts.chain, inputs, labels, policy, target)
        golden = self._golden(chain, files)
        test_data = self._test_data(inputs, files)
        tuning = artifact.tuning
        if tuning is not None and artifact.seen is not None:
            tuning = dataclasses.replace(tuning, seen=_SEEN)
            files[_SEEN] = artifact.seen.to_bytes()
        requirements = self._install(files, step)
        variant = "default"
        listed = tuple(m.File.of(path, content) for path, content in files.items())
        segments = tuple(self._segment(part, "segments", files) for part in parts.chain)
        plain, whole = (
            self._segment(part, "baselines", files) for part in (parts.plain, parts.whole)
        )
        document = dataclasses.asdict(
            m.Manifest(
                format_version=m.FORMAT_VERSION,
                bundle_id="",
                name=recipe.name,
                target=m.Target(
                    target.name,
                    target.engine,
                    target.precision,
                    target.threads,
                    target.machine or platform.machine(),
                    target.board,
                    self._gpu(),
                ),
                inputs=inputs,
                labels=labels,
                policy=policy,
                tuning=tuning,
                variants=(m.Variant(variant, parts.exits, parts.tensors, segments),),
                baselines=(m.Baselines(variant, plain, whole),),
                requirements=requirements,
                golden=golden,
                test_data=test_data,
                files=listed,
                tools=_versions(TOOLS[target.engine]),
                recipe=recipe.model_dump(mode="json"),
            )
        )
        document["bundle_id"] = m.identify(document)
        return StageResult(Contents(document, files), notes)

    def _labels(self, segments: Segments[bytes]) -> tuple[str, ...]:
        """The classes' names; none where the exits tell no classes."""
        last = segments.chain[-1].logits[segments.exits[-1]]
        # Of one kind, all of them: that was asked when the model was loaded.
        if self.recipe.labels == () or len(segments.tensors[last].shape) != 2:
            return ()
        (_, classes) = segments.tensors[last].shape
        if classes is None:
            raise RecipeError(
                f"exit {segments.exits[-1]!r} has as many classes as its input is large; is it the "
                "right output?"
            )
        for part in segments.chain:
            for exit, tensor in part.logits.items():
                if segments.tensors[tensor].shape != (None, classes):
                    raise RecipeError(
                        f"exit {exit!r} has {segments.tensors[tensor].shape[1]} classes, the final "
                        f"exit {classes}"
                    )
        labels = self.recipe.labels or tuple(str(index) for index in range(classes or 0))
        if len(labels) != classes:
            raise RecipeError(f"labels: {len(labels)} names for {classes} classes")
        return labels

    def _golden(self, chain: Chain, files: dict[str, bytes]) -> m.Golden:
        """Choose samples so that every exit that is taken stands among them, and record them."""
        split = first_of(self.splits, "test", "tuning", "calibration")
        inputs = chain.spec.inputs
        candidates = range(min(len(split), _CANDIDATES))
        by_exit: dict[str, list[tuple[float, int]]] = {}
        for index in candidates:
            x = split.tensor(index, inputs)
            taken = chain.one(x).exit
            # Another processor's last bit must not decide: those furthest from doubt come first.
            said = (list(one.values()) for one in chain.exits(preprocess.stack([x])))
            sure = sureness(chain.spec.policy, *said, classes=bool(chain.spec.labels))
            by_exit.setdefault(taken, []).append((-sure, index))
        # One of each exit in turn, until there are enough.
        turns = [
            (turn, index)
            for found in by_exit.values()
            for turn, (_, index) in enumerate(sorted(found))
        ]
        chosen = sorted(index for _, index in sorted(turns)[: self.recipe.golden_samples])
        samples = []
        given_by = [exit for part in chain.spec.segments for exit in part.exits]
        logits: dict[str, list[Array]] = {exit.name: [] for exit in given_by}
        confidences: dict[str, list[Array]] = {x.name: [] for x in given_by if x.confidence}
        for number, index in enumerate(chosen):
            raw: Any = preprocess.by_name(split.raw[index])
            given = {}
            for one in inputs:
                suffix, content = _as_file(raw[one.name], one)
                name = f"{number:03d}" + (f"-{one.name}" if len(inputs) > 1 else "")
                given[one.name] = f"golden/{name}{suffix}"
                files[given[one.name]] = content
            x = split.tensor(index, inputs)
            for kept, values in zip(
                (logits, confidences), chain.exits(preprocess.stack([x])), strict=True
            ):
                for exit, rows in values.items():
                    kept[exit].append(rows[0])
            found = chain.one(x)
            confidence = None if math.isnan(found.confidence) else found.confidence
            samples.append(m.GoldenSample(given, found.exit, found.class_index, confidence))
        exact = self.target.precision == "fp32"
        limit = self.recipe.check.max_relative_error if exact else _OTHER_KERNELS
        return m.Golden(
            tuple(samples),
            _expected(logits, "golden/expected", files),
            _expected(confidences, "golden/expected/confidence", files),
            limit,
        )

    def _test_data(self, inputs: Inputs, files: dict[str, bytes]) -> m.TestData | None:
        if "test" not in self.splits or not self.recipe.test_samples:
            return None
        split = self.splits["test"].subset(self.recipe.test_samples)
        labels = "test/labels.npy"
        paths = {}
        carried = split.carried(inputs)
        for one in inputs:
            path = f"test/inputs-{one.name}" if len(inputs) > 1 else "test/inputs"
            if isinstance(carried, Sequence):
                paths[one.name] = f"{path}.npz"
                given = [preprocess.by_name(sample)[one.name] for sample in carried]
                files[paths[one.name]] = _npz(given)
            else:
                paths[one.name] = f"{path}.npy"
                files[paths[one.name]] = preprocess.encode(preprocess.by_name(carried)[one.name])
        if split.labels is not None:
            files[labels] = preprocess.encode(split.labels)
        return m.TestData(paths, labels if split.labels is not None else None, len(split))

    def _memory(self, segments: Segments[bytes]) -> dict[str, Any]:
        """Refuse a chain that the device cannot load; a note where it can, but not `bench`."""
        limit = self.target.memory_bytes
        chain_bytes = needed_bytes(len(part.program) for part in segments.chain)
        bench_bytes = needed_bytes(len(part.program) for part in segments.parts())
        where = f"{self.target.name} has {(limit or 0) / 1e6:,.1f} MB"
        if limit is not None and chain_bytes > limit:
            raise BuildError(
                f"the chain needs {chain_bytes / 1e6:,.1f} MB to be loaded (twice its files' size: "
                f"as read, and in the engine), and {where}; make the network smaller, or "
                "--set target.memory_bytes=BYTES for a device that has more"
            )
        if limit is not None and bench_bytes > limit:
            return {
                "warning": f"bench also loads the undivided networks, which takes "
                f"{bench_bytes / 1e6:,.1f} MB, and {where}"
            }
        return {}

    def _gpu(self) -> m.GpuTarget | None:
        gpu = self.target.gpu
        if gpu is None:
            return None
        memory_bytes = self.target.memory_bytes or _GPU_BYTES
        return m.GpuTarget(
            gpu.compute_capability,
            gpu.tensorrt,
            gpu.builder,
            memory_bytes // _WORKSPACE_PART,
            self.recipe.batch_sizes,
            gpu.power_modes,
        )

    def _install(self, files: dict[str, bytes], step: Step) -> m.Requirements:
        """What the device installs from, into `files`; and what that is, for the manifest."""
        target = self.target
        wheel, pins = wheels.own_wheel(), wheels.pins(target.pins or target.engine)
        packages = (f"edgekit=={wheel.version}", *pins)
        found = {"requirements.txt": wheels.requirements_file(packages), wheel.name: wheel.content}
        if self.wheelhouse:
            found |= wheels.wheelhouse(pins, target.python, target.platforms, target.machine, step)
        files |= {f"install/{name}": content for name, content in found.items()}
        return m.Requirements(target.requires_python, packages)

    def _segment(self, part: Part[bytes], folder: str, files: dict[str, bytes]) -> m.Segment:
        file = m.File.of(f"{folder}/{part.name}{self.backend.suffix}", part.program)
        files[file.path] = part.program
        return part.record(file)


def _expected(rows: dict[str, list[Array]], folder: str, files: dict[str, bytes]) -> dict[str, str]:
    """Each exit's rows as an array in `files`; its path by exit."""
    paths = {exit: f"{folder}/{exit}.npy" for exit in rows}
    files |= {paths[exit]: preprocess.encode(np.stack(one)) for exit, one in rows.items()}
    return paths


def _as_file(raw: Array | Path, source: m.Input) -> tuple[str, bytes]:
    """A sample as a file that a user would have: its suffix and its bytes."""
    if isinstance(raw, Path):
        return raw.suffix.lower(), raw.read_bytes()
    if source.image is None or raw.dtype != np.uint8:
        return ".npy", preprocess.encode(raw)
    stream = io.BytesIO()
    preprocess.to_image(raw).save(stream, "PNG")
    return ".png", stream.getvalue()


def _npz(arrays: Sequence[Array]) -> bytes:
    stream = io.BytesIO()
    named: Any = {str(row): array for row, array in enumerate(arrays)}
    np.savez(stream, **named)
    return stream.getvalue()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"edgekit": edgekit.__version__, **versions}
