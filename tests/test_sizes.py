"""Inputs whose size varies: from a recipe to a bundle, held against PyTorch at other sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.reader import read_bundle
from edgekit.errors import InputError, ModelError, RecipeError
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.runtime import Chain
from edgekit.runtime.bench import bench, load_test_data
from edgekit.runtime.preprocess import to_image
from edgekit.runtime.verify import differences, verify_golden
from edgekit.target import load_target
from tests.conftest import once
from tests.test_inputs import eager, refused_input, write

NETS = '''
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Pooled(nn.Module):
    """Convolutions, an exit behind each, pooled over however many places there are."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, stride=2)
        self.c = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.first, self.second, self.last = (nn.Linear(8, 4) for _ in range(3))

    def forward(self, x):
        x = torch.relu(self.a(x))
        first = self.first(F.adaptive_avg_pool2d(x, 1).flatten(1))
        x = torch.relu(self.b(x))
        second = self.second(x.mean((2, 3)))
        return first, second, self.last(F.adaptive_avg_pool2d(torch.relu(self.c(x)), 1)[:, :, 0, 0])


class Shaped(nn.Module):
    """A small U: down and back up to the size of the features that skip the cuts."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.c = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.up, self.back = nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(19, 8, 3, padding=1)
        self.first, self.second, self.last = nn.Linear(12, 4), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        wide = torch.relu(self.b(torch.relu(self.a(x))))
        deep = torch.relu(self.c(wide))
        first = self.first(deep.mean((2, 3)))
        deep = F.interpolate(deep, size=wide.shape[2:], mode="bilinear", align_corners=False)
        up = torch.relu(self.up(torch.cat([wide, deep], 1)))
        second = self.second(up.mean((2, 3)))
        # Behind both cuts, back to the input's size and the input itself.
        back = F.interpolate(torch.cat([up, up], 1), size=x.shape[2:], mode="nearest")
        back = self.back(torch.cat([back, x], 1))
        return first, second, self.last(torch.relu(back).amax((2, 3)))


class Long(nn.Module):
    """Convolutions along one axis, and attention over it behind the cut."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(2, 8, 5, stride=2, padding=2)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.first, self.last = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.a(x)).transpose(1, 2)
        first = self.first(x.mean(1))
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 3
        return first, self.last((scores.softmax(-1) @ self.value(x)).mean(1))


class Flat(nn.Module):
    """Takes a fixed number of features of all places together."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3 * 16 * 16, 4), nn.Linear(4, 4)

    def forward(self, x):
        first = self.a(x.flatten(1))
        return first, self.b(torch.relu(first))


class Cells(nn.Module):
    """Takes pictures apart into cells of 4 by 4."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height // 4, 4, width // 4, 4).amax((3, 5)).mean((2, 3))
        return self.a(x), self.b(torch.relu(self.a(x)))


class Twofold(nn.Module):
    """Goes another way with large pictures, and with square ones."""

    def __init__(self, square):
        super().__init__()
        self.square = square
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        if x.shape[2] == x.shape[3] if self.square else x.shape[2] > 24:
            x = x * 2
        x = x.mean((2, 3))
        return self.a(x), self.b(torch.relu(self.a(x)))


def model(kind, **args):
    torch.manual_seed(0)
    return globals()[kind](**args)


def pictures(seed, count=24, step=1, ends=(12, 32)):
    """Pixels of several sizes, two of each side by side."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count // 2):
        height, width = generator.integers(ends[0] // step, ends[1] // step + 1, 2) * step
        found += list(generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8))
    return found, generator.integers(0, 4, count)


def series(seed, count=24):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(9, 41, count)
    found = [generator.standard_normal((2, one)).astype(np.float32) for one in lengths]
    return found, generator.integers(0, 4, count)
'''

RECIPE = """
name: sizes
model: {factory: "nets.py:model", args: {kind: KIND}}
input: {shape: SHAPE}
exits: EXITS
policy: {thresholds: 0.3}
quantize: {min_integer_share: 0.5}
data:
  calibration: {factory: "nets.py:DATA", args: {seed: 1}}
  tuning: {factory: "nets.py:DATA", args: {seed: 2}}
  test: {factory: "nets.py:DATA", args: {seed: 3}}
"""

PICTURE = "[3, [12, 32], [12, 32]], image: {mode: RGB, mean: [0.5, 0.5, 0.5]}"
KINDS = {
    "Pooled": (PICTURE, "[first, second, last]", "pictures"),
    "Shaped": (PICTURE, "[first, second, last]", "pictures"),
    "Long": ("[2, [9, 40]]", "[first, last]", "series"),
    "Flat": ("[3, [12, 16], [12, 16]]", "[first, last]", "pictures"),
    "Cells": (PICTURE, "[first, last]", "pictures"),
    "Twofold": (PICTURE, "[first, last]", "pictures"),
}


def recipe_of(folder: Path, kind: str) -> Path:
    text = RECIPE.replace("KIND", kind)
    for word, value in zip(("SHAPE", "EXITS", "DATA"), KINDS[kind], strict=True):
        text = text.replace(word, value)
    return write(folder / kind, "nets", NETS, text)


@pytest.fixture(scope="module", params=["Pooled", "Shaped", "Long"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe and its bundle."""
    home = tmp_path_factory.mktemp("recipe")
    recipe = recipe_of(home, request.param)

    def make(folder: Path) -> None:
        build(load_recipe(str(recipe)), load_target("host"), folder)

    return recipe, once(tmp_path_factory, f"built-{request.param}", make)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_chain_is_the_model_at_any_size_inside_the_bounds(built, data):
    recipe, bundle = built
    chain = Chain.load(bundle)
    (source,) = chain.spec.inputs
    for _ in range(2):
        shape = tuple(
            data.draw(st.integers(axis[0], axis[1])) if isinstance(axis, tuple) else axis
            for axis in source.shape
        )
        rows = data.draw(st.integers(1, 3))
        x = np.random.default_rng(rows).standard_normal((rows, *shape)).astype(np.float32)
        expected = eager(recipe, torch.from_numpy(x))
        for ours, theirs in zip(chain.logits(x).values(), expected, strict=True):
            assert differences(ours, theirs)[1] < 1e-4
        together = chain.many(x)
        assert [chain.one(one)[:3] for one in x] == [one[:3] for one in together]
