"""Decide what a camera sees, always on its latest picture.

    python camera.py BUNDLE [--source 0] [--deadline-ms 50] [--metrics camera.jsonl]

One thread takes pictures, the other decides. Between them is room for one picture: a newer one
replaces the one that nobody took yet. So a decision is never about a queue of old pictures, and
memory stays what it is, however slow the network. SIGTERM, Ctrl-C and the end of the pictures end
it in order; `edgekit-camera.service` beside this file restarts it where it fails.
"""

import argparse
import contextlib
import importlib.util
import itertools
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekit.errors import DeviceError, EdgekitError, InputError
from edgekit.runtime import Chain
from edgekit.runtime.preprocess import read_sample

__all__ = ["Decider", "Latest", "Taken", "main", "notify", "source", "watch"]

Picture = npt.NDArray[np.uint8]
"""Pixels uint8 `[height, width]` or `[height, width, 3]` in the order red, green, blue."""

CAMERA_SIZE = (640, 480)
"""Width and height that a camera is asked for; the bundle scales and cuts as its network needs."""

IMAGES = {".bmp", ".jpeg", ".jpg", ".npy", ".png", ".webp"}

NOTIFY_S = 1.0
"""How often systemd is told that decisions are made."""

JOIN_S = 2.0
"""How long the end waits for a camera that is amid a picture."""

_LEAST_MS = 1e-3
"""What is left of a deadline that is over: the first segment runs all the same."""


class Taken(NamedTuple):
    """A picture, and when it was taken, on the clock `time.monotonic`."""

    picture: Picture
    taken_s: float


class Latest:
    """Room for one picture, between the thread that takes them and the one that decides."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: Taken | None = None
        self._ended = False
        self._error: BaseException | None = None
        self.replaced = 0
        """Pictures that a newer one replaced before anybody decided on them."""

    def put(self, taken: Taken) -> None:
        """Leave a picture, in the place of one that is there."""
        with self._changed:
            self.replaced += self._taken is not None
            self._taken = taken
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Say that none comes any more, and why, where that is no good end."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self) -> Taken | None:
        """The latest picture, waited for; None after the last one. Raises what `end` was given."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken is not None or self._ended)
            taken, self._taken = self._taken, None
        if taken is None and self._error is not None:
            raise self._error
        return taken


def watch(pictures: Iterator[Picture], decide: Callable[[Taken], None]) -> int:
    """Call `decide` on the latest of `pictures`, until they end; how many were replaced.

    They are taken in a thread of their own, and closed there. Raises what either raises.
    """
    latest, stopped = Latest(), threading.Event()

    def capture() -> None:
        error: BaseException | None = None
        try:
            for picture in pictures:
                if stopped.is_set():
                    break
                latest.put(Taken(picture, time.monotonic()))
        except BaseException as raised:
            error = raised
        finally:
            with contextlib.suppress(Exception):
                pictures.close()  # type: ignore[attr-defined]  # All of them are generators.
            latest.end(error)

    # A camera that hangs must not keep the process from its end.
    thread = threading.Thread(target=capture, name="camera", daemon=True)
    thread.start()
    try:
        while (taken := latest.take()) is not None:
            decide(taken)
    finally:
        stopped.set()
        thread.join(JOIN_S)
    return latest.replaced


def source(name: str, fps: float = 10.0, *, repeat: bool = False) -> Iterator[Picture]:
    """The pictures of a camera, or of files in its place.

    `name` is `camera`, the Raspberry Pi's own where picamera2 is installed and else OpenCV's first;
    a number or `/dev/video...` for OpenCV; an image, a folder of images, or an `.npy` file of
    pictures `[pictures, height, width(, 3)]`. Files come `fps` times a second (0: as fast as they
    are taken), once or again and again. Raises InputError or DeviceError when the first picture is
    taken.
    """
    if name == "picamera2" or (name == "camera" and importlib.util.find_spec("picamera2")):
        return _picamera2()
    if name == "camera":
        return _opencv(0)
    if name.isdecimal() or name.startswith("/dev/"):
        return _opencv(int(name) if name.isdecimal() else name)
    return _files(Path(name), fps, repeat)


def _opencv(device: int | str) -> Iterator[Picture]:
    try:
        import cv2
    except ImportError:
        raise DeviceError(
            "no OpenCV to read a camera with: pip install opencv-python-headless; or give "
            "--source a file or folder of images"
        ) from None
    camera = cv2.VideoCapture(device)
    try:
        if not camera.isOpened():
            raise DeviceError(
                f"camera {device} cannot be opened: is it there (ls /dev/video*), are you in the "
                "group video (id), and does no other program have it?"
            )
        camera.set(cv2.CAP_PROP_FRAME_WIDTH, CAMERA_SIZE[0])
        camera.set(cv2.CAP_PROP_FRAME_HEIGHT, CAMERA_SIZE[1])
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # Or it would keep old ones itself.
        while True:
            good, picture = camera.read()
            if not good:
                raise DeviceError(f"camera {device} gives no more pictures: was it unplugged?")
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    finally:
        camera.release()


