"""Widths in one set of weights: what each takes of it, and that it touches no other's."""

import copy
import re

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.bundle.ladder import read_ladder
from edgekit.ladder import LadderPlan, build_ladder
from edgekit.models.load import call_factory, user_code
from edgekit.models.slimmable import (
    SlimmableConv2d,
    SlimmableLinear,
    SwitchableBatchNorm2d,
    sandwich_step,
    set_width,
    slimmed,
    widths_of,
)
from edgekit.quiet import quiet
from edgekit.recipe import load_recipe
from edgekit.target import load_target
from tests.conftest import ROOT

WIDTHS = (0.25, 0.5, 1.0)


class Small(nn.Module):
    """Plain, depthwise and grouped convolutions, a shortcut, and two exits."""

    def __init__(self, widths=WIDTHS):
        super().__init__()
        torch.manual_seed(3)
        self.stem = SlimmableConv2d(3, 8, 3, 2, 1, bias=False, widths=widths, slim_in=False)
        self.norm = SwitchableBatchNorm2d(8, widths=widths)
        self.depthwise = SlimmableConv2d(8, 8, 3, padding=1, groups=8, widths=widths)
        self.point = SlimmableConv2d(8, 16, 1, widths=widths)
        self.norms = nn.ModuleDict({"last": SwitchableBatchNorm2d(16, widths=widths)})
        self.grouped = SlimmableConv2d(16, 8, 3, padding=1, groups=4, widths=widths)
        self.early = SlimmableLinear(8, 5, widths=widths, slim_out=False)
        self.hidden = SlimmableLinear(8 * 4, 12, widths=widths)
        self.last = SlimmableLinear(12, 5, widths=widths, slim_out=False)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        early = self.early(x.mean((2, 3)))
        x = x + self.grouped(self.norms["last"](self.point(self.depthwise(x))).relu())
        return [early, self.last(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1)).relu())]


def pictures(count=6, seed=1):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labels(count=6):
    return torch.arange(count) % 5


def seen(network=None):
    """A network every width of which has seen some pictures, in eval mode."""
    network = (network or Small()).train()
    with torch.no_grad():
        for index, width in enumerate(widths_of(network)):
            set_width(network, width)
            network(pictures(seed=index) + index)
    return network.eval()


def kept(network, width):
    """What the convolution, of whatever width, makes of one input that goes through all of it."""
    set_width(network, width)
    return [one.detach() for one in network(pictures())]


counts = st.integers(1, 4).map(lambda one: one * 8)
eighths = st.lists(st.integers(1, 7), max_size=3).map(lambda some: [*[n / 8 for n in some], 1.0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_convolution_takes_the_first_filters_and_their_first_channels(data):
    widths = data.draw(eighths)
    inputs, outputs = data.draw(counts), data.draw(counts)
    kind = data.draw(st.sampled_from(["plain", "depthwise", "grouped"]))
    groups = {"plain": 1, "depthwise": inputs, "grouped": 8}[kind]
    outputs = inputs if kind == "depthwise" else outputs
    slims = {} if groups > 1 else {"slim_in": data.draw(st.booleans()), "slim_out": data.draw(
        st.booleans())}  # fmt: skip
    layer = SlimmableConv2d(
        inputs, outputs, 3, data.draw(st.integers(1, 2)), 1, data.draw(st.integers(1, 2)), groups,
        data.draw(st.booleans()), widths=widths, **slims,
    )  # fmt: skip
    width = data.draw(st.sampled_from(layer.widths))
    layer.width_mult = width
    # Counted here by hand: the part of the weight that this width may look at.
    first_in = int(inputs * width) if slims.get("slim_in", True) else inputs
    first_out = int(outputs * width) if slims.get("slim_out", True) else outputs
    own = layer.weight[:first_out, : first_in if groups == 1 else inputs // groups]
    x = torch.randn(2, first_in, 5, 5)
    wanted = F.conv2d(
        x, own, None if layer.bias is None else layer.bias[:first_out], layer.stride, 1,
        layer.dilation, 1 if groups == 1 else int(groups * width),
    )  # fmt: skip
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-6)
    plain = layer.static()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), wanted, rtol=0, atol=1e-6)
    assert plain.weight.shape == own.shape
    # What is outside of the slice learns nothing.
    layer(x).sum().backward()
    grad = layer.weight.grad.clone()
    assert grad[: own.shape[0], : own.shape[1]].abs().sum() > 0
    grad[: own.shape[0], : own.shape[1]] = 0
    assert not grad.any()


