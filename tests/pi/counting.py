"""How many instructions an inference takes on an emulated Pi.

One thread and one process; what a run took is the difference between the marks around it. The
median of some runs says it to 0.01 %: `benchmarks/instructions.py` has the spread.
"""

import functools
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.pi.emulated import NotHere, Pi, digest, locked, made, program

__all__ = ["Counts", "count", "counts_of"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Counts:
    """Instructions of an inference, all with the runtime around the engine but `segments`.

    `to_exit` is by exit, what a sample takes that leaves there: the last is the chain at full
    depth. `segments` are the engine's calls alone.
    """

    to_exit: dict[str, int]
    segments: dict[str, int]
    plain: int
    whole: int

    @property
    def full_depth(self) -> int:
        """The chain where no exit is taken."""
        return list(self.to_exit.values())[-1]

    def mean(self, rates: dict[str, float]) -> float:
        """Of samples of which such shares leave at each exit."""
        return sum(rates[exit] * here for exit, here in self.to_exit.items())


def count(pi: Pi, bundle: Path, path: Path, *, runs: int) -> Counts:
    """The instructions of one inference, the median of so many runs of each kind.

    `path` is the folder of the bundle's edgekit. Raises NotHere where the plugin cannot be had.
    """
    with locked():
        compiler = program("gcc", "gcc", "libc6-dev")
        source = _HERE / "count.c"
        plugin = made(f"count-{digest(source)}", functools.partial(_compile, compiler, source))
    with tempfile.TemporaryDirectory() as home:
        marks = Path(home) / "marks"
        ended = pi.run(
            *(_HERE / "inferences.py", bundle.resolve(), runs),
            path=path,
            home=Path(home),
            plugin=f"{plugin / 'count.so'},out={marks}",
        )
        if ended.returncode:
            if "plugin" in ended.stderr:
                raise NotHere(f"this qemu takes no plugin of version 1: {ended.stderr.strip()}")
            raise RuntimeError(f"the inferences failed on the Pi: {ended.stderr}")
        return counts_of(ended.stdout.splitlines(), marks.read_text(), runs)


def counts_of(names: list[str], marks: str, runs: int) -> Counts:
    """What the marks say of these runs.

    Raises RuntimeError where they are not as many as they should be, or a thread ran beside.
    """
    lines = [tuple(map(int, line.split())) for line in marks.splitlines()]
    if len(lines) != len(names) * (runs + 1):
        raise RuntimeError(f"{len(names)} kinds of {runs} runs left {len(lines)} marks")
    if len({threads for _, threads in lines}) != 1:
        raise RuntimeError("a thread was started among the inferences: its work is in the counts")
    found = {}
    for place, name in enumerate(names):
        here = [at for at, _ in lines[place * (runs + 1) : (place + 1) * (runs + 1)]]
        found[name] = int(statistics.median(after - before for before, after in pairwise(here)))
    nothing = found.pop("nothing")
    found = {name: one - nothing for name, one in found.items()}

    def of(kind: str) -> dict[str, int]:
        return {x.removeprefix(kind): y for x, y in found.items() if x.startswith(kind)}

    return Counts(of("to "), of("alone "), found["plain"], found["whole"])


def _compile(compiler: str, source: Path, folder: Path) -> None:
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(folder / "count.so"), str(source)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise NotHere(f"gcc cannot compile {source.name}: {ended.stderr.strip()}")
