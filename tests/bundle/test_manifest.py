import copy
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle import manifest as m
from edgekit.bundle.manifest import (
    DEPLOYED,
    MANIFEST_NAME,
    canonical_json,
    check_path,
    identify,
    parse_manifest,
)
from edgekit.errors import BundleError
from edgekit.limits import LIMITS

Document = dict[str, Any]


def segment(name: str, inputs: list[str], outputs: list[str], exits: Document) -> Document:
    return {
        "path": f"segments/{name}.onnx",
        "size_bytes": 10,
        "sha256": "0" * 64,
        "name": name,
        "inputs": inputs,
        "outputs": outputs,
        "exits": [
            {"name": exit, "logits": tensor, "confidence": None} for exit, tensor in exits.items()
        ],
        "parameters": 5,
        "macs": 7,
    }


def file(path: str) -> Document:
    return {"path": path, "size_bytes": 3, "sha256": "1" * 64}


def tensor(*shape: int) -> Document:
    return {"dtype": "float32", "shape": [None, *shape]}


# Two exits whose order of depth is not that of the alphabet; the first boundary is `features`.
DOCUMENT: Document = {
    "format_version": 1,
    "bundle_id": "",
    "name": "small",
    "target": {
        "name": "host",
        "engine": "onnxruntime",
        "precision": "fp32",
        "threads": 1,
        "machine": None,
        "board": "Raspberry Pi 4",
        "gpu": None,
    },
    "inputs": [
        {
            "name": "input",
            "tensor": "x",
            "dtype": "float32",
            "shape": [1, 4, 4],
            "range": None,
            "image": {
                "mode": "L",
                "resize": [4, 4],
                "crop": None,
                "scale": 0.5,
                "mean": [0.25],
                "std": [2.0],
            },
        }
    ],
    "labels": ["yes", "no"],
    "policy": {
        "criterion": "max_prob",
        "thresholds": [0.75],
        "combine": "last",
        "weights": None,
        "otherwise": "last",
        "temperatures": [1.5, 0.5],
    },
    "tuning": {
        "samples": 6,
        "right_by": "label",
        "unit": "MACs",
        "costs": [3.0, 10.0],
        "points": [
            {
                "thresholds": [0.75],
                "right": 5,
                "cost": 5.5,
                "left": [
                    {"edges": [0.8, 0.9], "counts": [1, 2, 1]},
                    {"edges": [], "counts": [2]},
                ],
            }
        ],
        "chosen": 0,
        "certificate": {"risk": 0.01, "confidence": 0.9, "of": "disagreement"},
        "drift": {"window": 1000, "p_value": 0.001, "safe": False},
        "reference_right": 6,
        "held_out": True,
        "seen": "tuning/seen.npz",
    },
    "variants": [
        {
            "name": "default",
            "exits": ["zulu", "alpha"],
            "tensors": {
                "x": tensor(1, 4, 4),
                "features": tensor(8),
                "early": tensor(2),
                "late": tensor(2),
            },
            "segments": [
                segment("one", ["x"], ["features", "early"], {"zulu": "early"}),
                segment("two", ["features"], ["late"], {"alpha": "late"}),
            ],
        }
    ],
    "baselines": [
        {
            "variant": "default",
            "plain": segment("plain", ["x"], ["late"], {"alpha": "late"}),
            "whole": segment("whole", ["x"], ["early", "late"], {"zulu": "early", "alpha": "late"}),
        }
    ],
    "requirements": {"python": ">=3.10", "packages": ["numpy>=1.26"]},
    "golden": {
        "samples": [
            {
                "inputs": {"input": "golden/0.npy"},
                "exit": "zulu",
                "class_index": 1,
                "confidence": 0.875,
            }
        ],
        "logits": {"zulu": "golden/zulu.npy", "alpha": "golden/alpha.npy"},
        "confidences": {},
        "max_relative_error": 0.001,
    },
    "test_data": {"inputs": {"input": "test/inputs.npy"}, "labels": None, "samples": 1},
    "files": [
        file("golden/0.npy"),
        file("golden/zulu.npy"),
        file("golden/alpha.npy"),
        file("test/inputs.npy"),
        file("tuning/seen.npz"),
    ],
    "tools": {"edgekit": "0.1.0"},
    "recipe": {"name": "small"},
}


