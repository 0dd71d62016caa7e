"""Builds a bundle's engines on the device, one segment at a time, and finds them again."""

import gc
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.manifest import GpuTarget, Segment
from edgekit.bundle.reader import Bundle
from edgekit.errors import CheckError, DeviceError, PlanError
from edgekit.runtime import cuda, tensorrt_api, torch2trt_build
from edgekit.runtime.chain import Chain
from edgekit.runtime.gpu import Gpu
from edgekit.runtime.plans import REFUSED, Record, Store, Tie, wanted
from edgekit.runtime.tensorrt_api import TensorRT
from edgekit.runtime.tensorrt_build import Options, build_plan
from edgekit.runtime.verify import GoldenReport, verify_golden

__all__ = ["Installation", "contents", "install", "records"]

_LEAST_FREE_BYTES = 256 * 2**20
"""What TensorRT itself needs beside a segment's weights while it builds."""

_COPIES = 4
"""A segment's weights while it is built: as read, parsed, in the builder and in the plan."""


@dataclass(frozen=True)
class Installation:
    """What `install` came to: each segment's record, which of them it built, the golden samples."""

    gpu: Gpu
    tensorrt: str
    records: tuple[Record, ...]
    fresh: tuple[str, ...]
    golden: GoldenReport


def records(bundle: Bundle, segments: Sequence[Segment]) -> list[Record | None]:
    """What there is of these segments' engines here, without reading them; None: nothing yet.

    Raises DeviceError where the bundle needs no engines built, or this machine cannot run any: no
    GPU, no TensorRT, or one that the bundle does not want.
    """
    _, tensorrt, gpu = _here(bundle)
    ties = wanted(segments, _target(bundle), gpu, str(tensorrt))
    store = Store(bundle.path)
    return [_at_hand(store, tie) for tie in ties]


def contents(bundle: Bundle, segments: Sequence[Segment]) -> list[bytes]:
    """The segments' engines for this device, each held against its record.

    Raises as `plans` and `Store.read`.
    """
    _, tensorrt, gpu = _here(bundle)
    ties = wanted(segments, _target(bundle), gpu, str(tensorrt))
    store = Store(bundle.path)
    return [store.read(*pair) for pair in zip(segments, ties, strict=True)]


def install(
    bundle: Bundle,
    *,
    undivided: bool = True,
    rebuild: bool = False,
    step: Callable[[str], None] = lambda text: None,
) -> Installation:
    """Build the engines that this device has not yet, then run the golden samples on them.

    One segment at a time, each kept as soon as it is built: what is interrupted goes on where it
    was. With `undivided` those of `plain` and `whole`, too, which `bench` needs; with `rebuild` all
    anew. Raises DeviceError where this machine cannot build or lacks memory, or TensorRT refuses a
    segment; BuildError where nothing can be written beside the bundle; CheckError where the engines
    answer otherwise than the bundle's chain did on the host.
    """
    target, tensorrt, gpu = _here(bundle)
    manifest = bundle.manifest
    segments = [one for variant in manifest.variants for one in variant.segments]
    if undivided:
        segments += [one for pair in manifest.baselines for one in (pair.plain, pair.whole)]
    ties = wanted(segments, target, gpu, str(tensorrt))
    store = Store(bundle.path)
    done: list[Record] = []
    fresh: list[str] = []
    with store.locked(lambda: step("waiting for another install of this bundle")):
        for segment, tie in zip(segments, ties, strict=True):
            record = None if rebuild else _sound(store, segment, tie)
            if record is None:
                record = _build(bundle, segment, tie, store, tensorrt, step)
                fresh.append(segment.name)
            done.append(record)
        step("golden samples")
        chain = [one.sha256 for one in manifest.variant().segments]
        ran = [one for one in done if one.tie.segment_sha256 in chain]
        try:
            golden = verify_golden(bundle, Chain.from_bundle(bundle))
        except CheckError:
            for one in ran:
                store.prove(one, REFUSED)
            raise
        done = [store.prove(one) if one in ran else one for one in done]
    return Installation(gpu, str(tensorrt), tuple(done), tuple(fresh), golden)


