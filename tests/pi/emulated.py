"""A Raspberry Pi without one: Debian's Python for aarch64 and a bundle's wheels, run by qemu.

The system and each engine's packages are pinned by version and sha256 (`pins/`, written by
`make pins-pi`), made once, and kept under the user's cache folder. Several processes may ask at
once; what a kill has left half done is done again.
"""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from edgekit.target import load_target
from tests.debian import install

__all__ = [
    "BOARDS",
    "CACHE",
    "PINS",
    "PYTHON",
    "SUITE",
    "Board",
    "NotHere",
    "Pi",
    "PinError",
    "apt",
    "debian_pins",
    "digest",
    "edgekit_of",
    "emulated_pi",
    "locked",
    "made",
    "pip_download",
    "program",
    "requirements",
]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-tests/pi"
"""Found when this is imported: each test has a cache folder of its own."""

PINS = Path(__file__).parent / "pins"

PYTHON = "3.11"
SUITE = "bookworm"
"""The Debian with that Python. Its main suite alone: what a point release has brought there stays,
what the security suite has is replaced by the next fix."""

_RENEW = "if it is gone for good, `make pins-pi` writes new pins"

_MOST_S = 900
"""The longest that anything may take: an emulated ResNet-18 takes minutes."""


class NotHere(Exception):
    """This machine cannot have an emulated Pi, for the reason said."""


class PinError(Exception):
    """What a pin names is not to be had any more, or is something else."""


@dataclass(frozen=True)
class Board:
    """A Raspberry Pi as programs see it: qemu's name of its processor, and files under `/`."""

    cpu: str
    files: Mapping[str, str]


def _board(model: str, cpu: str, features: str, ids: tuple[str, str, str]) -> Board:
    """Four cores; `ids` are variant, part and revision, as /proc/cpuinfo has them.

    Both engines read them to choose their kernels, and crash where there is nothing to read.
    """
    variant, part, revision = ids
    cores = [
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {variant}\n"
        f"CPU part\t: {part}\nCPU revision\t: {revision}\n\n"
        for core in range(4)
    ]
    listed = dict.fromkeys(("possible", "present", "online"), "0-3\n")
    return Board(
        cpu,
        {
            "proc/cpuinfo": "".join(cores) + f"Model\t\t: {model}\n",
            "proc/device-tree/model": f"{model}\0",
            **{f"sys/devices/system/cpu/{name}": text for name, text in listed.items()},
        },
    )


BOARDS = {
    "rpi4b": _board(
        "Raspberry Pi 4 Model B Rev 1.4",
        "cortex-a72",
        "fp asimd evtstrm crc32 cpuid",
        ("0x0", "0xd08", "3"),
    ),
    "rpi5": _board(
        "Raspberry Pi 5 Model B Rev 1.0",
        "cortex-a76",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
        ("0x4", "0xd0b", "1"),
    ),
}
"""By the targets' names."""


