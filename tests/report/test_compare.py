from edgekit.report.benches import Bench
from edgekit.report.compare import COLUMNS, names, page, rows


def test_a_row_has_the_reports_own_numbers(facts):
    (row,) = rows([Bench("a", facts.bench)])
    found = dict(zip(COLUMNS, row, strict=True))
    assert found["network"] == "tiny"
    assert found["device"] == facts.bench["device"]["cpu"]
    assert found["x plain"] == f"{facts.bench['speedup']:.2f}"
    assert found["leave"].count("/") == len(facts.exits) - 1
    assert found["valid"] == ("yes" if facts.bench["valid"] else "no")


def test_no_two_have_one_name(facts):
    int8 = {**facts.bench, "precision": "int8"}
    assert names([Bench("a", facts.bench), Bench("b", int8)]) == [
        "tiny host fp32",
        "tiny host int8",
    ]
    assert names([Bench("x/a", facts.bench), Bench("y/b", facts.bench)]) == ["a", "b"]
    assert names([Bench("x/a", facts.bench), Bench("y/a", facts.bench)]) == ["x/a", "y/a"]
    assert len(set(names([Bench("a", facts.bench)] * 3))) == 3


def test_a_page_has_latency_with_plain_and_whole_and_accuracy(facts):
    drawn = page([Bench("a", facts.bench), Bench("b", {**facts.bench, "samples": 7})])
    assert drawn.count("<figure>") == 2
    # Exits' shares are a table of their own: beside all else they lie outside a screen.
    assert drawn.count('<th scope="col" class="w">leave</th>') == 1
    assert "Not of the same samples: 24, 7" in drawn
    assert "whole</text>" in drawn
    without = {**facts.bench, "accuracy": None, "plain": {**facts.bench["plain"], "accuracy": None}}
    assert page([Bench("a", without), Bench("b", without)]).count("<figure>") == 1
