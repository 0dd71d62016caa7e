"""The splits of a recipe: where their samples come from, and that they have none in common."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import InputError, RecipeError
from edgekit.models.load import call_factory
from edgekit.recipe import Recipe, Source
from edgekit.runtime import preprocess
from edgekit.runtime.preprocess import Inputs, Sample, Samples

__all__ = ["Split", "check_disjoint", "ends_of", "first_of", "load_splits"]

Array = npt.NDArray[Any]

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Split:
    """The samples of one split, as the user has them, with their labels.

    `raw` holds arrays, or paths of image files; or those by the inputs' names, where there are
    several. `labels` is int64 `[samples]`, or None.
    """

    name: str
    raw: Sequence[Array | Path | Mapping[str, Array | Path]]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.raw)

    def sample(self, index: int) -> Sample:
        """One sample as read, before preprocessing."""
        raw = self.raw[index]
        if isinstance(raw, Mapping):
            return {name: _read(one) for name, one in raw.items()}
        return _read(raw)

    def tensor(self, index: int, inputs: Inputs) -> Sample:
        """One sample as the network takes it."""
        try:
            tensor = preprocess.prepare(self.sample(index), inputs)
            preprocess.check_sample(tensor, inputs)
        except InputError as error:
            raise RecipeError(f"data.{self.name}, sample {index}: {error}") from None
        return tensor

    def batches(
        self, inputs: Inputs, *, most: int | None = None, size: int = 32
    ) -> Iterator[Sample]:
        """The first `most` samples (all if None), in order, as tensors `[up to size, *shape]`.

        A batch has one shape, so it ends where the next sample has another one. Made as they are
        asked for: a split need not fit into memory.
        """
        batch: list[Sample] = []
        for row in range(len(self))[:most]:
            one = self.tensor(row, inputs)
            if batch and (len(batch) == size or _shapes(one, inputs) != _shapes(batch[0], inputs)):
                yield preprocess.stack(batch)
                batch = []
            batch.append(one)
        if batch:
            yield preprocess.stack(batch)

    def subset(self, most: int) -> "Split":
        """At most so many samples, evenly spaced: sorted data keeps all its classes."""
        return self.of(self.spread(most))

    def of(self, rows: npt.NDArray[np.int64]) -> "Split":
        """These of the samples."""
        labels = None if self.labels is None else self.labels[rows]
        return Split(self.name, [self.raw[row] for row in rows], labels)

    def spread(self, most: int) -> npt.NDArray[np.int64]:
        """The rows of `subset`."""
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self)), dtype=np.int64))

    def carried(self, inputs: Inputs) -> Samples:
        """All samples in the form that a bundle carries: pixels of an image, else tensors."""
        first = preprocess.arrays_of(self.sample(0), inputs)
        images = [
            one.image if array.dtype == np.uint8 else None
            for one, array in zip(inputs, first, strict=True)
        ]
        carried = []
        for row in range(len(self)):
            raw = preprocess.arrays_of(self.sample(row), inputs)
            arrays = [
                preprocess.to_tensor(array, one)
                if image is None
                else preprocess.to_pixels(array, image)
                for one, array, image in zip(inputs, raw, images, strict=True)
            ]
            carried.append(preprocess.sample_of(arrays, inputs))
        vary = any(one.varying for one in inputs)
        return carried if vary else preprocess.stack(carried)


def load_splits(recipe: Recipe) -> dict[str, Split]:
    """The recipe's splits by name. To be called inside `user_code`.

    Raises RecipeError for data that is missing or does not fit.
    """
    sources = {name: getattr(recipe.data, name) for name in ("calibration", "tuning", "test")}
    splits = {
        name: _load(name, source, recipe) for name, source in sources.items() if source is not None
    }
    if not splits:
        raise RecipeError(
            "data: no split is named; at least one of tuning and test is needed to check the chain"
        )
    return splits


def first_of(splits: Mapping[str, Split], *names: str) -> Split:
    """The first of these splits that the recipe has."""
    return next(splits[name] for name in names if name in splits)


def check_disjoint(splits: dict[str, Split], inputs: Inputs) -> str:
    """Raises RecipeError where a sample stands in two splits, by the hash of its tensor.

    What the network sees is compared, so that a picture and its copy in another format are one.
    Returns a hash over all splits and their labels.
    """
    whole = hashlib.sha256()
    owner: dict[bytes, tuple[str, int]] = {}
    for name, split in splits.items():
        for index in range(len(split)):
            tensor = split.tensor(index, inputs)
            arrays = preprocess.arrays_of(tensor, inputs)
            shapes = str(_shapes(tensor, inputs)).encode()
            key = hashlib.sha256(b"".join([shapes, *(one.tobytes() for one in arrays)])).digest()
            whole.update(key)
            first = owner.setdefault(key, (name, index))
            if first[0] != name:
                raise RecipeError(
                    f"data: sample {index} of {name} is also sample {first[1]} of {first[0]}; "
                    "the splits must have no sample in common"
                )
        whole.update(name.encode() if split.labels is None else split.labels.tobytes())
    return whole.hexdigest()


def ends_of(split: Split, inputs: Inputs) -> Split | None:
    """Samples of the least and the greatest sizes, made of the split's; None where none varies.

    Two of each: all axes at their least, all at their greatest, each by itself at its greatest,
    which tells height from width, and all a step below the greatest, for what is right where the
    size divides evenly and nowhere else. They are cut off, or repeated, from the split's first two.
    """
    axes = [(index, place) for index, one in enumerate(inputs) for place in one.varying]
    if not axes:
        return None
    each = [[axis] for axis in axes] if len(axes) > 1 else []
    made = []
    for high, below in (([], 0), *((one, 0) for one in each), (axes, 0), (axes, 1)):
        shapes = [list(one.least) for one in inputs]
        for index, place in high:
            _, most, step = inputs[index].shape[place]  # type: ignore[misc]
            shapes[index][place] = most - below * step
        for row in range(2):
            arrays = preprocess.arrays_of(split.tensor(row % len(split), inputs), inputs)
            pairs = zip(arrays, shapes, strict=True)
            fitted = [preprocess.fitted(array, tuple(shape)) for array, shape in pairs]
            made.append(preprocess.sample_of(fitted, inputs))
    return Split("ends", made, None)


def _shapes(sample: Sample, inputs: Inputs) -> list[tuple[int, ...]]:
    return [one.shape for one in preprocess.arrays_of(sample, inputs)]


def _load(name: str, source: Source, recipe: Recipe) -> Split:
    where = f"data.{name}"
    inputs = recipe.manifest_inputs({})
    raw: Any
    labels: Any
    try:
        if source.folder is not None:
            raw, labels = _folder(recipe.folder / source.folder, recipe.labels)
        elif source.npz is not None:
            raw, labels = preprocess.read_npz(recipe.folder / source.npz, inputs)
        else:
            assert source.factory is not None  # noqa: S101  (Source names exactly one)
            value = call_factory(source.factory, source.args, recipe.folder)
            raw, labels = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        raw = _samples(raw) if len(inputs) == 1 else _named_samples(raw, inputs)
        classes = len(recipe.labels) if recipe.labels else None
        labels = None if labels is None else preprocess.check_labels(labels, len(raw), classes)
    except InputError as error:
        raise RecipeError(f"{where}: {error}") from None
    return Split(name, raw, labels)


def _samples(raw: Any) -> Sequence[Array | Path]:
    """What a source gave, as a sequence of arrays or paths. Raises InputError for anything else."""
    if hasattr(raw, "numpy"):  # A torch tensor, which this module need not know.
        raw = raw.numpy()
    if not isinstance(raw, np.ndarray | list | tuple) or (
        isinstance(raw, np.ndarray) and raw.ndim == 0
    ):
        kind = type(raw).__name__
        raise InputError(f"expected an array [samples, ...] or a list of arrays; found {kind}")
    samples = [one if isinstance(one, Path) else np.asarray(one) for one in raw]
    if not samples:
        raise InputError("holds no sample")
    for one in samples:
        if isinstance(one, np.ndarray) and one.dtype.kind not in "uifb":
            raise InputError(f"a sample is {one.dtype} {list(one.shape)}, and no array of numbers")
    return samples


def _named_samples(raw: Any, inputs: Inputs) -> Sequence[Mapping[str, Array | Path]]:
    """As `_samples`, of several inputs: arrays or lists by name, or a list of samples by name."""
    if isinstance(raw, Mapping):
        columns = {name: _samples(one) for name, one in raw.items()}
        lengths = {name: len(one) for name, one in columns.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} of {name}" for name, count in lengths.items())
            raise InputError(f"every input needs as many samples; found {counts}")
        rows: list[Any] = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    elif isinstance(raw, list | tuple) and all(isinstance(one, Mapping) for one in raw):
        rows = [{name: _samples([value])[0] for name, value in one.items()} for one in raw]
    else:
        raise InputError(
            f"expected arrays by name ({', '.join(one.name for one in inputs)}), or a list of "
            f"samples by name; found {type(raw).__name__}"
        )
    if not rows:
        raise InputError("holds no sample")
    return rows


def _read(raw: Array | Path) -> Array:
    """A sample of one input, read if it is a file."""
    if not isinstance(raw, Path):
        return raw
    found = preprocess.read_sample(raw)
    if isinstance(found, Mapping):
        raise InputError(f"{raw}: is an .npz file; an input's own file is an image or .npy")
    return found


def _folder(path: Path, labels: tuple[str, ...] | None) -> tuple[list[Path], list[int] | None]:
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder")
    if labels == ():
        return [x for x in sorted(path.rglob("*")) if x.suffix.lower() in _IMAGE_SUFFIXES], None
    if labels is None:
        # Numbering the folders found would make another class of each in every split.
        raise InputError(
            "a folder needs the recipe's `labels`, to know which folder is which class; where "
            "exits tell no classes, say labels: []"
        )
    found = sorted(child.name for child in path.iterdir() if child.is_dir())
    if strange := [name for name in found if name not in labels]:
        raise InputError(f"{path}: {strange[0]!r} is none of the recipe's labels")
    files, classes = [], []
    for name in found:
        for file in sorted((path / name).rglob("*")):
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                files.append(file)
                classes.append(labels.index(name))
    return files, classes
