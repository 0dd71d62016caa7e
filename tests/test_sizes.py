"""Inputs whose size varies: from a recipe to a bundle, held against PyTorch at other sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import (
    MANIFEST_NAME,
    TensorSpec,
    identify,
    parse_manifest,
    seal,
    unseal,
)
from edgekit.bundle.reader import read_bundle, read_evidence
from edgekit.cache import Cache
from edgekit.errors import BundleError, ModelError, RecipeError
from edgekit.models.load import load_model, user_code
from edgekit.pipeline import build, inspect
from edgekit.recipe import load_recipe
from edgekit.runtime import Chain
from edgekit.runtime.bench import bench, load_test_data
from edgekit.runtime.chain import MOST_SHAPES
from edgekit.runtime.preprocess import to_image
from edgekit.runtime.verify import differences, verify_golden
from edgekit.target import load_target
from tests.conftest import once, write_recipe
from tests.test_inputs import refused_input

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


class Words(nn.Module):
    """Tokens from 1 on, as many as there are, and a vector that joins behind the first exit."""

    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(29, 8), nn.Parameter(torch.randn(12, 8))
        self.mix, self.meta = nn.Linear(8, 8), nn.Linear(5, 8)
        self.first, self.last = nn.Linear(8, 4), nn.Linear(16, 4)

    def forward(self, meta, tokens):
        x = self.table(tokens - 1) + self.places[: tokens.shape[1]]
        first = self.first(x.mean(1))
        x = torch.cat([torch.relu(self.mix(x)).amax(1), torch.relu(self.meta(meta))], 1)
        return first, self.last(x)


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


def words(seed, count=24):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(4, 13, count)
    found = [
        {
            "tokens": generator.integers(1, 30, one),
            "meta": generator.standard_normal(5).astype(np.float32),
        }
        for one in lengths
    ]
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
    "Words": ("[1]", "[first, last]", "words"),
    "Flat": (PICTURE.replace("32", "16"), "[first, last]", "pictures"),
    "Cells": (PICTURE, "[first, last]", "pictures"),
    "Twofold": (PICTURE, "[first, last]", "pictures"),
}


def recipe_of(folder: Path, kind: str) -> Path:
    text = RECIPE.replace("KIND", kind)
    for word, value in zip(("SHAPE", "EXITS", "DATA"), KINDS[kind], strict=True):
        text = text.replace(word, value)
    return write_recipe(folder / kind, "nets", NETS, text)


def bundle_of(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe and its bundle."""
    recipe = recipe_of(tmp_path_factory.mktemp("recipe"), kind)

    def make(folder: Path) -> None:
        build(load_recipe(str(recipe)), load_target("host"), folder)

    return recipe, once(tmp_path_factory, f"built-{kind}", make)


