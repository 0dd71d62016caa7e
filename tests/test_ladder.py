"""A recipe with variants: a ladder of whole bundles, each of one width, or nothing at all."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import pipeline
from edgekit.bundle.ladder import PROFILE_NAME, read_ladder, read_variant
from edgekit.bundle.manifest import LADDER_NAME
from edgekit.bundle.reader import read_bundle
from edgekit.cache import Cache, default_folder
from edgekit.cli.build import _next as next_steps
from edgekit.errors import EdgekitError, ModelError, RecipeError
from edgekit.ladder import BuiltLadder, LadderPlan, build_ladder
from edgekit.models.load import load_model, user_code
from edgekit.plan import STAGES, Plan
from edgekit.recipe import load_recipe
from edgekit.runtime import Chain, Ladder
from edgekit.runtime.profile import Latency, Measured, read_profile, seal_profile
from edgekit.runtime.verify import verify_golden
from edgekit.target import load_target
from tests.conftest import once, write_recipe
from tests.slim import WIDTHS, write_slim_recipe

HOST = load_target("host")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The ladder of the slim recipe, two widths; its cache lies beside it."""

    def make(folder: Path) -> None:
        recipe = write_slim_recipe(tmp_path_factory.mktemp("recipe") / "slim")
        cache = Cache(folder.with_name("slim-cache"))
        build_ladder(LadderPlan(load_recipe(str(recipe)), HOST, cache), folder)

    return once(tmp_path_factory, "built-slim", make)


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_slim_recipe(tmp_path / "slim")


@pytest.fixture
def cache(built, cache_of_its_own) -> Cache:
    """A copy of the cache in which the ladder was built; the command finds it, too."""
    return Cache(Path(shutil.copytree(built.with_name("slim-cache"), default_folder())))


def planned(recipe: Path, cache: Cache | None = None, only=(), **overrides: object) -> LadderPlan:
    of_recipe = {key.replace("__", "."): value for key, value in overrides.items()}
    return LadderPlan(load_recipe(str(recipe), of_recipe), HOST, cache, only=only)


