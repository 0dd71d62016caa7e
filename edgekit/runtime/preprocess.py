"""From what a user has (an image file, pixels, an array) to the network's input tensor.

The host uses these same functions for calibration and checks, so the two sides cannot differ.
Pillow is imported only to read or scale images.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.bundle.manifest import ONLY_INPUT, Image, Input
from edgekit.errors import DeviceError, InputError

__all__ = [
    "Sample",
    "Samples",
    "arrays_of",
    "as_array",
    "blank",
    "by_name",
    "check_labels",
    "check_sample",
    "check_values",
    "decode",
    "decode_npz",
    "encode",
    "enlarged",
    "fitted",
    "named_error",
    "normalise",
    "nothing",
    "prepare",
    "read_npz",
    "read_sample",
    "sample_of",
    "stack",
    "to_image",
    "to_pixels",
    "to_tensor",
    "unstack",
]

Array = npt.NDArray[Any]
Sample = Array | Mapping[str, Array]
"""What a network takes: an array for its only input, or arrays by the inputs' names.

Of one sample, or of a batch of them, which have one shape.
"""

Samples = Sample | Sequence[Sample]
"""A batch; or where sizes vary, samples one by one."""

Inputs = tuple[Input, ...]
T = TypeVar("T")

_DAMAGED = (OSError, ValueError, EOFError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)
"""What numpy and Pillow raise on files that are torn, or are something else."""

_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB"}
"""Pillow's modes of eight bits and what they are read as; a palette shows colours."""


def by_name(sample: T | Mapping[str, T]) -> Mapping[str, T]:
    """What a sample gives each input, by the inputs' names: arrays here, tensors on the host."""
    return sample if isinstance(sample, Mapping) else {ONLY_INPUT: sample}


def arrays_of(sample: Sample, inputs: Inputs) -> list[Array]:
    """What a sample or a batch gives each input, in their order.

    Raises InputError where it lacks one, or has one that the network does not take.
    """
    named = by_name(sample)
    names = [one.name for one in inputs]
    if set(named) == set(names):
        return [as_array(named[name]) for name in names]
    if len(names) > 1 and not isinstance(sample, Mapping):
        raise InputError(
            f"the network takes {len(names)} inputs, by name: {', '.join(names)}; found one array"
        )
    missing = [name for name in names if name not in named]
    strange = [str(name) for name in named if name not in names]
    raise InputError(
        f"the network takes {', '.join(names)}; "
        + "; ".join(
            f"{words} {', '.join(which)}"
            for words, which in (("missing is", missing), ("it takes no", strange))
            if which
        )
    )


def as_array(x: Any) -> Array:
    """What a caller gave as an array, or InputError."""
    if isinstance(x, np.ndarray):
        return x
    try:
        return np.asarray(x)
    except ValueError as error:
        raise InputError(f"the samples are no array: {error}") from None


def sample_of(arrays: Sequence[Array], inputs: Inputs) -> Sample:
    """The sample or batch that gives each input its array: the reverse of `arrays_of`."""
    if len(inputs) == 1:
        return arrays[0]
    return {one.name: array for one, array in zip(inputs, arrays, strict=True)}


def stack(samples: Sequence[Sample]) -> Sample:
    """Samples of one shape as a batch."""
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: np.stack([by_name(one)[name] for one in samples]) for name in first}
    return np.stack(samples)  # type: ignore[arg-type]


def unstack(batch: Samples) -> list[Sample]:
    """The samples of a batch, or those given one by one."""
    if isinstance(batch, Mapping):
        rows = zip(*batch.values(), strict=True)
        return [dict(zip(batch, row, strict=True)) for row in rows]
    return list(batch)


def read_sample(path: Path) -> Sample:
    """The content of an image or `.npy` file (see `decode`), or an `.npz` file's arrays by name.

    Raises InputError, DeviceError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if path.suffix == ".npz":
        return decode_npz(content, str(path))
    return decode(content, str(path))


def decode_npz(content: bytes, name: str) -> dict[str, Array]:
    """An `.npz` file's arrays by name. Raises InputError where the content is none."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {one: np.asarray(arrays[one]) for one in arrays.files}
    except (*_DAMAGED, AttributeError, TypeError):
        # The last two come of an .npy array under the name of an .npz file.
        raise InputError(f"{name}: is no .npz file of plain arrays") from None


