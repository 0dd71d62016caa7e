"""Pages as a browser draws them, on a phone and on a screen, by day and by night."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.report import compare
from edgekit.report.benches import Bench
from edgekit.report.bundles import draw
from tests.report.conftest import of_many, with_manifest, with_notes

SCREENS = [(360, False), (360, True), (1280, False), (1280, True)]

HOSTILE = '<script>document.title="run"</script> "$x_1$" ' + "W" * 90


def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("EDGEKIT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_a_bundles_page_is_drawn_whole_at_every_width_and_in_every_light(
    browser, digits_facts, tmp_path, width, dark
):
    page = draw(digits_facts)
    found = browser.measure(page, width, dark=dark)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["problems"] == []
    assert found["figures"] == page.count("<figure>") >= 8
    assert found["texts"] > 100
    light = [sum(map(int, re.findall(r"\d+", found[one])[:3])) for one in ("paper", "ink")]
    assert (light[0] < light[1]) is dark
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    shot = shots(tmp_path) / f"report-{width}-{'dark' if dark else 'light'}.png"
    browser.screenshot(path, shot, width, found["height"], dark=dark)
    with Image.open(shot) as image:
        assert image.size == (width, found["height"])
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_names_that_are_markup_or_too_long_break_nothing(browser, facts):
    exits = facts.manifest.variant().exits
    bench = {**facts.bench, "name": HOSTILE}
    bins = [{"count": 3, "confidence": 0.4, "accuracy": 0.3}]
    warm = {"temperature": 2.0, "ece_before": 0.1, "ece_after": 0.05, "bins_before": bins,
            "bins_after": bins}  # fmt: skip
    names = [*exits, *(f"{HOSTILE}{number}" for number in range(5))]
    noted = {"warning": HOSTILE, "temperature": dict.fromkeys(names, warm)}
    hostile = with_manifest(
        with_notes(facts, "tune", noted),
        name=HOSTILE,
        labels=(HOSTILE, "</svg></div>", "&amp;", "é" * 30),
        recipe={"name": HOSTILE},
    )
    page = draw(hostile)
    found = browser.measure(page, 360, dark=False)
    assert found["problems"] == []
    assert "<script>" not in page
    assert exits[0] in page
    compared = compare.page([Bench("a" * 200, bench), Bench(HOSTILE, bench)])
    assert "<script>" not in compared
    assert browser.measure(compared, 360, dark=True)["problems"] == []


def test_pages_of_bundles_side_by_side_are_drawn_whole(browser, digits_facts, facts, tmp_path):
    benches = [Bench("digits.json", digits_facts.bench), Bench("tiny.json", facts.bench)]
    page = compare.page(benches)
    for width, dark in SCREENS[1:3]:
        found = browser.measure(page, width, dark=dark)
        assert found["problems"] == []
        assert found["figures"] == 2
        path = tmp_path / "compare.html"
        path.write_text(page, encoding="utf-8")
        shot = shots(tmp_path) / f"compare-{width}.png"
        browser.screenshot(path, shot, width, found["height"], dark=dark)


def test_a_network_of_many_exits_is_drawn_whole(browser, facts):
    names = tuple(f"exit-number-{number}" for number in range(14))
    found = of_many(facts, names)
    page = draw(found)
    measured = browser.measure(page, 360, dark=False)
    assert measured["problems"] == []
    for name in names:
        assert f'<td class="w">{name}</td>' in page
