"""lower: each part into the file that the target's engine reads."""

import torch
from torch import fx

from edgekit.backends import Backend
from edgekit.runtime.preprocess import by_name
from edgekit.stages import Segments, Stage, StageResult, Step, Tensors
from edgekit.target import Target

__all__ = ["Lower"]


class Lower(Stage[Segments[fx.GraphModule], Segments[bytes]]):
    """Lowers the parts one by one; their contracts stay as they are."""

    name = "lower"
    requires = Segments
    ensures = Segments

    def __init__(self, backend: Backend, target: Target, sample: Tensors) -> None:
        self.backend = backend
        self.target = target
        self.sample = sample

    def __call__(
        self, artifact: Segments[fx.GraphModule], step: Step
    ) -> StageResult[Segments[bytes]]:
        """Raises BuildError that names the part which has no form in the target's format."""
        programs = {}
        for parts in artifact.chains().values():
            values = {artifact.inputs[name]: one for name, one in by_name(self.sample).items()}
            for part in parts:
                step(part.name)
                examples = tuple(values[name] for name in part.inputs)
                with torch.no_grad():
                    values.update(zip(part.outputs, part.program(*examples), strict=True))
                programs[part.name] = self.backend.lower(part, examples, self.target)
        size_bytes = {name: len(program) for name, program in programs.items()}
        return StageResult(artifact.lowered(programs), {"size_bytes": size_bytes})
