import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgekit.runtime.criteria import CRITERIA, decide

Array = npt.NDArray[Any]

# Everything that a float32 logit can be but NaN and +inf: ties and subnormals, too.
LOGITS = (
    st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.floats(-20, 20, width=32)
    | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1e-45, 3e38, -3e38, -np.inf])
)


def batches(least_classes: int = 2) -> st.SearchStrategy[Array]:
    shapes = st.tuples(st.integers(1, 5), st.integers(least_classes, 40))
    return arrays(np.float32, shapes, elements=LOGITS)


def confidence(criterion: str, logits: Array) -> Array:
    with np.errstate(all="ignore"):
        return CRITERIA[criterion](logits)


def reference(criterion: str, logits: Array) -> Array:
    """The criteria's definitions, word for word, in PyTorch's float64."""
    probabilities = torch.from_numpy(logits.astype(np.float64)).softmax(-1)
    if criterion == "max_prob":
        return probabilities.amax(-1).numpy()
    if criterion == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return (first - second).numpy()
    entropy = torch.special.entr(probabilities).sum(-1)
    return (1 - entropy / math.log(logits.shape[-1])).numpy()


def test_the_criteria_are_those_that_a_recipe_may_name() -> None:
    assert set(CRITERIA) == {"max_prob", "margin", "entropy"}


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(logits=batches())
def test_a_criterion_is_its_definition(criterion: str, logits: Array) -> None:
    np.testing.assert_allclose(
        confidence(criterion, logits), reference(criterion, logits), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_type_is_computed_in_float64(criterion: str, dtype: type) -> None:
    logits = np.array([[1.5, -0.25, 0.5], [4, 4, 4]], dtype)
    found = confidence(criterion, logits)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, confidence(criterion, logits.astype(np.float64)))


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(logits=batches(least_classes=1))
def test_a_confidence_lies_in_its_range(criterion: str, logits: Array) -> None:
    finite = np.isfinite(logits).any(axis=1)
    found = confidence(criterion, logits)[finite]
    least = 1 / logits.shape[1] if criterion == "max_prob" else 0
    assert (found >= least - 1e-12).all()
    assert (found <= 1 + 1e-12).all()


@pytest.mark.parametrize(
    ("criterion", "sure", "unsure"),
    [("max_prob", 1.0, 0.25), ("margin", 1.0, 0.0), ("entropy", 1.0, 0.0)],
)
@pytest.mark.parametrize("far", [1000.0, np.inf])
def test_the_ends_of_the_range_are_met(
    criterion: str, sure: float, unsure: float, far: float
) -> None:
    assert confidence(criterion, np.array([-far, 5, -far, -far])) == sure
    for all_alike in (0.0, 1e30, -1e30, 5e-324):
        assert confidence(criterion, np.full(4, all_alike)) == pytest.approx(unsure, abs=1e-15)


@pytest.mark.parametrize("criterion", ["max_prob", "margin"])
def test_two_classes_by_hand(criterion: str) -> None:
    first = 1 / (1 + math.exp(-1.5))
    expected = first if criterion == "max_prob" else 2 * first - 1
    assert confidence(criterion, np.array([2.0, 0.5])) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [np.inf, np.inf], [np.nan, np.inf, -np.inf]])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_nan_and_plus_infinity_are_never_sure(
    criterion: str, bad: list[float], data: st.DataObject
) -> None:
    logits = data.draw(arrays(np.float32, st.integers(len(bad), 20), elements=LOGITS))
    for place, value in enumerate(bad):
        logits[place] = value
    logits = data.draw(st.permutations(logits.tolist()).map(np.array))
    for threshold in (-np.inf, 0.0, 0.5, 1.0):
        assert not confidence(criterion, logits) >= threshold


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_row_of_nothing_but_minus_infinity_is_never_sure(criterion: str) -> None:
    assert not confidence(criterion, np.full(4, -np.inf)) >= -np.inf


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_row_leaves_the_others_alone(criterion: str, bad: float) -> None:
    logits = np.array([[1.0, 2.0, 3.0], [bad, bad, bad], [3.0, 2.0, 0.0]])
    found = confidence(criterion, logits)
    assert np.isnan(found[1])
    for row in (0, 2):
        assert found[row] == confidence(criterion, logits[row])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_class_is_certain(criterion: str) -> None:
    np.testing.assert_array_equal(confidence(criterion, np.array([[3.0], [-1e38], [0.0]])), 1.0)
    assert not confidence(criterion, np.array([np.nan])) >= -np.inf


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(logits=batches(least_classes=1))
def test_a_row_alone_is_the_same_to_the_last_bit_as_in_a_batch(
    criterion: str, logits: Array
) -> None:
    together = confidence(criterion, logits)
    alone = np.array([confidence(criterion, row) for row in logits])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None, max_examples=25)
@given(shape=array_shapes(min_dims=1, max_dims=4, max_side=4))
def test_the_last_axis_is_that_of_the_classes(criterion: str, shape: tuple[int, ...]) -> None:
    assert np.shape(confidence(criterion, np.zeros(shape))) == shape[:-1]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_logits_are_left_as_they_were(criterion: str, dtype: type) -> None:
    logits = np.array([[1.0, 2.0], [4.0, -3.0]], dtype)
    before = logits.copy()
    confidence(criterion, logits)
    np.testing.assert_array_equal(logits, before)


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Array], tuple[float, ...]]:
    """All exits' logits for some samples, NaN among them, and thresholds."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 4)))
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, np.nan, -np.inf, np.inf])
    exits = draw(st.integers(1, 4))
    logits = [draw(arrays(np.float32, shape, elements=values)) for _ in range(exits)]
    threshold = st.floats(0, 1) | st.sampled_from([np.inf, -np.inf])
    return logits, tuple(draw(threshold) for _ in range(exits - 1))


@pytest.mark.parametrize("criterion", CRITERIA)
@settings(deadline=None)
@given(network=networks())
def test_decide_is_a_plain_loop_over_samples_and_exits(
    criterion: str, network: tuple[list[Array], tuple[float, ...]]
) -> None:
    logits, thresholds = network
    exits, classes, confidences = decide(logits, CRITERIA[criterion], thresholds)
    for sample in range(len(logits[0])):
        for exit, of_exit in enumerate(logits):
            expected = confidence(criterion, of_exit[sample])
            if exit == len(thresholds) or expected >= thresholds[exit]:
                break
        assert exits[sample] == exit
        assert classes[sample] == np.argmax(of_exit[sample])
        np.testing.assert_equal(confidences[sample], expected)


def test_a_confidence_on_its_threshold_leaves() -> None:
    logits = [np.zeros((1, 4)), np.ones((1, 4))]
    exits, _, confidences = decide(logits, CRITERIA["max_prob"], (0.25,))
    assert (exits.tolist(), confidences.tolist()) == ([0], [0.25])
