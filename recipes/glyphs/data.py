"""Rendered characters, 0 to 9 and A to Z, from clean to hardly legible, made from a fixed seed.

Nothing is downloaded: the font is the one inside Pillow. An image's difficulty, drawn first, says
how far it may be turned, sheared, shifted and scaled, how much contrast it keeps, how much noise is
laid over it and how many strokes cross it. Most are easy, as most of what a camera sees is.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 32
CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A network's input is (pixel / 255 - MEAN) / STD as float32: pixels map exactly onto -1..1.
MEAN = 0.5
STD = 0.5

# How many images a split has, and the seed that they are drawn from.
SPLITS = {
    "train": (24_000, 1),
    "calibration": (512, 2),
    "tuning": (6_000, 3),
    "test": (4_000, 4),
}

_FONT_SIZE = 24
_STROKES = (0, 1)


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return one split as images, uint8 [N, 32, 32], and labels, int64 [N].

    The same on every call. No two splits share an image: each draws noise of its own.
    """
    images, labels, _ = graded(split)
    return images, labels


def graded(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one split as `load` does, and how difficult each image is, float64 [N] in 0..1."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    count, seed = SPLITS[split]
    # RandomState, unlike default_rng, promises the same stream under every NumPy version.
    random = np.random.RandomState(seed)
    labels = random.randint(len(CLASSES), size=count)
    difficulty = random.beta(1.0, 2.2, size=count)
    images = np.empty((count, SIZE, SIZE), np.uint8)
    for index in range(count):
        images[index] = _drawn(labels[index], difficulty[index], random)
    return images, labels.astype(np.int64), difficulty


def normalize(images: np.ndarray) -> np.ndarray:
    """Turn images, uint8 [N, 32, 32], into network input, float32 [N, 1, 32, 32]."""
    scaled = images[:, np.newaxis].astype(np.float32) / np.float32(255)
    return (scaled - np.float32(MEAN)) / np.float32(STD)


def _drawn(label: int, difficulty: float, random: np.random.RandomState) -> np.ndarray:
    """One image, uint8 [32, 32]: white on black, less clear the more difficult."""
    glyph = _glyph(label, _STROKES[random.randint(len(_STROKES))])
    turn, shear, wide, high, right, down, contrast = random.uniform(-1, 1, size=7)
    angle = turn * (0.05 + 0.35 * difficulty)
    shear *= 0.05 + 0.3 * difficulty
    wide, high = np.exp(np.array([wide, high]) * (0.05 + 0.22 * difficulty))
    shift = np.array([right, down]) * (1 + 3 * difficulty)
    # Where each pixel of the image comes from, about the centre.
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turned @ np.array([[wide, shear], [0, high]])
    centre = np.full(2, (SIZE - 1) / 2)
    offset = centre - matrix @ (centre + shift)
    rows = (*matrix[0], offset[0], *matrix[1], offset[1])
    moved = glyph.transform(glyph.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(moved)
    for _ in range(random.poisson(1.5 * difficulty**2)):
        ends = random.uniform(0, SIZE, size=4)
        draw.line([float(end) for end in ends], fill=int(random.randint(256)), width=2)
    ink = 1 - difficulty * (0.45 + 0.3 * contrast)
    noise = random.normal(size=(SIZE, SIZE)) * (4 + 75 * difficulty)
    return np.clip(np.rint(np.asarray(moved) * ink + noise), 0, 255).astype(np.uint8)


@cache
def _glyph(label: int, stroke: int) -> Image.Image:
    """A character in the middle of an image, as it is before anything is done to it."""
    image = Image.new("L", (SIZE, SIZE))
    font = ImageFont.load_default(_FONT_SIZE)
    middle = (SIZE / 2, SIZE / 2)
    ImageDraw.Draw(image).text(
        middle, CLASSES[label], fill=255, font=font, anchor="mm", stroke_width=stroke
    )
    return image
