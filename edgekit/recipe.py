"""The recipe: what the user wants built, as data. `docs/recipe.md` lists every key."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from edgekit.bundle import manifest
from edgekit.bundle.ladder import Cascade, parse_ladder_policy
from edgekit.bundle.manifest import GIVEN, MANIFEST_NAME
from edgekit.config import Strict, apply_overrides, parse, read_yaml
from edgekit.errors import BundleError, RecipeError
from edgekit.shipped import shipped

__all__ = [
    "CALIBRATED",
    "Apply",
    "Check",
    "Confidence",
    "ExitPlace",
    "Goal",
    "Head",
    "Quantize",
    "Recalibrate",
    "Recipe",
    "Setting",
    "Source",
    "Tolerance",
    "Variants",
    "cascade_problem",
    "check_files",
    "check_precision",
    "check_sizes",
    "load_recipe",
]

_NAME_CHARS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


CALIBRATED = frozenset({"int8", "int16x8"})
"""The precisions whose activations have ranges that are read from samples when they are built."""

Size = Annotated[int, Field(gt=0)]


def _axis(value: Any) -> Any:
    """One refusal of what is no axis, where a union would give one for each of its kinds."""
    numbers = value if isinstance(value, list | tuple) and len(value) in {2, 3} else [value]
    if not all(type(one) is int and one > 0 for one in numbers):
        raise ValueError(
            f"{value!r:.60} is no size: a whole number above 0, or [least, most], or "
            "[least, most, step]"
        )
    return value


Axis = Annotated[int | tuple[int, int] | tuple[int, int, int], BeforeValidator(_axis)]
"""A size, or the least and the greatest and, where not every one between will do, a step."""


class Apply(Strict):
    """How a setting reaches the network: one of three."""

    attribute: str | None = None
    """Set on every module that has it."""
    method: str | None = None
    """A method of the network, called with the value."""
    call: str | None = None
    """`file.py:function`, called with the network and the value."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Apply":
        if sum(one is not None for one in (self.attribute, self.method, self.call)) != 1:
            raise ValueError("name exactly one of attribute, method and call")
        return self


class Recalibrate(Strict):
    """Whether the statistics of BatchNorm are taken anew from the calibration split.

    Where a recipe says nothing of it, a network of a setting must have statistics of its own.
    """

    when: Literal["missing", "always", "never"] = "missing"
    """For layers without statistics of this setting's own, for all layers, or for none."""
    batches: int = Field(default=16, ge=1)
    """At most so many, of 32 samples each, in a random order from a fixed seed."""


class Setting(Strict):
    """One setting of a network that holds several: a width, or widths per stage, a depth."""

    set: Apply | None = None
    """None: the setting is read at import (`setup`), or the network is taken as it comes."""
    value: JsonValue = None
    """Handed on as it stands here."""
    setup: str | None = None
    """`file.py:function`, called with the value before anything else of the user's is imported."""
    recalibrate: Recalibrate | None = None

    @model_validator(mode="after")
    def _a_value_for_something(self) -> "Setting":
        if self.set is None and self.setup is None and self.value is not None:
            raise ValueError("has a value, and neither set nor setup says where it goes")
        return self


class Model(Strict):
    """Where the network comes from."""

    factory: str
    """`file.py:function` beside the recipe, or `package.module:function`; returns an nn.Module."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    setup: str | None = None
    """`file.py:function`, called before anything else of the user's is imported."""
    checkpoint: str | None = None
    """Safetensors, or a PyTorch file with a state dict. Left out: the factory's own weights."""
    prefix: str = ""
    """What the names of the model's weights begin with in the checkpoint."""
    method: str = "forward"
    """The method that is called with the input."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further keyword arguments of that call."""
    setting: Setting | None = None
    """Of a network that holds several: the one that is built. See `Variants` for many."""


class Head(Strict):
    """A classifier attached to a layer of a model that has none there."""

    at: str
    """The layer's qualified name; the head takes what the layer gives."""
    kind: Literal["pool_linear", "conv_pool_mlp"] | None = None
    factory: str | None = None
    """The user's own instead: `file.py:Class`, or a function that returns an nn.Module."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: str | None = None
    prefix: str = ""
    """What the names of the head's weights begin with in the checkpoint."""
    untrained: bool = False
    """Build it with random weights, from a fixed seed."""

    @model_validator(mode="after")
    def _one_head_with_weights(self) -> "Head":
        if (self.kind is None) == (self.factory is None):
            raise ValueError("name exactly one of kind and factory")
        if self.kind is not None and (self.checkpoint is None) != self.untrained:
            raise ValueError(
                "a head of a kind needs its checkpoint; or untrained: true, for random weights"
            )
        _demand_one_source(self)
        return self


