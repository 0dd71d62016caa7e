import dataclasses

import pytest

from tests.report.conftest import with_manifest, with_notes


def test_work_and_costs_add_up_along_the_chain(facts):
    macs = [one.macs for one in facts.manifest.variant().segments]
    assert facts.work == [macs[0], macs[0] + macs[1], sum(macs)]
    assert facts.costs.tolist() == facts.work
    assert facts.unit == "MACs"
    assert facts.priced(2.5e6) == "2.50 M MACs"
    tuning = dataclasses.replace(facts.manifest.tuning, unit="mJ", costs=(1.0, 2.0, 3.0))
    other = with_manifest(facts, tuning=tuning)
    assert other.costs.tolist() == [1, 2, 3]
    assert (other.axis, other.priced(2.5)) == ((1.0, "mJ"), "2.50 mJ")
    assert with_manifest(facts, tuning=None).costs.tolist() == facts.work


def test_what_was_counted_of_the_test_split_is_shown(facts):
    stale = with_notes(facts, "verify", {"accuracy": 0.123, "exit_rates": {"first": 1.0}})
    assert stale.tested["accuracy"] == 0.123
    assert stale.rates == [1, 0, 0]
    stages = [one for one in facts.evidence["stages"] if one["name"] != "verify"]
    blind = dataclasses.replace(facts, evidence={**facts.evidence, "stages": stages})
    assert "accuracy" not in blind.tested
    assert sum(blind.rates) == pytest.approx(1)
    assert blind.rated_on == ("tuning split", facts.seen.samples)
