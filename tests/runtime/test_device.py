import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.manifest import GpuTarget, Requirements, Target
from edgekit.runtime.device import (
    describe,
    other_than_target,
    package_versions,
    pip_refuses,
    unmet,
)


def test_a_machine_is_described_in_plain_data() -> None:
    found = describe()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {
        *("machine", "cpu", "cores", "memory_bytes", "system", "python", "packages")
    }


def test_a_machine_is_described_as_it_is() -> None:
    found = describe()
    assert found["machine"] == platform.machine()
    assert found["python"] == platform.python_version()
    assert found["memory_bytes"] > 2**26
    assert found["cpu"].strip() == found["cpu"] != ""
    assert found["packages"]["numpy"] == np.__version__
    assert found["packages"]["edgekit"] == importlib.metadata.version("edgekit")


def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert describe()["cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert describe()["cores"] == len(allowed)


PI_4 = {"machine": "aarch64", "cpu": "Raspberry Pi 4 Model B Rev 1.4"}
PC = {"machine": "x86_64", "cpu": "Some CPU"}


def other(machine: str | None, board: str | None, facts: dict[str, str]) -> str | None:
    return other_than_target(Target("mine", "onnxruntime", "int8", 4, machine, board, None), facts)


T4 = Target(
    "t4", "tensorrt", "fp16", 1, "x86_64", None,
    GpuTarget("7.5", ">=10.3,<11", "tensorrt", 2**30, (1, 8), ()),
)  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "engine", "words"),
    [
        ({"name": "Tesla T4", "compute_capability": "7.5"}, None, None),
        ({"name": "Tesla T4", "compute_capability": "7.5"}, "tensorrt", None),
        ({"name": "NVIDIA A10", "compute_capability": "8.6"}, None, "NVIDIA A10 of compute"),
        (None, None, "no GPU that CUDA can use"),
        ({"name": "Tesla T4", "compute_capability": "7.5"}, "onnxruntime", "in onnxruntime"),
    ],
)
def test_a_target_with_a_gpu_is_that_gpu_in_its_own_engine(gpu, engine, words):
    found = other_than_target(T4, {**PC, "gpu": gpu}, engine)
    assert (found is None) == (words is None)
    assert words is None or words in (found or "")


def test_the_gpu_is_asked_for_only_where_that_was_said():
    assert "gpu" not in describe()
    found = describe(gpu=True)["gpu"]
    assert found is None or found["compute_capability"]


@pytest.mark.parametrize("facts", [PI_4, PC])
def test_a_target_that_names_no_machine_is_any(facts: dict[str, str]) -> None:
    assert other(None, None, facts) is None


def test_a_board_is_known_by_how_its_name_begins() -> None:
    assert other("aarch64", "Raspberry Pi 4", PI_4) is None
    assert other("aarch64", None, PI_4) is None
    assert other(None, "Raspberry Pi 4", PI_4) is None


@pytest.mark.parametrize(
    ("machine", "board", "facts", "words"),
    [
        (
            *("aarch64", "Raspberry Pi 4", PC),
            "built for mine (aarch64, Raspberry Pi 4); this is x86_64, Some CPU",
        ),
        (
            *("aarch64", "Raspberry Pi 5", PI_4),
            "built for mine (aarch64, Raspberry Pi 5); this is aarch64, Raspberry Pi 4 Model B "
            "Rev 1.4",
        ),
        ("armv7l", None, PI_4, "built for mine (armv7l); this is aarch64, Raspberry Pi 4 Model B "
         "Rev 1.4"),
    ],
)  # fmt: skip
def test_figures_of_one_device_are_not_taken_for_anothers(
    machine: str | None, board: str | None, facts: dict[str, str], words: str
) -> None:
    assert other(machine, board, facts) == words


WANTED = Requirements(
    ">=3.10,<3.14",
    (
        "edgekit==0.1.0+h1",
        "numpy==2.2.6 ; python_full_version < '3.11'",
        "numpy==2.4.6 ; python_full_version >= '3.11'",
        "onnxruntime==1.32.0",
    ),
)
HAD = {"edgekit": "0.1.0+h1", "numpy": "2.4.6", "onnxruntime": "1.32.0", "tensorrt": "10.3"}


@pytest.mark.parametrize("python", ["3.10.0", "3.13.9"])
@pytest.mark.parametrize("numpy", ["2.2.6", "2.4.6"])
def test_a_machine_with_all_that_is_wanted_lacks_nothing(python: str, numpy: str) -> None:
    assert unmet(WANTED, {"python": python, "packages": {**HAD, "numpy": numpy}}) == []


@pytest.mark.parametrize(
    ("python", "changes", "words"),
    [
        ("3.9.18", {}, "Python >=3.10,<3.14; this is 3.9.18"),
        ("3.14.0", {}, "Python >=3.10,<3.14; this is 3.14.0"),
        ("3.13.0", {"edgekit": "0.1.0"}, "edgekit 0.1.0+h1; here it is 0.1.0"),
        ("3.13.0", {"numpy": "2.4.5"}, "numpy 2.2.6 or 2.4.6; here it is 2.4.5"),
        ("3.13.0", {"onnxruntime": "1.3"}, "onnxruntime 1.32.0; here it is 1.3"),
    ],
)
def test_what_is_not_as_a_bundle_wants_it_is_named(
    python: str, changes: dict[str, str], words: str
) -> None:
    assert unmet(WANTED, {"python": python, "packages": {**HAD, **changes}}) == [words]


def test_an_engine_that_is_not_installed_is_named() -> None:
    packages = {name: version for name, version in HAD.items() if name != "onnxruntime"}
    assert unmet(WANTED, {"python": "3.12.0", "packages": packages}) == [
        "onnxruntime 1.32.0; here it is not installed"
    ]


def test_a_package_that_is_not_installed_is_left_out() -> None:
    assert package_versions(("numpy", "no-such-package-edgekit")) == {
        "numpy": importlib.metadata.version("numpy")
    }


def test_describing_a_machine_imports_no_engine() -> None:
    program = (
        "import sys\n"
        "from edgekit.runtime.device import describe\n"
        "assert 'onnxruntime' in describe()['packages']\n"
        "sys.exit('onnxruntime' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_board_whose_device_tree_is_hidden_is_known_by_its_cpuinfo(monkeypatch) -> None:
    cpuinfo = "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    files = {"/proc/cpuinfo": cpuinfo}
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in files)
    monkeypatch.setattr(Path, "read_text", lambda path, **options: files[str(path)])
    assert describe()["cpu"] == "Raspberry Pi 4 Model B Rev 1.4"


def test_pip_refuses_where_the_system_manages_its_python_and_not_in_a_venv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("sys.prefix", sys.base_prefix)
    assert not pip_refuses()
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert pip_refuses()
    monkeypatch.setattr("sys.prefix", "/home/pi/edgekit")
    assert not pip_refuses()
