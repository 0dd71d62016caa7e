"""Which samples tell the same on any processor."""

import numpy as np
import pytest

from edgekit.bundle.manifest import Policy
from edgekit.bundle.reader import read_bundle
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.chain import Chain
from edgekit.runtime.criteria import decide
from edgekit.tuning.doubt import sureness


@pytest.mark.parametrize(
    "policy",
    [
        Policy("max_prob", (0.29, 0.29), "sum"),
        Policy("max_prob", (2.0, 2.0), "geometric", None, "max_confidence"),
        Policy("patience", (1.0, 1.0)),
    ],
    ids=lambda policy: f"{policy.criterion} {policy.combine}",
)
def test_a_sure_sample_keeps_its_decision_where_logits_change_a_little(built_tiny, policy):
    chain = Chain.load(built_tiny).with_policy(policy)
    inputs, _ = load_test_data(read_bundle(built_tiny))
    logits = list(chain.logits(inputs).values())
    sure = [
        sureness(policy, [one[row][None] for one in logits], [], classes=True)
        for row in range(len(inputs))
    ]
    assert 0 <= min(sure) < max(sure)
    rng = np.random.default_rng(0)
    decided = decide(logits, policy)
    for row, distance in enumerate(sure):
        for _ in range(20):
            # Of three exits this moves a lead, or log-odds, by a third of the sureness at most.
            noise = [rng.uniform(-1, 1, one[row].shape) * distance / 20 for one in logits]
            moved = [(one[row] + added)[None] for one, added in zip(logits, noise, strict=True)]
            again = decide(moved, policy)
            assert (again.exits[0], again.classes[0]) == (decided.exits[row], decided.classes[row])
