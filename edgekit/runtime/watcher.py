"""Who is told of every sample that a chain answers."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from edgekit.runtime.chain import Chain

__all__ = ["Watcher"]

Self = TypeVar("Self", bound="Watcher")


class Watcher(ABC):
    """See `Chain.watch`; as a context manager it is closed at the end.

    Those that `sets_thresholds` are told after the others, who look at what the sample met.
    """

    sets_thresholds = False
    _chain: "Chain"

    @abstractmethod
    def add(self, depth: int, confidence: float, started_ns: int, ended_ns: int, stop: str) -> None:
        """A sample left at exit `depth`, counted from 0, with its answer's confidence.

        Times are of `time.perf_counter_ns`. `stop` says why it left, see `Prediction`. The chain
        holds its lock here, and may not be called.
        """

    def close(self) -> None:
        """Watch no further, and leave the chain as it is. Again does nothing."""
        with self._chain.lock:
            self._chain.unwatch(self)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        self.close()