@settings(max_examples=40, deadline=None)
@given(eighths, counts, counts, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_a_linear_layer_takes_the_first_outputs_of_the_first_inputs(
    widths, inputs, outputs, bias, slim_in, slim_out, data
):
    layer = SlimmableLinear(
        inputs, outputs, bias, widths=widths, slim_in=slim_in, slim_out=slim_out
    )
    width = layer.width_mult = data.draw(st.sampled_from(layer.widths))
    first_in = int(inputs * width) if slim_in else inputs
    first_out = int(outputs * width) if slim_out else outputs
    x = torch.randn(2, 3, first_in)
    wanted = x @ layer.weight[:first_out, :first_in].mT
    if bias:
        wanted = wanted + layer.bias[:first_out]
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.static()(x), wanted, rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()
    outside = torch.ones_like(layer.weight, dtype=torch.bool)
    outside[:first_out, :first_in] = False
    assert not layer.weight.grad[outside].any()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_network_of_plain_layers_answers_as_the_width_does_and_holds_no_more(width):
    network = seen()
    before = copy.deepcopy(network.state_dict())
    set_width(network, 1.0)
    plain = slimmed(network, width)
    for ours, theirs in zip(kept(network, width), plain(pictures()), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    kinds = {type(one).__module__ for one in plain.modules() if not list(one.children())}
    assert kinds <= {nn.Conv2d.__module__, nn.Linear.__module__, nn.BatchNorm2d.__module__}
    first = int(8 * width)
    assert plain.stem.weight.shape == (first, 3, 3, 3)
    assert plain.grouped.weight.shape == (first, 4, 3, 3)
    assert plain.norms["last"].num_features == 2 * first
    assert plain.last.weight.shape == (5, int(12 * width))
    assert not any(one.training for one in plain.modules())
    # Of its own: who trains on changes nothing in the network.
    with torch.no_grad():
        for one in plain.state_dict().values():
            one.fill_(7)
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())


def test_a_plain_network_draws_no_random_numbers_and_leaves_the_width_as_it_was():
    network = seen()
    set_width(network, 0.5)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    slimmed(network, 0.25)
    assert torch.equal(torch.get_rng_state(), before)
    assert {one.width_mult for one in network.modules() if hasattr(one, "width_mult")} == {0.5}


def test_a_layer_that_two_places_share_stays_one_layer():
    shared = SlimmableLinear(8, 8, widths=WIDTHS)
    plain = slimmed(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)), 0.5)
    assert plain[0] is plain[2][0]
    assert isinstance(slimmed(shared, 0.5), nn.Linear)


def test_one_widths_statistics_are_not_touched_by_anothers_training():
    network = Small().train()
    set_width(network, 0.5)
    network(pictures())
    norm = network.norm
    assert [int(one.num_batches_tracked) for one in norm.norms] == [0, 1, 0]
    assert [one.num_features for one in norm.norms] == [2, 4, 8]
    assert norm.norms[1].running_mean.any()
    for other in (norm.norms[0], norm.norms[2]):
        assert not other.running_mean.any()
        assert (other.running_var == 1).all()
    # And they are what is used: of shared ones the widths would differ by less than rounding.
    norm.norms[1].running_mean += 5
    wide = kept(network.eval(), 1.0)
    norm.norms[1].running_mean -= 5
    assert all(torch.equal(*two) for two in zip(wide, kept(network, 1.0), strict=True))


