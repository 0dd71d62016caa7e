"""Which thread pool suits a chain? ONNX Runtime's choices, at full depth, each in its own process.

    python benchmarks/thread_pools.py build/digits/host --threads 2

`quiet`: a pool per segment that never spins (what edgekit uses). `spin`: a pool per segment that
spins on after a run. `stop`: one that spins within a run only. `global`: one pool for the process,
which spins; every other session in the process must then use it as well.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.runtime import preprocess
from edgekit.runtime.bench import load_test_data

MODES = ("quiet", "spin", "stop", "global")


def main() -> None:
    """Run each mode in a process of its own, or one mode in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--mode", choices=MODES)
    options = parser.parse_args()
    if options.mode:
        print(measure(read_bundle(options.bundle), options.mode, options.threads, options.runs))
        return
    for mode in MODES:
        subprocess.run([sys.executable, *sys.argv, "--mode", mode], check=True)


def measure(bundle: Bundle, mode: str, threads: int, runs: int) -> str:
    """Median ms of the chain at full depth and of `whole`, in turn."""
    if mode == "global":
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
    manifest = bundle.manifest
    variant = manifest.variant()
    (source,) = (one.tensor for one in manifest.inputs)
    chain = [(one, session(bundle.read(one.path), mode, threads)) for one in variant.segments]
    whole = session(bundle.read(manifest.baselines[0].whole.path), mode, threads)

    def run_chain(x: np.ndarray) -> None:
        values = {source: x}
        for segment, engine in chain:
            given = engine.run(
                list(segment.outputs), {name: values[name] for name in segment.inputs}
            )
            values.update(zip(segment.outputs, given, strict=True))

    def run_whole(x: np.ndarray) -> None:
        whole.run(None, {source: x})

    data = load_test_data(bundle)
    assert data is not None, "the bundle carries no test split"  # noqa: S101
    inputs = preprocess.arrays_of(data[0], manifest.inputs)[0]
    times: dict[Callable[[np.ndarray], None], list[float]] = {run_chain: [], run_whole: []}
    for index in range(runs):
        for call, found in times.items():
            start = time.perf_counter()
            call(inputs[index % len(inputs)][None])
            found.append(time.perf_counter() - start)
    chain_ms, whole_ms = (1e3 * float(np.median(found)) for found in times.values())
    return (
        f"{mode:<7} chain {chain_ms:8.3f} ms  whole {whole_ms:8.3f} ms  {chain_ms / whole_ms:.3f}"
    )


def session(segment: bytes, mode: str, threads: int) -> onnxruntime.InferenceSession:
    """A session under one of the modes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if mode == "global":
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        spinning = "0" if mode == "quiet" else "1"
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        if mode == "stop":
            options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(segment, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
