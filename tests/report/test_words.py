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


def test_every_number_has_its_unit_and_thousands_apart():
    assert words.bytes_text(61_520) == "61.5 kB"
    assert words.count_text(93_418) == "93,418"
    assert words.macs_text(1_951_234_567) == "1,951.23 M"
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
