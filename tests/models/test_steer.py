"""A `forward` that decides on data is run to its end, or refused with the line that decides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ModelError
from edgekit.stages import Network
from edgekit.stages.export import Export
from tests.models.test_exits import MODULES, Net, X, assert_logits, find


def confidence(logits):
    return logits.softmax(1).amax(1)


def returns_when_sure(m, x):
    for layer, head in zip(m.body, m.exits, strict=True):
        x = layer(x).relu()
        out = head(x)
        if confidence(out).min() > m.threshold:
            return out
    return out


def goes_on_when_unsure(m, x):
    x = m.body[0](x).relu()
    out = m.exits[0](x)
    if confidence(out).min() < m.threshold:
        x = m.body[1](x).relu()
        out = m.exits[1](x)
        if not torch.all(confidence(out) >= m.threshold):
            out = m.exits[2](m.body[2](x).relu())
    return out


def compares_an_item(m, x):
    for layer, head in zip(m.body, m.exits, strict=True):
        x = layer(x).relu()
        out = head(x)
        if m.threshold <= confidence(out).min().item() or (confidence(out) > 2).all().item():
            break
    return out


class Sure(Exception):
    pass


def raises_when_sure(m, x):
    try:
        for layer, head in zip(m.body, m.exits, strict=True):
            x = layer(x).relu()
            if confidence(head(x)).min() > m.threshold:
                raise Sure(head)
    except Sure as exit:
        return exit.args[0](x)
    return None


def again_on_double(m, x):
    out = m.exits[0](x)
    if confidence(out).min() > 2:
        return m.exits[0](2 * x)
    return m.exits[2](m.exits[1](x) @ m.exits[0].weight)


def waits_for_agreement(m, x):
    patience, before = 0, None
    for layer, head in zip(m.body, m.exits, strict=True):
        x = layer(x).relu()
        out = head(x)
        same = before is not None and torch.equal(out.argmax(1), before)
        patience = patience + 1 if same else 0
        before = out.argmax(1)
        if patience == 1:
            break
    return out


FORMS = {
    "above": lambda confidence, threshold: confidence.min() > threshold,
    "not below": lambda confidence, threshold: not confidence.min() < threshold,
    "all": lambda confidence, threshold: (confidence >= threshold).all().item(),
    "an item": lambda confidence, threshold: threshold < confidence.mean().item(),
    "two": lambda confidence, threshold: confidence[0] > threshold and confidence.max() < 2,
    "not equal": lambda confidence, threshold: not torch.equal(confidence, confidence - 1),
}
"""Ways to ask whether to leave."""

LEAVES = [
    returns_when_sure,
    goes_on_when_unsure,
    compares_an_item,
    waits_for_agreement,
]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0], ids=["at once", "some", "never"])
@pytest.mark.parametrize("forward", LEAVES, ids=lambda one: one.__name__)
def test_a_network_that_leaves_by_itself_is_run_to_its_end(forward, threshold):
    model = Net(forward)
    model.threshold = threshold
    assert_logits(find(model, MODULES), model.logits(X))


def test_an_exception_may_be_the_way_out_where_a_decision_leads_to_it():
    def forward(m, x):
        for layer, head in zip(m.body, m.exits, strict=True):
            x = layer(x).relu()
            out = head(x)
            if confidence(out).min() > m.threshold:
                raise Sure(out)
        return out

    model = Net(forward)
    model.threshold = 0
    assert_logits(find(model, MODULES), model.logits(X))


def test_an_exception_that_is_always_the_way_out_is_refused_with_its_line():
    def forward(m, x):
        raise Sure(m.exits[0](x))

    with pytest.raises(
        ModelError, match=r"fails on an input \[2, 6\]: Sure: .*test_steer.py, line"
    ):
        find(Net(forward), MODULES[:1])


def test_a_head_that_is_called_again_on_the_way_out_must_say_the_same():
    model = Net(raises_when_sure)
    assert_logits(find(model, MODULES), model.logits(X))
    model.how = again_on_double
    with pytest.raises(ModelError, match=r"line \d+, and exit 'e0' depends on the answer"):
        find(model, MODULES)


def test_a_check_of_the_input_decides_nothing():
    def forward(m, x):
        if torch.isnan(x).any():
            raise ValueError("NaN in the input")
        return m.logits(x)

    model = Net(forward)
    assert_logits(find(model, ["a", "b", "c"]), model.logits(X))


def test_a_flag_in_a_buffer_is_no_decision_on_data():
    def forward(m, x):
        if m.flag:
            x = x * 2
        return m.logits(x)

    model = Net(forward)
    model.register_buffer("flag", torch.tensor(True))
    exits = find(model, ["a", "b", "c"])
    assert torch.equal(exits(X)[2], model.logits(X * 2)[2])


@pytest.mark.parametrize("sharp", [1, 50], ids=["never left early", "left early"])
def test_what_is_returned_under_a_decision_is_refused_with_the_line(sharp):
    model = Net(returns_when_sure)
    model.threshold = 1 / sharp
    line = returns_when_sure.__code__.co_firstlineno + 4
    words = rf"test_steer.py, line {line}, and exit 'final'.*by module:"
    with pytest.raises(ModelError, match=words):
        find(model, [*MODULES[:2], "final"])


def test_a_decision_that_changes_what_a_later_exit_gives_is_refused():
    def forward(m, x):
        m.exits[0](x)
        if x.sum() > 1e9:  # No sample here shows what the other branch does.
            x = x * 2
        return m.exits[1](m.body[0](x))

    with pytest.raises(ModelError, match=r"line \d+, and exit 'e1' depends on the answer"):
        find(Net(forward), MODULES[:2])


def test_in_place_work_carries_the_data_along():
    def forward(m, x):
        kept = torch.zeros(1)
        kept[0] = x.sum()
        other = torch.zeros(1).copy_(kept)
        m.exits[0](x)
        if other > 0:
            return None
        return m.exits[1](m.body[0](x))

    model = Net(forward)
    exits = find(model, MODULES[:2], sample=X[:2].abs())
    assert len([one for one in exits.questions if one.answer is not None]) == 1
    Export()(Network(exits, exits.names, X[:2]), lambda text: None)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda out: out.max().tolist() > 0.5, r"reads numbers out of data with tolist\(\)"),
        (lambda out: float(out.max()) > 0.5, r"reads numbers out of data with float\(\)"),
        (lambda out: out.max().numpy() > 0.5, r"reads numbers out of data with numpy\(\)"),
        (lambda out: out.max().item() * 2 > 0.5, r"calculates with a number that item\(\) read"),
        (lambda out: out[confidence(out) > 0.5].shape[0] == 0, "takes samples out of the batch"),
        (lambda out: len((confidence(out) > 0.5).nonzero()) == 0, "takes samples out of the batch"),
    ],
    ids=["tolist", "float", "numpy", "item", "mask", "nonzero"],
)
def test_what_cannot_be_steered_is_refused_with_the_line_and_what_to_do(read, words):
    def forward(m, x):
        out = m.exits[0](x)
        if read(out):
            return out
        return m.exits[1](m.body[0](x))

    with pytest.raises(ModelError, match=words) as refused:
        find(Net(forward), MODULES[:2])
    assert "test_steer.py, line" in str(refused.value)
    assert "model.method" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_compaction_between_layers_is_refused_with_the_line():
    def forward(m, x):
        x = m.body[0](x)
        out = m.exits[0](x)
        sure = confidence(out) > m.threshold
        if sure.all():
            return out
        x = x[~sure]
        return m.exits[1](m.body[1](x))

    with pytest.raises(ModelError, match=r"takes samples out of the batch at test_steer.py, line"):
        find(Net(forward), MODULES[:2])


def test_a_mask_of_the_models_own_takes_out_channels_and_is_no_compaction():
    model = Net(lambda m, x: [m.shared(x), m.logits(x)[2][:, m.mask]])
    model.register_buffer("mask", torch.tensor([True, False, True, True]))
    exits = find(model, ["a", "b"])
    assert torch.equal(exits(X)[1], model.logits(X)[2][:, [0, 2, 3]])


def test_more_ways_than_can_be_tried_are_given_up_with_the_line():
    def forward(m, x):
        for _ in range(100):
            if x.sum() > 0:
                x = m.body[0](x)
        return m.exits[0](x)

    with pytest.raises(ModelError, match=r"'e1'.* never runs.*; forward decides on data \(test_st"):
        find(Net(forward), MODULES[:2])


def test_a_decision_for_every_sample_is_refused_with_the_line():
    def forward(m, x):
        late = m.exits[1](m.body[0](x))
        early = m.exits[0](x)
        return torch.stack([a if a.max() > 9 else b for a, b in zip(early, late, strict=True)])

    exits = find(Net(forward), MODULES[:2])
    with pytest.raises(ModelError, match=r"test_steer.py, line \d+, .* sample by sample"):
        exits(X)


def test_more_decisions_than_can_be_turned_round_are_refused_with_the_line():
    def forward(m, x):
        for column in x.sum(0).repeat(20):
            if column > 1e9:
                return m.exits[0](x)
        return m.exits[1](m.body[0](m.exits[0](x) @ m.shared.weight))

    with pytest.raises(ModelError, match=r"decides on data 120 times \(test_steer.py, line \d+\)"):
        find(Net(forward), MODULES[:2])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(FORMS)), st.floats(-0.1, 1.1)), min_size=2, max_size=3
    )
)
def test_however_a_forward_decides_to_leave_every_exit_says_the_same(ways):
    def forward(m, x):
        for (form, threshold), layer, head in zip(ways, m.body, m.exits, strict=False):
            x = layer(x).relu()
            out = head(x)
            if FORMS[form](confidence(out), threshold):
                return out
        return out

    model = Net(forward)
    with torch.no_grad():
        ours = find(model, MODULES[: len(ways)])(X)
    for one, theirs in zip(ours, model.logits(X), strict=False):
        assert torch.equal(one, theirs)


def test_a_forward_that_asks_otherwise_the_next_time_is_refused():
    def forward(m, x):
        m.exits[0](x)
        if (x.sum() if m.first else x.amax()) > 1e9:
            return None
        out = m.exits[1](m.body[0](x))
        if not m.first and out.sum() > 1e9:
            return None
        return out

    model = Net(forward)
    model.first = True
    exits = find(model, MODULES[:2])
    model.first = False
    with pytest.raises(ModelError, match=r"decides at test_steer.py, line \d+, and did not when"):
        exits(X)


def test_data_is_followed_through_a_function_of_the_users_own():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

    def forward(m, x):
        m.exits[0](x)
        if Rounded.apply(x).sum() > 0:
            return None
        return m.exits[1](m.body[0](x))

    exits = find(Net(forward), MODULES[:2], sample=X[:2].abs() + 1)
    assert [one.answer for one in exits.questions] == [False]


def test_a_decision_on_either_of_two_inputs_is_steered():
    def forward(m, x, shift):
        """`shift` decides first, and then what `x` comes to."""
        x = m.body[0](x).relu()
        out = m.exits[0](x)
        if shift.sum() > 0:
            x = m.body[1](x + shift).relu()
            out = m.exits[1](x)
            if confidence(out).min() < m.threshold:
                out = m.exits[2](m.body[2](x).relu())
        return out

    torch.manual_seed(1)
    model = Net(forward).eval()
    batch = {"shift": -torch.rand(4, 6), "x": X[:4]}
    inputs = {"x": {"shape": [6]}, "shift": {"shape": [6]}}
    exits = find(model, MODULES, batch, input=None, inputs=inputs)
    assert len([one for one in exits.questions if one.answer is not None]) == 2
    with torch.no_grad():
        first = model.body[0](batch["x"]).relu()
        second = model.body[1](first + batch["shift"]).relu()
        features = (first, second, model.body[2](second).relu())
        expected = [head(one) for head, one in zip(model.exits, features, strict=True)]
        for ours, theirs in zip(exits(batch), expected, strict=True):
            assert torch.equal(ours, theirs)
    graph = Export()(Network(exits, exits.names, batch), lambda text: None).artifact.graph
    for ours, theirs in zip(graph(batch), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
