"""Noise of the right shape: for timing at full depth, where the picture does not matter."""

import numpy as np


def noise(samples: int, seed: int) -> np.ndarray:
    """Standard normal float32 [samples, 3, 224, 224], without labels."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((samples, 3, 224, 224), dtype=np.float32)
