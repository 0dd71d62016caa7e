"""The certificate: its formulas in exact numbers, and its promise over a thousand draws."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import CheckError
from edgekit.tuning.certificate import certify, p_value, samples_needed
from edgekit.tuning.search import Observed, evaluate


@given(st.integers(1, 80), st.integers(0, 80), st.fractions(Fraction(1, 1000), Fraction(999, 1000)))
def test_the_p_value_is_the_binomial_tail(samples, errors, risk):
    exact = sum(
        comb(samples, k) * risk**k * (1 - risk) ** (samples - k)
        for k in range(min(errors, samples) + 1)
    )
    assert p_value(errors, samples, float(risk)) == pytest.approx(float(exact), rel=1e-9)


def test_with_no_error_230_samples_are_needed_for_one_percent_at_ninety():
    assert samples_needed(0.01, 0.9) == 230
    assert p_value(0, 230, 0.01) <= 0.1 < p_value(0, 229, 0.01)


@given(st.floats(0.001, 0.9), st.floats(0.01, 0.999))
def test_no_fewer_samples_would_do(risk, confidence):
    needed = samples_needed(risk, confidence)
    assert p_value(0, needed, risk) <= (1 - confidence) * (1 + 1e-9)
    assert needed == 1 or p_value(0, needed - 1, risk) > (1 - confidence) * (1 - 1e-9)


def population(samples: int, seed: int, exits: int = 3) -> Observed:
    """Early exits that err the more, the less sure they are; the last one never does."""
    generator = np.random.default_rng(seed)
    sure = generator.beta(4, 1, (exits - 1, samples))
    right = np.ones((exits, samples), bool)
    right[:-1] = generator.random(sure.shape) < 1 - 0.5 * (1 - sure) ** 1.5
    return Observed(sure, right, np.arange(1.0, exits + 1))


def test_a_promise_at_ninety_percent_is_broken_in_no_more_than_a_tenth_of_all_draws():
    everybody = population(20_000, seed=1, exits=2)
    # The last exit never errs: wrong are those of the early one that are as sure as its threshold.
    order = np.argsort(everybody.confidences[0])
    levels = everybody.confidences[0][order]
    wrong_from = np.append(np.cumsum(~everybody.right[0][order][::-1])[::-1], 0)

    def wrong(thresholds):
        return wrong_from[np.searchsorted(levels, thresholds[:, 0])]

    few = np.array([[0.2], [levels[777]], [0.9]])
    assert (wrong(few) == everybody.samples - evaluate(everybody, few).right).all()
    generator = np.random.default_rng(2)
    broken = 0
    for draw in range(1000):
        given = everybody.of(generator.integers(0, everybody.samples, 1000))
        certificate = certify(given, 0.05, 0.9, seed=draw)
        # The promise is of all points at once.
        broken += bool((wrong(certificate.points.thresholds) > 0.05 * everybody.samples).any())
    # Three standard deviations of a binomial at a tenth; and so weak a bound would promise nothing.
    assert 20 < broken < 1000 * 0.1 + 3 * (1000 * 0.1 * 0.9) ** 0.5


def test_the_points_promised_pass_their_tests_and_are_in_order_of_cost():
    certificate = certify(population(4000, seed=3), 0.03, 0.9)
    assert (certificate.p_values <= 0.1).all()
    assert (np.diff(certificate.points.costs) >= 0).all()
    assert certificate.errors.tolist() == (2000 - certificate.points.right).tolist()
    assert certificate.tested == 2000
    assert certificate.points.costs[0] < 3


@pytest.mark.parametrize("exits", [2, 4])
def test_as_many_samples_as_are_asked_for_are_enough_for_a_last_exit_that_never_errs(exits):
    """Thresholds without an error where they were searched may have some where they are tested."""
    for seed in range(25):
        certificate = certify(population(460, seed, exits), 0.01, 0.9, seed)
        assert certificate.errors[0] == 0
        assert certificate.points.counts[-1].tolist() == [0] * (exits - 1) + [230]


def test_too_few_samples_are_refused_with_how_many_are_needed():
    with pytest.raises(
        CheckError, match=r"needs 230 samples to test on.* found 400 in all: give 460"
    ):
        certify(population(400, seed=0), 0.01, 0.9)


def test_what_errs_even_at_its_safest_is_refused():
    given = population(1000, seed=0)
    wrong = Observed(given.confidences, np.zeros_like(given.right), given.costs)
    with pytest.raises(
        CheckError, match=r"even the safest thresholds give 500 risky answers in 500"
    ):
        certify(wrong, 0.01, 0.9)