def refused(plan: LadderPlan, output: Path, kind: type[EdgekitError] = ModelError) -> str:
    """The words of the refusal, after which nothing is left on the disk."""
    with pytest.raises(kind) as caught:
        build_ladder(plan, output)
    assert not list(output.parent.glob(f"*{output.name}*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_makes_no_ladder_is_refused_before_anything_is_built(recipe):
    for name in ("ladder.json", "report.html", "x.engines"):
        with pytest.raises(RecipeError, match=r"in the ladder|a file of the ladder"):
            planned(recipe, variants__each={name: 0.25, "w1.0": 1.0})
    goal = {"max_accuracy_drop": 0.1}
    with pytest.raises(RecipeError, match=r"no data\.tuning"):
        planned(recipe, variants__tune=goal, data__tuning=None)
    with pytest.raises(RecipeError, match=r"variants\.policy=null"):
        planned(recipe, only=("w0.25",), variants__tune=goal, variants__policy={"kind": "cascade"})


def test_the_ladder_is_read_as_a_device_reads_it_narrowest_first(built):
    document = read_ladder(built)
    assert document.names == ("w0.25", "w1.0")
    assert document.policy.variant == "w1.0"
    for one in document.variants:
        assert one.settings == {"width_mult": WIDTHS[one.name]}
        assert one.accuracy_of == "labels"
        bundle = read_variant(built, document, one.name)
        assert bundle.manifest.name == f"slim-{one.name}"
        assert bundle.manifest.recipe["model"]["setting"]["value"] == WIDTHS[one.name]
    narrow, wide = document.variants
    assert narrow.macs < wide.macs / 8
    assert narrow.size_bytes < wide.size_bytes


@pytest.mark.parametrize("name", list(WIDTHS))
def test_each_width_is_what_pytorch_has_at_that_width_at_every_exit(built, recipe, name):
    chain = Chain.load(built / name)
    with user_code(recipe.parent):
        model = load_model(load_recipe(str(recipe)).variant(name))
        # Another way to the same width than the build's.
        like = sys.modules["slim"].slim()
        like.set_width(WIDTHS[name])
        x = torch.randn(9, 1, 8, 8)
        with torch.no_grad():
            expected = like(x)
            assert all(map(torch.equal, model(x), expected))
    found = chain.logits(x.numpy())
    for values, one in zip(found.values(), expected, strict=True):
        assert np.abs(values - one.numpy()).max() < 1e-4 * np.abs(one.numpy()).max()


def test_a_variant_is_an_ordinary_bundle_with_weights_of_its_own(built):
    document = read_ladder(built)
    for name, width in WIDTHS.items():
        bundle = read_variant(built, document, name)
        assert verify_golden(bundle, Chain.from_bundle(bundle)).samples == 8
        n = int(16 * width)
        own = 9 * n + 2 * 9 * n * n + 3 * 2 * n + 2 * (4 * n + 4)
        assert document.variant(name).parameters == own


def test_accuracies_are_of_the_chain_with_its_thresholds_on_the_tuning_split(built, recipe):
    document = read_ladder(built)
    with user_code(recipe.parent):
        pipeline.load_model(load_recipe(str(recipe)).variant("w1.0"))
        pixels, labels = sys.modules["slim"].samples(1)
    x = ((pixels[:, None] / 255 - 0.5) / 0.25).astype(np.float32)
    for name in WIDTHS:
        answers = [Chain.load(built / name).one(one).class_index for one in x]
        assert document.variant(name).accuracy == np.mean(np.array(answers) == labels)


def test_a_second_build_does_nothing_and_a_lost_ladder_is_restored_to_the_byte(
    built, recipe, cache, tmp_path
):
    output = tmp_path / "out"
    first = build_ladder(planned(recipe, cache), output)
    assert first.written
    assert (output / LADDER_NAME).read_bytes() == (built / LADDER_NAME).read_bytes()
    again = build_ladder(planned(recipe, cache), output)
    assert not again.written
    assert again.document == first.document
    # Of another ladder of the same bundles only the document is another, and its times hold.
    took = {
        one: Measured(x.manifest.bundle_id, Latency(1, 1, 1), 1)
        for one, x in first.variants.items()
    }
    (output / PROFILE_NAME).write_bytes(seal_profile("onnxruntime", "onnxruntime 1", 1, took))
    policy = {"kind": "cascade", "agree": True}
    other = build_ladder(planned(recipe, cache, variants__policy=policy), output)
    assert other.written
    assert other.document["variants"] == first.document["variants"]
    assert read_ladder(output).policy.agree
    assert read_profile(output / PROFILE_NAME).variants == took
    # Those of other bundles are not taken along.
    build_ladder(planned(recipe, cache, only=("w1.0",)), output)
    assert not (output / PROFILE_NAME).exists()


def test_a_change_of_one_variant_leaves_the_others_as_they_were(recipe, cache):
    whole = planned(recipe, cache)
    assert whole.finished
    changed = planned(recipe, cache, variants__each={"w0.25": 0.25, "w1.0": 1.0, "w0.5": 0.5})
    assert {name: plan.finished for name, plan in changed.plans.items()} == {
        "w0.25": True,
        "w1.0": True,
        "w0.5": False,
    }
    other = planned(recipe, cache, variants__overrides={"w0.25": {"policy.thresholds": 0.5}})
    assert other.plans["w1.0"].finished
    assert [one for one in STAGES if other.plans["w0.25"].runs(one)] == ["tune", "build", "verify"]


def test_some_of_the_variants_make_a_ladder_of_their_own(recipe, cache, tmp_path):
    ladder = build_ladder(planned(recipe, cache, only=("w0.25",)), tmp_path / "out")
    assert list(ladder.variants) == ["w0.25"]
    assert ladder.document["policy"] == {"kind": "fixed", "variant": "w0.25"}
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [LADDER_NAME, "w0.25"]
    with pytest.raises(RecipeError, match=r"--variant w9: there is none; they are w1\.0, w0\.25"):
        planned(recipe, only=("w9",))
    with pytest.raises(RecipeError, match=r"variants\.policy fixed: .*no variant 'w1\.0'"):
        planned(recipe, only=("w0.25",), variants__policy={"kind": "fixed", "variant": "w1.0"})


def test_a_width_that_breaks_is_named_and_nothing_is_left(recipe, cache, tmp_path):
    each = {"w0.25": 0.25, "w0.3": 0.3}
    words = refused(planned(recipe, cache, variants__each=each), tmp_path / "out")
    assert words.startswith("variant w0.3: ")
    assert "0.3 is not in list (slim.py, line" in words


def test_an_interrupt_leaves_the_old_ladder_and_nothing_half_built(
    recipe, cache, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    build_ladder(planned(recipe, cache), output)
    before = (output / LADDER_NAME).read_bytes()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline._Run, "load", interrupted)
    plan = planned(recipe, cache, variants__each={"w0.25": 0.25, "w0.5": 0.5})
    with pytest.raises(KeyboardInterrupt):
        build_ladder(plan, output)
    assert [one.name for one in output.parent.glob("*out*")] == ["out"]
    assert (output / LADDER_NAME).read_bytes() == before


def test_a_setting_that_changes_nothing_is_found_out(recipe, cache, tmp_path):
    each = {"w1.0": 1.0, "again": 1.0}
    words = refused(planned(recipe, cache, variants__each=each), tmp_path / "out")
    assert words.startswith("variant again: is the same network as w1.0, to the last byte")


def test_a_width_without_statistics_of_its_own_is_refused(recipe, tmp_path):
    source = recipe.with_name("slim.py")
    text = source.read_text()
    source.write_text(text.replace("for width in WIDTHS:", "for width in [1.0]:"))
    words = refused(planned(recipe, only=("w0.25",)), tmp_path / "out")
    assert words.startswith(
        "variant w0.25: BatchNorm has no statistics of this setting's own: a.norms.0 (it has "
        "tracked no batch), b.norms.0"
    )
    assert "recalibrate: {when: missing}" in words


SHARED = """

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.early, self.late = (nn.Linear(8, 4) for _ in range(2))
        self.inner = 8

    def forward(self, x):
        x = self.norms[0](self.a(x)).relu()
        early = self.early(x.mean((2, 3)))
        # Inside it is narrower, and outside as wide as ever.
        x = F.conv2d(x[:, : self.inner], self.b.weight[:, : self.inner], self.b.bias, padding=1)
        return [early, self.late(self.norms[1](x).relu().mean((2, 3)))]


def shared():
    torch.manual_seed(0)
    network = Shared()
    network.train()
    network(torch.randn(16, 1, 8, 8))
    return network.eval()
"""


def of_shared(recipe: Path) -> dict[str, object]:
    source = recipe.with_name("slim.py")
    source.write_text(source.read_text() + SHARED)
    return {
        "model__factory": "slim.py:shared",
        "variants__set": {"attribute": "inner"},
        "variants__each": {"narrow": 2, "wide": 8},
    }


@pytest.mark.slow
def test_one_batchnorm_for_two_widths_is_refused_where_their_features_differ(recipe, tmp_path):
    words = refused(planned(recipe, **of_shared(recipe)), tmp_path / "out")
    # The first stands before what slims.
    assert words.startswith(
        "variant wide: 1 BatchNorm layers have one set of statistics for this setting and "
        "narrow's (norms.1)"
    )
    assert "{when: always}" in words


@pytest.mark.slow
def test_a_width_is_recalibrated_where_the_recipe_says_so_and_it_is_printed(recipe, cli, tmp_path):
    source = recipe.with_name("slim.py")
    text = source.read_text()
    source.write_text(text.replace("for width in WIDTHS:", "for width in [1.0]:"))
    said = "variants.recalibrate={when: missing, batches: 2}"
    ended = cli("build", recipe, "--output", tmp_path / "out", "--set", said, "--variant", "w0.25")
    assert ended.code == 0, ended.err
    assert "statistics of 3 BatchNorm layers taken anew from 2 batches: accuracy " in ended.out
    evidence = json.loads((tmp_path / "out/w0.25/evidence.json").read_bytes())
    notes = evidence["stages"][0]["notes"]["statistics"]
    assert notes["layers"] == {}
    assert notes["accuracy_before"].keys() == notes["accuracy_after"].keys() == {"early", "late"}


IMPORTED = """
import os
import torch
from torch import nn

CHANNELS = int(os.environ["CHANNELS"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, CHANNELS, 3)
        self.heads = nn.ModuleList(nn.Linear(CHANNELS, 4) for _ in range(2))

    def forward(self, x):
        x = self.conv(x).relu()
        return [self.heads[0](x.mean((2, 3))), self.heads[1](x.amax((2, 3)))]
"""


def test_a_repository_that_reads_its_setting_at_import_is_imported_anew_for_each(
    recipe, tmp_path, monkeypatch
):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "theirs.py").write_text(IMPORTED)
    (recipe.parent / "ours.py").write_text(
        "import os, sys\n"
        "def before(value):\n"
        "    os.environ['CHANNELS'] = str(value['channels'])\n"
        f"    sys.path.append({str(repository)!r})\n"
        "def make():\n"
        "    from theirs import Net\n"
        "    return Net()\n"
    )
    plan = planned(
        recipe,
        model__factory="ours.py:make",
        variants__set=None,
        variants__setup="ours.py:before",
        variants__each={"small": {"channels": 4}, "large": {"channels": 8}},
    )
    # A notebook has imported it before.
    monkeypatch.setenv("CHANNELS", "2")
    monkeypatch.syspath_prepend(repository)
    import theirs  # type: ignore[import-not-found]

    found = {}
    for name, one in plan.plans.items():
        segments, _ = pipeline.inspect(one.recipe, HOST)
        found[name] = segments.whole.parameters
    assert found == {"small": 4 * 9 + 4 + 2 * 20, "large": 8 * 9 + 8 + 2 * 36}
    assert sys.modules["theirs"] is theirs
    assert theirs.CHANNELS == 2
    assert "ours" not in sys.modules


def test_a_variant_may_have_an_input_of_another_size(recipe):
    overrides = {"w0.25": {"input.shape": [1, 6, 6], "input.image.resize": [6, 6]}}
    plan = planned(recipe, variants__overrides=overrides)
    shapes = {name: one.recipe.input.shape for name, one in plan.plans.items()}
    assert shapes == {"w1.0": (1, 8, 8), "w0.25": (1, 6, 6)}
    segments, _ = pipeline.inspect(plan.plans["w0.25"].recipe, HOST)
    assert segments.whole.macs < 6 * 6 * 4 * 9 * 10


STAGES_MODEL = """
from functools import partial

import numpy as np
import torch
from torch import nn

from edgekit.models.slimmable import SlimmableConv2d, SlimmableLinear, SwitchableBatchNorm2d

WIDTHS = (0.25, 0.5, 1.0)
Conv = partial(SlimmableConv2d, widths=WIDTHS, padding=1)
Norm = partial(SwitchableBatchNorm2d, widths=WIDTHS)
Linear = partial(SlimmableLinear, widths=WIDTHS, slim_out=False)


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(1 if first else 8, 8, 3, slim_in=not first), Norm(8), nn.ReLU())
            for first in (True, False)
        )
        self.heads = nn.ModuleList(Linear(8, 4) for _ in range(2))

    def forward(self, x):
        found = []
        for stage, head in zip(self.stages, self.heads):
            x = stage(x)
            found.append(head(x.mean((2, 3))))
        return found


def staged(network, setting):
    for stage, width in zip(network.stages, setting["widths"], strict=True):
        for one in stage:
            if hasattr(one, "width_mult"):
                one.width_mult = width


def samples(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 8, 8), dtype=np.uint8)
"""

STAGES_RECIPE = """
name: stages
model: {factory: "stages.py:Stages"}
input: {shape: [1, 8, 8], image: {mode: L, mean: [0.5], std: [0.25]}}
labels: [north, east, south, west]
exits: [early, late]
policy: {thresholds: 0.3}
data: {test: {factory: "stages.py:samples", args: {seed: 1}}}
variants:
  set: {call: "stages.py:staged"}
  each: {narrow: {widths: [0.25, 0.5]}, wide: {widths: [0.5, 1.0]}}
  overrides: {narrow: {input.shape: [1, 6, 6], input.image.resize: [6, 6]}}
  recalibrate: {when: never}
  policy: {kind: cascade, thresholds: [2]}
"""


def test_variants_may_differ_in_the_width_of_each_stage_and_in_resolution(tmp_path):
    recipe = write_recipe(tmp_path / "stages", "stages", STAGES_MODEL, STAGES_RECIPE)
    plan = LadderPlan(load_recipe(str(recipe)), HOST, Cache(tmp_path / "cache"))
    ladder = Ladder.load(build_ladder(plan, tmp_path / "out").path)
    assert ladder.names == ("narrow", "wide")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    with user_code(recipe.parent):
        load_model(load_recipe(str(recipe)).variant("wide"))
        for name, size, widths in (("narrow", 6, [0.25, 0.5]), ("wide", 8, [0.5, 1.0])):
            chain = ladder.chain(name)
            x = chain.prepare(pixels)
            assert x.shape == (1, size, size)
            like = sys.modules["stages"].Stages().eval()
            sys.modules["stages"].staged(like, {"widths": widths})
            with torch.no_grad():
                expected = like(torch.from_numpy(x[None]))
            for found, one in zip(chain.logits(x[None]).values(), expected, strict=True):
                assert np.abs(found - one.numpy()).max() < 1e-4 * np.abs(one.numpy()).max()
            # A convolution with its bias, BatchNorm, and a head, a stage.
            counted = sum(9 * a * b + b + 2 * b + 4 * b + 4 for a, b in channels(widths))
            assert ladder.document.variant(name).parameters == counted
    # Each is given the same pixels, and makes its own input of them.
    asked = ladder.one(pixels)
    wide = ladder.chain("wide")
    assert asked[:4] == wide.one(wide.prepare(pixels))[:4]
    assert asked.variant == "wide"


def channels(widths):
    """Channels into and out of each stage of `Stages`."""
    out = [int(8 * one) for one in widths]
    return zip([1, *out], out, strict=False)


def test_a_recipe_with_variants_is_no_single_bundle(recipe):
    with pytest.raises(
        RecipeError, match=r"slim has variants \(w1\.0, w0\.25\).* a ladder of them"
    ):
        Plan(load_recipe(str(recipe)), HOST)


def test_the_command_shows_builds_and_restores_a_ladder(recipe, cache, cli, tmp_path):
    output = tmp_path / "out"
    ended = cli("build", recipe, "--output", output, "--dry-run", "--json", tmp_path / "a.json")
    assert ended.code == 0, ended.err
    shown = json.loads((tmp_path / "a.json").read_text())
    assert set(shown["stages"]) == set(WIDTHS)
    assert set(shown["stages"]["w0.25"].values()) == {"cached"}
    assert not output.exists()
    ended = cli("build", recipe, "--output", output, "--json", tmp_path / "b.json")
    assert ended.code == 0, ended.err
    assert "slim-w0.25 for host: nothing has changed" in ended.out
    report = json.loads((tmp_path / "b.json").read_text())
    assert [one["name"] for one in report["variants"]] == ["w0.25", "w1.0"]
    assert report["evidence"]["w1.0"]["bundle_id"] == report["variants"][1]["bundle_id"]
    ended = cli("build", recipe, "--output", output)
    assert "Nothing to do for" in ended.out
    ended = cli("build", "digits", "--variant", "w1.0", "--dry-run")
    assert ended.code == 1
    assert "digits has no variants" in ended.err


def test_a_ladder_takes_no_strangers_place(recipe, cache, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(EdgekitError, match="exists and is not a bundle or a ladder"):
        build_ladder(planned(recipe, cache), output)
    assert (output / "thesis.txt").read_text() == "years of work"


def test_what_a_build_gives_lies_where_it_says(recipe, cache, tmp_path):
    ladder = build_ladder(planned(recipe, cache), tmp_path / "out")
    assert isinstance(ladder, BuiltLadder)
    for one in ladder.variants.values():
        assert (one.path / "manifest.json").is_file()


def test_what_a_ladder_says_to_do_next_names_folders_that_there_are(jetson_tiny):
    manifest = read_bundle(jetson_tiny).manifest
    words = next_steps(manifest, Path("build/net/jetson"), ["w0.25", "w1.0"])
    assert "-r jetson/w1.0/install/requirements.txt" in words
    assert "edgekit install jetson/w0.25\n" in words
    assert words.endswith("edgekit install jetson/w1.0")
