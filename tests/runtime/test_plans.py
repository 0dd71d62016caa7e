"""Plans beside a bundle: found on the device that they were built for, and refused on any other."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import GpuTarget, Segment, seal
from edgekit.errors import BuildError, DeviceError, MismatchError, NotInstalledError, PlanError
from edgekit.runtime.gpu import Gpu
from edgekit.runtime.plans import BUILT, EXECUTED, REFUSED, Store, Tie, folder_of, wanted

TARGET = GpuTarget("8.7", ">=10.3,<11", "tensorrt", 2**30, (1, 8), ("MAXN",))
ORIN = Gpu("Orin", "8.7", 16, 32 * 2**30, "12.6")
TENSORRT = "tensorrt 10.3.0"

DEVICES = [
    Gpu(name, capability, processors, 2**33, cuda)
    for (name, capability, processors), cuda in itertools.product(
        [
            ("Orin", "8.7", 16),
            ("Orin", "8.7", 8),
            ("NVIDIA Thor", "11.0", 20),
            ("Tesla T4", "7.5", 40),
            ("NVIDIA A10", "8.6", 72),
            ("NVIDIA H100 80GB HBM3", "9.0", 132),
        ],
        ["12.4", "12.6", "13.0"],
    )
]
VERSIONS = ["tensorrt 10.3.0", "tensorrt 10.7.0", "tensorrt 11.4.0.106", "tensorrt_rtx 1.7.1.116"]


def segment(content: bytes = b"onnx", name: str = "segment-1") -> Segment:
    digest = hashlib.sha256(content).hexdigest()
    return Segment(f"segments/{name}.onnx", len(content), digest, name, ("x",), ("y",), (), 1, 1)


def tie_on(gpu: Gpu, tensorrt: str = TENSORRT, of: Segment | None = None) -> Tie:
    return wanted([of or segment()], TARGET, gpu, tensorrt)[0]


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "digits")
    with found.locked():
        pass
    return found


def test_plans_lie_beside_the_bundle_and_not_in_it(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path / "digits")
    assert folder_of(Path()) == folder_of(tmp_path / "digits") == tmp_path / "digits.engines"


def test_what_was_put_is_read_back_on_the_same_device(store):
    record = store.put(segment(), tie_on(ORIN), b"plan", 1.5)
    assert (record.proven, record.seconds, record.segment) == (BUILT, 1.5, "segment-1")
    assert Store(store.bundle).read(segment(), tie_on(ORIN)) == b"plan"
    assert store.look(tie_on(ORIN)) == record


def test_a_bundle_without_plans_names_the_command(store):
    with pytest.raises(NotInstalledError, match="is not installed on this device") as caught:
        store.read(segment(), tie_on(ORIN))
    assert str(caught.value).endswith(f"edgekit install {store.bundle}")


def test_a_folder_that_is_not_there_is_a_bundle_without_plans(tmp_path):
    with pytest.raises(NotInstalledError):
        Store(tmp_path / "bundle").read(segment(), tie_on(ORIN))


@pytest.mark.parametrize("tensorrt", VERSIONS)
@pytest.mark.parametrize("gpu", DEVICES, ids=str)
def test_a_plan_of_one_device_is_refused_on_every_other(store, gpu, tensorrt):
    store.put(segment(), tie_on(ORIN), b"plan", 1.0)
    here = tie_on(gpu, tensorrt)
    if here == tie_on(ORIN):
        assert store.read(segment(), here) == b"plan"
        return
    with pytest.raises(MismatchError, match="the engine of segment-1 was built for") as caught:
        store.read(segment(), here)
    text = str(caught.value)
    for found, theirs, words in [
        (gpu.name, "Orin", "the GPU {}"),
        (gpu.compute_capability, "8.7", "compute capability {}"),
        (gpu.multiprocessors, 16, "{} multiprocessors"),
        (gpu.cuda, "12.6", "CUDA {}"),
        (tensorrt, TENSORRT, "{}"),
    ]:
        # What differs is named on both sides, and nothing else.
        assert (words.format(theirs) in text.partition("; here is ")[0]) == (found != theirs)
        assert (words.format(found) in text.partition("; here is ")[2]) == (found != theirs)
    assert text.endswith(f"edgekit install {store.bundle}")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_sizes", (1, 8, 32), "batches of 1, 8; here is batches of 1, 8, 32"),
        ("workspace_bytes", 1, "a workspace of 1073741824 bytes; here is a workspace of 1 bytes"),
        ("builder", "torch2trt", "the builder tensorrt; here is the builder torch2trt"),
    ],
)
def test_a_plan_that_was_built_otherwise_is_another(store, field, value, words):
    store.put(segment(), tie_on(ORIN), b"plan", 1.0)
    with pytest.raises(MismatchError, match=words):
        store.read(segment(), dataclasses.replace(tie_on(ORIN), **{field: value}))


def test_the_nearest_of_several_plans_is_named(store):
    far, near = DEVICES[9], dataclasses.replace(ORIN, cuda="12.4")
    for gpu in (far, near):
        store.put(segment(), tie_on(gpu), b"plan", 1.0)
    with pytest.raises(MismatchError, match=r"built for CUDA 12\.4; here is CUDA 12\.6: "):
        store.read(segment(), tie_on(ORIN))


def test_a_plan_of_another_segment_says_nothing_of_this_one(store):
    store.put(segment(b"other"), tie_on(ORIN, of=segment(b"other")), b"plan", 1.0)
    with pytest.raises(NotInstalledError):
        store.read(segment(), tie_on(ORIN))


def test_devices_that_share_a_folder_each_have_their_own(store):
    for number, gpu in enumerate(DEVICES):
        store.put(segment(), tie_on(gpu), f"plan {number}".encode(), 1.0)
    for number, gpu in enumerate(DEVICES):
        assert store.read(segment(), tie_on(gpu)) == f"plan {number}".encode()


ties = st.builds(
    Tie,
    *(st.text(max_size=4) for _ in range(3)),
    st.integers(0, 3),
    *(st.text(max_size=4) for _ in range(3)),
    st.lists(st.integers(1, 9), max_size=2).map(tuple),
    st.integers(0, 3),
)


@given(ties, ties)
def test_two_ties_share_a_key_only_where_they_are_the_same(one, other):
    assert (one.key == other.key) == (one == other)


def damaged(store: Store, suffix: str, change) -> PlanError:
    store.put(segment(), tie_on(ORIN), b"a plan of some length", 1.0)
    path = store.folder / f"{tie_on(ORIN).key}.{suffix}"
    change(path)
    with pytest.raises(PlanError) as caught:
        store.read(segment(), tie_on(ORIN))
    assert str(caught.value).endswith(f"edgekit install {store.bundle}")
    return caught.value


def test_a_truncated_plan_is_refused_by_its_size(store):
    error = damaged(store, "plan", lambda path: path.write_bytes(path.read_bytes()[:-1]))
    assert "has 20 bytes, 21 were built" in str(error)


def test_a_plan_with_bytes_behind_it_is_refused(store):
    damaged(store, "plan", lambda path: path.write_bytes(path.read_bytes() + b"!"))


def test_every_changed_byte_of_a_plan_is_found(store):
    for place in range(21):

        def change(path, place=place):
            content = bytearray(path.read_bytes())
            content[place] ^= 1
            path.write_bytes(content)

        assert "was changed: SHA-256" in str(damaged(store, "plan", change))


def test_a_plan_that_is_gone_is_refused(store):
    assert "No such file" in str(damaged(store, "plan", Path.unlink))


def test_a_plan_behind_a_link_is_refused(store, tmp_path):
    def change(path):
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")

    assert "cannot be read" in str(damaged(store, "plan", change))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff", seal({}), seal({"format": 1}), seal({"format": 9})],
)
def test_a_record_that_is_none_is_refused(store, content):
    error = damaged(store, "json", lambda path: path.write_bytes(content))
    assert "is damaged" in str(error)


def test_every_changed_byte_of_a_record_is_found(store):
    raw = b""

    def change(path):
        nonlocal raw
        raw = path.read_bytes()
        content = bytearray(raw)
        content[place % len(content)] ^= 1
        path.write_bytes(content)

    place = 0
    while place == 0 or place < len(raw):
        damaged(store, "json", change)
        place += 13


def test_a_record_under_another_plans_name_is_refused(store):
    other = tie_on(dataclasses.replace(ORIN, cuda="12.4"))
    store.put(segment(), other, b"plan", 1.0)

    def change(path):
        path.write_bytes((store.folder / f"{other.key}.json").read_bytes())

    assert "another engine's record" in str(damaged(store, "json", change))


def test_a_damaged_record_of_another_device_does_not_hide_the_reason(store):
    store.put(segment(), tie_on(DEVICES[9]), b"plan", 1.0)
    (store.folder / "0123.json").write_bytes(b"rubbish")
    with pytest.raises(MismatchError):
        store.read(segment(), tie_on(ORIN))


def test_a_record_can_be_read_by_people_and_says_what_it_was_built_on(store):
    store.put(segment(), tie_on(ORIN), b"plan", 1.0)
    (path,) = store.folder.glob("*.json")
    tie = json.loads(path.read_bytes())["tie"]
    assert (tie["gpu"], tie["compute_capability"], tie["tensorrt"]) == ("Orin", "8.7", TENSORRT)


def test_a_plan_that_answered_is_noted_once(store):
    record = store.put(segment(), tie_on(ORIN), b"plan", 1.0)
    proven = store.prove(record)
    assert proven == store.look(tie_on(ORIN))
    assert proven.proven == EXECUTED
    assert store.prove(proven) == proven


def test_a_plan_that_answered_otherwise_is_not_used(store):
    store.prove(store.put(segment(), tie_on(ORIN), b"plan", 1.0), REFUSED)
    with pytest.raises(PlanError, match="answered the golden samples otherwise") as caught:
        store.read(segment(), tie_on(ORIN))
    assert f"edgekit install {store.bundle} builds it anew" in str(caught.value)
    store.put(segment(), tie_on(ORIN), b"another", 1.0)
    assert store.read(segment(), tie_on(ORIN)) == b"another"


def test_a_plan_that_cannot_be_replaced_leaves_no_record_of_the_old_one(store, monkeypatch):
    store.put(segment(), tie_on(ORIN), b"plan", 1.0)

    def full(path, content):
        raise BuildError("no space left")

    monkeypatch.setattr("edgekit.runtime.plans.replace_file", full)
    with pytest.raises(BuildError):
        store.put(segment(), tie_on(ORIN), b"another", 1.0)
    assert store.look(tie_on(ORIN)) is None


def test_a_lock_that_cannot_be_had_is_said(store, monkeypatch):
    def none(descriptor, how):
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(BuildError, match="cannot be written"), store.locked():
        pass


def test_what_a_kill_leaves_of_a_plan_counts_as_nothing(store):
    (store.folder / f"{tie_on(ORIN).key}.plan").write_bytes(b"half a pl")
    with pytest.raises(NotInstalledError):
        store.read(segment(), tie_on(ORIN))


def test_what_the_builder_measured_is_kept_by_device_and_version(store):
    store.keep_timing(tie_on(ORIN), b"measured")
    assert store.timing(tie_on(ORIN, of=segment(b"another"))) == b"measured"
    assert store.timing(tie_on(ORIN, "tensorrt 10.7.0")) is None
    assert store.timing(tie_on(DEVICES[9])) is None


def test_measurements_that_were_damaged_are_not_used(store):
    store.keep_timing(tie_on(ORIN), b"measured")
    (path,) = store.folder.glob("timing-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert store.timing(tie_on(ORIN)) is None


def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "digits.engines").write_text("a file")
    with (
        pytest.raises(BuildError, match="copy it to where you may write"),
        Store(tmp_path / "digits").locked(),
    ):
        pass


def hold(bundle: Path, ready, go) -> None:
    with Store(bundle).locked():
        ready.set()
        go.wait(20)


def test_a_second_install_waits_for_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "digits", ready, go))
    other.start()
    try:
        assert ready.wait(60)
        waited = []
        with Store(tmp_path / "digits").locked(lambda: (waited.append(other.is_alive()), go.set())):
            assert waited == [True]
    finally:
        go.set()
        other.join()


def test_errors_of_engines_are_the_devices():
    assert {error.exit_code for error in (NotInstalledError, MismatchError, PlanError)} == {
        DeviceError.exit_code
    }


def test_a_full_disk_leaves_no_record(store, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BuildError, match="no space left"):
        store.put(segment(), tie_on(ORIN), b"plan", 1.0)
    assert store.look(tie_on(ORIN)) is None
