"""CUDA through Python: the names that are used are the real ones, and its errors are ours."""

import ast
import gc
import importlib.util
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime

from edgekit.errors import DeviceError
from edgekit.runtime import cuda
from edgekit.runtime.cuda_memory import CudaMemory
from edgekit.runtime.engines import tensorrt as engine
from edgekit.runtime.gpu import Gpu
from tests.runtime import cuda_standin
from tests.runtime.cuda_standin import CudaStandIn, world


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStandIn]:
    yield from world(monkeypatch)


def names_in(module: ModuleType, of: str) -> set[str]:
    """The names of CUDA's that a module's class uses: as attributes, and in quotes."""
    (found,) = [
        one
        for one in ast.parse(inspect.getsource(module)).body
        if isinstance(one, ast.ClassDef) and one.name == of
    ]
    attributes = {one.attr for one in ast.walk(found) if isinstance(one, ast.Attribute)}
    quoted = {
        one.value
        for one in ast.walk(found)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }
    return {one for one in attributes | quoted if one.startswith("cuda") and one.isalnum()}


def test_every_name_of_cudas_is_in_the_real_one_and_in_the_stand_in() -> None:
    used = names_in(cuda, "CudaPython")
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaErrorNoDevice"} <= used
    for name in used:
        real = (runtime, runtime.cudaError_t, runtime.cudaMemcpyKind)
        assert any(hasattr(one, name) for one in real), name
        played = (CudaStandIn, runtime.cudaError_t, runtime.cudaMemcpyKind)
        assert any(hasattr(one, name) for one in played), name


def test_the_stand_in_takes_the_arguments_that_the_real_calls_take() -> None:
    calls = {name for name in vars(CudaStandIn) if name.startswith("cuda") and name[4:5].isupper()}
    calls = {name for name in calls if inspect.isfunction(vars(CudaStandIn)[name])}
    assert len(calls) > 10
    for name in calls:
        takes = len(inspect.signature(getattr(CudaStandIn, name)).parameters) - 1
        shown = getattr(runtime, name).__doc__.partition("\n")[0]
        wants = shown.partition("(")[2].rpartition(")")[0]
        assert takes == len([one for one in wants.split(",") if one.strip()]), shown


def test_a_version_of_cudas_has_the_fields_that_are_read() -> None:
    found = runtime.cudaDeviceProp()
    for name in ("name", "major", "minor", "totalGlobalMem"):
        assert hasattr(found, name)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("RuntimeStandIn", "Runtime"),
        ("EngineStandIn", "ICudaEngine"),
        ("ContextStandIn", "IExecutionContext"),
    ],
)
def test_every_name_of_tensorrts_is_in_the_real_one_and_in_the_stand_in(
    ours: str, theirs: str
) -> None:
    real = getattr(pytest.importorskip("tensorrt_rtx_bindings"), theirs)
    source = inspect.getsource(engine)
    played = getattr(cuda_standin, ours)
    made = ast.parse(inspect.getsource(played))
    names = {one for one in dir(played) if not one.startswith("_")}
    names |= {
        one.attr
        for one in ast.walk(made)
        if isinstance(one, ast.Attribute) and one.attr.startswith("num_")
    }
    used = {one for one in names if f".{one}" in source}
    assert used
    for name in used:
        assert hasattr(real, name), f"{theirs} has no {name}"


