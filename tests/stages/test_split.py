"""The split: the same numbers as the whole, each operation once, and clear refusals."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from edgekit.errors import ModelError
from edgekit.models.exits import Exits
from edgekit.stages import Network, Segments
from edgekit.stages.export import Export
from edgekit.stages.split import Split


def split(
    model: nn.Module, exits: int, sample: torch.Tensor, *, channels_last: bool = False
) -> Segments[fx.GraphModule]:
    names = tuple(f"exit{index + 1}" for index in range(exits))
    network = Network(Exits(model.eval(), names).eval(), names, sample)
    exported = Export()(network, lambda text: None).artifact
    segments = Split(channels_last=channels_last)(exported, lambda text: None).artifact
    assert segments.problems() == []
    return segments


def run(segments: Segments[fx.GraphModule], name: str, x: torch.Tensor) -> list[torch.Tensor]:
    values = {segments.inputs["input"]: x}
    exits = []
    with torch.no_grad():
        for part in segments.chains()[name]:
            given = part.program(*(values[one] for one in part.inputs))
            values.update(zip(part.outputs, given, strict=True))
            exits += [values[tensor] for tensor in part.logits.values()]
    return exits


def operations(part) -> list[str]:
    """What a part computes: no views, which any part may make anew, and no sizes."""
    calls = [node for node in part.program.graph.nodes if node.op == "call_function"]
    tensors = [node for node in calls if not isinstance(node.meta.get("val"), torch.SymInt | int)]
    return [node.name for node in tensors if not is_view(node)]


def assert_same_as_whole(
    model: nn.Module, exits: int, sample: torch.Tensor, *, channels_last: bool = False
) -> Segments:
    segments = split(model, exits, sample, channels_last=channels_last)
    x = torch.randn(5, *sample.shape[1:])
    with torch.no_grad():
        outputs = model(x)
    expected = list(outputs)
    for name, wanted in (("chain", expected), ("whole", expected), ("plain", expected[-1:])):
        for ours, theirs in zip(run(segments, name, x), wanted, strict=True):
            assert torch.equal(ours, theirs), name
    return segments


class TapsBeforeActivation(nn.Module):
    """The exit reads what the backbone then changes in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.early, self.last = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x):
        x = self.conv(x)
        early = self.early(x.view(x.size(0), -1))
        x = self.relu(x)
        return early, self.last(x.view(x.size(0), -1))


class SkipsASegment(nn.Module):
    """The first segment's features are read by the third, and not by the second."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4))
        self.heads = nn.ModuleList(nn.Linear(64, 3) for _ in range(3))

    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(a).relu()
        c = self.c(b).relu() + a
        return [head(y.flatten(1)) for head, y in zip(self.heads, (a, b, c), strict=True)]


class ExitsFeedLaterExits(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 8)
        self.first, self.last = nn.Linear(8, 3), nn.Linear(8 + 3, 3)

    def forward(self, x):
        a = self.a(x.flatten(1)).relu()
        first = self.first(a)
        return first, self.last(torch.cat([self.b(a).relu(), first], dim=1))


class SharedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        a = self.a(x.flatten(1)).relu()
        return self.head(a), self.head(self.b(a).relu())


class HalvesAcrossTheCut(nn.Module):
    """One half of a `chunk` is the exit's, the other half the backbone's."""

    def __init__(self):
        super().__init__()
        self.a, self.early, self.last = nn.Linear(16, 8), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        left, right = self.a(x.flatten(1)).chunk(2, dim=1)
        return self.early(left), self.last(right.relu())


class StepsThroughTime(nn.Module):
    """A GRU layer before each exit; its output tuple never crosses a cut as a tuple."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.GRU(n, 6, batch_first=True) for n in (4, 6))
        self.early, self.last = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x, _ = self.a(x[:, 0])
        early = self.early(x[:, -1])
        x, _ = self.b(x)
        return early, self.last(x[:, -1])


