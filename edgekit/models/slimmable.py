"""Layers that hold several widths in one set of weights, and how a network of them is trained.

A narrower width is the first channels of every layer (Yu et al., arXiv 1812.08928, section 3), with
BatchNorm statistics of its own. For models of one's own: edgekit builds whatever slices its
weights, these layers or others.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "SlimmableConv2d",
    "SlimmableLinear",
    "SwitchableBatchNorm2d",
    "sandwich_step",
    "set_width",
    "slimmed",
    "widths_of",
]


class _Slimmable:
    """What all layers here have: the widths that they hold, and the one that is chosen."""

    widths: tuple[float, ...]

    def _hold(self, widths: Sequence[float]) -> None:
        """Hold these, ascending, and choose the widest."""
        self.widths = tuple(sorted({float(one) for one in widths}))
        if not self.widths or self.widths[0] <= 0 or self.widths[-1] != 1:
            raise ValueError(
                f"widths are {', '.join(map(str, widths)) or 'none'}; they lie above 0 and go up "
                "to 1.0, the width of the layer's own channel counts"
            )
        self._width_mult = self.widths[-1]

    @property
    def width_mult(self) -> float:
        """The width that `forward` takes: exactly one of `widths`, else a ValueError."""
        return self._width_mult

    @width_mult.setter
    def width_mult(self, width: float) -> None:
        if width not in self.widths:
            held = ", ".join(map(str, self.widths))
            raise ValueError(f"width_mult is {width!r}, and {type(self).__name__} holds {held}")
        self._width_mult = self.widths[self.widths.index(width)]

    def _counts(self, what: str, full: int, slims: bool) -> dict[float, int]:
        """How many of `full` channels there are at each width; whole numbers, else a ValueError."""
        counts = {}
        for width in self.widths:
            wanted = full * width if slims else full
            # 0.29 of 100 is 28.999999999999996 in floating point.
            counts[width] = round(wanted)
            if counts[width] < 1 or abs(wanted - counts[width]) > 1e-6 * full:
                raise ValueError(
                    f"{what} is {full}, which is {wanted:g} at width {width}; take a count of "
                    "which every width is a whole number"
                )
        return counts

    def _demand(self, came: int, counts: dict[float, int]) -> int:
        """The inputs that came, if some width has as many."""
        if came not in counts.values():
            held = " or ".join(map(str, dict.fromkeys(counts.values())))
            raise ValueError(
                f"{type(self).__name__} takes {held} channels, and {came} came; is width_mult set "
                "on every layer?"
            )
        return came

    def static(self) -> nn.Module:
        """The plain layer of the chosen width, with weights of its own."""
        raise NotImplementedError


class SlimmableConv2d(_Slimmable, nn.Conv2d):
    """A convolution of which a narrower width is the first filters and their first channels.

    Takes `[batch, channels, height, width]` with the channels of any width held, so that the stage
    before may have another one. `slim_in=False` where the inputs are always all there (a network's
    first layer), `slim_out=False` where all outputs are wanted at every width.

    With groups, the number of groups slims and each is kept whole, which for depthwise convolutions
    is to slim the channels; inputs and outputs then slim together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        widths: Sequence[float],
        slim_in: bool = True,
        slim_out: bool = True,
    ) -> None:
        """Counts are those at width 1.0.

        Raises ValueError where a width makes no whole number of channels or groups.
        """
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self._hold(widths)
        if groups > 1 and not (slim_in and slim_out):
            raise ValueError(
                f"groups is {groups}: groups are dropped whole, so inputs and outputs slim "
                "together; leave slim_in and slim_out as they are"
            )
        # Channels are whole wherever groups are.
        self._counts("groups", groups, slims=groups > 1)
        self.in_counts = self._counts("in_channels", in_channels, slim_in)
        self.out_counts = self._counts("out_channels", out_channels, slim_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[batch, in, h, w]` to `[batch, out, ...]`, `out` being that of `width_mult`.

        Raises ValueError where no width has so many inputs.
        """
        weight, bias, groups = self._sliced(self._demand(x.shape[1], self.in_counts))
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def static(self) -> nn.Conv2d:
        """The plain convolution of the chosen width, of inputs of that width."""
        inputs = self.in_counts[self.width_mult]
        weight, bias, groups = self._sliced(inputs)
        plain = nn.utils.skip_init(
            nn.Conv2d,
            inputs,
            len(weight),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            groups,
            bias is not None,
        )
        return _with_weights(plain, weight, bias, self)

    def _sliced(self, inputs: int) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        """Weight, bias and groups of the chosen width for so many inputs."""
        outputs = self.out_counts[self.width_mult]
        bias = None if self.bias is None else self.bias[:outputs]
        if self.groups == 1:
            return self.weight[:outputs, :inputs], bias, 1
        self._demand(inputs, {self.width_mult: self.in_counts[self.width_mult]})
        return self.weight[:outputs], bias, inputs * self.groups // self.in_channels


class SlimmableLinear(_Slimmable, nn.Linear):
    """A linear layer of which a narrower width is the first outputs of the first inputs.

    Takes `[..., features]` with the features of any width held. A classifier says `slim_out=False`:
    it has all classes at every width. Maps flattened to `[batch, channels * height * width]` slim
    as their channels do.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        widths: Sequence[float],
        slim_in: bool = True,
        slim_out: bool = True,
    ) -> None:
        """Counts are those at width 1.0.

        Raises ValueError where a width makes no whole number of features.
        """
        super().__init__(in_features, out_features, bias)
        self._hold(widths)
        self.in_counts = self._counts("in_features", in_features, slim_in)
        self.out_counts = self._counts("out_features", out_features, slim_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[..., in]` to `[..., out]`, `out` being that of `width_mult`.

        Raises ValueError where no width has so many inputs.
        """
        return F.linear(x, *self._sliced(self._demand(x.shape[-1], self.in_counts)))

    def static(self) -> nn.Linear:
        """The plain layer of the chosen width, of inputs of that width."""
        inputs = self.in_counts[self.width_mult]
        weight, bias = self._sliced(inputs)
        plain = nn.utils.skip_init(nn.Linear, inputs, len(weight), bias is not None)
        return _with_weights(plain, weight, bias, self)

    def _sliced(self, inputs: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the chosen width for so many inputs."""
        outputs = self.out_counts[self.width_mult]
        bias = None if self.bias is None else self.bias[:outputs]
        return self.weight[:outputs, :inputs], bias


class SwitchableBatchNorm2d(_Slimmable, nn.Module):
    """A BatchNorm for each width: what a narrower network's features are distributed like differs.

    Statistics that are shared fit none of the widths (Yu et al., section 3), and those of all of
    them are few beside a network's weights. `slim=False` behind a layer that gives all its channels
    at every width.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        widths: Sequence[float],
        slim: bool = True,
    ) -> None:
        """`num_features` is the count at width 1.0; `eps` and `momentum` as in `nn.BatchNorm2d`.

        Raises ValueError where a width makes no whole number of features.
        """
        super().__init__()
        self._hold(widths)
        counts = self._counts("num_features", num_features, slim)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(count, eps, momentum) for count in counts.values()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize `[batch, channels, h, w]` by the statistics of `width_mult`."""
        return self.static()(x)

    def static(self) -> nn.Module:
        """The chosen width's own `nn.BatchNorm2d`."""
        return self.norms[self.widths.index(self.width_mult)]


def widths_of(network: nn.Module) -> tuple[float, ...]:
    """The widths that a network of these layers holds, narrowest first.

    Raises ValueError where it has no such layer, or where two hold different widths.
    """
    held = {
        module.widths: f"{name or 'the network'} ({type(module).__name__})"
        for name, module in network.named_modules()
        if isinstance(module, _Slimmable)
    }
    if not held:
        raise ValueError(f"{type(network).__name__} has no slimmable layer")
    if len(held) > 1:
        both = " and ".join(f"{name} {list(widths)}" for widths, name in list(held.items())[:2])
        raise ValueError(f"all layers hold the same widths, but {both}; give them one list")
    return next(iter(held))


def set_width(network: nn.Module, width: float) -> None:
    """Choose a width for all slimmable layers of a network.

    Raises ValueError where it holds no such width; all layers are then as before.
    """
    if width not in widths_of(network):
        held = ", ".join(map(str, widths_of(network)))
        raise ValueError(f"width is {width!r}, and {type(network).__name__} holds {held}")
    for module in network.modules():
        if isinstance(module, _Slimmable):
            module.width_mult = width


def slimmed(network: nn.Module, width: float) -> nn.Module:
    """A copy of the network at one width, of plain layers that have only what it needs.

    It answers as the network does at this width, which is itself left alone. Raises ValueError
    where it holds no such width.
    """
    static = copy.deepcopy(network)
    set_width(static, width)
    plain: dict[nn.Module, nn.Module] = {}
    # With duplicates: a layer that is used in two places is replaced in both, by the same one.
    for name, module in list(static.named_modules(remove_duplicate=False)):
        if isinstance(module, _Slimmable):
            made = plain.setdefault(module, module.static())
            if not name:
                return made
            static.set_submodule(name, made)
    return static


def sandwich_step(
    network: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    between: int = 2,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Add a batch's gradients at several widths to the network's, and return the summed loss.

    The sandwich rule and in-place distillation (Yu and Huang, arXiv 1903.05134): the widest width
    learns the `labels`, int64 `[batch]`; the narrowest and `between` others, drawn by `generator`,
    learn what the widest has just said, softened by `temperature`.

    The network returns logits `[batch, classes]`, or a list of them, one for each exit, of which
    the mean loss counts. Exits of narrower widths all learn from the widest's final exit: it is the
    best answer that there is, where the exit of the same depth would hand its mistakes down, and
    exits that aim at one answer disagree less when a cascade goes from one width to the next.

    The caller sets the gradients to zero before and steps the optimizer after. The network is left
    at its widest. Raises ValueError where it has no slimmable layer.
    """
    widths = widths_of(network)
    middle = widths[1:-1]
    drawn = torch.randperm(len(middle), generator=generator)[:between].tolist()
    narrower = dict.fromkeys([widths[0], *(middle[index] for index in drawn)])
    narrower.pop(widths[-1], None)

    set_width(network, widths[-1])
    logits = _exits(network(inputs))
    loss = torch.stack([F.cross_entropy(one, labels) for one in logits]).mean()
    loss.backward()
    total = loss.detach()
    # Detached: a student's mistakes are no reason for the teacher to change.
    teacher = F.softmax(logits[-1].detach() / temperature, dim=1)
    for width in narrower:
        set_width(network, width)
        students = [one / temperature for one in _exits(network(inputs))]
        loss = torch.stack([F.cross_entropy(one, teacher) for one in students]).mean()
        # Softening divides the gradients by the square (Hinton et al., arXiv 1503.02531).
        loss = loss * temperature**2
        loss.backward()
        total += loss.detach()
    set_width(network, widths[-1])
    return total


def _exits(returned: Any) -> list[torch.Tensor]:
    return [returned] if isinstance(returned, torch.Tensor) else list(returned)


def _with_weights(
    plain: Any, weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Module
) -> Any:
    """The layer with copies of these, in the mode of another."""
    plain.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return plain.train(like.training)
