"""Where samples lie in a tensor: every layout comes to the front and back, and is told apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.stages.crossing import Layout

BATCH = 3


def laid_out(layout: Layout, samples: torch.Tensor) -> torch.Tensor:
    """Samples `[batch, (times,) *rest]` in one tensor, as the layout says, without its own code."""
    if layout.split is None:
        return samples.movedim(0, layout.dim)
    if layout.split[0] == -1:
        return samples.movedim((0, 1), (layout.dim, layout.dim + 1)).flatten(
            layout.dim, layout.dim + 1
        )
    return samples.movedim((1, 0), (layout.dim, layout.dim + 1)).flatten(layout.dim, layout.dim + 1)


def turned(layout: Layout, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    there, back = layout.steps(value.shape)
    front = value
    for operator, argument in there:
        front = operator(front, argument)
    again = front
    for operator, argument in back:
        again = operator(again, argument)
    return front, again


@st.composite
def cases(draw) -> tuple[Layout, torch.Tensor]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    times = draw(st.none() | st.integers(2, 4))
    if times is None:
        layout = Layout(draw(st.integers(0, len(sizes))))
        shape = (BATCH, *sizes)
    else:
        split = draw(st.sampled_from([(-1, times), (times, -1)]))
        layout = Layout(draw(st.integers(0, len(sizes))), split)
        shape = (BATCH, times, *sizes)
    return layout, torch.randn(
        shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))
    )


@given(cases())
def test_the_batch_comes_to_the_front_and_goes_back(case):
    layout, samples = case
    value = laid_out(layout, samples)
    front, again = turned(layout, value)
    assert torch.equal(again, value)
    assert front.shape[0] == BATCH
    for row, sample in zip(front, samples, strict=True):
        assert torch.equal(row.flatten().sort().values, sample.flatten().sort().values)


@given(cases())
def test_the_right_layout_is_told_from_the_wrong_one(case):
    layout, samples = case
    value, swapped = laid_out(layout, samples), laid_out(layout, samples.flip(0))
    assert layout.carries(value, swapped)
    if layout.split is not None:
        assert not Layout(layout.dim, layout.split[::-1]).carries(value, swapped)


@pytest.mark.parametrize("split", [(-1, 4), (4, -1)])
def test_where_samples_are_the_same_every_layout_would_do(split):
    value = torch.ones(8, 3)
    assert Layout(0, split).carries(value, value)
