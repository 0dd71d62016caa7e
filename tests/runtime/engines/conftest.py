"""A machine with a GPU that is none, for a test of an engine."""

from collections.abc import Iterator

import pytest

from tests.runtime.cuda_standin import CudaStandIn, world


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStandIn]:
    yield from world(monkeypatch)
