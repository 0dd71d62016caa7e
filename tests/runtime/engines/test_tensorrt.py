"""The engine for TensorRT, over the stand-in: the order of calls, what is refused, what goes."""

import gc
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.bundle.manifest import Policy, TensorSpec
from edgekit.errors import DeviceError, PlanError
from edgekit.runtime.chain import Chain, ChainSpec
from tests.runtime.cuda_standin import CLASSES, EXITS, FEATURES, CudaStandIn, plan, plans, spec

Array = npt.NDArray[Any]

UNSURE, SURE = [0.0] * CLASSES, [9.0, 0, 0, 0]
"""Logits that no exit stops at, and some that every exit does."""

X = np.ones(FEATURES, np.float32)


def loaded(contents: list[bytes] | None = None, of: ChainSpec | None = None) -> Chain:
    return Chain.from_segments(of or spec(), contents or plans(), engine="tensorrt", threads=1)


def ready(gpu: CudaStandIn, *logits: list[float], rows: int = 1) -> Chain:
    """A chain that has run with as many samples once, and whose exits say this of each of them."""
    chain = loaded()
    chain.logits(np.stack([X] * rows))
    says(gpu, chain, *logits)
    gpu.calls.clear()
    return chain


def says(gpu: CudaStandIn, chain: Chain, *logits: list[float]) -> None:
    for depth, one in enumerate(logits):
        gpu.tensor(chain._room.buffers[f"z{depth}"])[:] = one


def test_one_sample_costs_a_copy_in_and_at_each_exit_a_run_a_copy_of_logits_and_a_wait(
    gpu: CudaStandIn,
) -> None:
    chain = ready(gpu, UNSURE, UNSURE, SURE)
    before = gpu.device.keys() | gpu.host.keys()
    found = chain.one(X)
    assert (found.exit, found.class_index, found.stop) == ("exit2", 0, "final")
    assert gpu.calls == [
        "to device 24",
        "run segment-1 on 1", "to host 16", "wait",
        "run segment-2 on 1", "to host 16", "wait",
        "run segment-3 on 1", "to host 16", "wait",
    ]  # fmt: skip
    assert gpu.device.keys() | gpu.host.keys() == before, "a call has allocated"


def test_what_an_exit_stops_is_never_started(gpu: CudaStandIn) -> None:
    chain = ready(gpu, UNSURE, SURE, UNSURE)
    assert chain.one(X).exit == "exit1"
    assert [one for one in gpu.calls if one.startswith("run")] == [
        "run segment-1 on 1",
        "run segment-2 on 1",
    ]


def test_an_input_reaches_the_device_and_logits_are_those_of_this_run(gpu: CudaStandIn) -> None:
    chain = ready(gpu, SURE)
    x = np.arange(FEATURES, dtype=np.float32)
    assert chain.one(x).class_index == 0
    np.testing.assert_array_equal(gpu.tensor(chain._room.buffers["x"])[0], x)
    says(gpu, chain, SURE[::-1])
    assert chain.one(x).class_index == CLASSES - 1


def test_a_batch_is_compacted_on_the_device_and_its_features_never_leave_it(
    gpu: CudaStandIn,
) -> None:
    chain = ready(gpu, UNSURE, UNSURE, UNSURE, rows=6)
    buffers = chain._room.buffers
    gpu.tensor(buffers["z0"])[:6] = [UNSURE, SURE, UNSURE, UNSURE, SURE, UNSURE]
    features = np.arange(6 * FEATURES, dtype=np.float16).reshape(6, FEATURES)
    gpu.tensor(buffers["f0"])[:6] = features
    counts = chain.engines[0].memory.counts
    to_host = counts.to_host.size_bytes
    found = chain.many(np.stack([X] * 6))
    assert [one.exit for one in found] == ["exit2", "exit0", "exit2", "exit2", "exit0", "exit2"]
    np.testing.assert_array_equal(gpu.tensor(buffers["f0"])[:4], features[[0, 2, 3, 5]])
    # Rows 2 and 3 go one forward, one after the other for they would overlap; row 5 goes two.
    row = f"on device {2 * FEATURES}"
    assert [one for one in gpu.calls if not one.startswith(("shape", "scratch", "profile"))] == [
        f"to device {6 * 4 * FEATURES}",
        "run segment-1 on 6", f"to host {6 * 4 * CLASSES}", "wait", row, row, row,
        "run segment-2 on 4", f"to host {4 * 4 * CLASSES}", "wait",
        "run segment-3 on 4", f"to host {4 * 4 * CLASSES}", "wait",
    ]  # fmt: skip
    assert counts.to_host.size_bytes - to_host == (6 + 4 + 4) * 4 * CLASSES
    assert (counts.on_device.number, counts.on_device.size_bytes) == (3, 3 * 2 * FEATURES)


