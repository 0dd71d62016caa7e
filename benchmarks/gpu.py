"""What the split costs and what early exit gains on this machine's GPU: a section of a page.

    make bench-gpu

Builds recipes/digits and benchmarks/resnet18 in FP16, and runs them on every engine for a GPU that
loads here, beside PyTorch on the same GPU where that has CUDA. Where there is no GPU it says so and
leaves the page as it is. A bundle that lies in the output folder already is taken as it is, so that
a device without PyTorch can measure what was built elsewhere.
"""

import argparse
import gc
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from page import PAGE, write_section

from edgekit.bundle.manifest import Policy, Segment
from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.errors import DeviceError
from edgekit.runtime import cuda, preprocess
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.chain import Chain, ChainSpec, contents
from edgekit.runtime.criteria import CRITERIA, decide

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent

HEADING = "## On a GPU"

NETWORKS = {
    "digits": ROOT / "recipes/digits/recipe.yaml",
    "resnet18": ROOT / "benchmarks/resnet18/recipe.yaml",
}
ENGINES = ("tensorrt", "onnxruntime-cuda")
BATCHES = (1, 8, 32)

HEAD = """{heading}

Written by `make bench-gpu` ({date}), on {gpu}, compute capability {capability}, CUDA {cuda};
{versions}.
Means in ms over {rounds} rounds, from prepared samples on the host to the decision there,
everything in FP16 and interleaved in one process; the ratios are what to compare. `plain` is the
undivided network with its final exit only, `whole` with all exits, PyTorch the model with all exits
on the same GPU. Digits leave where the bundle's policy says. `resnet18` has random weights and sees
noise: its thresholds are set so that as many samples leave at each exit, which is no claim that a
trained one would.

"""

COLUMNS = (
    "| network | engine | batch | plain | whole | no exit taken | with exits | "
    "full depth / whole | x plain | PyTorch eager | torch.compile |"
)


def main() -> None:
    """Build, measure, write the section."""
    parser = argparse.ArgumentParser(description="Measure on a GPU, for docs/benchmarks.md.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--output", type=Path, default=ROOT / "build/benchmarks-gpu")
    options = parser.parse_args()
    try:
        gpu = cuda.find().gpu()
    except DeviceError as error:
        print(f"there is no GPU here, so nothing was measured: {error}")
        return
    rows: list[str] = []
    versions: dict[str, None] = {}
    remarks: dict[str, None] = {}
    for network, recipe in NETWORKS.items():
        bundle = built(recipe, options.output / network)
        torch_calls, why = in_pytorch(recipe)
        if torch_calls:
            versions[f"PyTorch {sys.modules['torch'].__version__}"] = None
        else:
            remarks[f"PyTorch is left out: {why}."] = None
        for engine in ENGINES:
            try:
                chains = loaded(bundle, engine)
            except DeviceError as error:
                remarks[f"{engine} is left out: {error}."] = None
                continue
            versions[chains["plain"].engines[0].version] = None
            for batch in BATCHES:
                found = measured(chains, torch_calls, bundle, batch, options.rounds)
                rows.append(row(network, engine, batch, found))
                print(rows[-1], flush=True)
            del chains
            gc.collect()
    if not rows:
        sys.exit("no engine for a GPU loads here: " + " ".join(remarks))
    text = HEAD.format(
        heading=HEADING,
        date=datetime.now(timezone.utc).date(),
        gpu=gpu.name,
        capability=gpu.compute_capability,
        cuda=gpu.cuda,
        versions=", ".join(versions),
        rounds=options.rounds,
    )
    text += "\n".join([COLUMNS, "|---" * 11 + "|", *rows]) + "\n"
    if remarks:
        text += "\n" + "\n".join(f"- {one}" for one in remarks) + "\n"
    write_section(options.page, text)
    print(text)


def built(recipe: Path, folder: Path) -> Bundle:
    """The bundle of a recipe for a GPU in FP16; what lies there already is taken as it is."""
    if not folder.is_dir():
        from edgekit.pipeline import build
        from edgekit.recipe import load_recipe
        from edgekit.target import load_target

        name = "jetson" if platform.machine() == "aarch64" else "t4"
        # Whatever TensorRT is here: the segments are the same for all.
        target = load_target(name, {"precision": "fp16", "gpu.tensorrt": ">=10.3"})
        build(load_recipe(str(recipe), {"batch_sizes": list(BATCHES)}), target, folder)
    return read_bundle(folder)


def loaded(bundle: Bundle, engine: str) -> dict[str, Chain]:
    """The contenders on an engine. Raises DeviceError where it does not load."""
    if engine == "tensorrt":
        from edgekit.runtime.install import install

        install(bundle)
    manifest = bundle.manifest
    chain = Chain.from_bundle(bundle, engine=engine)
    policy = chain.spec.policy
    if not labelled(bundle):
        policy = evenly(chain, samples_of(bundle))
    refusing = replace(policy, thresholds=(math.inf,) * len(policy.thresholds))
    (pair,) = (one for one in manifest.baselines if one.variant == manifest.variant().name)
    return {
        "exits": chain.with_policy(policy),
        "full depth": chain.with_policy(refusing),
        "plain": undivided(bundle, pair.plain, engine),
        "whole": undivided(bundle, pair.whole, engine),
    }


