"""The whole way: the same inputs give the same bundle, and a second build replaces the first."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle.manifest import EVIDENCE_NAME, unseal
from edgekit.bundle.reader import read_bundle
from edgekit.cache import Cache
from edgekit.errors import CheckError, EdgekitError
from edgekit.models.load import load_model, user_code
from edgekit.pipeline import build
from edgekit.plan import Plan
from edgekit.recipe import load_recipe
from edgekit.runtime import Chain
from edgekit.target import load_target
from tests.conftest import ROOT, write_tiny_recipe

EVERY_STAGE = [
    "load", "export", "split", "lower", "optimize", "quantize", "tune", "build", "verify",
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_another_clone_in_another_folder_gives_the_same_bytes(built_tiny, tmp_path):
    clone = tmp_path / "a folder/of another name"
    for part in ("edgekit", "targets", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, clone / part, ignore=ignored)
    recipe = write_tiny_recipe(clone / "copy")
    command = [sys.executable, "-m", "edgekit.cli", "build", str(recipe), "--output", "out"]
    command.append("--no-report")
    environment = {**os.environ, "PYTHONPATH": str(clone), "PYTHONHASHSEED": "1"}
    subprocess.run(command, check=True, cwd=clone, env=environment, capture_output=True)
    first, second = contents(built_tiny), contents(clone / "out")
    assert first.pop(EVIDENCE_NAME)
    assert second.pop(EVIDENCE_NAME)
    assert first == second


def test_only_what_is_deployed_changes_the_id(built_tiny, tiny_recipe, tiny_cache, tmp_path):
    before = read_bundle(built_tiny).manifest
    recipe = load_recipe(str(tiny_recipe), {"golden_samples": 3, "test_samples": 5})
    after = build(recipe, load_target("host"), tmp_path / "out", cache=tiny_cache).manifest
    assert after.bundle_id == before.bundle_id
    assert len(after.golden.samples) == 3
    assert after.test_data.samples == 5
    recipe = load_recipe(str(tiny_recipe), {"policy.thresholds.first": 0.31})
    other = build(recipe, load_target("host"), tmp_path / "out", cache=tiny_cache).manifest
    assert other.bundle_id != before.bundle_id


def test_the_evidence_says_what_was_proven(built_tiny):
    evidence = unseal((built_tiny / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
    manifest = read_bundle(built_tiny).manifest
    assert evidence["bundle_id"] == manifest.bundle_id
    stages = [stage["name"] for stage in evidence["stages"]]
    assert stages == EVERY_STAGE
    assert [check["stage"] for check in evidence["checks"]] == [
        "split",
        "lower",
        "optimize",
        "tune",
        "verify",
    ]
    assert all(check["exit_agreement"] == 1 for check in evidence["checks"])
    assert [one["proven"] for one in evidence["proof"]] == ["executed"] * 3
    assert evidence["golden"]["samples"] == len(manifest.golden.samples)


def test_a_deadline_on_the_building_machine_goes_by_the_evidence(built_tiny):
    evidence = unseal((built_tiny / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
    chain = Chain.load(built_tiny)
    assert chain.one(np.zeros((1, 8, 8), np.float32), deadline_ms=1e9).stop in {"sure", "final"}
    assert chain.segment_ms == pytest.approx(evidence["segment_latency_ms"])


def test_golden_samples_stand_for_every_exit_that_is_taken(built_tiny):
    manifest = read_bundle(built_tiny).manifest
    evidence = unseal((built_tiny / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
    rates = evidence["stages"][-1]["notes"]["exit_rates"]
    taken = {exit for exit, rate in rates.items() if rate}
    assert len(taken) > 1
    assert {sample.exit for sample in manifest.golden.samples} == taken


def test_the_chain_decides_as_a_plain_pytorch_loop_does(built_tiny, tiny_recipe):
    recipe = load_recipe(str(tiny_recipe))
    chain = Chain.load(built_tiny)
    with user_code(recipe.folder):
        model = load_model(recipe)
    samples = np.random.default_rng(3).standard_normal((40, 1, 8, 8)).astype(np.float32)
    for x, found in zip(samples, chain.many(samples), strict=True):
        with torch.no_grad():
            every = model(torch.from_numpy(x[None]))
        for name, logits in zip(recipe.exits, every, strict=True):
            probabilities = torch.softmax(logits[0].double(), dim=0)
            threshold = recipe.policy.thresholds.get(name, 0)
            if probabilities.max() >= threshold:
                break
        assert (found.exit, found.class_index) == (name, int(probabilities.argmax()))
        assert found.confidence == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_a_failed_build_leaves_the_old_bundle(built_tiny, tiny_recipe, tmp_path):
    output = Path(shutil.copytree(built_tiny, tmp_path / "out/bundle"))
    before = contents(output)
    recipe = load_recipe(str(tiny_recipe), {"check.max_relative_error": 1e-12})
    with pytest.raises(CheckError, match=r"after lower.*check\.max_relative_error is 1\.0e-12"):
        build(recipe, load_target("host"), output)
    assert contents(output) == before
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]


def test_the_check_meets_a_model_that_differs_under_export(tiny_recipe, tmp_path):
    model = tiny_recipe.parent / "tiny.py"
    text = model.read_text()
    trick = "x = torch.relu(conv(x)) * (1.0 if torch.compiler.is_exporting() else 1.5)"
    model.write_text(text.replace("x = torch.relu(conv(x))", trick))
    with pytest.raises(
        CheckError, match=r"after split.*torch\.export changed what the model computes"
    ):
        build(load_recipe(str(tiny_recipe)), load_target("host"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_is_told_every_stage_and_part(tiny_recipe, tmp_path):
    told = []

    class Recorder:
        @contextmanager
        def stage(self, name):
            told.append(name)
            yield lambda step: told.append(f"{name}: {step}")

    build(load_recipe(str(tiny_recipe)), load_target("host"), tmp_path / "out", Recorder())
    stages = [one for one in told if ":" not in one]
    assert stages == EVERY_STAGE
    for part in ("segment-1", "segment-3", "plain", "whole"):
        assert f"lower: {part}" in told


def test_every_error_of_a_stage_names_it(tiny_recipe, tmp_path):
    recipe = load_recipe(str(tiny_recipe), {"labels": ["a"]})
    with pytest.raises(EdgekitError, match=r"^data\.tuning: labels run from"):
        build(recipe, load_target("host"), tmp_path / "out")
    recipe = load_recipe(str(tiny_recipe), {"labels": list("abcdef")})
    with pytest.raises(EdgekitError, match=r"^build: labels: 6 names for 4 classes"):
        build(recipe, load_target("host"), tmp_path / "out")


def test_a_single_exit_network_is_a_chain_of_one(tiny_recipe, tmp_path):
    model = tiny_recipe.parent / "tiny.py"
    model.write_text(model.read_text().replace("return exits", "return exits[-1]"))
    recipe = load_recipe(str(tiny_recipe), {"exits": ["only"], "policy": {}})
    built = build(recipe, load_target("host"), tmp_path / "out")
    assert [one.name for one in built.manifest.variant().segments] == ["segment-1"]
    assert Chain.load(tmp_path / "out").one(np.zeros((1, 8, 8), np.float32)).exit == "only"


REPOSITORY = """
import os, pathlib, sys