def test_the_profile_is_the_one_that_holds_the_samples_and_is_set_once(gpu: CudaStandIn) -> None:
    chain = loaded()
    for rows in (1, 5, 8, 1, 2):
        chain.logits(np.stack([X] * rows))
    profiles = [one for one in gpu.calls if one.startswith("profile")]
    assert profiles == [f"profile {p} of segment-{s}" for p in (0, 1) for s in (1, 2, 3)]
    assert [one for one in gpu.calls if "run segment-2" in one] == [
        f"run segment-2 on {rows}" for rows in (1, 5, 8, 1, 2)
    ]


def test_shapes_and_addresses_are_set_again_only_for_another_number_of_samples(
    gpu: CudaStandIn,
) -> None:
    chain = ready(gpu, UNSURE, UNSURE, UNSURE, rows=4)

    def shapes() -> list[str]:
        chosen = [one for one in gpu.calls if one.startswith("shape") and one.endswith("-1")]
        gpu.calls.clear()
        return chosen

    chain.logits(np.stack([X] * 3))
    assert shapes() == ["shape 3 for segment-1"]
    chain.logits(np.stack([X] * 3))
    assert shapes() == []
    chain.logits(np.stack([X] * 4))
    assert shapes() == ["shape 4 for segment-1"]
    chain.one(X)
    assert shapes() == ["shape 1 for segment-1"]
    chain.logits(np.stack([X] * 4))
    assert shapes() == [], "one sample has a profile and a context of its own"


def test_two_policies_on_the_same_engines_run_on_their_own_buffers(gpu: CudaStandIn) -> None:
    chain = ready(gpu, SURE)
    other = chain.with_policy(Policy("max_prob", (2.0, 2.0)))
    other.one(X)
    says(gpu, other, SURE[::-1], SURE[::-1], SURE[::-1])
    for _ in range(2):
        assert chain.one(X)[:3:2] == (0, "exit0")
        assert other.one(X)[:3:2] == (CLASSES - 1, "exit2")


def test_one_scratch_block_of_the_greatest_need_serves_every_segment(gpu: CudaStandIn) -> None:
    chain = loaded()
    chain.one(X)
    memory = chain.engines[0].memory
    assert all(one.memory is memory for one in chain.engines)
    assert memory.scratch.shape == (300,)
    gpu.calls.clear()
    chain.logits(np.stack([X] * 8))
    assert memory.scratch.shape == (2400,)
    chain.one(X)
    # The contexts of one sample were set to the block that has gone.
    again = [one for one in gpu.calls if one.startswith("scratch")][-EXITS:]
    assert again == [f"scratch 2400 for segment-{number}" for number in (1, 2, 3)]


def test_a_scratch_block_that_could_not_grow_is_had_again_before_anything_runs(
    gpu: CudaStandIn,
) -> None:
    chain = loaded()
    chain.one(X)
    # A policy's copy has buffers of its own on the same engines.
    copy = chain.with_policy(chain.spec.policy)
    copy.one(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain.engines[0].memory, "allocate", _no_room_but_for_buffers(chain))
        with pytest.raises(DeviceError, match="no room"):
            chain.logits(np.stack([X] * 8))
    assert chain.engines[0].memory.scratch is None
    # The stand-in refuses to run on a block that was freed.
    assert copy.one(X).exit == chain.one(X).exit


def _no_room_but_for_buffers(chain: Chain) -> Any:
    allocate = chain.engines[0].memory.allocate

    def limited(shape: tuple[int, ...], dtype: str) -> Any:
        if dtype == "uint8":
            raise DeviceError("no room")
        return allocate(shape, dtype)

    return limited


def test_exits_are_read_and_no_feature_is(gpu: CudaStandIn) -> None:
    chain = ready(gpu, rows=2)
    counts = chain.engines[0].memory.counts
    before = counts.to_host.size_bytes
    chain.exits(np.stack([X] * 2))
    assert counts.to_host.size_bytes - before == 2 * 4 * CLASSES * EXITS