def undivided(bundle: Bundle, segment: Segment, engine: str) -> Chain:
    """An undivided network as a chain of one segment."""
    manifest = bundle.manifest
    spec = ChainSpec(
        manifest.inputs,
        manifest.labels,
        manifest.variant().tensors,
        (segment,),
        Policy("max_prob", ()),
        BATCHES[-1],
    )
    return Chain.from_segments(spec, contents(bundle, (segment,), engine), engine=engine, threads=1)


def labelled(bundle: Bundle) -> bool:
    """Whether the samples that travel with a bundle are real ones."""
    data = load_test_data(bundle)
    return data is not None and data[1] is not None


def samples_of(bundle: Bundle) -> Array:
    """The prepared samples that travel with a bundle, at least as many as the greatest batch."""
    data = load_test_data(bundle)
    assert data is not None, "the bundle carries no test split"  # noqa: S101
    found = preprocess.arrays_of(data[0], bundle.manifest.inputs)[0]
    return np.resize(found, (max(len(found), BATCHES[-1]), *found.shape[1:]))


def evenly(chain: Chain, samples: Array) -> Policy:
    """Thresholds under which as many of these samples leave at each exit."""
    logits = list(chain.logits(samples).values())
    policy = replace(chain.spec.policy, criterion="max_prob")
    thresholds: list[float] = []
    for depth, exit in enumerate(logits[:-1]):
        open_ = (*thresholds, *[math.inf] * (len(logits) - 1 - depth))
        remaining = decide(logits, replace(policy, thresholds=open_)).depths >= depth
        confidences = [CRITERIA["max_prob"](one) for one in exit[remaining]]
        thresholds.append(float(np.quantile(confidences, 1 - 1 / (len(logits) - depth))))
    return replace(policy, thresholds=tuple(thresholds))


def in_pytorch(recipe: Path) -> tuple[dict[str, Callable[[Array], Array]], str]:
    """The model in PyTorch on the GPU, eager and compiled: samples in, classes out; or why not."""
    try:
        import torch

        from edgekit.models.load import load_model, user_code
        from edgekit.recipe import load_recipe
    except ImportError as error:
        return {}, str(error)
    if not torch.cuda.is_available():
        return {}, f"torch {torch.__version__} has no CUDA here"
    found = load_recipe(str(recipe))
    with user_code(found.folder):
        model = load_model(found).eval().half().cuda()
    calls = {}
    for name, network in (("eager", model), ("compiled", torch.compile(model))):

        @torch.inference_mode()
        def call(samples: Array, network: Any = network) -> Array:
            exits = network(torch.from_numpy(samples).cuda().half())
            classes: Array = exits[-1].float().cpu().numpy().argmax(axis=1)
            return classes

        calls[name] = call
    return calls, ""


def measured(
    chains: dict[str, Chain],
    torch_calls: dict[str, Callable[[Array], Array]],
    bundle: Bundle,
    batch: int,
    rounds: int,
) -> dict[str, float]:
    """Mean ms of each contender on batches of so many samples, in an order drawn anew."""
    samples = samples_of(bundle)
    batches = [
        samples[start : start + batch] for start in range(0, len(samples) - batch + 1, batch)
    ]
    calls: dict[str, Callable[[Array], object]] = dict(torch_calls)
    for name, chain in chains.items():
        calls[name] = one_by_one(chain) if batch == 1 else chain.many
    for call in calls.values():
        for one in batches[:3]:  # Buffers, profiles, compilers.
            call(one)
    times: dict[str, list[int]] = {name: [] for name in calls}
    order, names = np.random.default_rng(0), list(calls)
    gc.disable()
    for turn in range(rounds):
        one = batches[turn % len(batches)]
        for place in order.permutation(len(names)):
            call = calls[names[place]]
            before = time.perf_counter_ns()
            call(one)
            times[names[place]].append(time.perf_counter_ns() - before)
    gc.enable()
    return {name: float(np.mean(found)) / 1e6 for name, found in times.items()}


def one_by_one(chain: Chain) -> Callable[[Array], object]:
    """The chain's short way, for a batch of one."""
    return lambda samples: chain.one(samples[0])


def row(network: str, engine: str, batch: int, ms: dict[str, float]) -> str:
    """A line of the table."""

    def text(name: str) -> str:
        return f"{ms[name]:.3f}" if name in ms else "-"

    cells: Sequence[str] = [
        network, engine, str(batch), text("plain"), text("whole"), text("full depth"),
        text("exits"), f"{ms['full depth'] / ms['whole']:.3f}",
        f"{ms['plain'] / ms['exits']:.2f}", text("eager"), text("compiled"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
