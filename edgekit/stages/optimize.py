"""optimize: the same computation with less work, part by part, and proof after every pass."""

from collections.abc import Callable
from typing import Any

from edgekit.backends import Backend
from edgekit.errors import BuildError
from edgekit.stages import Segments, Stage, StageResult, Step

__all__ = ["ErrorOf", "Optimize"]

ErrorOf = Callable[[Segments[bytes], str], float]
"""Greatest relative error of the logits of the chains that the part of that name is in."""


class Optimize(Stage[Segments[bytes], Segments[bytes]]):
    """Runs the backend's passes over every part, and drops those that break it.

    The passes are other people's, and wrong now and then. What a pass gives is kept only if its
    contract is as before and its logits are still PyTorch's; else its input is, and the notes say
    why. What changes nothing needs no proof.
    """

    name = "optimize"
    requires = Segments
    ensures = Segments

    def __init__(self, backend: Backend, error_of: ErrorOf, limit: float) -> None:
        """`limit` is the greatest error, as `error_of` gives it, that a pass may leave."""
        self.backend = backend
        self.error_of = error_of
        self.limit = limit

    def __call__(self, artifact: Segments[bytes], step: Step) -> StageResult[Segments[bytes]]:
        """Notes each part's nodes before and after every entry of passes, and what was dropped."""
        result = artifact
        nodes: dict[str, dict[str, int]] = {}
        dropped: list[dict[str, str]] = []
        for name in [part.name for part in artifact.parts()]:
            step(name)
            nodes[name] = {"before": self._node_count(result, name)}
            for entry, passes in self.backend.passes.items():
                result = self._run(result, name, passes, dropped)
                nodes[name][entry] = self._node_count(result, name)
            nodes[name]["after"] = self._node_count(result, name)
        notes: dict[str, Any] = {"nodes": nodes, "dropped": dropped}
        return StageResult(result, notes)

    def _run(
        self,
        segments: Segments[bytes],
        name: str,
        passes: tuple[str, ...],
        dropped: list[dict[str, str]],
    ) -> Segments[bytes]:
        """The segments after these passes over the part `name`, less those that break it.

        All at once, which is nearly always right; where it is not, each half by itself, down to the
        pass that is to blame.
        """
        changed = self._attempt(segments, name, passes)
        if isinstance(changed, Segments):
            return changed
        if len(passes) == 1:
            dropped.append({"part": name, "pass": passes[0], "reason": changed})
            return segments
        middle = len(passes) // 2
        for half in (passes[:middle], passes[middle:]):
            segments = self._run(segments, name, half, dropped)
        return segments

    def _attempt(
        self, segments: Segments[bytes], name: str, passes: tuple[str, ...]
    ) -> Segments[bytes] | str:
        """The segments after all of these passes, or why the part is broken then."""
        part = segments.part(name)
        try:
            program = self.backend.apply(passes, part)
        except BuildError as error:
            return str(error)
        if program == part.program:
            return segments
        programs = {one.name: one.program for one in segments.parts()}
        changed = segments.lowered({**programs, name: program})
        before, after = self.backend.contract(part), self.backend.contract(changed.part(name))
        if before != after:
            lost, new = (
                ", ".join(one for one in these if one not in those)
                for these, those in ((before, after), (after, before))
            )
            return f"changes the contract: {lost or 'nothing'} became {new or 'nothing'}"
        distance = self.error_of(changed, name)
        if distance == float("inf"):
            return "the engine refuses what it gives, or that gives NaN"
        if not distance <= self.limit:
            return f"its logits differ from PyTorch's by {distance:.1e}, limit {self.limit:.1e}"
        return changed

    def _node_count(self, segments: Segments[bytes], name: str) -> int:
        return self.backend.node_count(segments.part(name))
