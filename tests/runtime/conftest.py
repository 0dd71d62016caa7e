"""The tiny bundle as a device has it: read, and loaded once for all tests of a file."""

from pathlib import Path

import pytest

from edgekit.bundle.reader import Bundle, read_bundle
from edgekit.runtime.chain import Chain


@pytest.fixture(scope="module")
def bundle(built_tiny: Path) -> Bundle:
    return read_bundle(built_tiny)


@pytest.fixture(scope="module")
def loaded(bundle: Bundle) -> Chain:
    return Chain.from_bundle(bundle)


@pytest.fixture
def chain(loaded: Chain) -> Chain:
    """A chain of the test's own, that nobody watches yet."""
    return Chain(loaded.spec, loaded.engines)
