"""Images for a page: small, and as PNG."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.runtime.preprocess import to_image

__all__ = ["thumbnail"]

_PIXELS = 112
"""The longer side of a picture on the page, at most."""


def thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels uint8 `[height, width]`, or with 1 or 3 channels behind, as a small PNG."""
    image: Any = to_image(pixels)
    image.thumbnail((_PIXELS, _PIXELS))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
