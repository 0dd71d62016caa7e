import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.manifest import seal_page, unseal_page
from edgekit.errors import BundleError
from edgekit.report.page import (
    CSS,
    Code,
    Figure,
    Gallery,
    Numbers,
    Picture,
    Section,
    Table,
    Text,
    render,
)

NASTY = '</style></title><script>alert("1")</script><img src=http://a.b onerror=x>\'&amp;'
TABLE = Table("what", ("name", "n"), (("a", "1"),))


def every_part(text: str) -> Section:
    return Section(
        text,
        (
            Text(text), Text(text, warns=True), Numbers(((text, text, text),)),
            Table(text, (text, text), ((text, text),)), Code(text, text), Code(text, text, True),
            Figure(text, "<svg></svg>", text, (TABLE,)),
            Gallery(text, (Picture(b"png", text, text),)),
        ),
    )  # fmt: skip


def tags(page: str) -> list[str]:
    return re.findall(r"<(/?\w+)", page)


@given(st.text())
def test_no_text_becomes_markup(text):
    plain = render("a", "a", [every_part("a")], {"a": "a"}, "a")
    page = render(text, text, [every_part(text)], {text: text}, text)
    assert tags(page) == tags(plain)


def test_a_script_in_a_name_is_shown_and_not_run():
    page = render(NASTY, NASTY, [every_part(NASTY)], {NASTY: NASTY}, NASTY)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<img src=http" not in page


def test_nothing_is_loaded_from_anywhere():
    page = render("a", "a", [every_part("a")])
    links = re.findall(r'(?:src|href|action|content)="([^"]*)"', page)
    assert not [one for one in links if re.match(r"(https?:)?//", one)]
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_headings_are_in_order_and_every_link_of_the_contents_leads_to_one():
    page = render("a", "b", [every_part("c"), every_part("d")])
    levels = [int(one) for one in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    places = set(re.findall(r' id="([^"]+)"', page))
    linked = re.findall(r'<a href="#([^"]+)"', page)
    assert len(linked) == 2
    assert set(linked) <= places
    assert '<html lang="en">' in page


def test_figures_side_by_side_share_a_row_and_each_says_what_it_shows():
    figure = Figure("one", "<svg></svg>", "what is seen", (TABLE,))
    page = render("a", "b", [Section("c", (figure, figure, Text("between"), figure))])
    assert page.count('<div class="figures">') == 2
    assert page.count('role="img" aria-label="what is seen"') == 3
    assert page.count("<details>") == 3
    assert page.count("<caption>what</caption>") == 3


@given(st.text(max_size=40), st.data())
def test_a_changed_byte_of_a_sealed_page_is_found(text, data):
    raw = seal_page(text)
    assert unseal_page(raw, "page") == text.encode("utf-8", "replace").decode()
    place = data.draw(st.integers(0, len(raw) - 1))
    changed = bytearray(raw)
    changed[place] ^= data.draw(st.integers(1, 255))
    for one in (bytes(changed), raw[:place], raw + b"\n"):
        try:
            unseal_page(one, "page")
        except BundleError as error:
            assert "edgekit report" in str(error)
        else:
            raise AssertionError(one)


def brightness(colour: str) -> float:
    """Relative luminance (WCAG 2, 1.4.3)."""
    digits = colour.lstrip("#")
    full = digits if len(digits) == 6 else "".join(one * 2 for one in digits)
    parts = [int(full[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_words_can_be_read_by_day_by_night_and_in_print():
    blocks = re.findall(r":root\{([^}]*)\}", CSS)
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--(\w+):(#\w+)", block))

        def contrast(front: str, behind: str, colours: dict[str, str] = colours) -> float:
            pair = sorted(brightness(colours[one]) for one in (front, behind))
            return (pair[1] + 0.05) / (pair[0] + 0.05)

        for front in ("ink", "soft", "link"):
            assert contrast(front, "paper") >= 4.5, (front, block)
            assert contrast(front, "panel") >= 4.5, (front, block)
        assert contrast("warn", "warned") >= 4.5, block
        for front in ("s0", "s1", "s2", "s3"):
            assert contrast(front, "paper") >= 3, (front, block)
