"""What a device installs: edgekit's wheel out of the package itself, and pins that fit together."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename
from packaging.version import Version

import edgekit
from edgekit.errors import BuildError
from edgekit.target import load_target
from edgekit.wheels import Wheel, own_wheel, pins, pins_for, requirements_file, wheelhouse
from tests.conftest import write_tiny_recipe

PACKAGE = Path(edgekit.__file__).parent
HERE = "{}.{}".format(*sys.version_info)

WRITE = "import sys; from edgekit.wheels import own_wheel; sys.stdout.buffer.write(own_wheel()[2])"


def written_by(package: Path) -> bytes:
    """The wheel that a copy of edgekit makes of itself."""
    return subprocess.run(
        [sys.executable, "-c", WRITE],
        check=True, capture_output=True, cwd=package.parent, env={"PYTHONPATH": "."},
    ).stdout  # fmt: skip


def pip(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    return own_wheel()


@pytest.fixture(scope="module")
def names(wheel: Wheel) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(wheel.content)).namelist()


def test_another_copy_of_the_same_files_gives_the_same_bytes(wheel, tmp_path):
    copy = tmp_path / "another place" / "edgekit"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # What lies there when it is installed, or was edited, and belongs to nobody's device.
    (copy / "_shipped/targets").mkdir(parents=True)
    (copy / "_shipped/targets/host.yaml").write_text("engine: none")
    (copy / ".errors.py.swp").write_bytes(b"half")
    for file in copy.rglob("*.py"):
        file.chmod(0o600)
        os.utime(file, (0, 1_000_000_000))
    assert written_by(copy) == wheel.content


def test_other_content_is_another_version(wheel, tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "edgekit")
    with (copy / "errors.py").open("a") as stream:
        stream.write("# A remark.\n")
    other = zipfile.ZipFile(io.BytesIO(written_by(copy))).namelist()
    assert not [name for name in other if name.startswith(f"edgekit-{wheel.version}")]


def test_the_version_is_the_release_and_a_label_that_pip_reads_back(wheel):
    _, version, _, tags = parse_wheel_filename(wheel.name)
    assert str(version) == wheel.version
    assert version.public == edgekit.__version__
    assert [str(tag) for tag in tags] == ["py3-none-any"]
    # Digits alone would be a number, whose leading zeros are lost.
    assert str(Version(f"{edgekit.__version__}+h01234567")).endswith("+h01234567")
    assert wheel.version.partition("+h")[2].isalnum()


def test_the_wheel_holds_the_package_and_no_rubbish(names):
    code = {f"edgekit/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    assert code <= set(names)
    assert "edgekit/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or "_shipped" in name]


def test_what_editors_and_checkers_leave_in_a_checkout_is_not_shipped(monkeypatch, tmp_path):
    package = tmp_path / "edgekit"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("edgekit.__file__", str(package / "__init__.py"))
    before = own_wheel()
    (package / "notes.py~").write_text("secret")
    (package / ".mypy_cache").mkdir()
    (package / ".mypy_cache/rubbish.py").write_text("")
    assert own_wheel() == before


def test_the_record_lists_every_file_as_it_is(wheel):
    archive = zipfile.ZipFile(io.BytesIO(wheel.content))
    record = f"edgekit-{wheel.version}.dist-info/RECORD"
    rows = list(csv.reader(archive.read(record).decode().splitlines()))
    assert [row[0] for row in rows] == archive.namelist()
    assert rows.pop() == [record, "", ""]
    for name, digest, size in rows:
        content = archive.read(name)
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={expected}", len(content))


def test_the_metadata_asks_for_what_edgekit_asks_for(wheel, tmp_path):
    (tmp_path / wheel.name).write_bytes(wheel.content)
    with zipfile.ZipFile(tmp_path / wheel.name) as archive:
        archive.extractall(tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    here = importlib.metadata.distribution("edgekit")
    assert (found.name, found.version) == ("edgekit", wheel.version)
    assert found.requires == here.requires
    assert found.metadata["Requires-Python"] == here.metadata["Requires-Python"]
    assert [(one.name, one.value) for one in found.entry_points] == [
        ("edgekit", "edgekit.cli:main")
    ]
    assert "Apache License" in (found.read_text("licenses/LICENSE") or "")


def test_metadata_of_another_release_says_to_install_again(monkeypatch):
    monkeypatch.setattr(edgekit, "__version__", "9.0.0")
    with pytest.raises(BuildError, match=r"code is of version 9\.0\.0.*pip install -e \."):
        own_wheel()


def test_making_a_wheel_imports_nothing_heavy():
    program = "import sys, edgekit.wheels; edgekit.wheels.own_wheel(); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert not {b"torch", b"onnx", b"numpy", b"yaml"} & set(ended.stdout.split())


def test_pip_replaces_an_older_copy_of_the_same_release(wheel, tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "other/edgekit")
    (copy / "marker.py").write_text("")
    other = written_by(copy)
    shelf = tmp_path / "a shelf"
    shelf.mkdir()
    # A wheel's list of its files comes last: edgekit-VERSION.dist-info/RECORD
    info = zipfile.ZipFile(io.BytesIO(other)).namelist()[-1].partition(".dist-info")[0]
    label = info.removeprefix("edgekit-")
    (shelf / f"{info}-py3-none-any.whl").write_bytes(other)
    (shelf / wheel.name).write_bytes(wheel.content)
    device = tmp_path / "device"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", device], check=True)
    for version, has_marker in ((label, True), (wheel.version, False), (label, True)):
        (shelf / "requirements.txt").write_bytes(requirements_file([f"edgekit=={version}"]))
        ended = pip(
            *("--python", device / "bin/python", "install", "--no-index", "--no-deps"),
            *("-r", shelf / "requirements.txt"),
        )
        assert ended.returncode == 0, ended.stderr
        command = [device / "bin/python", "-I", "-c", "import edgekit.marker"]
        found = subprocess.run(command, check=False, capture_output=True)
        assert (found.returncode == 0) is has_marker


def test_every_shipped_engine_has_pins_for_every_python_of_its_targets():
    for name in ("host", "rpi4b", "rpi5"):
        target = load_target(name)
        for python in target.python:
            found = pins_for(pins(target.engine), python, target.machine)
            packages = [line.partition("==")[0] for line in found]
            assert len(packages) == len(set(packages))
            assert {"numpy", "onnxruntime", "pillow", "typer"} <= set(packages)


def test_pins_are_chosen_for_the_devices_python_and_not_ours():
    lines = pins("onnxruntime")
    assert "onnxruntime==1.23.2" in pins_for(lines, "3.10", "aarch64")
    assert "onnxruntime==1.23.2" not in pins_for(lines, "3.11", "aarch64")
    lines = ["a==1 ; platform_machine == 'aarch64'", "b==1 ; sys_platform == 'win32'"]
    assert pins_for(lines, "3.10", "aarch64") == ["a==1"]
    assert pins_for(lines, "3.10", "x86_64") == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_a_devices_requirements_resolve_on_aarch64(wheel, tmp_path, python):
    target = load_target("rpi4b")
    (tmp_path / wheel.name).write_bytes(wheel.content)
    wanted = [f"edgekit=={wheel.version}", *pins_for(pins(target.engine), python, target.machine)]
    ended = pip(
        *("install", "--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:"),
        *(f"--python-version={python}", *(f"--platform={tag}" for tag in target.platforms)),
        *("--target", tmp_path / "out", "--report", tmp_path / "report.json"),
        # pip holds this against its own Python, whichever it is asked for; it is looked at below.
        *("--ignore-requires-python", "--find-links", tmp_path, *wanted),
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    found = [one["metadata"] for one in report["install"]]
    # Nothing beside the pins: what is not pinned would be another version tomorrow.
    names = {f"{one['name'].lower().replace('_', '-')}=={one['version']}" for one in found}
    assert names == set(wanted)
    for one in found:
        assert f"{python}.0" in SpecifierSet(one.get("requires_python", "")), one["name"]
    files = [one["download_info"]["url"].rpartition("/")[2] for one in report["install"]]
    assert all("aarch64" in file or file.endswith("-any.whl") for file in files)


def test_wheels_for_several_pythons_are_fetched_once(wheel, tmp_path, monkeypatch):
    (tmp_path / wheel.name).write_bytes(wheel.content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", tmp_path.as_uri())
    told: list[str] = []
    lines = [f"edgekit=={wheel.version}", "never==1 ; python_version < '3'"]
    found = wheelhouse(lines, ["3.10", "3.13"], ["manylinux_2_28_aarch64"], "aarch64", told.append)
    assert found == {wheel.name: wheel.content}
    assert told == ["wheels for Python 3.10", "wheels for Python 3.13"]


def test_a_wheel_that_cannot_be_had_is_named_with_its_python(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(BuildError, match=r"Python 3\.12 on aarch64 \(.*numpy==2\.0\.0\).*index"):
        wheelhouse(["numpy==2.0.0"], ["3.12"], [], "aarch64", lambda text: None)


def test_without_pip_the_wheelhouse_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"has no pip: .*ensurepip"):
        wheelhouse([], ["3.12"], [], None, lambda text: None)


@pytest.mark.slow
def test_a_bundle_with_wheels_is_installed_without_a_network(cli, tmp_path):
    recipe = write_tiny_recipe(tmp_path / "tiny")
    ended = cli(
        "build", recipe, "--wheelhouse", "--output", tmp_path / "bundle",
        "--set", f'target.python=["{HERE}"]', "--set", f"target.machine={platform.machine()}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert f"for Python >={HERE},<3." in ended.out
    device = tmp_path / "device"
    subprocess.run([sys.executable, "-m", "venv", device], check=True)
    alone = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull}
    install = [device / "bin/pip", "install", "--quiet", "--no-index", "-r"]
    subprocess.run([*install, tmp_path / "bundle/install/requirements.txt"], check=True, env=alone)
    subprocess.run([device / "bin/edgekit", "verify", tmp_path / "bundle"], check=True, env=alone)
