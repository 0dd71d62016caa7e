"""`edgekit install`, and the options of the commands that need what it builds."""

import json

import pytest

from edgekit.cli.engine import installed
from edgekit.cli.output import Terminal
from edgekit.errors import DeviceError
from edgekit.runtime import cuda, install
from tests.runtime.test_install import ORIN, Described, bundle, device  # noqa: F401  (fixtures)


@pytest.fixture
def _no_gpu():
    try:
        cuda.find().gpu()
    except DeviceError:
        return
    pytest.skip("there is a GPU here")


def test_a_bundle_that_needs_no_engines_says_so(cli, built_tiny):
    ended = cli("install", built_tiny, "--json", "-")
    assert (ended.code, json.loads(ended.out)["engines"]) == (0, [])
    assert "nothing to install: onnxruntime loads it as it is" in ended.err


def test_install_says_what_it_built_and_what_comes_next(cli, bundle, device):  # noqa: F811
    dry = cli("install", bundle.path, "--dry-run")
    assert dry.code == 0
    assert dry.out.count("to be built") == 5
    ended = cli("install", bundle.path, "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["gpu"]["compute_capability"] == "8.7"
    assert [one["proven"] for one in report["engines"]] == ["executed"] * 3 + ["built"] * 2
    assert "golden samples leave where they did on the host" in ended.err
    assert f"Next: edgekit bench {bundle.path}" in ended.err
    again = cli("install", bundle.path)
    assert again.out.count("was here") == 5
    assert cli("install", bundle.path, "--dry-run").out.count("executed") == 3


@pytest.mark.parametrize("command", ["verify", "bench", "run"])
def test_a_bundle_that_is_not_installed_names_the_command(
    cli,
    bundle,  # noqa: F811
    device,  # noqa: F811
    monkeypatch,
    tmp_path,
    command,
):
    files = [next((bundle.path / "golden").glob("*.png"))] if command == "run" else []
    monkeypatch.undo()  # The chain that the commands load is the installed one.
    monkeypatch.setattr(cuda, "find", lambda: Described(ORIN))
    ended = cli(command, bundle.path, *files)
    assert ended.code == DeviceError.exit_code
    assert f"{bundle.path} is not installed on this device" in ended.err
    assert ended.err.rstrip().endswith(f"edgekit install {bundle.path}")


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("command", ["verify", "bench", "install"])
def test_without_a_gpu_the_way_out_is_named(cli, jetson_tiny, command):
    ended = cli(command, jetson_tiny)
    assert ended.code == DeviceError.exit_code
    assert "--engine onnxruntime" in ended.err


@pytest.mark.usefixtures("_no_gpu")
def test_the_same_segments_run_on_the_processor(cli, jetson_tiny):
    ended = cli("verify", jetson_tiny, "--engine", "onnxruntime", "--json", "-")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["engine"].startswith("onnxruntime ")
    assert not report["on_target"]
    assert "no GPU that CUDA can use, in onnxruntime" in report["other_device"]
    ended = cli("bench", jetson_tiny, "--engine", "onnxruntime", "--rounds", "1")
    assert ended.code == 0, ended.err
    assert "These are not the target's figures" in ended.out


def test_an_engine_that_is_none_gets_the_list(cli, jetson_tiny):
    ended = cli("verify", jetson_tiny, "--engine", "tensorflow")
    assert "it has onnxruntime, onnxruntime-cuda, tensorrt" in ended.err


def test_a_bundle_that_installs_itself_is_built_first(cli, bundle, device):  # noqa: F811
    ended = cli("verify", bundle.path, "--install")
    assert ended.code == 0, ended.err
    assert "install" in ended.out
    assert "is sound." in ended.out
    assert cli("install", bundle.path, "--dry-run").out.count("executed") == 3


def test_bench_also_wants_the_undivided_networks(bundle, device):  # noqa: F811
    install.install(bundle, undivided=False)
    installed(Terminal(), bundle, None, install=True, undivided=False)
    plain = bundle.manifest.baselines[0].plain
    assert install.records(bundle, [plain]) == [None]
    installed(Terminal(), bundle, None, install=True)
    assert install.records(bundle, [plain]) != [None]
