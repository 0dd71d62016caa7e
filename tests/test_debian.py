"""Packages that tests install: by several test processes, on a machine that has none yet."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests import debian


def test_two_who_install_at_once_take_turns(tmp_path, monkeypatch):
    calls = []

    def run(command, **_):
        calls.append("begins")
        time.sleep(0.05)
        calls.append("ends")

    monkeypatch.setattr(debian.os, "geteuid", lambda: 0)
    monkeypatch.setattr(debian.shutil, "which", lambda name: name)
    monkeypatch.setattr(debian.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(debian.subprocess, "run", run)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(debian.install, ("qemu-user", "chromium", "gcc")))
    assert calls == ["begins", "ends"] * 6


def test_nobody_but_root_installs(monkeypatch):
    monkeypatch.setattr(debian.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(debian.subprocess, "run", None)
    debian.install("qemu-user")
