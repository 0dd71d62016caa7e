"""The stages of a build, and what passes between them.

A stage is a small class: its options in the constructor, `stage(artifact) -> StageResult`. It
touches no disk and draws nothing; the pipeline does that. `requires` and `ensures` are the types
of what it takes and gives; the pipeline checks both, and each artifact's own `problems()`.
"""

import math
import os
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import fx, nn

import edgekit
from edgekit.bundle.manifest import Axis, Exit, File, Policy, Segment, TensorSpec, Tuning
from edgekit.runtime.preprocess import by_name
from edgekit.tuning.seen import Seen

__all__ = [
    "Artifact",
    "Exported",
    "Network",
    "Part",
    "Program",
    "Segments",
    "Stage",
    "StageResult",
    "Step",
    "Tensors",
    "Tuned",
    "blamed",
    "place_of",
]

Program = TypeVar("Program", fx.GraphModule, bytes)
Tensors: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
"""A batch: of the only input, or by the inputs' names."""

Step = Callable[[str], None]
"""Told what a stage works on just now, for the progress display."""

_OWN = tuple(f"{Path(one).parent}{os.sep}" for one in (edgekit.__file__, torch.__file__))


def place_of(node: fx.Node) -> str:
    """Where in the user's code a node comes from, as words to put behind its name; or nothing.

    The innermost line that is neither torch's nor ours.
    """
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    theirs = [frame for frame in found if not frame[0].startswith(_OWN)]
    return f" ({Path(theirs[-1][0]).name}, line {theirs[-1][1]})" if theirs else ""


def blamed(error: BaseException) -> str | None:
    """The operator that a converter refused, and its place in the user's code; None if unclear.

    It names a node of a graph of its own, if any; that it worked on the node says more.
    """
    nodes = [
        value
        for frame, _ in traceback.walk_tb((error.__cause__ or error).__traceback__)
        for value in frame.f_locals.values()
        if isinstance(value, fx.Node) and value.op == "call_function"
    ]
    if not nodes:
        return None
    return ".".join(str(nodes[-1].target).split(".")[:2]) + place_of(nodes[-1])


@dataclass(frozen=True)
class Network:
    """The user's network: a module that returns its exits' logits as a tuple, in eval mode.

    Behind them stand the confidences `[batch]` of the first `given` exits: of all of them, of all
    but the final one, or of none.

    `sample` is a batch of two real samples: with one, torch.export would fix the batch at one. A
    tensor is the only input, several go by their names, in the order of the alphabet. Where sizes
    vary (`axes`, the shape of each such input by its name), it has the greatest. `setting` says
    that the network holds others besides, of which nothing may be left in what is built.
    """

    module: nn.Module
    exits: tuple[str, ...]
    sample: Tensors
    given: int = 0
    axes: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    setting: bool = False

    def problems(self) -> list[str]:
        """What is not as it must be."""
        return ["the model is in train()"] if self.module.training else []


@dataclass(frozen=True)
class Exported:
    """The network as one graph of ATen operators, every exit an output, batch symbolic.

    The confidences of the first `given` exits are outputs too, behind the exits.
    """

    graph: fx.GraphModule
    exits: tuple[str, ...]
    sample: Tensors
    given: int = 0

    def sources(self, graph: fx.Graph | None = None) -> dict[str, fx.Node]:
        """The inputs of the graph, or of a copy of it, by the names `sample` has them under."""
        nodes = (graph or self.graph.graph).find_nodes(op="placeholder")
        return dict(zip(by_name(self.sample), nodes, strict=True))

    def problems(self) -> list[str]:
        """What is not as it must be."""
        outputs = self.graph.graph.output_node().args[0]
        found = len(outputs) if isinstance(outputs, tuple | list) else 1
        if found != len(self.exits) + self.given:
            given = f" and {self.given} confidences" if self.given else ""
            return [f"the graph has {found} outputs for {len(self.exits)} exits{given}"]
        return []


@dataclass(frozen=True)
class Part(Generic[Program]):
    """One segment on the host: a graph before it is lowered, then a file's bytes.

    `inputs` and `outputs` name tensors, `logits` maps each exit computed here to the output that
    holds its logits, `confidences` those that give their own to the output that holds it.
    `parameters` counts weights, `macs` the multiply-accumulates of one sample.
    """

    name: str
    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    logits: dict[str, str]
    parameters: int
    macs: int
    confidences: dict[str, str] = field(default_factory=dict)

    @property
    def looked_at(self) -> tuple[str, ...]:
        """The outputs that the runtime looks at, which stay float: logits, and confidences."""
        return (*self.logits.values(), *self.confidences.values())

    def record(self, file: File | None = None) -> Segment:
        """The part as a manifest lists it, in `file` where it has been put into one."""
        place = file or File("", 0, "")
        return Segment(
            place.path,
            place.size_bytes,
            place.sha256,
            name=self.name,
            inputs=self.inputs,
            outputs=self.outputs,
            exits=tuple(
                Exit(name, tensor, self.confidences.get(name))
                for name, tensor in self.logits.items()
            ),
            parameters=self.parameters,
            macs=self.macs,
        )


