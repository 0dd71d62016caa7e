"""ONNX Runtime on the CPU."""

from collections.abc import Callable, Mapping, Sequence

import onnxruntime

from edgekit.errors import DeviceError
from edgekit.runtime.engines import Array, HostMemory

__all__ = ["OnnxRuntimeEngine", "load"]

_MEMORY = HostMemory()


class OnnxRuntimeEngine:
    """A segment in an ONNX Runtime session."""

    memory = _MEMORY
    version = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, session: onnxruntime.InferenceSession, name: str) -> None:
        self._session = session
        self._name = name

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int
    ) -> Callable[[], None]:
        """See `Engine.bind`."""
        binding = self._session.io_binding()
        views = []
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                view = array[:rows]
                try:
                    bind(name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
                except Exception as error:
                    raise DeviceError(_refusal(self._name, error)) from None
                views.append(view)
        run, name = self._session.run_with_iobinding, self._name

        def call(_keep_alive: list[Array] = views) -> None:
            try:
                run(binding)
            except Exception as error:
                raise DeviceError(_refusal(name, error)) from None

        return call

    def shapes(self, inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        """See `Engine.shapes`."""
        names = [one.name for one in self._session.get_outputs()]
        try:
            values = self._session.run(names, dict(inputs))
        except Exception as error:
            raise DeviceError(_refusal(self._name, error)) from None
        return {name: value.shape[1:] for name, value in zip(names, values, strict=True)}


def load(segments: Sequence[tuple[str, bytes]], *, threads: int) -> list[OnnxRuntimeEngine]:
    """An engine for each ONNX model. Raises DeviceError where ONNX Runtime refuses one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A segment's threads must not spin while another segment runs: they would take its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An x86 processor without VNNI adds products of 8-bit integers in 16 bits, which saturate: an
    # exit of a small network was 42 % off. So it takes slower kernels there; nothing changes on
    # others. Where weights have a scale per channel, they must have zero points for that (1.32).
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # What goes wrong comes as an exception as well.
    engines = []
    for name, content in segments:
        try:
            session = onnxruntime.InferenceSession(
                content,
                options,
                providers=["CPUExecutionProvider"],
                # Of float16 it leaves a tensor without a type, and a later pass takes the process
                # down (seen in 1.32: a LayerNormalization, turned in front of a product).
                disabled_optimizers=["MatmulTransposeFusion"],
            )
        except Exception as error:
            raise DeviceError(_refusal(name, error)) from None
        engines.append(OnnxRuntimeEngine(session, name))
    return engines


def _refusal(name: str, error: Exception) -> str:
    # ONNX Runtime raises a class of its own per status code, all straight from Exception.
    return f"onnxruntime refuses {name}: {str(error).partition(chr(10))[0]}"
