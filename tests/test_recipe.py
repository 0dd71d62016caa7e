import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import manifest
from edgekit.bundle.manifest import Policy
from edgekit.errors import RecipeError
from edgekit.recipe import Recipe, check_files, load_recipe
from edgekit.shipped import shipped


def refused(recipe: Path, overrides: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe), overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_recipe_means_what_it_says(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe))
    assert recipe.exits == ("first", "second", "last")
    assert recipe.thresholds == (0.30, 0.29)
    assert recipe.folder == tiny_recipe.parent
    assert recipe.manifest_inputs({"input": "x"})[0] == manifest.Input(
        "x", "float32", (1, 8, 8), manifest.Image("L", None, None, 1 / 255, (0.5,), (0.25,))
    )


def test_an_input_without_an_image_has_none_in_the_manifest(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), {"input.image": None})
    assert recipe.manifest_inputs({"input": "x"})[0].image is None


def test_the_folder_gives_the_name_where_the_recipe_does_not(tiny_recipe: Path) -> None:
    tiny_recipe.write_text(tiny_recipe.read_text().replace("name: tiny\n", ""))
    renamed = tiny_recipe.parent.rename(tiny_recipe.parent.with_name("mine-2.0"))
    assert load_recipe(str(renamed / "recipe.yaml")).name == "mine-2.0"


@pytest.mark.parametrize("path", ["digits", "recipes/digits/recipe.yaml"])
def test_a_shipped_recipe_is_found_from_anywhere(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert recipe.name == "digits"
    assert recipe.folder == shipped("recipes") / "digits"


def test_a_file_of_the_users_goes_before_a_shipped_one(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_recipe.parent)
    (tiny_recipe.parent / "digits").write_text(tiny_recipe.read_text())
    assert load_recipe("digits").name == "tiny"


def test_a_relative_path_gives_an_absolute_folder(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_recipe.parent)
    assert load_recipe("recipe.yaml").folder == tiny_recipe.parent
    assert load_recipe(str(tiny_recipe.parent)).folder == tiny_recipe.parent


@pytest.mark.parametrize("path", ["no/such/recipe.yaml", "digit", ""])
def test_a_recipe_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe {path}: there is no such file"):
        load_recipe(path)


def test_every_shipped_recipe_loads() -> None:
    paths = sorted(shipped("recipes").glob("*/*.yaml"))
    assert paths
    for path in paths:
        assert load_recipe(str(path)).exits


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"exit": []}, "unknown key 'exit'; did you mean 'exits'?"),
        (
            {"policy.threshold": 1},
            "unknown key 'policy.threshold'; did you mean 'thresholds'?",
        ),
        ({"input.image.meen": [0]}, "unknown key 'input.image.meen'; did you mean 'mean'?"),
        ({"data.tuning.factry": "x"}, "unknown key 'data.tuning.factry'; did you mean 'factory'?"),
        ({"data.train.npz": "x"}, "unknown key 'data.train'; "),
        ({"check.tolerance": 1}, "unknown key 'check.tolerance'; "),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(
    tiny_recipe: Path, overrides: dict[str, Any], named: str
) -> None:
    text = refused(tiny_recipe, overrides)
    assert text.startswith(f"{tiny_recipe}: ")
    assert named in text


def test_several_unknown_keys_are_all_named(tiny_recipe: Path) -> None:
    text = refused(tiny_recipe, {"exit": [], "input.shap": [1], "model.arg": {}})
    for named in ("'exit'", "'input.shap'; did you mean 'shape'?", "'model.arg'; did you mean"):
        assert named in text


