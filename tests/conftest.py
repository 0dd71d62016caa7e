"""What several tests share: the command line in this process, a small recipe, built bundles."""

import gc
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Two test processes share two cores, and OpenMP's threads wait for each other by spinning: with a
# team as large as the machine in each, PyTorch is twenty times slower. Set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import filelock
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from edgekit.cache import Cache

ROOT = Path(__file__).parent.parent

# What fails can be run again, and what passed passes; --hypothesis-profile=explore looks further.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("explore")
settings.load_profile("repeat")

TINY_MODEL = '''
import numpy as np
import torch
from torch import nn


class Tiny(nn.Module):
    """Three exits on 1x8x8; small enough to build in seconds."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.heads = nn.ModuleList(nn.Linear(8 * 64, 4) for _ in range(3))

    def forward(self, x):
        exits = []
        for conv, head in zip((self.a, self.b, self.c), self.heads):
            x = torch.relu(conv(x))
            exits.append(head(x.flatten(1)))
        return exits


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny()


def samples(seed, count=24):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return pixels, generator.integers(0, 4, count)
'''

TINY_RECIPE = """
name: tiny
model: {factory: "tiny.py:tiny"}
input: {shape: [1, 8, 8], image: {mode: L, mean: [0.5], std: [0.25]}}
labels: [north, east, south, west]
exits: [first, second, last]
policy: {thresholds: {first: 0.30, second: 0.29}}
data:
  tuning: {factory: "tiny.py:samples", args: {seed: 1}}
  test: {factory: "tiny.py:samples", args: {seed: 2}}
"""


@pytest.fixture(autouse=True)
def _seeded():
    """Weights and inputs that a test draws are the same each time: what fails can be run again."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _what_is_loaded_stays():
    """Half a million objects of PyTorch's are not searched again for garbage, many times a build.

    Whatever a test makes is: a module's tests have not begun.
    """
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """No test finds what another, or the user, has built."""
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / os.urandom(8).hex())
    )


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs `edgekit ARGUMENTS` in this process."""
    from edgekit.cli import main

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        if arguments[:1] in {("build",), ("tune",)} and "--report" not in arguments:
            arguments += ("--no-report",)  # It takes a second; its own tests ask for it.
        monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe of the test's own, with a model of three exits."""
    return write_tiny_recipe(tmp_path / "tiny")


def write_recipe(folder: Path, name: str, model: str, recipe: str) -> Path:
    """A folder with a model's file `NAME.py` and its recipe; the recipe's path."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(model)
    (folder / "recipe.yaml").write_text(recipe)
    return folder / "recipe.yaml"


def write_tiny_recipe(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tiny.py").write_text(TINY_MODEL)
    recipe = folder / "recipe.yaml"
    recipe.write_text(TINY_RECIPE)
    return recipe


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / name
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


def reference_of(network, policy, batches, limits):
    """A network's own answers on the samples of `batches()`, for a chain to be held to."""
    from edgekit.check import Reference, model_logits

    return Reference(network.exits, model_logits(network, batches()), batches, policy, limits)


@pytest.fixture(scope="session")
def built_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny recipe; read-only by agreement, see `tiny_bundle`."""
    from edgekit.cache import Cache
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    def make(folder: Path) -> None:
        recipe = write_tiny_recipe(tmp_path_factory.mktemp("recipe") / "tiny")
        cache = Cache(folder.with_name("tiny-cache"))
        build(load_recipe(str(recipe)), load_target("host"), folder, cache=cache)

    return once(tmp_path_factory, "built-tiny", make)


@pytest.fixture
def tiny_cache(built_tiny: Path, cache_of_its_own: None) -> "Cache":
    """A cache of the test's own, the command's too, in which a clone of the tiny recipe is built.

    For what a test does after a first build: that one is restored. Its recipe's folder is another,
    so no earlier build of this one is known.
    """
    from edgekit.cache import Cache, default_folder

    return Cache(Path(shutil.copytree(built_tiny.with_name("tiny-cache"), default_folder())))


@pytest.fixture(scope="session")
def built_ladder(built_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ladder of the tiny bundle and one of half its width; read-only by agreement."""
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target
    from tests.ladders import NARROW, WIDE, assemble

    def make(folder: Path) -> None:
        recipe = write_tiny_recipe(tmp_path_factory.mktemp("recipe") / "tiny")
        model = recipe.with_name("tiny.py")
        for wide, narrow in (
            ("(8, 8, 3", "(4, 4, 3"),
            ("(1, 8,", "(1, 4,"),
            ("(8 * 64", "(4 * 64"),
        ):
            model.write_text(model.read_text().replace(wide, narrow))
        half = folder.with_name("tiny-half")
        build(load_recipe(str(recipe)), load_target("host"), half)
        assemble(folder, {NARROW: (half, 0.5), WIDE: (built_tiny, 1.0)})

    return once(tmp_path_factory, "built-ladder", make)


@pytest.fixture
def tiny_ladder(built_ladder: Path, tmp_path: Path) -> Path:
    """A copy of the small ladder, to be broken."""
    return Path(shutil.copytree(built_ladder, tmp_path / "ladder"))


@pytest.fixture(scope="session")
def jetson_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny recipe for `jetson`; read-only by agreement."""
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    def make(folder: Path) -> None:
        recipe = write_tiny_recipe(tmp_path_factory.mktemp("recipe") / "tiny")
        build(load_recipe(str(recipe)), load_target("jetson"), folder)

    return once(tmp_path_factory, "jetson-tiny", make)


@pytest.fixture
def tiny_bundle(built_tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be broken."""
    return Path(shutil.copytree(built_tiny, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of recipes/digits for `host`; read-only by agreement."""
    from edgekit.cache import Cache
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    def make(folder: Path) -> None:
        recipe = load_recipe(str(ROOT / "recipes/digits/recipe.yaml"))
        # What the two bundles of digits have in common is built once.
        cache = Cache(folder.parent / "digits-cache")
        build(recipe, load_target("host"), folder, cache=cache)

    return once(tmp_path_factory, "built-digits", make)


@pytest.fixture(scope="session")
def digits_int8_bundle(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of recipes/digits for `rpi4b`, one thread; read-only by agreement."""
    return digits_for(tmp_path_factory, "rpi4b")


def digits_for(tmp_path_factory: pytest.TempPathFactory, target: str) -> Path:
    """The bundle of recipes/digits for one of the targets, one thread; read-only by agreement."""
    from edgekit.cache import Cache
    from edgekit.pipeline import build
    from edgekit.recipe import load_recipe
    from edgekit.target import load_target

    def make(folder: Path) -> None:
        recipe = load_recipe(str(ROOT / "recipes/digits/recipe.yaml"))
        # What the bundles of digits have in common is built once.
        cache = Cache(folder.parent / "digits-cache")
        build(recipe, load_target(target, {"threads": 1}), folder, cache=cache)

    return once(tmp_path_factory, f"built-digits-{target}", make)
