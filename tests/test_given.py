"""Exits that give their own confidence, and something else than class scores: held to PyTorch."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import GIVEN, Policy
from edgekit.bundle.reader import read_bundle
from edgekit.cache import Cache
from edgekit.check import model_logits
from edgekit.data import load_splits
from edgekit.errors import CheckError, EdgekitError, InputError, ModelError, RecipeError
from edgekit.models.exits import find_exits
from edgekit.models.load import load_model, user_code
from edgekit.pipeline import build
from edgekit.recipe import check_files, load_recipe
from edgekit.runtime import Chain
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.verify import differences, verify_golden
from edgekit.stages import Network
from edgekit.target import load_target
from tests.conftest import once, write_recipe

Array = npt.NDArray[Any]

MAPS = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Maps(nn.Module):
    """Two exits on 1x16x16, an early map of half the size; the last one at full size."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.early, self.late = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        early = self.early(x)
        x = torch.relu(self.c(torch.relu(self.b(x))))
        return early, functional.interpolate(self.late(x), scale_factor=2)


class Sure(nn.Module):
    """The mean over the pixels of the largest probability; writes into what it is given."""

    def forward(self, maps):
        return maps.mul_(3).softmax(1).amax(1).mean((1, 2))


def model():
    torch.manual_seed(0)
    return Maps()


def samples(seed, count=40):
    generator = np.random.default_rng(seed)
    contrast = generator.uniform(0, 4, (count, 1, 1, 1))
    return (generator.normal(0, 1, (count, 1, 16, 16)) * contrast).astype(np.float32)
'''

MAPS_RECIPE = """
name: maps
model: {factory: "maps.py:model"}
input: {shape: [1, 16, 16]}
exits: [early, late]
policy:
  criterion: given
  confidence: {factory: "maps.py:Sure"}
  thresholds: 0.6
quantize: {min_integer_share: 0.5}
data:
  calibration: {factory: "maps.py:samples", args: {seed: 1, count: 100}}
  tuning: {factory: "maps.py:samples", args: {seed: 2}}
  test: {factory: "maps.py:samples", args: {seed: 3}}
"""


GATED = '''
import numpy as np
import torch
from torch import nn


class Gated(nn.Module):
    """Three exits on 12 numbers; a router knows at the beginning how sure the first two will be."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))
        self.router = nn.Linear(12, 2)
        self.gate = nn.Sequential(nn.Linear(12, 1), nn.Sigmoid())

    def forward(self, x):
        found = []
        for depth, (layer, head) in enumerate(zip(self.layers, self.heads)):
            x = torch.relu(layer(x))
            found.append(head(x))
            if depth == 0:
                gates = self.router(x).unbind(1)
                own = self.gate(x)
        return {"logits": found, "gates": gates, "own": own}


def model():
    torch.manual_seed(0)
    return Gated()


def samples(seed, count=60):
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 1, (count, 12)).astype(np.float32)
    with torch.no_grad():
        return x, model()(torch.from_numpy(x))["logits"][2].argmax(1).numpy()
'''

GATED_RECIPE = """
name: gated
model: {factory: "gated.py:model"}
input: {shape: [12]}
labels: [north, east, south, west]
exits:
  - {name: first, output: logits.0, confidence: {module: gate}}
  - {name: second, output: logits.1, confidence: {output: gates.1}}
  - {name: last, output: logits.2}
policy: {criterion: given, thresholds: {first: 0.55, second: -0.02}}
data:
  tuning: {factory: "gated.py:samples", args: {seed: 1}}
  test: {factory: "gated.py:samples", args: {seed: 2}}
"""


@pytest.fixture
def maps_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "maps", "maps", MAPS, MAPS_RECIPE)


@pytest.fixture
def gated_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "gated", "gated", GATED, GATED_RECIPE)


@pytest.fixture(scope="module")
def maps_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        recipe = write_recipe(tmp_path_factory.mktemp("recipe") / "maps", "maps", MAPS, MAPS_RECIPE)
        cache = Cache(folder.with_name("maps-cache"))
        build(load_recipe(str(recipe)), load_target("host"), folder, cache=cache)

    return once(tmp_path_factory, "built-maps", make)


@pytest.fixture(scope="module")
def gated_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        recipe = write_recipe(
            tmp_path_factory.mktemp("recipe") / "gated", "gated", GATED, GATED_RECIPE
        )
        cache = Cache(folder.with_name("gated-cache"))
        build(load_recipe(str(recipe)), load_target("host"), folder, cache=cache)

    return once(tmp_path_factory, "built-gated", make)


def module(recipe: Path) -> torch.nn.Module:
    """The recipe's model in PyTorch."""
    found = load_recipe(str(recipe))
    with user_code(found.folder):
        return load_model(found)