def _target(bundle: Bundle) -> GpuTarget:
    target = bundle.manifest.target
    if target.gpu is None:
        raise DeviceError(
            f"{bundle.path}: nothing is to be built for it: {target.engine} loads its segments as "
            "they are"
        )
    return target.gpu


def _here(bundle: Bundle) -> tuple[GpuTarget, TensorRT, Gpu]:
    """What engines are built by and for on this machine."""
    target = _target(bundle)
    try:
        gpu = cuda.find().gpu()
        tensorrt = tensorrt_api.find()
    except DeviceError as error:
        raise DeviceError(
            f"{error}; edgekit run, verify and bench take the same segments on the processor with "
            "--engine onnxruntime"
        ) from None
    if tensorrt.name == tensorrt_api.FULL and not _within(tensorrt.version, target.tensorrt):
        raise DeviceError(
            f"{bundle.path} wants TensorRT {target.tensorrt}, and here is {tensorrt.version}; "
            f"pip install 'tensorrt-cu12{target.tensorrt}' (on a Jetson, update JetPack), or build "
            "the bundle with --set 'target.gpu.tensorrt=\"RANGE\"'"
        )
    return target, tensorrt, gpu


def _within(version: str, bounds: str) -> bool:
    """Whether a version lies in a range such as ">=10.3,<11", by the numbers at its beginning."""
    found = _numbers(version)
    for operator, bound in re.findall(r"(>=|<=|==|!=|<|>)\s*([\d.]+)", bounds):
        limit = _numbers(bound)
        # 10.3.0.26 is within ==10.3 as pip reads ==10.3.*, and is not beyond <=10.3.
        same, here = found[: len(limit)], found
        holds = {
            ">=": here >= limit,
            "<": here < limit,
            ">": same > limit,
            "<=": same <= limit,
            "==": same == limit,
            "!=": same != limit,
        }
        if not holds[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", version.partition("+")[0]))


def _at_hand(store: Store, tie: Tie) -> Record | None:
    """The record of a plan that is there, by its size; None where it would be built anew."""
    try:
        record = store.look(tie)
    except PlanError:
        return None
    if record is None or record.proven == REFUSED or store.size_bytes(tie) != record.size_bytes:
        return None
    return record


def _sound(store: Store, segment: Segment, tie: Tie) -> Record | None:
    """The record of a plan that needs no work; None where there is none, or it is damaged."""
    record = _at_hand(store, tie)
    try:
        if record is not None:
            store.read(segment, tie)
    except PlanError:
        return None
    return record


def _build(
    bundle: Bundle,
    segment: Segment,
    tie: Tie,
    store: Store,
    tensorrt: TensorRT,
    step: Callable[[str], None],
) -> Record:
    content = bundle.read(segment.path)
    free_bytes = _free_bytes(cuda.find())
    needed_bytes = _LEAST_FREE_BYTES + _COPIES * len(content)
    if free_bytes < needed_bytes:
        raise DeviceError(
            f"{segment.name}: {free_bytes / 1e6:,.0f} MB of memory are free, and building its "
            f"engine takes {needed_bytes / 1e6:,.0f} MB at least: end other programs, and call it "
            "again; what is built already stays"
        )
    step(segment.name)
    options = Options(tie.batch_sizes, min(tie.workspace_bytes, free_bytes // 2))
    started = time.perf_counter()
    build = torch2trt_build.build_plan if tie.builder == "torch2trt" else build_plan
    built = build(
        tensorrt, content, segment.name, options, timing_cache=store.timing(tie), step=step
    )
    record = store.put(segment, tie, built.content, time.perf_counter() - started)
    if built.timing_cache is not None:
        store.keep_timing(tie, built.timing_cache)
    del built
    gc.collect()  # The builder's memory, before the next segment asks how much is free.
    return record


def _free_bytes(adapter: "cuda.Cuda") -> int:
    """The memory that a build may take. What files are cached in counts, where it is shared."""
    free_bytes, _ = adapter.memory_bytes()
    if not adapter.gpu().shares_memory:
        return free_bytes
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next((x.split()[1] for x in lines if x.startswith("MemAvailable:")), "0")
    return max(free_bytes, int(available) * 1024)
