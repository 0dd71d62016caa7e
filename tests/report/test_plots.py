import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit.report import plots
from edgekit.report.page import CSS

NASTY = '$x_1$ <b> & "quoted" ' + "W" * 60


def every_figure(name: str) -> dict[str, str]:
    line = plots.Line(name, (0.0, 0.5, 0.999), (0.2, 0.3, 0.9))
    marks = plots.Marks(name, (1.0, 2.0), (0.9, 0.95), labels=(name, name))
    return {
        "bars": plots.bars("a", name, [plots.Bar(name, 1.0, name, 2.0), plots.Bar("b", 0.0, "0")]),
        "chain": plots.chain("b", name, [plots.Box(name, name, name, name, 0.5)] * 3, [name] * 2,
                             [plots.Skip(-1, 1), plots.Skip(0, 2)]),
        "stacks": plots.stacks("c", name, [(name, [1.0, 2.0]), ("b", [])], [2.0, None], name),
        "panels": plots.panels("d", name, [(name, [line, marks])], percent=[True],
                               level=[(name, 0.9)]),
        "histograms": plots.histograms(
            "e", name, [plots.Histogram(name, (0.0, 0.5, 1.0), (3, 0), (0, 1), 0.7),
                        plots.Histogram("b", (0.0, 0.5, 1.0), (0, 0), None, math.inf)],
            plots.Scale()),
        "cells": plots.cells("f", [name, "b"], [name, "c"], [[0.5, None], [1.0, 0.0]]),
        "errors": plots.errors("g", name, [(name, 0.0, 1e-3), ("b", 1e-6, 1e-3)]),
        "calibration": plots.calibration("h", [(name, [line]), ("after", [line])]),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["plain", NASTY, "\u4e2d\u6587", "a\x00b"])
def test_every_figure_is_an_element_of_a_page_whatever_the_names(name):
    for kind, svg in every_figure(name).items():
        root = ElementTree.fromstring(svg)  # noqa: S314  (our own)
        assert root.tag == "svg", kind
        assert root.get("viewBox"), kind
        assert len(list(root.iter("text"))) > 1, kind
        assert "http" not in svg, kind


def test_the_same_values_give_the_same_bytes():
    assert every_figure("name") == every_figure("name")


def test_every_colour_is_the_pages():
    known = set(re.findall(r"--(\w+):", CSS))
    for kind, svg in every_figure("name").items():
        assert not re.findall(r"#[0-9a-fA-F]{6}", svg), kind
        used = set(re.findall(r"var\(--(\w+)\)", svg))
        assert used, kind
        assert used <= known, kind


def test_two_figures_of_a_page_have_no_id_in_common():
    every = [set(re.findall(r' id="([^"]+)"', svg)) for svg in every_figure("name").values()]
    assert all(every)
    assert len(set.union(*every)) == sum(map(len, every))


def test_what_a_figure_refers_to_is_in_it():
    for kind, svg in every_figure("name").items():
        there = set(re.findall(r' id="([^"]+)"', svg))
        assert set(re.findall(r"""(?:url\(#|href="#)([^)"]+)""", svg)) <= there, kind


def test_a_users_own_settings_change_nothing():
    import matplotlib

    before = every_figure("name")["panels"]
    with matplotlib.rc_context({"axes.grid": True, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert every_figure("name")["panels"] == before
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_a_step_is_drawn_as_one_and_no_slope():
    line = plots.Line("a", (0.0, 0.5, 1.0), (0.0, 1.0, 0.5), steps=True)
    svg = plots.panels("i", "x", [("y", [line])], percent=[False])
    (way,) = re.findall(r'<path d="([^"]*)"\s*clip-path[^>]*var\(--s0\)', svg)
    points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", way)
    assert len(points) == 6
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        assert x == next_x or y == next_y


@settings(max_examples=50)
@given(st.lists(st.floats(allow_nan=True), max_size=20) | st.lists(st.floats(0.85, 1), max_size=5))
@example([0.9375])
def test_a_scale_takes_any_confidence_and_goes_back(values):
    scale = plots.Scale.of(values)
    for value in filter(math.isfinite, values):
        assert math.isfinite(scale.place(value))
    places = [scale.place(one) for one in sorted(filter(math.isfinite, values))]
    assert places == sorted(places)
    for one in scale.ticks:
        assert scale.value(scale.place(one)) == pytest.approx(one, abs=1e-7)


def test_confidences_near_1_are_parted_by_their_nines():
    scale = plots.Scale.of([0.5, 0.99, 0.999])
    assert scale.ticks[:3] == pytest.approx((0, 0.9, 0.99))
    assert scale.place(0.99) - scale.place(0.9) == pytest.approx(1)
    assert plots.Scale.of([0.1, 0.2, 0.95]).ticks == ()
    assert plots.Scale.of([3.0, 4.0]).ticks == ()


def test_a_name_goes_where_it_is_free_and_is_left_out_where_nothing_is():
    def names(*marks: plots.Marks) -> list[str]:
        svg = plots.panels("a", "ms", [("accuracy", marks)], percent=[True])
        root = ElementTree.fromstring(svg)  # noqa: S314  (our own)
        known = {"w1", "w2", "w3"}
        return [one.text for one in root.iter("text") if one.text in known]

    # At the right edge, above one another, and beside another series' points.
    edge = plots.Marks("on", (0.0, 9.0, 10.0), (0.5, 1.0, 1.0), labels=("w1", "w2", "w3"))
    assert names(edge) == ["w1", "w2", "w3"]
    alone = plots.Marks("off", (10.0,), (1.0,), labels=("w3",))
    both = plots.Marks("on", (0.0, 10.0), (0.5, 1.0), labels=("w1", "w2"))
    assert names(both, alone) == ["w1", "w2", "w3"]
    heap = plots.Marks("on", (0.0,) * 9 + (1.0,), (0.5,) * 9 + (1.0,), labels=("w1",) * 9)
    assert 1 <= len(names(heap)) <= 4