def test_cuda_that_does_not_start_for_tensorrt_is_the_devices_error(gpu: CudaStandIn) -> None:
    from edgekit.runtime import tensorrt_api

    found = tensorrt_api.find()

    def nothing(log: Any) -> None:
        log.said("Unable to determine GPU memory usage: out of memory\nand more")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    broken = found._replace(module=SimpleNamespace(Runtime=nothing))
    with pytest.raises(DeviceError, match=r"cannot use this machine's GPU: Unable .* memory; is"):
        broken.make("Runtime")


def test_calls_from_several_threads_take_turns(gpu: CudaStandIn) -> None:
    chain = ready(gpu, UNSURE, UNSURE, SURE)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(chain.one(X).exit for _ in range(20)))
        for _ in range(4)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == ["exit2"] * 80
    turn = gpu.calls[:10]
    assert gpu.calls == turn * 80


def test_bare_runs_of_segments_include_their_work(gpu: CudaStandIn) -> None:
    chain = ready(gpu)
    runs = chain.segment_runs(X[None])
    gpu.calls.clear()
    for run in runs:
        run()
    assert gpu.calls == [
        one for number in (1, 2, 3) for one in (f"run segment-{number} on 1", "wait")
    ]


def test_a_chain_that_goes_takes_contexts_before_engines_before_the_runtime_before_the_stream(
    gpu: CudaStandIn,
) -> None:
    chain = ready(gpu)
    copy = chain.with_policy(Policy("max_prob", (1.0, 1.0)))
    copy.logits(np.stack([X] * 3))
    chain.segment_runs(X[None])[0]()
    del chain
    gpu.calls.clear()
    copy.one(X)
    assert not [one for one in gpu.calls if one.startswith("destroy")]
    gpu.calls.clear()
    gc.disable()  # Memory of a GPU must not wait for a collector.
    try:
        del copy
    finally:
        gc.enable()
    ended = [one.removeprefix("destroy ") for one in gpu.calls if one.startswith("destroy")]
    assert ended == [*["context", "context", "engine"] * EXITS, "runtime", "stream"]
    assert not gpu.device


def test_a_plan_that_tensorrt_does_not_take_is_named_with_the_reason_and_what_to_do(
    gpu: CudaStandIn,
) -> None:
    contents = [plan(0), b"\0garbage", plan(2)]
    with pytest.raises(
        PlanError,
        match=r"tensorrt 10.3.0 on Orin refuses the plan of segment-2 \(.*Version tag does not "
        r"match\): build it again on this device: edgekit install BUNDLE --rebuild",
    ):
        loaded(contents)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("context", r"makes no context for segment-2 \(.*out of memory\): free some"),
        ("shape", r"refuses \[1, 6\] for f0 \(segment-2\)"),
        ("address", r"refuses a buffer for f0 \(segment-2\)"),
        ("execute", r"failed to run segment-2 \(.*illegal memory access.*\): start the program"),
    ],
)
def test_what_tensorrt_refuses_is_a_device_error_with_its_words(
    gpu: CudaStandIn, fault: str, words: str
) -> None:
    chain = loaded(plans(segment_2={"fault": fault}))
    with pytest.raises(DeviceError, match=words):
        chain.logits(X[None])


def other_dtype(found: dict[str, Any]) -> None:
    found["f0"][1] = "FLOAT"


def other_shape(found: dict[str, Any]) -> None:
    found["f0"][2] = [-1, FEATURES + 1]


def other_rank(found: dict[str, Any]) -> None:
    found["f0"][2] = [-1, FEATURES, 1]


def other_way(found: dict[str, Any]) -> None:
    found["f0"][0] = "OUTPUT"


