"""LiteRT: segments as TFLite models, of one sample each and with their channels last."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import fx

from edgekit.backends import Crossing, Features, IntegerWork, Quantized, tflite_graph
from edgekit.backends.tflite_lower import batch_freed, named, without_transposes
from edgekit.backends.tflite_quantize import to_lower
from edgekit.errors import BuildError, DeviceError, describe_failure
from edgekit.quiet import quiet
from edgekit.recipe import Quantize
from edgekit.runtime.engines import litert
from edgekit.runtime.verify import differences
from edgekit.stages import Part, blamed
from edgekit.stages.fake_quantized import apart
from edgekit.target import Target

__all__ = ["LiteRTBackend"]

_SAME = 1e-4
"""How far samples that run together may be from the same samples alone, over the largest value."""


class LiteRTBackend:
    """See `edgekit.backends.Backend`."""

    suffix = ".tflite"
    channels_last = True
    wants_features = frozenset({"int8", "int16x8"})
    integer_remedy = (
        "LiteRT has no integer kernel for some operators; use others, lower "
        "quantize.min_integer_share, or build for fp32"
    )
    passes = {"transposes": ("transposes",)}  # noqa: RUF012  (a constant of the class)

    def lower(
        self, part: Part[fx.GraphModule], examples: tuple[torch.Tensor, ...], target: Target
    ) -> bytes:
        """See `Backend.lower`."""
        # Heavy: with it come jax and more.
        with quiet(), _silent():
            import litert_torch
        one = tuple(example[:1].contiguous() for example in examples)
        try:
            with quiet(), _silent(), torch.no_grad():
                converted = litert_torch.convert(apart(part.program).eval(), one).model_content()
        except Exception as error:  # Of many types, from deep inside the tools.
            operator = blamed(error)
            if operator is None:
                reason = describe_failure(error)
                raise BuildError(f"{part.name} has no TFLite form: {reason}") from error
            raise BuildError(
                f"{part.name}: operator {operator} has no TFLite form; compute the same with other "
                "operators of PyTorch, or end at an exit before it"
            ) from error
        program = named(converted, part.inputs, part.outputs)
        free = batch_freed(program)
        return free if _runs_together(part, free, examples) else program

    def apply(self, passes: tuple[str, ...], part: Part[bytes]) -> bytes:
        """See `Backend.apply`."""
        return without_transposes(part.program)

    def contract(self, part: Part[bytes]) -> tuple[str, ...]:
        """See `Backend.contract`."""
        return tflite_graph.contract(part.program)

    def quantize(
        self,
        part: Part[bytes],
        features: Features | None,
        entering: Mapping[str, Crossing],
        later: Sequence[Part[bytes]],
        options: Quantize,
        target: Target,
    ) -> Quantized:
        """See `Backend.quantize`."""
        with _silent():
            return to_lower(part, features, entering, options, target)

    def integer_work(
        self,
        before: Part[bytes],
        after: Part[bytes],
        target: Target,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> IntegerWork:
        """See `Backend.integer_work`."""
        return tflite_graph.integer_work(before, after)

    def node_count(self, part: Part[bytes]) -> int:
        """See `Backend.node_count`."""
        return tflite_graph.node_count(part.program)


def _runs_together(
    part: Part[fx.GraphModule], program: bytes, examples: tuple[torch.Tensor, ...]
) -> bool:
    """Whether samples that run together give what they give alone.

    Where not, something in the network is made for one sample: a token that is put before each, or
    a mask.
    """
    # The examples are a batch of two. In this order no shift, and no half, is like another.
    rows = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    given = [one[rows] for one in examples]
    with torch.no_grad():
        like = [one.numpy() for one in part.program(*given)]
    inputs = dict(zip(part.inputs, [one.contiguous().numpy() for one in given], strict=True))
    together, alone = (
        dict(zip(part.outputs, [np.zeros_like(one) for one in like], strict=True)) for _ in "ab"
    )
    (engine,) = litert.load([(part.name, program)], threads=1)
    try:
        engine.bind(inputs, together, len(rows))()
    except DeviceError:
        return False
    for row in range(len(rows)):
        one = {name: values[row:] for name, values in inputs.items()}
        engine.bind(one, {name: values[row:] for name, values in alone.items()}, 1)()
    return all(differences(together[name], alone[name])[1] <= _SAME for name in part.outputs)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, the converter keeps its progress and what its C++ part logs to itself."""
    key = "LITERT_TORCH_SHOW_PROGRESS"
    before = os.environ.get(key)
    os.environ[key] = "n"
    try:
        with litert.unannounced():
            yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before
