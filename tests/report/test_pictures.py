import io

import numpy as np
import pytest
from PIL import Image

from edgekit.report.pictures import thumbnail


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (500, 300, 3), (1, 900)])
def test_a_picture_is_small_and_keeps_its_shape(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    raw = thumbnail(pixels)
    with Image.open(io.BytesIO(raw)) as image:
        assert image.format == "PNG"
        assert max(image.size) <= 112
        if max(shape) <= 112:
            assert image.size == (shape[1], shape[0])
            assert (np.asarray(image).reshape(shape) == pixels).all()