def test_values_may_be_set_at_any_depth(tiny_recipe: Path) -> None:
    recipe = load_recipe(
        str(tiny_recipe),
        {"policy.thresholds.first": 0.9, "model.args.seed": 7, "input.image.resize": [8, 8]},
    )
    assert recipe.thresholds == (0.9, 0.29)
    assert recipe.model.args == {"seed": 7}
    assert recipe.input.image is not None
    assert recipe.input.image.resize == (8, 8)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"exits": "first"}, "exits: "),
        ({"exits": []}, "exits: "),
        ({"exits": [[1], 2, 3]}, "exits.0: "),
        ({"labels": [[0], 1]}, "labels.0: "),
        ({"model": "tiny.py:tiny"}, "model: "),
        ({"model.factory": None}, "model.factory: "),
        ({"input.shape": []}, "input.shape: "),
        ({"input.shape": 8}, "input.shape: "),
        ({"input.shape": [1] * 8}, "input.shape: "),
        ({"input.dtype": "float64"}, "input.dtype: "),
        ({"input.image.mode": "BGR"}, "input.image.mode: "),
        ({"input.image.crop": 8}, "input.image.crop: "),
        ({"policy.criterion": "maxprob"}, "policy.criterion: "),
        ({"policy.thresholds": "high"}, "policy.thresholds"),
        ({"policy.thresholds": float("nan")}, "policy.thresholds"),
        ({"policy.thresholds.first": float("inf")}, "policy.thresholds"),
        ({"golden_samples": 0}, "golden_samples: "),
        ({"golden_samples": 257}, "golden_samples: "),
        ({"test_samples": -1}, "test_samples: "),
        ({"check.samples": 0}, "check.samples: "),
        ({"check.max_relative_error": 0}, "check.max_relative_error: "),
        ({"check.min_exit_agreement": 1.1}, "check.min_exit_agreement: "),
        ({"name": None}, "name: "),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    tiny_recipe: Path, overrides: dict[str, Any], named: str
) -> None:
    assert named in refused(tiny_recipe, overrides)


@pytest.mark.parametrize("key", ["resize", "crop"])
@pytest.mark.parametrize("size", [0, -8])
def test_an_image_cannot_be_scaled_or_cut_to_nothing(
    tiny_recipe: Path, key: str, size: int
) -> None:
    assert f"input.image.{key}" in refused(tiny_recipe, {f"input.image.{key}": [8, size]})
    if key == "resize":
        assert "input.image.resize" in refused(tiny_recipe, {"input.image.resize": size})


@pytest.mark.parametrize("size", [0, -8])
def test_a_shape_holds_sizes(tiny_recipe: Path, size: int) -> None:
    assert "input.shape" in refused(tiny_recipe, {"input.shape": [1, 8, size]})


@pytest.mark.parametrize("key", ["model", "exits"])
def test_a_missing_key_is_named(tiny_recipe: Path, key: str) -> None:
    kept = [line for line in tiny_recipe.read_text().splitlines() if not line.startswith(key)]
    tiny_recipe.write_text("\n".join(kept))
    assert f"key {key!r} is missing" in refused(tiny_recipe, {})


def test_one_threshold_serves_all_early_exits(tiny_recipe: Path) -> None:
    assert load_recipe(str(tiny_recipe), {"policy.thresholds": 0.5}).thresholds == (0.5, 0.5)


def test_thresholds_come_in_the_order_of_the_exits(tiny_recipe: Path) -> None:
    thresholds = {"second": 0.2, "first": 0.1}
    assert load_recipe(str(tiny_recipe), {"policy.thresholds": thresholds}).thresholds == (0.1, 0.2)


def test_a_misspelt_exit_in_the_thresholds_is_refused_with_the_right_one(tiny_recipe: Path) -> None:
    text = refused(tiny_recipe, {"policy.thresholds": {"frist": 0.5, "second": 0.5}})
    assert "policy.thresholds: 'frist' is no early exit; did you mean 'first'?" in text


def test_a_threshold_for_the_final_exit_is_refused(tiny_recipe: Path) -> None:
    text = refused(tiny_recipe, {"policy.thresholds.last": 0.5})
    assert "'last' is no early exit; " in text


def test_tuning_without_a_tuning_split_is_refused_before_anything_runs(tiny_recipe: Path) -> None:
    tuned = {"policy": {"tune": {"max_accuracy_drop": 0.01}}}
    assert load_recipe(str(tiny_recipe), tuned).thresholds is None
    text = refused(tiny_recipe, {**tuned, "data.tuning": None})
    assert "policy.tune: there is no data.tuning to fit thresholds to" in text
    assert "policy.thresholds" in text


@pytest.mark.parametrize(
    ("thresholds", "missing"),
    [({"first": 0.5}, "second"), ({}, "first, second"), ({"second": 0.5}, "first")],
)
def test_an_exit_without_a_threshold_is_named(
    tiny_recipe: Path, thresholds: dict[str, float], missing: str
) -> None:
    text = refused(tiny_recipe, {"policy.thresholds": thresholds})
    assert re.search(rf"policy\.thresholds: none for {missing}$", text)