class Confidence(Strict):
    """Where an exit's own confidence comes from: a module of the user's, or the model itself."""

    factory: str | None = None
    """`file.py:Class`, or a function that returns an nn.Module: it takes what the exit gives."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: str | None = None
    prefix: str = ""
    """What the names of the module's weights begin with in the checkpoint."""
    untrained: bool = False
    """Build it with random weights, from a fixed seed."""
    output: str | None = None
    """A path into what the model returns, or into what `module` returns."""
    module: str | None = None
    """The qualified name of the module inside the model that returns it."""
    call: int | None = Field(default=None, ge=0)
    """Which call of the module, from 0, where it has several in one inference."""

    @model_validator(mode="after")
    def _made_or_found(self) -> "Confidence":
        inside = self.output is not None or self.module is not None
        if (self.factory is not None) == inside:
            raise ValueError("name a factory, or where the model gives it: output, module or both")
        if inside and (self.args or self.checkpoint or self.prefix or self.untrained):
            raise ValueError("args, checkpoint, prefix and untrained belong to a factory")
        if self.call is not None and self.module is None:
            raise ValueError("call belongs to a module")
        _demand_one_source(self)
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        return {key: value for key, value in handler(self).items() if value is not None}


class ExitPlace(Strict):
    """An exit's name, and where its logits are.

    With a name alone, they are the output of the model that has this name, or the next in order.
    """

    name: str
    output: str | None = None
    """A path into what the model returns, or into what `module` or the head's layer returns."""
    module: str | None = None
    """The qualified name of the module that returns them."""
    head: Head | None = None
    call: int | None = Field(default=None, ge=0)
    """Which call of the module or layer, from 0, where it has several in one inference."""
    confidence: Confidence | None = None
    """The exit's own confidence, for the criterion `given`; None: as `policy.confidence` says."""

    @property
    def hooked(self) -> str | None:
        """The module inside the model that is watched while it runs, if one is."""
        return self.head.at if self.head else self.module

    @model_validator(mode="before")
    @classmethod
    def _a_name_will_do(cls, value: Any) -> Any:
        # A number is a name too, as elsewhere.
        return {"name": value} if isinstance(value, str | int | float) else value

    @model_validator(mode="after")
    def _one_place(self) -> "ExitPlace":
        if self.module is not None and self.head is not None:
            raise ValueError("has module and head; the logits are of one of them")
        if self.call is not None and self.hooked is None:
            raise ValueError("call belongs to a module or a head")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        written = {key: value for key, value in handler(self).items() if value is not None}
        return self.name if written.keys() == {"name"} else written


class Image(Strict):
    """How a picture becomes the input tensor; see `edgekit.bundle.manifest.Image`."""

    mode: Literal["L", "RGB"] = "RGB"
    resize: Size | tuple[Size, Size] | None = None
    crop: tuple[Size, Size] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


