"""ONNX Runtime on a GPU: the ONNX segments themselves, with CUDA's kernels and no others."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnxruntime

from edgekit.errors import DeviceError
from edgekit.runtime import cuda
from edgekit.runtime.cuda_memory import CudaMemory, DeviceBuffer

__all__ = ["OnnxRuntimeCudaEngine", "load"]

_CUDA = "CUDAExecutionProvider"

_CROSSINGS = (b'"\x0cMemcpyToHost', b'"\x0eMemcpyFromHost')
"""How an operator stands in an ONNX file that copies a tensor between the GPU and the processor."""


class OnnxRuntimeCudaEngine:
    """A segment in an ONNX Runtime session that computes on the GPU, on its memory's stream."""

    def __init__(
        self, session: onnxruntime.InferenceSession, name: str, memory: CudaMemory, version: str
    ) -> None:
        # Python lets go of these in this order: a session must be gone before its stream.
        self._session = session
        self._run = session.run_with_iobinding
        self.memory = memory
        self.version = version
        self._name = name
        self._options = onnxruntime.RunOptions()
        # The chain waits where it looks, not after every segment.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(
        self, inputs: Mapping[str, DeviceBuffer], outputs: Mapping[str, DeviceBuffer], rows: int
    ) -> Callable[[], None]:
        """See `Engine.bind`."""
        binding = self._session.io_binding()
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in buffers.items():
                shape = (rows, *buffer.shape[1:])
                try:
                    bind(name, "cuda", 0, buffer.dtype, shape, buffer.address)
                except Exception as error:
                    raise DeviceError(_refusal(self._name, error)) from None
        bound = [*inputs.values(), *outputs.values()]

        def call(_keep_alive: list[DeviceBuffer] = bound) -> None:
            try:
                self._run(binding, self._options)
            except Exception as error:
                raise DeviceError(_refusal(self._name, error)) from None
            self.memory.ran()

        return call

    def shapes(self, inputs: Mapping[str, DeviceBuffer]) -> dict[str, tuple[int, ...]]:
        """See `Engine.shapes`."""
        binding = self._session.io_binding()
        try:
            for name, buffer in inputs.items():
                binding.bind_input(name, "cuda", 0, buffer.dtype, buffer.shape, buffer.address)
            names = [one.name for one in self._session.get_outputs()]
            for name in names:
                binding.bind_output(name, "cuda")
            self._session.run_with_iobinding(binding)
            found = [one.shape() for one in binding.get_outputs()]
        except Exception as error:
            raise DeviceError(_refusal(self._name, error)) from None
        return {name: tuple(shape[1:]) for name, shape in zip(names, found, strict=True)}


def load(segments: Sequence[tuple[str, bytes]], *, threads: int) -> list[OnnxRuntimeCudaEngine]:
    """An engine for each ONNX model, all on one stream.

    Raises DeviceError where this ONNX Runtime has no CUDA, where there is no GPU, and where it
    refuses a model or would compute a part of it on the processor.
    """
    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"this onnxruntime {onnxruntime.__version__} has no {_CUDA}: pip uninstall "
            "onnxruntime, then pip install 'edgekit[onnxruntime-cuda]' (on a Jetson, an "
            "onnxruntime-gpu wheel that is made for its JetPack)"
        )
    adapter = cuda.find()
    gpu = adapter.gpu()
    memory = CudaMemory(adapter)
    version = f"onnxruntime {onnxruntime.__version__} cuda on {gpu.name} ({gpu.compute_capability})"
    return [
        OnnxRuntimeCudaEngine(_session(content, name, threads, memory), name, memory, version)
        for name, content in segments
    ]


def _session(
    content: bytes, name: str, threads: int, memory: CudaMemory
) -> onnxruntime.InferenceSession:
    """A session in which no tensor leaves the GPU on its way.

    ONNX Runtime is told to refuse whatever it would leave to the processor. It leaves sizes to it
    (`Shape`, and what is computed from that), always and rightly: they are known there without the
    GPU. A model that it refuses is therefore loaded again without that demand, and the graph that
    it made is searched for copies between the two, which are what must not be.
    """
    options = _options(threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return _on_cuda(content, options, name, memory)
    except DeviceError as refusal:
        if "fallback to CPU EP" not in str(refusal):
            raise
    options = _options(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.onnx"
        options.optimized_model_filepath = str(path)
        session = _on_cuda(content, options, name, memory)
        made = path.read_bytes()
    if any(one in made for one in _CROSSINGS):
        raise DeviceError(
            f"onnxruntime would compute a part of {name} on the processor, with copies to and from "
            "the GPU: use the engine tensorrt, or onnxruntime on the processor alone"
        )
    return session


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # What goes wrong comes as an exception as well.
    return options


def _on_cuda(
    content: bytes, options: onnxruntime.SessionOptions, name: str, memory: CudaMemory
) -> onnxruntime.InferenceSession:
    """A session on the memory's stream; ONNX Runtime would go on without CUDA where that fails."""
    settings = {
        "device_id": "0",
        "user_compute_stream": str(memory.stream),
        # A search by trial would begin anew for each number of samples that is left of a batch.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    try:
        session = onnxruntime.InferenceSession(
            content, options, providers=[(_CUDA, settings)], enable_fallback=False
        )
    except Exception as error:
        raise DeviceError(_refusal(name, error)) from None
    if session.get_providers()[:1] != [_CUDA]:
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} could not start {_CUDA} and would run {name} "
            "on the processor: it must find the CUDA libraries (cuBLAS, cuDNN) of the version that "
            "it was built for, and its words on the terminal say which it did not"
        )
    return session


def _refusal(name: str, error: Exception) -> str:
    # ONNX Runtime raises a class of its own per status code, all straight from Exception.
    return f"onnxruntime refuses {name}: {str(error).partition(chr(10))[0]}"
