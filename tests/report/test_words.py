import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.38061, "0.381"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234"), (0.01234, "0.0123"),
     (0, "0"), (None, words.ABSENT), (math.nan, words.ABSENT)],
)  # fmt: skip
def test_times_have_three_digits(value, text):
    assert words.ms_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.999987, "0.999987"), (1 - 3.2e-9, "1 - 3.2e-9"), (1.0, "1"), (0.5, "0.5"), (0.9, "0.9"),
     (0.99984, "0.99984"), (0.12345, "0.1235"), (1234.5678, "1234.57"), (-3.5, "-3.5")],
)  # fmt: skip
def test_confidences_keep_their_nines(value, text):
    assert words.confidence_text(value) == text


@given(st.floats(0, 1, exclude_max=True))
def test_no_confidence_below_1_is_told_as_1(value):
    text = words.confidence_text(value)
    assert text != "1"
    left, _, lacks = text.partition(" - ")
    told = float(left) - float(lacks or 0)
    assert abs(told - value) <= max(0.06 * (1 - value), 1e-4 * value, 1e-16) + 1e-16


def test_every_number_has_its_unit_and_thousands_apart():
    assert words.bytes_text(61_520) == "61.5 kB"
    assert words.count_text(93_418) == "93,418"
    assert words.macs_text(1_951_234_567) == "1,951.23 M"
    assert words.macs_text(83_400) == "83.4 k"
    assert words.of_samples("test split", 1200) == "1,200 samples of the test split"
    assert words.share_text(0.98567, 2) == "98.57%"
    assert words.times_text(3.1) == "3.10\N{MULTIPLICATION SIGN}"
    assert words.error_text(0.0) == "0"
    assert words.error_text(5.06e-7) == "5.1e-07"
    assert words.pair("1", None) == "1"


@given(st.text(), st.integers(2, 40))
def test_a_shortened_name_is_printable_and_no_longer_than_asked(text, most):
    found = words.short(text, most)
    assert len(found) <= most
    assert not found or found.isprintable()
    if len(text) <= most and set(text) <= set("abcdef -1"):
        assert found == text
