"""The device: what a bundle installs out of its own files, and nothing of the host's."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekit.bundle.reader import read_bundle
from tests.conftest import ROOT, digits_for, once

OLDEST = (3, 10)
"""What JetPack 6 has, and the oldest Python that a device may have."""

HOST_ONLY = (
    "torch", "onnx", "onnxscript", "onnx_ir", "yaml", "safetensors", "sklearn", "matplotlib",
)  # fmt: skip

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, edgekit.bundle, edgekit.runtime
for package in (edgekit.bundle, edgekit.runtime):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


TFLITE_RUNTIME = ((3, 9), (3, 11))
"""The oldest and the newest Python that the last tflite-runtime has wheels for."""


def oldest_python() -> str:
    """Python 3.10 if this machine has one, else the Python of the tests."""
    name = "python{}.{}".format(*OLDEST)
    found = [shutil.which(name), *map(str, Path.home().glob(f".pyenv/versions/*/bin/{name}"))]
    for candidate in filter(None, found):
        if subprocess.run([candidate, "-c", ""], check=False, capture_output=True).returncode == 0:
            return candidate
    return sys.executable


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
        subprocess.run(command, check=True)

    (found,) = once(tmp_path_factory, "wheel", make).glob("edgekit-*.whl")
    return found


@pytest.fixture(scope="session")
def device(tmp_path_factory, digits_bundle: Path) -> Path:
    """The `bin` of an environment as a device has it: what the bundle says, and nothing else."""

    def make(folder: Path) -> None:
        subprocess.run([oldest_python(), "-m", "venv", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "-r"]
        subprocess.run([*pip, digits_bundle / "install/requirements.txt"], check=True)

    return once(tmp_path_factory, "device", make) / "bin"


def run(device: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [device / str(command[0]), *map(str, command[1:])],
        capture_output=True, text=True, check=False, cwd=device.parent, env=environment,
    )  # fmt: skip


def test_every_module_of_runtime_and_bundle_imports_without_the_host_side(device):
    for name in HOST_ONLY:
        assert run(device, "python", "-c", f"import {name}").returncode == 1, name
    ended = run(device, "python", "-W", "error", "-c", IMPORT_EVERYTHING)
    assert ended.returncode == 0, ended.stderr
    assert not set(HOST_ONLY) & set(ended.stdout.split())


@pytest.mark.parametrize(
    "command",
    ["", "build", "inspect", "run", "verify", "bench", "report", "compare", "targets", "doctor"],
)
def test_every_help_works_on_a_device(device, command):
    ended = run(device, "edgekit", *command.split(), "--help")
    assert ended.returncode == 0, ended.stderr
    assert "Usage" in ended.stdout


def test_a_copied_bundle_is_verified_run_and_measured_on_a_device(device, digits_bundle, tmp_path):
    bundle = shutil.copytree(digits_bundle, tmp_path / "digits")
    ended = run(device, "edgekit", "verify", bundle)
    assert ended.returncode == 0, ended.stderr
    picture = ROOT / "recipes/digits/samples/test-000-label-3.png"
    ended = run(device, "edgekit", "run", bundle, picture, "--json", "-")
    assert json.loads(ended.stdout)["predictions"][0]["label"] == "3"
    ended = run(device, "edgekit", "bench", bundle, "--rounds", 1, "--json", "-")
    assert json.loads(ended.stdout)["samples"] == 360
    assert run(device, "edgekit", "inspect", bundle).returncode == 0


@pytest.mark.parametrize(
    "command", [["build", "digits"], ["inspect", "digits"], ["targets"], ["report", "digits"]]
)
def test_host_commands_say_on_a_device_what_is_missing(device, command):
    ended = run(device, "edgekit", *command)
    assert ended.returncode == 4
    assert "pip install 'edgekit[build]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_doctor_says_what_a_device_can_do(device):
    ended = run(device, "edgekit", "doctor")
    assert ended.returncode == 0
    assert "run bundles      yes, with onnxruntime" in ended.stdout
    assert "build bundles    no" in ended.stdout


def test_doctor_finds_all_that_a_bundle_wants_where_it_was_installed(device, digits_bundle):
    ended = run(device, "edgekit", "doctor", digits_bundle, "--json", "-")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["unmet"] == []
    assert "digits           as it wants" in ended.stderr


def test_an_environment_without_an_engine_says_which_to_install(device, digits_bundle):
    hide = (
        "import sys; sys.modules['onnxruntime'] = None; sys.argv[0] = 'edgekit';"
        "from edgekit.cli import main; main()"
    )
    ended = run(device, "python", "-c", hide, "verify", digits_bundle)
    assert ended.returncode == 4
    assert "pip install 'edgekit[onnxruntime]'" in ended.stderr


def test_the_wheel_ships_targets_and_recipes_and_no_rubbish(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgekit/_shipped/targets/host.yaml" in names
    assert "edgekit/_shipped/recipes/digits/digits.safetensors" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]


def test_recipes_and_targets_are_found_from_an_installed_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", "from edgekit.shipped import shipped; print(shipped('recipes'))"],
        check=True, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": "."},
    )  # fmt: skip
    folder = Path(ended.stdout.strip())
    assert folder == tmp_path / "edgekit/_shipped/recipes"
    assert (folder / "digits/recipe.yaml").is_file()


def test_a_device_has_what_the_bundle_pins_and_nothing_else(device, digits_bundle):
    ended = run(device, "python", "-m", "pip", "list", "--format", "json")
    found = {one["name"].lower().replace("_", "-"): one for one in json.loads(ended.stdout)}
    pinned = read_bundle(digits_bundle).manifest.requirements.packages
    allowed = {line.partition(" ;")[0] for line in pinned}
    assert {f"{name}=={one['version']}" for name, one in found.items()} - allowed <= {
        f"{name}=={found[name]['version']}" for name in ("pip", "setuptools") if name in found
    }
    assert f"edgekit=={found['edgekit']['version']}" == pinned[0]
    assert {"numpy", "onnxruntime", "pillow", "typer"} <= found.keys()


def test_an_installed_edgekit_makes_the_wheel_that_it_came_in(device, digits_bundle):
    program = "from edgekit.wheels import own_wheel; print(own_wheel().version)"
    ended = run(device, "python", "-c", program)
    assert ended.returncode == 0, ended.stderr
    pinned = read_bundle(digits_bundle).manifest.requirements.packages
    assert pinned[0] == f"edgekit=={ended.stdout.strip()}"


@pytest.fixture(scope="session")
def old_device(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The `bin` of an environment with the last tflite-runtime, which wants a numpy of its time."""
    least, most = TFLITE_RUNTIME
    asked = [oldest_python(), "-c", "import sys; print(*sys.version_info[:2])"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    found = tuple(map(int, said.split()))
    if not least <= found <= most:
        pytest.skip("tflite-runtime 2.14 has no wheel for Python {}.{}".format(*found))

    def make(folder: Path) -> None:
        subprocess.run([oldest_python(), "-m", "venv", folder], check=True)
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
        wanted = ["tflite-runtime==2.14.0", "numpy<2", "pillow", wheel]
        subprocess.run([*pip, *wanted], check=True)

    return once(tmp_path_factory, "old-device", make) / "bin"


def test_the_last_tflite_runtime_gives_the_golden_outputs(old_device, tmp_path_factory):
    bundle = digits_for(tmp_path_factory, "rpi4b-litert")
    ended = run(old_device, "edgekit", "verify", bundle, "--json", "-")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["engine"] == "tflite-runtime 2.14.0"
    assert found["golden"]["samples"] == 8
    assert max(found["golden"]["max_relative_error"].values()) <= found["golden"]["limit"]
    pictures = sorted((ROOT / "recipes/digits/samples").glob("*.png"))
    ended = run(old_device, "edgekit", "run", bundle, *pictures, "--json", "-")
    assert ended.returncode == 0, ended.stderr
    for one in json.loads(ended.stdout)["predictions"]:
        assert f"label-{one['label']}" in one["file"]
