"""What every exit said, kept and read again."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekit.bundle.manifest import Policy
from edgekit.errors import BundleError
from edgekit.runtime.criteria import decide
from edgekit.tuning.seen import Seen

LOGITS = arrays.arrays(
    np.float32, (3, 20, 4), elements=st.floats(-5, 5, width=32) | st.just(np.float32(np.nan))
)
POLICIES = st.sampled_from(
    [
        Policy("max_prob", ()),
        Policy("margin", (), otherwise="max_confidence"),
        Policy("entropy", (), combine="sum"),
    ]
)


@given(LOGITS, POLICIES, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_who_leaves_where_is_what_the_runtime_decides(logits, policy, thresholds):
    seen = Seen.of(policy, list(logits), [], None)
    found = decide(
        list(logits),
        Policy(policy.criterion, thresholds, policy.combine, None, policy.otherwise),
    )
    taken = seen.taken(thresholds)
    assert taken.tolist() == found.depths.tolist()
    rows = np.arange(20)
    assert seen.classes[taken, rows].tolist() == found.classes.tolist()
    np.testing.assert_array_equal(seen.confidences[taken, rows], found.confidences)


@given(LOGITS, POLICIES, st.booleans())
def test_what_was_kept_is_what_is_read(logits, policy, labelled):
    labels = np.arange(20) % 4 if labelled else None
    seen = Seen.of(policy, list(logits), [], labels)
    content = seen.to_bytes()
    again = Seen.from_bytes(content)
    assert again.to_bytes() == content
    for name in ("confidences", "classes", "final", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))


@given(LOGITS, POLICIES, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_every_sample_is_counted_in_one_bin(logits, policy, thresholds):
    seen = Seen.of(policy, list(logits), [], None)
    taken = seen.taken(thresholds)
    for depth, left in enumerate(seen.left(thresholds)):
        here = seen.confidences[depth, taken == depth]
        assert left.count == len(here)
        assert len(left.counts) == len(left.edges) + 1
        # NaN is below nothing, and so in the last.
        below = [int(np.sum(here < edge)) for edge in left.edges]
        assert np.cumsum(left.counts)[:-1].tolist() == below


def test_those_that_leave_are_parted_in_quarters():
    confidences = np.linspace(0.0, 1.0, 101)
    seen = Seen(np.stack([confidences] * 2), np.zeros((2, 101), int), np.zeros(101, int), None)
    first, last = seen.left([0.2])
    assert first.count == 81
    assert max(first.counts) - min(first.counts) <= 1
    assert max(last.counts) - min(last.counts) <= 1


@pytest.mark.parametrize("damage", ["no zip", "no array", "other samples", "a stranger", "flat"])
def test_what_is_no_such_file_is_refused(damage):
    confidences, classes = np.zeros((2, 5)), np.zeros((2, 5), np.int32)
    kept = {"confidences": confidences, "classes": classes, "final": classes[0]}
    if damage == "no array":
        del kept["final"]
    if damage == "other samples":
        kept["labels"] = classes[0, :3]
    if damage == "a stranger":
        kept["more"] = classes
    if damage == "flat":
        kept["confidences"] = confidences[0]
    stream = io.BytesIO()
    np.savez(stream, **kept)
    content = b"PK" if damage == "no zip" else stream.getvalue()
    with pytest.raises(BundleError, match="rebuild the bundle"):
        Seen.from_bytes(content)
