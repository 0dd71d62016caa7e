"""What an inference costs on a Raspberry Pi, in instructions, held against what it did."""

import json
from pathlib import Path

import pytest

from edgekit.bundle.reader import read_bundle
from edgekit.runtime import Chain
from edgekit.runtime.bench import load_test_data
from tests.pi.conftest import OnPi, demanded
from tests.pi.counting import Counts, count, counts_of

COMMITTED = Path(__file__).parent / "instructions.json"
"""Written by `make bench-pi`: instructions to the final exit of digits, by engine."""

MOST_GROWTH = 1.02
MOST_OVER_WHOLE = {"digits": 1.10, "resnet18": 1.03}
LEAST_GAIN = 2.5


def test_an_inference_costs_no_more_than_it_did(engine, counts: Counts):
    committed = json.loads(COMMITTED.read_text())[engine]
    assert counts.full_depth <= MOST_GROWTH * committed, (
        f"{counts.full_depth:,} instructions to the final exit of digits, and it was "
        f"{committed:,}; if that must be, `make bench-pi` commits it"
    )
    assert counts.full_depth >= committed / MOST_GROWTH, (
        f"{counts.full_depth:,} instructions, and it was {committed:,}: "
        "`make bench-pi` keeps what was gained"
    )


def test_cuts_of_a_small_network_cost_little_on_a_pi(counts: Counts):
    assert counts.full_depth <= MOST_OVER_WHOLE["digits"] * counts.whole
    assert list(counts.to_exit.values()) == sorted(counts.to_exit.values())
    assert sum(counts.segments.values()) < counts.full_depth


def test_early_exit_saves_most_of_the_work_on_a_pi(counts: Counts, digits: OnPi):
    carried = load_test_data(read_bundle(digits.bundle))
    assert carried is not None
    left = [one.exit for one in Chain.load(digits.bundle).many(carried[0])]
    rates = {exit: left.count(exit) / len(left) for exit in counts.to_exit}
    assert sum(rates.values()) == pytest.approx(1)
    assert counts.plain >= LEAST_GAIN * counts.mean(rates)


MARKS = "\n".join(
    f"{at} 1" for at in (0, 10, 20, 100, 1110, 2110, 3000, 3060, 3110, 4000, 4070, 4140)
)
NAMES = ["nothing", "to final", "plain", "whole"]


def test_what_lies_between_two_marks_is_what_ran_there():
    found = counts_of(NAMES, MARKS, 2)
    assert found == Counts({"final": 995}, {}, 45, 60)


def test_a_thread_beside_the_inferences_is_no_count():
    with pytest.raises(RuntimeError, match="a thread was started"):
        counts_of(NAMES, MARKS.replace("3060 1", "3060 2"), 2)


def test_marks_of_another_program_are_no_count():
    with pytest.raises(RuntimeError, match="4 kinds of 2 runs left 11 marks"):
        counts_of(NAMES, MARKS.rpartition("\n")[0], 2)


@pytest.mark.slow
def test_the_same_inference_is_the_same_count(digits: OnPi):
    again = [
        demanded(lambda: count(digits.pi, digits.bundle, digits.path, runs=5)) for _ in range(3)
    ]
    found = [one.full_depth for one in again]
    assert max(found) <= 1.002 * min(found)


@pytest.mark.slow
def test_cuts_of_a_large_network_cost_next_to_nothing_on_a_pi(resnet18: OnPi):
    found = demanded(lambda: count(resnet18.pi, resnet18.bundle, resnet18.path, runs=1))
    assert found.full_depth <= MOST_OVER_WHOLE["resnet18"] * found.whole