def sealed(change: Callable[[Document], object] = lambda document: None) -> bytes:
    """The document's bytes after a change, identified and sealed again as an attacker would."""
    document = copy.deepcopy(DOCUMENT)
    change(document)
    if document.keys() >= set(DEPLOYED):
        document["bundle_id"] = identify(document)
    return m.seal(document)


def refused(change: Callable[[Document], object], *named: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse_manifest(sealed(change))
    for words in named:
        assert words in str(caught.value)


def test_the_document_means_what_it_says() -> None:
    manifest = parse_manifest(sealed())
    variant = manifest.variant()
    assert manifest.policy == m.Policy("max_prob", (0.75,), temperatures=(1.5, 0.5))
    assert manifest.inputs[0].image == m.Image("L", (4, 4), None, 0.5, (0.25,), (2.0,))
    assert variant.tensors["features"] == m.TensorSpec("float32", (None, 8))
    assert variant.tensors["features"].bytes_per_sample == 32
    assert [one.name for one in variant.segments] == ["one", "two"]
    assert variant.segments[0].exits == (m.Exit("zulu", "early"),)
    assert manifest.test_data == m.TestData({"input": "test/inputs.npy"}, None, 1)
    assert len(manifest.all_files()) == 2 + 2 + 5


def test_a_manifest_of_a_real_build_survives_reading_and_writing(built_tiny: Path) -> None:
    raw = (built_tiny / MANIFEST_NAME).read_bytes()
    assert m.seal(dataclasses.asdict(parse_manifest(raw))) == raw


def test_exits_keep_their_order_when_it_is_not_the_alphabets() -> None:
    manifest = parse_manifest(sealed())
    assert manifest.variant().exits == ("zulu", "alpha")
    assert [exit.name for exit in manifest.baselines[0].whole.exits] == ["zulu", "alpha"]


RAW = sealed()


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, len(RAW) - 1), flip=st.integers(1, 255))
def test_a_flipped_byte_is_refused(position: int, flip: int) -> None:
    changed = bytearray(RAW)
    changed[position] ^= flip
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        parse_manifest(bytes(changed))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(RAW) - 1))
def test_a_truncated_manifest_is_refused(length: int) -> None:
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        parse_manifest(RAW[:length])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_manifest_are_refused(raw: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        parse_manifest(raw)


@pytest.mark.parametrize(
    "raw",
    [RAW[:-1], RAW + b"\n", b" " + RAW, json.dumps(json.loads(RAW)).encode()],
    ids=["no newline", "two newlines", "a space", "other indent"],
)
def test_the_same_document_in_other_bytes_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError, match="was changed"):
        parse_manifest(raw)


def test_a_document_without_a_seal_is_refused() -> None:
    document = json.loads(RAW)
    del document["seal"]
    with pytest.raises(BundleError, match="was changed"):
        parse_manifest(canonical_json(document))


def test_a_manifest_over_the_limit_is_refused() -> None:
    with pytest.raises(BundleError, match=f"limit {LIMITS.manifest_bytes}"):
        parse_manifest(b" " * (LIMITS.manifest_bytes + 1))


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True])
def test_another_format_version_is_refused(version: object) -> None:
    refused(lambda document: document.update(format_version=version), "format", repr(version))


def test_a_missing_format_version_is_refused() -> None:
    refused(lambda document: document.pop("format_version"), "format version None")


@pytest.mark.parametrize("key", DEPLOYED)
def test_each_deployed_key_changes_the_bundle_id(key: str) -> None:
    changed = copy.deepcopy(DOCUMENT)
    changed[key] = [changed[key], "changed"]
    assert identify(changed) != identify(DOCUMENT)


@pytest.mark.parametrize("key", sorted(set(DOCUMENT) - set(DEPLOYED)))
def test_what_is_not_deployed_leaves_the_bundle_id_alone(key: str) -> None:
    changed = copy.deepcopy(DOCUMENT)
    changed[key] = [changed[key], "changed"]
    assert identify(changed) == identify(DOCUMENT)