def encode(array: Array) -> bytes:
    """An array as an `.npy` file's bytes."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def decode(content: bytes, name: str) -> Array:
    """An image file's pixels uint8 `[height, width(, 3)]`, or an `.npy` file's array.

    `name` says which it is by its ending, and stands in messages. Raises InputError where the
    content is neither, DeviceError where it is an image and Pillow is not installed.
    """
    if name.endswith(".npy"):
        try:
            return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
        except _DAMAGED as error:
            raise InputError(f"{name}: is no plain .npy array: {_first_line(error)}") from None
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(content)) as image:
            if image.mode not in _MODES:
                raise InputError(
                    f"{name}: an image of mode {image.mode}; its values do not fit 8 bits: convert "
                    "it, or give an .npy array"
                )
            return np.asarray(image.convert(_MODES[image.mode]))
    except (*_DAMAGED, pillow.DecompressionBombError) as error:
        raise InputError(
            f"{name}: is no image that Pillow can read: {_first_line(error)}"
        ) from None


def read_npz(path: Path, inputs: Inputs) -> tuple[Samples, Array | None]:
    """The samples, and `labels` `[samples]` (or None), of an .npz file.

    The samples are an array `inputs` `[samples, ...]`, or where there are several inputs one array
    under each one's name. Samples of several sizes are arrays `inputs.0`, `inputs.1` and on, which
    come as a list. Raises InputError where the file is missing, is none, or lacks an array.
    """
    names = [one.name for one in inputs] if len(inputs) > 1 else ["inputs"]
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            labels = arrays.get("labels")
            if f"{names[0]}.0" in arrays:
                count = sum(one.startswith(f"{names[0]}.") for one in arrays)
                rows = [[arrays[f"{name}.{row}"] for name in names] for row in range(count)]
                return [sample_of(row, inputs) for row in rows], labels
            return sample_of([arrays[name] for name in names], inputs), labels
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except KeyError:
        wanted = ", ".join(f"`{one.name}`" for one in inputs) if len(inputs) > 1 else "`inputs`"
        raise InputError(f"{path}: has no array {wanted}") from None
    except (*_DAMAGED, AttributeError, TypeError):
        # The last two come of an .npy array under the name of an .npz file.
        raise InputError(f"{path}: is no .npz file of plain arrays") from None


def check_labels(labels: Any, samples: int, classes: int | None) -> npt.NDArray[np.int64]:
    """Labels as int64 `[samples]`. Raises InputError where they are not one class number each."""
    array = np.asarray(labels)
    if array.shape != (samples,) or array.dtype.kind not in "iu":
        raise InputError(
            f"{samples} samples need as many whole numbers as labels; found {array.dtype} "
            f"{list(array.shape)}"
            + ("; give no labels where exits give maps" if array.ndim > 1 else "")
        )
    if samples and not (array.min() >= 0 and (classes is None or array.max() < classes)):
        known = f", and there are {classes} classes" if classes else ""
        raise InputError(f"labels run from {array.min()} to {array.max()}{known}")
    return array.astype(np.int64)


def prepare(sample: Sample, inputs: Inputs) -> Sample:
    """One sample as the network takes it; see `to_tensor`. Raises InputError, naming the input."""
    tensors = []
    for one, array in zip(inputs, arrays_of(sample, inputs), strict=True):
        try:
            tensors.append(to_tensor(array, one))
        except InputError as error:
            raise named_error(error, one, inputs) from None
    return sample_of(tensors, inputs)


def named_error(error: InputError, network_input: Input, inputs: Inputs) -> InputError:
    """The error with the input's name in front, where there are several."""
    return InputError(f"{network_input.name}: {error}") if len(inputs) > 1 else error


def to_tensor(sample: Array, network_input: Input) -> Array:
    """One sample as the network takes it, of `network_input`'s shape and dtype.

    Pixels (uint8) go through the image's steps; an array that already has the input's shape and
    dtype passes as it is. Raises InputError for anything else.
    """
    if network_input.image is not None and sample.dtype == np.uint8:
        pixels = to_pixels(sample, network_input.image)
        tensor = normalise(pixels[None], network_input.image)[0]
    else:
        tensor = sample
    if not network_input.takes(tensor.shape) or tensor.dtype != network_input.dtype:
        pixels_too = ", or uint8 pixels" if network_input.image else ""
        raise InputError(
            f"the network takes {network_input.dtype} {network_input.shape_text()}{pixels_too}; "
            f"this sample is {sample.dtype} {list(sample.shape)}"
            + (f", which gives {list(tensor.shape)}" if tensor is not sample else "")
        )
    return tensor


