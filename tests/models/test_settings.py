"""A setting reaches the network in the type that this holds, or is refused by name."""

from pathlib import Path

import pytest
from torch import nn

from edgekit.errors import ModelError, RecipeError
from edgekit.models.load import user_code
from edgekit.models.settings import applied
from edgekit.recipe import Setting


class Layer(nn.Module):
    """Holds 0.25 and 1.0, and nothing near them."""

    def __init__(self):
        super().__init__()
        self._width = 1.0

    @property
    def width_mult(self):
        return self._width

    @width_mult.setter
    def width_mult(self, width):
        if type(width) is not float or width not in (0.25, 1.0):
            raise ValueError(f"no width {width!r}")
        self._width = width


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.other = nn.Linear(2, 2)
        self.stages = (1, 2)
        self.told = None

    def tell(self, value):
        self.told = value


def setting(value, **how) -> Setting:
    return Setting(set=how, value=value)


def test_an_attribute_is_set_on_every_module_that_has_it_and_on_no_other():
    net = Net()
    assert applied(setting(0.25, attribute="width_mult"), net, Path()) is net
    assert [layer.width_mult for layer in net.layers] == [0.25] * 3
    assert not hasattr(net.other, "width_mult")
    assert not hasattr(net, "width_mult")


def test_a_whole_number_reaches_a_float_as_a_float_and_a_list_a_tuple_as_a_tuple():
    net = Net()
    applied(setting(1, attribute="width_mult"), net, Path())
    assert type(net.layers[0].width_mult) is float
    applied(setting([0.5, 1], attribute="stages"), net, Path())
    assert net.stages == (0.5, 1)


@pytest.mark.parametrize("value", [0.25, [0.25, 1.0], {"width": 0.25, "depth": [2, 2]}, "small"])
def test_a_method_gets_the_value_as_it_stands(value):
    net = Net()
    assert applied(setting(value, method="tell"), net, Path()) is net
    assert net.told == value


def test_a_function_may_change_the_network_or_return_the_static_one(tmp_path):
    (tmp_path / "slimming.py").write_text(
        "from torch import nn\n"
        "def tell(network, value): network.told = value\n"
        "def static(network, value): return nn.Linear(value, 1)\n"
    )
    net = Net()
    with user_code(tmp_path):
        assert applied(setting(3, call="slimming.py:tell"), net, tmp_path) is net
        assert net.told == 3
        static = applied(setting(3, call="slimming.py:static"), net, tmp_path)
    assert isinstance(static, nn.Linear)
    assert static.in_features == 3


def test_a_typing_error_in_the_attribute_is_found():
    with pytest.raises(RecipeError, match=r"no module .* attribute 'widthmult'"):
        applied(setting(0.25, attribute="widthmult"), Net(), Path())


def test_a_module_or_a_weight_is_no_setting():
    for name in ("other", "weight"):
        with pytest.raises(RecipeError, match=f"'{name}' of .*no setting"):
            applied(setting(0.25, attribute=name), Net(), Path())


def test_a_width_that_is_not_held_is_refused_with_its_layer():
    with pytest.raises(
        ModelError, match=r"width_mult of layers\.0 cannot be 0\.3: .*no width 0\.3"
    ):
        applied(setting(0.3, attribute="width_mult"), Net(), Path())


def test_a_method_that_is_not_there_or_fails_is_named():
    with pytest.raises(RecipeError, match=r"no method 'layers\.shrink'"):
        applied(setting(0.25, method="layers.shrink"), Net(), Path())
    with pytest.raises(ModelError, match=r"layers.append\(0.25\) failed: TypeError"):
        applied(setting(0.25, method="layers.append"), Net(), Path())
