"""The temperature against a fine grid of them, and the bins against a plain loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.runtime.criteria import CRITERIA
from edgekit.tuning.certificate import parted
from edgekit.tuning.temperature import (
    GREATEST,
    LEAST,
    MOST_SAMPLES,
    fit_temperature,
    fitted_on,
    nll,
    reliability,
)

SEEDS = st.integers(0, 2**32)


def drawn(seed, samples=200, classes=5, spread=3.0, hotter=1.0):
    """Logits that are `hotter` than what their labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((samples, classes))
    noise = rng.gumbel(size=logits.shape)
    return hotter * logits, (logits + noise).argmax(axis=1)


@st.composite
def odd(draw):
    """Any logits of some samples, NaN and infinities among them, and any labels."""
    samples, classes = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    value = st.floats(-20, 20, width=32) | st.sampled_from(
        [0.0, 1.0, 3e38, -3e38, 1e-45, np.nan, np.inf, -np.inf]
    )
    logits = draw(arrays(np.float32, (samples, classes), elements=value))
    return logits, draw(arrays(np.int64, samples, elements=st.integers(0, classes - 1)))


@pytest.mark.parametrize("hotter", [0.1, 0.5, 1.0, 2.0, 15.0])
def test_the_temperature_is_the_best_of_a_fine_grid(hotter):
    logits, labels = drawn(1, 3000, hotter=hotter)
    grid = np.geomspace(LEAST, GREATEST, 2001)
    of_grid = [nll(logits, labels, one) for one in grid]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(grid[int(np.argmin(of_grid))], rel=grid[1] / grid[0] - 1)
    assert nll(logits, labels, found) <= min(of_grid)
    # Three thousand samples tell what they were drawn with.
    assert found == pytest.approx(hotter, rel=0.1)


@settings(deadline=None)
@given(odd(), st.floats(LEAST, GREATEST))
def test_no_temperature_is_better_than_the_one_fitted(network, other):
    logits, labels = network
    found = fit_temperature(logits, labels)
    assert LEAST <= found <= GREATEST
    least = nll(logits, labels, found)
    assert least <= nll(logits, labels)
    assert least <= nll(logits, labels, other) * (1 + 1e-12) + 1e-12


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.floats(0.2, 5), st.floats(0.2, 5))
def test_logits_so_many_times_as_large_want_a_temperature_so_many_times_as_high(
    seed, hotter, factor
):
    logits, labels = drawn(seed, hotter=hotter)
    found, other = fit_temperature(logits, labels), fit_temperature(factor * logits, labels)
    assume(all(2 * LEAST < one < GREATEST / 2 for one in (found, other)))
    assert other == pytest.approx(factor * found, rel=1e-6)


@settings(deadline=None)
@given(odd(), SEEDS)
def test_the_order_of_the_samples_changes_nothing(network, seed):
    logits, labels = network
    order = np.random.default_rng(seed).permutation(len(labels))
    assert fit_temperature(logits[order], labels[order]) == fit_temperature(logits, labels)
    assert nll(logits[order], labels[order], 0.7) == nll(logits, labels, 0.7)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.floats(-1000, 1000))
def test_what_is_added_to_all_logits_of_a_sample_changes_nothing(seed, more):
    logits, labels = drawn(seed)
    assert fit_temperature(logits + more, labels) == pytest.approx(
        fit_temperature(logits, labels), rel=1e-6
    )


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_the_likelihood_is_pytorchs(temperature):
    logits, labels = drawn(2)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits) / temperature, torch.from_numpy(labels)
    )
    assert nll(logits, labels, temperature) == pytest.approx(float(expected), rel=1e-12)


def test_samples_that_no_temperature_makes_likely_are_left_out():
    logits, labels = drawn(3)
    bad = [[np.nan, 0, 0, 0, 0], [np.inf, 0, 0, 0, 0], [-np.inf] * 5, [0, -np.inf, 0, 0, 0]]
    more = np.concatenate([logits, np.array(bad)]), np.concatenate([labels, [0, 0, 0, 1]])
    assert fit_temperature(*more) == fit_temperature(logits, labels)
    assert nll(*more) == nll(logits, labels)


