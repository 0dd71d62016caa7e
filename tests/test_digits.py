"""The shipped example, built for real, held to what it promises."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from edgekit.bundle.reader import read_bundle
from edgekit.models.load import call_factory, load_model, user_code
from edgekit.recipe import load_recipe
from edgekit.runtime import Chain
from edgekit.runtime.bench import bench, load_test_data
from tests.conftest import ROOT

RECIPE = ROOT / "recipes/digits/recipe.yaml"


@pytest.fixture(scope="module")
def decisions(digits_bundle):
    """What PyTorch, in a plain loop of this test's own, and the chain make of the test split."""
    recipe = load_recipe(str(RECIPE))
    with user_code(recipe.folder):
        model = load_model(recipe)
        images, labels = call_factory("data.py:load", {"split": "test"}, recipe.folder)
    x = ((images[:, None] / 255 - 0.5) / 0.5).astype(np.float32)
    with torch.no_grad():
        logits = [one.double() for one in model(torch.from_numpy(x))]
    ours = []
    for row in range(len(x)):
        for name, one in zip(recipe.exits, logits, strict=True):
            probability, index = torch.softmax(one[row], dim=0).max(dim=0)
            if name == recipe.exits[-1] or probability >= recipe.policy.thresholds[name]:
                ours.append((name, int(index)))
                break
    chain = Chain.load(digits_bundle)
    theirs = [(one.exit, one.class_index) for one in chain.many(x)]
    final = float((logits[-1].argmax(dim=1).numpy() == labels).mean())
    return ours, theirs, labels, final


def test_chain_and_pytorch_decide_alike_on_every_test_image(decisions):
    ours, theirs, _, _ = decisions
    assert theirs == ours


def test_a_fifth_leaves_at_the_first_exit_and_some_at_the_last(decisions):
    taken = Counter(exit for exit, _ in decisions[1])
    assert taken["exit1"] >= 0.2 * len(decisions[1])
    assert taken["final"] > 0


def test_early_exit_loses_at_most_a_point(decisions):
    _, theirs, labels, final = decisions
    accuracy = np.mean([index == label for (_, index), label in zip(theirs, labels, strict=True)])
    assert accuracy >= final - 0.01


def test_the_carried_test_split_is_the_recipes(digits_bundle, decisions):
    inputs, labels = load_test_data(read_bundle(digits_bundle))
    assert inputs.shape == (360, 1, 32, 32)
    assert np.array_equal(labels, decisions[2])


def test_bench_reports_the_chain_beside_the_undivided_networks(digits_bundle):
    bundle = read_bundle(digits_bundle)
    inputs, labels = load_test_data(bundle)
    report = bench(bundle, inputs[:80], labels[:80], rounds=1)
    json.dumps(report, allow_nan=False)
    assert sum(exit["rate"] for exit in report["exits"]) == pytest.approx(1)
    assert report["latency_ms"]["p90"] is not None
    assert report["latency_ms"]["p95"] is None
    assert report["plain"]["accuracy"] == report["whole"]["accuracy"]


def test_sample_pictures_are_classified_as_their_names_say(digits_bundle, cli):
    pictures = sorted((ROOT / "recipes/digits/samples").glob("*.png"))
    chain = Chain.load(digits_bundle)
    found = [chain.one(chain.read(picture)) for picture in pictures]
    assert [one.label for one in found] == [path.stem[-1] for path in pictures]
    assert {"exit1", "final"} <= {one.exit for one in found}


def test_the_checkpoint_is_small():
    assert (ROOT / "recipes/digits/digits.safetensors").stat().st_size < 1_000_000


def test_recipe_and_training_record_agree():
    record = json.loads((ROOT / "recipes/digits/training.json").read_text())
    recipe = load_recipe(str(RECIPE))
    assert [round(one, 4) for one in record["multi_exit"]["thresholds"]] == list(recipe.thresholds)
    static = load_recipe(str(RECIPE.parent / "static.yaml"))
    assert static.model.args == record["static"]["arguments"]


@pytest.mark.slow
def test_training_reproduces_the_checkpoints_accuracy(tmp_path):
    import subprocess
    import sys

    script = ROOT / "recipes/digits/train.py"
    subprocess.run([sys.executable, script, "--output", tmp_path], check=True, timeout=1200)
    record = json.loads((ROOT / "recipes/digits/training.json").read_text())["multi_exit"]
    again = json.loads((tmp_path / "training.json").read_text())["multi_exit"]
    # Bit for bit only on the same kind of processor; two images of 360 elsewhere.
    assert again["test_accuracy"] == pytest.approx(record["test_accuracy"], abs=0.006)
    assert (tmp_path / "digits.safetensors").stat().st_size < 1_000_000
