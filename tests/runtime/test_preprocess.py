import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from edgekit.bundle.manifest import Image, Input
from edgekit.errors import DeviceError, InputError
from edgekit.runtime.preprocess import (
    normalise,
    read_npz,
    read_sample,
    to_image,
    to_pixels,
    to_tensor,
)

Array = npt.NDArray[Any]

GREY = Image("L", None, None, 1 / 255, (0.5,), (0.25,))
COLOUR = Image("RGB", None, None, 1.0, (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))


ONE = (Input("x", "float32", (2, 2), None),)


def grey_input(*shape: int, image: Image | None = GREY) -> Input:
    return Input("x", "float32", shape, image)


def ramp(height: int, width: int) -> Array:
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_grey_pixels_become_a_tensor_by_the_formula() -> None:
    tensor = to_tensor(np.array([[0, 255], [51, 102]], np.uint8), grey_input(1, 2, 2))
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, [[[-2.0, 2.0], [-1.2, -0.4]]], atol=1e-6)


def test_colour_pixels_become_channels_first_with_a_mean_and_std_each() -> None:
    pixels = np.array([[[1, 2, 3], [3, 6, 11]]], np.uint8)
    tensor = to_tensor(pixels, Input("x", "float32", (3, 1, 2), COLOUR))
    np.testing.assert_array_equal(tensor, [[[0, 1]], [[0, 1]], [[0, 1]]])
    assert tensor.flags.c_contiguous


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 255), st.floats(-2, 2, width=32), st.floats(0.125, 4, width=32))
def test_a_pixel_is_scaled_then_shifted_then_divided(value: int, mean: float, std: float) -> None:
    image = replace(GREY, mean=(mean,), std=(std,))
    found = normalise(np.full((1, 1, 1, 1), value, np.uint8), image).item()
    assert found == pytest.approx((value / 255 - mean) / std, rel=1e-5, abs=1e-5)


def test_a_batch_is_normalised_as_its_samples_are() -> None:
    pixels = noise(3, 4, 5, 1)
    alone = [normalise(one[None], GREY)[0] for one in pixels]
    np.testing.assert_array_equal(normalise(pixels, GREY), np.stack(alone))


def test_grey_pixels_may_have_their_channel_behind() -> None:
    np.testing.assert_array_equal(
        to_pixels(ramp(4, 5)[:, :, None], GREY), to_pixels(ramp(4, 5), GREY)
    )


def test_colour_becomes_grey_by_luma() -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    # ITU-R BT.601: 0.299 red, 0.587 green, 0.114 blue.
    np.testing.assert_array_equal(to_pixels(primaries, GREY)[:, :, 0], [[76, 150, 29, 9]])