def data(bundle: Path) -> Array:
    found, _ = load_test_data(read_bundle(bundle))
    return found


def sure(maps: torch.Tensor) -> float:
    """What `Sure` says of one sample's map `[classes, height, width]`, pixel by pixel."""
    total = 0.0
    _, height, width = maps.shape
    for row in range(height):
        for column in range(width):
            total += float(torch.softmax(3 * maps[:, row, column].double(), 0).max())
    return total / (height * width)


def test_maps_leave_where_a_plain_loop_over_the_model_leaves(maps_bundle, maps_recipe):
    chain, x = Chain.load(maps_bundle), data(maps_bundle)
    together = chain.many(x)
    with torch.no_grad():
        early, late = module(maps_recipe)(torch.from_numpy(x))
    for row, one in enumerate(x):
        confidence, exit, output = sure(early[row]), "early", early[row].numpy()
        if not confidence >= 0.6:
            confidence, exit, output = sure(late[row]), "late", late[row].numpy()
        for found in (chain.one(one), together[row]):
            assert (found.exit, found.stop) == (exit, "sure" if exit == "early" else "final")
            assert (found.class_index, found.label) == (None, None)
            assert found.confidence == pytest.approx(confidence, abs=1e-6)
            assert found.output.dtype == np.float32
            assert differences(found.output, output)[1] < 1e-5
    assert {one.exit for one in together} == {"early", "late"}


def test_an_output_is_the_callers_own(maps_bundle):
    chain, x = Chain.load(maps_bundle), data(maps_bundle)
    found = [chain.one(x[0]), *chain.many(x[:2])]
    kept = [one.output.copy() for one in found]
    chain.many(x[::-1])
    chain.one(x[1])
    for one, before in zip(found, kept, strict=True):
        np.testing.assert_array_equal(one.output, before)


@settings(deadline=None, max_examples=40)
@given(
    threshold=st.floats(0.4, 0.8),
    otherwise=st.sampled_from(["last", "max_confidence"]),
    rows=st.lists(st.integers(0, 39), min_size=1, max_size=70),
)
def test_a_batch_of_maps_is_its_samples_one_by_one(maps_bundle, threshold, otherwise, rows):
    policy = Policy(GIVEN, (threshold,), otherwise=otherwise)
    chain = Chain.load(maps_bundle).with_policy(policy)
    x = data(maps_bundle)
    # No threshold on a confidence, where the last bit would decide.
    levels = np.sort([0.0, *chain.exits(x)[1]["early"], 1.0])
    above = int(np.searchsorted(levels, threshold))
    between = float(levels[above - 1] + levels[above]) / 2
    chain = chain.with_policy(replace(policy, thresholds=(between,)))
    together = chain.many(x[rows])
    for row, found in zip(rows, together, strict=True):
        alone = chain.one(x[row])
        assert (found.exit, found.stop) == (alone.exit, alone.stop)
        assert found.confidence == pytest.approx(alone.confidence, abs=1e-6)
        assert differences(found.output, alone.output)[1] < 1e-5


def test_the_most_confident_map_answers_though_the_rest_of_the_batch_went_on(maps_bundle):
    chain, x = Chain.load(maps_bundle), data(maps_bundle)
    outputs, confidences = chain.exits(x)
    # Some leave at once, so the others' early maps change their places in the buffers.
    threshold = float(np.sort(confidences["early"])[-8:-6].mean())
    chain = chain.with_policy(Policy(GIVEN, (threshold,), otherwise="max_confidence"))
    found = chain.many(x)
    early = confidences["early"] > confidences["late"]
    assert [one.exit for one in found] == ["early" if one else "late" for one in early]
    assert {one.stop for one in found if one.exit == "early"} == {"sure", "final"}
    for row, one in enumerate(found):
        assert differences(one.output, outputs[one.exit][row])[1] < 1e-5


