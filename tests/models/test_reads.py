"""What the user's code reads is found by watching it."""

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from edgekit.models.load import call_factory, user_code
from edgekit.models.reads import recorded

MODEL = """
import json
import pathlib
import numpy as np
import helper


def make():
    here = pathlib.Path(__file__).parent
    (here / "made.txt").write_text("an output, and no input")
    (here / "made.txt").read_text()
    names = sorted(path.name for path in (here / "pictures").iterdir())
    return json.loads((here / "settings.json").read_text()), np.load(here / "data.npy"), names
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text("import sklearn.utils\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "settings.json").write_text("{}")
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
    assert mine == {"model.py", "helper.py", "settings.json", "data.npy"}
    assert str(folder / "pictures") in reads.folders
    assert str(folder) not in reads.folders  # Python looked for modules there.


def test_an_installed_package_stands_with_its_version(folder, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    reads = reads_of(folder)
    assert reads.packages["scikit-learn"] == metadata.version("scikit-learn")
    assert not [name for name in reads.files if "site-packages" in name]


def test_nothing_is_recorded_outside(folder):
    with recorded() as reads:
        pass
    (folder / "settings.json").read_text()
    assert str(folder / "settings.json") not in reads.files


def test_edgekits_own_files_and_the_systems_are_no_inputs(folder):
    with recorded() as reads, Path("/proc/self/stat").open() as stream:
        stream.read()
    assert not [name for name in reads.files if name.startswith("/proc/")]
    assert not [name for name in reads.files if "/edgekit/" in name]
