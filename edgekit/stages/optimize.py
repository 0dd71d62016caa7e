"""optimize: the same computation with less work, part by part."""

from edgekit.backends import Backend
from edgekit.stages import Segments, Stage, StageResult, Step

__all__ = ["Optimize"]


class Optimize(Stage[Segments[bytes], Segments[bytes]]):
    """Folds constants in every part. What a part computes does not change; the check after it."""

    name = "optimize"
    requires = Segments
    ensures = Segments

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __call__(self, artifact: Segments[bytes], step: Step) -> StageResult[Segments[bytes]]:
        """Raises BuildError that names the part that could not be optimized."""
        programs = {}
        nodes = {}
        for part in artifact.parts():
            step(part.name)
            programs[part.name] = self.backend.optimize(part)
        result = artifact.lowered(programs)
        for before, after in zip(artifact.parts(), result.parts(), strict=True):
            nodes[before.name] = {
                "before": self.backend.node_count(before),
                "after": self.backend.node_count(after),
            }
        return StageResult(result, {"nodes": nodes})
