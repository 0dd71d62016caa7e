"""Small networks that are lowered once for all tests of a kind of segments."""

import numpy as np
import pytest
import torch

from tests.backends import tflite
from tests.backends.typed import Masked, Residual, Scaled, Typed, typed


@pytest.fixture(scope="session")
def residual() -> Typed:
    return typed(Residual)


@pytest.fixture(scope="session")
def scaled() -> Typed:
    return typed(Scaled)


@pytest.fixture(scope="session")
def masked() -> Typed:
    return typed(Masked)


@pytest.fixture(scope="session")
def first() -> tflite.Lowered:
    torch.manual_seed(0)
    x = tflite.samples(12, 12, 12, 3)
    x[0] *= 3  # Who is outside the others' range comes first, and must not be forgotten.
    return tflite.lowered("segment-1", tflite.First(), {"x": x}, ("a", "c", "exit1"), ["exit1"])


@pytest.fixture(scope="session")
def second(first) -> tflite.Lowered:
    torch.manual_seed(1)
    run = tflite.File(first.part.program)
    given = [run(**row) for row in first.rows()]
    features = {name: np.concatenate([one[name] for one in given]) for name in ("a", "c")}
    return tflite.lowered(
        "segment-2", tflite.Second(), features, ("e", "exit2", "exit3"), ["exit2", "exit3"]
    )


@pytest.fixture(scope="session")
def tokens() -> tflite.Lowered:
    torch.manual_seed(2)
    x = np.random.default_rng(0).integers(0, 20, (16, 6))
    return tflite.lowered("segment-1", tflite.Tokens(), {"x": x}, ("z", "exit1"), ["exit1"])


@pytest.fixture(scope="session")
def spread() -> tflite.Lowered:
    torch.manual_seed(3)
    x = tflite.samples(8, 8, 8, 4)
    return tflite.lowered("plain", tflite.Spread(), {"x": x}, ("exit1",), ["exit1"])
