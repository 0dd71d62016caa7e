import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from edgekit.bundle.manifest import Image, Input
from edgekit.data import Split, check_disjoint, ends_of, load_splits
from edgekit.errors import ModelError, RecipeError
from edgekit.models.load import user_code
from edgekit.recipe import load_recipe

Array = npt.NDArray[Any]

GREY = (Input("x", "float32", (1, 8, 8), Image("L", None, None, 1.0, (0.0,), (1.0,))),)
PLAIN = (Input("x", "float32", (2,), None),)


def noise(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def numbered(count: int) -> Split:
    """A split whose samples and labels say their own place."""
    raw = [np.full(2, index, np.float32) for index in range(count)]
    return Split("test", raw, np.arange(count))


GIVEN_POLICY = {
    "criterion": "given",
    "thresholds": 0.5,
    "confidence": {"factory": "tiny.py:Sure"},
}


def load(recipe: Path, **data: Any) -> dict[str, Split]:
    """The recipe's splits, with these sources and the recipe's labels as `labels`."""
    overrides = {"labels": data.pop("labels", ["north", "east", "south", "west"])}
    if "policy" in data:
        overrides["policy"] = data.pop("policy")
    sources = {"calibration": None, "tuning": None, "test": None, **data}
    found = load_recipe(str(recipe), {**overrides, "data": sources})
    with user_code(found.folder):
        splits = load_splits(found)
        check_disjoint(splits, found.manifest_inputs({}))
        return splits


def refused(recipe: Path, *named: str, **data: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe, **data)
    for words in named:
        assert words in str(caught.value)


def write_npz(recipe: Path, name: str = "x.npz", **arrays: Any) -> dict[str, Any]:
    np.savez(recipe.parent / name, **arrays)
    return {"npz": name}


def write_folder(recipe: Path, name: str, images: dict[str, Array]) -> dict[str, Any]:
    for path, pixels in images.items():
        full = recipe.parent / name / path
        full.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(pixels).save(full)
    return {"folder": name}


def write_factory(recipe: Path, body: str) -> dict[str, Any]:
    code = f"import numpy as np\ndef make(**arguments):\n    return {body}\n"
    (recipe.parent / "theirs.py").write_text(code)
    return {"factory": "theirs.py:make"}


def test_a_factory_gives_samples_and_labels(tiny_recipe: Path) -> None:
    splits = load(tiny_recipe, tuning={"factory": "tiny.py:samples", "args": {"seed": 1}})
    assert list(splits) == ["tuning"]
    split = splits["tuning"]
    assert len(split) == 24
    np.testing.assert_array_equal(split.sample(3), noise(1, 24)[3])
    assert split.labels is not None
    assert split.labels.dtype == np.int64


@pytest.mark.parametrize(
    "body",
    [
        "np.zeros((3, 8, 8), np.uint8)",
        "[np.zeros((8, 8), np.uint8)] * 2",
        "(np.zeros((3, 8, 8), np.uint8), None)",
    ],
)
def test_a_factory_may_give_samples_alone(tiny_recipe: Path, body: str) -> None:
    split = load(tiny_recipe, test=write_factory(tiny_recipe, body))["test"]
    assert split.labels is None
    assert len(split) in {2, 3}


def test_a_factory_that_fails_is_the_users_error(tiny_recipe: Path) -> None:
    with pytest.raises(ModelError, match=r"theirs\.py:make failed: ZeroDivisionError"):
        load(tiny_recipe, test=write_factory(tiny_recipe, "1 / 0"))


@pytest.mark.parametrize("body", ["None", "7", "[[1.0, 2.0], [3.0, 4.0]]", "['a', 'b']"])
def test_a_factory_that_gives_no_samples_is_refused(tiny_recipe: Path, body: str) -> None:
    refused(tiny_recipe, "data.test", test=write_factory(tiny_recipe, body))


def test_an_npz_gives_samples_and_labels(tiny_recipe: Path) -> None:
    source = write_npz(tiny_recipe, inputs=noise(0, 3), labels=np.array([3, 0, 1], np.uint8))
    split = load(tiny_recipe, test=source)["test"]
    np.testing.assert_array_equal(split.sample(2), noise(0, 3)[2])
    assert split.labels is not None
    assert (split.labels.tolist(), split.labels.dtype) == ([3, 0, 1], np.int64)


def test_an_npz_may_have_no_labels(tiny_recipe: Path) -> None:
    source = write_npz(tiny_recipe, inputs=noise(0, 3))
    assert load(tiny_recipe, test=source)["test"].labels is None


def test_a_folder_gives_images_and_the_place_of_their_label(tiny_recipe: Path) -> None:
    pixels = noise(0, 5)
    source = write_folder(
        tiny_recipe,
        "images",
        {
            "west/b.png": pixels[0],
            "west/a.PNG": pixels[1],
            "east/deeper/c.bmp": pixels[2],
            "north/d.png": pixels[3],
        },
    )
    (tiny_recipe.parent / "images/east/notes.txt").write_text("no image")
    split = load(tiny_recipe, test=source)["test"]
    found = [split.sample(index) for index in range(len(split))]
    # By label's name, then by file; `labels` says north, east, south, west.
    np.testing.assert_array_equal(found, pixels[[2, 3, 1, 0]])
    assert split.labels is not None
    assert split.labels.tolist() == [1, 0, 3, 3]


def test_without_labels_a_folder_of_a_number_is_never_another_class(tiny_recipe: Path) -> None:
    # Labels that are left out are numbers, and "10" comes before "2" in the alphabet.
    pixels = noise(0, 11)
    images = {f"{number}/x.png": pixels[number] for number in range(11)}
    source = write_folder(tiny_recipe, "images", images)
    try:
        split = load(tiny_recipe, test=source, labels=None)["test"]
    except RecipeError as error:
        assert "labels" in str(error)
        return
    assert split.labels is not None
    for index, label in enumerate(split.labels):
        np.testing.assert_array_equal(split.sample(index), pixels[label])


def test_where_exits_tell_no_classes_a_folder_is_its_images(tiny_recipe: Path) -> None:
    pixels = noise(0, 2)
    source = write_folder(tiny_recipe, "images", {"b.png": pixels[1], "a/x.png": pixels[0]})
    split = load(tiny_recipe, test=source, labels=[], policy=GIVEN_POLICY)["test"]
    np.testing.assert_array_equal([split.sample(0), split.sample(1)], pixels)
    assert split.labels is None


def test_without_labels_a_class_is_never_another_one_in_the_next_split(tiny_recipe: Path) -> None:
    pixels = noise(0, 3)
    tuning = write_folder(tiny_recipe, "one", {"cat/x.png": pixels[0], "dog/x.png": pixels[1]})
    test = write_folder(tiny_recipe, "two", {"dog/x.png": pixels[2]})
    try:
        splits = load(tiny_recipe, tuning=tuning, test=test, labels=None)
    except RecipeError as error:
        assert "labels" in str(error)
        return
    assert splits["test"].labels is not None
    assert splits["test"].labels.tolist() == [1]


@pytest.mark.parametrize("source", [{"npz": "none.npz"}, {"folder": "none"}])
def test_a_missing_file_is_named_with_its_split(tiny_recipe: Path, source: dict[str, Any]) -> None:
    refused(tiny_recipe, "data.test", str(tiny_recipe.parent / "none"), test=source)


def test_a_missing_factory_is_named(tiny_recipe: Path) -> None:
    refused(tiny_recipe, "none.py: there is no such file", test={"factory": "none.py:make"})
    refused(tiny_recipe, "has no function 'none'", test={"factory": "tiny.py:none"})


def test_an_npz_without_inputs_is_refused(tiny_recipe: Path) -> None:
    source = write_npz(tiny_recipe, images=noise(0, 3))
    refused(tiny_recipe, "data.test", "x.npz: has no array `inputs`", test=source)


def test_a_file_in_a_folder_that_is_no_image_is_refused(tiny_recipe: Path) -> None:
    source = write_folder(tiny_recipe, "images", {"east/a.png": noise(0, 1)[0]})
    (tiny_recipe.parent / "images/east/b.png").write_text("no image")
    refused(tiny_recipe, "b.png: is no image", test=source)


def test_a_folder_of_a_label_that_the_recipe_lacks_is_refused(tiny_recipe: Path) -> None:
    source = write_folder(tiny_recipe, "images", {"up/a.png": noise(0, 1)[0]})
    refused(tiny_recipe, "data.test", "images", "'up' is none of the recipe's labels", test=source)


@pytest.mark.parametrize("make", ["npz", "folder", "factory"])
def test_a_split_without_a_sample_is_refused(tiny_recipe: Path, make: str) -> None:
    if make == "npz":
        source = write_npz(tiny_recipe, inputs=noise(0, 0))
    elif make == "folder":
        (tiny_recipe.parent / "images/east").mkdir(parents=True)
        source = {"folder": "images"}
    else:
        source = write_factory(tiny_recipe, "([], [])")
    refused(tiny_recipe, "data.test: holds no sample", test=source)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([0, 1], "int64 [2]"),
        ([0, 1, 2, 3], "int64 [4]"),
        ([[0], [1], [2]], "int64 [3, 1]"),
        ([0.0, 1.0, 2.0], "float64 [3]"),
        ([True, False, True], "bool [3]"),
        (["north", "east", "west"], "<U5 [3]"),
    ],
)
def test_labels_that_are_not_one_whole_number_per_sample_are_refused(
    tiny_recipe: Path, labels: list[Any], named: str
) -> None:
    source = write_npz(tiny_recipe, inputs=noise(0, 3), labels=np.array(labels))
    refused(tiny_recipe, "data.test: 3 samples need", f"found {named}", test=source)


