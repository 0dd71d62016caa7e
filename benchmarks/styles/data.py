"""Waves of random direction and strength under noise: some samples are clear, some are not."""

import numpy as np
from model import STYLES


def waves(style: str, samples: int, seed: int) -> np.ndarray:
    """Float32 [samples, *shape] for the network of that style, without labels."""
    shape = STYLES[style].shape
    generator = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij"))
    found = np.empty((samples, *shape), np.float32)
    for one in found:
        turns = generator.uniform(-4, 4, len(shape))
        phase, strength = generator.uniform(0, 2 * np.pi), generator.uniform(0.2, 3)
        wave = np.sin(2 * np.pi * np.tensordot(turns, axes, 1) + phase)
        one[:] = strength * wave + 0.5 * generator.standard_normal(shape)
    return found