import tiny as made

assert sys.argv[1:] == ["--width", "8"]
assert os.environ["MODEL_HOME"] == "here"
WIDTH = int(pathlib.Path("width.txt").read_text())
samples = made.samples


class LeavesByItself(made.Tiny):
    def forward(self, x):
        for conv, head in zip((self.a, self.b, self.c), self.heads):
            x = made.torch.relu(conv(x))
            logits = head(x.flatten(1))
            if logits.softmax(1).max() > 0.5:
                return logits
        return logits


def build():
    assert WIDTH == 8
    made.torch.manual_seed(0)
    return LeavesByItself()
"""

SETUP = """
import os, sys


def prepare():
    sys.argv[1:] = ["--width", "8"]
    os.environ["MODEL_HOME"] = "here"
    os.chdir(os.path.join(os.path.dirname(__file__), "settings"))
"""


def test_a_repository_that_must_be_set_up_and_leaves_by_itself_comes_in_unedited(
    tiny_recipe, tmp_path, monkeypatch
):
    folder = tiny_recipe.parent
    (folder / "settings").mkdir()
    (folder / "settings/width.txt").write_text("8")
    (folder / "repository.py").write_text(REPOSITORY)
    (folder / "setup.py").write_text(SETUP)
    torch.manual_seed(5)
    head = torch.nn.Linear(8, 4)
    torch.save(head.state_dict(), folder / "head.pt")
    first = {"at": "a", "kind": "pool_linear", "checkpoint": "head.pt"}
    recipe = load_recipe(
        str(tiny_recipe),
        {
            "model": {"factory": "repository.py:build", "setup": "setup.py:prepare"},
            "exits": [
                {"name": "first", "head": first},
                {"name": "second", "module": "heads.1"},
                {"name": "last", "module": "heads.2"},
            ],
            "data.tuning.factory": "repository.py:samples",
            "data.test.factory": "repository.py:samples",
        },
    )
    monkeypatch.chdir(tmp_path)
    cache = Cache(tmp_path / "cache")
    built = build(recipe, load_target("host"), Path("bundle"), cache=cache)
    assert built.manifest.variant().exits == ("first", "second", "last")
    assert built.evidence["checks"][-1]["exit_agreement"] == 1.0
    assert (tmp_path / "bundle/manifest.json").is_file()
    assert Path.cwd() == tmp_path
    assert "MODEL_HOME" not in os.environ
    assert Plan(recipe, load_target("host"), cache).finished
    torch.save({name: one + 1 for name, one in head.state_dict().items()}, folder / "head.pt")
    assert Plan(recipe, load_target("host"), cache).reasons()["load"] == "head.pt changed"


@pytest.mark.parametrize(
    "policy",
    [
        {"combine": "geometric", "otherwise": "max_confidence", "thresholds": 0.29},
        {
            "combine": "sum",
            "weights": {"first": 1, "second": 2, "last": 3},
            "tune": {"max_accuracy_drop": 0.1},
        },
        {"criterion": "patience", "thresholds": 1},
    ],
    ids=["geometric", "sum", "patience"],
)
def test_a_bundle_of_another_policy_is_built_checked_and_built_again_from_what_was_kept(
    cli, tiny_recipe, tmp_path, policy
):
    settings = [f"--set=policy={json.dumps(policy)}"]
    if "tune" not in policy:
        settings.append("--set=golden_samples=4")
    first, again = tmp_path / "first", tmp_path / "again"
    for output in (first, again):
        ended = cli("build", tiny_recipe, *settings, "--output", output)
        assert ended.code == 0, ended.err
        settings.append("--set=golden_samples=3")
    manifest = read_bundle(again).manifest
    assert manifest.policy == read_bundle(first).manifest.policy
    assert manifest.policy.combine == policy.get("combine", "last")
    assert manifest.policy.weights == ((1, 2, 3) if "weights" in policy else None)
    assert cli("verify", again).code == 0
    assert cli("inspect", again).code == 0