def test_a_network_of_one_exit_needs_no_threshold(tiny_recipe: Path) -> None:
    overrides = {"exits": ["only"], "policy.thresholds": {}}
    assert load_recipe(str(tiny_recipe), overrides).thresholds == ()


def test_two_exits_of_one_name_are_refused(tiny_recipe: Path) -> None:
    text = refused(tiny_recipe, {"exits": ["first", "second", "first"]})
    assert "exits: two exits have the same name" in text


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b", "é", "x" * 65, "a\n"])
@pytest.mark.parametrize("key", ["exits", "name"])
def test_a_name_that_is_no_file_name_is_refused(tiny_recipe: Path, key: str, name: str) -> None:
    value = ["first", "second", name] if key == "exits" else name
    assert f"{key}: {name!r} is no name" in refused(tiny_recipe, {key: value})


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"input.shape": [3, 8, 8]}, "mode L needs shape [1, h, w]"),
        ({"input.shape": [8, 8]}, "mode L needs shape [1, h, w]"),
        ({"input.image.mode": "RGB"}, "mode RGB needs shape [3, h, w]"),
        ({"input.image.mean": [0, 0, 0]}, "image.mean and image.std need 1 numbers each"),
        ({"input.image.std": []}, "image.mean and image.std need 1 numbers each"),
        ({"input.image.std": [0]}, "image.std holds a zero"),
    ],
)
def test_an_image_that_cannot_fill_the_input_is_refused(
    tiny_recipe: Path, overrides: dict[str, Any], named: str
) -> None:
    text = refused(tiny_recipe, overrides)
    assert "input: " in text
    assert named in text


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"factory": "a:b", "npz": "c"}, "name exactly one of factory, npz and folder"),
        ({"npz": "a", "folder": "b"}, "name exactly one of factory, npz and folder"),
        ({}, "name exactly one of factory, npz and folder"),
        ({"npz": "a", "args": {"seed": 1}}, "args belong to a factory"),
    ],
)
def test_a_split_comes_from_exactly_one_source(
    tiny_recipe: Path, source: dict[str, Any], named: str
) -> None:
    assert f"data.test: {named}" in refused(tiny_recipe, {"data.test": source})


def test_numbers_may_be_names(tiny_recipe: Path) -> None:
    recipe = load_recipe(str(tiny_recipe), {"labels": [0, 1, 2, 3]})
    assert recipe.labels == ("0", "1", "2", "3")


def test_an_exit_is_a_name_or_says_where_it_is(tiny_recipe: Path) -> None:
    head = {"at": "b", "kind": "pool_linear", "untrained": True}
    written = [
        "first",
        {"name": "second", "module": "heads.1", "call": 0},
        {"name": "third", "head": head},
        {"name": "last", "output": 2},
    ]
    overrides = {"exits": written, "policy.thresholds": 0.5}
    recipe = load_recipe(str(tiny_recipe), overrides)
    assert recipe.exits == ("first", "second", "third", "last")
    assert [place.hooked for place in recipe.places] == [None, "heads.1", "b", None]
    assert recipe.places[3].output == "2"


def test_a_recipe_comes_back_from_what_it_writes(tiny_recipe: Path) -> None:
    head = {"at": "b", "kind": "pool_linear", "checkpoint": "head.pt", "prefix": "x."}
    overrides = {"exits": ["first", "second", {"name": "last", "head": head}]}
    recipe = load_recipe(str(tiny_recipe), overrides)
    written = recipe.model_dump(mode="json")
    assert written["exits"][0] == "first"
    assert written["exits"][2]["head"]["prefix"] == "x."
    assert Recipe.model_validate(written).places == recipe.places


@pytest.mark.parametrize(
    "tune", [{"certificate": {"risk": 0.01}}, {"exit_rates": {"first": 0.5, "second": 0.1}}]
)
def test_a_goal_comes_back_from_what_it_writes(tiny_recipe: Path, tune: dict[str, Any]) -> None:
    recipe = load_recipe(str(tiny_recipe), {"policy.thresholds": None, "policy.tune": tune})
    written = recipe.model_dump(mode="json")
    assert Recipe.model_validate(written).policy == recipe.policy