def test_the_confidence_is_part_of_its_exits_segment_and_of_the_golden_samples(maps_bundle):
    bundle = read_bundle(maps_bundle)
    manifest = bundle.manifest
    assert manifest.labels == ()
    assert manifest.policy == Policy(GIVEN, (0.6,))
    for segment in manifest.variant().segments:
        (exit,) = segment.exits
        assert {exit.logits, exit.confidence} <= set(segment.outputs)
        spec = manifest.variant().tensors[exit.confidence]
        assert (spec.dtype, spec.shape) == ("float32", (None,))
    assert manifest.golden.confidences.keys() == {"early", "late"}
    assert {one.class_index for one in manifest.golden.samples} == {None}
    report = verify_golden(bundle, Chain.from_bundle(bundle))
    assert max(report.max_relative_error.values()) < 1e-5


@pytest.mark.parametrize("what", ["logits", "confidences"])
def test_a_device_that_computes_another_output_or_confidence_is_told(maps_bundle, what):
    bundle = read_bundle(maps_bundle)
    chain = Chain.from_bundle(bundle)
    ran = chain.exits

    def exits(samples: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        outputs, confidences = ran(samples)
        {"logits": outputs, "confidences": confidences}[what]["late"] += 0.1
        return outputs, confidences

    chain.exits = exits
    word = {"logits": "logits", "confidences": "confidence"}[what]
    with pytest.raises(CheckError, match=f"exit 'late' differs from the host's {word} by"):
        verify_golden(bundle, chain)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_in_lower_precision_maps_and_their_confidence_stay_float(maps_recipe, tmp_path, precision):
    built = build(
        load_recipe(str(maps_recipe)),
        load_target("host", {"precision": precision}),
        tmp_path / "out",
    )
    for segment in built.manifest.variant().segments:
        model = onnx.load(tmp_path / "out" / segment.path)
        makers = {name: node for node in model.graph.node for name in node.output}
        # From the confidence back to the head's convolution, nothing is in steps.
        stack, seen = [segment.exits[0].confidence], []
        while stack and (node := makers.get(stack.pop())) is not None:
            seen.append(node.op_type)
            halves = onnx.TensorProto.FLOAT16
            assert node.op_type != "Cast" or node.attribute[0].i != halves
            stack += [] if node.op_type == "Conv" else node.input[:1]
        assert {"ReduceMean", "Softmax", "Conv"} <= set(seen)
        assert not {"QuantizeLinear", "DequantizeLinear"} & set(seen)
    chain, x = Chain.load(tmp_path / "out"), data(tmp_path / "out")
    with torch.no_grad():
        early, late = module(maps_recipe)(torch.from_numpy(x))
    outputs, confidences = chain.exits(x)
    for name, maps in (("early", early), ("late", late)):
        assert outputs[name].dtype == confidences[name].dtype == np.float32
        assert 0 < differences(outputs[name], maps.numpy())[1] < 0.1
        assert differences(confidences[name], np.array([sure(one) for one in maps]))[1] < 0.05
    assert len({one.exit for one in chain.many(x)}) == 2


def test_a_confidence_of_nan_never_leaves(maps_bundle, tmp_path):
    chain = Chain.load(maps_bundle, metrics=tmp_path / "metrics.jsonl")
    huge = np.full((1, 16, 16), 3e38, np.float32)
    assert np.isnan(chain.exits(huge[None])[1]["early"]).all()
    for found in (chain.one(huge), *chain.many(huge[None])):
        assert (found.exit, found.stop) == ("late", "final")
        assert found.confidence == 1.0
    chain.metrics.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert [(one["count"], one["not_finite"]) for one in line["exits"]] == [(0, 0), (2, 0)]


def test_a_deadline_answers_with_the_deepest_map(maps_bundle):
    chain = Chain.load(maps_bundle, segment_ms=[0.001, 1e6])
    chain = chain.with_policy(Policy(GIVEN, (2.0,)))
    found = chain.one(data(maps_bundle)[0], deadline_ms=1000)
    assert (found.exit, found.stop, found.output.shape) == ("early", "deadline", (3, 8, 8))


def test_a_learned_gate_decides_and_classes_are_as_ever(gated_bundle, gated_recipe):
    chain, x = Chain.load(gated_bundle), data(gated_bundle)
    with torch.no_grad():
        theirs = module(gated_recipe)(torch.from_numpy(x))
    together = chain.many(x)
    for row, one in enumerate(x):
        if (confidence := float(theirs["own"][row])) >= 0.55:
            depth, exit = 0, "first"
        elif (confidence := float(theirs["gates"][1][row])) >= -0.02:
            depth, exit = 1, "second"
        else:
            depth, exit, confidence = 2, "last", float("nan")
        index = int(theirs["logits"][depth][row].argmax())
        for found in (chain.one(one), together[row]):
            assert (found.exit, found.class_index, found.output) == (exit, index, None)
            assert found.label == ["north", "east", "south", "west"][index]
            assert found.confidence == pytest.approx(confidence, abs=1e-5, nan_ok=True)
    assert {one.exit for one in together} == {"first", "second", "last"}


def test_a_gate_that_an_earlier_segment_knows_is_found_at_its_exit(gated_bundle):
    # The router runs in the first segment, and has an answer for the second exit there.
    manifest = read_bundle(gated_bundle).manifest
    for segment in manifest.variant().segments:
        assert [exit.confidence in segment.outputs for exit in segment.exits] == [
            segment.name != "segment-3"
        ]
    assert manifest.variant().segments[2].exits[0].confidence is None
    assert None in {one.confidence for one in manifest.golden.samples}


def test_thresholds_are_tuned_to_a_learned_gate(gated_recipe, tmp_path):
    recipe = load_recipe(
        str(gated_recipe),
        {"policy.thresholds": None, "policy.tune": {"max_accuracy_drop": 0.3}},
    )
    built = build(recipe, load_target("host"), tmp_path / "out")
    (tune,) = (one for one in built.evidence["stages"] if one["name"] == "tune")
    assert tune["notes"]["pytorch_accuracy"] == 1.0
    assert 0.7 <= tune["notes"]["accuracy"] < 1.0
    with user_code(recipe.folder):
        found = find_exits(recipe, load_model(recipe), torch.zeros(2, 12))
    assert found.confident == 2


@pytest.mark.parametrize("name", ["maps", "gated"])
def test_a_rebuild_that_goes_on_from_the_cache_is_the_same(name, request, tmp_path):
    path = request.getfixturevalue(f"{name}_recipe")
    bundle = request.getfixturevalue(f"{name}_bundle")
    first = read_bundle(bundle)
    cache = Cache(shutil.copytree(bundle.with_name(f"{name}-cache"), tmp_path / "cache"))
    threshold = {"policy.thresholds": 0.61}
    recipe = load_recipe(str(path), threshold)
    second = build(recipe, load_target("host"), tmp_path / "b", cache=cache)
    fresh = build(recipe, load_target("host"), tmp_path / "c")
    assert [one.get("cached") for one in second.evidence["stages"]][:6] == [True] * 6
    assert second.manifest == fresh.manifest != first.manifest
    checks = [one.evidence["checks"] for one in (second, fresh)]
    assert checks[0] == checks[1]


def refused(overrides: dict[str, Any], recipe: Path, *words: str) -> None:
    """Loading the recipe, or finding its exits in the model, ends in one line with these words."""
    with pytest.raises(EdgekitError) as caught:
        found = load_recipe(str(recipe), overrides)
        shape = found.input.shape
        with user_code(found.folder):
            exits = find_exits(found, load_model(found), torch.randn(2, *shape))
            network = Network(exits, found.exits, torch.randn(2, *shape), exits.confident)
            model_logits(network, iter([np.random.randn(6, *shape).astype(np.float32)]))
    assert "\n" not in str(caught.value)
    for one in words:
        assert one in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("maps.softmax(1).amax(1)", "the confidence of exit 'early' is float32 [2, 8, 8]"),
        ("maps.mean((2, 3))", "the confidence of exit 'early' is float32 [2, 3]; it is one number"),
        ("maps.mean()", "the confidence of exit 'early' is float32 []"),
        ("maps.mean((1, 2, 3))[:1]", "the confidence of exit 'early' is float32 [1]"),
        ("maps.flatten(1).argmax(1)", "the confidence of exit 'early' is int64 [2]"),
        ("maps.mean((1, 2, 3)) > 0", "the confidence of exit 'early' is bool [2]"),
        ("(maps, maps)", "the confidence of exit 'early' is a tuple of 2"),
        ("maps.mean((1, 2, 3)) + torch.rand(len(maps))", "something random in eval()?"),
        ("maps.mean((1, 2, 3)) - maps.mean()", "answers otherwise when a sample comes alone"),
        ("maps.mean((1, 2, 3)) / 0", "gives NaN or infinite confidences at exit 'early'"),
        ("maps.mean((1, 2, 3)).log()", "gives NaN or infinite confidences at exit"),
        ("maps.nothing()", "no attribute 'nothing'"),
    ],
)
def test_a_module_that_gives_no_confidence_is_refused(maps_recipe, body, words):
    path = maps_recipe.parent / "maps.py"
    path.write_text(path.read_text().replace("maps.mul_(3).softmax(1).amax(1).mean((1, 2))", body))
    refused({}, maps_recipe, words)


