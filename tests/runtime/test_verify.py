import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgekit.bundle.manifest import MANIFEST_NAME, identify, seal
from edgekit.bundle.reader import read_bundle
from edgekit.errors import BundleError, CheckError, EdgekitError
from edgekit.runtime.chain import Chain
from edgekit.runtime.verify import GoldenReport, load_array, verify_golden

Array = npt.NDArray[Any]


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and seal it again, so that the reader takes it."""
    document = json.loads((bundle / MANIFEST_NAME).read_bytes())
    del document["seal"]
    change(document)
    document["bundle_id"] = identify(document)
    (bundle / MANIFEST_NAME).write_bytes(seal(document))


def replace_file(bundle: Path, path: str, content: bytes) -> None:
    (bundle / path).write_bytes(content)

    def change(document: dict[str, Any]) -> None:
        [file] = [file for file in document["files"] if file["path"] == path]
        file.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    rewrite(bundle, change)


def change_expected(bundle: Path, exit: str, change: Callable[[Array], Array]) -> None:
    path = f"golden/expected/{exit}.npy"
    stream = io.BytesIO()
    np.save(stream, change(np.load(bundle / path)))
    replace_file(bundle, path, stream.getvalue())


def verify(folder: Path) -> GoldenReport:
    bundle = read_bundle(folder)
    return verify_golden(bundle, Chain.from_bundle(bundle))


def refused(folder: Path, *named: str) -> None:
    with pytest.raises(CheckError) as caught:
        verify(folder)
    for words in named:
        assert words in str(caught.value)


def test_a_bundle_passes_on_the_machine_that_built_it(built_tiny: Path) -> None:
    report = verify(built_tiny)
    assert report.samples == 8
    assert report.max_relative_error.keys() == {"first", "second", "last"}
    assert max(report.max_relative_error.values()) <= report.limit == 1e-3


@pytest.mark.parametrize("exit", ["first", "second", "last"])
@pytest.mark.parametrize("row", [0, 7])
def test_a_changed_golden_logit_is_refused_naming_sample_and_exit(
    tiny_bundle: Path, exit: str, row: int
) -> None:
    def change(logits: Array) -> Array:
        logits[row, 1] += 0.01 * np.abs(logits).max()
        return logits

    change_expected(tiny_bundle, exit, change)
    refused(tiny_bundle, f"golden/00{row}.png", f"exit {exit!r}", "1.0e-02", "limit 1.0e-03")


def test_a_difference_within_the_tolerance_passes_and_is_reported(tiny_bundle: Path) -> None:
    change_expected(tiny_bundle, "second", lambda logits: logits + 5e-4 * np.abs(logits).max())
    found = verify(tiny_bundle).max_relative_error
    assert found["second"] == pytest.approx(5e-4, rel=0.1)
    assert found["first"] < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_golden_logits_that_are_not_finite_are_refused(tiny_bundle: Path, value: float) -> None:
    def change(logits: Array) -> Array:
        logits[3, 2] = value
        return logits

    change_expected(tiny_bundle, "last", change)
    refused(tiny_bundle, "golden/00", "exit 'last'")


def test_golden_logits_of_another_number_of_classes_are_refused(tiny_bundle: Path) -> None:
    change_expected(tiny_bundle, "first", lambda logits: logits[:, :3])
    refused(tiny_bundle, "golden/000.png", "exit 'first'")


def test_golden_logits_with_too_few_rows_are_refused(tiny_bundle: Path) -> None:
    change_expected(tiny_bundle, "first", lambda logits: logits[:7])
    with pytest.raises(EdgekitError, match="golden/"):
        verify(tiny_bundle)


def test_golden_logits_that_lack_an_exit_are_refused(tiny_bundle: Path) -> None:
    rewrite(tiny_bundle, lambda document: document["golden"]["logits"].pop("second"))
    with pytest.raises(BundleError, match="golden logits are not of its exits"):
        verify(tiny_bundle)


@pytest.mark.parametrize("key", ["class_index", "exit"])
def test_a_changed_golden_decision_is_refused(tiny_bundle: Path, key: str) -> None:
    said = read_bundle(tiny_bundle).manifest.golden.samples[0]
    other = {"class_index": (said.class_index + 1) % 4, "exit": "other"}[key]
    rewrite(tiny_bundle, lambda document: document["golden"]["samples"][0].update({key: other}))
    here = f"golden/000.png: leaves at {said.exit!r} as class {said.class_index}"
    changed = {"exit": said.exit, "class_index": said.class_index, key: other}
    refused(
        tiny_bundle, here, f"on the host at {changed['exit']!r} as class {changed['class_index']} "
    )


def test_a_changed_threshold_shows_in_the_decisions(tiny_bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        tuning = document["tuning"]
        document["policy"].update(thresholds=[0.99, 0.99])
        tuning["points"][tuning["chosen"]].update(thresholds=[0.99, 0.99])

    rewrite(tiny_bundle, change)
    refused(tiny_bundle, "leaves at 'last'", "on the host at 'first'")


def test_a_segment_that_computes_otherwise_is_refused(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "segments/segment-3.onnx")
    for initializer in model.graph.initializer:
        values = onnx.numpy_helper.to_array(initializer)
        if values.dtype == np.float32:
            initializer.CopyFrom(onnx.numpy_helper.from_array(values * 1.1, initializer.name))
    content = model.SerializeToString()
    (tiny_bundle / "segments/segment-3.onnx").write_bytes(content)
    rewrite(
        tiny_bundle,
        lambda document: document["variants"][0]["segments"][2].update(
            size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        ),
    )
    refused(tiny_bundle, "golden/000.png", "exit 'last'")


def test_a_golden_array_with_a_pickle_in_it_is_refused(tiny_bundle: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{}]), allow_pickle=True)
    replace_file(tiny_bundle, "golden/expected/first.npy", stream.getvalue())
    with pytest.raises(BundleError, match=r"expected/first\.npy: is no plain \.npy array"):
        verify(tiny_bundle)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_a_golden_array_that_is_none_is_refused(tiny_bundle: Path, content: bytes) -> None:
    replace_file(tiny_bundle, "golden/expected/first.npy", content)
    with pytest.raises(BundleError, match=r"expected/first\.npy: is no plain \.npy array"):
        verify(tiny_bundle)


def test_an_array_that_changed_since_it_was_read_is_refused(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    path = tiny_bundle / "test/labels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(BundleError, match=r"test/labels\.npy was changed"):
        load_array(bundle, "test/labels.npy")
