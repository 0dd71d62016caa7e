"""Every error that edgekit raises on purpose, as one tree.

EdgekitError            exit code 1
├── RecipeError         a recipe, target, data file or checkpoint that cannot be used
├── ModelError          the user's model cannot become a chain
├── InputError          a sample whose shape, dtype or values do not fit the network
├── BuildError          a stage could not do its work, or the result could not be written
├── VerificationError   exit code 3: something was checked and refused
│   ├── BundleError     a bundle with a missing, extra, changed or impossible file
│   └── CheckError      numbers outside tolerance: after a stage, or on golden samples
└── DeviceError         exit code 4: what this machine lacks, or what its engine refused
    ├── NotInstalledError   a bundle whose engines were not built on this device yet
    ├── MismatchError       an engine that was built for another device, or by another version
    └── PlanError           an engine's file that is damaged, or that its runtime refuses

A message says what was asked, what was found, the limit, and the next step, in one line.
Anything else that escapes is a bug and exits with 70.
"""

import traceback
from pathlib import Path

__all__ = [
    "BuildError",
    "BundleError",
    "CheckError",
    "DeviceError",
    "EdgekitError",
    "InputError",
    "MismatchError",
    "ModelError",
    "NotInstalledError",
    "PlanError",
    "RecipeError",
    "VerificationError",
    "describe_failure",
]


class EdgekitError(Exception):
    """The root. `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(EdgekitError):
    """A recipe, target, data file or checkpoint that cannot be used."""


class ModelError(EdgekitError):
    """The user's model cannot become a chain of segments."""


class InputError(EdgekitError):
    """A sample whose shape, dtype or values do not fit the network's input."""


class BuildError(EdgekitError):
    """A stage could not do its work, or its result could not be written."""


class VerificationError(EdgekitError):
    """Something was checked and refused."""

    exit_code = 3


class BundleError(VerificationError):
    """A bundle with a missing, extra, changed or impossible file."""


class CheckError(VerificationError):
    """Numbers outside tolerance: after a stage, or on golden samples."""


class DeviceError(EdgekitError):
    """What this machine lacks, or what its engine refused."""

    exit_code = 4


class NotInstalledError(DeviceError):
    """A bundle whose engines were not built on this device yet."""


class MismatchError(DeviceError):
    """An engine that was built for another device, or by another version."""


class PlanError(DeviceError):
    """An engine's file that is damaged, or that its runtime refuses."""


def describe_failure(error: BaseException) -> str:
    """An error out of the user's code in one line, with the last place that is theirs."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and not frame.filename.startswith("<")
        and Path(__file__).parent not in Path(frame.filename).parents
    ]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    reason = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {reason}{where}"
