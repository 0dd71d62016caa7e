"""What is judged by values alone, for every engine family."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends import step_of


@given(
    st.lists(st.integers(-127, 127), min_size=1, max_size=200),
    st.floats(1e-6, 1e3, allow_subnormal=False),
)
def test_a_step_is_found_again_from_float32_weights(counts, step):
    values = (np.array(counts) * step).astype(np.float32)
    # All even counts lie on twice the step as well.
    assert step_of(values) == pytest.approx(step * math.gcd(*counts), rel=1e-6)


def test_weights_on_no_steps_have_none():
    assert step_of(np.random.default_rng(0).normal(size=(27,)).astype(np.float32)) is None
    assert step_of(np.arange(1, 300, dtype=np.float32)) is None