def _picamera2() -> Iterator[Picture]:
    try:
        from picamera2 import Picamera2
    except (ImportError, ValueError) as error:  # ValueError: it was built for another numpy.
        raise DeviceError(
            f"picamera2 cannot be imported ({error}): sudo apt install python3-picamera2, and an "
            "environment with --system-site-packages; on Debian 12 it does not run with numpy 2"
        ) from None
    try:
        camera = Picamera2()
    except (IndexError, RuntimeError) as error:
        raise DeviceError(
            f"no camera for picamera2 ({error}): is its ribbon in place (rpicam-hello "
            "--list-cameras), and does no other program have it?"
        ) from None
    try:
        # What libcamera calls BGR888 lies in memory as red, green, blue.
        main_stream = {"size": CAMERA_SIZE, "format": "BGR888"}
        camera.configure(camera.create_video_configuration(main=main_stream))
        camera.start()
        while True:
            yield camera.capture_array("main")
    finally:
        camera.close()


def _files(path: Path, fps: float, repeat: bool) -> Iterator[Picture]:
    pictures: Any
    if path.suffix == ".npy" and path.is_file():
        try:
            pictures = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is no .npy file of pictures: {error}") from None
        if pictures.dtype != np.uint8 or pictures.ndim not in {3, 4}:
            raise InputError(
                f"{path}: pictures are uint8 [pictures, height, width(, 3)]; found "
                f"{pictures.dtype} {list(pictures.shape)}"
            )
        if not len(pictures):
            raise InputError(f"{path}: has no pictures")
    elif path.is_dir():
        pictures = sorted(one for one in path.iterdir() if one.suffix.lower() in IMAGES)
        if not pictures:
            raise InputError(f"{path}: has no images ({', '.join(sorted(IMAGES))})")
    else:
        pictures = [path]
    for one in itertools.chain.from_iterable(itertools.repeat(pictures) if repeat else [pictures]):
        yield read_sample(one) if isinstance(one, Path) else np.array(one)  # type: ignore[misc]
        if fps:
            time.sleep(1 / fps)


def notify(state: str) -> None:
    """Tell systemd, where it started this with `Type=notify`; else nobody."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, contextlib.suppress(OSError):
        systemd.connect("\0" + address[1:] if address.startswith("@") else address)
        systemd.sendall(state.encode())


class Decider:
    """Runs the chain on a picture, and prints what it says where that is another than before.

    A deadline counts from when the picture was taken.
    """

    def __init__(self, chain: Chain, deadline_ms: float | None, *, every: bool) -> None:
        self._chain = chain
        self._deadline_ms = deadline_ms
        self._every = every
        self._before: str | None = None
        self._notified_s = -math.inf
        self.count = 0

    def __call__(self, taken: Taken) -> None:
        """Decide on one picture. Raises as `Chain.one`, and InputError where it does not fit."""
        tensor = self._chain.prepare(taken.picture)
        left_ms = None
        if self._deadline_ms is not None:
            waited_ms = 1e3 * (time.monotonic() - taken.taken_s)
            left_ms = max(self._deadline_ms - waited_ms, _LEAST_MS)
        found = self._chain.one(tensor, deadline_ms=left_ms)
        now_s = time.monotonic()
        if now_s - self._notified_s >= NOTIFY_S:
            # Ready with the first decision: then camera and network have shown that they work.
            notify("WATCHDOG=1" if self.count else "READY=1")
            self._notified_s = now_s
        self.count += 1
        # Without classes it is the exit that tells one sample from another.
        says = found.exit if found.label is None else found.label
        if self._every or says != self._before:
            age_ms = 1e3 * (now_s - taken.taken_s)
            print(
                f"{says}: confidence {found.confidence:.3f} at {found.exit}, {age_ms:.1f} ms after "
                "the picture",
                flush=True,
            )
        self._before = says


def main() -> int:
    """Run until the pictures end, or somebody ends it; the exit code is edgekit's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle's folder")
    add(
        "--source",
        default="camera",
        help=("camera, picamera2, a number or /dev/video..., an image, a folder, an .npy file"),
    )
    add("--deadline-ms", type=float, help="the best answer so long after the picture")
    add("--metrics", type=Path, help="a file that exit counts and latencies are appended to")
    add("--fps", type=float, default=10.0, help="pictures a second from files; 0 for no pause")
    add("--repeat", action="store_true", help="files again and again, as a camera never ends")
    add("--every", action="store_true", help="print every decision, not only another one")
    options = parser.parse_args()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: sys.exit(0))
    decider = None
    try:
        chain = Chain.load(options.bundle, metrics=options.metrics)
        decider = Decider(chain, options.deadline_ms, every=options.every)
        pictures = source(options.source, options.fps, repeat=options.repeat)
        replaced = watch(pictures, decider)
    except EdgekitError as error:
        print(f"camera: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        notify("STOPPING=1")
    print(f"{decider.count} pictures decided on, {replaced} replaced by newer ones")
    return 0


if __name__ == "__main__":
    sys.exit(main())
