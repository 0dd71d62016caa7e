import os
from pathlib import Path

import numpy as np
import pytest

from edgekit.runtime import memory

MB = 2**20

ROLLUP = """55c0a0000000-7ffd5e7f1000 ---p 00000000 00:00 0                          [rollup]
Rss:               93160 kB
Shared_Clean:      28364 kB
Private_Clean:       684 kB
Private_Dirty:     54312 kB
Swap:                 96 kB
SwapPss:              96 kB
"""


def written(size: int) -> np.ndarray:
    """So many bytes that lie in memory: pages that nobody has written are none."""
    return np.ones(size, np.uint8)


def test_what_is_held_counts_and_what_was_freed_again_does_not() -> None:
    def load() -> np.ndarray:
        written(64 * MB)
        return written(32 * MB)

    held, size = memory.growth(load)
    assert len(held) == 32 * MB
    assert size is not None
    assert abs(size - 32 * MB) < 4 * MB


def test_what_shrinks_the_process_is_no_negative_growth() -> None:
    held = [written(32 * MB)]
    assert memory.growth(held.clear) == (None, 0)


def test_an_error_while_loading_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        memory.growth(lambda: 1 // 0)


def test_the_process_is_never_larger_than_at_most() -> None:
    now, peak = memory.resident()
    assert now is not None
    assert peak is not None
    assert 0 < now <= peak


def test_pages_of_its_own_count_swapped_out_or_not_and_a_librarys_do_not(tmp_path: Path) -> None:
    # Whether those are private depends on who else runs the same engine.
    (tmp_path / "smaps_rollup").write_text(ROLLUP)
    assert memory.private_bytes(tmp_path) == (54312 + 96) * 1024
    (tmp_path / "smaps_rollup").write_text(ROLLUP.replace("Swap", "Other"))
    assert memory.private_bytes(tmp_path) == 54312 * 1024


@pytest.mark.parametrize("text", [None, "", "Private_Dirty: kB", "VmRSS:\t99 MB"])
def test_a_kernel_that_does_not_tell_gives_none(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        for name in ("status", "smaps_rollup", "proc/meminfo"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    assert memory.resident(tmp_path) == (None, None)
    assert memory.private_bytes(tmp_path) is None
    assert memory.available_bytes(tmp_path) is None
    monkeypatch.setattr(memory, "private_bytes", lambda: None)
    assert memory.growth(lambda: 1) == (1, None)


def test_what_is_available_is_less_than_there_is() -> None:
    found = memory.available_bytes()
    assert found is not None
    assert 0 < found < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_chain_needs_each_of_its_files_twice() -> None:
    assert memory.needed_bytes(iter([3, 4])) == 14
