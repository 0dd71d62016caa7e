import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from edgekit.runtime import energy
from edgekit.runtime.power import PowerMeter

SAMPLES = [np.full(1, one, np.float32) for one in range(10)]


class Steady:
    """A source that says 4 W twenty times a second, for so long."""

    name, rails = "ina3221", ("VDD_IN",)

    def __init__(self, seconds: float = 60) -> None:
        self.seconds = seconds
        self.closed = False

    def readings_mw(self, stopped: threading.Event) -> Iterator[float]:
        until = time.perf_counter() + self.seconds
        while not stopped.wait(0.01) and time.perf_counter() < until:
            yield 4000.0

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_every_contender_runs_the_same_samples_in_whole_passes() -> None:
    ran: dict[str, list[int]] = {"a": [], "b": []}
    runs = {name: lambda x, name=name: ran[name].append(int(x[0])) for name in ran}
    found = energy.measure(PowerMeter(Steady()), runs, SAMPLES, mean_ms=10, phase_s=0.05)
    assert found is not None
    costs, facts = found
    # Of ten samples as many as fit, at 10 ms each, from the first to the last.
    assert facts["samples"] == 5
    assert set(ran["a"]) == set(ran["b"]) == {0, 2, 4, 6, 9}
    for name, one in costs.items():
        assert one.inferences % 5 == 0
        last = Counter(ran[name][-one.inferences :])
        assert set(last.values()) == {one.inferences // 5}


def test_what_draws_as_much_as_the_idle_board_costs_nothing_above_it() -> None:
    def wait(x: object) -> None:
        time.sleep(0.005)

    found = energy.measure(PowerMeter(Steady()), {"a": wait}, SAMPLES, mean_ms=5, phase_s=0.05)
    assert found is not None
    cost = found[0]["a"]
    assert cost.mean_mw == pytest.approx(4000)
    assert cost.mj == pytest.approx(4000 * cost.seconds / cost.inferences)
    assert cost.above_idle_mj == pytest.approx(0, abs=1e-6)


def test_a_network_slower_than_a_phase_runs_at_least_once() -> None:
    ran: list[object] = []
    found = energy.measure(
        PowerMeter(Steady()), {"a": ran.append}, SAMPLES, mean_ms=1e6, phase_s=0.05
    )
    assert found is not None
    assert found[1]["samples"] == 1
    assert found[0]["a"].inferences >= 1


def test_readings_that_end_amid_a_phase_leave_no_energy() -> None:
    source = Steady(seconds=0.2)

    def wait(x: object) -> None:
        time.sleep(0.6)

    found = energy.measure(PowerMeter(source), {"a": wait}, SAMPLES, mean_ms=600, phase_s=1.0)
    assert found is None
    assert source.closed


def test_a_contender_that_fails_ends_the_meter() -> None:
    source = Steady()
    before = threading.active_count()

    def fail(x: object) -> None:
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError):
        energy.measure(PowerMeter(source), {"a": fail}, SAMPLES, mean_ms=1, phase_s=0.01)
    assert source.closed
    assert threading.active_count() == before
