import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import EVIDENCE_NAME, Policy, seal, unseal
from edgekit.bundle.reader import Bundle
from edgekit.errors import InputError
from edgekit.runtime import Chain
from edgekit.runtime.bench import bench, load_test_data
from edgekit.runtime.criteria import PATIENCE
from edgekit.runtime.deadline import budget_ns, expected_ms
from edgekit.runtime.device import describe
from edgekit.runtime.engines import Buffer, Engine

Array = npt.NDArray[Any]

EXITS = ["first", "second", "last"]
AGES_MS = 1e9
"""More than any run of these tests takes."""


@pytest.fixture(scope="module")
def samples(bundle: Bundle) -> Array:
    data = load_test_data(bundle)
    assert data is not None
    return data[0]


@pytest.fixture(scope="module")
def plain(bundle: Bundle) -> Chain:
    """A chain whose times nobody knows, nor may learn: for those that share its engines."""
    return Chain.from_bundle(bundle)


@pytest.fixture
def chain(plain: Chain) -> Chain:
    """A chain of the test's own, of no bundle that it could ask for times."""
    return Chain(plain.spec, plain.engines)


class FakeTime:
    """A clock that only goes on when a segment of `Slow` runs."""

    def __init__(self) -> None:
        self.now_ns = 7_000_000_000

    def perf_counter_ns(self) -> int:
        return self.now_ns


class Slow:
    """An engine whose runs take `ms` of the fake clock; it counts them."""

    def __init__(self, engine: Engine, time: FakeTime, ms: int) -> None:
        self.engine, self.time, self.ms = engine, time, ms
        self.memory, self.version = engine.memory, engine.version
        self.ends_ns: list[int] = []

    def bind(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], rows: int
    ) -> Callable[[], None]:
        run = self.engine.bind(inputs, outputs, rows)

        def call() -> None:
            run()
            self.time.now_ns += self.ms * 1_000_000
            self.ends_ns.append(self.time.now_ns)

        return call


KINDS = [
    Policy("max_prob", ()),
    Policy("max_prob", (), otherwise="max_confidence"),
    Policy("max_prob", (), "sum", (1.0, 2.0, 0.5)),
    Policy("max_prob", (), "geometric", None, "max_confidence"),
    Policy(PATIENCE, ()),
    Policy(PATIENCE, (), "sum", None, "max_confidence"),
]


def refusing(chain: Chain) -> Policy:
    """No early exit is ever sure."""
    return Policy(chain.spec.policy.criterion, (inf, inf))


def prefix(chain: Chain, depth: int) -> Chain:
    """The chain of the first segments only, whose last exit takes everything."""
    spec = replace(
        chain.spec,
        segments=chain.spec.segments[: depth + 1],
        policy=replace(
            chain.spec.policy,
            thresholds=chain.spec.policy.thresholds[:depth],
            weights=chain.spec.policy.weights and chain.spec.policy.weights[: depth + 1],
        ),
    )
    return Chain(spec, chain.engines[: depth + 1])


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_segment_starts_that_is_not_expected_to_end_in_time(
    plain: Chain, samples: Array, data: st.DataObject
) -> None:
    milliseconds = st.integers(0, 20)
    expected = data.draw(st.lists(milliseconds, min_size=3, max_size=3), "expected")
    taken = data.draw(st.lists(milliseconds, min_size=3, max_size=3), "taken")
    deadline_ms = data.draw(st.integers(1, 60), "deadline")
    sample = samples[data.draw(st.integers(0, len(samples) - 1), "sample")]
    policy = plain.spec.policy if data.draw(st.booleans(), "may leave") else refusing(plain)
    kind = data.draw(st.sampled_from(KINDS), "kind")
    policy = replace(kind, thresholds=policy.thresholds if kind.criterion != PATIENCE else (1, 1))

    clock = FakeTime()
    engines = [Slow(one, clock, ms) for one, ms in zip(plain.engines, taken, strict=True)]
    chain = Chain(replace(plain.spec, policy=policy), engines)
    chain.segment_ms = expected
    ran = plain.with_policy(policy).one(sample, timings=True).segment_latency_ms
    without = len(ran or ()) - 1
    depth, elapsed = 0, taken[0]
    while depth < without and elapsed + expected[depth + 1] <= deadline_ms:
        depth += 1
        elapsed += taken[depth]

    began_ns = clock.now_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.runtime.chain.time", clock)
        found = chain.one(sample, deadline_ms=deadline_ms)
    assert [len(engine.ends_ns) for engine in engines] == [1] * (depth + 1) + [0] * (2 - depth)
    for one, ms, engine in list(zip(expected, taken, engines, strict=True))[1 : depth + 1]:
        assert engine.ends_ns[0] - ms * 1e6 + one * 1e6 <= began_ns + deadline_ms * 1e6
    assert found.exit == EXITS[depth] or policy.otherwise == "max_confidence"
    assert found.stop == (
        "deadline"
        if depth < without
        else "sure"
        if plain.with_policy(policy).one(sample).stop == "sure"
        else "final"
    )
    # Cut short is the answer of a chain that ends there.
    assert found[:4] == prefix(plain.with_policy(policy), depth).one(sample)[:4]