def test_grey_becomes_colour_with_three_channels_alike() -> None:
    pixels = to_pixels(ramp(2, 3), COLOUR)
    np.testing.assert_array_equal(pixels, np.repeat(ramp(2, 3)[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("resize", "size"),
    [(4, (4, 8)), (16, (16, 32)), ((5, 7), (5, 7)), ((8, 16), (8, 16)), (None, (8, 16))],
)
def test_an_image_is_scaled_to_its_shorter_side_or_to_height_and_width(
    resize: int | tuple[int, int] | None, size: tuple[int, int]
) -> None:
    pixels = noise(8, 16)
    scaled = to_pixels(pixels, replace(GREY, resize=resize))
    expected = Pillow.fromarray(pixels).resize(size[::-1], Pillow.Resampling.BILINEAR)
    np.testing.assert_array_equal(scaled[:, :, 0], np.asarray(expected))


def test_the_shorter_side_is_the_width_of_an_upright_image() -> None:
    assert to_pixels(noise(16, 8), replace(GREY, resize=4)).shape == (8, 4, 1)


def test_a_cut_is_taken_from_the_middle() -> None:
    cut = to_pixels(ramp(5, 6), replace(GREY, crop=(2, 2)))
    np.testing.assert_array_equal(cut[:, :, 0], ramp(5, 6)[1:3, 2:4])
    assert cut.flags.c_contiguous


def test_a_cut_comes_after_scaling() -> None:
    pixels = to_pixels(noise(8, 16), replace(GREY, resize=4, crop=(4, 4)))
    whole = to_pixels(noise(8, 16), replace(GREY, resize=4))
    np.testing.assert_array_equal(pixels, whole[:, 2:6])


@pytest.mark.parametrize("crop", [(5, 4), (4, 5), (5, 5)])
def test_a_cut_larger_than_the_image_is_refused(crop: tuple[int, int]) -> None:
    with pytest.raises(InputError) as caught:
        to_pixels(ramp(4, 4), replace(GREY, crop=crop))
    assert "[4, 4]" in str(caught.value)
    assert str(crop) in str(caught.value)


def test_a_tensor_passes_as_it_is() -> None:
    tensor = np.zeros((1, 4, 4), np.float32)
    assert to_tensor(tensor, grey_input(1, 4, 4)) is tensor
    assert to_tensor(tensor, grey_input(1, 4, 4, image=None)) is tensor


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        (np.zeros((4, 4), np.float32), "this sample is float32 [4, 4]"),
        (np.zeros((1, 1, 4, 4), np.float32), "this sample is float32 [1, 1, 4, 4]"),
        (np.zeros((1, 4, 4), np.float64), "this sample is float64 [1, 4, 4]"),
        (np.zeros((1, 4, 4), np.int64), "this sample is int64 [1, 4, 4]"),
        (ramp(4, 5), "this sample is uint8 [4, 5], which gives [1, 4, 5]"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_with_both_shapes(sample: Array, named: str) -> None:
    with pytest.raises(InputError) as caught:
        to_tensor(sample, grey_input(1, 4, 4))
    assert "the network takes float32 [1, 4, 4], or uint8 pixels" in str(caught.value)
    assert named in str(caught.value)


def test_pixels_are_refused_where_the_input_is_no_image() -> None:
    with pytest.raises(InputError) as caught:
        to_tensor(np.zeros((1, 4, 4), np.uint8), grey_input(1, 4, 4, image=None))
    assert "takes float32 [1, 4, 4]; this sample is uint8 [1, 4, 4]" in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros(4, np.uint8), "uint8 [4]"),
        (np.zeros((1, 1, 4, 4), np.uint8), "uint8 [1, 1, 4, 4]"),
        (np.zeros((4, 4), np.int32), "int32 [4, 4]"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros((3, 4, 4), np.uint8), "(3, 4, 4)"),
    ],
)
def test_what_are_no_pixels_is_refused(pixels: Array, named: str) -> None:
    with pytest.raises(InputError) as caught:
        to_pixels(pixels, GREY)
    assert named in str(caught.value)


@pytest.mark.parametrize("resize", [None, 4, (4, 4)])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3)])
def test_a_picture_without_a_pixel_is_refused(
    resize: int | tuple[int, int] | None, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError):
        to_tensor(
            np.zeros(shape, np.uint8), grey_input(1, 4, 4, image=replace(GREY, resize=resize))
        )


def test_pixels_come_back_from_an_image_as_they_were() -> None:
    for pixels in (noise(4, 5), noise(4, 5, 1), noise(4, 5, 3)):
        assert np.asarray(to_image(pixels)).tobytes() == pixels.tobytes()


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("L", (3, 5)),
        ("1", (3, 5)),
        ("RGB", (3, 5, 3)),
        ("RGBA", (3, 5, 3)),
        ("P", (3, 5, 3)),
        ("LA", (3, 5)),
    ],
)
def test_grey_is_read_as_grey_and_everything_else_as_colour(
    tmp_path: Path, mode: str, shape: tuple[int, ...]
) -> None:
    Pillow.new(mode, (5, 3), 1).save(tmp_path / "x.png")
    pixels = read_sample(tmp_path / "x.png")
    assert pixels.dtype == np.uint8
    assert pixels.shape == shape


@pytest.mark.parametrize("pixels", [noise(4, 5), noise(4, 5, 3)], ids=["grey", "colour"])
def test_a_png_is_read_exactly(tmp_path: Path, pixels: Array) -> None:
    Pillow.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_sample(tmp_path / "x.png"), pixels)


def test_grey_of_sixteen_bits_is_not_read_as_white(tmp_path: Path) -> None:
    # Half of full brightness; either its upper eight bits are taken, or the file is refused.
    Pillow.fromarray(np.full((2, 2), 0x8080, np.uint16)).save(tmp_path / "x.png")
    try:
        pixels = read_sample(tmp_path / "x.png")
    except InputError as error:
        assert "x.png" in str(error)
    else:
        assert set(pixels.flat) <= {0x7F, 0x80, 0x81}