class Input(Strict):
    """What the network takes: a tensor, a batch in front of `shape`."""

    shape: tuple[Axis, ...] = Field(min_length=1, max_length=7)
    """Sizes, and ranges where they vary: the least and the greatest, and a step if there is one."""
    dtype: Literal["float32", "int32", "int64"] = "float32"
    range: tuple[int, int] | None = None
    """The least and the greatest whole number that the network takes; for integers alone."""
    image: Image | None = None
    """Left out: samples are tensors already."""

    @property
    def axes(self) -> tuple[manifest.Axis, ...]:
        """The shape as the manifest states it."""
        return tuple(axis if isinstance(axis, int) else (*axis, 1)[:3] for axis in self.shape)

    @field_validator("shape")
    @classmethod
    def _ranges_have_ends(cls, shape: tuple[Axis, ...]) -> tuple[Axis, ...]:
        for place, axis in enumerate(shape):
            if isinstance(axis, int):
                continue
            least, most, step = (*axis, 1)[:3]
            if least >= most:
                raise ValueError(
                    f"axis {place} runs from {least} to {most}; give the least and the greatest "
                    "size, or one number for a fixed size"
                )
            if least % step or most % step:
                low, high = -(-least // step) * step, most // step * step
                near = f"; nearest is {[low, high, step]}" if low < high else ""
                raise ValueError(
                    f"axis {place} goes by {step}, and {least} or {most} is no multiple of that"
                    + near
                )
        return shape

    @model_validator(mode="after")
    def _integers_have_a_range(self) -> "Input":
        if self.dtype == "float32":
            if self.range is not None:
                raise ValueError("range belongs to a dtype of int32 or int64")
            return self
        if self.image is not None:
            raise ValueError(f"an image becomes float32, and dtype is {self.dtype}")
        if self.range is None:
            raise ValueError(
                f"dtype {self.dtype} needs range: [least, most], the whole numbers that the "
                "network takes; for the tokens of an embedding [0, its rows less 1]"
            )
        (least, most), bits = self.range, int(self.dtype.removeprefix("int"))
        if not -(2 ** (bits - 1)) <= least <= most < 2 ** (bits - 1):
            raise ValueError(f"range: {least} to {most} is no range of {self.dtype}")
        return self

    @model_validator(mode="after")
    def _image_fits(self) -> "Input":
        if self.image is None:
            return self
        channels = {"L": 1, "RGB": 3}[self.image.mode]
        if len(self.shape) != 3 or self.shape[0] != channels:
            raise ValueError(f"an image of mode {self.image.mode} needs shape [{channels}, h, w]")
        if not len(self.image.mean) == len(self.image.std) == channels:
            raise ValueError(f"image.mean and image.std need {channels} numbers each")
        if 0 in self.image.std:
            raise ValueError("image.std holds a zero")
        for step, sizes in (("resize", self.image.resize), ("crop", self.image.crop)):
            if isinstance(sizes, tuple) and not all(isinstance(axis, int) for axis in self.shape):
                raise ValueError(
                    f"image.{step} gives every picture one size, {list(sizes)}, and shape has a "
                    "range: leave one of them out"
                )
        return self


class Certified(Strict):
    """A bound on a risk, and how sure it is to hold: see `edgekit.tuning.certificate`."""

    risk: float = Field(gt=0, lt=1)
    """As a share of all samples like those of the tuning split, seen or not."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    of: Literal["disagreement", "accuracy_loss"] = "disagreement"
    """An answer that is not the final exit's; or that is wrong where the final exit's is right."""


class Latency(Strict):
    """How long a sample may take on the device; a number alone is the mean."""

    mean: float | None = Field(default=None, gt=0)
    p95: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_mean(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"mean": value} if number else value

    @model_validator(mode="after")
    def _one_at_least(self) -> "Latency":
        if self.mean is None and self.p95 is None:
            raise ValueError("needs mean, p95 or both, in ms")
        return self


class Weights(Strict):
    """What is to be least: `error` times the share of wrong answers, and `cost` times the cost.

    The cost is a share too: the mean of a sample's over that of one that runs to the end.
    """

    error: float = Field(default=1.0, gt=0)
    cost: float = Field(gt=0)


class Goal(Strict):
    """What the thresholds are fitted to, on the tuning split."""

    search: Literal["shared", "per_exit"] | None = None
    """One threshold for all early exits, or one for each; None: as the goal has it, shared."""
    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    """As a share of the samples; counted from the final exit of the model in PyTorch."""
    min_class_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Of every class: an average hides one that died."""
    min_exit_rate: float | None = Field(default=None, gt=0, le=1)
    """The share of the samples that leave before the final exit."""
    max_latency_ms: Latency | None = None
    """On the device, by its own times: for `edgekit tune` alone, since a build measures none."""
    weigh: Weights | None = None
    """Cost-optimal: what an error weighs against time, energy or operations."""
    energy_mj: dict[str, Annotated[float, Field(gt=0)]] | Literal["measured"] | None = None
    """What a sample that leaves there costs in mJ, by the name of every exit, or as a device has
    measured it, for `edgekit tune` alone; then energy is what is saved. Left out: time where it was
    measured, else multiply-accumulate operations."""
    exit_rates: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    """The share of all samples that is to leave at each early exit, by its name; needs no labels.
    """
    mean_plus_std: float | None = None
    """So many standard deviations above the mean of each exit's confidences; needs no labels."""
    certificate: Certified | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether anything asked for is counted by labels."""
        certified = self.certificate is not None and self.certificate.of == "accuracy_loss"
        counted = (self.max_accuracy_drop, self.min_class_accuracy)
        return certified or any(one is not None for one in counted)

    @property
    def blind(self) -> bool:
        """Whether it is met by confidences alone, whatever is right."""
        return self.exit_rates is not None or self.mean_plus_std is not None

    @model_validator(mode="after")
    def _something_to_reach(self) -> "Goal":
        goals = {
            "max_accuracy_drop": self.max_accuracy_drop,
            "min_exit_rate": self.min_exit_rate,
            "max_latency_ms": self.max_latency_ms,
            "weigh": self.weigh,
            "certificate": self.certificate,
        }
        placed = {"exit_rates": self.exit_rates, "mean_plus_std": self.mean_plus_std}
        if all(one is None for one in (goals | placed).values()):
            raise ValueError(f"needs one of {', '.join(goals | placed)}")
        if self.certificate is not None and self.search is not None:
            raise ValueError("search and certificate: a certificate has a search of its own")
        others = (*goals.values(), self.search, self.min_class_accuracy)
        for name in [name for name, one in placed.items() if one is not None]:
            if any(one is not None for one in others) or None not in placed.values():
                raise ValueError(
                    f"{name} says where every sample leaves: no other goal fits in; leave one out "
                    f"(--set policy.tune.{name}=null)"
                )
        if sum((self.exit_rates or {}).values()) > 1 + 1e-9:
            raise ValueError(
                f"exit_rates come to {sum((self.exit_rates or {}).values()):g}; they are shares of "
                "all samples, 1 together at most"
            )
        return self


class Drift(Strict):
    """When a device's samples count as others than those of the tuning split."""

    window: int = Field(default=1000, ge=1)
    """So many samples are compared with the tuning split at once."""
    p_value: float = Field(default=0.001, gt=0, lt=1)
    """How improbable a window may be before it counts; so often a sound one counts as well."""
    safe: bool = False
    """Let nobody leave early then, until somebody says otherwise."""


class Policy(Strict):
    """When a sample may leave: at thresholds that are given, or that are tuned."""

    criterion: Literal["max_prob", "margin", "entropy", "patience", "given"] = "max_prob"
    confidence: Confidence | None = None
    """For `given`: whose module makes the confidence of every exit that names none of its own."""
    thresholds: float | dict[str, float] | None = None
    """One number for all early exits, or one by each exit's name."""
    combine: Literal["last", "sum", "geometric"] = "last"
    """What an exit is joined with: see `edgekit.runtime.criteria.COMBINATIONS`."""
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """One by each exit's name, the final one included, for sum and geometric; left out, alike."""
    otherwise: Literal["last", "max_confidence"] = "last"
    """Who answers where no early exit is sure."""
    temperature: bool = False
    """Divide each exit's logits by a temperature fitted to the labels of the tuning split."""
    tune: Goal | None = None
    drift: Drift = Drift()

    @model_validator(mode="after")
    def _given_or_tuned(self) -> "Policy":
        if self.thresholds is not None and self.tune is not None:
            raise ValueError(
                "has thresholds and tune; leave one of them out (--set policy.thresholds=null)"
            )
        return self

    @model_validator(mode="after")
    def _patience_is_counted(self) -> "Policy":
        if self.criterion != "patience":
            return self
        if self.tune is not None:
            raise ValueError(
                "patience counts exits and has no confidence to tune; give policy.thresholds, how "
                "many exits in a row must agree with the one before, such as 1 or 2"
            )
        given = self.thresholds
        for one in given.values() if isinstance(given, dict) else [given]:
            if one is not None and (one < 1 or one != int(one)):
                raise ValueError(f"patience is a whole number of exits, 1 or more; found {one:g}")
        return self

    @model_validator(mode="after")
    def _given_alone(self) -> "Policy":
        if self.criterion != GIVEN:
            if self.confidence is not None:
                raise ValueError(
                    f"confidence belongs to criterion: {GIVEN}; found {self.criterion}"
                )
            return self
        if self.combine != "last":
            raise ValueError(
                f"a given confidence is of its exit alone, and combine is {self.combine}; leave it "
                "out"
            )
        if self.confidence is not None and self.confidence.factory is None:
            raise ValueError(
                "policy.confidence is for every exit, so it is a factory; what the model gives for "
                "one exit stands in exits.confidence"
            )
        return self

    @model_validator(mode="after")
    def _temperatures_scale_something(self) -> "Policy":
        if self.temperature and self.criterion in {"patience", GIVEN}:
            why = "is no probability" if self.criterion == GIVEN else "counts classes"
            raise ValueError(
                f"temperature makes probabilities what they are worth, and {self.criterion} {why}; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _weights_weigh_something(self) -> "Policy":
        if self.weights is not None and self.combine == "last":
            raise ValueError("weights need combine: sum or geometric; found last")
        return self


class Quantize(Strict):
    """How a target of lower precision is come to."""

    samples: int = Field(default=256, ge=1)
    """At most so many of the calibration split, evenly spaced."""
    method: Literal["minmax", "percentile", "entropy"] = "minmax"
    """How the range of a tensor is read from what the samples put into it."""
    features: Literal["all", "reached"] = "all"
    """Calibrate a segment with what every sample puts into it, or only those that reach it."""
    min_integer_share: float = Field(default=0.9, ge=0, le=1)
    """Least share of the MACs outside the heads that the engine does in integers."""


class Source(Strict):
    """Where a split's samples come from: one of three."""

    factory: str | None = None
    """A function that returns (samples, labels), or samples alone."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    npz: str | None = None
    """An .npz file with an array `inputs`, and `labels` if there are any."""
    folder: str | None = None
    """A folder of images: `folder/<label>/*.png`, each label as in `labels`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Source":
        if sum(one is not None for one in (self.factory, self.npz, self.folder)) != 1:
            raise ValueError("name exactly one of factory, npz and folder")
        if self.args and self.factory is None:
            raise ValueError("args belong to a factory")
        return self


class Data(Strict):
    """The splits; they must have no sample in common."""

    calibration: Source | None = None
    tuning: Source | None = None
    test: Source | None = None


class Tolerance(Strict):
    """How far a chain may be from the model in PyTorch."""

    max_relative_error: float = Field(gt=0)
    """Greatest difference of an exit's logits, over the largest magnitude among them."""
    min_top1_agreement: float = Field(ge=0, le=1)
    min_exit_agreement: float = Field(ge=0, le=1)
    """Share of samples that leave at the same exit with the same class."""


class QuantizedTolerance(Tolerance):
    """What a chain of lower precision is held to: its numbers are not quite the model's."""

    max_relative_error: float = Field(default=0.25, gt=0)
    min_top1_agreement: float = Field(default=0.95, ge=0, le=1)
    min_exit_agreement: float = Field(default=0.9, ge=0, le=1)


class Check(Tolerance):
    """What the chain is held to after every stage, against the model in PyTorch."""

    samples: int = Field(default=256, ge=1)
    """At most so many of the tuning split after each stage; the whole test split at the end."""
    max_relative_error: float = Field(default=1e-3, gt=0)
    min_top1_agreement: float = Field(default=0.99, ge=0, le=1)
    min_exit_agreement: float = Field(default=0.99, ge=0, le=1)
    quantized: QuantizedTolerance = QuantizedTolerance()
    """From quantize on, where the target's precision is not fp32."""


def cascade_problem(goal: Goal) -> str | None:
    """Words about what of a goal is for the exits of a chain alone; None where nothing is."""
    if goal.certificate is not None:
        # What the exits' own thresholds were fitted to cannot be tested on.
        return "a certificate is for the exits of a chain: policy.tune"
    for key in ("max_latency_ms", "energy_mj"):
        if getattr(goal, key) is not None:
            return (
                f"{key} is for the exits of a chain; the policies latency_budget and load keep a "
                "ladder within a time"
            )
    return None


class Variants(Strict):
    """The settings of one network that are each built, and how the device chooses among them."""

    set: Apply | None = None
    each: dict[str, JsonValue] = Field(min_length=1)
    """The settings' values, by the variants' names."""
    setup: str | None = None
    recalibrate: Recalibrate | None = None
    overrides: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Other values of the recipe, by variant and dotted key, as `--set` takes them."""
    policy: dict[str, JsonValue] | None = None
    """Which of them answers, as a ladder states it; None: the widest, always."""
    tune: Goal | None = None
    """What the thresholds of a cascade are fitted to, on the tuning split: with variants in the
    place of exits, and the widest in that of the final one."""

    @model_validator(mode="after")
    def _names_that_are_folders(self) -> "Variants":
        for name in self.each:
            if not _NAME.fullmatch(name):
                raise ValueError(f"each: {name!r} is no name: letters, digits, '_', '.', '-'")
        if len({name.lower() for name in self.each}) != len(self.each):
            raise ValueError("each: two names differ in case alone, and are folders")
        for name in self.overrides:
            if name not in self.each:
                known = ", ".join(self.each)
                raise ValueError(f"overrides: {name!r} is no variant; they are {known}")
        return self

    @model_validator(mode="after")
    def _a_policy_of_theirs(self) -> "Variants":
        if self.policy is None:
            return self
        try:
            policy = parse_ladder_policy(self.policy, list(self.each))
        except BundleError as error:
            raise ValueError(str(error)) from None
        if policy == Cascade() and self.tune is None:
            raise ValueError("policy: a cascade needs thresholds, agree: true, or variants.tune")
        return self

    @model_validator(mode="after")
    def _a_goal_for_a_cascade(self) -> "Variants":
        if self.tune is None:
            return self
        if words := cascade_problem(self.tune):
            raise ValueError(f"tune: {words}")
        return self


class Recipe(Strict):
    """A whole recipe."""

    name: str
    model: Model
    input: Input | None = None
    """The network's only input, given to `forward` in the first place."""
    inputs: dict[str, Input] | None = None
    """Two or more inputs, given to `forward` by name."""
    labels: tuple[str, ...] | None = None
    """The classes' names, in order; their numbers if left out. None at all: exits tell no classes.
    """
    places: tuple[ExitPlace, ...] = Field(alias="exits", min_length=1)
    """Where each exit's logits are, in order of depth; the last is the final exit."""
    policy: Policy = Policy()
    quantize: Quantize = Quantize()
    data: Data = Data()
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 8), min_length=1, max_length=8
    )
    """The batches that engines are built for, where they are built for some, ascending."""
    golden_samples: int = Field(default=8, ge=1, le=256)
    """Samples that travel with the bundle for `edgekit verify`."""
    test_samples: int = Field(default=1000, ge=0)
    """At most so many of the test split travel with it for `edgekit bench`, evenly spaced."""
    check: Check = Check()
    variants: Variants | None = None
    """Left out: the network has one setting, and the recipe makes a bundle and no ladder."""

    _folder: Path = PrivateAttr(default=Path())

    @field_validator("batch_sizes")
    @classmethod
    def _batches_rise(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted({*sizes}):
            raise ValueError(f"batch sizes rise, each once; found {list(sizes)}")
        return sizes

    @property
    def folder(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return self._folder

    def variant(self, name: str) -> "Recipe":
        """The recipe of one variant, as if it were the only setting: it makes a bundle.

        Raises RecipeError, with the variant's name, where its overrides make no recipe.
        """
        assert self.variants is not None  # noqa: S101  (whoever names one has them)
        variants = self.variants
        values = {**self.model_dump(mode="json"), "name": f"{self.name}-{name}", "variants": None}
        overrides = variants.overrides.get(name, {})
        where = f"variants.overrides.{name}"
        whole = ("name", "variants", "model.setting")
        if stray := [
            key for key in overrides if f"{key}.".startswith(tuple(f"{x}." for x in whole))
        ]:
            raise RecipeError(f"{where}: {stray[0]} is of the whole ladder; leave it out")
        values = apply_overrides(values, overrides)
        values["model"]["setting"] = {
            "set": variants.set and variants.set.model_dump(),
            "value": variants.each[name],
            "setup": variants.setup,
            "recalibrate": variants.recalibrate and variants.recalibrate.model_dump(),
        }
        recipe = parse(Recipe, values, where)
        recipe._folder = self.folder
        return recipe

    @property
    def exits(self) -> tuple[str, ...]:
        """The exits' names, in order of depth."""
        return tuple(place.name for place in self.places)

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Every file of weights, by the key that names it."""
        named = {"model.checkpoint": self.model.checkpoint}
        for index, place in enumerate(self.places):
            if place.head is not None:
                named[f"exits.{index}.head.checkpoint"] = place.head.checkpoint
            if place.confidence is not None:
                named[f"exits.{index}.confidence.checkpoint"] = place.confidence.checkpoint
        if self.policy.confidence is not None:
            named["policy.confidence.checkpoint"] = self.policy.confidence.checkpoint
        return {key: self.folder / path for key, path in named.items() if path is not None}

    @property
    def confidences(self) -> tuple[Confidence | None, ...]:
        """Where each exit's own confidence comes from; None where it has none."""
        return tuple(place.confidence or self.policy.confidence for place in self.places)

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """One threshold per early exit, in order; None where they are to be tuned."""
        early, given = self.exits[:-1], self.policy.thresholds
        if isinstance(given, dict):
            return tuple(given[name] for name in early)
        return None if given is None and early else tuple(given or 0.0 for _ in early)

    @property
    def exit_rates(self) -> tuple[float, ...] | None:
        """The share of samples that is to leave at each early exit, in order; None if not asked."""
        rates = None if self.policy.tune is None else self.policy.tune.exit_rates
        return None if rates is None else tuple(rates[name] for name in self.exits[:-1])

    @property
    def certified(self) -> bool:
        """Whether a certificate is asked for."""
        return self.policy.tune is not None and self.policy.tune.certificate is not None

    def manifest_policy(self, thresholds: tuple[float, ...]) -> manifest.Policy:
        """The policy as the manifest states it, with these thresholds."""
        policy = self.policy
        weights = policy.weights and tuple(policy.weights[name] for name in self.exits)
        return manifest.Policy(
            policy.criterion, thresholds, policy.combine, weights or None, policy.otherwise
        )

    def manifest_inputs(self, tensors: Mapping[str, str]) -> tuple[manifest.Input, ...]:
        """The inputs as the manifest states them; `tensors` has their names in the graph, if any.

        By the inputs' names, of which a single one is called `input`.
        """
        only = {manifest.ONLY_INPUT: self.input} if self.input else {}
        found = []
        for name, one in (self.inputs or only).items():
            image = manifest.Image(**one.image.model_dump()) if one.image else None
            found.append(
                manifest.Input(tensors.get(name, ""), one.dtype, one.axes, image, one.range, name)
            )
        return tuple(found)

    @model_validator(mode="after")
    def _one_input_or_several(self) -> "Recipe":
        if (self.input is None) == (self.inputs is None):
            raise ValueError("give input for a network of one input, or inputs for several")
        if self.inputs is None:
            return self
        if len(self.inputs) < 2:
            raise ValueError("inputs has fewer than two; one alone is `input`")
        for name in self.inputs:
            if not name.isidentifier() or len(name) > _NAME_CHARS:
                raise ValueError(f"inputs: {name!r} is no name of an argument of forward")
            if name == "labels":
                raise ValueError("inputs: 'labels' is what an .npz file calls the labels")
            if name in self.model.arguments:
                raise ValueError(f"inputs: {name!r} is given in model.arguments already")
        for split in ("calibration", "tuning", "test"):
            if (source := getattr(self.data, split)) and source.folder is not None:
                raise ValueError(f"data.{split}: a folder of images has one input, not several")
        return self

    @model_validator(mode="after")
    def _settings_that_make_networks(self) -> "Recipe":
        variants, setting = self.variants, self.model.setting
        if variants is not None:
            if setting is not None:
                raise ValueError("has variants and model.setting, one of them; leave one out")
            plain = [name for name in variants.each if not variants.overrides.get(name)]
            if variants.set is None and variants.setup is None and plain:
                raise ValueError(
                    f"variants: nothing makes {plain[0]} another network; say set, setup or "
                    "overrides"
                )
            for name in variants.each:
                if not _NAME.fullmatch(f"{self.name}-{name}"):
                    raise ValueError(
                        f"variants: {self.name}-{name} is longer than {_NAME_CHARS} characters, "
                        "and names a bundle; take a shorter name"
                    )
        one = variants or setting
        recalibrate = one and one.recalibrate
        if recalibrate and recalibrate.when != "never" and self.data.calibration is None:
            raise ValueError(
                "recalibrate: there is no data.calibration to take statistics from; name that "
                "split, or say when: never"
            )
        return self

    @field_validator("places")
    @classmethod
    def _exit_names(cls, places: tuple[ExitPlace, ...]) -> tuple[ExitPlace, ...]:
        for place in places:
            if not _NAME.fullmatch(place.name):
                raise ValueError(f"{place.name!r} is no name: letters, digits, '_', '.', '-'")
        if len({place.name for place in places}) != len(places):
            raise ValueError("two exits have the same name")
        return places

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name: letters, digits, '_', '.', '-'")
        return name

    @model_validator(mode="after")
    def _tuned_to_data(self) -> "Recipe":
        if self.policy.tune and self.exits[1:] and self.data.tuning is None:
            raise ValueError(
                "policy.tune: there is no data.tuning to fit thresholds to; name that split, or "
                "give policy.thresholds"
            )
        return self

    @model_validator(mode="after")
    def _tempered_by_data(self) -> "Recipe":
        if self.policy.temperature and self.data.tuning is None:
            raise ValueError(
                "policy.temperature: there is no data.tuning to fit temperatures to; name that "
                "split, with labels, or leave temperature out"
            )
        return self

    @model_validator(mode="after")
    def _a_confidence_per_early_exit(self) -> "Recipe":
        found = dict(zip(self.exits, self.confidences, strict=True))
        if self.policy.criterion != GIVEN:
            for name, one in found.items():
                if one is not None:
                    raise ValueError(
                        f"exit {name!r} names its confidence, and policy.criterion is "
                        f"{self.policy.criterion}, which does not look at it; say {GIVEN}"
                    )
            if self.labels == ():
                raise ValueError(
                    "labels: none at all say that exits give no class scores; policy.criterion "
                    f"{self.policy.criterion} needs them: say {GIVEN}"
                )
            return self
        # The final exit takes what is left, and may do without.
        final = self.policy.otherwise == "max_confidence"
        asked = self.exits if final else self.exits[:-1]
        if silent := [name for name in asked if found[name] is None]:
            raise ValueError(
                f"policy.criterion {GIVEN} needs the confidence of {', '.join(silent)}; give it as "
                "exits.confidence, or as policy.confidence for all exits"
            )
        return self

    @model_validator(mode="after")
    def _a_threshold_per_early_exit(self) -> "Recipe":
        early, given = self.exits[:-1], self.policy.thresholds
        if early and given is None and self.policy.tune is None:
            raise ValueError(
                f"policy: no thresholds for {', '.join(early)}; give them as policy.thresholds, or "
                "have them tuned with policy.tune: {max_accuracy_drop: 0.01}"
            )
        if isinstance(given, dict):
            _demand_one_each("policy.thresholds", given, early, "early exit")
        if self.policy.tune is not None and self.policy.tune.exit_rates is not None:
            rates = self.policy.tune.exit_rates
            _demand_one_each("policy.tune.exit_rates", rates, early, "early exit")
        if self.policy.tune is not None and isinstance(self.policy.tune.energy_mj, dict):
            energy_mj = self.policy.tune.energy_mj
            _demand_one_each("policy.tune.energy_mj", energy_mj, self.exits, "exit")
        if self.policy.weights is not None:
            _demand_one_each("policy.weights", self.policy.weights, self.exits, "exit")
        return self


def load_recipe(path: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe in the YAML file `path`, or the shipped one of that path or name.

    `overrides` replaces values by dotted key. Raises RecipeError that names the file and the key.
    """
    found = _find(path)
    values = apply_overrides({"name": found.parent.name, **read_yaml(found)}, overrides or {})
    recipe = parse(Recipe, values, path)
    recipe._folder = found.parent
    return recipe


def check_files(recipe: Recipe) -> None:
    """Raises RecipeError where a file or folder that the recipe names is not there."""
    named: dict[str, str | Path | None] = dict(recipe.checkpoints)
    factories = {"model.factory": recipe.model.factory, "model.setup": recipe.model.setup or ""}
    for key, one in (("variants", recipe.variants), ("model.setting", recipe.model.setting)):
        if one is not None:
            factories[f"{key}.setup"] = one.setup or ""
            factories[f"{key}.set.call"] = (one.set and one.set.call) or ""
    for index, place in enumerate(recipe.places):
        if place.head is not None:
            factories[f"exits.{index}.head.factory"] = place.head.factory or ""
        if place.confidence is not None:
            factories[f"exits.{index}.confidence.factory"] = place.confidence.factory or ""
    if recipe.policy.confidence is not None:
        factories["policy.confidence.factory"] = recipe.policy.confidence.factory or ""
    for split in ("calibration", "tuning", "test"):
        if source := getattr(recipe.data, split):
            named |= {f"data.{split}.npz": source.npz, f"data.{split}.folder": source.folder}
            factories[f"data.{split}.factory"] = source.factory or ""
    for key, factory in factories.items():
        file, _, _ = factory.rpartition(":")
        named[key] = file if file.endswith(".py") else None
    for key, path in named.items():
        if path is not None and not (recipe.folder / path).exists():
            raise RecipeError(f"{key}: {recipe.folder / path}: there is no such file or folder")


def check_precision(recipe: Recipe, target: str, precision: str) -> None:
    """Raises RecipeError where a target of this precision needs data that the recipe has not."""
    if precision in CALIBRATED and recipe.data.calibration is None:
        raise RecipeError(
            f"target {target} is int8, and the recipe has no data.calibration: name samples like "
            "those that the device will see (some hundred, none of them in tuning or test), or "
            "build with --set target.precision=int8-dynamic, which needs none"
        )


def check_sizes(recipe: Recipe, target: str) -> None:
    """Raises RecipeError where sizes vary: this target's engines are built for one."""
    inputs = recipe.manifest_inputs({})
    if varying := [one for one in inputs if one.varying]:
        raise RecipeError(
            f"target {target} builds engines for one size, and {varying[0].name} is "
            f"{varying[0].shape_text()}: give one number in place of a range, and a recipe for "
            "each size that you need"
        )


def _demand_one_source(made: Head | Confidence) -> None:
    """Refuse a module of the user's whose weights have two sources, or a prefix and no file."""
    if made.untrained and made.checkpoint is not None:
        raise ValueError("has a checkpoint and is untrained; which of the two?")
    if made.prefix and made.checkpoint is None:
        raise ValueError("a prefix belongs to a checkpoint")


def _demand_one_each(key: str, given: dict[str, float], names: tuple[str, ...], kind: str) -> None:
    """Refuse numbers by name that are not exactly one for each of the names."""
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(names)}"
            raise ValueError(f"{key}: {name!r} is no {kind}; {hint}")
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"{key}: none for {', '.join(missing)}")


def _find(path: str) -> Path:
    if Path(path).name == MANIFEST_NAME:
        raise RecipeError(f"{path}: is a bundle's manifest; give the bundle's folder")
    shipped_recipes = shipped("recipes")
    for candidate in (
        Path(path),
        Path(path) / "recipe.yaml",
        shipped_recipes.parent / path,
        shipped_recipes / path / "recipe.yaml",
    ):
        if candidate.is_file():
            return candidate.absolute()
    raise RecipeError(f"recipe {path}: there is no such file")
