"""A chain on a GPU decides as PyTorch does, and its features never come to the host."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgekit.bundle.manifest import Policy
from edgekit.models.load import load_model, user_code
from edgekit.recipe import load_recipe
from edgekit.runtime import preprocess
from edgekit.runtime.bench import bench, load_test_data
from edgekit.runtime.chain import Chain
from edgekit.runtime.criteria import CRITERIA, decide
from edgekit.runtime.cuda_memory import CudaMemory
from edgekit.runtime.gpu import Gpu
from edgekit.runtime.verify import verify_golden
from tests.gpu.conftest import Built

Array = npt.NDArray[Any]

pytestmark = pytest.mark.gpu

_ERROR = {"fp32": 5e-3, "fp16": 2e-2}
"""How far logits may be off, over the greatest. FP32 products run as TF32, of ten bits, too."""


@dataclass(frozen=True)
class Proof:
    """A chain on a GPU, samples, what PyTorch says of them, and thresholds that part them."""

    chain: Chain
    samples: Array
    logits: dict[str, Array]
    policy: Policy
    clear: Array
    """Which samples no rounding can take over a threshold."""

    @property
    def memory(self) -> CudaMemory:
        memory = self.chain.engines[0].memory
        assert isinstance(memory, CudaMemory)
        return memory


def parted(logits: list[Array], policy: Policy, error: float) -> tuple[Policy, Array]:
    """Thresholds in the middle of each exit's confidences, and which samples are clear of them.

    Where every logit is off by e at most, the log-odds of the greatest probability are by 2 e.
    """
    assert policy.criterion == "max_prob"
    confident = CRITERIA[policy.criterion]
    confidences = np.array([[confident(row) for row in exit] for exit in logits[:-1]])
    thresholds = np.median(confidences, axis=1)
    odds = [np.log(one) - np.log1p(-one) for one in (confidences, thresholds[:, None])]
    off = np.array([2 * error * np.abs(exit).max() for exit in logits[:-1]])
    clear = (np.abs(odds[0] - odds[1]) > off[:, None]).all(axis=0)
    return replace(policy, thresholds=tuple(map(float, thresholds))), clear


@pytest.fixture(scope="module")
def proof(built: Built, engine: str) -> Proof:
    recipe = load_recipe(str(built.recipe))
    data = load_test_data(built.bundle)
    assert data is not None
    samples = preprocess.arrays_of(data[0], built.bundle.manifest.inputs)[0]
    with user_code(recipe.folder), torch.no_grad():
        exits = [one.numpy() for one in load_model(recipe)(torch.from_numpy(samples))]
    policy, clear = parted(exits, built.bundle.manifest.policy, _ERROR[built.precision])
    chain = Chain.from_bundle(built.bundle, engine=engine).with_policy(policy)
    return Proof(chain, samples, dict(zip(recipe.exits, exits, strict=True)), policy, clear)


def test_every_exit_of_every_sample_is_as_in_pytorch(proof: Proof, built: Built) -> None:
    ours = proof.chain.logits(proof.samples)
    for name, wanted in proof.logits.items():
        error = np.abs(ours[name] - wanted).max() / np.abs(wanted).max()
        assert error < _ERROR[built.precision], name


def test_samples_leave_where_pytorch_says_one_by_one_and_in_batches(proof: Proof) -> None:
    wanted = decide(list(proof.logits.values()), proof.policy)
    names = list(proof.logits)
    batch = proof.chain.many(proof.samples)
    chosen = np.flatnonzero(proof.clear)
    assert len(chosen) >= len(proof.samples) / 4
    assert len({names[wanted.depths[row]] for row in chosen}) > 1, "no exit is put to the test"
    for row in chosen:
        expected = names[wanted.depths[row]]
        assert batch[row].exit == expected
        assert proof.chain.one(proof.samples[row]).exit == expected


def test_logits_alone_come_to_the_host_and_features_are_moved_on_the_gpu(proof: Proof) -> None:
    most = proof.chain.spec.most_rows
    samples = proof.samples[:most]
    proof.chain.many(samples)
    counts = proof.memory.counts
    before = counts.to_host.size_bytes, counts.to_device.size_bytes, counts.on_device.number
    found = proof.chain.many(samples)
    names = list(proof.logits)
    width = {name: one[0].nbytes for name, one in proof.logits.items()}
    reached = [
        sum(names.index(one.exit) >= depth for one in found) * width[name]
        for depth, name in enumerate(names)
    ]
    assert counts.to_host.size_bytes - before[0] == sum(reached)
    assert counts.to_device.size_bytes - before[1] == samples.nbytes
    assert counts.on_device.number > before[2], "nothing was compacted"


def test_the_same_sample_gives_the_same_bits(proof: Proof) -> None:
    first = proof.chain.logits(proof.samples[:1])
    for _ in range(20):
        again = proof.chain.logits(proof.samples[:1])
        for name, values in first.items():
            np.testing.assert_array_equal(again[name], values)


def test_golden_samples_are_answered_as_on_the_host(built: Built, engine: str) -> None:
    verify_golden(built.bundle, Chain.from_bundle(built.bundle, engine=engine))


def test_the_bench_names_engine_and_gpu(built: Built, engine: str, gpu: Gpu) -> None:
    data = load_test_data(built.bundle)
    assert data is not None
    labels = None if data[1] is None else data[1][:8]
    samples = preprocess.unstack(data[0])[:8]
    report = bench(built.bundle, samples, labels, engine=engine, rounds=1)
    assert report["engine"].startswith(engine.partition("-")[0])
    assert gpu.name in report["engine"]
    assert all(one["latency_ms"] > 0 for one in report["segments"])


def test_chains_that_come_and_go_leave_no_memory(built: Built, engine: str) -> None:
    def used() -> int:
        free, total = chain.engines[0].memory.cuda.memory_bytes()
        return total - free

    seen = []
    for _ in range(6):
        chain = Chain.from_bundle(built.bundle, engine=engine)
        chain.many(np.zeros((8, *chain.spec.inputs[0].shape), np.float32))
        seen.append(used())
    # The first load brings libraries along, which stay.
    assert seen[-1] - seen[2] < 64 * 2**20
