"""quantize: what crosses, who calibrates, what is refused; for real, on small networks."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.backends.onnx_graph import costs, executed
from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.bundle.manifest import EVIDENCE_NAME, Policy, unseal
from edgekit.bundle.reader import read_bundle
from edgekit.check import chain_of, runner_for
from edgekit.data import Split
from edgekit.errors import BuildError, CheckError, RecipeError
from edgekit.models.exits import Exits
from edgekit.pipeline import build
from edgekit.recipe import Tolerance, load_recipe
from edgekit.runtime import Chain
from edgekit.runtime.bench import load_test_data
from edgekit.stages import Network
from edgekit.stages.export import Export
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.stages.quantize import Quantize, calibration_doubts
from edgekit.stages.split import Split as SplitStage
from edgekit.target import load_target
from tests.conftest import digits_for, reference_of
from tests.stages.test_split import SkipsASegment

SHAPE = (1, 4, 4)
BACKEND = OnnxRuntimeBackend()


def silent(text: str) -> None:
    pass


def noise(seed: int, count: int = 40, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, *SHAPE)) * scale
    return values.astype(np.float32)


def splits(calibration: np.ndarray | None = None, labels: np.ndarray | None = None, **others):
    given = noise(1) if calibration is None else calibration
    found = {"calibration": Split("calibration", list(given), labels)}
    return found | {name: Split(name, list(values), None) for name, values in others.items()}


@dataclasses.dataclass
class World:
    """A network with its optimized segments, and the stage that is tested, on noise."""

    network: Network
    exported: object
    optimized: object

    def quantize(self, given=None, policy=None, target=None, backend=BACKEND, **options):
        overrides = {f"quantize.{key}": value for key, value in options.items()}
        if given is not None and "calibration" not in given:
            overrides["data.calibration"] = None
        recipe = load_recipe("digits", {"input": {"shape": list(SHAPE)}, **overrides})
        wanted = load_target("host", {"precision": "int8", **(target or {})})
        policy = policy or Policy("max_prob", (0.5,) * (len(self.network.exits) - 1))
        stage = Quantize(backend, recipe, wanted, given or splits(), policy)
        return stage(self.optimized, silent)

    def check(self, segments, **limits):
        recipe = load_recipe("digits", {"input": {"shape": list(SHAPE)}})
        reference = reference_of(
            self.network,
            Policy("max_prob", (0.5,) * (len(self.network.exits) - 1)),
            lambda: iter([noise(7)]),
            Tolerance(**{"max_relative_error": 0.1, "min_top1_agreement": 0.9,
                         "min_exit_agreement": 0.8} | limits),
        )  # fmt: skip
        make = runner_for(segments, recipe.manifest_inputs(segments.inputs), load_target("host"))
        return reference.check("quantize", segments, self.exported, make)


def world_of(model: nn.Module, exits: int) -> World:
    torch.manual_seed(0)
    names = tuple(f"exit{index + 1}" for index in range(exits))
    network = Network(Exits(model.eval(), names).eval(), names, torch.from_numpy(noise(0, 2)))
    exported = Export()(network, silent).artifact
    split = SplitStage()(exported, silent).artifact
    lowered = Lower(BACKEND, load_target("host"), network.sample)(split, silent).artifact
    return World(
        network,
        exported,
        Optimize(BACKEND, lambda segments, name: 0.0, 1e-3)(lowered, silent).artifact,
    )


@pytest.fixture(scope="module")
def skipping() -> World:
    """The first segment's features are read by both others, and by its own head."""
    torch.manual_seed(0)
    return world_of(SkipsASegment(), 3)