IMAGES = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("model", "exits"),
    [
        (TapsBeforeActivation, 2),
        (SkipsASegment, 3),
        (ExitsFeedLaterExits, 2),
        (SharedHead, 2),
        (HalvesAcrossTheCut, 2),
        (StepsThroughTime, 2),
    ],
)
def test_chain_equals_the_whole(model, exits):
    assert_same_as_whole(model(), exits, IMAGES)


def test_a_boundary_may_skip_a_segment():
    segments = split(SkipsASegment(), 3, IMAGES)
    first, second, third = segments.chain
    assert len(third.inputs) == 2
    assert set(third.inputs) - set(second.outputs) <= set(first.outputs)


def test_an_exit_that_feeds_a_later_one_is_not_computed_again():
    first, last = split(ExitsFeedLaterExits(), 2, IMAGES).chain
    assert first.logits["exit1"] in last.inputs


def test_shared_weights_go_to_every_segment_that_reads_them():
    first, last = split(SharedHead(), 2, IMAGES).chain
    assert first.parameters == 16 * 8 + 8 + 8 * 3 + 3
    assert last.parameters == 8 * 8 + 8 + 8 * 3 + 3


def test_macs_are_of_one_sample_and_add_up_to_the_whole():
    segments = split(SharedHead(), 2, IMAGES)
    assert [part.macs for part in segments.chain] == [16 * 8 + 8 * 3, 8 * 8 + 8 * 3]
    assert segments.whole.macs == sum(part.macs for part in segments.chain)


def test_plain_leaves_out_the_early_heads():
    segments = split(SharedHead(), 2, IMAGES)
    assert segments.plain.macs == 16 * 8 + 8 * 8 + 8 * 3
    assert segments.plain.logits.keys() == {"exit2"}


class RandomNet(nn.Module):
    """Layers that read any earlier tensors, and exits anywhere: what the split must survive.

    `homes` says for each layer where it keeps its result's batch, features being [batch, 4, 6].
    """

    def __init__(self, reads: list[tuple[int, int]], homes: list[str], taps: list[int]):
        super().__init__()
        self.reads, self.homes, self.taps = reads, homes, taps
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in reads)
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in taps)

    def forward(self, x):
        values = [("in front", x)]

        def read(place):
            home, value = values[place % len(values)]
            return BACK[home](value)

        for layer, (left, right), home in zip(self.layers, self.reads, self.homes, strict=True):
            # Computed where it is kept, so that what crosses is no view but an operator's result.
            there = THERE[home](layer(read(left))) + THERE[home](read(right))
            values.append((home, there.relu() + there))
        return [head(read(tap).mean(1)) for head, tap in zip(self.heads, self.taps, strict=True)]


THERE = {
    "in front": lambda x: x,
    "behind": lambda x: x.permute(1, 0, 2),
    "last": lambda x: x.permute(1, 2, 0),
    "folded": lambda x: x.flatten(0, 1),
    "folded behind": lambda x: x.transpose(0, 1).flatten(0, 1),
}
BACK = {
    "in front": lambda x: x,
    "behind": lambda x: x.permute(1, 0, 2),
    "last": lambda x: x.permute(2, 0, 1),
    "folded": lambda x: x.unflatten(0, (-1, 4)),
    "folded behind": lambda x: x.unflatten(0, (4, -1)).transpose(0, 1),
}


@st.composite
def random_nets(draw) -> RandomNet:
    depth = draw(st.integers(1, 6))
    places = st.integers(0, 20)
    reads = draw(st.lists(st.tuples(places, places), min_size=depth, max_size=depth))
    homes = draw(st.lists(st.sampled_from(sorted(THERE)), min_size=depth, max_size=depth))
    taps = sorted(draw(st.sets(st.integers(1, depth), min_size=1)))
    torch.manual_seed(draw(st.integers(0, 100)))
    return RandomNet(reads, homes, taps)


