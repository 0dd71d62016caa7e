"""What the user's code reads is found by watching it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgekit.models.load import call_factory, user_code
from edgekit.models.reads import origin_of, recorded

MODEL = """
import json
import pathlib
import numpy as np
import helper
from safetensors.torch import load_file


def make():
    here = pathlib.Path(__file__).parent
    (here / "made.txt").write_text("an output, and no input")
    (here / "made.txt").read_text()
    try:
        (here / "absent.txt").read_text()
    except FileNotFoundError:
        pass
    np.memmap(here / "mapped.bin", mode="r+")
    load_file(here / "weights.safetensors")
    names = sorted(path.name for path in (here / "pictures").iterdir())
    return json.loads((here / "settings.json").read_text()), np.load(here / "data.npy"), names


def here():
    return sorted(pathlib.Path(__file__).parent.glob("*.npy"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text("import sklearn.utils\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "mapped.bin").write_bytes(bytes(8))
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    np.save(tmp_path / "data.npy", np.zeros(3))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").touch()
    return tmp_path


def reads_of(folder, factory="model.py:make"):
    with user_code(folder), recorded() as reads:
        call_factory(factory, {}, folder)
    return reads


def test_modules_and_opened_files_are_found_and_written_ones_are_not(folder):
    reads = reads_of(folder)
    mine = {name.removeprefix(f"{folder}/") for name in reads.files if str(folder) in name}
    assert mine == {
        "model.py", "helper.py", "settings.json", "data.npy",
        "absent.txt", "mapped.bin", "weights.safetensors",
    }  # fmt: skip
    assert str(folder / "pictures") in reads.folders
    assert str(folder) not in reads.folders  # Python looked for modules there, the code did not.
    assert reads.modules["helper"] == str(folder / "helper.py")


def test_a_folder_that_the_code_lists_is_found_though_modules_lie_in_it(folder):
    assert str(folder) in reads_of(folder, "model.py:here").folders


def test_the_files_of_a_package_that_edgekit_does_not_need_are_found_however_often(folder):
    """A notebook imports it once, and builds twice."""
    for _ in range(2):
        found = [name for name in reads_of(folder).files if "/sklearn/utils/" in name]
        assert [name for name in found if name.endswith("/sklearn/utils/__init__.py")]


def test_nothing_is_recorded_outside(folder):
    with recorded() as reads:
        pass
    (folder / "settings.json").read_text()
    assert str(folder / "settings.json") not in reads.files


def test_what_edgekit_and_python_read_for_themselves_is_no_input():
    """In a process of its own: the modules of the tests are some user's as well."""
    code = (
        "import torch, rich, json, xml.dom, pathlib, edgekit.pipeline\n"
        "from edgekit.models.reads import recorded\n"
        "with recorded() as reads:\n"
        "    import decimal, onnx.helper\n"
        "    pathlib.Path('/proc/self/stat').read_text()\n"
        "print(*reads.files, *reads.folders)"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd="/"
    )
    assert ended.stdout.split() == []


def test_the_origin_of_a_module_is_where_python_would_find_it(folder):
    assert origin_of("helper", sys.path) is None
    assert origin_of("helper", [str(folder), *sys.path]) == str(folder / "helper.py")
    assert Path(str(origin_of("json", sys.path))).parent.name == "json"
