"""The noise of `benchmarks/resnet18`."""

import runpy
from pathlib import Path

# Not imported: there the module is called `data` as well.
noise = runpy.run_path(str(Path(__file__).resolve().parent.parent / "resnet18/data.py"))["noise"]
