"""Proofs on a real GPU. Without one they are skipped, and `make test-gpu` says that none ran."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.errors import DeviceError
from edgekit.runtime import cuda, tensorrt_api
from edgekit.runtime.gpu import Gpu
from edgekit.runtime.install import install
from tests.conftest import ROOT, once, write_tiny_recipe

MODELS = {
    "tiny-fp32": (None, "fp32"),
    "tiny-fp16": (None, "fp16"),
    "digits-fp16": (ROOT / "recipes/digits/recipe.yaml", "fp16"),
}
"""A recipe (None: the tests' own) and the precision it is built in."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Proofs that were asked for alone and did not run are no proofs."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.markexpr != "gpu" or reporter is None:
        return
    if not any(reporter.stats.get(one) for one in ("passed", "failed", "error")):
        reporter.write_line("\nno proof ran on a GPU: every one was skipped, for the reason below")
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Gpu:
    """The GPU of this machine."""
    try:
        return cuda.find().gpu()
    except DeviceError as error:
        pytest.skip(f"no GPU: {error}")


@dataclass(frozen=True)
class Built:
    """A bundle for a GPU, and the recipe that it was built from."""

    bundle: Bundle
    recipe: Path
    precision: str


@pytest.fixture(scope="session", params=list(MODELS))
def built(gpu: Gpu, request: pytest.FixtureRequest, tmp_path_factory) -> Built:
    """A bundle for a GPU, in one of the precisions."""
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    shipped, precision = MODELS[request.param]
    place = tmp_path_factory.mktemp("recipe") / "tiny"
    path = shipped or write_tiny_recipe(place)

    def make(folder: Path) -> None:
        # Whatever GPU and TensorRT are here: the segments are the same for all.
        target = load_target("jetson", {"precision": precision, "gpu.tensorrt": ">=10.3"})
        build(load_recipe(str(path)), target, folder)

    folder = once(tmp_path_factory, f"gpu-{request.param}", make)
    return Built(read_bundle(folder), path, precision)


@pytest.fixture(scope="session", params=["onnxruntime-cuda", "tensorrt"])
def engine(request: pytest.FixtureRequest, built: Built) -> str:
    """An engine that this machine has, with whatever it builds on the device built."""
    if request.param == "tensorrt":
        try:
            tensorrt_api.find()
        except DeviceError as error:
            pytest.skip(str(error))
        install(built.bundle)
    elif "CUDAExecutionProvider" not in _providers():
        pytest.skip("this onnxruntime has no CUDA: pip install 'edgekit[onnxruntime-cuda]'")
    return request.param


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return onnxruntime.get_available_providers()