def test_a_segment_that_would_take_ages_is_not_begun(chain: Chain, samples: Array) -> None:
    other = chain.with_policy(refusing(chain))
    other.segment_ms = (AGES_MS, AGES_MS, AGES_MS)
    for sample in samples:
        found = other.one(sample, deadline_ms=1000)
        alone = prefix(other, 0).one(sample)
        assert found[:4] == alone[:4]
        assert (found.exit, found.stop, alone.stop) == ("first", "deadline", "final")


def test_far_from_its_deadline_a_chain_answers_as_without(chain: Chain, samples: Array) -> None:
    chain.segment_ms = (0, 0, 0)
    without = [chain.one(sample) for sample in samples]
    assert [chain.one(sample, deadline_ms=AGES_MS) for sample in samples] == without
    assert [chain(sample, deadline_ms=AGES_MS) for sample in samples] == without
    assert {one.stop for one in without} == {"sure", "final"}


def test_waiting_for_another_call_is_the_callers_time(
    chain: Chain, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeTime()
    monkeypatch.setattr("edgekit.runtime.chain.time", clock)

    class Taken:
        """A lock that comes free after 9 ms."""

        def __enter__(self) -> None:
            clock.now_ns += 9_000_000

        def __exit__(self, *error: object) -> None:
            pass

    other = chain.with_policy(refusing(chain))
    other.segment_ms = (0, 2, 0)
    assert other.one(samples[0], deadline_ms=10).stop == "final"
    other.lock = Taken()  # type: ignore[assignment]
    assert other.one(samples[0], deadline_ms=10).stop == "deadline"
    assert other.one(samples[0], deadline_ms=11).stop == "final"


def test_the_answer_at_a_deadline_has_the_times_of_what_ran(chain: Chain, samples: Array) -> None:
    other = chain.with_policy(refusing(chain))
    other.segment_ms = (0, 0, AGES_MS)
    found = other.one(samples[0], deadline_ms=1e6, timings=True)
    assert (found.exit, found.stop) == ("second", "deadline")
    assert found.segment_latency_ms is not None
    assert len(found.segment_latency_ms) == 2


@pytest.mark.parametrize(
    "deadline_ms", [0, -1, -0.0, nan, inf, -inf, "soon", [5], [1, 2], 10**400, {}]
)
def test_a_deadline_that_is_no_time_is_refused(
    chain: Chain, samples: Array, deadline_ms: Any
) -> None:
    with pytest.raises(InputError, match="a finite number of ms above 0; found "):
        chain.one(samples[0], deadline_ms=deadline_ms)
    with pytest.raises(InputError, match="a finite number of ms above 0"):
        chain(samples[0], deadline_ms=deadline_ms)
    assert chain.segment_ms is None


@pytest.mark.parametrize("deadline_ms", [1, 0.5, np.float32(2), np.int64(3), 1e308])
def test_any_number_of_ms_is_a_deadline(deadline_ms: Any) -> None:
    assert budget_ns(deadline_ms) == float(deadline_ms) * 1e6


def test_a_batch_with_a_deadline_is_refused(chain: Chain, samples: Array) -> None:
    for batch in (samples[:2], samples[:1], samples[:0], list(samples[:2])):
        with pytest.raises(InputError, match="a deadline is for one sample"):
            chain(batch, deadline_ms=5)


@pytest.mark.parametrize(
    "segment_ms",
    [(), (1, 2), (1, 2, 3, 4), (1, -1, 1), (1, nan, 1), (1, inf, 1), ("a", "b", "c"), 5, None],
)
def test_times_that_are_not_one_per_segment_are_refused(
    chain: Chain, built_tiny: Path, segment_ms: Any
) -> None:
    with pytest.raises(InputError, match="one finite number of ms per segment, 3 here"):
        chain.segment_ms = segment_ms
    assert chain.segment_ms is None
    if segment_ms is not None:
        with pytest.raises(InputError, match="per segment"):
            Chain.load(built_tiny, segment_ms=segment_ms)


def test_times_that_are_given_are_taken(built_tiny: Path, samples: Array) -> None:
    chain = Chain.load(built_tiny, segment_ms=[1, 2.5, np.float64(0.125)])
    assert chain.segment_ms == (1, 2.5, 0.125)
    chain.one(samples[0], deadline_ms=AGES_MS)
    assert chain.segment_ms == (1, 2.5, 0.125)


def test_another_policy_shares_the_times(chain: Chain) -> None:
    before = chain.with_policy(refusing(chain))
    chain.segment_ms = (1, 2, 3)
    assert before.segment_ms == (1, 2, 3)
    assert chain.with_policy(refusing(chain)).segment_ms == (1, 2, 3)


def test_the_expected_time_is_exceeded_by_one_run_in_ten() -> None:
    runs = [(float(run), 5.0) for run in np.random.default_rng(0).permutation(101)]
    assert expected_ms(runs) == [90, 5]


def test_measuring_runs_every_segment_on_what_it_is_given(chain: Chain, samples: Array) -> None:
    clock = FakeTime()
    engines = [Slow(one, clock, ms) for ms, one in enumerate(chain.engines, 3)]
    slow = Chain(chain.spec, engines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.runtime.chain.time", clock)
        assert slow.measure() == slow.segment_ms == (3, 4, 5)
        assert slow.measure(samples[0]) == (3, 4, 5)
    assert len({len(engine.ends_ns) for engine in engines}) == 1
    with pytest.raises(InputError, match="expected float32"):
        slow.measure(samples[:2])


def test_the_first_deadline_measures_where_nobody_knows_the_times(
    chain: Chain, samples: Array
) -> None:
    # A chain of segments in memory has no bundle that could tell.
    clock = FakeTime()
    slow = Chain(chain.spec, [Slow(one, clock, 2) for one in chain.engines])
    slow = slow.with_policy(refusing(chain))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.runtime.chain.time", clock)
        assert slow.one(samples[0]).stop == "final"
        assert slow.segment_ms is None
        # What measuring took is not the call's: 3 segments of 2 ms fit, 2 do, 1 runs in any case.
        assert slow.one(samples[0], deadline_ms=6).stop == "final"
        assert slow.segment_ms == (2, 2, 2)
        assert slow.one(samples[0], deadline_ms=5.9).exit == "second"
        assert slow.one(samples[0], deadline_ms=0.1).exit == "first"


def with_evidence(folder: Path, **changes: Any) -> Path:
    path = folder / EVIDENCE_NAME
    document = unseal(path.read_bytes(), EVIDENCE_NAME)
    path.write_bytes(seal({**document, **changes}))
    return folder


def after_a_deadline(folder: Path, sample: Array, **options: Any) -> tuple[float, ...] | None:
    chain = Chain.load(folder, **options)
    chain.one(sample, deadline_ms=AGES_MS)
    return chain.segment_ms


def test_times_measured_on_a_processor_like_this_one_are_believed(
    tiny_bundle: Path, samples: Array
) -> None:
    times = [101.0, 102.0, 103.0]
    folder = with_evidence(tiny_bundle, segment_latency_ms=times, host=describe())
    assert after_a_deadline(folder, samples[0]) == tuple(times)
    # Other threads make other times.
    assert after_a_deadline(folder, samples[0], threads=2) != tuple(times)
    assert after_a_deadline(folder, samples[0], segment_ms=(1, 2, 3)) == (1, 2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": {**describe(), "cpu": "Abacus 9000"}},
        {"host": None},
        {"segment_latency_ms": [101.0, 102.0]},
        {"segment_latency_ms": [101.0, 102.0, -103.0]},
        {"segment_latency_ms": None},
        {"engine": "tensorrt 10.3.0 on Orin (8.7)"},
        {"bundle_id": "another"},
    ],
    ids=[
        "processor",
        "no host",
        "too few",
        "negative",
        "none",
        "another engine",
        "of another bundle",
    ],
)
def test_times_of_another_machine_or_none_are_measured_here(
    tiny_bundle: Path, samples: Array, changes: dict[str, Any]
) -> None:
    believed = {"segment_latency_ms": [101.0, 102.0, 103.0], "host": describe()}
    folder = with_evidence(tiny_bundle, **{**believed, **changes})
    found = after_a_deadline(folder, samples[0])
    assert found is not None
    assert len(found) == 3
    assert found[0] not in {0, 101}


def test_without_evidence_or_with_a_damaged_one_the_times_are_measured(
    tiny_bundle: Path, samples: Array
) -> None:
    evidence = tiny_bundle / EVIDENCE_NAME
    evidence.write_bytes(b"garbage")
    assert after_a_deadline(tiny_bundle, samples[0]) is not None
    evidence.unlink()
    assert after_a_deadline(tiny_bundle, samples[0]) is not None


@pytest.fixture(scope="module")
def report(bundle: Bundle, samples: Array) -> dict[str, Any]:
    return bench(bundle, samples, None, rounds=1)


def written(folder: Path, report: Any) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(report))
    return path


