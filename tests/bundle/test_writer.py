import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.manifest import MANIFEST_NAME, seal
from edgekit.bundle.writer import new_bundle, write_files
from edgekit.errors import BuildError

NEW = {MANIFEST_NAME: seal({"age": "new"}), "segments/b.onnx": b"new", "golden/expected/x": b"1"}


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(output: Path, files: dict[str, bytes]) -> None:
    with new_bundle(output) as folder:
        write_files(folder, files)


@pytest.fixture
def output(built_tiny: Path, tmp_path: Path) -> Path:
    """A bundle in a folder of its own, so that whatever is left behind shows beside it."""
    return Path(shutil.copytree(built_tiny, tmp_path / "place" / "out"))


def alone(output: Path) -> bool:
    return [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_new_bundle_takes_its_place_with_exactly_its_files(tmp_path: Path) -> None:
    output = tmp_path / "not" / "yet" / "out"
    put(output, NEW)
    assert content(output) == NEW
    assert alone(output)


def test_a_new_bundle_replaces_the_old_one_whole(output: Path) -> None:
    put(output, NEW)
    assert content(output) == NEW
    assert alone(output)


def test_until_the_block_ends_the_old_bundle_is_there(output: Path) -> None:
    before = content(output)
    with new_bundle(output) as folder:
        write_files(folder, NEW)
        assert content(output) == before
        assert folder.parent == output.parent
    assert content(output) == NEW


def test_files_may_be_written_in_several_goes(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "out") as folder:
        write_files(folder, {"a": b"1"})
        write_files(folder, {"b/c": b"2"})
    assert content(tmp_path / "out") == {"a": b"1", "b/c": b"2"}


def test_a_relative_output_is_beside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with new_bundle(Path("out")) as folder:
        write_files(folder, NEW)
        monkeypatch.chdir("/")
    assert content(tmp_path / "out") == NEW


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, BuildError])
def test_an_error_in_the_block_leaves_the_old_bundle(
    output: Path, error: type[BaseException]
) -> None:
    before = content(output)
    with pytest.raises(error), new_bundle(output) as folder:
        write_files(folder, NEW)
        raise error
    assert content(output) == before
    assert alone(output)


def test_an_error_in_the_block_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "out") as folder:
        write_files(folder, NEW)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_block_passes_as_it_is(tmp_path: Path) -> None:
    # An OSError of the caller's is no failure to write the bundle.
    with pytest.raises(FileNotFoundError, match="theirs"), new_bundle(tmp_path / "out"):
        raise FileNotFoundError("theirs")


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    put(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW


def test_a_bundle_with_a_damaged_file_may_be_replaced(output: Path) -> None:
    (output / "segments/segment-1.onnx").write_bytes(b"damaged")
    put(output, NEW)
    assert content(output) == NEW


@pytest.mark.parametrize("name", ["thesis.txt", "segments/a.onnx", f"deep/{MANIFEST_NAME}"])
def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path: Path, name: str) -> None:
    output = tmp_path / "precious"
    write_files(output, {name: b"years of work"})
    with pytest.raises(BuildError, match=f"{output}: exists and is not a bundle"):
        put(output, NEW)
    assert content(output) == {name: b"years of work"}
    assert alone(output)


def test_a_folder_with_a_manifest_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    # Web apps and browser extensions have a manifest.json, too.
    files = {"manifest.json": b'{"name": "My app", "icons": []}', "index.html": b"<p>precious</p>"}
    write_files(tmp_path / "app", files)
    with pytest.raises(BuildError, match="app: exists and is not a bundle"):
        put(tmp_path / "app", NEW)
    assert content(tmp_path / "app") == files


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(BuildError, match="out: exists and is not a bundle"):
        put(tmp_path / "out", NEW)
    assert (tmp_path / "out").read_text() == "precious"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"file/out: cannot be written: .+"):
        put(tmp_path / "file" / "out", NEW)


