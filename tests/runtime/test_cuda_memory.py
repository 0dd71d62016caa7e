"""Memory on the GPU, over the stand-in: what is copied when, in which order, and when it goes."""

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import DeviceError
from edgekit.runtime import cuda
from edgekit.runtime.cuda_memory import CudaMemory
from tests.runtime.cuda_standin import CudaStandIn, world


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStandIn]:
    yield from world(monkeypatch)


def memory_on(gpu: CudaStandIn) -> CudaMemory:
    return CudaMemory(cuda.CudaPython(gpu))


def test_what_is_written_is_on_the_device_once_somebody_waits(gpu: CudaStandIn) -> None:
    memory = memory_on(gpu)
    buffer = memory.allocate((4, 2, 3), "float16")
    samples = np.arange(18, dtype=np.float16).reshape(3, 2, 3)
    memory.writer(buffer, 3)(samples)
    assert not (gpu.tensor(buffer)[:3] == samples).any()
    memory.finish()
    np.testing.assert_array_equal(gpu.tensor(buffer)[:3], samples)
    assert (memory.counts.to_device.number, memory.counts.to_device.size_bytes) == (1, 36)


def test_a_second_write_waits_for_the_first_to_leave_the_page_locked_memory(
    gpu: CudaStandIn,
) -> None:
    memory = memory_on(gpu)
    first, second = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    buffer, other = memory.allocate((1, 4), "float32"), memory.allocate((1, 4), "float32")
    write = memory.writer(buffer, 1)
    write(first)
    memory.cuda.on_device(other.address, buffer.address, 16, memory.stream)
    memory.ran()
    write(second)
    memory.finish()
    np.testing.assert_array_equal(gpu.tensor(other), first)
    np.testing.assert_array_equal(gpu.tensor(buffer), second)


def test_reading_again_copies_again_only_if_something_has_run(gpu: CudaStandIn) -> None:
    memory = memory_on(gpu)
    buffer, other = memory.allocate((2, 2), "float32"), memory.allocate((2, 2), "float32")
    gpu.tensor(buffer)[:] = gpu.tensor(other)[:] = 1
    read, read_other = memory.reader(buffer, 2), memory.reader(other, 2)
    for one in (read, read, read_other, read):
        np.testing.assert_array_equal(one(), np.ones((2, 2), np.float32))
    assert memory.counts.to_host.number == 2
    gpu.tensor(buffer)[:] = 2
    memory.ran()
    np.testing.assert_array_equal(read(), np.full((2, 2), 2, np.float32))
    memory.keep(buffer, np.array([1]))
    read()
    assert (memory.counts.to_host.number, memory.counts.to_host.size_bytes) == (4, 64)


def test_waiting_where_nothing_was_started_asks_cuda_nothing(gpu: CudaStandIn) -> None:
    memory = memory_on(gpu)
    memory.ran()
    memory.finish()
    memory.finish()
    assert gpu.calls == ["wait"]


@settings(max_examples=100)
@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=40).filter(any),
    width=st.integers(1, 3),
    dtype=st.sampled_from(["int8", "float16", "float32"]),
)
def test_rows_are_kept_as_numpy_keeps_them_and_no_copy_overlaps_itself(
    kept: list[bool], width: int, dtype: str
) -> None:
    gpu = CudaStandIn()  # It refuses a copy that overlaps itself.
    memory = memory_on(gpu)
    buffer = memory.allocate((len(kept), width), dtype)
    before = np.random.default_rng(0).integers(-128, 128, buffer.shape).astype(dtype)
    gpu.tensor(buffer)[:] = before
    rows = np.flatnonzero(kept)
    memory.keep(buffer, rows)
    memory.finish()
    np.testing.assert_array_equal(gpu.tensor(buffer)[: len(rows)], before[rows])
    moved = sum(int(row != place) for place, row in enumerate(rows))
    assert memory.counts.on_device.size_bytes == moved * buffer.row_bytes
    assert not memory.counts.to_host.number
    del memory, buffer
    assert not gpu.faults
    assert not gpu.device


def test_the_stand_in_refuses_a_copy_that_overlaps_itself(gpu: CudaStandIn) -> None:
    memory = memory_on(gpu)
    buffer = memory.allocate((4, 4), "float32")
    with pytest.raises(AssertionError, match="overlaps itself"):
        memory.cuda.on_device(buffer.address, buffer.address + 16, 32, memory.stream)


def test_memory_goes_back_with_its_last_user_and_not_while_work_is_on_its_way(
    gpu: CudaStandIn,
) -> None:
    memory = memory_on(gpu)
    buffer = memory.allocate((2, 2), "float32")
    write, read = memory.writer(buffer, 2), memory.reader(buffer, 2)
    write(np.ones((2, 2), np.float32))
    del buffer, write
    assert gpu.device
    seen = read()
    memory.ran()
    del read, memory
    gc.collect()
    assert not gpu.device
    assert gpu.host, "somebody still looks at the page-locked memory"
    assert "destroy stream" not in gpu.calls
    np.testing.assert_array_equal(seen, np.ones((2, 2), np.float32))
    del seen
    assert not gpu.host
    assert gpu.calls[-1] == "destroy stream"


def test_scratch_grows_to_the_greatest_need_and_the_smaller_block_goes_first(
    gpu: CudaStandIn,
) -> None:
    gpu.size = 1000
    memory = memory_on(gpu)
    assert memory.arena_bytes is None
    memory.demand_scratch(400)
    assert memory.arena_bytes == 400
    first = memory.scratch_changes
    memory.demand_scratch(300)
    assert memory.scratch_changes == first
    memory.demand_scratch(900)
    assert memory.scratch_changes > first
    assert [len(one) for one in gpu.device.values()] == [900]


def test_no_room_says_what_was_asked_and_what_is_free(gpu: CudaStandIn) -> None:
    gpu.size = 1000
    memory = memory_on(gpu)
    first = memory.allocate((4, 50), "float32")
    with pytest.raises(
        DeviceError,
        match=r"no room for 400 bytes more \(cudaErrorMemoryAllocation\); 200 of 1,000 bytes are "
        "free: end other programs",
    ):
        memory.allocate((2, 50), "float32")
    del first
    memory.allocate((2, 50), "float32")


def test_what_a_stream_refuses_names_the_call_and_cudas_error(gpu: CudaStandIn) -> None:
    memory = memory_on(gpu)
    buffer = memory.allocate((1, 1), "float32")
    read = memory.reader(buffer, 1)
    gpu.fails["cudaStreamSynchronize"] = gpu.cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(
        DeviceError, match=r"cudaStreamSynchronize failed \(cudaErrorIllegalAddress: an illegal"
    ):
        read()
    gpu.fails.clear()
