import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.bundle.manifest import MANIFEST_NAME, seal
from edgekit.bundle.reader import read_bundle
from edgekit.errors import BundleError
from edgekit.limits import LIMITS

SEGMENT = "segments/segment-2.onnx"
GOLDEN = "golden/expected/first.npy"
EVERY_KIND = [SEGMENT, GOLDEN, "baselines/plain.onnx", "test/inputs.npy"]


def refused(bundle: Path, *named: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    for words in named:
        assert words in str(caught.value)


def test_a_bundle_is_read_with_the_segments_bytes_as_they_were_hashed(built_tiny: Path) -> None:
    bundle = read_bundle(built_tiny)
    listed = bundle.manifest.variant().segments
    assert bundle.segments.keys() == {file.path for file in listed}
    for file in listed:
        content = bundle.segments[file.path]
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert content == (built_tiny / file.path).read_bytes()


def test_segments_stay_as_read_when_the_files_change_afterwards(tiny_bundle: Path) -> None:
    before = (tiny_bundle / SEGMENT).read_bytes()
    bundle = read_bundle(tiny_bundle)
    (tiny_bundle / SEGMENT).write_bytes(b"other")
    assert bundle.segments[SEGMENT] == before


def test_another_file_that_changed_since_is_refused(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    content = (tiny_bundle / GOLDEN).read_bytes()
    assert bundle.read(GOLDEN) == content
    (tiny_bundle / GOLDEN).write_bytes(content[:-1] + b"\0")
    with pytest.raises(BundleError, match=f"{GOLDEN} was changed"):
        bundle.read(GOLDEN)


def test_the_path_may_be_a_string(built_tiny: Path) -> None:
    assert read_bundle(str(built_tiny)).manifest == read_bundle(built_tiny).manifest


@pytest.mark.parametrize("path", EVERY_KIND)
def test_a_flipped_byte_in_a_file_is_refused(tiny_bundle: Path, path: str) -> None:
    content = bytearray((tiny_bundle / path).read_bytes())
    content[len(content) // 2] ^= 1
    (tiny_bundle / path).write_bytes(content)
    refused(tiny_bundle, str(tiny_bundle), path, "was changed")


@pytest.mark.parametrize("path", EVERY_KIND)
def test_a_missing_file_is_refused(tiny_bundle: Path, path: str) -> None:
    (tiny_bundle / path).unlink()
    refused(tiny_bundle, str(tiny_bundle), f"{path} is missing")


@pytest.mark.parametrize("path", EVERY_KIND)
def test_a_truncated_file_is_refused(tiny_bundle: Path, path: str) -> None:
    size_bytes = (tiny_bundle / path).stat().st_size
    os.truncate(tiny_bundle / path, size_bytes - 1)
    refused(tiny_bundle, path, f"has {size_bytes - 1} bytes, {size_bytes} expected")


@pytest.mark.parametrize("path", EVERY_KIND)
def test_an_oversized_file_is_refused(tiny_bundle: Path, path: str) -> None:
    size_bytes = (tiny_bundle / path).stat().st_size
    with (tiny_bundle / path).open("ab") as stream:
        stream.write(b"\0")
    refused(tiny_bundle, path, f"has {size_bytes + 1} bytes, {size_bytes} expected")


@pytest.mark.parametrize("path", ["notes.txt", "segments/segment-4.onnx", "deep/er/x", ".hidden"])
def test_an_extra_file_is_refused(tiny_bundle: Path, path: str) -> None:
    (tiny_bundle / path).parent.mkdir(parents=True, exist_ok=True)
    (tiny_bundle / path).write_bytes(b"")
    refused(tiny_bundle, str(tiny_bundle), f"{path} does not belong to it")


def test_an_extra_pipe_is_refused_without_being_opened(tiny_bundle: Path) -> None:
    os.mkfifo(tiny_bundle / "pipe")
    refused(tiny_bundle, "pipe does not belong to it")


def test_a_folder_in_a_files_place_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / SEGMENT).unlink()
    (tiny_bundle / SEGMENT).mkdir()
    refused(tiny_bundle, SEGMENT, "missing")


def test_a_linked_file_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / SEGMENT).rename(tmp_path / "elsewhere.onnx")
    (tiny_bundle / SEGMENT).symlink_to(tmp_path / "elsewhere.onnx")
    refused(tiny_bundle, f"{SEGMENT} is a link")


def test_a_linked_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "segments").rename(tmp_path / "elsewhere")
    (tiny_bundle / "segments").symlink_to(tmp_path / "elsewhere")
    refused(tiny_bundle, "segments is a link")


def test_an_extra_link_to_nowhere_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / "extra").symlink_to("nowhere")
    refused(tiny_bundle, "extra is a link")


def test_a_linked_manifest_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / MANIFEST_NAME).rename(tmp_path / "elsewhere.json")
    (tiny_bundle / MANIFEST_NAME).symlink_to(tmp_path / "elsewhere.json")
    refused(tiny_bundle, MANIFEST_NAME, "link")


def test_linked_evidence_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "evidence.json").rename(tmp_path / "elsewhere.json")
    (tiny_bundle / "evidence.json").symlink_to(tmp_path / "elsewhere.json")
    refused(tiny_bundle, "evidence.json is a link")


def test_a_bundle_may_be_reached_through_a_link(built_tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(built_tiny)
    assert read_bundle(tmp_path / "current").manifest == read_bundle(built_tiny).manifest


def test_evidence_may_be_absent(tiny_bundle: Path) -> None:
    (tiny_bundle / "evidence.json").unlink()
    assert read_bundle(tiny_bundle).manifest.name == "tiny"


def test_evidence_may_be_replaced_without_touching_the_rest(tiny_bundle: Path) -> None:
    (tiny_bundle / "evidence.json").write_bytes(seal({"measured": "elsewhere"}))
    assert read_bundle(tiny_bundle).manifest.name == "tiny"


def empty(folder: Path) -> None:
    folder.mkdir()


def plain_file(folder: Path) -> None:
    folder.write_text("{}")


def folder_as_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).mkdir(parents=True)


@pytest.mark.parametrize("make", [empty, plain_file, folder_as_manifest, lambda folder: None])
def test_what_is_no_bundle_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "thing")
    refused(tmp_path / "thing", str(tmp_path / "thing"), "is not a bundle", MANIFEST_NAME)


def test_an_oversized_manifest_is_refused_unread(tiny_bundle: Path) -> None:
    # Sparse: it takes no room on the disk, and would take a terabyte of memory if it were read.
    os.truncate(tiny_bundle / MANIFEST_NAME, 2**40)
    refused(tiny_bundle, MANIFEST_NAME, f"limit {LIMITS.manifest_bytes}")


def test_a_manifest_just_over_the_limit_is_refused(tiny_bundle: Path) -> None:
    os.truncate(tiny_bundle / MANIFEST_NAME, LIMITS.manifest_bytes + 1)
    refused(tiny_bundle, MANIFEST_NAME, f"limit {LIMITS.manifest_bytes}")


def test_a_damaged_manifest_is_refused_before_any_segment_is_read(tiny_bundle: Path) -> None:
    (tiny_bundle / SEGMENT).unlink()
    document = json.loads((tiny_bundle / MANIFEST_NAME).read_bytes())
    (tiny_bundle / MANIFEST_NAME).write_text(json.dumps(document))
    refused(tiny_bundle, "manifest.json: was changed")