@pytest.mark.parametrize(("labels", "named"), [([0, 1, 4], "0 to 4"), ([-1, 2, 3], "-1 to 3")])
def test_labels_beyond_the_recipes_classes_are_refused(
    tiny_recipe: Path, labels: list[int], named: str
) -> None:
    source = write_npz(tiny_recipe, inputs=noise(0, 3), labels=labels)
    refused(tiny_recipe, f"labels run from {named}", "4 classes", test=source)


def test_a_recipe_without_data_is_refused(tiny_recipe: Path) -> None:
    refused(tiny_recipe, "data: no split is named", "tuning and test")


def test_a_sample_in_two_splits_is_refused_naming_both_places(tiny_recipe: Path) -> None:
    ours, theirs = noise(0, 5), noise(1, 5)
    theirs[4] = ours[2]
    refused(
        tiny_recipe,
        "sample 4 of test is also sample 2 of tuning",
        tuning=write_npz(tiny_recipe, "a.npz", inputs=ours),
        test=write_npz(tiny_recipe, "b.npz", inputs=theirs),
    )


def test_an_image_file_and_an_array_of_its_pixels_are_the_same_sample(tiny_recipe: Path) -> None:
    refused(
        tiny_recipe,
        "sample 0 of test is also sample 1 of calibration",
        calibration=write_npz(tiny_recipe, inputs=noise(0, 2)),
        test=write_folder(tiny_recipe, "images", {"east/a.png": noise(0, 2)[1]}),
    )


