"""Waves of random direction and strength under noise: some samples are clear, some are not."""

from collections.abc import Mapping, Sequence

import numpy as np

Shape = Sequence[int | Sequence[int]]
"""Of one sample; where a size varies, the least, the greatest and the step between them."""

Shapes = Shape | Mapping[str, Shape]
"""Of the only input, or by the inputs' names."""


def waves(
    shape: Shapes, samples: int, seed: int, rows: int | None = None
) -> np.ndarray | list[np.ndarray] | dict[str, np.ndarray]:
    """Float32 [samples, *shape], or that by each input's name, without labels.

    Where sizes vary, a list: of four kinds of size at most, in turn.
    With `rows` they are tokens, int64 below that: of few kinds in a clear sample, of many in one
    that is not, and 0 behind a sample's end.
    """
    generator = np.random.default_rng(seed)
    if isinstance(shape, Mapping):
        return {name: _floats(one, samples, generator) for name, one in shape.items()}
    if rows is not None:
        return _tokens(shape, samples, generator, rows)
    if fixed(shape) == tuple(shape):
        return _floats(shape, samples, generator)
    kinds = [_one_of(shape, generator) for _ in range(4)]
    return [_floats(kinds[row % 4], 1, generator)[0] for row in range(samples)]


def fixed(shape: Shape) -> tuple[int, ...]:
    """The shape of the greatest sample."""
    return tuple(size if isinstance(size, int) else size[1] for size in shape)


def _one_of(shape: Shape, generator: np.random.Generator) -> tuple[int, ...]:
    return tuple(
        size
        if isinstance(size, int)
        else int(generator.choice(range(size[0], size[1] + 1, size[2])))
        for size in shape
    )


def _floats(shape: Sequence[int], samples: int, generator: np.random.Generator) -> np.ndarray:
    axes = np.stack(np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij"))
    found = np.empty((samples, *shape), np.float32)
    for one in found:
        turns = generator.uniform(-4, 4, len(shape))
        phase, strength = generator.uniform(0, 2 * np.pi), generator.uniform(0.2, 3)
        wave = np.sin(2 * np.pi * np.tensordot(turns, axes, 1) + phase)
        one[:] = strength * wave + 0.5 * generator.standard_normal(shape)
    return found


def _tokens(
    shape: Sequence[int], samples: int, generator: np.random.Generator, rows: int
) -> np.ndarray:
    found = np.empty((samples, *shape), np.int64)
    for one in found:
        kinds = generator.integers(1, rows, generator.integers(2, 9))
        one[:] = generator.choice(kinds, shape)
        one[generator.integers(len(one) // 2, len(one) + 1) :] = 0
    return found