def test_one_number_in_a_column_is_a_confidence_too(maps_recipe):
    path = maps_recipe.parent / "maps.py"
    path.write_text(path.read_text().replace(".mean((1, 2))", ".mean((1, 2))[:, None].double()"))
    recipe = load_recipe(str(maps_recipe))
    with user_code(recipe.folder), torch.no_grad():
        found = find_exits(recipe, load_model(recipe), torch.randn(2, 1, 16, 16))
        outputs = found(torch.randn(2, 1, 16, 16))
    assert [tuple(one.shape) for one in outputs] == [(2, 3, 8, 8), (2, 3, 16, 16), (2,), (2,)]
    assert {one.dtype for one in outputs} == {torch.float32}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"policy.confidence": None}, "policy.criterion given needs the confidence of early;"),
        ({"policy.criterion": "max_prob"}, "confidence belongs to criterion: given"),
        ({"policy.criterion": "margin"}, "confidence belongs to criterion: given"),
        ({"policy.combine": "sum"}, "a given confidence is of its exit alone, and combine is sum"),
        ({"policy.confidence": {"output": "x"}}, "policy.confidence is for every exit"),
        ({"policy.confidence": {}}, "name a factory, or where the model gives it"),
        (
            {"policy.confidence.output": "x"},
            "name a factory, or where the model gives it: output, module or both",
        ),
        ({"policy.confidence.call": 1}, "call belongs to a module"),
        ({"policy.confidence.prefix": "x."}, "a prefix belongs to a checkpoint"),
        ({"labels": ["a", "b", "c"]}, "exit 'early' gives [3, 8, 8] for a sample"),
        (
            {"policy.thresholds": None, "policy.tune": {"max_accuracy_drop": 0.1}},
            "what is right of that nobody knows here; give policy.thresholds",
        ),
        (
            {"policy": {"thresholds": 0.5}},
            "exit 'early' is float32 [6, 3, 8, 8]; an exit's logits are floats [batch, classes]; "
            "for anything else say policy.criterion: given",
        ),
    ],
)
def test_a_recipe_of_maps_says_what_fits_them(maps_recipe, overrides, words):
    refused(overrides, maps_recipe, words)


