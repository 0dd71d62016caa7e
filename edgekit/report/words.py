"""Numbers as people read them: few digits, thousands apart, units behind."""

import bisect
import itertools
import math

from edgekit.bundle.manifest import TensorSpec

__all__ = [
    "ABSENT",
    "bytes_text",
    "confidence_text",
    "count_text",
    "error_text",
    "macs_text",
    "ms_text",
    "of_samples",
    "pair",
    "share_text",
    "short",
    "tensor_text",
    "times_text",
]

ABSENT = "\N{EN DASH}"
"""Stands where nobody knows."""


def bytes_text(size_bytes: float) -> str:
    """A size for people, in powers of 1000 as disks are sold."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def tensor_text(spec: TensorSpec) -> str:
    """A tensor of one sample: sizes, element type, and bytes where they do not vary."""
    shape = "x".join("?" if size is None else str(size) for size in spec.shape[1:])
    size_bytes = spec.bytes_per_sample
    return f"{shape} {spec.dtype}" + ("" if size_bytes is None else f" ({bytes_text(size_bytes)})")


def count_text(count: float | None) -> str:
    """A whole number with thousands apart."""
    return ABSENT if count is None else f"{count:,.0f}"


def of_samples(split: str, count: int | None) -> str:
    """What figures are of."""
    return split if count is None else f"{count_text(count)} samples of the {split}"


def macs_text(macs: float | None) -> str:
    """Multiply-accumulates, in millions as networks are compared; of tiny ones in thousands."""
    if macs is None:
        return ABSENT
    return f"{macs / 1e6:,.2f} M" if macs >= 1e6 else f"{macs / 1e3:,.1f} k"


def share_text(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return ABSENT if share is None else f"{share:.{digits}%}"


def confidence_text(value: float) -> str:
    """A confidence or a threshold: near 1 its nines, and two digits of what it lacks.

    Beyond what digits show at a glance, what it lacks alone: `1 - 3.2e-9`.
    """
    lacks = 1 - value
    if not 0 < lacks < 0.1:
        return f"{value:.6g}" if abs(value) > 1 else f"{value:.4g}"
    if lacks < 1e-7:
        return f"1 - {lacks:.1e}".replace("e-0", "e-")
    return f"{value:.{math.ceil(-math.log10(lacks)) + 1}f}".rstrip("0")


def ms_text(value: float | None) -> str:
    """Three significant digits: of milliseconds, or of whatever else is measured."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


def times_text(factor: float | None) -> str:
    """How many times as fast, or as large."""
    return ABSENT if factor is None else f"{factor:.2f}\N{MULTIPLICATION SIGN}"


def error_text(error: float | None) -> str:
    """An error over magnitudes; a plain 0 is exact."""
    return ABSENT if error is None else "0" if error == 0 else f"{error:.1e}"


def pair(*values: str | None) -> str:
    """A value, and beside it the one that is marked, where there is one."""
    return " | ".join(one for one in values if one)


def short(text: str, most: int = 18) -> str:
    """A name that fits beside a picture, as wide as `most` usual letters; tables have all of it."""
    plain = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    ends = list(itertools.accumulate(map(_width, plain)))
    if not ends or ends[-1] <= most:
        return plain
    return plain[: bisect.bisect_right(ends, most - 1)] + "…"


def _width(one: str) -> float:
    """How many usual letters a capital takes, or a character of East Asia."""
    return 1.6 if one.isupper() or one in "mw@%&<>" or ord(one) > 0x2E7F else 1.0
