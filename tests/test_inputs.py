"""Inputs other than one of floats: from a recipe to a bundle, held against PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.reader import read_bundle
from edgekit.errors import InputError, ModelError, RecipeError
from edgekit.models.load import load_model, user_code
from edgekit.pipeline import build
from edgekit.recipe import load_recipe
from edgekit.runtime import Chain
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.verify import differences, verify_golden
from edgekit.target import load_target
from tests.conftest import once, write_recipe

TOKENS = '''
import numpy as np
import torch
from torch import nn

ROWS, LENGTH = 30, 10


class Tokens(nn.Module):
    """A block of masked attention and one without, an exit behind each; token 0 is padding."""

    def __init__(self, rows):
        super().__init__()
        self.table = nn.Embedding(rows, 16, padding_idx=0)
        self.places = nn.Parameter(torch.randn(LENGTH, 16) / 8)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.mix = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.early, self.late = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, tokens):
        there = tokens != 0
        mask = torch.zeros_like(there, dtype=torch.float32).masked_fill(~there, float("-inf"))
        share = there.to(torch.float32) / there.sum(1, keepdim=True)
        x = self.table(tokens) + self.places
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / 4 + mask[:, None]
        x = x + scores.softmax(-1) @ self.value(y)
        early = self.early((x * share[..., None]).sum(1))
        return early, self.late(((x + self.mix(x)) * share[..., None]).sum(1))


def model(rows=ROWS):
    torch.manual_seed(0)
    return Tokens(rows)


def samples(seed, dtype="int64", count=40):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, ROWS, (count, LENGTH)).astype(dtype)
    for one in tokens:
        one[generator.integers(2, LENGTH + 1) :] = 0
    return tokens, generator.integers(0, 4, count)
'''

TOKENS_RECIPE = """
name: tokens
model: {factory: "tokens.py:model"}
input: {shape: [10], dtype: int64, range: [0, 29]}
exits: [early, late]
policy: {thresholds: 0.38}
quantize: {min_integer_share: 0.5}
data:
  calibration: {factory: "tokens.py:samples", args: {seed: 1, count: 200}}
  tuning: {factory: "tokens.py:samples", args: {seed: 2}}
  test: {factory: "tokens.py:samples", args: {seed: 3}}
"""


@pytest.fixture
def tokens_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tokens", "tokens", TOKENS, TOKENS_RECIPE)


@pytest.fixture(scope="module")
def tokens_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        home = tmp_path_factory.mktemp("recipe") / "tokens"
        recipe = write_recipe(home, "tokens", TOKENS, TOKENS_RECIPE)
        build(load_recipe(str(recipe)), load_target("host"), folder)

    return once(tmp_path_factory, "built-tokens", make)


def eager(recipe: Path, *inputs: torch.Tensor, **named: torch.Tensor) -> list[np.ndarray]:
    """What the recipe's model in PyTorch says, per exit."""
    found = load_recipe(str(recipe))
    with user_code(found.folder), torch.no_grad():
        return [one.numpy() for one in load_model(found)(*inputs, **named)]