@pytest.mark.parametrize(
    ("exit", "named"),
    [
        ({"nam": "first"}, "unknown key 'exits.0.nam'; did you mean 'name'?"),
        ({"name": "first", "head": {"att": "a"}}, "'exits.0.head.att'; did you mean 'at'?"),
        ({"module": "heads.0"}, "key 'exits.0.name' is missing"),
        (
            {"name": "first", "module": "a", "head": {"at": "a", "factory": "a:b"}},
            "module and head",
        ),
        ({"name": "first", "output": "0", "call": 1}, "call belongs to a module or a head"),
        ({"name": "first", "module": "a", "call": -1}, "exits.0.call: "),
    ],
)
def test_a_place_that_is_none_is_refused(tiny_recipe: Path, exit: Any, named: str) -> None:
    assert named in refused(tiny_recipe, {"exits": [exit, "second", "last"]})


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"model.setup": "prepare.py:prepare"}, "model.setup: "),
        (
            {
                "exits": [
                    "first",
                    "second",
                    {"name": "last", "head": {"at": "a", "factory": "h.py:H"}},
                ]
            },
            "exits.2.head.factory: ",
        ),
        (
            {
                "exits": [
                    "first",
                    "second",
                    {
                        "name": "last",
                        "head": {"at": "a", "kind": "pool_linear", "checkpoint": "h.pt"},
                    },
                ]
            },
            "exits.2.head.checkpoint: ",
        ),
    ],
)
def test_a_file_of_an_exits_that_is_not_there_is_named(
    tiny_recipe: Path, overrides: dict[str, Any], named: str
) -> None:
    recipe = load_recipe(str(tiny_recipe), overrides)
    with pytest.raises(RecipeError, match=named):
        check_files(recipe)


def test_a_policy_becomes_the_manifests_in_the_order_of_the_exits(tiny_recipe: Path) -> None:
    weights = {"last": 3, "first": 1, "second": 2}
    overrides = {"policy.combine": "sum", "policy.weights": weights}
    recipe = load_recipe(str(tiny_recipe), {**overrides, "policy.otherwise": "max_confidence"})
    expected = Policy("max_prob", (0.5, 0.5), "sum", (1.0, 2.0, 3.0), "max_confidence")
    assert recipe.manifest_policy((0.5, 0.5)) == expected
    plain = load_recipe(str(tiny_recipe)).manifest_policy((0.3, 0.29))
    assert plain == Policy("max_prob", (0.3, 0.29))


def test_temperatures_without_a_split_to_fit_them_to_are_refused(tiny_recipe: Path) -> None:
    overrides = {"policy.temperature": True, "data.tuning": None}
    with pytest.raises(RecipeError, match=r"policy\.temperature: there is no data\.tuning"):
        load_recipe(str(tiny_recipe), overrides)
    assert load_recipe(str(tiny_recipe), {"policy.temperature": True}).policy.temperature


TUNED = {"thresholds": None, "tune": {"max_accuracy_drop": 0.1}}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"criterion": "patience", **TUNED}, "no confidence to tune; give policy.thresholds"),
        ({"criterion": "patience"}, "patience is a whole number of exits, 1 or more; found 0.3"),
        ({"criterion": "patience", "thresholds": 1.5}, "whole number of exits"),
        ({"criterion": "patience", "thresholds": 0}, "whole number of exits"),
        (
            {"criterion": "patience", "thresholds": 1, "temperature": True},
            "temperature makes probabilities what they are worth, and patience counts classes",
        ),
        ({"criterion": "given", "temperature": True}, "and given is no probability"),
        ({"combine": "mean"}, "policy.combine"),
        ({"otherwise": "first"}, "policy.otherwise"),
        ({"weights": {"first": 1, "second": 1, "last": 1}}, "weights need combine: sum or"),
        ({"combine": "sum", "weights": {"first": 1}}, "policy.weights: none for second, last"),
        ({"combine": "sum", "weights": {}}, "policy.weights: none for first, second, last"),
        (
            {"combine": "sum", "weights": {"frist": 1, "second": 1, "last": 1}},
            "policy.weights: 'frist' is no exit; did you mean 'first'?",
        ),
        (
            {"combine": "sum", "weights": {"first": 0, "second": 1, "last": 1}},
            "policy.weights.first: ",
        ),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(
    tiny_recipe: Path, policy: dict[str, Any], words: str
) -> None:
    overrides = {f"policy.{key}": value for key, value in policy.items()}
    assert words in refused(tiny_recipe, overrides)