def test_everything_is_either_deployed_or_known_not_to_be() -> None:
    beside = {"bundle_id", "name", "baselines", "golden", "test_data", "files", "tools", "recipe"}
    fields = {field.name for field in dataclasses.fields(m.Manifest)}
    assert fields == set(DOCUMENT) == beside | set(DEPLOYED)


def test_a_deployed_value_changed_under_a_fresh_seal_is_refused() -> None:
    document = json.loads(sealed())
    document.pop("seal")
    document["policy"]["thresholds"] = [0.5]
    with pytest.raises(BundleError, match="bundle_id does not match"):
        parse_manifest(m.seal(document))


def test_a_bundle_id_that_is_no_hash_of_it_is_refused() -> None:
    document = json.loads(sealed())
    document.pop("seal")
    document["bundle_id"] = "0" * 64
    with pytest.raises(BundleError, match="bundle_id does not match"):
        parse_manifest(m.seal(document))


PLACES: dict[str, Callable[[Document], Document]] = {
    "": lambda document: document,
    "target": lambda document: document["target"],
    "input": lambda document: document["inputs"][0],
    "image": lambda document: document["inputs"][0]["image"],
    "policy": lambda document: document["policy"],
    "variants": lambda document: document["variants"][0],
    "segments": lambda document: document["variants"][0]["segments"][0],
    "exits": lambda document: document["variants"][0]["segments"][0]["exits"][0],
    "tensors": lambda document: document["variants"][0]["tensors"]["x"],
    "golden": lambda document: document["golden"],
    "files": lambda document: document["files"][0],
}


@pytest.mark.parametrize("place", PLACES)
def test_an_unknown_key_is_refused_and_named(place: str) -> None:
    # An image may be null, so its error can only say that neither form fits.
    named = place if place == "image" else "surprise"
    refused(lambda document: PLACES[place](document).update(surprise=1), place, named)


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_key_is_refused_and_named(place: str) -> None:
    key = sorted(PLACES[place](DOCUMENT).keys() - set(DEPLOYED))[0]
    named = place if place == "image" else key
    refused(lambda document: PLACES[place](document).pop(key), place, named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(name=3), "name: 3"),
        (lambda d: d.update(labels="yes"), "labels: 'yes'"),
        (lambda d: d.update(labels=[1, 2]), "labels: 1"),
        (lambda d: d.update(tools={"edgekit": None}), "tools.edgekit: None"),
        (lambda d: d.update(recipe=[]), "recipe: []"),
        (lambda d: d.update(golden=None), "golden"),
        (lambda d: d["target"].update(threads="1"), "threads: '1'"),
        (lambda d: d["target"].update(threads=1.0), "threads: 1.0"),
        (lambda d: d["target"].update(threads=True), "threads: True"),
        (lambda d: d["policy"].update(weights=["1"]), "weights: "),
        (lambda d: d["policy"].update(weights=1), "weights: "),
        (lambda d: d["policy"].update(combine=None), "combine: None"),
        (lambda d: d["policy"].pop("otherwise"), "missing keys: otherwise"),
        (lambda d: d["policy"].update(thresholds=[True]), "thresholds: True"),
        (lambda d: d["policy"].update(thresholds=["0.5"]), "thresholds: '0.5'"),
        (lambda d: d["policy"].update(thresholds=[None]), "thresholds: None"),
        (lambda d: d["inputs"][0]["image"].update(resize=[4, 4, 4]), "image"),
        (lambda d: d["inputs"][0].update(image=[]), "image: []"),
        (lambda d: d["variants"][0].update(tensors=[]), "tensors: []"),
        (lambda d: d["variants"][0]["tensors"]["x"].update(shape=[None, "1"]), "shape"),
        (lambda d: d["files"][0].update(size_bytes=None), "size_bytes: None"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    change: Callable[[Document], None], named: str
) -> None:
    refused(change, named)


def test_a_whole_number_may_stand_for_a_float() -> None:
    manifest = parse_manifest(sealed(lambda document: document["tuning"].update(costs=[3, 10])))
    assert manifest.tuning is not None
    assert type(manifest.tuning.costs[0]) is float