def refused_input(call: Any, *named: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for words in named:
        assert words in text


def test_a_chain_of_tokens_is_the_models(tokens_bundle, tokens_recipe):
    chain = Chain.load(tokens_bundle)
    tokens, _ = load_test_data(read_bundle(tokens_bundle))
    assert tokens.dtype == np.int64
    expected = eager(tokens_recipe, torch.from_numpy(tokens))
    for ours, theirs in zip(chain.logits(tokens).values(), expected, strict=True):
        assert differences(ours, theirs)[1] < 1e-5
    assert {chain.one(one).exit for one in tokens} == {"early", "late"}
    verify_golden(read_bundle(tokens_bundle), chain)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_tokens_are_quantized_although_a_mask_of_minus_infinity_is_added(
    tokens_recipe, tmp_path, precision
):
    built = build(
        load_recipe(str(tokens_recipe)),
        load_target("host", {"precision": precision}),
        tmp_path / "out",
    )
    assert built.manifest.inputs[0].dtype == "int64"
    (check,) = (one for one in built.evidence["checks"] if one["stage"] == "verify")
    assert check["max_relative_error"] < 0.2
    chain = Chain.load(tmp_path / "out")
    refused_input(lambda: chain.one(np.full(10, 30)), "0 to 29")


def test_tokens_of_32_bits_are_taken_as_they_are(tokens_recipe, tmp_path):
    sources = {f"data.{split}.args.dtype": "int32" for split in ("calibration", "tuning", "test")}
    recipe = load_recipe(str(tokens_recipe), {"input.dtype": "int32", **sources})
    build(recipe, load_target("host"), tmp_path / "out")
    chain = Chain.load(tmp_path / "out")
    tokens, _ = load_test_data(read_bundle(tmp_path / "out"))
    expected = eager(tokens_recipe, torch.from_numpy(tokens.astype(np.int64)))
    for ours, theirs in zip(chain.logits(tokens).values(), expected, strict=True):
        assert differences(ours, theirs)[1] < 1e-5


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_token_beyond_the_table_never_reaches_the_engine(tokens_bundle, data):
    # ONNX Runtime takes -1 for the last row, and refuses 30 with an error of its own.
    chain = Chain.load(tokens_bundle)
    wrong = data.draw(st.integers(-(2**63), -1) | st.integers(30, 2**63 - 1))
    place = data.draw(st.integers(0, 9))
    tokens = np.ones(10, np.int64)
    tokens[place] = wrong
    words = ("the network takes 0 to 29", f"it holds {wrong} at [{place}]")
    refused_input(lambda: chain.one(tokens), *words)
    refused_input(lambda: chain.many(np.stack([tokens] * 2)), "the network takes 0 to 29")
    refused_input(lambda: chain.logits(tokens[None]), "the network takes 0 to 29")


def test_tokens_of_another_dtype_or_length_are_refused(tokens_bundle):
    chain = Chain.load(tokens_bundle)
    refused_input(lambda: chain.one(np.ones(10, np.int32)), "expected int64 [10]", "found int32")
    refused_input(lambda: chain.one(np.ones(10)), "expected int64 [10]", "found float64")
    refused_input(lambda: chain.one(np.ones(9, np.int64)), "expected int64 [10]", "int64 [9]")


def test_the_commands_take_a_file_of_tokens(tokens_bundle, tmp_path, cli):
    tokens, _ = load_test_data(read_bundle(tokens_bundle))
    np.save(tmp_path / "good.npy", tokens[0])
    np.save(tmp_path / "bad.npy", np.full(10, 30))
    assert cli("run", tokens_bundle, tmp_path / "good.npy").code == 0
    ended = cli("run", tokens_bundle, tmp_path / "bad.npy", tmp_path / "good.npy")
    assert ended.code == 1
    assert "bad.npy: the network takes 0 to 29: it holds 30 at [0]" in ended.err
    assert cli("bench", tokens_bundle, "--rounds", "1").code == 0
    assert cli("verify", tokens_bundle).code == 0
    assert "10 int64, 0 to 29" in cli("inspect", tokens_bundle).out


@pytest.mark.parametrize("span", [[0, 30], [-1, 29]])
def test_a_range_that_the_model_does_not_take_is_refused(tokens_recipe, tmp_path, span):
    recipe = load_recipe(str(tokens_recipe), {"input.range": span})
    with pytest.raises(ModelError, match=r"input\.range goes to (30|-1), and there the model fai"):
        build(recipe, load_target("host"), tmp_path / "out")


def test_data_outside_the_range_is_refused_with_its_place(tokens_recipe, tmp_path):
    recipe = load_recipe(str(tokens_recipe), {"input.range": [0, 28]})
    with pytest.raises(
        RecipeError, match=r"data\.\w+, sample \d+: the network takes 0 to 28: it holds 29 at \["
    ):
        build(recipe, load_target("host"), tmp_path / "out")


def test_a_range_without_zero_is_warmed_up_and_measured_inside_it(tokens_recipe, tmp_path, cli):
    sources = {
        split: {"factory": "full.py:samples", "args": {"seed": seed}}
        for seed, split in enumerate(("tuning", "test"))
    }
    (tokens_recipe.parent / "full.py").write_text(
        "from tokens import *\n"
        "def samples(seed):\n"
        "    return np.random.default_rng(seed).integers(1, ROWS, (20, LENGTH))\n"
    )
    recipe = load_recipe(str(tokens_recipe), {"input.range": [1, 29], "data": sources})
    build(recipe, load_target("host"), tmp_path / "out")
    assert len(Chain.load(tmp_path / "out").measure()) == 2
    np.save(tmp_path / "x.npy", np.ones(10, np.int64))
    assert cli("run", tmp_path / "out", tmp_path / "x.npy").code == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dtype": "int64"}, "dtype int64 needs range"),
        ({"range": [0, 9]}, "range belongs to a dtype of int32 or int64"),
        ({"dtype": "int32", "range": [0, 2**31]}, "0 to 2147483648 is no range of int32"),
        ({"dtype": "int64", "range": [3, 2]}, "3 to 2 is no range of int64"),
        (
            {"dtype": "int64", "range": [0, 255], "shape": [1, 8, 8], "image": {"mode": "L"}},
            "image",
        ),
    ],
)
def test_an_input_of_integers_says_its_range(tokens_recipe, given, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tokens_recipe), {"input": {"shape": [10], **given}})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


