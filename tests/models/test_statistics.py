"""BatchNorm's statistics: whose are read, which are missing, and how they are taken anew."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekit.bundle.manifest import Input
from edgekit.data import Split
from edgekit.errors import ModelError
from edgekit.ladder import shared_statistics
from edgekit.models.exits import Exits
from edgekit.models.statistics import own_statistics, statistics_read, take_anew
from edgekit.recipe import Recalibrate
from edgekit.stages import Network

INPUTS = (Input("x", "float32", (4, 6, 6), None, None, "input"),)


class Net(nn.Module):
    """A norm at each of two widths, one that both share in part, and one written by hand."""

    def __init__(self):
        super().__init__()
        self.own = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.sliced = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.width = 0

    def forward(self, x):
        x = self.own[self.width](x)
        norm = self.sliced
        x = nn.functional.batch_norm(
            x, norm.running_mean[:4], norm.running_var[:4], norm.weight[:4], norm.bias[:4]
        )
        return [self.head(self.dropout(x).mean((2, 3)))]


def images(count: int = 64) -> torch.Tensor:
    return 3 + 2 * torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def network(model: nn.Module) -> Network:
    return Network(Exits(model, ("only",)).eval(), ("only",), images(2), setting=True)


def splits() -> dict[str, Split]:
    found = {}
    for name, rows in (("calibration", slice(0, 40)), ("tuning", slice(40, 64))):
        found[name] = Split(name, list(images().numpy()[rows]), np.arange(64)[rows] % 3)
    return found


def trained(model: nn.Module) -> nn.Module:
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.num_batches_tracked.fill_(7)
    return model


def test_the_layers_that_a_width_reads_are_found_however_they_are_written():
    model = Net().eval()
    found = statistics_read(model, lambda: model(images(4)))
    assert found.keys() == {"own.0", "sliced"}
    assert (found["own.0"]["channels"], found["own.0"]["holds"]) == (4, 4)
    assert (found["sliced"]["channels"], found["sliced"]["holds"]) == (4, 6)
    assert found["own.0"]["mean"] == pytest.approx(3, abs=0.3)


def test_a_width_that_was_never_trained_is_refused_and_both_reasons_are_given():
    with pytest.raises(
        ModelError, match=r"own\.0 \(it has tracked no batch\), sliced \(4 of its 6"
    ):
        own_statistics(None, network(Net()), splits(), INPUTS)


def test_statistics_that_are_missing_are_taken_and_others_stay():
    model = trained(Net())
    before = copy.deepcopy(model.state_dict())
    notes = own_statistics(Recalibrate(when="missing"), network(model), splits(), INPUTS)
    changed = {
        name for name, one in model.state_dict().items() if not torch.equal(one, before[name])
    }
    stats = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"sliced.{name}" for name in stats}
    assert torch.equal(model.sliced.running_mean[4:], before["sliced.running_mean"][4:])
    assert (notes["recalibrated"], notes["batches"]) == (1, 1)
    assert notes["layers"].keys() == {"model.own.0"}
    assert notes["accuracy_before"].keys() == notes["accuracy_after"].keys() == {"only"}


def test_never_takes_them_as_they_are():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    notes = own_statistics(Recalibrate(when="never"), network(model), splits(), INPUTS)
    assert notes.keys() == {"layers"}
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_always_takes_all_that_are_read_and_accuracy_may_change_with_them():
    torch.manual_seed(0)
    model = trained(Net())
    model.own[0].running_mean.fill_(1000.0)
    notes = own_statistics(Recalibrate(when="always"), network(model), splits(), INPUTS)
    assert notes["recalibrated"] == 2
    assert notes["layers"] == {}
    assert model.own[0].running_mean.mean() == pytest.approx(3, abs=0.3)
    assert int(model.own[1].num_batches_tracked) == 7


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_it_is_the_cumulative_average_of_pytorch(sizes):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    like = copy.deepcopy(model)
    for one in like:
        if isinstance(one, nn.BatchNorm2d):
            one.reset_running_stats()
            one.momentum = None
            one.train()
    batches = [images(9)[:size] for size in sizes]
    count = take_anew(model, ["0", "2"], (lambda x=x: model(x) for x in batches))
    with torch.no_grad():
        for batch in batches:
            like(batch)
    assert count == len(sizes)
    for name, value in like.state_dict().items():
        assert torch.allclose(model.state_dict()[name].float(), value.float(), atol=1e-6), name


def test_dropout_stays_off_and_nothing_is_left_in_train():
    model = Net().eval()
    seen = []
    model.dropout.register_forward_hook(lambda m, x, y: seen.append(torch.equal(x[0], y)))
    take_anew(model, ["own.0"], [lambda: model(images(4))])
    assert seen == [True]
    assert not any(one.training for one in model.modules())


def test_one_value_per_channel_has_no_variance():
    model = nn.BatchNorm2d(4).eval()
    with pytest.raises(ModelError, match=r"one value per channel.*more samples"):
        take_anew(model, [""], [lambda: model(torch.ones(1, 4, 1, 1))])


def test_features_that_are_not_finite_are_refused_before_they_are_averaged_away():
    model = nn.BatchNorm2d(4).eval()
    bad = torch.full((2, 4, 3, 3), torch.inf)
    with pytest.raises(ModelError, match="NaN or infinite"):
        take_anew(model, [""], [lambda: model(bad), lambda: model(images(2))])


def test_two_widths_that_read_one_layer_share_it_unless_their_features_are_the_same():
    model = trained(Net()).eval()
    one = statistics_read(model, lambda: model(images(4)))
    assert shared_statistics(one, one) == []
    other = statistics_read(model, lambda: model(2 * images(4)))
    assert sorted(shared_statistics(one, other)) == ["own.0", "sliced"]
    model.width = 1
    model.own[1].running_mean.fill_(2.0)
    other = statistics_read(model, lambda: model(2 * images(4)))
    assert shared_statistics(one, other) == ["sliced"]


def test_a_layer_called_twice_a_batch_takes_the_mean_over_both_as_pytorch_does():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4, momentum=None)

        def forward(self, x):
            return self.norm(x) + self.norm(3 * x + 1)

    ours, theirs = Twice().eval(), Twice().train()
    batches = images().split(16)
    with torch.no_grad():
        for batch in batches:
            theirs(batch)
    take_anew(ours, ["norm"], [lambda batch=batch: ours(batch) for batch in batches])
    for name, value in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], value, rtol=1e-5, atol=1e-5)


def test_statistics_picked_by_an_index_are_refused_for_whose_they_are_is_not_to_be_seen():
    class Picked(Net):
        def forward(self, x):
            norm, some = self.sliced, torch.tensor([5, 0, 3, 1])
            x = nn.functional.batch_norm(x, norm.running_mean[some], norm.running_var[some])
            return [self.head(x.mean((2, 3)))]

    picked = network(trained(Picked()))
    for how in (None, Recalibrate(when="missing"), Recalibrate(when="always")):
        with pytest.raises(ModelError, match="takes 4 statistics that are computed"):
            own_statistics(how, picked, splits(), INPUTS)
    assert own_statistics(Recalibrate(when="never"), picked, splits(), INPUTS) == {"layers": {}}