def test_a_number_too_large_for_a_float_is_refused() -> None:
    refused(lambda document: document["policy"].update(thresholds=[10**400]), "thresholds")


def test_nan_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        sealed(lambda document: document["policy"].update(thresholds=[float("nan")]))


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_a_number_that_json_does_not_have_is_refused(number: bytes) -> None:
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        parse_manifest(RAW.replace(b"0.75", number))


def nested(depth: int) -> bytes:
    """A document with lists in lists, in canonical form."""
    opening = b"".join(b"[\n" + b" " * (level + 2) for level in range(depth))
    closing = b"".join(b"\n" + b" " * (level + 1) + b"]" for level in reversed(range(depth)))
    return b'{\n "a": ' + opening + b"0" + closing + b"\n}\n"


def test_the_nested_document_of_these_tests_is_canonical() -> None:
    assert canonical_json(json.loads(nested(3))) == nested(3)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000], ids=["lists", "objects"])
def test_a_hundred_thousand_brackets_are_refused(raw: bytes) -> None:
    with pytest.raises(BundleError, match="not valid JSON"):
        parse_manifest(raw)


@pytest.fixture
def shallow_stack() -> Iterator[None]:
    """Room for about 80 calls: less than a document may be nested deep, so this is met first."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 80)
    yield
    sys.setrecursionlimit(usual)


@pytest.mark.usefixtures("shallow_stack")
def test_no_depth_of_nesting_escapes_as_a_recursion_error() -> None:
    # At some depth the first look succeeds and the next, a call deeper, would not.
    refusals = set()
    for depth in range(1, 250):
        with pytest.raises(BundleError) as caught:
            parse_manifest(nested(depth))
        refusals.add(str(caught.value))
    assert any("not valid JSON" in one for one in refusals), "the limit of the stack was not met"
    assert len(refusals) > 1


BAD_PATHS = [
    "../x",
    "a/../../b",
    "a/..",
    "..",
    "/etc/x",
    "//etc/x",
    "a\\b",
    "..\\x",
    "C:x",
    "",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a" * (LIMITS.path_chars + 1),
    "a\0b",
    "a\nb",
    "a*b",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_is_not_plainly_inside_the_bundle_is_refused(path: str) -> None:
    with pytest.raises(BundleError) as caught:
        check_path(path)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("path", ["a", "a/b.onnx", ".hidden", "a b/c", "..a", "a" * 200, "é"])
def test_a_plain_path_is_taken(path: str) -> None:
    check_path(path)


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("a./\\~ \0"), max_size=12))
def test_a_path_that_is_taken_stays_inside(path: str) -> None:
    try:
        check_path(path)
    except BundleError:
        return
    root = Path("/bundle")
    inside = Path(root, path)
    assert root in inside.parents
    assert ".." not in inside.parts
    assert inside.relative_to(root).as_posix() == path


@pytest.mark.parametrize(
    "place",
    [
        lambda document: document["files"][0],
        lambda document: document["variants"][0]["segments"][1],
        lambda document: document["baselines"][0]["plain"],
    ],
    ids=["file", "segment", "baseline"],
)
def test_a_listed_file_outside_the_bundle_is_refused(
    place: Callable[[Document], Document],
) -> None:
    refused(lambda document: place(document).update(path="../x"), "'../x'")


@pytest.mark.parametrize(
    "path",
    ["golden/zulu.npy", "GOLDEN/Zulu.npy", "segments/one.onnx", "manifest.json", "evidence.json"],
)
def test_a_file_listed_twice_is_refused(path: str) -> None:
    refused(lambda document: document["files"].append(file(path)), repr(path), "twice")


def test_a_file_that_a_case_blind_disk_takes_for_the_manifest_is_refused() -> None:
    refused(lambda document: document["files"].append(file("Manifest.json")), "'Manifest.json'")


@pytest.mark.parametrize("size_bytes", [-1, LIMITS.file_bytes + 1])
def test_a_file_of_impossible_size_is_refused(size_bytes: int) -> None:
    refused(lambda d: d["files"][0].update(size_bytes=size_bytes), "golden/0.npy", str(size_bytes))


def test_a_segment_over_its_limit_is_refused() -> None:
    too_large = LIMITS.segment_bytes + 1
    refused(
        lambda d: d["variants"][0]["segments"][0].update(size_bytes=too_large),
        "segments/one.onnx",
        str(LIMITS.segment_bytes),
    )


def test_too_many_files_are_refused() -> None:
    many = [file(f"many/{number}") for number in range(LIMITS.bundle_files)]
    refused(lambda document: document["files"].extend(many), f"limit {LIMITS.bundle_files}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda d: d["golden"]["samples"][0].update(inputs={"input": "golden/9.npy"}),
            "golden/9.npy",
        ),
        (lambda d: d["golden"]["logits"].update(zulu="golden/z.npy"), "golden/z.npy"),
        (lambda d: d["test_data"].update(inputs={"input": "test/x.npy"}), "test/x.npy"),
        (lambda d: d["test_data"].update(labels="test/y.npy"), "test/y.npy"),
    ],
)
def test_a_file_that_is_used_but_not_listed_is_refused(
    change: Callable[[Document], None], named: str
) -> None:
    refused(change, named, "not listed")


@pytest.mark.parametrize(
    "change",
    [
        lambda tuning: tuning.update(chosen=1),
        lambda tuning: tuning.update(chosen=-1),
        lambda tuning: tuning.update(points=[]),
        lambda tuning: tuning.update(costs=[1.0]),
        lambda tuning: tuning.update(samples=7),
        lambda tuning: tuning["points"][0].update(thresholds=[0.5]),
        lambda tuning: tuning["points"].append(tuning["points"][0]),
        lambda tuning: tuning["points"][0]["left"].pop(),
        lambda tuning: tuning["points"][0]["left"][0].update(edges=[0.9, 0.8]),
        lambda tuning: tuning["points"][0]["left"][0].update(counts=[1, 3]),
        lambda tuning: tuning["points"][0]["left"][0].update(counts=[-1, 4, 1]),
        lambda tuning: tuning["drift"].update(window=0),
        lambda tuning: tuning["drift"].update(p_value=1.0),
    ],
)
def test_a_front_that_is_not_of_this_policy_is_refused(
    change: Callable[[Document], object],
) -> None:
    refused(lambda document: change(document["tuning"]), "tuning", "rebuild it")


def test_temperatures_that_scale_nothing_are_refused() -> None:
    def given(temperatures: list[float]) -> Callable[[Document], object]:
        return lambda document: document["policy"].update(temperatures=temperatures)

    refused(given([1.0]), "2 exits need 2 temperatures")
    refused(given([1.0, 0.0]), "above 0")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.update(mode="CMYK"),
        lambda image: image.update(mode="RGB"),
        lambda image: image.update(mean=[0.0, 0.0]),
        lambda image: image.update(std=[0.0]),
        lambda image: image.update(std=[]),
    ],
    ids=["mode", "channels", "means", "zero std", "no std"],
)
def test_an_image_that_cannot_fill_the_input_is_refused(
    change: Callable[[Document], None],
) -> None:
    refused(lambda document: change(document["inputs"][0]["image"]), "cannot fill", "[1, 4, 4]")


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(dtype="int64", image=None),
        lambda one: one.update(range=[0, 9]),
        lambda one: one.update(dtype="int64", image=None, range=[9, 0]),
        lambda one: one.update(dtype="uint8", image=None, range=[0, 9]),
    ],
)
def test_an_input_of_integers_without_a_range_is_refused(
    change: Callable[[Document], None],
) -> None:
    refused(lambda document: change(document["inputs"][0]), "an input of", "with the range")


def test_two_inputs_of_one_name_are_refused() -> None:
    refused(lambda d: d["inputs"].append(d["inputs"][0]), "two of one name")
    refused(lambda d: d.update(inputs=[]), "has no inputs")


@pytest.mark.parametrize("paths", [{}, {"image": "golden/0.npy"}])
def test_a_sample_of_other_inputs_is_refused(paths: Document) -> None:
    refused(lambda d: d["golden"]["samples"][0].update(inputs=paths), "a sample has other inputs")
    refused(lambda d: d["test_data"].update(inputs=paths), "a sample has other inputs")


def variant(change: Callable[[Document], object]) -> Callable[[Document], object]:
    return lambda document: change(document["variants"][0])


@pytest.mark.parametrize("size", [0, -4, None])
def test_a_tensor_with_an_impossible_size_is_refused(size: int | None) -> None:
    refused(variant(lambda v: v["tensors"]["features"].update(shape=[None, size])), "features")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v["tensors"]["features"].update(dtype="float64"), "'features' is float64"),
        (lambda v: v["tensors"]["features"].update(shape=[]), "'features'"),
        (lambda v: v["tensors"]["features"].update(shape=[1, 8]), "'features'"),
        (lambda v: v["tensors"]["features"].update(shape=[None, *[1] * 8]), "'features'"),
        (lambda v: v["tensors"].pop("x"), "'x'"),
        (lambda v: v["tensors"]["x"].update(shape=[None, 3, 4, 4]), "'x'"),
        (lambda v: v["tensors"].pop("features"), "'features'"),
        (lambda v: v["segments"][0]["inputs"].append("features"), "one reads 'features' before"),
        (lambda v: v["segments"][1]["inputs"].append("late"), "two reads 'late' before"),
        (lambda v: v["segments"].reverse(), "two reads 'features' before"),
        (lambda v: v["segments"][0]["exits"][0].update(logits="late"), "one has no tensor 'late'"),
        (lambda v: v["segments"].pop(), "does not end in 'alpha'"),
        (lambda v: v.update(segments=[]), "does not end in 'alpha'"),
        (lambda v: v["exits"].reverse(), "does not end in 'zulu'"),
        (
            lambda v: v["segments"][0]["exits"][0].update(name="yankee"),
            "one exit each: zulu, alpha",
        ),
    ],
)
def test_a_contract_that_does_not_chain_is_refused(
    change: Callable[[Document], object], named: str
) -> None:
    refused(variant(change), "variant 'default'", named)


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5]])
def test_a_number_of_thresholds_that_does_not_fit_is_refused(thresholds: list[float]) -> None:
    refused(
        lambda document: document["policy"].update(thresholds=thresholds),
        "need 1 thresholds",
        f"found {len(thresholds)}",
    )


def test_a_segment_of_the_chain_without_an_exit_is_refused() -> None:
    # The chain looks at one exit after each segment.
    def change(document: Document) -> None:
        first, second = document["variants"][0]["segments"]
        second["outputs"].append("early")
        second["exits"] = [*first["exits"], *second["exits"]]
        first["outputs"], first["exits"] = ["features"], []

    refused(change, "one")


def test_two_exits_in_a_segment_of_the_chain_are_refused() -> None:
    # The chain would hold the second exit against the first one's threshold.
    def change(document: Document) -> None:
        one = document["variants"][0]
        whole = segment("one", ["x"], ["early", "late"], {"zulu": "early", "alpha": "late"})
        one["segments"] = [whole]

    refused(change, "one")


def test_a_number_of_labels_that_is_not_that_of_the_classes_is_refused() -> None:
    refused(lambda document: document.update(labels=["yes"]), "labels")


def test_a_baseline_of_another_end_is_refused() -> None:
    refused(
        lambda d: d["baselines"][0]["plain"].update(
            exits=[{"name": "beta", "logits": "late", "confidence": None}]
        ),
        "does not end in 'alpha'",
    )


def test_a_bundle_without_a_variant_is_refused() -> None:
    refused(lambda document: document.update(variants=[]), "no variant")


def test_an_unknown_variant_is_refused_and_the_known_are_named() -> None:
    manifest = parse_manifest(sealed())
    assert manifest.variant("default") is manifest.variant()
    with pytest.raises(BundleError, match="no variant 'wide'; it has default"):
        manifest.variant("wide")


def with_confidences(document: Document) -> None:
    """The document's exits give maps, and a confidence each."""
    document["labels"] = []
    document["policy"].update(criterion="given", temperatures=None)
    (variant,), (baselines,) = document["variants"], document["baselines"]
    variant["tensors"] |= {"early": tensor(2, 4), "late": tensor(3, 8)}
    variant["tensors"] |= {"sure": tensor(), "certain": tensor()}
    confidences = {"zulu": "sure", "alpha": "certain"}
    for one in (*variant["segments"], baselines["plain"], baselines["whole"]):
        for exit in one["exits"]:
            exit["confidence"] = confidences[exit["name"]]
            one["outputs"].append(exit["confidence"])
    golden = document["golden"]
    golden["confidences"] = {"zulu": "golden/zulu.npy", "alpha": "golden/alpha.npy"}
    for sample in golden["samples"]:
        sample["class_index"] = None


