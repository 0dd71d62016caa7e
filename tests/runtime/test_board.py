from pathlib import Path

from edgekit.runtime import board, jetson, raspberrypi
from tests.runtime import boards


def test_each_board_is_found_as_its_own_kind(tmp_path: Path) -> None:
    assert board.find(tmp_path) is None
    pi = board.find(boards.raspberry_pi(tmp_path / "pi"))
    assert isinstance(pi, raspberrypi.RaspberryPi)
    assert isinstance(board.find(boards.orin_nano(tmp_path / "orin")), jetson.Jetson)


def test_every_kind_of_board_tells_what_the_bench_prints(tmp_path: Path) -> None:
    laid = (boards.raspberry_pi(tmp_path / "pi"), boards.orin_nano(tmp_path / "orin"))
    for found in map(board.find, laid):
        assert found is not None
        assert found.most_round_spread > 0
        met = found.conditions([found.snapshot(), found.snapshot()])
        assert met.keys() >= {"board", "temperatures_c", "clocks", "throttled", "notes"}
        for name in ("temperatures_c", "clocks"):
            assert met[name].keys() == {"before", "after"}
        assert met["clocks"]["before"]["cpu"]["mhz"] > 0
        assert met["throttled"] == []