TWO = '''
import numpy as np
import torch
from torch import nn


class Two(nn.Module):
    """The vector joins behind the first exit; its arguments are not in the recipe's order."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.meta = nn.Linear(5, 8)
        self.early, self.late = nn.Linear(512, 4), nn.Linear(512 + 8, 4)

    def forward(self, meta, image):
        x = torch.relu(self.a(image))
        early = self.early(x.flatten(1))
        x = torch.relu(self.b(x)).flatten(1)
        return early, self.late(torch.cat([x, torch.relu(self.meta(meta))], dim=1))


def model():
    torch.manual_seed(0)
    return Two()


def samples(seed, count=40):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    meta = generator.standard_normal((count, 5)).astype(np.float32)
    return {"image": pixels, "meta": meta}, generator.integers(0, 4, count)
'''

TWO_RECIPE = """
name: two
model: {factory: "two.py:model"}
inputs:
  image: {shape: [1, 8, 8], image: {mode: L, mean: [0.5], std: [0.25]}}
  meta: {shape: [5]}
exits: [early, late]
policy: {thresholds: 0.32}
data:
  calibration: {factory: "two.py:samples", args: {seed: 1}}
  tuning: {factory: "two.py:samples", args: {seed: 2}}
  test: {factory: "two.py:samples", args: {seed: 3}}
"""

IMAGE, META = np.zeros((1, 8, 8), np.float32), np.zeros(5, np.float32)


@pytest.fixture
def two_recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "two", "two", TWO, TWO_RECIPE)


@pytest.fixture(scope="module")
def two_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        recipe = write_recipe(tmp_path_factory.mktemp("recipe") / "two", "two", TWO, TWO_RECIPE)
        build(load_recipe(str(recipe)), load_target("host"), folder)

    return once(tmp_path_factory, "built-two", make)


def test_a_chain_of_two_inputs_is_the_models(two_bundle, two_recipe):
    bundle = read_bundle(two_bundle)
    chain = Chain.from_bundle(bundle)
    batch, _ = load_test_data(bundle)
    expected = eager(two_recipe, **{name: torch.from_numpy(one) for name, one in batch.items()})
    for ours, theirs in zip(chain.logits(batch).values(), expected, strict=True):
        assert differences(ours, theirs)[1] < 1e-5
    together = chain.many(batch)
    assert {one.exit for one in together} == {"early", "late"}
    alone = [chain({name: one[row] for name, one in batch.items()}) for row in range(40)]
    assert [one[:3] for one in alone] == [one[:3] for one in together]
    assert [one[:3] for one in chain(batch)] == [one[:3] for one in together]
    assert (
        chain.one(dict(reversed({name: one[0] for name, one in batch.items()}.items())))[:3]
        == (together[0][:3])
    )


def test_golden_samples_have_a_file_for_each_input(two_bundle):
    manifest = read_bundle(two_bundle).manifest
    assert manifest.golden.samples[0].inputs == {
        "image": "golden/000-image.png",
        "meta": "golden/000-meta.npy",
    }
    assert [one.name for one in manifest.inputs] == ["image", "meta"]


def test_two_inputs_are_quantized_by_name(two_recipe, tmp_path):
    built = build(
        load_recipe(str(two_recipe)), load_target("host", {"precision": "int8"}), tmp_path / "out"
    )
    bundle = read_bundle(tmp_path / "out")
    batch, _ = load_test_data(bundle)
    expected = eager(two_recipe, **{name: torch.from_numpy(one) for name, one in batch.items()})
    for ours, theirs in zip(
        Chain.from_bundle(bundle).logits(batch).values(), expected, strict=True
    ):
        assert differences(ours, theirs)[1] < 0.15
    notes = next(one["notes"] for one in built.evidence["stages"] if one["name"] == "quantize")
    assert notes["integer_share"]["chain"] == 1


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"image": IMAGE}, "the network takes image, meta; missing is meta"),
        ({"image": IMAGE, "mata": META}, "missing is meta; it takes no mata"),
        ({"image": IMAGE, "meta": META, "x": META}, "it takes no x"),
        (IMAGE, "2 inputs, by name: image, meta; found one array"),
        ({"image": IMAGE, "meta": META[:4]}, "meta: expected float32 [5]"),
        ({"image": IMAGE, "meta": META.astype(float)}, "found float64 [5]"),
        ({"image": META, "meta": IMAGE}, "image: expected float32 [1, 8, 8]"),
        ({"image": IMAGE, "meta": np.full(5, np.inf, np.float32)}, "meta: the input is not finite"),
    ],
    ids=["missing", "misnamed", "one more", "no names", "shape", "dtype", "swapped", "nan"],
)
def test_inputs_that_do_not_fit_are_refused_by_name(two_bundle, sample, words):
    chain = Chain.load(two_bundle)
    refused_input(lambda: chain.one(sample), words)


