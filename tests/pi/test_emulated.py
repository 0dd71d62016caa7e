"""What the emulated Pi is made of: the pins, and a cache that many may use."""

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgekit.wheels import pins, pins_for
from tests.pi import emulated
from tests.pi.conftest import demanded
from tests.pi.emulated import BOARDS, PYTHON, NotHere, PinError, debian_pins, emulated_pi
from tests.pi.renew import ENGINES, SYSTEM


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that holds nothing yet."""
    monkeypatch.setattr(emulated, "CACHE", tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_pi_installs_what_a_bundle_asks_for(engine):
    wanted = pins_for(pins(engine), PYTHON, "aarch64")
    found = [name for name, _ in emulated.requirements(engine)]
    assert found == wanted, "targets/ has other pins: make pins-pi"


def test_the_system_is_what_is_renewed():
    assert [name for name, _, _ in debian_pins()] == list(SYSTEM)


@pytest.mark.parametrize("board", BOARDS)
def test_programs_see_the_board_and_not_this_machine(board, tmp_path):
    pi = demanded(lambda: emulated_pi(board, "onnxruntime"))
    code = (
        "import os, platform; print(platform.machine(), platform.python_version());"
        "print(open('/proc/device-tree/model').read().strip('\\0'));"
        "print(open('/proc/cpuinfo').read().count('processor'), *os.environ)"
    )
    ended = pi.run("-c", code, path=tmp_path, home=tmp_path)
    assert ended.returncode == 0, ended.stderr
    machine, model, cores = ended.stdout.splitlines()
    assert machine.startswith(f"aarch64 {PYTHON}.")
    assert model in BOARDS[board].files["proc/cpuinfo"]
    assert cores.startswith("4 ")
    assert "PATH" not in cores.split()


def test_what_a_kill_left_half_done_is_done_again(cache):
    (cache / "part.partial").mkdir()
    (cache / "part.partial/torn").write_bytes(b"half")
    folder = emulated.made("part", lambda place: (place / "whole").touch())
    assert [one.name for one in folder.iterdir()] == ["whole"]
    assert emulated.made("part", lambda place: pytest.fail("made twice")) == folder


def test_what_fails_is_not_taken_for_whole(cache):
    def fail(folder):
        (folder / "half").touch()
        raise NotHere("no more room")

    with pytest.raises(NotHere):
        emulated.made("part", fail)
    assert not (cache / "part").exists()


def test_two_who_ask_at_once_make_it_once(cache):
    calls = []

    def ask(_):
        with emulated.locked():
            return emulated.made("part", calls.append)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {cache / "part"}
    assert len(calls) == 1


def test_an_archive_that_was_changed_is_not_unpacked(cache, monkeypatch):
    (cache / "debs").mkdir()
    (cache / "debs/libc6_1_arm64.deb").write_bytes(b"something else")

    def no_apt():
        raise NotHere("no network")

    monkeypatch.setattr(emulated, "apt", no_apt)
    with pytest.raises(NotHere, match="no network"):
        emulated.made("debian", emulated._write_system)
    assert not list((cache / "debs").iterdir())
    assert not (cache / "debian").exists()


def test_packages_that_are_gone_say_how_to_renew_the_pins(cache, tmp_path, monkeypatch):
    (tmp_path / "pins").mkdir()
    monkeypatch.setattr(emulated, "PINS", tmp_path / "pins")
    no_version = f"libc6 0.0 {'0' * 64}\n"
    (tmp_path / "pins/debian.txt").write_text(no_version)
    (tmp_path / "pins/mine.txt").write_text(f"edgekit==0.0.0 --hash=sha256:{'0' * 64}\n")

    def said(*command, **_):
        return subprocess.CompletedProcess(command, 100, "", "E: Version '0.0' was not found\n")

    monkeypatch.setattr(emulated, "_ended", said)
    monkeypatch.setattr(emulated, "apt", lambda: said)
    with pytest.raises(PinError, match=r"Version '0.0' was not found.*make pins-pi"):
        emulated.made("debian", emulated._write_system)
    with pytest.raises(PinError, match=r"make pins-pi"):
        emulated.made("mine", lambda folder: emulated._write_site("mine", folder))


def test_without_a_network_pins_are_not_called_gone(cache, monkeypatch):
    def said(*command, **_):
        reason = "ERROR: Could not find a version that satisfies numpy (from versions: none)"
        return subprocess.CompletedProcess(command, 1, "", f"WARNING: Retrying\n{reason}\n")

    monkeypatch.setattr(emulated, "_ended", said)
    with pytest.raises(NotHere, match="no package index"):
        emulated.made("mine", lambda folder: emulated._write_site("litert", folder))


def test_without_qemu_the_word_is_what_to_install(monkeypatch):
    monkeypatch.setattr(emulated.shutil, "which", lambda name: None)
    with pytest.raises(NotHere, match="apt-get install qemu-user"):
        emulated_pi("rpi4b", "onnxruntime")


def test_what_this_machine_lacks_is_a_failure_in_ci_and_a_skip_elsewhere(monkeypatch):
    def lacking():
        raise NotHere("qemu-aarch64 is not installed")

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no emulated Pi: qemu-aarch64 is not"):
        demanded(lacking)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no emulated Pi: qemu-aarch64 is not"):
        demanded(lacking)