def exits_of(recipe: Path, index: int, **confidence: Any) -> dict[str, Any]:
    """The recipe's exits with another confidence at one of them."""
    places = [one.model_dump() for one in load_recipe(str(recipe)).places]
    places[index]["confidence"] = confidence
    return {"exits": places}


@pytest.mark.parametrize(
    ("confidence", "words"),
    [
        ({"output": "gates.7"}, "there is no output 'gates.7'"),
        ({"output": "logits.0"}, "the confidence of exit 'first' is float32 [2, 4]"),
        ({"module": "gates"}, "the model has no module 'gates'; did you mean 'gate"),
        ({"module": "gate", "call": 3}, "module 'gate' runs 1 times, and call is 3"),
        ({"module": "router"}, "the confidence of exit 'first' is float32 [2, 2]"),
        ({"factory": "gated.py:no"}, "has no function 'no'"),
        ({"factory": "gated.py:samples", "args": {"seed": 1}}, "returned a tuple, no nn.Module"),
        ({"factory": "gated.py:model"}, "draws layers.0.weight at random; give its checkpoint"),
        (
            {"output": "own", "args": {"seed": 1}},
            "args, checkpoint, prefix and untrained belong to",
        ),
    ],
)
def test_a_confidence_that_is_not_there_is_refused(gated_recipe, confidence, words):
    path = gated_recipe.parent / "gated.py"
    path.write_text(path.read_text().replace("torch.manual_seed(0)", ""))
    refused(exits_of(gated_recipe, 0, **confidence), gated_recipe, words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"policy.criterion": "max_prob"},
            "exit 'first' names its confidence, and policy.criterion is max_prob",
        ),
        ({"policy.otherwise": "max_confidence"}, "needs the confidence of last"),
        (
            {"labels": [], "policy": {"thresholds": 0.5}, "exits": ["a", "b", "c"]},
            "policy.criterion max_prob needs them: say given",
        ),
    ],
)
def test_a_recipe_of_gates_is_whole(gated_recipe, overrides, words):
    refused(overrides, gated_recipe, words)