def test_exits_may_give_maps_and_their_confidence() -> None:
    manifest = parse_manifest(sealed(with_confidences))
    assert manifest.labels == ()
    assert [part.exits[0].confidence for part in manifest.variant().segments] == ["sure", "certain"]

    def a_gate_less(document: Document) -> None:
        with_confidences(document)
        for part in (document["variants"][0]["segments"][1], document["baselines"][0]["plain"]):
            part["exits"][0]["confidence"] = None
        document["baselines"][0]["whole"]["exits"][1]["confidence"] = None
        del document["golden"]["confidences"]["alpha"]
        document["golden"]["samples"][0]["confidence"] = None

    assert parse_manifest(sealed(a_gate_less)).variant().segments[1].exits[0].confidence is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["policy"].update(criterion="max_prob"), "that the policy does not look at"),
        (lambda d: d["policy"].update(combine="sum"), "a given confidence is of its exit alone"),
        (
            lambda d: d["variants"][0]["tensors"].update(sure=tensor(1)),
            "the confidence of 'zulu' is float32 [None, 1], and one number per sample is wanted",
        ),
        (
            lambda d: d["variants"][0]["tensors"]["sure"].update(dtype="float16"),
            "the confidence of 'zulu' is float16 [None]",
        ),
        (lambda d: d["variants"][0]["segments"][0]["outputs"].remove("sure"), "has no tensor"),
        (lambda d: d["golden"]["confidences"].pop("zulu"), "golden confidences are not of its"),
        (lambda d: d.update(labels=["yes", "no"]), "and there are 2 labels"),
    ],
)
def test_a_confidence_that_does_not_fit_is_refused(
    change: Callable[[Document], Any], words: str
) -> None:
    def changed(document: Document) -> None:
        with_confidences(document)
        change(document)

    refused(changed, words)


