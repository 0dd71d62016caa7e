"""The camera example, on pictures in place of a camera."""

import configparser
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from edgekit.errors import DeviceError, InputError
from edgekit.runtime import Chain
from tests.conftest import ROOT

FOLDER = ROOT / "examples/camera"
SAMPLES = ROOT / "recipes/digits/samples"
WAIT_S = 60

spec = importlib.util.spec_from_file_location("camera", FOLDER / "camera.py")
camera = importlib.util.module_from_spec(spec)
spec.loader.exec_module(camera)


def picture(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def test_a_slow_network_decides_on_the_latest_picture_and_keeps_no_others():
    deciding, taken_all = threading.Event(), threading.Event()
    alive: list[weakref.ref] = []
    decided, held = [], []

    def pictures():
        yield picture(0)
        assert deciding.wait(WAIT_S)
        for value in range(1, 50):
            one = picture(value)
            alive.append(weakref.ref(one))
            yield one
            del one
        # Here again only once the last one lies where the network will find it.
        taken_all.set()

    def decide(taken):
        decided.append(int(taken.picture[0, 0]))
        deciding.set()
        assert taken_all.wait(WAIT_S)
        held.append(sum(one() is not None for one in alive))

    assert camera.watch(pictures(), decide) == 48
    assert decided == [0, 49]
    assert held[0] == 1


def test_pictures_are_waited_for_and_none_is_decided_on_twice():
    more = threading.Semaphore(0)
    decided = []

    def pictures():
        for value in range(3):
            yield picture(value)
            assert more.acquire(timeout=WAIT_S)

    def decide(taken):
        decided.append(int(taken.picture[0, 0]))
        more.release()

    assert camera.watch(pictures(), decide) == 0
    assert decided == [0, 1, 2]


def test_an_error_of_the_camera_comes_after_its_last_picture():
    decided = []

    def pictures():
        yield picture(7)
        raise DeviceError("unplugged")

    with pytest.raises(DeviceError, match="unplugged"):
        camera.watch(pictures(), lambda taken: decided.append(int(taken.picture[0, 0])))
    assert decided == [7]


def test_an_error_of_the_network_ends_the_camera():
    closed = threading.Event()

    def pictures():
        try:
            while True:
                yield picture(0)
        finally:
            closed.set()

    def refuse(_):
        raise InputError("does not fit")

    with pytest.raises(InputError, match="does not fit"):
        camera.watch(pictures(), refuse)
    assert closed.wait(WAIT_S)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no-such-folder", None, "No such file or directory"),
        ("pictures.npy", b"nonsense", "is no .npy file of pictures"),
        ("empty", "folder", "has no images"),
        ("picture.png", b"nonsense", "picture.png"),
    ],
)
def test_what_holds_no_pictures_is_refused_by_its_name(tmp_path, name, content, words):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        next(camera.source(str(path)))
    assert str(path) in str(raised.value)


def test_pictures_of_another_dtype_are_refused(tmp_path):
    np.save(tmp_path / "floats.npy", np.zeros((2, 8, 8)))
    with pytest.raises(InputError, match="found float64"):
        next(camera.source(str(tmp_path / "floats.npy")))


def test_a_file_of_no_pictures_is_refused_and_not_read_again_and_again(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"none\.npy: has no pictures"):
        next(camera.source(str(tmp_path / "none.npy"), repeat=True))


OPENCV = """
import numpy as np

COLOR_BGR2RGB, CAP_PROP_FRAME_WIDTH, CAP_PROP_FRAME_HEIGHT, CAP_PROP_BUFFERSIZE = range(4)
pictures = {pictures}
log = []


class VideoCapture:
    def __init__(self, device):
        log.append(device)

    def isOpened(self):
        return self is not None and {opens}

    def set(self, name, value):
        pass

    def read(self):
        return (True, np.array([[pictures.pop()]], np.uint8)) if pictures else (False, None)

    def release(self):
        log.append("released")


def cvtColor(picture, code):
    assert code == COLOR_BGR2RGB
    return picture[..., ::-1]
"""


@pytest.fixture
def opencv(tmp_path, monkeypatch):
    """Puts a module in OpenCV's place: no machine that tests has a camera."""
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def install(*, opens, pictures=()):
        (tmp_path / "cv2.py").write_text(OPENCV.format(opens=opens, pictures=list(pictures)))
        import cv2

        return cv2.log

    yield install
    sys.modules.pop("cv2", None)


def test_a_camera_that_cannot_be_opened_says_what_to_look_at(opencv):
    log = opencv(opens=False)
    with pytest.raises(DeviceError, match=r"camera 3 cannot be opened: is it there \(ls /dev/v"):
        next(camera.source("3"))
    assert log == [3, "released"]