def test_a_class_that_is_masked_is_as_if_there_were_none():
    logits, labels = drawn(4, classes=3)
    masked = np.concatenate([logits, np.full((len(logits), 1), -np.inf)], axis=1)
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(logits, labels))
    assert math.isfinite(nll(masked, labels))


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        pytest.param([[2.0, 0], [0, 1]], [0, 1], LEAST, id="all are right"),
        pytest.param([[2.0, 0], [0, 1]], [1, 0], GREATEST, id="all are wrong"),
        pytest.param([[0.0, 0], [3, 3]], [1, 0], 1.0, id="nothing is told apart"),
        pytest.param([[5.0], [3.0]], [0, 0], 1.0, id="one class"),
        pytest.param([[1e4, 0], [0, 1e4]], [0, 1], 1.0, id="nothing is left to gain"),
        pytest.param(np.zeros((0, 3)), [], 1.0, id="no sample"),
        pytest.param([[np.nan, 0]], [0], 1.0, id="no sound sample"),
    ],
)
def test_where_there_is_no_best_temperature_it_is_bounded_or_one(logits, labels, expected):
    assert fit_temperature(np.array(logits), np.array(labels, int)) == expected


def test_two_right_in_three_at_one_confidence_want_just_that_confidence():
    logits = np.array([[9.0, 0.0]] * 3)
    labels = np.array([0, 0, 1])
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(9 / math.log(2), rel=1e-9)
    assert CRITERIA["max_prob"](logits[:1] / temperature) == pytest.approx(2 / 3)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1) | st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans()),
        max_size=30,
    ),
    st.integers(1, 20),
)
def test_bins_are_counted_as_a_plain_loop_counts_them(samples, bins):
    confidences, right = (np.array([one[k] for one in samples]) for k in (0, 1))
    found = reliability(confidences, right.astype(bool), bins)
    error = 0.0
    edges = np.linspace(0, 1, bins + 1)
    for place, one in enumerate(found.bins):
        here = [
            sample
            for sample in samples
            if edges[place] < sample[0] <= edges[place + 1] or sample[0] == place == 0
        ]
        assert one.count == len(here)
        if not here:
            assert one.confidence is one.accuracy is None
            continue
        confidence = sum(sample[0] for sample in here) / len(here)
        accuracy = sum(sample[1] for sample in here) / len(here)
        assert (one.confidence, one.accuracy) == pytest.approx((confidence, accuracy))
        error += len(here) / len(samples) * abs(confidence - accuracy)
    assert found.ece == pytest.approx(error, abs=1e-12)
    assert len(found.bins) == bins


def test_reliability_by_hand_and_without_a_nan():
    confidences = np.array([0.9, 0.8, 0.3, np.nan])
    found = reliability(confidences, np.array([True, False, False, True]), bins=2)
    assert found.ece == pytest.approx((abs(0.5 - 0.85) * 2 + 0.3) / 3)
    assert [one.count for one in found.bins] == [1, 2]
    assert reliability(np.zeros(0), np.zeros(0, bool)).ece == 0


def test_the_temperature_mends_what_it_can():
    logits, labels = drawn(5, 4000, hotter=3.0)
    right = logits.argmax(axis=1) == labels
    temperature = fit_temperature(logits, labels)
    before, after = (
        reliability(CRITERIA["max_prob"](one), right) for one in (logits, logits / temperature)
    )
    assert after.ece < before.ece / 3


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 20_000), st.booleans())
def test_a_temperature_is_fitted_to_a_bounded_number_of_samples_from_end_to_end(samples, certified):
    rows = fitted_on(samples, certified=certified)
    of = parted(samples)[0] if certified else np.arange(samples)
    assert len(rows) == min(len(of), MOST_SAMPLES)
    assert (np.diff(rows) > 0).all()
    assert np.isin(rows, of).all()
    assert (rows[0], rows[-1]) == (of[0], of[-1])
