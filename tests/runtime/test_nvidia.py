import json
import os
from pathlib import Path

import pytest

from edgekit.runtime import nvidia
from edgekit.runtime.nvidia import Nvidia, Python
from tests.runtime import boards

COMPLETE = ("tensorrt", "cuda.bindings", "onnxruntime-gpu")


def found(root: Path, version: str, *modules: str, virtual: bool = True) -> Nvidia:
    one = nvidia.look(root, Python(version, virtual, modules))
    assert one is not None
    return one


def system_tensorrt(root: Path, version: str) -> Path:
    """As python3-libnvinfer installs it."""
    boards.lay(root, {f"usr/lib/python{version}/dist-packages/tensorrt/__init__.py": ""})
    return root


def t4(root: Path) -> Path:
    return boards.lay(
        root,
        {
            "proc/driver/nvidia/gpus/0000:00:1e.0/information": "Model: \t\t Tesla T4\n"
            "IRQ:   \t\t 11\nGPU UUID: \t GPU-????????-????-????-????-????????????\n",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "
            "550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc version 11.4.0",
        },
    )


def test_an_agx_orin_that_has_all_lacks_nothing(tmp_path: Path) -> None:
    boards.program(boards.agx_orin(tmp_path), "nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    machine = found(system_tensorrt(tmp_path, "3.10"), "3.10", *COMPLETE)
    assert nvidia.refusal(machine) is None
    assert nvidia.advice(machine) == []
    facts = machine.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert (facts["jetson_linux"], facts["jetpack"]) == ("36.4.7", "6.2.1")
    assert facts["power_mode"] == "MAXN"


def test_a_virtual_environment_that_does_not_see_jetpacks_tensorrt(tmp_path: Path) -> None:
    boards.orin_nano(system_tensorrt(tmp_path, "3.10"))
    machine = found(tmp_path, "3.10", "cuda.bindings", "onnxruntime-gpu")
    assert nvidia.advice(machine) == [
        "see JetPack's TensorRT from this virtual environment: make it anew with "
        "python3.10 -m venv --system-site-packages FOLDER"
    ]


def test_a_jetson_without_tensorrt_is_told_the_package_and_the_environment(tmp_path: Path) -> None:
    machine = found(boards.orin_nano(tmp_path), "3.10", "pycuda", "onnxruntime-gpu")
    package, environment = nvidia.advice(machine)
    assert package == "use TensorRT: sudo apt install python3-libnvinfer"
    assert "--system-site-packages" in environment
    outside = found(tmp_path, "3.10", "pycuda", "onnxruntime-gpu", virtual=False)
    assert nvidia.advice(outside) == [package]


def test_a_python_that_jetpacks_modules_are_not_made_for_is_named(tmp_path: Path) -> None:
    boards.lay(tmp_path, boards.identity("NVIDIA Jetson AGX Thor Developer Kit", "38.4.0"))
    system_tensorrt(tmp_path, "3.12")
    assert nvidia.advice(found(tmp_path, "3.12", *COMPLETE)) == []
    tensorrt, cuda, onnxruntime = nvidia.advice(found(tmp_path, "3.11"))
    assert tensorrt.startswith(
        "see JetPack 7's TensorRT, made for Python 3.12, from this Python 3.11: "
    )
    assert tensorrt.endswith("python3.12 -m venv --system-site-packages FOLDER")
    assert cuda.endswith("pip install 'edgekit[cuda13]'")
    assert "made for JetPack 7" in onnxruntime


XAVIER = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64"


def test_a_xavier_is_refused_with_a_way_out_and_no_more_advice(tmp_path: Path) -> None:
    boards.lay(
        tmp_path,
        {"proc/device-tree/model": "NVIDIA Jetson Xavier NX\0", "etc/nv_tegra_release": XAVIER},
    )
    machine = found(tmp_path, "3.10")
    refused = nvidia.refusal(machine)
    assert refused is not None
    assert "JetPack 5.1.2 has TensorRT 8" in refused
    assert "JetPack 6 runs on Orin only" in refused
    assert "trtexec" in refused
    assert nvidia.advice(machine) == []


def test_an_orin_with_an_old_jetpack_is_told_to_update(tmp_path: Path) -> None:
    boards.agx_orin(tmp_path)
    boards.lay(tmp_path, {"etc/nv_tegra_release": XAVIER})
    refused = nvidia.refusal(found(tmp_path, "3.10"))
    assert refused is not None
    assert refused.endswith("install JetPack 6, which this board runs")


def test_a_machine_with_a_t4_is_known_by_its_driver(tmp_path: Path) -> None:
    machine = found(t4(tmp_path), "3.11")
    assert (machine.gpus, machine.driver, machine.board) == (("Tesla T4",), "550.54.15", None)
    assert nvidia.refusal(machine) is None
    assert nvidia.advice(machine) == [
        "use TensorRT: pip install 'tensorrt-cu12==10.*'",
        "use the GPU's memory from Python: pip install 'edgekit[cuda12]'",
        "run the same files in ONNX Runtime on the GPU: pip install 'edgekit[onnxruntime-cuda]'",
    ]


def test_tensorrt_rtx_serves_a_card_and_no_jetson(tmp_path: Path) -> None:
    modules = ("tensorrt_rtx", "cuda.bindings", "onnxruntime-gpu")
    assert nvidia.advice(found(t4(tmp_path / "t4"), "3.11", *modules)) == []
    jetson = found(boards.orin_nano(tmp_path / "nano"), "3.10", *modules)
    assert any("python3-libnvinfer" in line for line in nvidia.advice(jetson))


def test_a_gpu_that_this_user_may_not_open_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards.lay(boards.agx_orin(tmp_path), {"dev/nvmap": "", "dev/nvidia0": ""})
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path.name != "nvmap" and may(path, how))
    (line,) = nvidia.advice(found(tmp_path, "3.10", *COMPLETE))
    assert line.startswith("open /dev/nvmap: sudo usermod -aG video,render $USER")


def test_a_plain_machine_has_nothing_of_nvidias(tmp_path: Path) -> None:
    boards.lay(tmp_path, {"proc/cpuinfo": "model name : Some CPU"})
    assert nvidia.look(tmp_path) is None


def test_an_engine_counts_only_where_its_gpu_and_its_modules_are(tmp_path: Path) -> None:
    root = t4(tmp_path)
    plain = ["onnxruntime", "litert"]
    assert nvidia.engines(None) == plain
    assert nvidia.engines(found(root, "3.11", "tensorrt", "onnxruntime-gpu")) == plain
    both = found(root, "3.11", *COMPLETE)
    assert nvidia.engines(both) == ["onnxruntime", "onnxruntime-cuda", "tensorrt", "litert"]


@pytest.mark.parametrize("module", ["ai_edge_litert", "tflite_runtime"])
def test_either_package_of_litert_is_its_engine(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(nvidia, "_importable", lambda name: name == module)
    assert nvidia.engines(None) == ["litert"]


def test_this_python_is_described_without_importing_an_engine() -> None:
    here = Python.here()
    assert here.version.startswith("3.")
    assert set(here.modules) <= {
        *nvidia.CUDA_MODULES,
        "tensorrt",
        "tensorrt_rtx",
        "onnxruntime-gpu",
    }