def check_sample(sample: Sample, inputs: Inputs) -> None:
    """See `check_values`, for every input. Raises InputError, naming the input."""
    for one, array in zip(inputs, arrays_of(sample, inputs), strict=True):
        try:
            check_values(array, one)
        except InputError as error:
            raise named_error(error, one, inputs) from None


def check_values(array: Array, network_input: Input) -> None:
    """Refuse values that the network does not take, in an array of the input's dtype.

    Raises InputError, with the place of the first, for NaN and infinity, and for integers outside
    the input's range: of an index beyond its table one engine makes another row, another a crash.
    """
    if network_input.range is None:
        wrong, problem = ~np.isfinite(array), "the input is not finite"
    else:
        least, most = network_input.range
        wrong = (array < least) | (array > most)
        problem = f"the network takes {least} to {most}"
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        raise InputError(f"{problem}: it holds {array[tuple(place)]} at {place}")


def blank(inputs: Inputs) -> Sample:
    """A sample that the network takes, to run it with: zeros, or what is nearest in the range.

    Where sizes vary, of the greatest.
    """
    return sample_of([np.full(one.greatest, nothing(one), one.dtype) for one in inputs], inputs)


def nothing(network_input: Input) -> int:
    """Zero, or the value of the input's range that is nearest to it."""
    least, most = network_input.range or (0, 0)
    return min(max(0, least), most)


def fitted(array: Array, shape: tuple[int, ...]) -> Array:
    """A sample's array in another shape of the same rank: cut off, or repeated, along each axis."""
    for place, size in enumerate(shape):
        if array.shape[place] != size:
            array = array.take(np.arange(size) % array.shape[place], axis=place)
    return array


def enlarged(sample: Sample, inputs: Inputs) -> Sample:
    """One sample in the greatest shape of each input; see `fitted`."""
    pairs = zip(arrays_of(sample, inputs), inputs, strict=True)
    return sample_of([fitted(array, one.greatest) for array, one in pairs], inputs)


def to_pixels(pixels: Array, image: Image) -> Array:
    """Pixels uint8 `[height, width(, channels)]` in the image's mode, scaled and cut.

    Returns uint8 `[height, width, channels]`. Raises InputError for another dtype or rank, or a
    picture smaller than the cut.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or 0 in pixels.shape:
        raise InputError(
            "pixels are uint8 [height, width] or [height, width, 3]; found "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    mode = "L" if pixels.ndim == 2 else "RGB"
    if mode == "RGB" and pixels.shape[2] != 3:
        raise InputError(f"pixels have 1 or 3 channels, in the last place; found {pixels.shape}")
    size = _resized(pixels.shape[:2], image.resize)
    if mode != image.mode or size != pixels.shape[:2]:
        picture = to_image(pixels).convert(image.mode)
        if size != pixels.shape[:2]:
            # Pillow's bilinear filter widens when it scales down, as torchvision's antialias does.
            picture = picture.resize((size[1], size[0]), _pillow().Resampling.BILINEAR)
        pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if image.crop is not None:
        top, left = ((have - want) // 2 for have, want in zip(size, image.crop, strict=True))
        if top < 0 or left < 0:
            raise InputError(f"a picture of {list(size)} is smaller than the cut {image.crop}")
        pixels = pixels[top : top + image.crop[0], left : left + image.crop[1]]
    return np.ascontiguousarray(pixels)


def normalise(pixels: Array, image: Image) -> npt.NDArray[np.float32]:
    """Pixels uint8 `[samples, height, width, channels]` as float32 `[samples, channels, h, w]`."""
    scaled = pixels.astype(np.float32) * np.float32(image.scale)
    scaled -= np.asarray(image.mean, np.float32)
    scaled /= np.asarray(image.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def to_image(pixels: Array) -> Any:
    """Pixels uint8 `[height, width]`, or with 1 or 3 channels behind, as a Pillow image."""
    return _pillow().fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _resized(size: tuple[int, ...], resize: int | tuple[int, int] | None) -> tuple[int, ...]:
    if resize is None:
        return size
    if isinstance(resize, tuple):
        return resize
    height, width = size
    shorter = min(height, width)
    return (height * resize // shorter, width * resize // shorter)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _pillow() -> Any:
    try:
        from PIL import Image as pillow
    except ImportError:
        raise DeviceError(
            "reading or scaling images needs Pillow, which is not installed: "
            "pip install 'edgekit[images]'"
        ) from None
    return pillow