@dataclass(frozen=True)
class Segments(Generic[Program]):
    """The network cut up: the chain, and the same network undivided to compare it with.

    `plain` computes the final exit only, `whole` all exits. `tensors` describes every tensor that
    is an input or output of a part; `inputs` has the network's own, by the inputs' names.
    `precision` is what the parts compute in, as a target has it. `greatest` has each tensor's shape
    without the batch, of the greatest sample where sizes vary.
    """

    exits: tuple[str, ...]
    inputs: dict[str, str]
    tensors: dict[str, TensorSpec]
    chain: tuple[Part[Program], ...]
    plain: Part[Program]
    whole: Part[Program]
    precision: str = "fp32"
    greatest: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def parts(self) -> tuple[Part[Program], ...]:
        """Every part: the chain's, then `plain` and `whole`."""
        return (*self.chain, self.plain, self.whole)

    def part(self, name: str) -> Part[Program]:
        """The part of that name."""
        return next(part for part in self.parts() if part.name == name)

    def chains(self) -> dict[str, tuple[Part[Program], ...]]:
        """What can be run from input to final exit, by name."""
        return {"chain": self.chain, "plain": (self.plain,), "whole": (self.whole,)}

    def lowered(self, programs: Mapping[str, bytes]) -> "Segments[bytes]":
        """The same parts with other programs, by part name."""
        new = {part.name: replace(part, program=programs[part.name]) for part in self.parts()}
        chain = tuple(new[part.name] for part in self.chain)
        return Segments(
            self.exits,
            self.inputs,
            self.tensors,
            chain,
            new["plain"],
            new["whole"],
            self.precision,
            self.greatest,
        )

    def kept(self: "Segments[bytes]") -> tuple[dict[str, Any], dict[str, bytes]]:
        """These segments as plain data, and their programs by part name: what a cache takes."""
        document = {
            "exits": self.exits,
            "inputs": self.inputs,
            "precision": self.precision,
            "tensors": {name: [spec.dtype, spec.shape] for name, spec in self.tensors.items()},
            "greatest": self.greatest,
            "parts": [
                {
                    "name": part.name,
                    "inputs": part.inputs,
                    "outputs": part.outputs,
                    "logits": list(part.logits.items()),  # Objects lose their order in a file.
                    "parameters": part.parameters,
                    "macs": part.macs,
                    "confidences": list(part.confidences.items()),
                }
                for part in self.parts()
            ],
        }
        return document, {part.name: part.program for part in self.parts()}

    @staticmethod
    def from_kept(document: dict[str, Any], programs: Mapping[str, bytes]) -> "Segments[bytes]":
        """What `kept` made data of."""
        parts = [
            Part(
                one["name"],
                programs[one["name"]],
                tuple(one["inputs"]),
                tuple(one["outputs"]),
                dict(one["logits"]),
                one["parameters"],
                one["macs"],
                dict(one["confidences"]),
            )
            for one in document["parts"]
        ]
        *chain, plain, whole = parts
        tensors = {
            name: TensorSpec(dtype, tuple(shape))
            for name, (dtype, shape) in document["tensors"].items()
        }
        exits = tuple(document["exits"])
        greatest = {name: tuple(shape) for name, shape in document["greatest"].items()}
        precision = document["precision"]
        return Segments(
            exits, document["inputs"], tensors, tuple(chain), plain, whole, precision, greatest
        )

    def problems(self) -> list[str]:
        """What is not as it must be: every tensor is made before it is read, every exit once."""
        found = []
        for name, parts in self.chains().items():
            known = set(self.inputs.values())
            for part in parts:
                found += [f"{name}: {part.name} reads {x}" for x in part.inputs if x not in known]
                found += [f"{part.name}: no {x}" for x in part.outputs if x not in self.tensors]
                known |= set(part.outputs)
        if tuple(exit for part in self.chain for exit in part.logits) != self.exits:
            found.append("the chain's exits are not the network's")
        return found


@dataclass(frozen=True)
class Tuned:
    """The finished chain with the policy that it is deployed under.

    Where there is a tuning split, also what is known of the policy from it, and what every exit
    said of its samples.
    """

    segments: Segments[bytes]
    policy: Policy
    tuning: Tuning | None = None
    seen: Seen | None = None

    def problems(self) -> list[str]:
        """What is not as it must be: the segments, and a finite threshold per early exit."""
        found = self.segments.problems()
        early, thresholds = self.segments.exits[:-1], self.policy.thresholds
        if len(thresholds) != len(early):
            found.append(f"{len(thresholds)} thresholds for {len(early)} early exits")
        if not all(math.isfinite(one) for one in thresholds):
            found.append(f"thresholds {thresholds} are not all finite")
        return found


class Artifact(Protocol):
    """What passes between stages: it can say what is wrong with it."""

    def problems(self) -> list[str]:
        """What is not as it must be; empty if all is well."""


Taken = TypeVar("Taken", bound=Artifact)
Given = TypeVar("Given", bound=Artifact)


@dataclass(frozen=True)
class StageResult(Generic[Given]):
    """What a stage gives, and notes for the evidence (plain data)."""

    artifact: Given
    notes: dict[str, Any] = field(default_factory=dict)


class Stage(Generic[Taken, Given]):
    """One step of a build. See this module's docstring for the contract."""

    name: ClassVar[str]
    requires: ClassVar[type]
    ensures: ClassVar[type]

    def __call__(self, artifact: Taken, step: Step) -> StageResult[Given]:
        """Do the work. Raises an EdgekitError that names segment and tensor where it cannot."""
        raise NotImplementedError