def test_a_batch_in_which_one_input_has_fewer_samples_is_refused(two_bundle):
    batch = {"image": np.stack([IMAGE] * 3), "meta": np.stack([META] * 2)}
    refused_input(lambda: Chain.load(two_bundle).many(batch), "found 3 of image, 2 of meta")


def test_the_commands_take_an_npz_of_a_sample(two_bundle, tmp_path, cli):
    pixels = np.full((8, 8), 9, np.uint8)
    np.savez(tmp_path / "good.npz", image=pixels, meta=META)
    np.savez(tmp_path / "bad.npz", image=pixels)
    np.save(tmp_path / "bad.npy", IMAGE)
    assert cli("run", two_bundle, tmp_path / "good.npz").code == 0
    ended = cli("run", two_bundle, tmp_path / "bad.npz", tmp_path / "bad.npy")
    assert ended.code == 1
    assert "bad.npz: the network takes image, meta; missing is meta" in ended.err
    assert "bad.npy: the network takes 2 inputs, by name" in ended.err
    np.savez(tmp_path / "data.npz", image=np.stack([pixels] * 2), meta=np.ones((2, 5), np.float32))
    assert cli("bench", two_bundle, "--rounds", "1").code == 0
    assert cli("bench", two_bundle, "--rounds", "1", "--data", tmp_path / "data.npz").code == 0
    assert cli("verify", two_bundle).code == 0
    assert "meta: 5 float32" in cli("inspect", two_bundle).out


def test_an_npz_split_has_an_array_for_each_input(two_bundle, two_recipe, tmp_path):
    batch, labels = load_test_data(read_bundle(two_bundle))
    np.savez(two_recipe.parent / "t.npz", **batch, labels=labels)
    data = {"tuning": {"npz": "t.npz"}}
    built = build(load_recipe(str(two_recipe), {"data": data}), load_target("host"), tmp_path / "o")
    assert built.evidence["checks"][-1]["samples"] == 40
    np.savez(two_recipe.parent / "t.npz", image=batch["image"])
    with pytest.raises(RecipeError, match=r"data\.tuning: .*t\.npz: has no array `image`, `meta`"):
        build(load_recipe(str(two_recipe), {"data": data}), load_target("host"), tmp_path / "o")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("np.zeros((3, 5), np.float32)", "expected arrays by name (image, meta)"),
        ("{'image': np.zeros((3, 8, 8), np.uint8)}", "missing is meta"),
        (
            "{'image': np.zeros((3, 8, 8), np.uint8), 'meta': np.zeros((2, 5), np.float32)}",
            "3 of image, 2 of meta",
        ),
        ("[]", "holds no sample"),
    ],
)
def test_a_factory_that_does_not_give_every_input_is_refused(two_recipe, tmp_path, body, words):
    (two_recipe.parent / "theirs.py").write_text(
        f"import numpy as np\ndef make():\n    return {body}\n"
    )
    recipe = load_recipe(str(two_recipe), {"data": {"test": {"factory": "theirs.py:make"}}})
    with pytest.raises(RecipeError) as caught:
        build(recipe, load_target("host"), tmp_path / "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_input_that_no_exit_reads_is_given_and_noted(two_recipe, tmp_path):
    model = two_recipe.parent / "two.py"
    model.write_text(model.read_text().replace("torch.relu(self.meta(meta))", "x[:, :8]"))
    built = build(load_recipe(str(two_recipe)), load_target("host"), tmp_path / "out")
    (split,) = [one for one in built.evidence["stages"] if one["name"] == "split"]
    assert split["notes"]["warning"] == "no exit reads input 'meta'"
    chain = Chain.load(tmp_path / "out")
    assert chain({"image": IMAGE, "meta": META}).exit
    with pytest.raises(InputError, match="meta"):
        chain({"image": IMAGE})


def test_inputs_that_forward_does_not_take_are_the_recipes_error(two_recipe, tmp_path):
    text = two_recipe.read_text().replace("  meta:", "  other:")
    two_recipe.write_text(text)
    model = two_recipe.parent / "two.py"
    model.write_text(model.read_text().replace('"meta": meta}', '"other": meta}'))
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'other'"):
        build(load_recipe(str(two_recipe)), load_target("host"), tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"input": {"shape": [5]}}, "give input for a network of one input, or inputs for several"),
        ({"inputs": None}, "give input for a network of one input, or inputs for several"),
        ({"inputs": {"x": {"shape": [5]}}}, "inputs has fewer than two; one alone is `input`"),
        ({"inputs": {"x": {"shape": [5]}, "a-b": {"shape": [5]}}}, "'a-b' is no name"),
        ({"data": {"test": {"folder": "f"}}}, "a folder of images has one input"),
        ({"model.arguments": {"meta": 1}}, "'meta' is given in model.arguments already"),
    ],
)
def test_a_recipe_names_one_input_or_several(two_recipe, overrides, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(two_recipe), overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