def test_a_gate_has_weights_of_its_own(gated_recipe):
    home = gated_recipe.parent
    (home / "judge.py").write_text(
        "from torch import nn\n"
        "class Judge(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.gate = nn.Linear(width, 1)\n"
        "    def forward(self, scores):\n"
        "        return self.gate(scores).sigmoid()\n"
    )
    torch.save({"a.gate.weight": torch.ones(1, 4), "a.gate.bias": torch.zeros(1)}, home / "j.pt")
    judge = {"factory": "judge.py:Judge", "args": {"width": 4}}
    refused(exits_of(gated_recipe, 0, **judge), gated_recipe, "draws gate.weight at random")
    judge |= {"checkpoint": "j.pt", "prefix": "a."}
    recipe = load_recipe(str(gated_recipe), exits_of(gated_recipe, 0, **judge))
    x = torch.randn(2, 12)
    with user_code(recipe.folder), torch.no_grad():
        first, *_, confidence, _ = find_exits(recipe, load_model(recipe), x)(x)
    torch.testing.assert_close(confidence, first.sum(1).sigmoid())
    (home / "j.pt").unlink()
    with pytest.raises(RecipeError, match=r"exits\.0\.confidence\.checkpoint: .*no such file"):
        check_files(recipe)


def test_vectors_that_are_no_scores_are_given_as_they_are(gated_recipe, tmp_path):
    recipe = load_recipe(str(gated_recipe), {"labels": []})
    built = build(recipe, load_target("host"), tmp_path / "out")
    load = built.evidence["stages"][0]["notes"]
    assert load["warning"] == (
        "the data has labels, and the exits tell no classes: nothing is counted by them"
    )
    assert built.manifest.test_data.labels is None
    assert {one["top1_agreement"] for one in built.evidence["checks"]} == {None}
    chain = Chain.load(tmp_path / "out")
    found = chain.one(data(tmp_path / "out")[0])
    assert (found.class_index, found.label, found.output.shape) == (None, None, (4,))
    with pytest.raises(InputError, match="criterion 'max_prob' needs class scores"):
        chain.with_policy(Policy("max_prob", (0.5, 0.5)))


def test_exits_of_two_kinds_are_refused_without_a_word_about_it(maps_recipe):
    path = maps_recipe.parent / "maps.py"
    path.write_text(
        path.read_text()
        .replace("return early,", "return early.mean((2, 3)),")
        .replace("maps.mul_(3)", "maps.reshape(len(maps), 3, 1, -1)")
    )
    words = "exit 'early' gives [3] for a sample, as class scores are, and exit 'late' [3, 16, 16]"
    refused({}, maps_recipe, words, "say labels: []")
    recipe = load_recipe(str(maps_recipe), {"labels": []})
    with user_code(recipe.folder):
        assert find_exits(recipe, load_model(recipe), torch.randn(2, 1, 16, 16)).confident == 2


def test_labels_of_maps_are_refused_with_what_to_do(maps_recipe, tmp_path):
    (maps_recipe.parent / "masks.py").write_text(
        "from maps import *\n"
        "def masked(seed):\n"
        "    return samples(seed), np.zeros((40, 16, 16), np.int64)\n"
    )
    split = {"factory": "masks.py:masked", "args": {"seed": 9}}
    recipe = load_recipe(str(maps_recipe), {"data.test": split})
    with pytest.raises(RecipeError, match=r"data\.test: .*give no labels where exits give maps"):
        build(recipe, load_target("host"), tmp_path / "out")


