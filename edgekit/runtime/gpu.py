"""What a GPU is, to those who build for one and run on it: plain values, nothing of CUDA's."""

from dataclasses import dataclass

__all__ = ["Gpu"]


@dataclass(frozen=True)
class Gpu:
    """A GPU with its driver: `compute_capability` as "8.7", `cuda` the driver's version as "12.6".

    `multiprocessors` tells GPUs of one name apart: CUDA calls every Jetson's "Orin", and a power
    mode may leave some of them off. `memory_bytes` is what it has in all; a Jetson `shares_memory`
    with its processor.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int
    cuda: str
    shares_memory: bool = False