def split(name: str, raw: Sequence[Array]) -> dict[str, Split]:
    return {name: Split(name, raw, None)}


def test_a_sample_may_stand_twice_in_one_split() -> None:
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    check_disjoint({**split("tuning", [ones] * 2), **split("test", [zeros])}, PLAIN)


def test_pixels_and_the_tensor_that_they_become_are_the_same_sample() -> None:
    pixels = noise(0, 1)[0]
    tensor = pixels[None].astype(np.float32)
    with pytest.raises(RecipeError, match="sample 0 of test is also sample 0 of tuning"):
        check_disjoint({**split("tuning", [pixels]), **split("test", [tensor])}, GREY)


def test_a_sample_that_is_not_contiguous_is_still_the_same_sample() -> None:
    square = noise(0, 1)[0]
    twin = np.asfortranarray(square)
    with pytest.raises(RecipeError, match="sample 0 of test is also sample 0 of tuning"):
        check_disjoint({**split("tuning", [square]), **split("test", [twin])}, GREY)


@settings(deadline=None, max_examples=100)
@given(count=st.integers(1, 200), most=st.integers(1, 250))
def test_a_subset_is_evenly_spaced(count: int, most: int) -> None:
    subset = numbered(count).subset(most)
    assert subset.labels is not None
    rows = subset.labels.tolist()
    assert len(rows) == len(subset) == min(count, most)
    assert [int(one[0]) for one in subset.raw] == rows
    assert rows[0] == 0
    if most >= count:
        assert rows == list(range(count))
    elif most > 1:
        assert rows[-1] == count - 1
        steps = set(np.diff(rows).tolist())
        assert max(steps) - min(steps) <= 1


