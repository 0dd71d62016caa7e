"""Small networks that are lowered once for all tests of the typed segments."""

import pytest

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