def test_a_confidence_that_never_sees_the_input_is_refused(maps_recipe, tmp_path):
    path = maps_recipe.parent / "maps.py"
    path.write_text(
        path.read_text().replace(
            "maps.mul_(3).softmax(1).amax(1).mean((1, 2))", "torch.full(maps.shape[:1], 0.5)"
        )
    )
    with pytest.raises(EdgekitError, match="the confidence of exit 'early' does not depend on the"):
        build(load_recipe(str(maps_recipe)), load_target("host"), tmp_path / "out")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy("max_prob", (0.5,)), "criterion 'max_prob' needs class scores, and the exits give"),
        (Policy("patience", (1.0,)), "criterion 'patience' needs class scores"),
        (Policy(GIVEN, (0.5,), "sum"), "combine is 'sum'; it can only be last"),
        (Policy(GIVEN, ()), "2 exits need 1 thresholds"),
    ],
)
def test_another_policy_over_maps_is_refused_with_the_reason(maps_bundle, policy, words):
    with pytest.raises(InputError, match=words):
        Chain.load(maps_bundle).with_policy(policy)


def test_a_bundle_without_confidences_has_none_to_be_given(built_tiny, cli):
    with pytest.raises(InputError, match="criterion 'given' needs the confidence of first, second"):
        Chain.load(built_tiny).with_policy(Policy(GIVEN, (0.5, 0.5)))
    other = json.dumps({"criterion": "given", "thresholds": 0.5})
    ended = cli("bench", built_tiny, "--policy", other)
    assert ended.code == 1
    assert "--policy: criterion 'given' needs the confidence of first, second" in ended.err


def test_run_prints_the_shape_of_a_map_and_writes_it(maps_bundle, tmp_path, cli):
    x = data(maps_bundle)
    for name, one in (("a", x[0]), ("b", x[2])):
        np.save(tmp_path / f"{name}.npy", one)
    files = [tmp_path / "a.npy", tmp_path / "b.npy"]
    ended = cli("run", maps_bundle, *files, "--output", tmp_path / "out", "--json", "-")
    assert ended.code == 0
    assert "3x16x16 float32" in ended.err
    assert "3x8x8 float32" in ended.err
    chain = Chain.load(maps_bundle)
    for file, one, said in zip(files, x[[0, 2]], json.loads(ended.out)["predictions"], strict=True):
        expected = chain.one(one)
        written = np.load(tmp_path / "out" / file.name)
        np.testing.assert_array_equal(written, expected.output)
        assert said["output"] == {
            "shape": list(written.shape),
            "dtype": "float32",
            "path": str(tmp_path / "out" / file.name),
        }
        assert (said["class_index"], said["exit"]) == (None, expected.exit)


def test_an_output_is_never_written_over_another_or_into_a_bundle(maps_bundle, tmp_path, cli):
    sample = data(maps_bundle)[0]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", sample)
    files = [tmp_path / "one" / "a.npy", tmp_path / "two" / "a.npy"]
    ended = cli("run", maps_bundle, *files, "--output", tmp_path / "out")
    assert ended.code == 1
    assert "would both go to" in ended.err
    ended = cli("run", maps_bundle, files[0], "--output", tmp_path / "one")
    assert ended.code == 1
    assert "is" in ended.err
    assert "itself; name another folder" in ended.err
    np.testing.assert_array_equal(np.load(files[0]), sample)
    ended = cli("run", maps_bundle, files[0], "--output", maps_bundle / "out")
    assert ended.code == 1
    assert "lies in the bundle" in ended.err
    ended = cli("run", maps_bundle, files[0], "--output", files[1])
    assert ended.code == 1
    assert "a.npy: " in ended.err


def test_outputs_of_a_classifier_are_not_written(gated_bundle, tmp_path, cli):
    np.save(tmp_path / "a.npy", data(gated_bundle)[0])
    ended = cli("run", gated_bundle, tmp_path / "a.npy", "--output", tmp_path / "out")
    assert ended.code == 1
    assert "--output: the network tells classes" in ended.err
    ended = cli("run", gated_bundle, tmp_path / "a.npy", "--json", "-")
    assert "output" not in json.loads(ended.out)["predictions"][0]


def test_bench_invents_no_accuracy_of_maps(maps_bundle, tmp_path, cli):
    ended = cli("bench", maps_bundle, "--rounds", "1", "--json", "-")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert (report["classes"], report["accuracy"], report["plain"]["accuracy"]) == (0, None, None)
    assert "its exits tell no classes, so nobody knows here what it costs" in report["verdict"]
    assert not [one for one in report["reasons"] if "labels" in one]
    np.savez(tmp_path / "d.npz", inputs=data(maps_bundle), labels=np.zeros(40, int))
    ended = cli("bench", maps_bundle, "--rounds", "1", "--data", tmp_path / "d.npz", "--json", "-")
    assert json.loads(ended.out)["accuracy"] is None


