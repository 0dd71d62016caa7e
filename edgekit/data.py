"""The splits of a recipe: where their samples come from, and that they have none in common."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import Input
from edgekit.errors import InputError, RecipeError
from edgekit.models.load import call_factory
from edgekit.recipe import Recipe, Source
from edgekit.runtime import preprocess

__all__ = ["Split", "check_disjoint", "load_splits"]

Array = npt.NDArray[Any]

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Split:
    """The samples of one split, as the user has them, with their labels.

    `raw` holds arrays, or paths of image files. `labels` is int64 `[samples]`, or None.
    """

    name: str
    raw: Sequence[Array | Path]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.raw)

    def sample(self, index: int) -> Array:
        """One sample as read, before preprocessing."""
        raw = self.raw[index]
        return preprocess.read_sample(raw) if isinstance(raw, Path) else raw

    def tensor(self, index: int, network_input: Input) -> Array:
        """One sample as the network takes it."""
        try:
            return preprocess.to_tensor(self.sample(index), network_input)
        except InputError as error:
            raise RecipeError(f"data.{self.name}, sample {index}: {error}") from None

    def batches(
        self, network_input: Input, *, most: int | None = None, size: int = 32
    ) -> Iterator[Array]:
        """The first `most` samples (all if None) as tensors `[up to size, *shape]`.

        Made as they are asked for: a split need not fit into memory.
        """
        rows = range(len(self))[:most]
        for start in range(0, len(rows), size):
            yield np.stack([self.tensor(i, network_input) for i in rows[start : start + size]])

    def subset(self, most: int) -> "Split":
        """At most so many samples, evenly spaced: sorted data keeps all its classes."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(most, len(self)), dtype=int))
        labels = None if self.labels is None else self.labels[rows]
        return Split(self.name, [self.raw[row] for row in rows], labels)

    def carried(self, network_input: Input) -> Array:
        """All samples in the form that a bundle carries: pixels of an image, else tensors."""
        rows = range(len(self))
        image = network_input.image
        if image is None or self.sample(0).dtype != np.uint8:
            return np.stack([self.tensor(row, network_input) for row in rows])
        return np.stack([preprocess.to_pixels(self.sample(row), image) for row in rows])


def load_splits(recipe: Recipe) -> dict[str, Split]:
    """The recipe's splits by name. To be called inside `user_code`.

    Raises RecipeError for data that is missing or does not fit, or splits that overlap.
    """
    sources = {name: getattr(recipe.data, name) for name in ("calibration", "tuning", "test")}
    splits = {
        name: _load(name, source, recipe) for name, source in sources.items() if source is not None
    }
    if not splits:
        raise RecipeError(
            "data: no split is named; at least one of tuning and test is needed to check the chain"
        )
    check_disjoint(splits)
    return splits


def check_disjoint(splits: dict[str, Split]) -> None:
    """Raises RecipeError where a sample stands in two splits, by the hash of its content."""
    owner: dict[bytes, tuple[str, int]] = {}
    for name, split in splits.items():
        for index in range(len(split)):
            sample = split.sample(index)
            head = f"{sample.dtype}{sample.shape}".encode()
            key = hashlib.sha256(head + np.ascontiguousarray(sample).tobytes()).digest()
            first = owner.setdefault(key, (name, index))
            if first[0] != name:
                raise RecipeError(
                    f"data: sample {index} of {name} is also sample {first[1]} of {first[0]}; "
                    "the splits must have no sample in common"
                )


def _load(name: str, source: Source, recipe: Recipe) -> Split:
    where = f"data.{name}"
    raw: Any
    labels: Any
    if source.folder is not None:
        raw, labels = _folder(where, recipe.folder / source.folder, recipe.labels)
    elif source.npz is not None:
        raw, labels = preprocess.read_npz(recipe.folder / source.npz)
    else:
        assert source.factory is not None  # noqa: S101  (Source names exactly one)
        value = call_factory(source.factory, source.args, recipe.folder)
        raw, labels = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not len(raw):
        raise RecipeError(f"{where}: holds no sample")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(raw),) or labels.dtype.kind not in "iu":
            raise RecipeError(
                f"{where}: {len(raw)} samples need as many whole numbers as labels; found "
                f"{labels.dtype} {list(labels.shape)}"
            )
        labels = labels.astype(np.int64)
        if recipe.labels and not 0 <= labels.min() <= labels.max() < len(recipe.labels):
            raise RecipeError(
                f"{where}: labels run from {labels.min()} to {labels.max()}, and the recipe "
                f"names {len(recipe.labels)} classes"
            )
    return Split(name, raw, labels)


def _folder(where: str, path: Path, labels: tuple[str, ...] | None) -> tuple[list[Path], list[int]]:
    if not path.is_dir():
        raise RecipeError(f"{where}: {path}: there is no such folder")
    found = sorted(child.name for child in path.iterdir() if child.is_dir())
    names = labels or tuple(found)
    if strange := [name for name in found if name not in names]:
        raise RecipeError(f"{where}: {path}: {strange[0]!r} is none of the recipe's labels")
    files, classes = [], []
    for name in found:
        for file in sorted((path / name).rglob("*")):
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                files.append(file)
                classes.append(names.index(name))
    return files, classes