def is_view(node: fx.Node) -> bool:
    """Whether nothing is computed: views, and what lays their memory out anew."""
    copies = (torch.ops.aten.clone.default, torch.ops.aten._unsafe_view.default)
    return node.target in copies or getattr(node.target, "is_view", False)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_nets())
def test_any_net_is_split_into_disjoint_segments_that_compute_the_same(net):
    sample = torch.randn(2, 4, 6)
    segments = assert_same_as_whole(net, len(net.taps), sample)
    owned = [name for part in segments.chain for name in operations(part)]
    assert len(owned) == len(set(owned)), "an operation is computed twice"
    assert set(owned) == set(operations(segments.whole))
    for index, part in enumerate(segments.chain):
        later = {name for after in segments.chain[index + 1 :] for name in after.inputs}
        assert set(part.outputs) <= later | set(part.logits.values()), (
            "something crosses for nothing"
        )
        for name in part.outputs:
            assert segments.tensors[name].shape[0] is None, "a sample is no row of it"


class Maps(nn.Module):
    """Layers that read any earlier feature maps, and exits anywhere."""

    def __init__(self, reads: list[tuple[int, int]], taps: list[int]):
        super().__init__()
        self.reads, self.taps = reads, taps
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in reads)
        self.heads = nn.ModuleList(nn.Linear(3 * 4 * 5, 3) for _ in taps)

    def forward(self, x):
        values = [x]
        for layer, (left, right) in zip(self.layers, self.reads, strict=True):
            first, second = values[left % len(values)], values[right % len(values)]
            values.append((layer(first) + second).relu())
        # Flat, as a convolution's output is read by a linear layer: in its own order.
        pairs = zip(self.heads, self.taps, strict=True)
        return [head(values[tap].flatten(1)) for head, tap in pairs]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_nets())
def test_feature_maps_cross_with_their_channels_last_and_nothing_else_changes(net):
    maps = Maps(net.reads, net.taps)
    sample = torch.randn(2, 3, 4, 5)
    segments = assert_same_as_whole(maps, len(net.taps), sample, channels_last=True)
    for part in segments.chain:
        for name in set(part.outputs) - set(part.logits.values()):
            assert segments.tensors[name].shape in {(None, 4, 5, 3), (None, 60)}
            assert segments.greatest[name] in {(4, 5, 3), (60,)}