@dataclass(frozen=True)
class Pi:
    """An emulated board with Python and one engine's packages."""

    root: Path
    site: Path
    cpu: str

    def run(
        self, *arguments: object, path: Path, home: Path, plugin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs the Pi's Python with these arguments, and waits for it.

        `path` is a folder of packages in front of the engine's, `home` where the program may leave
        files. Nothing of this process's environment goes along. `plugin` is for qemu.
        """
        environment = {
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": f"{path}:{self.site}",
        }
        qemu = [_qemu(), *(["-plugin", plugin] if plugin else []), "-cpu", self.cpu]
        python = self.root / f"usr/bin/python{PYTHON}"
        return subprocess.run(
            [*qemu, "-L", str(self.root), str(python), *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            cwd=home,
            timeout=_MOST_S,
        )


def emulated_pi(board: str, engine: str) -> Pi:
    """One of the `BOARDS` with what an engine's bundles install; made where it is not there yet.

    Raises NotHere where this machine cannot have it, PinError where what is pinned is gone.
    """
    if platform.system() != "Linux":
        raise NotHere(f"qemu runs programs of Linux on Linux alone; this is {platform.system()}")
    with locked():
        _qemu()
        system = made(f"debian-{digest(PINS / 'debian.txt')}", _write_system)
        site = made(f"{engine}-{digest(_pinned(engine))}", functools.partial(_write_site, engine))
        found = BOARDS[board]
        told = hashlib.sha256(repr(sorted(found.files.items())).encode()).hexdigest()[:12]
        root = made(f"{system.name}-{board}-{told}", functools.partial(_write_root, system, found))
    return Pi(root, site, found.cpu)


@contextmanager
def locked() -> Iterator[None]:
    """Nobody else makes anything in the cache meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(CACHE / "lock"):
        yield


def edgekit_of(bundle: Path, folder: Path) -> Path:
    """Unpacks the edgekit that a bundle brings along into `folder`."""
    (wheel,) = (bundle / "install").glob("edgekit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def requirements(engine: str) -> list[tuple[str, str]]:
    """An engine's pinned packages, as (`name==version`, sha256)."""
    return re.findall(r"^(\S+) --hash=sha256:([0-9a-f]{64})$", _pinned(engine).read_text(), re.M)


def debian_pins() -> list[tuple[str, str, str]]:
    """The system's packages, as (name, version, sha256)."""
    lines = (PINS / "debian.txt").read_text().splitlines()
    return [tuple(line.split()) for line in lines if not line.startswith("#")]  # type: ignore[misc]


def apt() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A call of `apt-get` on Debian's packages for the Pi, from where this machine has its own.

    Nothing of the machine is changed: lists and archives lie under the cache folder. Raises NotHere
    where there is no apt of Debian, or the lists cannot be fetched.
    """
    folder = CACHE / "apt"
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources.list").write_text(f"deb [signed-by={keyring}] {_mirror()} {SUITE} main\n")
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",  # Who else might be sent to fetch cannot read this folder.
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
        "Dir::Cache": folder,
        "Dir::Cache::archives": "archives",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
    }
    command = ["apt-get", "--quiet", *(f"-o{key}={value}" for key, value in options.items())]

    def run(*arguments: str, cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        return _ended(*command, *arguments, cwd=cwd)

    ended = run("update")
    if ended.returncode:
        raise NotHere(f"apt cannot read Debian's lists for aarch64: {_last(ended.stderr)}")
    return run


def pip_download(requirements: Iterable[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Fetches wheels for the Pi's Python into `folder`, with what pip is set to here."""
    tags = [f"--platform={tag}" for tag in load_target("rpi4b").platforms]
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", *tags]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    return _ended(*pip, "download", *options, "--dest", str(folder), *requirements)


def program(name: str, *packages: str) -> str:
    """The path of a program of Debian's `packages`; installed where it is missing, as root.

    For those who hold the lock, or find it installed. Raises NotHere.
    """
    found = shutil.which(name)
    if found is None:
        install(*packages)
        found = shutil.which(name)
    if found is None:
        raise NotHere(f"{name} is not installed: apt-get install {' '.join(packages)}")
    return found


def _qemu() -> str:
    return program("qemu-aarch64", "qemu-user")


def _mirror() -> str:
    """Where this machine has Debian's main suite from."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NotHere("the emulated Pi is made of Debian's packages, and there is no apt here")
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = ["indextargets", "--no-release-info", "--format", form, "Created-By: Packages"]
    release = platform.freedesktop_os_release()
    for line in _ended("apt-get", *targets).stdout.splitlines():
        address, *suite = line.split()
        if release["ID"] == "debian" and suite == [release.get("VERSION_CODENAME"), "main"]:
            return address
    raise NotHere(f"apt knows no mirror of Debian here (this is {release['PRETTY_NAME']})")


def _write_system(folder: Path) -> None:
    archives = CACHE / "debs"
    archives.mkdir(exist_ok=True)
    found = _verified(archives)
    missing = [one for one in debian_pins() if one[2] not in found]
    if missing:
        wanted = [f"{name}={version}" for name, version, _ in missing]
        ended = apt()("download", *wanted, cwd=archives)
        if ended.returncode:
            raise PinError(
                f"apt has not what tests/pi/pins/debian.txt pins: {_last(ended.stderr)}; {_RENEW}"
            )
        found = _verified(archives)
    for name, version, sha256 in debian_pins():
        if sha256 not in found:
            raise PinError(f"{name} {version} is not what tests/pi/pins/debian.txt pins; {_RENEW}")
        ended = _ended("dpkg", "-x", str(found[sha256]), str(folder))
        if ended.returncode:
            raise NotHere(f"dpkg cannot unpack {found[sha256]}: {_last(ended.stderr)}")


def _verified(archives: Path) -> dict[str, Path]:
    """The pinned packages among those that lie there, by sha256; all else there is deleted."""
    wanted = {sha256 for _, _, sha256 in debian_pins()}
    found = {digest(path, 64): path for path in archives.glob("*.deb")}
    for sha256 in found.keys() - wanted:
        found.pop(sha256).unlink()
    return found


def _write_site(engine: str, folder: Path) -> None:
    wheels = CACHE / f"{engine}.wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    # pip takes nothing whose hash is another.
    ended = pip_download(["--require-hashes", "-r", str(_pinned(engine))], wheels)
    if ended.returncode:
        said = next((x for x in ended.stderr.splitlines() if x.startswith("ERROR: ")), "no reason")
        if "from versions: none" in said:
            raise NotHere(f"pip found no package index, or nothing there: {said}")
        raise PinError(f"pip has not what {_pinned(engine).name} pins: {said}; {_RENEW}")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    shutil.rmtree(wheels)


def _write_root(system: Path, board: Board, folder: Path) -> None:
    """The system, and in front of this machine's the files that say what board it is."""
    for name in ("etc", "lib", "usr"):
        (folder / name).symlink_to(system / name)
    for name, text in board.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def made(name: str, write: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache, whole or not at all; for those who hold the lock."""
    folder, partial = CACHE / name, CACHE / f"{name}.partial"
    if not folder.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        partial.rename(folder)
    return folder


def _pinned(engine: str) -> Path:
    return PINS / f"{engine}.txt"


def digest(path: Path, length: int = 12) -> str:
    """So many first digits of a file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:length]


def _ended(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        timeout=_MOST_S,
    )


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason"])[-1]
