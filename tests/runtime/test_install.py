"""install: engines that TensorRT-RTX really builds, for a GPU that these tests only describe.

What stands in for the device is its description and the amount of its memory. The plans are real
ones, for compute capability 8.6; nothing here runs them, and the golden samples are answered by
ONNX Runtime.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest

from edgekit.bundle.reader import read_bundle
from edgekit.errors import (
    BuildError,
    CheckError,
    DeviceError,
    MismatchError,
    NotInstalledError,
    PlanError,
)
from edgekit.runtime import Chain, cuda, install, tensorrt_api
from edgekit.runtime.engines import load_engines
from edgekit.runtime.gpu import Gpu
from edgekit.runtime.plans import BUILT, EXECUTED, Store, folder_of
from edgekit.runtime.tensorrt_build import build_plan
from tests.runtime.cuda_standin import CudaStandIn

ORIN = Gpu("Orin", "8.7", 16, 32 * 2**30, "12.6")
CHAIN = ["segment-1", "segment-2", "segment-3"]


class Described:
    """Of CUDA only what a device says of itself."""

    def __init__(self, gpu: Gpu, free_bytes: int = 2**34) -> None:
        self._gpu = gpu
        self._free_bytes = free_bytes

    def gpu(self) -> Gpu:
        return self._gpu

    def memory_bytes(self) -> tuple[int, int]:
        return self._free_bytes, self._gpu.memory_bytes


@pytest.fixture
def device(monkeypatch):
    """A device as it is described, whose engines are compiled for a GPU that RTX knows."""

    def compiled(tensorrt, segment, name, options, **given):
        options = dataclasses.replace(options, compute_capability="8.6")
        return build_plan(tensorrt, segment, name, options, **given)

    def is_here(gpu: Gpu, free_bytes: int = 2**34) -> None:
        monkeypatch.setattr(cuda, "find", lambda: Described(gpu, free_bytes))

    monkeypatch.setattr(install, "build_plan", compiled)
    from_bundle = Chain.from_bundle
    monkeypatch.setattr(
        Chain,
        "from_bundle",
        lambda bundle, **given: from_bundle(bundle, **{**given, "engine": "onnxruntime"}),
    )
    is_here(ORIN)
    return is_here


@pytest.fixture
def bundle(jetson_tiny, tmp_path):
    return read_bundle(shutil.copytree(jetson_tiny, tmp_path / "tiny"))


def test_every_segment_is_built_once_and_found_again(bundle, device):
    done = install.install(bundle)
    assert done.gpu == ORIN
    assert done.tensorrt.startswith("tensorrt_rtx ")
    assert [one.segment for one in done.records] == [*CHAIN, "plain", "whole"]
    assert list(done.fresh) == [*CHAIN, "plain", "whole"]
    assert [one.proven for one in done.records] == [EXECUTED] * 3 + [BUILT] * 2
    again = install.install(bundle)
    assert again.fresh == ()
    assert again.records == done.records
    found = install.contents(bundle, bundle.manifest.variant().segments)
    assert [len(one) for one in found] == [one.size_bytes for one in done.records[:3]]


def test_the_bundle_stays_as_it_was_built(bundle, device):
    install.install(bundle, undivided=False)
    assert read_bundle(bundle.path).manifest == bundle.manifest
    assert folder_of(bundle.path).is_dir()


def test_the_chain_alone_is_enough_to_run(bundle, device):
    assert list(install.install(bundle, undivided=False).fresh) == CHAIN
    with pytest.raises(NotInstalledError, match="plain has no engine"):
        install.contents(bundle, [bundle.manifest.baselines[0].plain])


def test_what_was_interrupted_goes_on_where_it_was(bundle, device, monkeypatch):
    built = install.build_plan

    def stopped(tensorrt, segment, name, options, **given):
        if name == "segment-2":
            raise KeyboardInterrupt
        return built(tensorrt, segment, name, options, **given)

    monkeypatch.setattr(install, "build_plan", stopped)
    with pytest.raises(KeyboardInterrupt):
        install.install(bundle, undivided=False)
    monkeypatch.setattr(install, "build_plan", built)
    assert list(install.install(bundle, undivided=False).fresh) == CHAIN[1:]


def test_an_interrupt_amid_a_build_ends_it(bundle, device):
    def stop(text: str) -> None:
        if text.startswith("segment-1: "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install.install(bundle, step=stop)
    assert not list(folder_of(bundle.path).glob("*.json"))


def test_a_damaged_engine_is_built_anew_and_no_other(bundle, device):
    install.install(bundle, undivided=False)
    store, (_, second, _) = Store(bundle.path), bundle.manifest.variant().segments
    record = next(
        one
        for one in install.records(bundle, bundle.manifest.variant().segments)
        if one and one.segment == second.name
    )
    path = store.folder / f"{record.tie.key}.plan"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlanError, match="the engine of segment-2 is damaged"):
        install.contents(bundle, bundle.manifest.variant().segments)
    assert list(install.install(bundle, undivided=False).fresh) == ["segment-2"]


def test_a_damaged_record_is_built_anew(bundle, device):
    install.install(bundle, undivided=False)
    for path in folder_of(bundle.path).glob("*.json"):
        path.write_bytes(b"{}")
    assert list(install.install(bundle, undivided=False).fresh) == CHAIN


def test_all_is_built_anew_where_that_was_said(bundle, device):
    install.install(bundle, undivided=False)
    assert list(install.install(bundle, undivided=False, rebuild=True).fresh) == CHAIN


def test_another_device_is_refused_until_it_has_its_own(bundle, device):
    install.install(bundle, undivided=False)
    device(dataclasses.replace(ORIN, cuda="12.9"))
    with pytest.raises(MismatchError, match=r"built for CUDA 12\.6; here is CUDA 12\.9"):
        install.contents(bundle, bundle.manifest.variant().segments)
    assert list(install.install(bundle, undivided=False).fresh) == CHAIN
    device(ORIN)
    assert install.install(bundle, undivided=False).fresh == ()


def test_tensorrt_has_the_last_word_on_a_real_plan(bundle, device, monkeypatch):
    """The plan is sound, and TensorRT-RTX itself refuses it: there is no GPU to run it on."""
    adapter = cuda.CudaPython(CudaStandIn())
    monkeypatch.setattr(cuda, "find", lambda: adapter)
    install.install(bundle, undivided=False)
    contents = install.contents(bundle, bundle.manifest.variant().segments)
    with pytest.raises(PlanError, match=r"refuses the plan of segment-1.* --rebuild"):
        load_engines("tensorrt", list(zip(CHAIN, contents, strict=True)), threads=1)


def test_too_little_memory_names_what_is_missing_and_keeps_what_is_built(bundle, device):
    install.install(bundle, undivided=False)
    device(dataclasses.replace(ORIN, memory_bytes=2**40), free_bytes=2**20)
    with pytest.raises(DeviceError, match=r"plain: 1 MB of memory are free, and building its"):
        install.install(bundle)
    assert install.install(bundle, undivided=False).fresh == ()


def test_memory_that_is_shared_counts_what_files_are_cached_in():
    assert install._free_bytes(Described(ORIN, 1)) == 1
    shared = dataclasses.replace(ORIN, shares_memory=True)
    assert install._free_bytes(Described(shared, 1)) > 2**20


def test_engines_that_answer_otherwise_are_not_used_and_built_anew(bundle, device, monkeypatch):
    def refused(bundle, chain):
        raise CheckError("leaves elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(install, "verify_golden", refused)
        with pytest.raises(CheckError):
            install.install(bundle, undivided=False)
    segments = bundle.manifest.variant().segments
    assert install.records(bundle, segments) == [None] * 3
    with pytest.raises(PlanError, match="answered the golden samples otherwise"):
        install.contents(bundle, segments)
    assert list(install.install(bundle, undivided=False).fresh) == CHAIN


def test_a_rebuild_that_fails_keeps_what_was_sound(bundle, device, monkeypatch):
    install.install(bundle, undivided=False)
    with monkeypatch.context() as patch:
        patch.setattr(install, "build_plan", lambda *given, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            install.install(bundle, undivided=False, rebuild=True)
    assert install.install(bundle, undivided=False).fresh == ()


def test_a_bundle_of_another_engine_has_nothing_to_install(built_tiny):
    with pytest.raises(DeviceError, match="onnxruntime loads its segments as they are"):
        install.install(read_bundle(built_tiny))


def test_a_tensorrt_that_the_bundle_does_not_want_is_refused(bundle, device, monkeypatch):
    rtx = tensorrt_api.find((tensorrt_api.RTX,))
    old = rtx._replace(name=tensorrt_api.FULL, version="8.6.2")
    monkeypatch.setattr(tensorrt_api, "find", lambda: old)
    with pytest.raises(DeviceError, match=r"wants TensorRT >=10\.3,<11, and here is 8\.6\.2"):
        install.install(bundle)


@pytest.mark.parametrize(
    ("version", "bounds", "within"),
    [
        ("10.3.0", ">=10.3,<11", True),
        ("10.3.0.30", ">=10.3,<11", True),
        ("10.16.1.11", ">=10.3,<11", True),
        ("10.2.9", ">=10.3,<11", False),
        ("11.0.0.114", ">=10.3,<11", False),
        ("8.6.2", ">=10.3,<11", False),
        ("10.3.0", "==10.3", True),
        ("10.13.0", "==10.3", False),
        ("10.3.0.post1", "<=10.3", True),
        ("10.4.0", ">10.3", True),
        ("10.3.5", ">10.3", False),
        ("10.4", "!=10.4", False),
        ("11.4.0.106", ">=10.13,<12", True),
    ],
)
def test_versions_are_held_against_a_range_as_pip_reads_it(version, bounds, within):
    assert install._within(version, bounds) == within


def test_without_a_gpu_the_way_out_is_named(bundle):
    try:
        cuda.find().gpu()
    except DeviceError:
        pass
    else:
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match=r"--engine onnxruntime$"):
        install.install(bundle)


def test_a_place_that_cannot_be_written_leaves_all_as_it_was(bundle, device):
    folder_of(bundle.path).write_text("in the way")
    with pytest.raises(BuildError, match="cannot be written"):
        install.install(bundle)


def test_what_is_there_is_told_by_its_size(bundle, device):
    segments = bundle.manifest.variant().segments
    assert install.records(bundle, segments) == [None] * 3
    install.install(bundle, undivided=False)
    assert [one and one.segment for one in install.records(bundle, segments)] == CHAIN
    for path in folder_of(bundle.path).glob("*.plan"):
        path.unlink()
    assert install.records(bundle, segments) == [None] * 3


def test_engines_are_found_from_wherever_the_bundle_is_named(bundle, device, monkeypatch):
    install.install(bundle, undivided=False)
    monkeypatch.chdir(bundle.path)
    assert install.install(read_bundle(Path()), undivided=False).fresh == ()


def test_a_target_may_name_another_builder(bundle, device, monkeypatch):
    target = dataclasses.replace(
        bundle.manifest.target,
        gpu=dataclasses.replace(bundle.manifest.target.gpu, builder="torch2trt"),
    )
    other = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, target=target)
    )
    with pytest.raises(DeviceError, match="builder is torch2trt, which is not importable here"):
        install.install(other)
