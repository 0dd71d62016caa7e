"""What a build need not do again, and what it must."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from edgekit import plan as module
from edgekit.bundle.manifest import EVIDENCE_NAME, unseal
from edgekit.bundle.reader import read_bundle
from edgekit.cache import Cache
from edgekit.errors import RecipeError
from edgekit.pipeline import build, carry_out
from edgekit.plan import STAGES, Plan
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.conftest import write_tiny_recipe
from tests.test_pipeline import contents

DATA = """
import pathlib
import numpy as np
from tiny import samples as draw


def samples(seed):
    here = pathlib.Path(__file__).parent
    pixels, labels = draw(seed)
    for path in sorted((here / "more").iterdir()):
        pixels[0] = np.load(path)
    return pixels, labels
"""

TUNED = {"policy": {"tune": {"max_accuracy_drop": 0.3}}}


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def make(recipe: Path, cache: Cache | None, target: str = "host", **overrides: object):
    """What was built, and the names of the stages that ran."""
    plan = planned(recipe, cache, target, **overrides)
    ran = stages_of(plan)
    return carry_out(plan, recipe.parent / "out"), ran


def stages_of(plan: Plan) -> list[str]:
    """The stages that are to run; `carry_out` asks the plan itself before each."""
    return [stage for stage in STAGES if plan.runs(stage)]


def to_run(recipe: Path, cache: Cache | None, target: str = "host", **overrides: object):
    """The names of the stages that would run, none of which does."""
    return stages_of(planned(recipe, cache, target, **overrides))


def planned(recipe: Path, cache: Cache | None, target: str, **overrides: object) -> Plan:
    of_target = {
        key.removeprefix("target_"): value
        for key, value in overrides.items()
        if key.startswith("target_")
    }
    of_recipe = {
        key.replace("__", "."): value
        for key, value in overrides.items()
        if not key.startswith("target_")
    }
    found = load_recipe(str(recipe), of_recipe)
    return Plan(found, load_target(target, of_target), cache)


def test_the_second_build_runs_nothing_and_gives_the_same_bytes(tiny_recipe, cache):
    _, ran = make(tiny_recipe, cache)
    assert ran == list(STAGES)
    before = contents(tiny_recipe.parent / "out")
    inode = (tiny_recipe.parent / "out/manifest.json").stat().st_ino
    built, ran = make(tiny_recipe, cache)
    assert ran == []
    assert contents(tiny_recipe.parent / "out") == before
    assert built.evidence["stages"][0]["name"] == "load"
    # It lies there already, so it was not even written.
    assert (tiny_recipe.parent / "out/manifest.json").stat().st_ino == inode


def test_sizes_that_vary_are_refused_where_engines_are_built_for_one(tiny_recipe):
    recipe = load_recipe(str(tiny_recipe), {"input.shape": [1, [8, 16], 8]})
    assert Plan(recipe, load_target("host"))
    with pytest.raises(RecipeError, match=r"jetson builds engines for one size, and input is"):
        Plan(recipe, load_target("jetson"))


@pytest.mark.parametrize("damage", ["removed", "changed", "other"])
def test_a_bundle_that_is_not_there_any_more_comes_out_of_the_cache(
    tiny_recipe, tiny_cache, damage
):
    output = tiny_recipe.parent / "out"
    make(tiny_recipe, tiny_cache)
    before = contents(output)
    if damage == "removed":
        shutil.rmtree(output)
    elif damage == "changed":
        (output / "segments/segment-1.onnx").write_bytes(b"")
    else:
        make(tiny_recipe, tiny_cache, golden_samples=2)
    assert make(tiny_recipe, tiny_cache)[1] == []
    assert contents(output) == before


def test_another_goal_runs_only_what_follows_it(tiny_recipe, tiny_cache):
    make(tiny_recipe, tiny_cache, **TUNED)
    _, ran = make(tiny_recipe, tiny_cache, policy={"tune": {"max_accuracy_drop": 0.4}})
    assert ran == ["tune", "build", "verify"]
    _, ran = make(tiny_recipe, tiny_cache, **TUNED)
    assert ran == []


def test_other_thresholds_run_only_what_follows_them(tiny_recipe, tiny_cache):
    make(tiny_recipe, tiny_cache)
    assert to_run(tiny_recipe, tiny_cache, policy__thresholds=0.5) == ["tune", "build", "verify"]


def test_what_only_the_bundle_says_runs_only_its_making(tiny_recipe, tiny_cache):
    make(tiny_recipe, tiny_cache)
    for change in ({"name": "other"}, {"golden_samples": 3}, {"target_threads": 2}):
        assert to_run(tiny_recipe, tiny_cache, **change) == ["build", "verify"], change


def test_another_opset_runs_everything(tiny_recipe, tiny_cache):
    make(tiny_recipe, tiny_cache)
    assert make(tiny_recipe, tiny_cache, target_opset=19)[1] == list(STAGES)


def test_another_version_of_the_file_format_runs_everything(tiny_recipe, cache):
    keys = {
        Plan(load_recipe(str(tiny_recipe)), load_target("jetson", {"ir_version": one}))._first_key()
        for one in (9, 10)
    }
    assert len(keys) == 2


def test_a_line_of_the_models_file_runs_everything(tiny_recipe, tiny_cache):
    make(tiny_recipe, tiny_cache)
    with (tiny_recipe.parent / "tiny.py").open("a") as stream:
        stream.write("\n# A remark.\n")
    assert make(tiny_recipe, tiny_cache)[1] == list(STAGES)
    assert make(tiny_recipe, tiny_cache)[1] == []


def test_a_file_that_the_data_comes_from_runs_everything(tiny_recipe, tmp_path, cache):
    folder = tiny_recipe.parent
    (folder / "data.py").write_text(DATA)
    (folder / "more").mkdir()
    np.save(folder / "more/1.npy", np.zeros((8, 8), np.uint8))
    sources = {name: {"factory": "data.py:samples", "args": {"seed": seed}}
               for name, seed in (("tuning", 1), ("test", 2))}  # fmt: skip
    sources["test"] = {"factory": "tiny.py:samples", "args": {"seed": 2}}
    make(tiny_recipe, cache, data=sources)
    for change in ("content", "added", "gone"):
        clone = shutil.copytree(folder, tmp_path / change)
        recipe = clone / tiny_recipe.name
        assert make(recipe, cache, data=sources)[1] == []
        if change == "gone":
            (clone / "more/1.npy").unlink()
        else:
            name = "1.npy" if change == "content" else "2.npy"
            np.save(clone / "more" / name, np.ones((8, 8), np.uint8))
        assert to_run(recipe, cache, data=sources) == list(STAGES), change


def test_another_checkpoint_of_the_same_size_runs_everything(tiny_recipe, cache):
    """Also one whose time of modification was set back, as archives and copies do."""
    folder = tiny_recipe.parent
    code = (folder / "tiny.py").read_text()
    (folder / "tiny.py").write_text(
        code + "\n\ndef state(seed):\n    return tiny(seed).state_dict()\n"
    )
    sys.path.insert(0, str(folder))
    try:
        from tiny import state  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("tiny")
    checkpoint = folder / "weights.safetensors"
    save_file(state(1), checkpoint)
    times = checkpoint.stat().st_atime_ns, checkpoint.stat().st_mtime_ns
    first, _ = make(tiny_recipe, cache, model__checkpoint=checkpoint.name)
    save_file(state(2), checkpoint)
    assert to_run(tiny_recipe, cache, model__checkpoint=checkpoint.name) == list(STAGES)
    os.utime(checkpoint, ns=times)
    second, ran = make(tiny_recipe, cache, model__checkpoint=checkpoint.name)
    assert ran == list(STAGES)
    assert first.manifest.bundle_id != second.manifest.bundle_id


def test_two_clones_look_at_their_own_files_outside_the_recipes_folder(tmp_path, cache):
    recipes = []
    for clone in ("a", "b"):
        (tmp_path / clone).mkdir()
        recipe = write_tiny_recipe(tmp_path / clone / "recipe")
        recipe.with_name("tiny.py").rename(tmp_path / clone / "common.py")
        recipe.with_name("tiny.py").write_text(
            "import pathlib, sys\n"
            "sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))\n"
            "sys.modules.pop('common', None)\n"
            "from common import *\n"
        )
        recipes.append(recipe)
    first, _ = make(recipes[0], cache)
    assert make(recipes[1], cache)[1] == []
    with (tmp_path / "b/common.py").open("a") as stream:
        stream.write(
            "\nrelu = torch.relu\ntorch = __import__('types').SimpleNamespace(**vars(torch))\n"
            "torch.relu = lambda x: relu(x) + 1\n"
        )
    second, ran = make(recipes[1], cache)
    assert ran == list(STAGES)
    assert first.manifest.bundle_id != second.manifest.bundle_id


def test_another_package_of_the_same_name_runs_everything(
    tiny_recipe, tmp_path, cache, monkeypatch
):
    code = tiny_recipe.with_name("tiny.py").read_text()
    tiny_recipe.with_name("tiny.py").write_text("import net\nfrom net import *\n")
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "net.py").write_text(code + f"\nPLACE = {place!r}\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "old"))
        make(tiny_recipe, cache)
        sys.modules.pop("net")
        assert make(tiny_recipe, cache)[1] == []
    monkeypatch.syspath_prepend(str(tmp_path / "new"))
    assert to_run(tiny_recipe, cache) == list(STAGES)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tiny_recipe, cache):
    model = tiny_recipe.with_name("tiny.py")
    model.write_text(model.read_text().replace(
        "    torch.manual_seed(seed)",
        "    torch.manual_seed(seed)\n"
        "    import pathlib\n"
        "    with pathlib.Path(__file__).open('r+') as stream:\n"
        "        stream.seek(0, 2)\n"
        "        stream.write('# More.\\n')",
    ))  # fmt: skip
    make(tiny_recipe, cache)
    assert cache.listing() == []
    assert to_run(tiny_recipe, cache) == list(STAGES)


def test_a_file_that_was_looked_for_in_vain_runs_everything_once_it_is_there(tiny_recipe, cache):
    model = tiny_recipe.with_name("tiny.py")
    model.write_text(model.read_text() + (
        "\nimport pathlib\ntry:\n    (pathlib.Path(__file__).parent / 'extra.txt').read_text()\n"
        "except FileNotFoundError:\n    pass\n"
    ))  # fmt: skip
    make(tiny_recipe, cache)
    assert make(tiny_recipe, cache)[1] == []
    model.with_name("extra.txt").touch()
    assert to_run(tiny_recipe, cache) == list(STAGES)


def test_the_targets_machine_decides_how_quantize_ends(tiny_recipe, cache):
    quantized = {"data.calibration": {"factory": "tiny.py:samples", "args": {"seed": 3}},
                 "quantize.min_integer_share": 0.0}  # fmt: skip
    recipe = load_recipe(str(tiny_recipe), quantized)
    plans = [
        Plan(recipe, load_target("host", {"precision": "int8", "machine": machine}), cache)
        for machine in ("aarch64", "x86_64")
    ]
    for plan in plans:
        plan._set_files({"files": {}, "folders": {}, "modules": {}})
    keys = [plan._keys for plan in plans]
    assert keys[0]["optimize"] == keys[1]["optimize"]
    assert keys[0]["quantize"] != keys[1]["quantize"]


def test_a_tools_other_version_runs_everything(tiny_recipe, tiny_cache, monkeypatch):
    make(tiny_recipe, tiny_cache)
    found = module._version
    monkeypatch.setattr(module, "_version", lambda name: "0" if name == "onnx" else found(name))
    assert to_run(tiny_recipe, tiny_cache) == list(STAGES)


def test_two_clones_share_what_either_built(tiny_recipe, tiny_cache, tmp_path):
    assert make(tiny_recipe, tiny_cache)[1] == []
    twin = write_tiny_recipe(tmp_path / "twin")
    assert make(twin, tiny_cache)[1] == []
    assert contents(twin.parent / "out") == contents(tiny_recipe.parent / "out")
    # And one that differs takes nothing from the other, nor disturbs it.
    with (twin.parent / "tiny.py").open("a") as stream:
        stream.write("\n# A remark.\n")
    assert make(twin, tiny_cache)[1] == list(STAGES)
    assert make(tiny_recipe, tiny_cache)[1] == []
    assert make(twin, tiny_cache)[1] == []


def test_an_interrupted_build_goes_on_where_it_stopped(tiny_recipe, cache, built_tiny, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("edgekit.stages.build.Build.__call__", interrupt)
        make(tiny_recipe, cache)
    built, ran = make(tiny_recipe, cache)
    assert ran == ["build", "verify"]
    assert built.manifest == read_bundle(built_tiny).manifest
    fresh = unseal((built_tiny / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
    assert [one["stage"] for one in built.evidence["checks"]] == [
        one["stage"] for one in fresh["checks"]
    ]
    cached = [one["name"] for one in built.evidence["stages"] if one.get("cached")]
    assert cached == list(STAGES[: STAGES.index("build")])


def test_data_drawn_anew_every_time_is_never_taken_for_the_old(tiny_recipe, cache):
    model = tiny_recipe.parent / "tiny.py"
    model.write_text(model.read_text().replace("default_rng(seed)", "default_rng()"))
    make(tiny_recipe, cache)
    built, _ = make(tiny_recipe, cache, golden_samples=3)
    assert not any(one.get("cached") for one in built.evidence["stages"])
    assert "seed it" in built.evidence["stages"][0]["notes"]["warning"]


def test_without_a_cache_nothing_is_read_or_written(tiny_recipe, tiny_cache):
    make(tiny_recipe, tiny_cache)
    before = contents(tiny_cache.folder)
    assert make(tiny_recipe, None)[1] == list(STAGES)
    assert contents(tiny_cache.folder) == before


def test_a_cache_that_cannot_be_written_does_not_fail_the_build(tiny_recipe, tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file/cache")
    recipe = load_recipe(str(tiny_recipe))
    build(recipe, load_target("host"), tmp_path / "out", cache=cache)
    assert "Not a directory" in str(cache.problem)


def test_every_reason_is_told(tiny_recipe, cache):
    def reasons(**overrides: object) -> dict[str, str]:
        recipe = load_recipe(str(tiny_recipe), overrides)
        return Plan(recipe, load_target("host"), cache).reasons()

    assert reasons()["load"] == "no earlier build of this recipe for this target is known"
    make(tiny_recipe, cache)
    assert reasons() == {}
    assert reasons(**{"policy.thresholds": {"first": 0.5, "second": 0.29}}) == {
        "tune": "recipe.policy.thresholds.first was 0.3, is 0.5",
        "build": "follows tune",
        "verify": "follows tune",
    }
    both = reasons(**{"check.samples": 7, "model.args": {"seed": 3}})
    assert both["load"] == (
        "recipe.check.samples was 256, is 7; recipe.model.args was {}, is null; "
        "recipe.model.args.seed was null, is 3"
    )
    with (tiny_recipe.parent / "tiny.py").open("a") as stream:
        stream.write("\n# A remark.\n")
    assert reasons()["load"] == "tiny.py changed"
    assert reasons()["verify"] == "follows load"
    (tiny_recipe.parent / "tiny.py").unlink()
    assert reasons()["load"] == "tiny.py is gone"
    cache.clear()
    assert Plan(load_recipe(str(tiny_recipe)), load_target("host")).reasons()["tune"] == (
        "the cache is not used"
    )


def test_what_an_edgekit_of_another_format_noted_is_not_read(tiny_recipe, cache, monkeypatch):
    make(tiny_recipe, cache)
    monkeypatch.setattr(module, "_NOTE_FORMAT", module._NOTE_FORMAT + 1)
    (tiny_recipe.parent / "tiny.py").write_text("# Another.\n")
    plan = Plan(load_recipe(str(tiny_recipe)), load_target("host"), cache)
    assert plan.reasons()["load"] == "no earlier build of this recipe for this target is known"


def test_a_cleared_cache_is_the_reason(tiny_recipe, cache):
    make(tiny_recipe, cache)
    shutil.rmtree(cache.folder / "entries")
    recipe = load_recipe(str(tiny_recipe))
    assert (
        Plan(recipe, load_target("host"), cache).reasons()["load"]
        == "its result is no longer in the cache"
    )


def test_the_command_decides_without_torch_and_says_why(tiny_recipe, tmp_path):
    check = (
        "import sys; from edgekit.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", check, "build", tiny_recipe, *arguments]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=True, cwd=tmp_path
        )

    first = run("--explain")
    assert "load      no earlier build" in first.stdout
    assert first.stderr.splitlines()[-1] == "True"
    second = run("--explain")
    assert "nothing has changed" in second.stdout
    assert "verify    cached" in second.stdout
    assert second.stderr.splitlines()[-1] == "False"
    third = run("--dry-run", "--json", "-", "--set", "policy.thresholds=0.5")
    stages = json.loads(third.stdout)["stages"]
    assert stages["quantize"] == "cached"
    assert stages["build"] == "follows tune"