class SharedViews(nn.Module):
    """Views of one feature map that its own exit reads, and later ones read the very same."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.heads = nn.ModuleList(nn.Linear(size, 3) for size in (4, 4, 4 + 4 * 30))

    def forward(self, x):
        x = self.a(x)
        rows = x.permute(0, 2, 3, 1)
        columns, flat = rows.transpose(1, 2), x.flatten(1)
        early = self.heads[0](rows.amax((1, 2)) + columns.mean((1, 2))) + flat[:, :3]
        middle = self.heads[1](columns.relu().mean((1, 2)))
        late = torch.cat([self.b(x).mean((2, 3)) + rows.sigmoid().mean((1, 2)), flat], 1)
        return [early, middle, self.heads[2](late)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_map_crosses_once_whatever_views_of_it_both_sides_read(channels_last):
    sample = torch.randn(2, 3, 5, 6)
    segments = assert_same_as_whole(SharedViews(), 3, sample, channels_last=channels_last)
    crossing = {name for part in segments.chain[1:] for name in part.inputs}
    assert [segments.tensors[name].shape for name in crossing] == [
        (None, 5, 6, 4) if channels_last else (None, 4, 5, 6)
    ]


class StepsFirst(nn.Module):
    """Features with the batch second, and a view of them that both exits read."""

    def __init__(self):
        super().__init__()
        self.steps = nn.LSTM(4, 8)
        self.early, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        features, _ = self.steps(x.transpose(0, 1))
        features = features.reshape(6, -1, 2, 4)
        return [self.early(features.mean((0, 2))), self.last(features.relu().amax((0, 2)))]


def test_what_is_turned_may_be_a_view_that_an_earlier_exit_reads():
    segments = assert_same_as_whole(StepsFirst(), 2, torch.randn(2, 6, 4))
    (name,) = segments.chain[1].inputs
    assert segments.tensors[name].shape == (None, 6, 8)


class Returns(nn.Module):
    """A net whose outputs a test chooses."""

    def __init__(self, choose):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.choose = choose

    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(a).relu()
        return self.choose(self, x, a, b)


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda m, x, a, b: (m.head(a),) * 2, "exit2.*needs nothing"),
        (lambda m, x, a, b: (m.head.weight[:2, :3] + 0.0, m.head(b)), "exit1.*depend on the input"),
        (
            lambda m, x, a, b: (m.head(a.flatten(0).view(-1, 2)[:, :1].expand(-1, 6)), m.head(b)),
            r"exit|logits the batch comes first",
        ),
    ],
    ids=["twice the same", "constant", "batch folded"],
)
def test_exits_that_cannot_stand_there_are_refused(choose, words):
    with pytest.raises(ModelError, match=words):
        split(Returns(choose), 2, torch.randn(2, 6))


def test_exits_in_the_wrong_order_are_still_computed_right():
    deep_first = Returns(lambda m, x, a, b: (m.head(b), m.head(a)))
    first, second = assert_same_as_whole(deep_first, 2, torch.randn(2, 6)).chain
    assert second.macs < first.macs  # which `edgekit inspect` shows


def test_exits_in_the_wrong_order_raise_a_doubt():
    names = ("deep", "shallow")
    net = Exits(Returns(lambda m, x, a, b: (m.head(b), m.head(a))), names).eval()
    network = Network(net, names, torch.randn(2, 6))
    exported = Export()(network, lambda text: None).artifact
    warning = Split()(exported, lambda text: None).notes["warning"]
    assert "'shallow' needs 54 MACs, and 'deep' before it 90" in warning


class MasksInForward(nn.Module):
    """A mask that depends on nothing, and a normalised weight: both segments make their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        mask = torch.triu(torch.full((6, 6), 0.5, device=x.device))
        weight = nn.functional.normalize(self.head.weight)
        a = (self.a(x) @ mask).relu()
        b = (self.b(a) @ mask).relu()
        return a @ weight.t() + torch.ones(x.shape[0], 3), b @ weight.t()


def test_what_depends_on_no_input_never_crosses_a_cut():
    first, last = assert_same_as_whole(MasksInForward(), 2, torch.randn(2, 6)).chain
    assert len(last.inputs) == 1
    assert len(first.outputs) == 2


class Sends(nn.Module):
    """A net that makes what a test chooses of its features, once for the exit and the rest."""

    def __init__(self, make, back):
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.make, self.back = make, back

    def forward(self, x):
        sent = self.make(self.a(x[:, 0]).relu())
        return self.head(self.back(sent).mean(1)), self.head(self.back(sent * 2).mean(1))


def test_a_refused_boundary_names_the_users_line():
    one_more = Sends(lambda x: torch.cat([x, x[:1]]), lambda x: x[:-1])
    with pytest.raises(
        ModelError, match=r"\(test_split\.py, line \d+\) is float32 \[batch \+ 1, 4, 4\]"
    ):
        split(one_more, 2, IMAGES)


def test_how_a_batch_is_folded_is_not_guessed_where_all_rows_are_the_same():
    def folded(x):
        return x.mean((1, 2), keepdim=True).expand(-1, 4, 4).flatten(0, 1) + 1

    net = Sends(folded, lambda x: x.unflatten(0, (-1, 4)))
    assert_same_as_whole(net, 2, IMAGES)
    with pytest.raises(ModelError, match="two samples differ in it"):
        split(net, 2, IMAGES[:1].repeat(2, 1, 1, 1))


def test_dimensions_that_are_both_the_batch_are_refused():
    def each_with_each(x):
        return x.flatten(1) @ x.flatten(1).t()

    net = Sends(each_with_each, lambda x: x.sum(1)[:, None, None].expand(-1, 1, 4))
    with pytest.raises(ModelError, match=r"float32 \[batch, batch\]"):
        split(net, 2, IMAGES)


