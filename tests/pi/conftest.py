"""An emulated Raspberry Pi, and what the bundles of digits come to on it."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.reader import read_bundle
from edgekit.runtime.bench import load_test_data
from tests.conftest import ROOT, Ended, digits_for, once
from tests.pi.counting import Counts, count
from tests.pi.emulated import NotHere, Pi, edgekit_of, emulated_pi

TARGETS = {"onnxruntime": "rpi4b", "litert": "rpi4b-litert"}
"""What is built for a Raspberry Pi 4B, by engine."""

SAMPLES = sorted((ROOT / "recipes/digits/samples").glob("*.png"))

COMMANDS = """
import json, sys
from edgekit.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["edgekit", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""In one process: to start the command takes longer here than all that is asked of it."""

Commands = dict[str, list[str]]
"""The arguments of `edgekit` but `--json`, by its command."""


def demanded(make: Callable[[], Any]) -> Any:
    """What `make` makes; where this machine cannot have it a skip, and in CI a failure."""
    try:
        return make()
    except NotHere as error:
        # Whoever relies on the suite must not be told that all is well.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no emulated Pi: {error}")


@dataclass(frozen=True)
class OnPi:
    """A bundle on the Pi. `path` is the folder of its own edgekit."""

    pi: Pi
    bundle: Path
    path: Path

    def documents(self, commands: Commands, home: Path) -> dict[str, dict[str, Any]]:
        """What the commands say as JSON, by their names."""
        lines = [
            [name, *arguments, "--json", str(home / f"{name}.json")]
            for name, arguments in commands.items()
        ]
        ended = self.pi.run("-c", COMMANDS, json.dumps(lines), path=self.path, home=home)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return {name: json.loads((home / f"{name}.json").read_text()) for name in commands}


def on_pi(engine: str, bundle: Callable[[], Path], tmp_path_factory) -> OnPi:
    """A bundle, built once there is a Pi to run it."""
    pi = demanded(lambda: emulated_pi("rpi4b", engine))
    found = bundle()
    return OnPi(pi, found, edgekit_of(found, tmp_path_factory.mktemp("edgekit")))


def on_host(cli: Callable[..., Ended], commands: Commands, folder: Path) -> dict[str, Any]:
    """What the same commands say here."""
    for name, arguments in commands.items():
        ended = cli(name, *arguments, "--json", folder / f"{name}.json")
        assert ended.code == 0, ended.err
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in commands}


@pytest.fixture(scope="session", params=list(TARGETS))
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def digits(engine: str, tmp_path_factory: pytest.TempPathFactory) -> OnPi:
    """The bundle of recipes/digits, and a Pi to run it."""
    build = lambda: digits_for(tmp_path_factory, TARGETS[engine])  # noqa: E731
    return on_pi(engine, build, tmp_path_factory)


@pytest.fixture(scope="session")
def resnet18(engine: str, tmp_path_factory: pytest.TempPathFactory) -> OnPi:
    """The bundle of benchmarks/resnet18, and a Pi to run it: for tests that may take minutes."""

    def make(folder: Path) -> None:
        from edgekit.pipeline import build
        from edgekit.recipe import load_recipe
        from edgekit.target import load_target

        recipe = load_recipe(str(ROOT / "benchmarks/resnet18/recipe.yaml"))
        build(recipe, load_target(TARGETS[engine], {"threads": 1}), folder)

    name = f"built-resnet18-{TARGETS[engine]}"
    return on_pi(engine, lambda: once(tmp_path_factory, name, make), tmp_path_factory)


@pytest.fixture(scope="session")
def commands(engine: str, digits: OnPi, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """What is asked of digits: all golden samples, all pictures, and a bench of every 90th."""
    carried = load_test_data(read_bundle(digits.bundle))
    assert carried is not None
    inputs, labels = carried
    data = tmp_path_factory.mktemp("samples") / "few.npz"
    np.savez(data, inputs=inputs[::90], labels=labels[::90])
    bundle = str(digits.bundle)
    return {
        "verify": [bundle],
        "run": [bundle, *map(str, SAMPLES)],
        "bench": [bundle, "--rounds", "1", "--data", str(data)],
    }


@pytest.fixture(scope="session")
def counts(engine: str, digits: OnPi, tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """The instructions of digits, counted once for all tests."""

    def make(folder: Path) -> None:
        found = demanded(lambda: count(digits.pi, digits.bundle, digits.path, runs=5))
        folder.mkdir()
        (folder / "counts.json").write_text(json.dumps(asdict(found)))

    folder = once(tmp_path_factory, f"counts-{engine}", make)
    return Counts(**json.loads((folder / "counts.json").read_text()))
