"""The cache: whatever happens to it, a build gets what was put, or nothing."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.cache import Cache, Entry, default_folder, digest

PUTS = """
import sys
from pathlib import Path
from edgekit.cache import Cache, Entry
cache = Cache(Path(sys.argv[1]))
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    number = turn % 7
    entry = Entry({"number": number}, {"a": bytes([number]) * 200_000, "b": b"same"})
    cache.put(f"{number:064x}", "lower", "t", entry)
    assert cache.get(f"{number:064x}") in (None, entry), number
    if len(sys.argv) > 3 and turn % 5 == 0:
        cache.clear()
assert cache.problem is None, cache.problem
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def key(number: int) -> str:
    return digest(number)


def blobs(cache: Cache) -> list[Path]:
    return [path for path in (cache.folder / "blobs").rglob("*") if path.is_file()]


@given(
    names=st.dictionaries(st.text("abc/", min_size=1), st.binary(max_size=100), max_size=4),
    document=st.dictionaries(st.text(), st.integers() | st.lists(st.booleans())),
)
def test_what_is_put_is_got(tmp_path_factory, names, document):
    cache = Cache(tmp_path_factory.mktemp("cache"))
    cache.put(key(1), "lower", "tiny for host", Entry(document, names))
    assert cache.get(key(1)) == Entry(document, names)
    assert cache.get(key(2)) is None


def test_the_same_bytes_are_kept_once(cache):
    cache.put(key(1), "lower", "t", Entry({}, {"a": b"same", "b": b"same"}))
    cache.put(key(2), "optimize", "t", Entry({}, {"c": b"same"}))
    assert len(blobs(cache)) == 1


@pytest.mark.parametrize("damage", [b"", b"other", None])
def test_a_damaged_file_is_a_miss_and_is_put_anew(cache, damage):
    entry = Entry({}, {"a": b"right"})
    cache.put(key(1), "lower", "t", entry)
    (blob,) = blobs(cache)
    blob.unlink() if damage is None else blob.write_bytes(damage)
    assert cache.get(key(1)) is None
    assert not cache.has(key(1))
    cache.put(key(1), "lower", "t", entry)
    assert cache.get(key(1)) == entry


def test_a_damaged_document_is_a_miss(cache):
    cache.put(key(1), "lower", "t", Entry({"value": 1}, {}))
    (path,) = (cache.folder / "entries").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"value": 1', b'"value": 2'))
    assert cache.get(key(1)) is None
    assert cache.listing() == []


def test_over_the_limit_what_was_used_longest_ago_goes(tmp_path):
    cache = Cache(tmp_path, limit_bytes=50_000)
    for number in range(4):
        cache.put(key(number), "lower", "t", Entry({}, {"a": bytes([number]) * 10_000}))
    # The first is used again, and so outlives the others.
    for age, number in enumerate([0, 3, 2, 1]):
        os.utime(cache.folder / "entries" / f"{key(number)}.json", (1e9 - age, 1e9 - age))
    cache.put(key(9), "lower", "t", Entry({}, {"a": b"x" * 15_000}))
    assert cache.size_bytes() <= 50_000
    assert cache.get(key(9)) and cache.get(key(0))
    assert cache.get(key(1)) is None


def test_clear_removes_all_and_what_killed_builds_left(cache):
    cache.put(key(1), "lower", "tiny for host", Entry({}, {"a": b"x" * 1000}))
    cache.note("reads", key(2), {"files": {}})
    (one,) = cache.listing()
    assert (one.title, one.stage, one.size_bytes) == ("tiny for host", "lower", 1000)
    assert cache.clear() > 1000
    assert cache.size_bytes() == 0
    assert cache.notes("reads", key(2)) == []


def test_notes_come_latest_first_and_alone_if_asked(cache):
    for number in (1, 2):
        cache.note("reads", key(0), {"number": number})
        path = cache.folder / "notes/reads" / key(0) / f"{digest({'number': number})}.json"
        os.utime(path, (1e9 + number, 1e9 + number))
    assert [note["number"] for note in cache.notes("reads", key(0))] == [2, 1]
    for number in (1, 2):
        cache.note("builds", key(0), {"number": number}, alone=True)
    assert cache.notes("builds", key(0)) == [{"number": 2}]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file/cache")
    cache.put(key(1), "lower", "t", Entry({}, {"a": b"x"}))
    cache.note("reads", key(1), {})
    assert cache.get(key(1)) is None
    assert cache.notes("reads", key(1)) == cache.listing() == []
    assert "Not a directory" in str(cache.problem)


def test_only_the_latest_notes_are_kept(cache):
    for number in range(40):
        cache.note("reads", key(0), {"number": number})
    numbers = [note["number"] for note in cache.notes("reads", key(0))]
    assert len(numbers) == 16
    assert 39 in numbers


def test_damage_that_cannot_be_removed_is_a_miss_all_the_same(cache, monkeypatch):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Read-only file system", str(path))

    cache.put(key(1), "lower", "t", Entry({}, {"a": b"right"}))
    (blob,) = blobs(cache)
    blob.write_bytes(b"wrong")
    monkeypatch.setattr(Path, "unlink", refuse)
    assert cache.get(key(1)) is None
    assert "Read-only file system" in str(cache.problem)


def test_a_full_disk_costs_nothing_but_time(cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
        cache.put(key(1), "lower", "t", Entry({}, {"a": b"x" * 10_000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert "File too large" in str(cache.problem)
    assert cache.get(key(1)) is None
    assert list(cache.folder.rglob(".under-way-*")) == []


def puts(folder: Path, turns: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUTS, str(folder), str(turns), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_builds_at_once_do_not_disturb_each_other(tmp_path):
    running = [puts(tmp_path, 60), puts(tmp_path, 60), puts(tmp_path, 30, "clear")]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


def test_a_build_killed_at_any_moment_leaves_nothing_half(tmp_path):
    for turn in range(5):
        process = puts(tmp_path, 100_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 * (turn + 1))
        process.kill()
        process.communicate()
        cache = Cache(tmp_path)
        for number in range(7):
            found = cache.get(f"{number:064x}")
            assert found is None or found.blobs["a"] == bytes([number]) * 200_000
    assert cache.listing()
    cache.limit_bytes = 0
    cache.put(key(1), "lower", "t", Entry({}, {}))
    assert list(tmp_path.rglob(".under-way-*")) == []


def test_it_lies_where_the_users_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "edgekit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/edgekit"
