"""What the project promises about itself: its public names, its pages, its examples."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys

import pytest
import yaml

import edgekit
from edgekit.config import Strict
from edgekit.errors import DeviceError
from edgekit.recipe import Recipe, load_recipe
from edgekit.runtime.cuda import find
from tests.conftest import ROOT
from tests.ladders import assemble

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(edgekit.__path__, "edgekit.")
    if not module.name.endswith("__main__")
)  # fmt: skip
POLICY = {"thresholds": 0.5}
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_proofs_on_a_gpu_that_were_asked_for_and_did_not_run_are_no_success():
    try:
        find().gpu()
    except DeviceError:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
        assert "no proof ran on a GPU" in ended.stdout
        assert "no GPU: " in ended.stdout
    else:
        pytest.skip("this machine has a GPU, so they run")


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_exists(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        assert hasattr(module, public)


def keys(model: type[Strict], prefix: str = "") -> list[str]:
    found = []
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        inner = [
            one
            for one in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(one, type) and issubclass(one, Strict)
        ]
        is_source = inner and inner[0].__name__ == "Source"
        if inner and not is_source:
            found += keys(inner[0], f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_every_key_of_a_recipe_is_documented():
    page = (ROOT / "docs/recipe.md").read_text()
    documented = set(re.findall(r"`([a-z0-9_.]+)`", page))
    # Those of a cascade's goal are said to be those of the exits'.
    documented |= {one.replace("policy.tune", "variants.tune") for one in documented}
    assert set(keys(Recipe)) <= documented
    assert {"factory", "args", "npz", "folder"} <= documented


def test_every_key_of_a_bench_report_is_documented(built_tiny):
    from edgekit.bundle.reader import read_bundle
    from edgekit.runtime.bench import bench, load_test_data

    bundle = read_bundle(built_tiny)
    report = bench(bundle, *load_test_data(bundle), rounds=1)
    documented = documented_words()
    assert report.keys() <= documented
    assert report["segments"][0].keys() <= documented


def test_every_key_of_a_metrics_line_and_every_stop_is_documented(built_tiny, tmp_path):
    import typing

    import numpy as np

    from edgekit.runtime import Chain, Prediction

    chain = Chain.load(built_tiny, metrics=tmp_path / "metrics.jsonl")
    chain.one(np.zeros(chain.spec.inputs[0].shape, np.float32))
    chain.metrics.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    (exit,) = (one for one in line["exits"] if one["count"])
    documented = documented_words()
    for part in (line, exit, exit["confidence"], exit["latency_ms"]):
        assert part.keys() <= documented
    assert set(typing.get_args(Prediction.__annotations__["stop"])) <= documented


def documented_words() -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs/reference.md").read_text()))


def test_the_recipe_shown_is_the_shipped_one():
    shown, outputs, exits, variants = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs/recipe.md").read_text(), re.S
    )
    shipped = yaml.safe_load((ROOT / "recipes/digits/recipe.yaml").read_text())
    for key, value in yaml.safe_load(shown).items():
        if key == "data":
            assert value.items() <= shipped[key].items()
        else:
            assert value == shipped[key]
    places = Recipe.model_validate({**shipped, **yaml.safe_load(exits), "policy": POLICY}).exits
    assert places == ("early", "middle", "late", "deep", "final")
    given = {key: value for key, value in shipped.items() if key != "labels"}
    assert Recipe.model_validate({**given, **yaml.safe_load(outputs)}).policy.criterion == "given"
    assert Recipe.model_validate({**shipped, **yaml.safe_load(variants)}).variants is not None


def test_python_examples_run(digits_bundle, monkeypatch, capsys, tmp_path):
    (tmp_path / "build/digits").mkdir(parents=True)
    (tmp_path / "build/digits/host").symlink_to(digits_bundle)
    assemble(tmp_path / "build/digits-slimmable/host", {"w1.0": (digits_bundle, 1.0)})
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    examples = [
        code
        for page in PAGES
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]
    assert examples
    for code in examples:
        exec(compile(code, "example", "exec"), {})  # noqa: S102  (our own page)
        assert capsys.readouterr().out.split()[:2] == ["3", "exit1"]


def test_recipes_in_the_readme_are_valid(tmp_path):
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert shown
    for number, text in enumerate(shown):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_recipe(str(path)).exits


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_options_exist(page, cli):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https://)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for command, rest in re.findall(r"`edgekit (\w+)([^`]*)`", text):
        ended = cli(command, "--help")
        assert ended.code == 0, command
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in ended.out, option


def test_every_recipe_and_target_that_ships_is_valid():
    from edgekit.target import load_target, target_names

    recipes = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "benchmarks").rglob("*.yaml")]
    assert len(recipes) >= 3
    for recipe in recipes:
        load_recipe(str(recipe))
    for name in target_names():
        load_target(name)