def test_a_width_of_its_own_for_each_stage_meets_the_one_before():
    stages = nn.Sequential(
        SlimmableConv2d(3, 8, 3, widths=WIDTHS, slim_in=False),
        SlimmableConv2d(8, 8, 3, widths=WIDTHS),
    )
    stages[0].width_mult = 0.25
    stages[1].width_mult = 0.5
    x = pictures()
    inner = F.conv2d(x, stages[0].weight[:2], stages[0].bias[:2])
    wanted = F.conv2d(inner, stages[1].weight[:4, :2], stages[1].bias[:4])
    torch.testing.assert_close(stages(x), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        SlimmableConv2d(4, 8, 1, widths=WIDTHS),
        SlimmableLinear(4, 8, widths=WIDTHS),
        SwitchableBatchNorm2d(4, widths=WIDTHS),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_width_that_a_layer_does_not_hold_is_refused_and_changes_nothing(layer):
    layer.width_mult = 0.5
    with pytest.raises(ValueError, match=r"width_mult is 0\.3, and \w+ holds 0\.25, 0\.5, 1\.0"):
        layer.width_mult = 0.3
    # Near is not there: a recipe's value is the model's own.
    with pytest.raises(ValueError, match="holds"):
        layer.width_mult = 0.5000001
    assert layer.width_mult == 0.5


def test_a_width_that_one_layer_lacks_is_set_on_none():
    network = Small()
    with pytest.raises(ValueError, match=r"width is 0\.75, and Small holds 0\.25, 0\.5, 1\.0"):
        set_width(network, 0.75)
    network.last = SlimmableLinear(12, 5, widths=(0.75, 1.0), slim_out=False)
    with pytest.raises(
        ValueError, match=r"hidden .* \[0\.25, 0\.5, 1\.0\].*last .*\[0\.75, 1\.0\]"
    ):
        set_width(network, 1.0)
    with pytest.raises(ValueError, match="Conv2d has no slimmable layer"):
        slimmed(nn.Conv2d(3, 3, 1), 1.0)


@pytest.mark.parametrize("widths", [[], [0.5], [0, 1.0], [-0.5, 1.0], [0.5, 1.5], [float("nan")]])
def test_widths_that_are_no_part_of_the_whole_are_refused(widths):
    with pytest.raises(ValueError, match="above 0 and go up to"):
        SlimmableLinear(8, 8, widths=widths)


def test_parts_of_channels_are_refused_where_the_layer_is_made():
    with pytest.raises(ValueError, match=r"out_channels is 6, which is 1\.5 at width 0\.25"):
        SlimmableConv2d(8, 6, 1, widths=WIDTHS)
    with pytest.raises(ValueError, match=r"num_features is 2, which is 0\.5 at width 0\.25"):
        SwitchableBatchNorm2d(2, widths=WIDTHS)
    with pytest.raises(ValueError, match="groups is 2"):
        SlimmableConv2d(8, 8, 1, groups=2, widths=WIDTHS)
    with pytest.raises(ValueError, match="groups are dropped whole"):
        SlimmableConv2d(8, 8, 1, groups=4, widths=WIDTHS, slim_in=False)
    # In floating point 0.29 of 100 is less than 29.
    assert SlimmableLinear(100, 8, widths=(0.29, 1.0), slim_out=False).in_counts[0.29] == 29


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (SlimmableConv2d(8, 8, 1, widths=WIDTHS), torch.zeros(1, 3, 2, 2)),
        (SlimmableConv2d(8, 8, 1, groups=8, widths=WIDTHS), torch.zeros(1, 4, 2, 2)),
        (SlimmableLinear(8, 8, widths=WIDTHS), torch.zeros(1, 3)),
    ],
)
def test_a_layer_whose_width_was_forgotten_says_so(layer, x):
    with pytest.raises(ValueError, match="is width_mult set on every layer"):
        layer(x)


def test_the_sandwich_rule_runs_the_widest_the_narrowest_and_some_between():
    network = Small((0.25, 0.5, 0.75, 1.0))
    ran = []
    network.stem.register_forward_hook(lambda layer, *_: ran.append(layer.width_mult))
    sandwich_step(network, pictures(), labels(), between=0)
    assert ran == [1.0, 0.25]
    drawn = set()
    for seed in range(8):
        ran.clear()
        draw = torch.Generator().manual_seed(seed)
        sandwich_step(network, pictures(), labels(), between=1, generator=draw)
        assert ran[:2] == [1.0, 0.25]
        assert len(ran) == 3
        drawn.add(ran[2])
    assert drawn == {0.5, 0.75}
    assert network.last.width_mult == 1.0


def test_narrow_widths_learn_what_the_widest_says_and_not_the_labels():
    network = seen()
    loss = sandwich_step(network, pictures(), labels(), between=1, temperature=2.0)
    found = {name: one.grad for name, one in network.named_parameters()}

    # The same by hand, in one sum whose gradients are taken at once.
    again = seen()
    set_width(again, 1.0)
    wide = again(pictures())
    total = sum(F.cross_entropy(one, labels()) for one in wide) / 2
    target = (wide[-1].detach() / 2).softmax(1)
    for width in (0.25, 0.5):
        set_width(again, width)
        for one in again(pictures()):
            total = total - 4 * (target * (one / 2).log_softmax(1)).sum(1).mean() / 2
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    for name, one in again.named_parameters():
        torch.testing.assert_close(found[name], one.grad, rtol=1e-4, atol=1e-6)


