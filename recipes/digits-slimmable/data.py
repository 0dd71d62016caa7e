"""The handwritten digits of `recipes/digits`, in the same four splits."""

from __future__ import annotations

import runpy
from pathlib import Path

# Not imported: there the module is called `data` as well.
_digits = runpy.run_path(str(Path(__file__).resolve().parent.parent / "digits/data.py"))

MEAN, STD = _digits["MEAN"], _digits["STD"]
load, normalize = _digits["load"], _digits["normalize"]
