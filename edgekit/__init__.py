"""edgekit: multi-exit and slimmable networks as chains of segments on small devices."""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

# ONNX Runtime from 1.29 on leaves an identifier on the disk, and tells its makers of each session
# from a thread of its own. It looks once, when it is loaded; who has set this has decided.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
