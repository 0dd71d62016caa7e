"""edgekit: multi-exit and slimmable networks as chains of segments on small devices."""

__all__ = ["__version__"]

__version__ = "0.1.0"
