"""Loading what users wrote: factories and checkpoints, and no trace of them afterwards."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgekit.errors import ModelError, RecipeError
from edgekit.models.load import call_factory, load_checkpoint, load_model, user_code
from edgekit.recipe import load_recipe

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


def call(folder: Path, reference: str, **arguments):
    with user_code(folder):
        return call_factory(reference, arguments, folder)


def test_user_code_leaves_no_trace(tmp_path, monkeypatch):
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 5")
    (tmp_path / "model.py").write_text(
        "import os, sys\n"
        "import helper_of_mine\n"
        "os.environ['LEFT_BEHIND'] = '1'\n"
        "os.environ['CHANGED'] = 'by the model'\n"
        "sys.argv.append('--left-behind')\n"
        "sys.path.append('/left/behind')\n"
        "os.chdir('/')\n"
        "def make(): return helper_of_mine.VALUE\n"
    )
    monkeypatch.setenv("CHANGED", "before")
    before = sys.path[:], sys.argv[:], dict(os.environ), Path.cwd()
    assert call(tmp_path, "model.py:make") == 5
    assert (sys.path, sys.argv, dict(os.environ), Path.cwd()) == before
    assert not {"helper_of_mine", "model"} & sys.modules.keys()


def test_two_recipes_may_both_have_a_model_py(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text("import part\ndef make(): return part.NAME")
        (tmp_path / name / "part.py").write_text(f"NAME = {name!r}")
    assert [call(tmp_path / name, "model.py:make") for name in ("one", "two", "one")] == [
        "one",
        "two",
        "one",
    ]


def test_a_user_file_may_have_the_name_of_an_installed_module(tmp_path):
    import json

    (tmp_path / "json.py").write_text("def make(): return 'mine'")
    assert call(tmp_path, "json.py:make") == "mine"
    assert sys.modules["json"] is json


def test_a_factory_may_be_in_an_installed_package(tmp_path):
    assert call(tmp_path, "collections:OrderedDict", a=1) == {"a": 1}


@pytest.mark.parametrize(
    ("reference", "error", "words"),
    [
        ("model.py", RecipeError, "expected file.py:function"),
        ("absent.py:make", RecipeError, "absent.py: there is no such file"),
        ("no_such_package.models:make", RecipeError, "no Python module 'no_such_package.models'"),
        ("model.py:mkae", RecipeError, "has no function 'mkae'"),
        (
            "model.py:broken",
            ModelError,
            r"ZeroDivisionError: division by zero \(model.py, line 2\)",
        ),
        ("model.py:wants", ModelError, "missing 1 required positional argument"),
        ("bad.py:make", ModelError, r"bad.py failed on import: NameError.*\(bad.py, line 1\)"),
        ("worse.py:make", ModelError, "worse.py failed on import: SyntaxError"),
    ],
)
def test_a_factory_that_fails_is_named_with_its_place(tmp_path, reference, error, words):
    (tmp_path / "model.py").write_text("def broken():\n    1 / 0\ndef wants(width): pass\n")
    (tmp_path / "bad.py").write_text("undefined\n")
    (tmp_path / "worse.py").write_text("def make(:\n")
    with pytest.raises(error, match=words):
        call(tmp_path, reference)


def test_a_factory_that_returns_no_module_is_refused(tiny_recipe):
    (tiny_recipe.parent / "tiny.py").write_text("def tiny(): return [1]")
    with user_code(tiny_recipe.parent), pytest.raises(ModelError, match="returned a list"):
        load_model(load_recipe(str(tiny_recipe)))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
def test_state_dicts_are_read_where_trainers_put_them(tmp_path, wrap):
    torch.save(wrap(STATE), tmp_path / "state.pt")
    found = load_checkpoint(tmp_path / "state.pt")
    assert found.keys() == STATE.keys()
    assert torch.equal(found["weight"], STATE["weight"])


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "state.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "state.safetensors")["weight"], STATE["weight"])


class Payload:
    def __reduce__(self):
        return (os.mkdir, (str(Payload.target),))


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    Payload.target = tmp_path / "owned"
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(RecipeError, match=f"{name}: is no plain state dict"):
            load_checkpoint(tmp_path / name)
    assert not Payload.target.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.pt", None, "there is no such file"),
        ("torn.safetensors", b"\x10\0\0\0\0\0\0\0{", "is not safetensors"),
        ("text.pt", b"hello", "is no plain state dict"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        load_checkpoint(tmp_path / name)


def test_a_whole_pickled_model_is_refused_with_the_way_out(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(RecipeError, match=r"save model\.state_dict"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_checkpoint_that_does_not_fit_lists_the_first_keys_that_differ(tiny_recipe):
    with user_code(tiny_recipe.parent):
        state = load_model(load_recipe(str(tiny_recipe))).state_dict()
    state["a.weight"] = torch.zeros(4, 1, 3, 3)
    state["stray.weight"] = state.pop("b.bias")
    save_file(state, tiny_recipe.parent / "other.safetensors")
    recipe = load_recipe(str(tiny_recipe), {"model.checkpoint": "other.safetensors"})
    words = r"b.bias is missing; stray.weight is not the model's; a.weight is \[4, 1, 3, 3\]"
    with user_code(tiny_recipe.parent), pytest.raises(RecipeError, match=words):
        load_model(recipe)


def test_a_checkpoint_changes_the_weights(tiny_recipe):
    with user_code(tiny_recipe.parent):
        state = load_model(load_recipe(str(tiny_recipe), {"model.args": {"seed": 9}})).state_dict()
        save_file(state, tiny_recipe.parent / "nine.safetensors")
        recipe = load_recipe(str(tiny_recipe), {"model.checkpoint": "nine.safetensors"})
        assert torch.equal(load_model(recipe).state_dict()["a.weight"], state["a.weight"])


def test_weights_behind_a_prefix_are_found_and_others_left_alone(tiny_recipe):
    with user_code(tiny_recipe.parent):
        state = load_model(load_recipe(str(tiny_recipe), {"model.args": {"seed": 9}})).state_dict()
        wrapped = {f"module.{name}": one for name, one in state.items()}
        save_file({**wrapped, "step": torch.ones(1)}, tiny_recipe.parent / "nine.safetensors")
        given = {"model.checkpoint": "nine.safetensors", "model.prefix": "module."}
        recipe = load_recipe(str(tiny_recipe), given)
        assert torch.equal(load_model(recipe).state_dict()["a.weight"], state["a.weight"])
        wrong = load_recipe(str(tiny_recipe), {**given, "model.prefix": "modle."})
        with pytest.raises(RecipeError, match=r"begins with 'modle\.'; the first are module\.a"):
            load_model(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and nothing to refuse")
def test_a_constructor_that_needs_a_gpu_is_told_to_build_on_the_cpu(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\ndef make(device): return torch.nn.Linear(2, 2, device=device)\n"
    )
    with pytest.raises(
        ModelError, match=r"model.py, line 2\); there is no CUDA here: .*model\.args"
    ):
        call(tmp_path, "model.py:make", device="cuda")
    assert call(tmp_path, "model.py:make", device="cpu").in_features == 2