class Awkward(nn.Module):
    """Logits that a later exit reads, and the network's input read again behind the cut."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.early = nn.Linear(64, 3)
        self.mix, self.last = nn.Linear(64 + 3, 16), nn.Linear(16, 3)

    def forward(self, x):
        a = self.a(x).relu()
        early = self.early(a.flatten(1))
        b = self.b(torch.cat([a, x], dim=1)).relu()
        mixed = self.mix(torch.cat([b.flatten(1), early], dim=1)).relu()
        return early, self.last(mixed)


def test_integers_cross_also_past_a_segment_and_to_several_readers(skipping):
    result = skipping.quantize()
    given = result.artifact
    assert given.problems() == []
    boundary = skipping.optimized.chain[0].outputs[0]
    assert all(boundary in part.inputs for part in given.chain[1:])
    logits = {tensor for part in given.parts() for tensor in part.logits.values()}
    for name, spec in given.tensors.items():
        assert spec.dtype == ("float32" if name in {*logits, given.inputs["input"]} else "uint8"), (
            name
        )
    for part in given.chain[1:]:
        model = onnx.load_from_string(part.program)
        # What comes in as integers is not quantized once more.
        quantized = {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
        assert not quantized & set(part.inputs)
    assert result.notes["integer_share"]["chain"] == 1
    skipping.check(given)


def test_logits_and_input_stay_float_where_later_segments_read_them():
    awkward = world_of(Awkward(), 2)
    given = awkward.quantize().artifact
    early, late = given.chain
    assert given.inputs["input"] in late.inputs
    assert early.logits["exit1"] in late.inputs
    assert given.tensors[given.inputs["input"]].dtype == "float32"
    assert given.tensors[early.logits["exit1"]].dtype == "float32"
    awkward.check(given)
    for part in (early, given.whole):
        model = onnx.load_from_string(part.program)
        (maker,) = (n for n in model.graph.node if part.logits["exit1"] in n.output)
        assert maker.op_type == "Gemm"


def test_heads_are_the_same_float_operators_in_chain_and_whole(skipping):
    given = skipping.quantize().artifact
    floats = {
        name: sorted(one.macs for part in parts for one in float_costs(part))
        for name, parts in given.chains().items()
    }
    assert floats["chain"] == floats["whole"] == [64 * 3] * 3
    assert floats["plain"] == [64 * 3]


def float_costs(part):
    return [one for one in costs(executed(part.program, {}, signed=False), {}) if not one.integer]


def test_signed_activations_run_on_integers_where_the_processor_has_kernels(skipping):
    signed = {"activations": "int8", "machine": "aarch64"}
    result = skipping.quantize(target=signed)
    assert result.notes["integer_share"]["chain"] == 1
    assert result.artifact.tensors[skipping.optimized.chain[0].outputs[0]].dtype == "int8"
    skipping.check(result.artifact)


def test_signed_activations_are_refused_where_they_would_run_in_float(skipping):
    words = r"MACs outside the heads.*segment-\d, the largest operator \S+ \(\w*Conv, .*uint8"
    with pytest.raises(BuildError, match=words):
        skipping.quantize(target={"activations": "int8", "machine": "x86_64"})


def test_a_segment_that_stays_float_is_refused_by_its_operator():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, padding=1)
            self.heads = nn.ModuleList(nn.Linear(64, 3) for _ in range(2))

        def forward(self, x):
            a = self.a(x).relu()
            b = self.b(a).relu()
            return [head(y.flatten(1)) for head, y in zip(self.heads, (a, b), strict=True)]

    world = world_of(Up(), 2)
    with pytest.raises(BuildError, match=r"segment-2, the largest operator \S+ \(ConvTranspose, "):
        world.quantize()
    share = world.quantize(min_integer_share=0.1).notes["integer_share"]
    assert share["segment-1"] == 1
    assert share["segment-2"] == 0


def test_a_network_of_heads_alone_has_nothing_to_quantize():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.last = nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x):
            return self.early(x.flatten(1)), self.last(x.flatten(1).relu())

    with pytest.raises(BuildError, match=r"nothing multiplies outside the heads"):
        world_of(Heads(), 2).quantize()


def test_only_samples_that_reach_a_segment_calibrate_it(skipping):
    recipe = load_recipe("digits", {"input": {"shape": list(SHAPE)}})
    segments = skipping.optimized
    early = chain_of(segments, segments.chain[:1], recipe.manifest_inputs(segments.inputs), (),
                     Policy("max_prob", ()), load_target("host"))  # fmt: skip
    given = splits()
    logits = early.logits(np.stack(given["calibration"].raw))["exit1"].astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = np.sort(odds.max(axis=1) / odds.sum(axis=1))
    policy = Policy("max_prob", (float(confidence[9:11].mean()), 1.0))
    result = skipping.quantize(given, policy, features="reached")
    assert result.notes["reaching_samples"] == {"segment-1": 40, "segment-2": 10, "segment-3": 10}
    assert "only 10 calibration samples reach segment-2" in result.notes["warning"]
    everyone = skipping.quantize(given, policy).artifact
    programs = [
        [part.program for part in segments.chain] for segments in (result.artifact, everyone)
    ]
    assert programs[0][0] == programs[1][0]
    assert programs[0][1] != programs[1][1]
    with pytest.raises(RecipeError, match=r"none of 40 calibration samples reaches segment-2"):
        skipping.quantize(given, Policy("max_prob", (0.0, 0.0)), features="reached")


def test_a_segment_is_calibrated_with_what_the_quantized_ones_before_it_give(skipping):
    seen = {}

    class Recording(OnnxRuntimeBackend):
        def quantize(self, part, features, entering, later, options, target):
            seen[part.name] = list(features()), dict(entering)
            return super().quantize(part, features, entering, later, options, target)

    given = skipping.quantize(backend=Recording()).artifact
    batches, entering = seen["segment-3"]
    recipe = load_recipe("digits", {"input": {"shape": list(SHAPE)}})
    chain = chain_of(given, given.chain[:2], recipe.manifest_inputs(given.inputs), (),
                     Policy("max_prob", (1.0,)), load_target("host"))  # fmt: skip
    tensors = chain.tensors(noise(1))
    assert entering.keys() == set(given.chain[2].inputs)
    for name, crossing in entering.items():
        theirs = np.concatenate([batch[name] for batch in batches])
        assert tensors[name].dtype == np.uint8
        assert np.array_equal(theirs, crossing.floats(tensors[name]))
        # Steps of the quantized segment's scale, which the float segment's features are not.
        assert len(np.unique(theirs)) <= 256
    for name in ("plain", "whole", "segment-1"):
        (batch, rest), _ = seen[name]
        assert np.array_equal(
            np.concatenate([batch[given.inputs["input"]], rest[given.inputs["input"]]]), noise(1)
        )


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_histograms_of_several_batches_are_one_range(skipping, method, capsys):
    result = skipping.quantize(splits(noise(1, count=70)), method=method)
    skipping.check(result.artifact, max_relative_error=0.3, min_top1_agreement=0.8)
    assert capsys.readouterr().out == ""


def test_quantizing_twice_gives_the_same_bytes(skipping):
    for target in ({}, {"precision": "int8-dynamic"}, {"precision": "fp16"}):
        once, again = (skipping.quantize(target=target).artifact for _ in range(2))
        for first, second in zip(once.parts(), again.parts(), strict=True):
            assert first.program == second.program
            assert b"/tmp" not in first.program


def test_fp32_is_left_as_it_is(skipping):
    assert skipping.quantize(target={"precision": "fp32"}).artifact is skipping.optimized


def test_float16_crosses_and_heads_do_not(skipping):
    given = skipping.quantize(target={"precision": "fp16"}).artifact
    assert given.tensors[skipping.optimized.chain[0].outputs[0]].dtype == "float16"
    assert {given.tensors[x].dtype for part in given.chain for x in part.logits.values()} == {
        "float32"
    }
    found = skipping.check(given, max_relative_error=0.01)
    assert found.max_relative_error > 0


def test_a_wrong_quantized_chain_is_refused_with_its_own_tolerance(skipping):
    given = skipping.quantize().artifact
    # The boundary holds integers, so the logits are the first tensor that can be compared.
    words = r"check\.quantized\.max_relative_error is 1\.0e-06; segment-1 .* at tensor linear"
    with pytest.raises(CheckError, match=words):
        skipping.check(given, max_relative_error=1e-6)


def test_int8_without_calibration_data_is_refused(skipping):
    words = r"host is int8.*no data\.calibration.*int8-dynamic"
    recipe = load_recipe("digits", {"input": {"shape": list(SHAPE)}, "data.calibration": None})
    given = {"tuning": Split("tuning", list(noise(2)), None)}
    stage = Quantize(BACKEND, recipe, load_target("host", {"precision": "int8"}), given, None)
    with pytest.raises(RecipeError, match=words):
        stage(skipping.optimized, silent)


IMAGE = {
    "input": {"shape": [1, 4, 4], "image": {"mode": "L", "mean": [0.5], "std": [0.5]}},
}


def doubts(values, labels=None, recipe=None, **others):
    given = splits(values, labels, **others)
    source = load_recipe("digits", recipe or {"input": {"shape": list(SHAPE)}}).manifest_inputs({})
    return calibration_doubts(given.pop("calibration"), source, list(given.values()))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.repeat(noise(1, 1), 20, axis=0), "all 20 samples are the same"),
        (np.ones((20, *SHAPE), np.float32) * noise(1, 20)[:, :, :1, :1], "one value throughout"),
    ],
    ids=["all the same", "each one value"],
)
def test_constant_calibration_data_is_refused(values, words):
    with pytest.raises(RecipeError, match=words):
        doubts(values)


def test_calibration_data_that_no_pixel_becomes_is_refused():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    assert doubts(pixels, recipe=IMAGE) == []
    words = r"data\.calibration, sample 0: channel 0 runs from 0 to 255, and pixels.* -1 to 1 "
    raw = pixels[:, None].astype(np.float32)
    raw[0, 0, 0, :2] = 0, 255
    with pytest.raises(RecipeError, match=words):
        doubts(raw, recipe=IMAGE)


def test_one_sided_or_few_or_narrow_calibration_data_is_flagged():
    assert doubts(noise(1), np.arange(40) % 3, tuning=noise(2)) == []
    (one_class,) = doubts(noise(1), np.full(40, 2))
    assert "all samples are of class 2" in one_class
    (few,) = doubts(noise(1, 5))
    assert "fewer than 16 samples (5)" in few
    (narrow,) = doubts(noise(1), tuning=noise(2, scale=3.0))
    assert narrow.startswith("data.tuning runs from")


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "fp16"])
def test_a_whole_bundle_of_each_precision(tiny_recipe, tmp_path, precision):
    recipe = load_recipe(
        str(tiny_recipe),
        {
            "data.calibration": {"factory": "tiny.py:samples", "args": {"seed": 3}},
            "check.quantized": {"max_relative_error": 0.1, "min_top1_agreement": 0.9,
                                "min_exit_agreement": 0.7},
        },
    )  # fmt: skip
    target = load_target("host", {"precision": precision})
    built = build(recipe, target, tmp_path / "out")
    boundary = built.manifest.variant().segments[0].outputs[0]
    dtype = {"int8": "uint8", "int8-dynamic": "float32", "fp16": "float16"}[precision]
    assert built.manifest.variant().tensors[boundary].dtype == dtype
    assert built.manifest.golden.max_relative_error == 0.05
    chain = Chain.load(tmp_path / "out")
    inputs, _ = load_test_data(read_bundle(tmp_path / "out"))
    together = chain.many(inputs)
    # Also where ranges are read at run time: a sample's answer depends on no other sample.
    assert [chain.one(x) for x in inputs] == together


@pytest.mark.parametrize("target", ["rpi4b", "rpi4b-litert"])
def test_digits_in_int8_decide_as_in_float(target, digits_bundle, tmp_path_factory):
    integers = digits_for(tmp_path_factory, target)
    evidence = unseal((integers / EVIDENCE_NAME).read_bytes(), EVIDENCE_NAME)
    (notes,) = (one["notes"] for one in evidence["stages"] if one["name"] == "quantize")
    assert min(notes["integer_share"].values()) >= 0.95
    assert "warning" not in notes
    check = evidence["checks"][-1]
    assert check["top1_agreement"] >= 0.99
    assert check["exit_agreement"] >= 0.97
    inputs, labels = load_test_data(read_bundle(integers))
    chains = [Chain.load(one) for one in (integers, digits_bundle)]
    accuracy = [
        np.mean([one.class_index == label for one, label in zip(found, labels, strict=True)])
        for found in (chain.many(inputs) for chain in chains)
    ]
    assert accuracy[0] >= accuracy[1] - 0.005
    assert [(p.exit, p.class_index) for p in map(chains[0].one, inputs[:50])] == [
        (p.exit, p.class_index) for p in chains[0].many(inputs[:50])
    ]
    after, before = (
        sum(path.stat().st_size for path in (folder / "segments").glob("segment-[234].*"))
        for folder in (integers, digits_bundle)
    )
    assert after < before / 2


def test_golden_samples_of_a_quantized_bundle_lie_clear_of_the_thresholds(digits_int8_bundle):
    manifest = read_bundle(digits_int8_bundle).manifest
    thresholds = dict(zip(manifest.variant().exits, manifest.policy.thresholds, strict=False))
    chain = Chain.load(digits_int8_bundle)
    for sample in manifest.golden.samples:
        x = chain.read(digits_int8_bundle / sample.inputs["input"])
        # One step of another processor's kernels moves logits by far less than this.
        for name, logits in chain.logits(x[None]).items():
            wide = logits[0].astype(np.float64)
            if name == sample.exit:
                break
            assert abs(log_odds(wide) - odds(thresholds[name])) > 0.1, (sample.inputs, name)


def log_odds(logits: np.ndarray) -> float:
    return odds(float(1 / np.exp(logits - logits.max()).sum()))


def odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


@pytest.mark.parametrize(
    "policy",
    [
        Policy("max_prob", (0.5, 0.6), "sum", (1.0, 2.0, 3.0)),
        Policy("margin", (0.4, 0.5), "geometric", None, "max_confidence"),
        Policy("patience", (1.0, 1.0)),
    ],
    ids=lambda policy: policy.criterion,
)
def test_who_reaches_a_segment_is_who_the_policy_lets_go_on(policy):
    from edgekit.runtime.criteria import decide
    from edgekit.stages.quantize import _Calibration

    logits = list(2 * np.random.default_rng(0).standard_normal((3, 500, 4)))
    depths = decide(logits, policy).depths
    calibration = _Calibration(None, None, None, policy)
    for done in (1, 2):
        going_on = calibration._going_on(logits[:done])
        np.testing.assert_array_equal(going_on, depths >= done)
    assert 0 < going_on.sum() < 500