def test_a_bench_report_of_this_bundle_tells_the_times(
    built_tiny: Path, tmp_path: Path, report: dict[str, Any]
) -> None:
    chain = Chain.load(built_tiny, profile=written(tmp_path, report))
    assert chain.segment_ms == pytest.approx([one["p90_ms"] for one in report["segments"]])


def test_a_report_that_does_not_fit_is_refused_with_what_to_do(
    built_tiny: Path, tmp_path: Path, report: dict[str, Any]
) -> None:
    for changes, words in (
        (
            {"bundle_id": "abc", "segments": [{**report["segments"][0], "sha256": "other"}]},
            f"bundle abc, which has another segment-1.*edgekit bench {built_tiny} --threads 1",
        ),
        ({"threads": 3}, "times at 3 threads, the chain has 1; edgekit bench"),
        ({"engine": "tensorrt 10.3.0"}, r"times of tensorrt 10\.3\.0, the chain runs in onnxrun"),
        ({"segments": report["segments"][:2]}, "which has another segment-3 than"),
        ({"segments": [{**report["segments"][0], "p90_ms": None}]}, "edgekit bench BUNDLE --json"),
    ):
        path = written(tmp_path, {**report, **changes})
        with pytest.raises(InputError, match=words):
            Chain.load(built_tiny, profile=path)


def test_the_same_segments_take_the_same_time_under_another_policy(
    built_tiny: Path, tmp_path: Path, report: dict[str, Any]
) -> None:
    chain = Chain.load(built_tiny, profile=written(tmp_path, {**report, "bundle_id": "abc"}))
    assert chain.segment_ms == pytest.approx([one["p90_ms"] for one in report["segments"]])


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"5", b"\xff", b"[" * 100_000])
def test_a_profile_that_is_no_report_is_refused(
    built_tiny: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"profile.json: is no report with segment times"):
        Chain.load(built_tiny, profile=path)


def test_a_profile_that_is_missing_is_refused(built_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Chain.load(built_tiny, profile=tmp_path / "none.json")


def test_two_sources_of_times_are_refused(built_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="segment_ms or a profile"):
        Chain.load(built_tiny, segment_ms=(1, 2, 3), profile=tmp_path / "profile.json")


def test_the_clock_is_the_one_that_is_patched(chain: Chain, samples: Array) -> None:
    # What the fake clock of the other tests rests on.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekit.runtime.chain.time", SimpleNamespace(perf_counter_ns=lambda: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            chain.one(samples[0], timings=True)
