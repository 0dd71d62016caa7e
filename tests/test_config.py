from pathlib import Path
from typing import Any

import pytest

from edgekit.config import Strict, apply_overrides, parse, read_yaml, split_overrides
from edgekit.errors import RecipeError


class Leaf(Strict):
    colour: str = "green"
    weight: float = 1.0


class Branch(Strict):
    leaf: Leaf = Leaf()
    other: Leaf | None = None
    twigs: tuple[int, ...] = ()


class Tree(Strict):
    name: str
    branch: Branch = Branch()
    height: int = 3


def problem(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(Tree, values, "tree.yaml")
    assert str(caught.value).startswith("tree.yaml: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "x", "heigth": 1}, "unknown key 'heigth'; did you mean 'height'?"),
        (
            {"name": "x", "branch": {"leafs": {}}},
            "unknown key 'branch.leafs'; did you mean 'leaf'?",
        ),
        (
            {"name": "x", "branch": {"leaf": {"color": "red"}}},
            "unknown key 'branch.leaf.color'; did you mean 'colour'?",
        ),
        (
            {"name": "x", "branch": {"other": {"wieght": 2}}},
            "unknown key 'branch.other.wieght'; did you mean 'weight'?",
        ),
        ({"name": "x", "zzz": 1}, "unknown key 'zzz'; known are branch, height, name"),
        (
            {"name": "x", "branch": {"zzz": 1}},
            "unknown key 'branch.zzz'; known are leaf, other, twigs",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    values: dict[str, Any], named: str
) -> None:
    assert named in problem(values)


def test_every_problem_is_named_at_once() -> None:
    text = problem({"heigth": 1, "name": "x", "branch": {"twig": [], "leaf": {"weight": "heavy"}}})
    assert "'heigth'; did you mean 'height'?" in text
    assert "'branch.twig'; did you mean 'twigs'?" in text
    assert "branch.leaf.weight: " in text
    assert "\n" not in text


def test_of_many_problems_the_first_three_are_named_and_the_rest_counted() -> None:
    text = problem({"a": 1, "b": 2, "c": 3, "d": 4})
    assert text.count(";") >= 3
    assert text.endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": None}, "name: "),
        ({"name": [3]}, "name: "),
        ({"name": "x", "height": "tall"}, "height: "),
        ({"name": "x", "height": 1.5}, "height: "),
        ({"name": "x", "branch": 3}, "branch: "),
        ({"name": "x", "branch": {"twigs": ["a"]}}, "branch.twigs.0: "),
        ({"name": "x", "branch": {"leaf": {"weight": float("nan")}}}, "branch.leaf.weight: "),
        ({"name": "x", "branch": {"leaf": {"weight": float("inf")}}}, "branch.leaf.weight: "),
    ],
)
def test_a_value_of_the_wrong_type_is_named(values: dict[str, Any], named: str) -> None:
    assert named in problem(values)


def test_what_was_read_cannot_be_changed() -> None:
    tree = parse(Tree, {"name": "x"}, "tree.yaml")
    with pytest.raises(ValueError, match="frozen"):
        tree.height = 4


def test_a_mapping_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1\nb: [é, null]\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1, "b": ["é", None]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "found nothing"),
        (b"# only a comment\n", "found nothing"),
        (b"- a\n- b\n", "found a list"),
        (b"just words\n", "found a str"),
        (b"7\n", "found a int"),
        (b"a: 1\nb: [1, 2\nc: 3\n", "line 3: "),
        (b"a: 1\n\tb: 2\n", "line 2: "),
        (b"a: b: c\n", "line 1: "),
        (b"a: !!python/object/apply:os.getcwd []\n", "line 1: "),
        (b"a: \xff\xfe\n", "not UTF-8"),
        (b"a: \x00\n", "x.yaml: "),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused(
    tmp_path: Path, content: bytes, named: str
) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}: ")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"), [("none.yaml", "No such file"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read: {reason}")


def test_a_value_that_is_set_means_what_it_means_in_a_file() -> None:
    recipe, target = split_overrides(
        [
            *("a=0.9", "b.c=[1, 2]", "d=null", "e=", "f=x=y", "g={h: true}", "i= text "),
            *("target.threads=4", "target.a.b=c", "targets=1"),
        ]
    )
    assert recipe == {
        **{"a": 0.9, "b.c": [1, 2], "d": None, "e": None, "f": "x=y", "g": {"h": True}},
        **{"i": "text", "targets": 1},
    }
    assert target == {"threads": 4, "a.b": "c"}


def test_the_last_of_two_settings_counts() -> None:
    assert split_overrides(["a=1", "a=2"]) == ({"a": 2}, {})


@pytest.mark.parametrize("setting", ["threads", "", "=4", "a.b"])
def test_a_setting_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError) as caught:
        split_overrides(["a=1", setting])
    assert str(caught.value) == f"--set {setting}: expected key.path=value"


def test_a_setting_whose_value_is_no_yaml_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--set a=\[1: the value is not valid YAML"):
        split_overrides(["a=[1"])


def test_overrides_replace_and_add_and_leave_the_rest() -> None:
    values = {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": 4, "n": None}
    before = {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": 4, "n": None}
    found = apply_overrides(values, {"a.b.c": 10, "f": 40, "new.deep.key": 5, "n.x": 6, "a.e": {}})
    assert found == {
        "a": {"b": {"c": 10, "d": 2}, "e": {}},
        "f": 40,
        "n": {"x": 6},
        "new": {"deep": {"key": 5}},
    }
    assert values == before


@pytest.mark.parametrize("value", [3, "text", [1, 2], 0, ""])
def test_a_setting_below_a_plain_value_is_refused(value: object) -> None:
    with pytest.raises(RecipeError, match=r"--set a\.b\.c: 'b' holds a value, not further keys"):
        apply_overrides({"a": {"b": value}}, {"a.b.c": 1})


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nbranch:\n  leaf: 1\n  leaf: 2\n")
    with pytest.raises(RecipeError, match=r"twice\.yaml: line 4: key 'leaf' stands twice"):
        read_yaml(path)