def test_patience_takes_whole_numbers(tiny_recipe: Path) -> None:
    overrides = {"policy.criterion": "patience", "policy.thresholds": 2}
    assert load_recipe(str(tiny_recipe), overrides).thresholds == (2.0, 2.0)


EACH = {"set": {"attribute": "width_mult"}, "each": {"w0.25": 0.25, "w1.0": 1.0}}


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"each": {}}, "variants.each"),
        ({"each": {"../up": 1}}, r"'\.\./up' is no name"),
        ({"each": {"W1": 1, "w1": 2}}, "differ in case alone"),
        ({"each": {"x" * 60: 1}}, "tiny-x+ is longer than 64"),
        ({"set": None}, "nothing makes w0.25 another network"),
        ({"set": {"attribute": "a", "method": "b"}}, "exactly one of attribute, method and call"),
        ({"overrides": {"w9": {"input.shape": [1]}}}, "'w9' is no variant; they are w0.25, w1.0"),
        ({"policy": {"kind": "fixed", "variant": "w9"}}, "no variant 'w9'"),
        ({"policy": {"kind": "cascade"}}, "needs thresholds, agree"),
        ({"policy": {"kind": "cascade", "thresholds": [0.5, 0.5]}}, "needs 1 thresholds, found 2"),
        ({"policy": {"kind": "latency_budget"}}, "budget_ms"),
        ({"recalibrate": {"when": "missing"}}, "no data.calibration to take statistics from"),
        ({"recalibrate": {"when": "sometimes"}}, "recalibrate.when"),
    ],
)
def test_variants_that_make_no_ladder_are_refused(
    tiny_recipe: Path, variants: dict[str, Any], words: str
) -> None:
    assert re.search(words, refused(tiny_recipe, {"variants": {**EACH, **variants}}))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.setting": {"value": 0.25}}, "neither set nor setup says where it goes"),
        ({"model.setting": {}, "variants": EACH}, "leave one out"),
    ],
)
def test_a_setting_that_says_too_little_or_too_much_is_refused(
    tiny_recipe: Path, overrides: dict[str, Any], words: str
) -> None:
    assert words in refused(tiny_recipe, overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"name": "other"}, "variants.overrides.w0.25: name is of the whole ladder"),
        ({"model.setting.recalibrate.when": "always"}, "recalibrate.when is of the whole ladder"),
        ({"policy.treshold": 1}, "variants.overrides.w0.25: unknown key 'policy.treshold'"),
    ],
)
def test_an_override_that_fits_no_recipe_is_named_with_its_variant(
    tiny_recipe: Path, override: dict[str, Any], words: str
) -> None:
    recipe = load_recipe(str(tiny_recipe), {"variants": {**EACH, "overrides": {"w0.25": override}}})
    with pytest.raises(RecipeError, match=re.escape(words)):
        recipe.variant("w0.25")


def test_a_file_that_a_variant_names_must_be_there(tiny_recipe: Path) -> None:
    for key, value in (("set", {"call": "gone.py:f"}), ("setup", "gone.py:f")):
        recipe = load_recipe(str(tiny_recipe), {"variants": EACH, f"variants.{key}": value})
        with pytest.raises(RecipeError, match=rf"variants\.{key}.*gone\.py: there is no such file"):
            check_files(recipe)


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _FLOATS | st.text("abc", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=6,
)


@given(value=_VALUES, other=_VALUES)
def test_a_value_comes_out_as_it_went_in_whatever_it_is(value: Any, other: Any) -> None:
    base = load_recipe("digits").model_dump(mode="json")
    variants = {"set": {"method": "tell"}, "each": {"a": value, "b": other}}
    recipe = Recipe.model_validate({**base, "variants": variants})
    for name, one in (("a", value), ("b", other)):
        made = recipe.variant(name)
        assert made.model.setting is not None
        # repr tells 1 from 1.0 and True, and floats to the last bit.
        assert repr(made.model.setting.value) == repr(one)
        again = Recipe.model_validate(made.model_dump(mode="json"))
        assert again == made
        assert made.name == f"digits-{name}"
        assert made.variants is None