@pytest.fixture(scope="module", params=["Pooled", "Shaped", "Long"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bundle_of(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of("Pooled", tmp_path_factory)[1]


@pytest.fixture(scope="module")
def in_pytorch(built: Any) -> Any:
    """The recipe's model."""
    recipe = load_recipe(str(built[0]))
    with user_code(recipe.folder):
        return load_model(recipe)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_chain_is_the_model_at_any_size_inside_the_bounds(built, in_pytorch, data):
    _, bundle = built
    chain = Chain.load(bundle)
    (source,) = chain.spec.inputs
    for _ in range(2):
        shape = tuple(
            data.draw(st.integers(axis[0], axis[1])) if isinstance(axis, tuple) else axis
            for axis in source.shape
        )
        rows = data.draw(st.integers(1, 3))
        x = np.random.default_rng(rows).standard_normal((rows, *shape)).astype(np.float32)
        with torch.no_grad():
            expected = [one.numpy() for one in in_pytorch(torch.from_numpy(x))]
        for ours, theirs in zip(chain.logits(x).values(), expected, strict=True):
            assert differences(ours, theirs)[1] < 1e-4
        together = chain.many(x)
        assert [chain.one(one)[:3] for one in x] == [one[:3] for one in together]


def test_the_bounds_are_in_the_bundle_and_what_follows_is_not(built):
    recipe, bundle = built
    manifest = read_bundle(bundle).manifest
    (source,) = manifest.inputs
    assert source.shape == tuple(
        axis if isinstance(axis, int) else (*axis, 1)
        for axis in load_recipe(str(recipe)).input.shape
    )
    tensors = manifest.variant().tensors
    assert tensors[source.tensor].shape == (
        None,
        source.shape[0],
        *[None] * (len(source.shape) - 1),
    )
    crossing = {name for one in manifest.variant().segments[1:] for name in one.inputs}
    assert all(tensors[name].shape[2:] in {(None,), (None, None)} for name in crossing)
    assert all(tensors[name].bytes_per_sample is None for name in crossing)


def test_the_check_tries_the_least_and_the_greatest_size(built):
    _, bundle = built
    split, inputs = 24, read_bundle(bundle).manifest.inputs
    ends = 2 * (5 if len(inputs[0].varying) == 2 else 3)
    checks = read_evidence(read_bundle(bundle))["checks"]
    assert [one["samples"] for one in checks] == [split + ends] * len(checks)


def test_a_sample_outside_the_bounds_is_refused_with_them(pooled):
    chain = Chain.load(pooled)
    chain.one(np.zeros((3, 12, 32), np.float32))
    for shape in [(3, 11, 32), (3, 12, 33), (4, 12, 12), (12, 12), (3, 0, 12)]:
        x = np.zeros(shape, np.float32)
        refused_input(lambda: chain.one(x), "[3, 12..32, 12..32]", str(list(shape)))  # noqa: B023
        refused_input(lambda: chain.many(x[None]), "[3, 12..32, 12..32]")  # noqa: B023
    refused_input(lambda: chain.one(np.zeros((3, 12, 13))), "found float64 [3, 12, 13]")
    assert chain.many(np.zeros((0, 3, 12, 13), np.float32)) == []


def test_a_size_that_is_no_multiple_of_the_step_is_refused(pooled):
    found = Chain.load(pooled)
    (source,) = found.spec.inputs
    stepped = replace(source, shape=(3, (12, 32, 4), (12, 32, 4)))
    chain = Chain(replace(found.spec, inputs=(stepped,)), found.engines)
    chain.one(np.zeros((3, 12, 16), np.float32))
    refused_input(
        lambda: chain.one(np.zeros((3, 12, 18), np.float32)), "[3, 12..32 by 4, 12..32 by 4]"
    )


def test_thresholds_that_are_set_hold_at_every_size(pooled):
    chain = Chain.load(pooled)
    every = [np.ones((3, size, 12), np.float32) for size in (12, 13, 12)]
    early = len(chain.spec.policy.thresholds)
    for threshold, stop in ((-np.inf, "sure"), (np.inf, "final"), (-np.inf, "sure")):
        chain.set_thresholds([threshold] * early)
        assert {chain.one(x).stop for x in every} == {stop}


def test_a_value_that_is_not_finite_is_found_at_every_size(pooled):
    chain = Chain.load(pooled)
    for size in (12, 13):
        x = np.zeros((3, size, 12), np.float32)
        x[2, 5, 7] = np.nan
        refused_input(lambda: chain.one(x), "[2, 5, 7]")  # noqa: B023


def test_shapes_by_the_hundred_do_not_fill_the_memory_and_change_no_answer(pooled):
    chain = Chain.load(pooled)
    samples = [
        np.random.default_rng(7).standard_normal((3, height, width)).astype(np.float32)
        for height in range(12, 33, 4)
        for width in range(12, 33, 5)
    ]
    first = [chain.one(one)[:4] for one in samples]
    assert len(chain._rooms) == MOST_SHAPES < len(samples)
    assert [chain.one(one)[:4] for one in reversed(samples)] == first[::-1]
    other = chain.with_policy(replace(chain.spec.policy, thresholds=(0.0, 0.0)))
    assert {other.one(one).exit for one in samples} == {"first"}


def test_an_engine_is_asked_for_the_sizes_of_a_shape_once(pooled, monkeypatch):
    chain = Chain.load(pooled)
    asked = []
    for engine in chain.engines:
        monkeypatch.setattr(
            engine, "shapes", lambda given, ask=engine.shapes: asked.append(1) or ask(given)
        )
    for size in (12, 13, 12, *range(14, 14 + MOST_SHAPES), 12):
        chain.one(np.zeros((3, 12, size), np.float32))
    assert len(asked) == len(chain.engines) * (2 + MOST_SHAPES)


def test_a_segment_that_gives_other_sizes_than_the_manifest_says_is_refused(pooled):
    found = Chain.load(pooled)
    logits = found.spec.segments[0].exits[0].logits
    tensors = {**found.spec.tensors, logits: TensorSpec("float32", (None, 5))}
    chain = Chain(replace(found.spec, tensors=tensors), found.engines)
    with pytest.raises(BundleError, match=r"segment-1 gives \w+ as \[4\], and the manifest says"):
        chain.one(np.zeros((3, 12, 12), np.float32))


def test_golden_samples_and_the_test_split_keep_their_sizes(built):
    _, path = built
    bundle = read_bundle(path)
    chain = Chain.from_bundle(bundle)
    verify_golden(bundle, chain)
    samples, labels = load_test_data(bundle)
    assert len({one.shape for one in samples}) > 5
    assert len(samples) == len(labels) == 24
    assert bundle.manifest.test_data.inputs == {"input": "test/inputs.npz"}
    report = bench(bundle, samples[:10], labels[:10], rounds=1)
    found = [chain.one(one).class_index for one in samples[:10]]
    assert report["accuracy"] == np.mean(np.array(found) == labels[:10])
    assert len(chain.measure()) == len(chain.spec.segments)


def test_the_commands_take_images_of_two_sizes(pooled, tmp_path, cli):
    generator = np.random.default_rng(5)
    for name, height, width in [("tall", 30, 13), ("wide", 12, 32), ("large", 12, 33)]:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        to_image(pixels).save(tmp_path / f"{name}.png")
    assert cli("run", pooled, tmp_path / "tall.png", tmp_path / "wide.png").code == 0
    ended = cli("run", pooled, tmp_path / "large.png", tmp_path / "tall.png")
    assert ended.code == 1
    assert "large.png: the network takes float32 [3, 12..32, 12..32], or uint8 pixels" in ended.err
    assert "which gives [3, 12, 33]" in ended.err
    assert "tall.png" in ended.out
    assert cli("verify", pooled).code == 0
    assert "input     3x12..32x12..32 float32 from images" in cli("inspect", pooled).out
    arrays = {f"inputs.{row}": np.zeros((12, 12 + row, 3), np.uint8) for row in range(3)}
    np.savez(tmp_path / "data.npz", **arrays, labels=np.zeros(3, int))
    assert cli("bench", pooled, "--rounds", "1", "--data", tmp_path / "data.npz").code == 0
    assert cli("bench", pooled, "--rounds", "1").code == 0


def test_sizes_vary_in_integers_too(tmp_path):
    """What is lowered comes out of the cache, so this also goes on where a build left off."""
    recipe = load_recipe(str(recipe_of(tmp_path, "Pooled")))
    target = load_target("host", {"precision": "int8"})
    # In one process: another may have imported modules that count as read.
    cache = Cache(tmp_path / "cache")
    floats = build(recipe, load_target("host"), tmp_path / "floats", cache=cache).path
    out = build(recipe, target, tmp_path / "out", cache=cache)
    stages = {one["name"]: one for one in out.evidence["stages"]}
    assert stages["lower"]["cached"]
    assert stages["quantize"]["notes"]["integer_share"]["chain"] == 1
    chain = Chain.load(tmp_path / "out")
    for shape in [(3, 12, 32), (3, 27, 13)]:
        x = np.random.default_rng(1).random((2, *shape), np.float32)
        for ours, theirs in zip(
            chain.logits(x).values(), Chain.load(floats).logits(x).values(), strict=True
        ):
            assert 0 < differences(ours, theirs)[1] < 0.05


@pytest.fixture(scope="module")
def words_bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe of tokens of any length and a vector, and its bundle."""
    path = recipe_of(tmp_path_factory.mktemp("recipe"), "Words")
    inputs = "{tokens: {shape: [[4, 12]], dtype: int64, range: [1, 29]}, meta: {shape: [5]}}"
    path.write_text(path.read_text().replace("input: {shape: [1]}", f"inputs: {inputs}"))

    def make(folder: Path) -> None:
        build(load_recipe(str(path)), load_target("host"), folder)

    return path, once(tmp_path_factory, "built-words", make)


def test_tokens_of_any_length_go_beside_an_input_of_one_size(words_bundle):
    path, folder = words_bundle
    bundle = read_bundle(folder)
    assert bundle.manifest.test_data.inputs == {
        "meta": "test/inputs-meta.npz",
        "tokens": "test/inputs-tokens.npz",
    }
    recipe = load_recipe(str(path))
    with user_code(recipe.folder):
        model = load_model(recipe)
    chain = Chain.from_bundle(bundle)
    samples, labels = load_test_data(bundle)
    for one in samples:
        given = {name: torch.from_numpy(array[None]) for name, array in one.items()}
        with torch.no_grad():
            expected = [logits.numpy() for logits in model(**given)]
        found = chain.logits({name: array[None] for name, array in one.items()})
        for ours, theirs in zip(found.values(), expected, strict=True):
            assert differences(ours, theirs)[1] < 1e-4
    assert bench(bundle, samples[:6], labels[:6], rounds=1)["samples"] == 6
    assert len(chain.measure()) == 2
    wrong = {"tokens": np.ones(13, np.int64), "meta": np.zeros(5, np.float32)}
    refused_input(lambda: chain.one(wrong), "tokens: expected int64 [4..12]", "int64 [13]")
    wrong["tokens"] = np.full(9, 30)
    refused_input(lambda: chain.one(wrong), "tokens: the network takes 1 to 29")


def test_the_commands_take_samples_of_several_lengths(words_bundle, tmp_path, cli):
    _, folder = words_bundle
    arrays = {f"tokens.{row}": np.ones(4 + row, np.int64) for row in range(3)}
    arrays |= {f"meta.{row}": np.zeros(5, np.float32) for row in range(3)}
    np.savez(tmp_path / "data.npz", **arrays)
    assert cli("bench", folder, "--rounds", "1", "--data", tmp_path / "data.npz").code == 0
    np.savez(tmp_path / "one.npz", tokens=np.ones(7, np.int64), meta=np.zeros(5, np.float32))
    assert cli("run", folder, tmp_path / "one.npz").code == 0
    assert cli("verify", folder).code == 0
    assert "tokens: 4..12 int64, 1 to 29" in cli("inspect", folder).out


def test_the_network_is_counted_at_the_greatest_size(pooled):
    first = read_bundle(pooled).manifest.variant().segments[0]
    assert first.macs == 32 * 32 * 8 * 3 * 9 + 8 * 4


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("Flat", {}, "input.shape [3, 12, 12] is among the recipe's ranges, and there the model"),
        ("Cells", {}, "input.shape [3, 31, 31] is among the recipe's ranges, and there the model"),
        ("Cells", {"input.shape": [3, [12, 32, 2], [12, 32, 4]]}, "input.shape [3, 30, 28]"),
        ("Twofold", {"model.args.square": False}, "others than [25, 32]; write that"),
        ("Twofold", {"model.args.square": True}, "as axis 1 of input"),
    ],
)
def test_a_model_that_does_not_take_every_size_is_refused(tmp_path, kind, settings, words):
    sources = {
        f"data.{split}.args": {"seed": seed, "step": 4, "ends": [12, 16]}
        for seed, split in enumerate(("calibration", "tuning", "test"))
    }
    given = {"model.args.kind": kind, **sources, **settings}
    recipe = load_recipe(str(recipe_of(tmp_path, kind)), given)
    with pytest.raises(ModelError) as caught:
        inspect(recipe, load_target("host"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_takes_multiples_of_a_step_is_cut(tmp_path):
    sources = {
        f"data.{split}.args": {"seed": seed, "step": 4}
        for seed, split in enumerate(("calibration", "tuning", "test"))
    }
    shape = {"input.shape": [3, [12, 32, 4], [12, 32, 4]]}
    recipe = load_recipe(str(recipe_of(tmp_path, "Cells")), {**sources, **shape})
    segments, _ = inspect(recipe, load_target("host"))
    assert segments.tensors["x"].shape == (None, 3, None, None)


def test_a_sample_outside_the_bounds_names_its_place_in_the_data(tmp_path):
    recipe = load_recipe(
        str(recipe_of(tmp_path, "Pooled")), {"input.shape": [3, [12, 20], [12, 32]]}
    )
    with pytest.raises(RecipeError, match=r"data\.\w+, sample \d+: .*\[3, 12\.\.20, 12\.\.32\]"):
        inspect(recipe, load_target("host"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shape": [3, [32, 12], 12]}, "axis 1 runs from 32 to 12"),
        ({"shape": [3, [12, 12], 12]}, "or one number for a fixed size"),
        ({"shape": [3, [12, 30, 4], 12]}, "axis 1 goes by 4, and 12 or 30 is no multiple of that"),
        ({"shape": [3, [12, 30, 4], 12]}, "nearest is [12, 28, 4]"),
        ({"shape": [3, [12, 32, 4, 1], 12]}, "or [least, most, step]"),
        ({"shape": [3, [0, 32], 12]}, "[0, 32] is no size"),
        ({"shape": [3, "12-32", 12]}, "'12-32' is no size"),
        ({"shape": [[1, 3], 12, 12], "image": {}}, "an image of mode RGB needs shape [3, h, w]"),
        ({"shape": [3, [12, 32], 12], "image": {"crop": [12, 12]}}, "image.crop gives every"),
        ({"shape": [3, [12, 32], 12], "image": {"resize": [12, 12]}}, "image.resize gives every"),
    ],
)
def test_a_shape_that_says_nothing_clear_is_refused(tmp_path, given, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe_of(tmp_path, "Long")), {"input": given})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "axis",
    [
        [32, 12, 1],
        [12, 12, 1],
        [0, 32, 1],
        [12, 32, 0],
        [12, 30, 4],
        [12, 32],
        [-4, 32, 4],
        0,
        "12",
    ],
    ids=str,
)
def test_bounds_that_are_none_are_refused_in_a_manifest(pooled, axis):
    document = unseal((pooled / MANIFEST_NAME).read_bytes(), MANIFEST_NAME)
    document["inputs"][0]["shape"][1] = axis
    document["bundle_id"] = identify(document)
    with pytest.raises(BundleError):
        parse_manifest(seal(document))


def test_a_tensor_that_varies_behind_a_fixed_input_is_refused_in_a_manifest(pooled):
    document = unseal((pooled / MANIFEST_NAME).read_bytes(), MANIFEST_NAME)
    document["inputs"][0]["shape"] = [3, 12, 12]
    document["variants"][0]["tensors"][document["inputs"][0]["tensor"]]["shape"] = [None, 3, 12, 12]
    document["bundle_id"] = identify(document)
    with pytest.raises(BundleError, match=r"tensor 'relu\w*' is float32 \[None, 8, None, None\]"):
        parse_manifest(seal(document))
