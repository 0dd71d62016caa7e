"""A ladder at work: who answers, what is loaded when, and what is let go."""

import gc
import json
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.bundle.ladder import (
    AccuracyFloor,
    Cascade,
    Fixed,
    LatencyBudget,
    Load,
    MemoryBudget,
    read_ladder,
)
from edgekit.errors import BundleError, DeviceError, InputError
from edgekit.runtime import Chain, Ladder, Metrics, memory
from edgekit.runtime.ladder import FLOOR_BYTES
from edgekit.runtime.profile import Latency, Measured, seal_profile
from tests.ladders import NARROW, WIDE, assemble, cascade_of, rewrite

Array = npt.NDArray[Any]


@pytest.fixture
def samples() -> Array:
    return np.random.default_rng(3).normal(0, 1, (24, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def ladder(built_ladder: Path) -> Ladder:
    return Ladder.load(built_ladder, threads=1)


@pytest.fixture(scope="module")
def chains(built_ladder: Path) -> dict[str, Chain]:
    """The variants as chains of their own."""
    return {name: Chain.load(built_ladder, variant=name, threads=1) for name in (NARROW, WIDE)}


def profile_for(
    folder: Path, p95_ms: tuple[float, float], resident_bytes: int | None = None, threads: int = 1
) -> bytes:
    """A profile of this machine, whose two variants take so long."""
    document = read_ladder(folder)
    measured = {
        one.name: Measured(one.bundle_id, Latency(ms * 0.8, ms * 0.7, ms), resident_bytes)
        for one, ms in zip(document.variants, p95_ms, strict=True)
    }
    return seal_profile("onnxruntime", "onnxruntime 1.32.0", threads, measured)


@pytest.fixture
def profile(built_ladder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "measured.json"
    file.write_bytes(profile_for(built_ladder, (2.0, 5.0)))
    return file


def test_the_ladders_own_policy_answers_as_that_variants_chain(
    ladder: Ladder, chains: dict[str, Chain], samples: Array
) -> None:
    assert ladder.variant == WIDE
    for sample in samples:
        assert ladder(sample) == chains[WIDE].one(sample)._replace(variant=WIDE)
    assert ladder(samples) == [one._replace(variant=WIDE) for one in chains[WIDE].many(samples)]
    assert ladder.loaded == (WIDE,)


def test_nothing_is_loaded_before_it_is_asked(ladder: Ladder, samples: Array) -> None:
    assert ladder.loaded == ()
    ladder.set_policy(Fixed(NARROW))
    assert ladder.loaded == ()
    assert ladder.one(samples[0]).variant == NARROW
    assert ladder.loaded == (NARROW,)


def test_switching_takes_no_reload(
    ladder: Ladder, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (NARROW, WIDE):
        ladder.chain(name)
    monkeypatch.setattr(Chain, "from_bundle", None)  # Whoever loads now, fails.
    for name in (NARROW, WIDE, NARROW, WIDE):
        ladder.set_policy(Fixed(name))
        assert ladder.one(samples[0]).variant == name


def test_a_picture_becomes_the_input_of_the_variant(
    ladder: Ladder, chains: dict[str, Chain], built_ladder: Path
) -> None:
    picture = min((built_ladder / WIDE / "golden").glob("*.png"))
    expected = chains[WIDE].one(chains[WIDE].read(picture))
    assert ladder(ladder.read(picture)) == expected._replace(variant=WIDE)


def test_a_variants_chain_needs_its_name(built_ladder: Path, samples: Array) -> None:
    with pytest.raises(InputError, match=f"ladder of {NARROW}, {WIDE}: name a variant"):
        Chain.load(built_ladder)
    with pytest.raises(BundleError, match="did you mean"):
        Chain.load(built_ladder, variant="w0.55")
    assert Chain.load(built_ladder, variant=NARROW).one(samples[0]).variant is None


def asked_of(chains: dict[str, Chain], policy: Cascade, sample: Array) -> list[str]:
    """Which variants a cascade over the two asks, by a plain look at the narrow one's answer."""
    found = chains[NARROW].one(sample)
    sure = policy.thresholds is not None and found.confidence >= policy.thresholds[0]
    return [NARROW] if sure else [NARROW, WIDE]


@pytest.mark.parametrize("agree", [False, True])
def test_a_cascade_asks_the_wide_one_where_the_narrow_one_is_not_sure(
    ladder: Ladder, chains: dict[str, Chain], samples: Array, agree: bool
) -> None:
    middle = float(np.median([one.confidence for one in chains[NARROW].many(samples)]))
    policy = Cascade(agree=True) if agree else Cascade((middle,))
    ladder.set_policy(policy)
    assert ladder.variant is None
    seen = set()
    for sample in samples:
        asked = asked_of(chains, policy, sample)
        found = ladder.one(sample, timings=True)
        expected = chains[asked[-1]].one(sample)
        assert found._replace(segment_latency_ms=None, variant=None) == expected
        assert found.variant == asked[-1]
        ran = [
            len(chains[name].one(sample, timings=True).segment_latency_ms or ()) for name in asked
        ]
        assert len(found.segment_latency_ms or ()) == sum(ran)
        seen.add(found.variant)
    assert seen == ({WIDE} if agree else {NARROW, WIDE})


def test_a_batch_cascades_as_its_samples_do(
    ladder: Ladder, chains: dict[str, Chain], samples: Array
) -> None:
    middle = float(np.median([one.confidence for one in chains[NARROW].many(samples)]))
    ladder.set_policy(Cascade((middle,)))
    found, alone = ladder.many(samples), [ladder.one(sample) for sample in samples]
    assert [(one.variant, one.exit, one.class_index) for one in found] == [
        (one.variant, one.exit, one.class_index) for one in alone
    ]
    assert {one.variant for one in found} == {NARROW, WIDE}
    assert ladder.many(samples[:0]) == []
    timed = ladder.many(samples, timings=True)
    assert all(one.segment_latency_ms for one in timed)


def test_a_tuned_cascade_brings_its_thresholds(tiny_ladder: Path) -> None:
    tuned = cascade_of([0.5], accuracy=0.5)
    ladder = Ladder.load(rewrite(tiny_ladder, cascade=tuned), policy=Cascade())
    assert ladder.policy == Cascade((0.5,))
    with pytest.raises(InputError, match="was not tuned"):
        Ladder.load(rewrite(tiny_ladder, cascade=None), policy=Cascade())


def test_what_does_not_fit_is_refused_and_the_ladder_goes_on(
    ladder: Ladder, samples: Array
) -> None:
    with pytest.raises(InputError, match="did you mean"):
        ladder.set_policy(Fixed("w0.55"))
    with pytest.raises(InputError, match="needs 1 thresholds"):
        ladder.set_policy(Cascade((0.5, 0.5)))
    with pytest.raises(InputError, match="the network takes"):
        ladder.one(samples[0, :, :4])
    with pytest.raises(InputError, match="not finite"):
        ladder.one(np.full_like(samples[0], np.nan))
    ladder.set_policy(Cascade((0.5,)))
    with pytest.raises(InputError, match="a deadline would cut short"):
        ladder.one(samples[0], deadline_ms=5)
    with pytest.raises(InputError, match="for one sample"):
        ladder(samples, deadline_ms=5)
    assert ladder.policy == Cascade((0.5,))
    ladder.set_policy(Fixed(WIDE))
    assert ladder.one(samples[0], deadline_ms=1e4).variant == WIDE


@pytest.mark.parametrize(
    ("policy", "variant"),
    [
        (LatencyBudget(5.0), WIDE),
        (LatencyBudget(4.9), NARROW),
        (AccuracyFloor(0.2), NARROW),
        (AccuracyFloor(0.5), WIDE),
        (Load(6.0), WIDE),
        (Load(4.0), NARROW),
    ],
)
def test_the_policy_chooses_by_what_was_measured(
    built_ladder: Path, profile: Path, samples: Array, policy: Any, variant: str
) -> None:
    ladder = Ladder.load(built_ladder, policy=policy, profile=profile, threads=1)
    assert ladder.shortfall is None
    assert ladder.variant == ladder.one(samples[0]).variant == variant
    assert ladder.loaded == (variant,)


def test_a_latency_that_no_variant_has_is_answered_by_the_narrowest_which_says_so(
    built_ladder: Path, profile: Path
) -> None:
    ladder = Ladder.load(built_ladder, policy=LatencyBudget(1.0), profile=profile, threads=1)
    assert ladder.variant == NARROW
    assert "no variant is within 1 ms here" in (ladder.shortfall or "")
    assert "2 ms" in (ladder.shortfall or "")
    ladder.set_policy(LatencyBudget(3.0))
    assert ladder.shortfall is None


def test_an_accuracy_that_no_variant_has_is_refused_with_the_best_there_is(
    built_ladder: Path, tiny_ladder: Path
) -> None:
    with pytest.raises(InputError, match=f"the best is {WIDE} with 0.5000"):
        Ladder.load(built_ladder, policy=AccuracyFloor(0.9))
    variants = json.loads((tiny_ladder / "ladder.json").read_bytes())["variants"]
    unknown = [{**one, "accuracy": None, "accuracy_of": None} for one in variants]
    with pytest.raises(InputError, match="nobody knows"):
        Ladder.load(rewrite(tiny_ladder, variants=unknown), policy=AccuracyFloor(0.0))


def test_the_accuracy_is_had_from_the_variant_that_is_cheapest_here(
    built_ladder: Path, tmp_path: Path
) -> None:
    (tmp_path / "measured.json").write_bytes(profile_for(built_ladder, (5.0, 2.0)))
    policy = AccuracyFloor(0.2)
    assert Ladder.load(built_ladder, policy=policy).variant == NARROW
    measured = tmp_path / "measured.json"
    here = Ladder.load(built_ladder, policy=policy, profile=measured, threads=1)
    assert here.variant == WIDE


def test_the_memory_is_that_of_the_files_until_it_is_measured(
    built_ladder: Path, tmp_path: Path
) -> None:
    narrow, wide = (2 * one.size_bytes for one in read_ladder(built_ladder).variants)
    assert Ladder.load(built_ladder, policy=MemoryBudget(wide)).variant == WIDE
    assert Ladder.load(built_ladder, policy=MemoryBudget(wide - 1)).variant == NARROW
    with pytest.raises(InputError, match=f"the least is {NARROW}"):
        Ladder.load(built_ladder, policy=MemoryBudget(narrow - 1))
    measured = tmp_path / "measured.json"
    measured.write_bytes(profile_for(built_ladder, (2.0, 5.0), resident_bytes=7))
    fits = Ladder.load(built_ladder, policy=MemoryBudget(7), profile=measured, threads=1)
    assert fits.variant == WIDE


def test_what_was_not_measured_here_is_not_guessed(tiny_ladder: Path, tmp_path: Path) -> None:
    for policy in (LatencyBudget(5.0), Load(5.0)):
        with pytest.raises(InputError, match=r"there is no .*profile\.json: edgekit bench"):
            Ladder.load(tiny_ladder, policy=policy, threads=1)
    # Beside the ladder it is found; where it does not hold, it is as if there was none.
    (tiny_ladder / "profile.json").write_bytes(profile_for(tiny_ladder, (2.0, 5.0)))
    assert Ladder.load(tiny_ladder, policy=LatencyBudget(3.0), threads=1).variant == NARROW
    assert Ladder.load(tiny_ladder, threads=2).profile is None
    with pytest.raises(InputError, match="of onnxruntime at 1 threads, and onnxruntime at 2"):
        Ladder.load(tiny_ladder, policy=LatencyBudget(3.0), threads=2)
    with pytest.raises(InputError, match="does not hold here"):
        Ladder.load(tiny_ladder, profile=tiny_ladder / "profile.json", threads=2)
    (tiny_ladder / "profile.json").write_bytes(b"{}")
    assert Ladder.load(tiny_ladder, threads=1).profile is None
    with pytest.raises(InputError, match="was changed"):
        Ladder.load(tiny_ladder, policy=LatencyBudget(3.0), threads=1)


class Clock:
    """Time that passes only in a chain: so many ms a call."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns


def test_load_goes_to_a_narrower_variant_and_back_while_it_serves(
    built_ladder: Path, profile: Path, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, factor = Clock(), [1.0]
    monkeypatch.setattr("edgekit.runtime.ladder.time", clock)
    takes_ms = {NARROW: 1.9, WIDE: 4.9}
    ladder = Ladder.load(
        built_ladder, policy=Load(6.0, window=20, calm=2), profile=profile, threads=1
    )

    def slow(name: str, one: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            clock.now_ns += int(takes_ms[name] * factor[0] * 1e6)
            return one(*args, **named)

        return call

    for name in (NARROW, WIDE):
        chain = ladder.chain(name)
        monkeypatch.setattr(chain, "one", slow(name, chain.one))

    def serve(count: int) -> list[str | None]:
        return [ladder.one(samples[0]).variant for _ in range(count)]

    assert serve(50) == [WIDE] * 50
    factor[0] = 2.0
    loaded = serve(60)
    assert loaded[2:] == [NARROW] * 58
    factor[0] = 1.0
    fallen = serve(100)
    # It was amid a window; then two calm ones.
    assert fallen[60:] == [WIDE] * 40
    assert ladder.moves == 2


def test_calls_that_a_change_overtook_do_not_count_for_the_new_variant(
    built_ladder: Path, profile: Path, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every call takes the clock ahead of the target: with four threads, some end after the change.
    clock = Clock()
    monkeypatch.setattr("edgekit.runtime.ladder.time", clock)
    policy = Load(6.0, window=20, calm=2)
    ladder = Ladder.load(built_ladder, policy=policy, profile=profile, threads=1)
    together = threading.Barrier(4)
    wide = ladder.chain(WIDE)
    one = wide.one

    def slow(*args: Any, **named: Any) -> Any:
        together.wait(30)  # All four began under the old state.
        clock.now_ns += 10_000_000
        found = one(*args, **named)
        together.wait(30)
        return found

    monkeypatch.setattr(wide, "one", slow)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ladder.one, samples[:4]))
    assert [one.variant for one in found] == [WIDE] * 4
    # Two slow ones of twenty are enough; the other two are of the variant that was left.
    assert (ladder.variant, ladder.moves) == (NARROW, 1)
    assert ladder._window == []


def test_what_does_not_fit_beside_lets_the_one_not_used_for_longest_go(
    built_ladder: Path, samples: Array
) -> None:
    sizes = [2 * one.size_bytes for one in read_ladder(built_ladder).variants]
    both = Ladder.load(built_ladder, policy=Cascade((2.0,)), memory_bytes=sum(sizes))
    both.one(samples[0])
    assert both.loaded == (NARROW, WIDE)
    tight = Ladder.load(built_ladder, policy=Cascade((2.0,)), memory_bytes=sum(sizes) - 1)
    expected = [one.class_index for one in both.many(samples)]
    assert [tight.one(one).class_index for one in samples[:2]] == expected[:2]
    assert tight.loaded == (WIDE,)
    gone = weakref.ref(tight.chain(WIDE))
    tight.set_policy(Fixed(NARROW))
    tight.one(samples[0])
    assert tight.loaded == (NARROW,)
    gc.collect()
    assert gone() is None


def test_of_three_the_one_used_longest_ago_is_let_go(built_ladder: Path, tmp_path: Path) -> None:
    narrow, wide = built_ladder / NARROW, built_ladder / WIDE
    folder = assemble(tmp_path / "three", {"a": (narrow, 0.5), "b": (wide, 1), "c": (wide, 1)})
    a, b, c = (2 * one.size_bytes for one in read_ladder(folder).variants)
    ladder = Ladder.load(folder, memory_bytes=a + b + c - 1)
    ladder.chain("a")
    ladder.chain("b")
    assert ladder.loaded == ("a", "b")
    ladder.chain("a")
    assert ladder.loaded == ("b", "a")
    ladder.chain("c")
    assert ladder.loaded == ("a", "c")


def test_a_variant_larger_than_all_memory_allowed_is_refused(
    built_ladder: Path, samples: Array
) -> None:
    ladder = Ladder.load(built_ladder, memory_bytes=1000)
    with pytest.raises(DeviceError, match=f"{WIDE} takes .*memory_bytes allows"):
        ladder.one(samples[0])
    with pytest.raises(InputError, match="memory_bytes"):
        Ladder.load(built_ladder, memory_bytes=0)


def test_where_the_system_runs_short_chains_are_let_go(
    built_ladder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = Ladder.load(built_ladder)
    wide = 2 * read_ladder(built_ladder).variant(WIDE).size_bytes
    free = [FLOOR_BYTES + wide]
    monkeypatch.setattr(memory, "available_bytes", lambda: free[0])
    ladder.chain(NARROW)
    ladder.chain(WIDE)
    assert ladder.loaded == (NARROW, WIDE)
    ladder.close()
    assert ladder.loaded == ()
    ladder.chain(NARROW)
    free[0] -= 1
    ladder.chain(WIDE)
    assert ladder.loaded == (WIDE,)
    # The only one left is loaded all the same: letting go helps no more.
    free[0] = 0
    ladder.chain(NARROW)
    assert ladder.loaded == (NARROW,)


def test_one_in_use_is_never_let_go(
    built_ladder: Path, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [2 * one.size_bytes for one in read_ladder(built_ladder).variants]
    ladder = Ladder.load(built_ladder, memory_bytes=sum(sizes) - 1)
    chain = ladder.chain(WIDE)
    inside, go_on = threading.Event(), threading.Event()
    one = chain.one

    def held(*args: Any, **named: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        assert ladder.loaded == (WIDE,)
        return one(*args, **named)

    monkeypatch.setattr(chain, "one", held)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ladder.one, samples[0])
        assert inside.wait(30)
        ladder.set_policy(Fixed(NARROW))
        second = threads.submit(ladder.one, samples[0])
        with pytest.raises(TimeoutError):
            second.result(0.2)  # It waits: nothing may be let go.
        go_on.set()
        assert first.result(30).variant == WIDE
        assert second.result(30).variant == NARROW
    assert ladder.loaded == (NARROW,)


def test_who_waits_for_memory_is_not_passed_by_those_that_come_later(
    built_ladder: Path, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that keep calling the variant that is loaded would keep it in use without end."""
    sizes = [2 * one.size_bytes for one in read_ladder(built_ladder).variants]
    ladder = Ladder.load(built_ladder, memory_bytes=sum(sizes) - 1)
    chain = ladder.chain(WIDE)
    inside, go_on = threading.Event(), threading.Event()
    one = chain.one

    def held(*args: Any, **named: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        return one(*args, **named)

    monkeypatch.setattr(chain, "one", held)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(ladder.one, samples[0])
        assert inside.wait(30)
        second = threads.submit(ladder.chain, NARROW)
        with pytest.raises(TimeoutError):
            second.result(0.2)
        third = threads.submit(ladder.chain, WIDE)
        with pytest.raises(TimeoutError):
            third.result(0.2)
        go_on.set()
        assert first.result(30).variant == WIDE
        assert second.result(30) is not None
        assert third.result(30) is not chain  # It was let go in between.


def test_a_loaded_variant_answers_while_another_is_being_loaded(
    built_ladder: Path, samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = Ladder.load(built_ladder)
    ladder.chain(NARROW)
    loading, go_on = threading.Event(), threading.Event()
    from_bundle = Chain.from_bundle

    def slow(bundle: Any, **named: Any) -> Chain:
        loading.set()
        assert go_on.wait(30)
        return from_bundle(bundle, **named)

    monkeypatch.setattr(Chain, "from_bundle", slow)
    with ThreadPoolExecutor(1) as threads:
        wide = threads.submit(ladder.one, samples[0])
        assert loading.wait(30)
        ladder.set_policy(Fixed(NARROW))
        assert ladder.one(samples[0]).variant == NARROW
        go_on.set()
        assert wide.result(30).variant == WIDE


def test_calls_from_many_threads_load_each_variant_once_and_agree(
    built_ladder: Path, chains: dict[str, Chain], samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    from_bundle = Chain.from_bundle

    def counted(bundle: Any, **named: Any) -> Chain:
        loads.append(bundle.path.name)
        return from_bundle(bundle, **named)

    monkeypatch.setattr(Chain, "from_bundle", counted)
    ladder = Ladder.load(built_ladder, policy=Cascade((0.27,)), threads=1)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ladder.one, [*samples] * 4))
    assert sorted(loads) == [NARROW, WIDE]
    for sample, one in zip([*samples] * 4, found, strict=True):
        asked = asked_of(chains, Cascade((0.27,)), sample)
        assert one == chains[asked[-1]].one(sample)._replace(variant=asked[-1])


def test_threads_that_fight_for_memory_all_get_their_answers(
    built_ladder: Path, chains: dict[str, Chain], samples: Array
) -> None:
    sizes = [2 * one.size_bytes for one in read_ladder(built_ladder).variants]
    ladder = Ladder.load(
        built_ladder, policy=Cascade((2.0,)), threads=1, memory_bytes=sum(sizes) - 1
    )
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(ladder.one, samples[:6]))
    assert found == [chains[WIDE].one(one)._replace(variant=WIDE) for one in samples[:6]]


def test_a_call_that_fails_leaves_its_variant_free_to_go(
    built_ladder: Path, samples: Array
) -> None:
    ladder = Ladder.load(built_ladder)
    with pytest.raises(InputError):
        ladder.one(samples[0, :, :4])
    with pytest.raises(InputError):
        ladder.many(samples[:, :, :4])
    ladder.close()
    assert ladder.loaded == ()


def test_metrics_count_each_variant_until_it_is_let_go(
    built_ladder: Path, samples: Array, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    with Ladder.load(built_ladder, policy=Cascade((2.0,)), metrics=file) as ladder:
        for sample in samples[:5]:
            ladder.one(sample)
        assert ladder.chain(WIDE).metrics is not None
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    ids = {one.bundle_id for one in read_ladder(built_ladder).variants}
    assert {line["bundle_id"] for line in lines} == ids
    # The run that warms a chain up is no sample.
    assert [line["samples"] for line in lines] == [5, 5]


def test_watchers_are_attached_to_what_is_loaded_and_to_what_will_be(
    built_ladder: Path, tmp_path: Path
) -> None:
    ladder = Ladder.load(built_ladder)
    ladder.chain(NARROW)
    told: list[str | None] = []
    ladder.watch(lambda chain: told.append(chain.spec.bundle_id))
    ladder.watch(lambda chain: Metrics(chain, tmp_path / "metrics.jsonl"))
    ladder.chain(WIDE)
    assert told == [one.bundle_id for one in read_ladder(built_ladder).variants]
    watchers = [ladder.chain(name).watchers for name in (NARROW, WIDE)]
    assert [len(one) for one in watchers] == [1, 1]
    ladder.close()


def test_a_changed_variant_is_found_when_it_is_opened(tiny_ladder: Path, samples: Array) -> None:
    segment = min((tiny_ladder / WIDE / "segments").iterdir())
    raw = bytearray(segment.read_bytes())
    raw[-1] ^= 1
    segment.write_bytes(raw)
    ladder = Ladder.load(tiny_ladder)
    with pytest.raises(BundleError, match="was changed"):
        ladder.one(samples[0])
    ladder.set_policy(Fixed(NARROW))
    assert ladder.one(samples[0]).variant == NARROW