def test_a_file_name_that_the_disk_refuses_is_a_build_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be written: File name too long"):
        put(tmp_path / "out", {"a" * 300: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_linked_output_is_replaced_and_nothing_is_left_beside_it(
    output: Path, tmp_path: Path
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "current").symlink_to(output)
    put(links / "current", NEW)
    assert content(links / "current") == NEW
    assert alone(links / "current")


WRITER = """
import sys, time
from pathlib import Path
from edgekit.bundle.writer import new_bundle, write_files
with new_bundle(Path(sys.argv[1])) as folder:
    write_files(folder, {"segments/half.onnx": b"half"})
    print(folder, flush=True)
    time.sleep(600)
"""


@contextmanager
def writer_at_work(output: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process in the middle of its block, and its partial folder."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_killed_process_leaves_the_old_bundle_and_the_next_cleans_up(output: Path) -> None:
    before = content(output)
    with writer_at_work(output) as (process, partial):
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert content(output) == before
    assert content(partial) == {"segments/half.onnx": b"half"}
    put(output, NEW)
    assert content(output) == NEW
    assert alone(output)


def test_the_partial_folder_of_a_living_process_is_left_to_it(output: Path) -> None:
    with writer_at_work(output) as (_, partial):
        put(output, NEW)
        assert content(partial) == {"segments/half.onnx": b"half"}
    assert content(output) == NEW


def test_an_interrupted_process_cleans_up_after_itself(output: Path) -> None:
    before = content(output)
    with writer_at_work(output) as (process, partial):
        assert partial.is_dir()
        process.send_signal(signal.SIGINT)
        process.wait()
    assert content(output) == before
    assert alone(output)


def test_what_a_kill_leaves_of_an_output_with_brackets_is_removed_too(tmp_path: Path) -> None:
    output = tmp_path / "place" / "net[int8]"
    with writer_at_work(output) as (process, partial):
        process.kill()
        process.wait()
    assert partial.is_dir()
    put(output, NEW)
    assert alone(output)


def test_an_output_named_like_a_pattern_leaves_other_outputs_alone(tmp_path: Path) -> None:
    with writer_at_work(tmp_path / "net1") as (_, partial):
        put(tmp_path / "net[1]", NEW)
        assert content(partial) == {"segments/half.onnx": b"half"}


def test_what_a_kill_left_of_an_earlier_process_with_our_number_is_removed(output: Path) -> None:
    # In a container the same command often gets the same process number. This one was killed while
    # it removed the old bundle.
    aside = output.parent / f".{output.name}.partial-{os.getpid()}-old"
    write_files(aside, {"segments/rest.onnx": b"rest"})
    put(output, NEW)
    assert content(output) == NEW
    assert alone(output)


FULL_DISK = """
import json, sys
from pathlib import Path
from edgekit.bundle.writer import new_bundle, write_files
disk = Path(sys.argv[1])
manifest = Path(sys.argv[2]).read_bytes()
output = disk / "out"
with new_bundle(output) as folder:
    write_files(folder, {"manifest.json": manifest, "old": bytes(1000)})
caught = None
try:
    with new_bundle(output) as folder:
        write_files(folder, {"manifest.json": manifest, "new": b"1", "large": bytes(2 * 2**20)})
except BaseException as error:
    caught = [type(error).__name__, str(error)]
left = sorted(path.relative_to(disk).as_posix() for path in disk.rglob("*"))
print(json.dumps({"caught": caught, "left": left, "old": (output / "old").stat().st_size}))
"""


def test_a_full_disk_is_said_and_leaves_the_old_bundle(tmp_path: Path, built_tiny: Path) -> None:
    found = on_a_small_disk(tmp_path, FULL_DISK, tmp_path, built_tiny / MANIFEST_NAME)
    kind, message = found["caught"]
    assert kind == "BuildError"
    assert "no space left for it; free some, or choose another --output" in message
    assert str(tmp_path) in message
    assert found["left"] == ["out", "out/manifest.json", "out/old"]
    assert found["old"] == 1000


IN_PLACE = """
import json, sys
from pathlib import Path
from edgekit.bundle.writer import replace_file
page = Path(sys.argv[1]) / "report.html"
left = []
for content in (b"old", b"newer"):
    replace_file(page, content)
    left.append(page.read_text())
try:
    replace_file(page, bytes(2 * 2**20))
except BaseException as error:
    left.append(f"{type(error).__name__}: {error}")
print(json.dumps([*left, [one.name for one in page.parent.iterdir()]]))
"""


def test_a_file_is_replaced_where_the_bundle_is_a_mount_point(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    old, newer, full, left = on_a_small_disk(folder, IN_PLACE, folder)
    assert (old, newer) == ("old", "newer")
    assert full.startswith("BuildError")
    assert full.endswith("no space left for it; free some")
    assert left == []
    assert [one.name for one in tmp_path.iterdir()] == ["bundle"]


def on_a_small_disk(place: Path, script: str, *arguments: object) -> Any:
    """What a script prints, as JSON, that is run with a disk of one megabyte at `place`."""
    in_a_mount_namespace = ["unshare", "--mount"]
    if os.geteuid():
        in_a_mount_namespace.append("--map-root-user")
    small_disk = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 99; shift; exec "$@"'
    if shutil.which("unshare") is None:
        pytest.skip("util-linux's unshare is not installed")
    ended = subprocess.run(
        [
            *(*in_a_mount_namespace, "sh", "-c", small_disk, "sh", str(place)),
            *(sys.executable, "-c", script, *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode == 99 or ended.stderr.startswith("unshare:"):
        pytest.skip(f"no disk of its own may be mounted here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
