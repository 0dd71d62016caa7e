"""Where the targets and recipes are that come with edgekit."""

from pathlib import Path

__all__ = ["shipped"]


def shipped(kind: str) -> Path:
    """The folder of shipped `kind` ("targets" or "recipes").

    In a wheel they lie inside the package; in a checkout at its top, beside the package.
    """
    package = Path(__file__).resolve().parent
    inside = package / "_shipped" / kind
    return inside if inside.is_dir() else package.parent / kind
