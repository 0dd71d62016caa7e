"""What was measured on a device: read where it holds, and refused where it does not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.ladder import LadderVariant, parse_ladder, seal_ladder
from edgekit.bundle.manifest import seal, unseal
from edgekit.errors import BundleError, InputError
from edgekit.limits import LIMITS
from edgekit.runtime.device import describe
from edgekit.runtime.profile import (
    Latency,
    Measured,
    Profile,
    parse_profile,
    read_profile,
    seal_profile,
)
from tests.ladders import document_of

VARIANTS: tuple[LadderVariant, ...] = parse_ladder(seal_ladder(document_of())).variants
MEASURED = {one.name: Measured(one.bundle_id, Latency(1.0, 0.9, 1.5), 1000) for one in VARIANTS}


def profile_of(**changes: Any) -> Profile:
    raw = seal_profile("onnxruntime", "onnxruntime 1.32.0", 2, MEASURED)
    return dataclasses.replace(parse_profile(raw, "profile.json"), **changes)


def changed(**changes: Any) -> bytes:
    document = unseal(seal_profile("onnxruntime", "onnxruntime 1.32.0", 2, MEASURED), "")
    return seal({**document, **changes})


def test_what_was_measured_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(seal_profile("litert", "ai-edge-litert 2.3", 4, MEASURED))
    found = read_profile(file)
    assert found.variants == MEASURED
    assert (found.engine, found.engine_version, found.threads) == (
        "litert",
        "ai-edge-litert 2.3",
        4,
    )
    assert found.device == describe()
    assert found.problem(VARIANTS, "litert", 4) is None


def test_why_a_profile_is_doubtful_travels_with_it() -> None:
    raw = seal_profile("litert", "ai-edge-litert 2.3", 4, MEASURED, ["the board was throttled"])
    found = parse_profile(raw, "profile.json")
    assert found.reasons == ("the board was throttled",)
    assert "the board was throttled: measure it again" in (found.doubts or "")
    assert profile_of().doubts is None


def test_a_profile_of_no_device_is_refused() -> None:
    with pytest.raises(BundleError, match="does not say which device"):
        parse_profile(changed(device={"cpu": "Cortex-A72"}), "profile.json")


def test_a_profile_of_something_else_says_so() -> None:
    profile = profile_of()
    assert profile.problem(VARIANTS, "onnxruntime", 2) is None
    assert "litert" in (profile.problem(VARIANTS, "litert", 2) or "")
    assert "2 threads" in (profile.problem(VARIANTS, "onnxruntime", 1) or "")
    other = profile_of(device={**describe(), "cpu": "Cortex-A72"})
    assert "Cortex-A72" in (other.problem(VARIANTS, "onnxruntime", 2) or "")
    fewer = profile_of(variants={"w0.25": MEASURED["w0.25"]})
    assert "w0.5" in (fewer.problem(VARIANTS, "onnxruntime", 2) or "")
    rebuilt = dataclasses.replace(MEASURED["w1.0"], bundle_id="f" * 64)
    other = profile_of(variants={**MEASURED, "w1.0": rebuilt})
    assert "w1.0" in (other.problem(VARIANTS, "onnxruntime", 2) or "")


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    raw = bytearray(seal_profile("onnxruntime", "onnxruntime 1.32.0", 2, MEASURED))
    raw[len(raw) // 2] ^= 1
    (tmp_path / "profile.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"profile\.json.*edgekit bench LADDER --profile"):
        read_profile(tmp_path / "profile.json")


def test_a_missing_and_a_huge_profile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_profile(tmp_path / "profile.json")
    with (tmp_path / "profile.json").open("wb") as stream:
        stream.truncate(LIMITS.manifest_bytes * 1000)
    with pytest.raises(InputError, match="limit"):
        read_profile(tmp_path / "profile.json")


def measured(**latency_ms: float) -> dict[str, Any]:
    one = dataclasses.asdict(MEASURED["w1.0"])
    one["latency_ms"].update(latency_ms)
    return {"w1.0": one}


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": 2},
        {"threads": "2"},
        {"variants": []},
        {"more": 1},
        {"variants": measured(p95=0)},
        {"variants": measured(mean=-1)},
        {"variants": measured(p99=1)},
        {"variants": {"w1.0": {**measured()["w1.0"], "resident_bytes": -1}}},
    ],
    ids=json.dumps,
)
def test_an_impossible_profile_is_refused_under_a_right_seal(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="profile"):
        parse_profile(changed(**changes), "profile.json")
