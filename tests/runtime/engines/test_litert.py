"""LiteRT: a whole INT8 bundle of the tiny recipe, its files on the engine, and what it refuses."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.reader import read_bundle
from edgekit.errors import DeviceError
from edgekit.runtime.chain import Chain
from edgekit.runtime.engines import litert, load_engines
from edgekit.runtime.verify import verify_golden
from tests.conftest import once, write_tiny_recipe


@pytest.fixture(scope="session")
def litert_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's bundle for a Pi's other engine, asked for by the engine's name."""
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    def make(folder: Path) -> None:
        recipe = write_tiny_recipe(tmp_path_factory.mktemp("recipe") / "tiny")
        calibration = {"factory": "tiny.py:samples", "args": {"seed": 3}}
        # Of random weights and noise, where a tenth of the samples lie near a threshold.
        tolerance = {"min_exit_agreement": 0.5, "min_top1_agreement": 0.5}
        changes = {"data.calibration": calibration, "check.quantized": tolerance}
        target = load_target("rpi4b", {"engine": "litert"})
        build(load_recipe(str(recipe), changes), target, folder)

    return once(tmp_path_factory, "litert-tiny", make)


@pytest.fixture(scope="module")
def bundle(litert_tiny):
    return read_bundle(litert_tiny)


@pytest.fixture
def chain(bundle):
    return Chain.from_bundle(bundle, threads=1)


def segments(bundle):
    return [(one.name, bundle.read(one.path)) for one in bundle.manifest.variant().segments]


def test_the_target_with_its_engine_changed_is_a_whole_int8_bundle(bundle, chain):
    manifest = bundle.manifest
    assert (manifest.target.name, manifest.target.engine) == ("rpi4b", "litert")
    assert any(one.startswith("ai-edge-litert==") for one in manifest.requirements.packages)
    assert not any(one.startswith("onnxruntime") for one in manifest.requirements.packages)
    variant = manifest.variant()
    assert [Path(one.path).suffix for one in variant.segments] == [".tflite"] * 3
    crossing = [variant.tensors[one.inputs[0]] for one in variant.segments[1:]]
    assert [(one.dtype, one.shape) for one in crossing] == [("int8", (None, 8, 8, 8))] * 2
    assert verify_golden(bundle, chain).samples == 8
    assert chain.engines[0].version.startswith("ai-edge-litert ")


@pytest.mark.parametrize("rows", [1, 7, 8, 19])
def test_samples_get_the_same_answer_alone_and_in_a_batch_of_any_size(chain, rows):
    x = np.random.default_rng(rows).uniform(-2, 2, (rows, 1, 8, 8)).astype(np.float32)
    alone = [chain.one(one) for one in x]
    assert chain.many(x) == alone
    # Buffers are bound once: the next samples of the same number overwrite them.
    assert chain.many(x[::-1].copy()) == alone[::-1]


def test_compacted_batches_go_on_in_groups_and_one_by_one(chain):
    x = np.random.default_rng(1).uniform(-2, 2, (40, 1, 8, 8)).astype(np.float32)
    found = chain.many(x)
    assert len({one.exit for one in found}) > 1
    assert found == [chain.one(one) for one in x]
    made = [sorted(one._interpreters) for one in chain.engines]
    assert made[0] == [1, litert.GROUP_ROWS]


def test_outputs_go_by_the_signature_and_not_by_their_order(bundle):
    (name, content), *_ = segments(bundle)
    (engine,) = litert.load([(name, content)], threads=1)
    first = bundle.manifest.variant().segments[0]
    tensors = bundle.manifest.variant().tensors
    x = {one: np.ones((1, 1, 8, 8), np.float32) for one in first.inputs}
    given = []
    for names in (first.outputs, first.outputs[::-1]):
        out = {one: np.zeros((1, *tensors[one].shape[1:]), tensors[one].dtype) for one in names}
        engine.bind(x, out, 1)()
        given.append(out)
    for one in first.outputs:
        assert np.array_equal(given[0][one], given[1][one])
        assert given[0][one].any()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"no model at all",
        lambda content: content[: len(content) // 2],
        lambda content: content[:4] + b"XXXX" + content[8:],
    ],
)
def test_bytes_that_are_no_model_are_refused_with_the_segments_name(bundle, spoil, capfd):
    (_, content), *_ = segments(bundle)
    with pytest.raises(DeviceError, match="ai-edge-litert refuses segment-1"):
        load_engines("litert", [("segment-1", spoil(content))], threads=1)
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_a_tensor_that_the_file_does_not_name_is_refused_by_its_name(bundle):
    (engine,) = litert.load(segments(bundle)[:1], threads=1)
    with pytest.raises(DeviceError, match="segment-1: the file has no other in its signature"):
        engine.bind({"other": np.zeros((1, 1, 8, 8), np.float32)}, {}, 1)


def test_a_file_without_a_signature_is_refused(bundle):
    from edgekit.backends.tflite_graph import Graph

    graph = Graph(segments(bundle)[0][1])
    graph.model.signatureDefs = []
    with pytest.raises(DeviceError, match=r"ai-edge-litert refuses segment-1: .*[Ss]ignature"):
        litert.load([("segment-1", graph.program())], threads=1)


def test_an_interpreter_whose_package_goes_by_another_name_runs(bundle, monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(litert, "version", missing)
    (engine,) = litert.load(segments(bundle)[:1], threads=1)
    assert engine.version == "ai-edge-litert of unknown version"


def test_a_device_without_litert_is_told_what_to_install(monkeypatch):
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    litert._found.cache_clear()
    with pytest.raises(DeviceError, match=r"engine litert is not installed.*edgekit\[litert\]"):
        load_engines("litert", [("segment-1", b"")], threads=1)


def test_why_an_installed_interpreter_does_not_load_is_said(tmp_path, monkeypatch):
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert/__init__.py").touch()
    torn = "raise ImportError('libc.so.6: version GLIBC_2.99 not found')"
    (tmp_path / "ai_edge_litert/interpreter.py").write_text(torn)
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    litert._found.cache_clear()
    with pytest.raises(DeviceError, match=r"GLIBC_2\.99 not found; .*tflite_runtime"):
        load_engines("litert", [("segment-1", b"")], threads=1)


def test_threads_that_load_at_once_leave_standard_error_as_it_was(bundle):
    before = os.fstat(2)
    parts = segments(bundle)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: litert.load(parts, threads=1), range(40)))
    assert os.path.samestat(os.fstat(2), before)


def test_a_process_without_a_standard_error_loads(bundle):
    program = (
        "import os, sys; os.close(2); from edgekit.runtime import Chain; Chain.load(sys.argv[1])"
    )
    ended = subprocess.run([sys.executable, "-c", program, bundle.path], check=False)
    assert ended.returncode == 0


@pytest.mark.parametrize("spoil", [lambda x: x.astype(np.float64), lambda x: x[..., :2].copy()])
def test_a_tensor_that_is_another_in_the_file_is_refused(bundle, spoil):
    (name, content), *_ = segments(bundle)
    (engine,) = litert.load([(name, content)], threads=1)
    first, tensors = bundle.manifest.variant().segments[0], bundle.manifest.variant().tensors
    x = {one: np.ones((1, 1, 8, 8), np.float32) for one in first.inputs}
    out = {one: np.zeros((1, *tensors[one].shape[1:]), tensors[one].dtype) for one in first.outputs}
    boundary = first.outputs[0]
    out[boundary] = spoil(out[boundary])
    with pytest.raises(DeviceError, match=f"segment-1: {boundary} is int8.*rebuild the bundle"):
        engine.bind(x, out, 1)