def test_the_other_commands_know_maps(maps_bundle, maps_recipe, tmp_path, cli):
    ended = cli("verify", maps_bundle)
    assert "samples leave where they did; logits and confidences within" in ended.out
    ended = cli("inspect", maps_bundle)
    assert "outputs   3x8x8 float32, 3x16x16 float32" in ended.out
    assert "given: early at 0.6" in ended.out
    ended = cli("build", maps_recipe, "--output", tmp_path / "out", "--no-cache")
    assert ended.code == 0
    (row,) = (line for line in ended.out.splitlines() if line.startswith("verify") and "e-" in line)
    assert row.split()[-2:] == ["-", "100.00%"]


def test_thresholds_of_maps_are_come_to_by_how_many_shall_leave(maps_recipe, tmp_path, cli):
    tune = {"exit_rates": {"early": 0.3}}
    settings = {"policy.thresholds": None, "policy.tune": tune, "quantize.features": "reached"}
    recipe = load_recipe(str(maps_recipe), settings)
    built = build(recipe, load_target("host", {"precision": "int8"}), tmp_path / "out")
    notes = {one["name"]: one["notes"] for one in built.evidence["stages"]}
    assert notes["tune"]["exit_rates"] == pytest.approx({"early": 0.3, "late": 0.7})
    assert notes["quantize"]["reaching_samples"]["segment-2"] < 100
    assert "accuracy" not in notes["tune"]
    chain = Chain.load(tmp_path / "out")
    with user_code(recipe.folder):
        tuning = load_splits(recipe)["tuning"]
    x = np.stack([tuning.tensor(row, chain.spec.inputs) for row in range(len(tuning))])
    assert sum(one.exit == "early" for one in chain.many(x)) == 12


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"exit_rates": {"early": 1.5}}, "policy.tune.exit_rates.early"),
        ({"exit_rates": {"late": 0.5}}, "'late' is no early exit"),
        ({"exit_rates": {}}, "policy.tune.exit_rates: none for early"),
        ({}, "needs one of max_accuracy_drop, min_exit_rate"),
        ({"exit_rates": {"early": 0.5}, "max_accuracy_drop": 0.1}, "no other goal"),
        ({"exit_rates": {"early": 0.7, "other": 0.7}}, "exit_rates come to 1.4"),
    ],
)
def test_exit_rates_are_one_share_for_each_early_exit(maps_recipe, tune, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(maps_recipe), {"policy.thresholds": None, "policy.tune": tune})
    assert words in str(caught.value)


def test_a_goal_counted_by_classes_is_refused_also_where_segments_were_kept(maps_recipe, tmp_path):
    cache = Cache(tmp_path / "cache")
    for tune, words in (
        ({"exit_rates": {"early": 0.3}}, None),
        ({"certificate": {"risk": 0.2}}, "the exits give no class scores"),
        ({"min_exit_rate": 0.5}, "the exits give no class scores"),
    ):
        recipe = load_recipe(str(maps_recipe), {"policy.thresholds": None, "policy.tune": tune})
        with contextlib.ExitStack() as stack:
            if words is not None:
                stack.enter_context(pytest.raises(RecipeError, match=words))
            build(recipe, load_target("host"), tmp_path / "out", cache=cache)


def test_maps_that_grow_with_the_input_are_refused_with_what_to_write(maps_recipe, tmp_path):
    recipe = load_recipe(str(maps_recipe), {"input.shape": [1, [16, 32, 4], 16]})
    with pytest.raises(ModelError, match=r"exit 'early' gives \[3, 8, 8\] and .* of one size"):
        build(recipe, load_target("host"), tmp_path / "out")


def test_shares_that_cannot_be_come_to_are_noted(maps_recipe, tmp_path):
    path = maps_recipe.parent / "maps.py"
    path.write_text(
        path.read_text().replace(".mean((1, 2))", ".mean((1, 2)).mul(2).round().div(2)")
    )
    settings = {"policy.thresholds": None, "policy.tune": {"exit_rates": {"early": 0.2}}}
    recipe = load_recipe(str(maps_recipe), settings)
    built = build(recipe, load_target("host"), tmp_path / "out")
    (tune,) = (one["notes"] for one in built.evidence["stages"] if one["name"] == "tune")
    assert "leave, and 20.0% were asked for: confidences of many" in tune["warning"]