def test_given_without_a_confidence_is_refused() -> None:
    refused(
        lambda d: d["policy"].update(criterion="given", temperatures=None),
        "criterion 'given' needs the confidence of zulu",
    )


def test_classes_that_nobody_tells_are_refused() -> None:
    refused(lambda d: d.update(labels=[]), "criterion 'max_prob' needs class scores")


@given(
    least=st.integers(1, 9), more=st.integers(1, 9), step=st.integers(1, 4), size=st.integers(0, 80)
)
def test_an_axis_takes_the_multiples_of_its_step_between_its_ends(
    least: int, more: int, step: int, size: int
) -> None:
    axis = (least * step, (least + more) * step, step)
    source = m.Input("x", "float32", (3, axis), None)
    assert source.takes((3, size)) == (size in range(axis[0], axis[1] + 1, step))
    assert source.takes(source.least)
    assert source.takes(source.greatest)
    assert not source.takes((4, axis[0]))
    assert not source.takes((3,))
    assert not source.takes((3, axis[0], 1))
    assert source.spec == m.TensorSpec("float32", (None, 3, None))
    assert source.spec.bytes_per_sample is None


def test_a_fixed_shape_is_written_as_it_always_was() -> None:
    source = m.Input("x", "float32", (3, 8, 8), None)
    assert source.shape_text() == str([3, 8, 8])
    assert source.varying == ()
    assert dataclasses.asdict(source)["shape"] == (3, 8, 8)
    assert source.spec.bytes_per_sample == 3 * 8 * 8 * 4