def test_pictures_of_a_camera_are_red_green_blue_and_their_end_is_an_error(opencv):
    log = opencv(opens=True, pictures=[(1, 2, 3)])
    pictures = camera.source("/dev/video2")
    assert next(pictures).tolist() == [[[3, 2, 1]]]
    with pytest.raises(DeviceError, match="camera /dev/video2 gives no more pictures"):
        next(pictures)
    assert log == ["/dev/video2", "released"]


def test_without_opencv_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DeviceError, match="pip install opencv-python-headless"):
        next(camera.source("0"))


def test_a_picamera2_that_does_not_fit_numpy_says_so(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "picamera2.py").write_text("raise ValueError('numpy.dtype size changed')")
    with pytest.raises(DeviceError, match="does not run with numpy 2"):
        next(camera.source("camera"))


def test_a_deadline_counts_from_when_the_picture_was_taken(digits_bundle, capsys):
    chain = Chain.load(digits_bundle)
    chain.segment_ms = [0.001] * len(chain.spec.segments)
    decider = camera.Decider(chain, 10_000, every=True)
    image = next(camera.source(str(SAMPLES / "test-000-label-3.png"), fps=0))
    decider(camera.Taken(image, camera.time.monotonic()))
    assert capsys.readouterr().out.startswith("3: confidence ")
    # A minute old: only the first segment, and its answer, whatever it is.
    chain = chain.with_policy(chain.spec.policy)
    chain.set_thresholds([2.0] * (len(chain.spec.segments) - 1))
    camera.Decider(chain, 10_000, every=True)(camera.Taken(image, camera.time.monotonic() - WAIT_S))
    assert f"at {chain.spec.segments[0].exits[0].name}, " in capsys.readouterr().out


def test_on_the_samples_it_prints_what_each_of_them_shows(digits_bundle, monkeypatch, capsys):
    # As many as there are decisions depends on which is faster; the last is never left out.
    monkeypatch.setattr(
        sys, "argv", ["camera", str(digits_bundle), "--source", str(SAMPLES), "--fps", "20"]
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Those of the tests stay.
    assert camera.main() == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    count = len(list(SAMPLES.glob("*.png")))
    decided, replaced = (int(word) for word in summary.split() if word.isdecimal())
    assert decided + replaced == count
    last = sorted(SAMPLES.glob("*.png"))[-1].stem.rpartition("-")[2]
    assert lines[-1].startswith(f"{last}: confidence ")


@pytest.fixture
def home(tmp_path, digits_bundle):
    """A home as the service expects it: the bundle, this folder, and a Python in an environment."""
    shutil.copytree(FOLDER, tmp_path / "camera", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "digits").symlink_to(digits_bundle)
    python = tmp_path / "edgekit/bin/python"
    python.parent.mkdir(parents=True)
    # A link would be taken for the environment that it leads to, with none of its packages.
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def unit(home):
    """The service's own section, its %h filled in."""
    parsed = configparser.RawConfigParser(interpolation=None, strict=True)
    parsed.optionxform = str
    parsed.read(home / "camera/edgekit-camera.service")
    return {key: value.replace("%h", str(home)) for key, value in parsed["Service"].items()}


def received(systemd):
    """What systemd is told until there is no more for now."""
    return systemd.recv(4096).decode()


def test_the_service_decides_tells_systemd_and_ends_in_order_on_sigterm(home):
    service = unit(home)
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    command = [*shlex.split(service["ExecStart"]), "--source", str(SAMPLES), "--repeat"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(home / "notify"))
        systemd.settimeout(WAIT_S)
        running = subprocess.Popen(
            command,
            cwd=service["WorkingDirectory"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(home / "notify")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert received(systemd) == "READY=1"
            assert received(systemd) == "WATCHDOG=1"
            running.send_signal(signal.SIGTERM)
            assert received(systemd) in {"STOPPING=1", "WATCHDOG=1"}
            out, err = running.communicate(timeout=WAIT_S)
        finally:
            running.kill()
            running.wait()
    assert (running.returncode, err) == (0, "")
    assert ": confidence " in out
    (line,) = (home / "camera.jsonl").read_text().splitlines()
    assert json.loads(line)["samples"] >= 2


def test_a_camera_that_is_not_there_fails_so_that_the_service_begins_anew(home):
    command = [*shlex.split(unit(home)["ExecStart"]), "--source", str(home / "video0.png")]
    ended = subprocess.run(
        command, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == f"camera: {home}/video0.png: No such file or directory\n"
    assert ended.stdout == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(home):
    ended = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(home / "camera/edgekit-camera.service")],
        env={**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "edgekit-camera" not in ended.stderr
    assert ended.returncode == 0, ended.stderr
