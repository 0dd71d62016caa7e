"""The stage contract: artifacts know what is wrong with them, and the pipeline asks."""

import dataclasses

import pytest

from edgekit.bundle.manifest import TensorSpec
from edgekit.pipeline import _demand
from edgekit.stages import Part, Segments

LOGITS = TensorSpec("float32", (None, 3))
FEATURES = TensorSpec("float32", (None, 8))


def part(name: str, inputs: str, outputs: str, **logits: str) -> Part[bytes]:
    return Part(name, b"", tuple(inputs.split()), tuple(outputs.split()), logits, 0, 0)


SOUND = Segments(
    exits=("early", "late"),
    inputs={"input": "x"},
    tensors={"x": FEATURES, "f": FEATURES, "a": LOGITS, "b": LOGITS},
    chain=(part("segment-1", "x", "f a", early="a"), part("segment-2", "f", "b", late="b")),
    plain=part("plain", "x", "b", late="b"),
    whole=part("whole", "x", "a b", early="a", late="b"),
)


def test_sound_segments_have_no_problems():
    assert SOUND.problems() == []
    _demand("split", "gives", Segments, SOUND)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain": SOUND.chain[::-1]}, "segment-2 reads f"),
        ({"chain": SOUND.chain[:1]}, "exits are not the network's"),
        ({"tensors": {"x": FEATURES, "a": LOGITS, "b": LOGITS}}, "segment-1: no f"),
    ],
    ids=["read before made", "an exit lost", "no contract"],
)
def test_a_stage_whose_result_does_not_hold_is_a_bug_and_not_built(change, words):
    broken = dataclasses.replace(SOUND, **change)
    with pytest.raises(AssertionError, match=rf"split gives what does not hold.*{words}"):
        _demand("split", "gives", Segments, broken)


def test_a_stage_that_is_given_another_artifact_is_a_bug():
    with pytest.raises(TypeError, match="lower takes Segments, found Part"):
        _demand("lower", "takes", Segments, SOUND.plain)


def test_lowered_programs_take_their_parts_places():
    programs = {name: name.encode() for name in ("segment-1", "segment-2", "plain", "whole")}
    lowered = SOUND.lowered(programs)
    assert {one.name: one.program for one in lowered.parts()} == programs
    assert lowered.chain[1].logits == SOUND.chain[1].logits