def test_every_attribute_that_the_engine_asks_of_tensorrt_is_played() -> None:
    """What the stand-in does not have, no test of the engine has run."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    source = ast.parse(inspect.getsource(engine))
    asked = {one.attr for one in ast.walk(source) if isinstance(one, ast.Attribute)}
    classes = (trt.Runtime, trt.ICudaEngine, trt.IExecutionContext)
    theirs = {name for name in asked if any(hasattr(one, name) for one in classes)}
    played = inspect.getsource(cuda_standin)
    assert "execute_async_v3" in theirs
    for name in theirs - {"name", "load"}:
        assert f"def {name}(" in played or f"{name} =" in played, name
    for name in ("ExecutionContextAllocationStrategy", "TensorIOMode", "DataType"):
        ours, real = getattr(cuda_standin, name), getattr(trt, name)
        for member in ours:
            assert int(real.__members__[member.name]) == member.value
    for name in engine._DTYPES:
        assert name in trt.DataType.__members__


def test_without_a_gpu_the_real_cuda_says_what_the_machine_needs() -> None:
    found = cuda.find()
    try:
        found.gpu()
    except DeviceError as error:
        words = str(error)
    else:
        pytest.skip("this machine has a GPU")
    assert "\n" not in words
    assert "cudaError" in words
    assert "nvidia-smi" in words or "newer driver" in words
    with pytest.raises(DeviceError, match="cudaError"):
        CudaMemory(found)
    with pytest.raises(DeviceError, match="cudaError"):
        found.allocate(10)


def test_the_adapter_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_found", [])
    assert cuda.find() is cuda.find()
    assert cuda.find().name.startswith("cuda.bindings.runtime 1")


def test_the_older_layout_and_pycuda_are_found_where_there_is_nothing_newer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        if name != "pycuda.driver":
            raise ImportError(f"No module named {name!r}")
        return SimpleNamespace()

    monkeypatch.setattr(cuda, "_found", [])
    monkeypatch.setattr(cuda.importlib, "import_module", load)
    assert isinstance(cuda.find(), cuda.PyCuda)
    assert asked == ["cuda.bindings.runtime", "cuda.cudart", "pycuda.driver"]


def test_where_no_package_for_cuda_is_installed_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "_found", [])
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"'edgekit\[cuda12\]'"):
        cuda.find()


def test_the_gpu_is_described_by_its_driver(gpu: CudaStandIn) -> None:
    gpu.fails["driver"] = 12060
    assert cuda.find().gpu() == Gpu("Orin", "8.7", 16, 1 << 30, "12.6", shares_memory=True)
    memory = CudaMemory(cuda.find())
    kept = memory.allocate((1, 1000), "int8")
    assert cuda.find().memory_bytes() == ((1 << 30) - 1000, 1 << 30)
    del kept


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ({"driver": 0}, "no NVIDIA driver is installed .*nvidia-smi"),
        (
            {"driver": 12060},
            r"driver knows CUDA 12.6, .* wants 13.4 .*'cuda-python==12\.6\.\*'",
        ),
    ],
)
def test_a_driver_that_is_too_old_is_no_missing_driver(
    gpu: CudaStandIn, fails: dict[str, Any], words: str
) -> None:
    gpu.fails |= fails
    gpu.fails["cudaGetDeviceProperties"] = gpu.cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(DeviceError, match=words):
        cuda.find().gpu()


class PyCudaStandIn:
    """pycuda's driver module on arrays: each call demands that its thread has the context."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def __init__(self) -> None:
        self.local = threading.local()
        self.memory: dict[int, np.ndarray] = {}
        self.retained = 0
        self.left: list[int] = []

    def init(self) -> None:
        pass

    def current(self) -> None:
        if not getattr(self.local, "pushed", 0):
            raise self.Error("cuMemAlloc failed: invalid device context")

    def Device(self, number: int) -> Any:
        def push() -> None:
            self.local.pushed = getattr(self.local, "pushed", 0) + 1

        def pop() -> None:
            self.local.pushed -= 1
            self.left.append(self.local.pushed)

        def retain() -> Any:
            self.retained += 1
            return SimpleNamespace(push=push, pop=pop)

        return SimpleNamespace(
            name=lambda: "Tegra X1",
            compute_capability=lambda: (5, 3),
            total_memory=lambda: 4096,
            get_attribute={"MULTIPROCESSOR_COUNT": 2, "INTEGRATED": 1}.__getitem__,
            retain_primary_context=retain,
        )

    device_attribute = SimpleNamespace(
        MULTIPROCESSOR_COUNT="MULTIPROCESSOR_COUNT", INTEGRATED="INTEGRATED"
    )

    def get_driver_version(self) -> int:
        return 10020

    def mem_get_info(self) -> tuple[int, int]:
        self.current()
        return 4096 - sum(map(len, self.memory.values())), 4096

    def mem_alloc(self, size: int) -> Any:
        if size > self.mem_get_info()[0]:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        address = 0x1000 * (len(self.memory) + 1)
        self.memory[address] = np.zeros(size, np.uint8)

        class Allocation(int):
            def free(allocation) -> None:
                del self.memory[int(allocation)]

        return Allocation(address)

    def pagelocked_empty(self, size: int, dtype: Any) -> np.ndarray:
        self.current()
        return np.empty(size, dtype)

    def Stream(self, flags: int) -> Any:
        self.current()
        assert flags == 1
        return SimpleNamespace(handle=0x77, synchronize=self.current)

    def memcpy_htod_async(self, to: int, array: np.ndarray, stream: Any) -> None:
        self.current()
        raw = array.reshape(-1).view(np.uint8)
        self.memory[to][: len(raw)] = raw

    def memcpy_dtoh_async(self, array: np.ndarray, source: int, stream: Any) -> None:
        self.current()
        raw = array.reshape(-1).view(np.uint8)
        raw[:] = self.memory[source][: len(raw)]

    def memcpy_dtod_async(self, to: int, source: int, size: int, stream: Any) -> None:
        self.current()
        start = min(self.memory)
        block = self.memory[start]
        block[to - start : to - start + size] = block[source - start : source - start + size].copy()


def in_a_thread(work: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def kept_by_another_thread(found: cuda.PyCuda, samples: np.ndarray) -> Any:
    """Rows 1 and 3, by way of the device; all memory goes when this returns."""
    memory = CudaMemory(found)
    buffer = memory.allocate(samples.shape, "float32")
    write, read = memory.writer(buffer, len(samples)), memory.reader(buffer, len(samples))

    def work() -> Any:
        write(samples)
        memory.keep(buffer, np.array([1, 3]))
        return read()[:2].copy()

    kept = in_a_thread(work)
    with pytest.raises(DeviceError, match=r"no room for 8,000 bytes more .*4,064 of 4,096 bytes"):
        memory.allocate((1000, 2), "float32")
    return kept


def test_pycuda_has_its_context_in_every_thread_and_frees_what_it_gave() -> None:
    module = PyCudaStandIn()
    found = cuda.PyCuda(module)
    assert found.gpu() == Gpu("Tegra X1", "5.3", 2, 4096, "10.2", shares_memory=True)
    samples = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(kept_by_another_thread(found, samples), samples[[1, 3]])
    gc.collect()
    assert not module.memory
    assert module.retained == 1
    # pycuda aborts the process where a thread ends with a context on its stack.
    assert set(module.left) == {0}


def test_what_pycuda_refuses_is_a_device_error() -> None:
    module = PyCudaStandIn()

    def init() -> None:
        raise module.Error("cuInit failed: no CUDA-capable device is detected")

    module.init = init  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"cuInit failed: no CUDA-capable device.*nvidia-smi"):
        cuda.PyCuda(module).gpu()


def test_importing_cudas_adapter_imports_no_cuda() -> None:
    code = (
        "import sys, edgekit.runtime.cuda, edgekit.runtime.engines.tensorrt;"
        "print([one for one in sys.modules if one.startswith(('cuda.', 'pycuda', 'tensorrt'))])"
    )
    root = Path(cuda.__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root
    )
    assert ended.stdout.strip() == "[]"