def test_an_array_is_read_as_it_was_saved(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    found = read_sample(tmp_path / "x.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_an_npy_with_a_pickle_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Trap(tmp_path / "sprung")]), allow_pickle=True)
    with pytest.raises(InputError, match=r"x\.npy: is no plain \.npy array"):
        read_sample(tmp_path / "x.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: No such file"):
        read_sample(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_a_folder_is_no_sample(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}: Is a directory"):
        read_sample(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npy_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npy"):
        read_sample(tmp_path / "x.npy")


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png: is no image that Pillow can read"):
        read_sample(tmp_path / "x.png")


def test_no_damage_to_an_image_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Pillow.fromarray(noise(8, 8, 3)).save(path)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        for broken in (bytes(damaged), content[:position]):
            path.write_bytes(broken)
            try:
                read_sample(path)
            except InputError as error:
                assert "x.png" in str(error)
                refused += 1
    assert refused > len(content) / 2


def test_an_image_too_large_to_be_honest_is_refused(tmp_path: Path) -> None:
    # A header that promises four thousand million pixels, as in a decompression bomb.
    size = (2**16).to_bytes(4, "little")
    header = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    (tmp_path / "x.bmp").write_bytes(header + size + size + b"\x01\0\x18\0" + bytes(24))
    with pytest.raises(InputError, match=r"x\.bmp"):
        read_sample(tmp_path / "x.bmp")


def test_without_pillow_an_image_is_a_matter_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pillow.fromarray(noise(2, 2)).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", noise(2, 2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DeviceError, match="Pillow, which is not installed"):
        read_sample(tmp_path / "x.png")
    assert to_tensor(read_sample(tmp_path / "x.npy"), grey_input(1, 2, 2)).shape == (1, 2, 2)


def test_pillow_is_not_imported_where_pixels_fit_already() -> None:
    program = (
        "import sys, numpy as np\n"
        "from edgekit.bundle.manifest import Image\n"
        "from edgekit.runtime.preprocess import to_pixels\n"
        "image = Image('L', 4, (2, 2), 1.0, (0.0,), (1.0,))\n"
        "to_pixels(np.zeros((4, 6), np.uint8), image)\n"
        "sys.exit('PIL' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_npz_gives_inputs_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", inputs=noise(3, 2, 2), labels=[2, 0, 1], other=[9])
    inputs, labels = read_npz(tmp_path / "x.npz", ONE)
    np.testing.assert_array_equal(inputs, noise(3, 2, 2))
    assert labels is not None
    assert labels.tolist() == [2, 0, 1]


def test_an_npz_may_have_no_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", inputs=noise(3, 2, 2))
    assert read_npz(tmp_path / "x.npz", ONE)[1] is None


def test_an_npz_gives_samples_of_several_sizes_in_order(tmp_path: Path) -> None:
    arrays = {f"inputs.{row}": np.full((row + 1, 2), row) for row in range(11)}
    np.savez(tmp_path / "x.npz", **dict(sorted(arrays.items())), labels=np.arange(11))
    inputs, labels = read_npz(tmp_path / "x.npz", ONE)
    assert [np.asarray(one).shape for one in inputs] == [(row + 1, 2) for row in range(11)]
    assert labels is not None and len(labels) == 11
    np.savez(tmp_path / "x.npz", **{key: arrays[key] for key in ("inputs.0", "inputs.2")})
    with pytest.raises(InputError, match="has no array"):
        read_npz(tmp_path / "x.npz", ONE)


def test_an_npz_without_inputs_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(3, 2, 2))
    with pytest.raises(InputError, match=r"x\.npz: has no array `inputs`"):
        read_npz(tmp_path / "x.npz", ONE)


def test_a_missing_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.npz: there is no such file"):
        read_npz(tmp_path / "x.npz", ONE)


def test_an_npz_with_a_pickle_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.array([Trap(tmp_path / "sprung")]))
    with pytest.raises(InputError, match=r"x\.npz: is no \.npz file of plain arrays"):
        read_npz(tmp_path / "x.npz", ONE)
    assert not (tmp_path / "sprung").exists()


def plain_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, noise(2))


def damaged(path: Path) -> None:
    np.savez(path, inputs=noise(64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"text"),
        lambda path: path.write_bytes(b"PK\x03\x04junk"),
        plain_array,
        damaged,
    ],
    ids=["empty", "text", "no zip", "npy", "damaged"],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x\.npz"):
        read_npz(tmp_path / "x.npz", ONE)
