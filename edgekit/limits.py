"""The limits that edgekit puts on what it reads, each with its reason."""

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Upper bounds; what is read and larger is refused before it is read."""

    manifest_bytes: int = 16 * 2**20
    """A manifest of a few hundred segments stays under 1 MiB; more is an attack on memory."""

    json_depth: int = 100
    """edgekit writes about a dozen levels, and Python's recursion ends near a thousand."""

    report_bytes: int = 16 * 2**20
    """A page stays under 1 MB; what is larger, no phone should be given."""

    segment_bytes: int = 2**31 - 1
    """Protocol buffers and FlatBuffers hold no more, and segments have no external data."""

    file_bytes: int = 8 * 2**30
    """A test split larger than this does not belong on a small device."""

    bundle_files: int = 10_000
    """Segments, golden samples and their expected outputs are a few dozen files."""

    ladder_variants: int = 64
    """A ladder has a handful of widths, by some resolutions; each is a bundle on the disk."""

    load_window: int = 10_000
    """Latencies that a ladder holds to see how busy the device is; more would be seen too late."""

    cache_bytes: int = 10 * 2**30
    """What earlier builds' results may take on the disk before the oldest go."""

    path_chars: int = 200
    """Leaves room for the user's own prefix under the 255 of most file systems."""

    tensor_rank: int = 8
    """What TensorRT takes; no engine here takes more."""


LIMITS = Limits()