class TwoViews(nn.Module):
    """The exit and the rest each read two views of the same features."""

    def __init__(self, left, right):
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.left, self.right = left, right

    def forward(self, x):
        x = self.a(x[:, 0]).relu()
        left, right = self.left(x), self.right(x)
        early = self.head(left.mean(1)) + self.head(right.mean(1))
        return early, self.head(left.sin().mean(1)) + self.head(right.cos().mean(1))


@pytest.mark.parametrize(
    ("left", "right", "bytes_sent"),
    [
        (lambda x: x.flatten(1).unflatten(1, (4, 4)), lambda x: x.transpose(1, 2), [64]),
        (lambda x: x[:, :3], lambda x: x[:, 1:], [64]),
        (lambda x: x[:, :1], lambda x: x[:, 1:2], [16, 16]),
        (lambda x: x[:, :1].expand(-1, 9, -1), lambda x: x[:, 1:2], [16, 16]),
    ],
    ids=["two forms of all", "slices that overlap", "slices that do not", "a slice repeated"],
)
def test_of_views_the_fewest_bytes_cross(left, right, bytes_sent):
    segments = assert_same_as_whole(TwoViews(left, right), 2, IMAGES)
    sent = segments.chain[1].inputs
    assert sorted(segments.tensors[name].bytes_per_sample for name in sent) == bytes_sent


def test_a_view_of_the_networks_input_is_made_of_the_input():
    def heads(m, x, a, b):
        turned = x.view(-1, 2, 3).mT.flatten(1)
        return m.head(turned), m.head(m.a(turned))

    net = Returns(heads)
    segments = assert_same_as_whole(net, 2, torch.randn(2, 6))
    assert segments.chain[1].inputs == (segments.inputs["input"],)


class SequenceFirst(nn.Module):
    """Features are [time, batch, width], and the first segment's are read by both others."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        a = self.a(x[:, 0].permute(1, 0, 2)).relu()
        b = self.a(a).relu() + a
        c = self.a(b).relu() + a
        return [self.head(one.mean(0)) for one in (a, b, c)]


def test_what_is_turned_to_cross_is_turned_back_in_every_segment_that_reads_it():
    segments = assert_same_as_whole(SequenceFirst(), 3, IMAGES)
    first, second, third = segments.chain
    assert first.outputs[0] in second.inputs
    assert first.outputs[0] in third.inputs
    assert segments.tensors[first.outputs[0]].shape == (None, 4, 4)


def test_a_batch_that_is_not_in_front_is_found_where_two_inputs_are_given_by_name():
    class JoinsSequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, vector, image):
            a = self.a(image[:, 0].permute(1, 0, 2)).relu()
            b = (a + self.b(vector)).relu()
            return self.head(a.mean(0)), self.head(b.mean(0))

    model = JoinsSequenceFirst().eval()
    sample = {"image": torch.randn(2, 1, 4, 4), "vector": torch.randn(2, 5)}
    segments = split(model, 2, sample)
    assert set(segments.inputs) == {"image", "vector"}
    first, second = segments.chain
    assert segments.inputs["vector"] not in first.inputs
    assert set(second.inputs) == {segments.inputs["vector"], first.outputs[0]}
    assert segments.tensors[first.outputs[0]].shape == (None, 4, 4)
    x = {"image": torch.randn(5, 1, 4, 4), "vector": torch.randn(5, 5)}
    values = {segments.inputs[name]: one for name, one in x.items()}
    with torch.no_grad():
        expected = model(**x)
        for part, theirs in zip(segments.chain, expected, strict=True):
            given = part.program(*(values[one] for one in part.inputs))
            values.update(zip(part.outputs, given, strict=True))
            (logits,) = part.logits.values()
            assert torch.equal(values[logits], theirs)
