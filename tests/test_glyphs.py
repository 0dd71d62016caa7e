"""The second example: graded data, and a policy that comes with a promise."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle.manifest import EVIDENCE_NAME, unseal
from edgekit.cache import Cache
from edgekit.models.load import call_factory, load_model, user_code
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.conftest import ROOT, once

RECIPE = ROOT / "recipes/glyphs/recipe.yaml"


@pytest.fixture(scope="module")
def glyphs():
    """The recipe, its network, and test images with their labels and difficulty."""
    recipe = load_recipe(str(RECIPE))
    with user_code(recipe.folder):
        model = load_model(recipe)
        images, labels = call_factory("data.py:load", {"split": "test"}, recipe.folder)
        _, _, difficulty = call_factory("data.py:graded", {"split": "test"}, recipe.folder)
    return recipe, model, images, labels, difficulty


def test_difficulty_is_what_makes_the_network_err(glyphs):
    _, model, images, labels, difficulty = glyphs
    few = np.argsort(difficulty)[:: len(images) // 400]
    x = torch.from_numpy(((images[few, None] / 255 - 0.5) / 0.5).astype(np.float32))
    with torch.no_grad():
        right = np.stack([one.argmax(dim=1).numpy() == labels[few] for one in model(x)])
    assert (right.mean(axis=1) > 0.95).all()
    easy, hard = np.array_split(right, 2, axis=1)
    assert (easy.mean(axis=1) > 0.99).all()
    assert (hard.mean(axis=1) < easy.mean(axis=1)).all()


def test_every_call_draws_the_same_images_and_every_class(glyphs):
    recipe, _, images, labels, _ = glyphs
    with user_code(recipe.folder):
        again, _ = call_factory("data.py:load", {"split": "test"}, recipe.folder)
    np.testing.assert_array_equal(images, again)
    assert set(labels) == set(range(36))
    assert sys.path.count(str(recipe.folder)) == 0


@pytest.fixture(scope="session")
def glyphs_for(tmp_path_factory):
    """Builds glyphs for a target, once for all tests, and gives the notes of its stages by name."""

    def notes(target: str) -> dict[str, dict]:
        def make(folder: Path) -> None:
            cache = Cache(folder.parent / "glyphs-cache")
            build(load_recipe(str(RECIPE)), load_target(target), folder, cache=cache)

        folder = once(tmp_path_factory, f"built-glyphs-{target}", make)
        evidence = unseal((folder / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
        return {one["name"]: one["notes"] for one in evidence["stages"]}

    return notes


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "rpi4b", "rpi4b-litert"])
def test_a_promise_is_made_and_less_than_a_point_is_lost(target, glyphs_for):
    notes = glyphs_for(target)
    certificate = notes["tune"]["certificate"]
    assert (certificate["risk"], certificate["confidence"]) == (0.01, 0.9)
    assert certificate["p_value"] <= 0.1
    final = notes["verify"]["pytorch_accuracy"]["final"]
    assert notes["verify"]["accuracy"] > final - 0.01
    assert notes["tune"]["exit_rates"]["exit1"] > 0.5
    # Of the chain in float32, INT8 loses half a point at most.
    assert notes["verify"]["accuracy"] >= glyphs_for("host")["verify"]["accuracy"] - 0.005
