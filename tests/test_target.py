from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import RecipeError
from edgekit.runtime.tensorrt_api import RTX, find
from edgekit.runtime.tensorrt_build import capabilities
from edgekit.target import Target, load_target, target_names
from edgekit.wheels import pins

TARGET = "engine: onnxruntime\nprecision: fp32\nthreads: 2\nopset: 20\n"


def refused(name: object, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        load_target(str(name), overrides)
    return str(caught.value)


def test_every_shipped_target_loads_under_its_own_name() -> None:
    assert "host" in target_names()
    assert target_names() == sorted(target_names())
    for name in target_names():
        assert load_target(name).name == name


def test_an_unknown_target_suggests_the_nearest() -> None:
    text = refused("hots")
    assert "unknown target 'hots'; did you mean 'host'?" in text
    assert ".yaml" in text


def test_a_target_like_none_gets_the_list() -> None:
    assert f"unknown target 'zzzz'; known are {', '.join(target_names())}" in refused("zzzz")


@pytest.mark.parametrize("name", ["../targets/host", "host.json", ""])
def test_a_path_needs_its_suffix(name: str) -> None:
    assert f"unknown target {name!r}" in refused(name)


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_target_may_be_a_file_of_the_users(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine.{suffix}"
    path.write_text(TARGET)
    assert load_target(str(path)) == Target(
        name="mine", engine="onnxruntime", precision="fp32", threads=2, opset=20
    )


def test_a_file_may_name_its_target(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"name: other\n{TARGET}")
    assert load_target(str(tmp_path / "mine.yaml")).name == "other"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert refused(path).startswith(f"{path}: cannot be read: No such file")


def test_values_may_be_set() -> None:
    assert load_target("host", {"threads": 4}).threads == 4
    assert load_target("host").threads == 1


def test_a_range_of_pythons_covers_the_oldest_and_the_newest() -> None:
    assert load_target("rpi4b").requires_python == ">=3.10,<3.14"
    assert load_target("rpi4b", {"python": ["3.13"]}).requires_python == ">=3.13,<3.14"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"thread": 4}, "unknown key 'thread'; did you mean 'threads'?"),
        ({"threads": 0}, "threads: "),
        ({"threads": 1025}, "threads: "),
        ({"threads": "many"}, "threads: "),
        ({"threads": None}, "threads: "),
        ({"opset": 17}, "opset: "),
        ({"opset": 24}, "opset: "),
        ({"precision": "int4"}, "precision: "),
        ({"engine": "abacus"}, "engine: "),
        ({"python": [3.1]}, "python: '3.1' is no version such as \"3.13\", in quotes"),
        ({"python": []}, "python: "),
        ({"threads.most": 4}, "--set threads.most"),
    ],
)
def test_a_value_that_does_not_fit_is_named(overrides: dict[str, Any], named: str) -> None:
    assert named in refused("host", overrides)


def test_a_missing_key_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TARGET.replace("threads: 2\n", ""))
    text = refused(tmp_path / "mine.yaml")
    assert "mine" in text
    assert "key 'threads' is missing" in text


GPU = """\
engine: tensorrt
precision: fp16
threads: 1
opset: 20
gpu: {compute_capability: "8.7", tensorrt: ">=10.3,<11"}
"""


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("jetson-xavier", ("JetPack 5", "TensorRT 8.5", "Python 3.8")),
        ("jetson-agx-xavier", ("JetPack 5", "TensorRT 8.5", "Python 3.8")),
        ("jetson-xavier-nx", ("JetPack 5", "TensorRT 8.5", "Python 3.8")),
        ("jetson-nano", ("JetPack 4.6", "TensorRT 8.2", "Python 3.6")),
        ("jetson-tx2", ("JetPack 4.6", "TensorRT 8.2", "Python 3.6")),
    ],
)
def test_a_board_that_cannot_be_served_gets_the_reason_and_the_way_out(
    name: str, last: tuple[str, ...]
) -> None:
    text = refused(name)
    assert text.startswith(f"target {name}: Jetson ")
    assert all(one in text for one in last)
    assert "engine: onnxruntime" in text and "--target jetson" in text
    assert name not in target_names()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"8.7"', '"sm87"', "no compute capability such as"),
        ('">=10.3,<11"', '"10.3"', "no range of versions such as"),
        ('">=10.3,<11"', '">=8.5"', "takes in TensorRT before 10"),
        ("fp16", "int8-dynamic", "has no int8-dynamic"),
        ("gpu:", "pins: nope\ngpu:", "'nope' is no list of packages; there are cuda12"),
        ("engine: tensorrt", "engine: onnxruntime", "no other engine takes it"),
        ("gpu:", "board: any  # gpu:", "engine: tensorrt needs gpu"),
    ],
)
def test_a_gpu_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(GPU)
    assert load_target(str(tmp_path / "mine.yaml")).gpu is not None
    (tmp_path / "mine.yaml").write_text(GPU.replace(old, new, 1))
    assert words in refused(tmp_path / "mine.yaml")


def test_every_gpu_target_has_a_proof_and_what_it_installs() -> None:
    for name in target_names():
        target = load_target(name)
        assert pins(target.pins or target.engine)
        if target.gpu is not None:
            assert target.gpu.proof_capability in capabilities(find((RTX,)))
            assert target.ir_version and target.memory_bytes and target.machine