def no_numpy(found: dict[str, Any]) -> None:
    found["f0"][1] = "BF16"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_dtype, r"plan has 'f0' as input float32 \[-1, 6\], .* says input float16 \[-1, 6\]"),
        (other_shape, r"plan has 'f0' as input float16 \[-1, 7\], "),
        (other_rank, r"plan has 'f0' as input float16 \[-1, 6, 1\], "),
        (other_way, "plan has 'f0' as output float16 "),
        (no_numpy, "plan has 'f0' as input bf16 "),
        (lambda found: found.pop("z1"), "the plan has no tensor 'z1'"),
        (lambda found: found.update(more=["OUTPUT", "HALF", [-1, 1]]), "manifest has no .*'more'"),
    ],
)
def test_a_plan_of_another_contract_is_refused_before_it_runs(
    gpu: CudaStandIn, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    tensors = json.loads(plan(1))["tensors"]
    change(tensors)
    chain = loaded(plans(segment_2={"tensors": tensors}))
    with pytest.raises(PlanError, match=f"segment-2: .*{words}.*: build it again"):
        chain.one(X)
    assert not [one for one in gpu.calls if one.startswith("run")]


def test_more_samples_than_it_was_built_for_names_the_sizes(gpu: CudaStandIn) -> None:
    chain = loaded(of=replace(spec(), most_rows=64))
    with pytest.raises(
        DeviceError, match="segment-1 was built for batches of 1, 2 to 8; found 9: run fewer"
    ):
        chain.many(np.stack([X] * 9))


def test_a_plan_of_one_fixed_size_takes_that_size(gpu: CudaStandIn) -> None:
    contents = []
    for depth in range(EXITS):
        tensors = json.loads(plan(depth))["tensors"]
        for one in tensors.values():
            one[2][0] = 2
        contents.append(plan(depth, tensors=tensors, batches=[[2, 2]], scratch=[10]))
    chain = loaded(contents, of=replace(spec(), most_rows=2))
    assert chain.logits(np.stack([X] * 2))["exit0"].shape == (2, CLASSES)
    with pytest.raises(DeviceError, match="built for batches of 2; found 1"):
        chain.one(X)


def test_sizes_that_vary_are_refused(gpu: CudaStandIn) -> None:
    (engine, *_) = loaded().engines
    with pytest.raises(DeviceError, match=r"built for one size.*use the engine onnxruntime"):
        engine.shapes({})


def test_reports_name_tensorrt_and_the_gpu(gpu: CudaStandIn) -> None:
    assert loaded().engines[0].version == "tensorrt 10.3.0 on Orin (8.7)"


def test_no_gpu_is_told_before_a_plan_is_tried(gpu: CudaStandIn) -> None:
    gpu.fails["cudaGetDeviceProperties"] = gpu.cudaError_t.cudaErrorNoDevice
    with pytest.raises(DeviceError, match=r"CUDA finds no GPU \(cudaErrorNoDevice: "):
        loaded([b"garbage"] * EXITS)


def test_an_exit_without_a_confidence_is_timed_to_its_end(gpu: CudaStandIn) -> None:
    """A final exit that gives none has nothing to be read, but its segment has to be done."""
    tensors = json.loads(plan(0))["tensors"] | {"c0": ["OUTPUT", "FLOAT", [-1]]}
    made = spec()
    first, *others = made.segments
    first = replace(
        first,
        outputs=(*first.outputs, "c0"),
        exits=(replace(first.exits[0], confidence="c0"),),
    )
    last = replace(others[0], outputs=("z1",))
    tensors_last = json.loads(plan(1))["tensors"]
    del tensors_last["f1"]
    made = replace(
        made,
        labels=(),
        tensors={**made.tensors, "c0": TensorSpec("float32", (None,))},
        segments=(first, last),
        policy=Policy("given", (0.5,)),
    )
    contents = [plan(0, tensors=tensors), plan(1, tensors=tensors_last)]
    chain = loaded(contents, of=made)
    chain.logits(X[None])
    gpu.tensor(chain._room.buffers["c0"])[:] = 0.1
    gpu.calls.clear()
    found = chain.one(X, timings=True)
    assert found.stop == "final"
    assert np.isnan(found.confidence)
    run = gpu.calls.index("run segment-2 on 1")
    assert gpu.calls[run + 1] == "wait"


def test_where_no_tensorrt_is_installed_the_error_says_how_to_install_it(
    gpu: CudaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.runtime import tensorrt_api

    monkeypatch.setattr(tensorrt_api, "_found", {})
    monkeypatch.setattr(
        tensorrt_api.importlib, "util", SimpleNamespace(find_spec=lambda name: None)
    )
    with pytest.raises(DeviceError, match=r"tensorrt is not installed.*'tensorrt-cu12==10"):
        loaded()
