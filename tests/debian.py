"""Debian's packages that tests want, on a machine whose tests run as root."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import filelock

__all__ = ["install"]


def install(*packages: str) -> None:
    """Install them as far as this machine can: whoever asks looks afterwards what is there.

    One test process at a time: of two calls of apt at once the second fails.
    """
    if os.geteuid() or not shutil.which("apt-get"):
        return
    with filelock.FileLock(Path(tempfile.gettempdir()) / "edgekit-tests-apt.lock"):
        # A fresh container has no lists.
        for command in (["update"], ["--yes", "--no-install-recommends", "install", *packages]):
            subprocess.run(
                ["apt-get", "--quiet", "-oDPkg::Lock::Timeout=300", *command],
                check=False,
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                timeout=600,
            )