def test_a_subset_of_a_split_without_labels_has_none() -> None:
    assert Split("test", [np.zeros(2, np.float32)] * 9, None).subset(3).labels is None


@settings(deadline=None, max_examples=100)
@given(
    count=st.integers(1, 50),
    most=st.none() | st.integers(0, 60),
    size=st.integers(1, 60),
)
def test_batches_hold_every_sample_in_order(count: int, most: int | None, size: int) -> None:
    batches = list(numbered(count).batches(PLAIN, most=most, size=size))
    expected = list(range(count))[:most]
    assert [int(row[0]) for batch in batches for row in batch] == expected
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)


ANY = (Input("x", "float32", ((2, 5, 1), 3, (4, 8, 2)), None),)


@given(lengths=st.lists(st.integers(2, 5), min_size=1, max_size=12), size=st.integers(1, 4))
def test_a_batch_has_one_shape_and_no_sample_changes_its_place(
    lengths: list[int], size: int
) -> None:
    raw = [np.full((one, 3, 4), row, np.float32) for row, one in enumerate(lengths)]
    batches = [np.asarray(one) for one in Split("test", raw, None).batches(ANY, size=size)]
    assert [float(one[0, 0, 0]) for batch in batches for one in batch] == list(range(len(raw)))
    assert [len(one) for batch in batches for one in batch] == lengths
    assert max(map(len, batches)) <= size
    for before, after in itertools.pairwise(batches):
        assert len(before) == size or before.shape[1:] != after.shape[1:]


def test_the_ends_of_every_range_are_tried_and_each_by_itself() -> None:
    raw = [np.arange(3 * 3 * 6, dtype=np.float32).reshape(3, 3, 6) + row for row in range(2)]
    ends = ends_of(Split("tuning", raw, None), ANY)
    assert ends is not None
    found = [np.asarray(one) for one in ends.batches(ANY)]
    assert [one.shape for one in found] == [
        (2, 2, 3, 4),
        (2, 5, 3, 4),
        (2, 2, 3, 8),
        (2, 5, 3, 8),
        (2, 4, 3, 6),
    ]
    for batch in found:
        for one, source in zip(batch, raw, strict=True):
            np.testing.assert_array_equal(one[:2, :, :4], source[:2, :, :4])
            # Repeated, and never made up.
            assert set(one.ravel()) <= set(source.ravel())
    assert ends_of(Split("tuning", raw, None), (Input("x", "float32", (3, 3, 6), None),)) is None


def test_a_sample_that_does_not_fit_is_named_with_its_split() -> None:
    wrong = Split("tuning", [np.zeros(2, np.float32), np.zeros(3, np.float32)], None)
    with pytest.raises(RecipeError) as caught:
        list(wrong.batches(PLAIN))
    assert "data.tuning, sample 1: " in str(caught.value)
    assert "float32 [3]" in str(caught.value)


def test_pixels_travel_as_pixels_and_tensors_as_tensors() -> None:
    pixels = Split("test", list(noise(0, 3)), None).carried(GREY)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 8, 8, 1))
    np.testing.assert_array_equal(pixels[..., 0], noise(0, 3))
    tensors = numbered(3).carried(PLAIN)
    assert (tensors.dtype, tensors.shape) == (np.float32, (3, 2))


def test_prepared_tensors_of_an_image_travel_as_they_are() -> None:
    raw = [np.zeros((1, 8, 8), np.float32)] * 2
    assert Split("test", raw, None).carried(GREY).dtype == np.float32