def test_steps_bring_every_width_and_exit_to_the_labels():
    network = Small().train()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    # Red or not: two channels are enough to tell.
    y = labels(30) % 2
    x = pictures(30)
    x[:, 0] += 2 * y.view(-1, 1, 1)
    for _ in range(40):
        optimizer.zero_grad()
        sandwich_step(network, x, y)
        optimizer.step()
    network.eval()
    for width in WIDTHS:
        set_width(network, width)
        for one in network(x):
            assert (one.argmax(1) == y).float().mean() > 0.9


def test_one_exit_is_a_list_of_one():
    network = nn.Sequential(nn.Flatten(), SlimmableLinear(192, 8, widths=WIDTHS, slim_in=False),
                            SlimmableLinear(8, 5, widths=WIDTHS, slim_out=False))  # fmt: skip
    as_list = copy.deepcopy(network)
    as_list.append(Listed())
    torch.testing.assert_close(
        sandwich_step(network, pictures(), labels()), sandwich_step(as_list, pictures(), labels())
    )


class Listed(nn.Module):
    def forward(self, x):
        return [x]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("strict", [False, True])
def test_an_export_is_of_the_chosen_width(width, strict):
    network = seen()
    wanted = kept(network, width)
    program = torch.export.export(network, (pictures(),), strict=strict)
    for ours, theirs in zip(wanted, program.module()(pictures()), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    # Slices of constants are all that there is of width in it, for folding to take away.
    ran = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.slice.Tensor" in ran
    assert not {one for one in ran if "sym" in one or "cond" in one}


def test_a_resnet50_at_full_width_is_the_published_one_and_at_a_quarter_two_million_weights():
    folder = ROOT / "benchmarks/resnet50-slimmable"
    with user_code(folder):
        network = call_factory("model.py:resnet50", {}, folder).eval()
    x = torch.randn(2, 3, 64, 64)
    for width, weights in ((1.0, 25_557_032), (0.25, 1_993_976)):
        plain = slimmed(network, width)
        assert sum(one.numel() for one in plain.parameters()) == weights
        set_width(network, width)
        with torch.no_grad():
            wanted = network(x)
            torch.testing.assert_close(plain(x), wanted, rtol=1e-5, atol=1e-5)
        # Two pictures, two answers: at random weights features may well vanish on the way.
        assert (wanted[0] - wanted[1]).abs().max() > 0.1


@pytest.mark.slow
def test_a_quarter_of_a_resnet50_holds_its_own_weights_alone_and_all_of_it_is_quantized(tmp_path):
    folder = ROOT / "benchmarks/resnet50-slimmable"
    recipe = load_recipe(str(folder / "recipe.yaml"))
    with user_code(folder):
        network = call_factory("model.py:resnet50", {}, folder).eval()
    set_width(network, 0.25)
    raw = tmp_path / "raw.onnx"
    x = (torch.randn(1, 3, 224, 224),)
    with quiet("torch.onnx", "onnxscript"):
        torch.onnx.export(network, x, raw, dynamo=True, optimize=False, external_data=False)
    assert 95e6 < raw.stat().st_size < 110e6
    for precision, most in (("fp32", 9e6), ("int8", 9e6 / 2)):
        target = load_target("host", {"precision": precision})
        out = tmp_path / precision
        build_ladder(LadderPlan(recipe, target, only=("w0.25",)), out)
        (variant,) = read_ladder(out).variants
        assert variant.parameters == 1_993_976
        assert variant.size_bytes < most
        if precision == "fp32":
            assert variant.size_bytes <= 1.05 * 4 * variant.parameters
        graph = onnx.load(out / "w0.25/segments/segment-1.onnx").graph
        weights = {one.name: one for one in graph.initializer}
        makers = {one.output[0]: one for one in graph.node}
        convolutions = [one for one in graph.node if one.op_type == "Conv"]
        assert len(convolutions) == 53
        assert not any(one.op_type == "Slice" for one in graph.node)
        for one in convolutions:
            weight = one.input[1]
            if precision == "int8":
                assert makers[one.input[0]].op_type == "DequantizeLinear"
                weight = makers[weight].input[0]
                assert weights[weight].data_type == onnx.TensorProto.INT8
            assert weight in weights


def test_the_pages_examples_run():
    page = (ROOT / "docs/slimmable.md").read_text()
    names = {"batches": [(torch.randn(6, 3, 8, 8), labels())] * 2}
    for code in re.findall(r"```py\n(.*?)```", page, re.S):
        exec(compile(code, "docs/slimmable.md", "exec"), names)  # noqa: S102  (our own page)
    network = names["network"]
    assert widths_of(network) == (0.25, 0.5, 0.75, 1.0)
    assert [int(one.num_batches_tracked) for one in network[1].norms] == [2, 2, 2, 2]
