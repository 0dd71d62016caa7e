"""LiteRT (TensorFlow Lite) on the CPU: `ai-edge-litert`, or `tflite-runtime` where only that is.

A segment's file is of one sample. Batches run in groups of a fixed size, each with an interpreter
of its own that is made when it is first needed, where the file says that its batch may be another
(`shape_signature`), and one by one where it does not: XNNPACK takes no sizes that vary.
"""

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from edgekit.errors import DeviceError
from edgekit.runtime.engines import Array, HostMemory

__all__ = ["GROUP_ROWS", "LiteRTEngine", "load", "unannounced"]

GROUP_ROWS = 8
"""Samples of a batch that run at once: enough to share what a call costs, whatever the batch."""

_PACKAGES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""Where the interpreter may come from, the same in both; the first is what still goes on."""

_MEMORY = HostMemory()

_SILENCE = threading.RLock()


@cache
def _found() -> tuple[str, Any]:
    """The package that is here, and its interpreter. Raises DeviceError where there is none."""
    reasons = []
    for package, module in _PACKAGES.items():
        try:
            return package, importlib.import_module(module).Interpreter
        except ImportError as error:
            # Its words alone: with its traceback it would hold the caller's frame, and whatever
            # an engine has there, until a collection. An interpreter that is held does not run.
            reasons.append(str(error))
    raise DeviceError(
        f"engine litert is not installed ({'; '.join(reasons)}): pip install 'edgekit[litert]'"
    )


class LiteRTEngine:
    """A segment in interpreters: of one sample, and of `GROUP_ROWS` once there are so many."""

    memory = _MEMORY

    def __init__(self, content: bytes, name: str, threads: int) -> None:
        package, self._make = _found()
        self.version = f"{package} {_version(package)}"
        self._content = content
        self._name = name
        self._threads = threads
        self._interpreters: dict[int, Any] = {}
        try:
            runner = self._interpreter(1).get_signature_runner()
        except ValueError as error:
            raise DeviceError(_refusal(name, error)) from None
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # By the signature's names: the order of a file's inputs and outputs is the converter's.
        self._places = {key: one["index"] for key, one in (inputs | outputs).items()}
        self._kinds = {
            key: (np.dtype(one["dtype"]), tuple(int(size) for size in one["shape"][1:]))
            for key, one in (inputs | outputs).items()
        }
        signatures = [one["shape_signature"] for one in inputs.values()]
        self.runs_groups = all(len(one) and one[0] == -1 for one in signatures)

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int
    ) -> Callable[[], None]:
        """See `Engine.bind`."""
        unknown = sorted((inputs.keys() | outputs.keys()) - self._places.keys())
        if unknown:
            raise DeviceError(
                f"{self._name}: the file has no {', '.join(unknown)} in its signature"
            )
        for key, array in (*inputs.items(), *outputs.items()):
            dtype, shape = self._kinds[key]
            # numpy would cast and spread what is copied out of the interpreter, without a word.
            if (array.dtype, array.shape[1:]) != (dtype, shape):
                raise DeviceError(
                    f"{self._name}: {key} is {dtype} {list(shape)} in the file, and is taken for "
                    f"{array.dtype} {list(array.shape[1:])}: rebuild the bundle"
                )
        runs = []
        start = 0
        while start < rows:
            size = GROUP_ROWS if self.runs_groups and rows - start >= GROUP_ROWS else 1
            interpreter = self._interpreter(size)
            given, wanted = (
                [(self._places[key], array[start : start + size]) for key, array in arrays.items()]
                for arrays in (inputs, outputs)
            )
            runs.append(self._bound(interpreter, given, wanted))
            start += size
        if len(runs) == 1:
            return runs[0]

        def call() -> None:
            for run in runs:
                run()

        return call

    def shapes(self, inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        """See `Engine.shapes`."""
        raise DeviceError(f"{self._name}: LiteRT runs samples of one size")

    def _interpreter(self, rows: int) -> Any:
        """The interpreter of so many samples."""
        if rows not in self._interpreters:
            try:
                # Of content the structure is verified; of a file's path it would not be.
                made = self._make(model_content=self._content, num_threads=self._threads)
                if rows > 1:
                    for one in made.get_input_details():
                        made.resize_tensor_input(one["index"], [rows, *one["shape"][1:]])
                made.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise DeviceError(_refusal(self._name, error)) from None
            self._interpreters[rows] = made
        return self._interpreters[rows]

    def _bound(
        self, interpreter: Any, given: list[tuple[int, Array]], wanted: list[tuple[int, Array]]
    ) -> Callable[[], None]:
        write, run, read, name = (
            interpreter.set_tensor,
            interpreter.invoke,
            interpreter.tensor,
            self._name,
        )
        # A view into the interpreter is made anew each time: while one is held, it will not run.
        reads = [(read(place), array) for place, array in wanted]

        def call() -> None:
            try:
                for place, array in given:
                    write(place, array)
                run()
                for view, array in reads:
                    array[...] = view()
            except (RuntimeError, ValueError) as error:
                raise DeviceError(_refusal(name, error)) from None

        return call


def load(segments: Sequence[tuple[str, bytes]], *, threads: int) -> list[LiteRTEngine]:
    """An engine for each TFLite model. Raises DeviceError where LiteRT refuses one."""
    with unannounced():
        return [LiteRTEngine(content, name, threads) for name, content in segments]


@contextmanager
def unannounced() -> Iterator[None]:
    """Inside, nothing reaches standard error, on which LiteRT announces what it does, unasked.

    What goes wrong comes as an exception as well. Threads take turns: standard error is the whole
    process's, and one that came between would keep the silence for what it was before.
    """
    with _SILENCE:
        try:
            kept = os.dup(2)
        except OSError:  # It is closed, as a service may have it: nobody hears.
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _version(package: str) -> str:
    """A nightly build, or a system's own, has the module and goes by another name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _refusal(name: str, error: Exception) -> str:
    return f"{_found()[0]} refuses {name}: {str(error).strip().partition(chr(10))[0]}"
