"""The handwritten digits of scikit-learn, upscaled to 32x32 and cut into four fixed splits."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 32
CLASSES = 10
# A network's input is (pixel / 255 - MEAN) / STD as float32: pixels map exactly onto -1..1.
MEAN = 0.5
STD = 0.5

# How many images each held-out split takes, in this order; "train" gets the rest.
HELD_OUT = {"test": 360, "tuning": 360, "calibration": 128}
SPLITS = ("train", "calibration", "tuning", "test")
SPLIT_SEED = 20240229


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return one split as images, uint8 [N, 32, 32], and labels, int64 [N].

    The splits are stratified, share no image (by content, too), and are the same on every call
    and every machine. `train` and `calibration` may take part in gradient steps, `tuning` is for
    choosing between models and thresholds, `test` only for reporting.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    images, labels = _distinct_images()
    chosen = _split_indices(labels)[split]
    return images[chosen], labels[chosen]


def normalize(images: np.ndarray) -> np.ndarray:
    """Turn images, uint8 [N, 32, 32], into network input, float32 [N, 1, 32, 32]."""
    scaled = images[:, np.newaxis].astype(np.float32) / np.float32(255)
    return (scaled - np.float32(MEAN)) / np.float32(STD)


@cache
def _distinct_images() -> tuple[np.ndarray, np.ndarray]:
    """Return every image once, uint8 [N, 32, 32], with its label, int64 [N]."""
    digits = load_digits()
    images = np.stack([_upscale(image) for image in digits.images])
    # The copy of a training image in a test set would flatter the result. There is none today
    # (all 1,797 differ), but that is a property of the dataset's release, so do not rely on it.
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    first.sort()
    return images[first], digits.target[first].astype(np.int64)


def _upscale(image: np.ndarray) -> np.ndarray:
    """Turn an 8x8 image of values 0..16 into uint8 [32, 32] of values 0..255."""
    pixels = np.rint(image * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Assign every index of `labels`, int64 [N], to exactly one split."""
    # RandomState, unlike default_rng, promises the same stream under every NumPy version.
    random = np.random.RandomState(SPLIT_SEED)
    # Spread each class evenly over 0..1 in random order: any slice of the order is stratified.
    position = np.empty(len(labels))
    for label in range(CLASSES):
        members = random.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.argsort(position, kind="stable")

    indices, start = {}, 0
    for split, count in HELD_OUT.items():
        indices[split] = order[start : start + count]
        start += count
    indices["train"] = order[start:]
    return indices
