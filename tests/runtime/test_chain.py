import copy
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import (
    MANIFEST_NAME,
    Exit,
    Input,
    Policy,
    Segment,
    TensorSpec,
    identify,
    seal,
)
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError, DeviceError, InputError
from edgekit.runtime import Chain, Prediction
from edgekit.runtime.bench import load_test_data
from edgekit.runtime.chain import ChainSpec
from edgekit.runtime.criteria import CRITERIA, PATIENCE, decide
from edgekit.runtime.engines import Buffer, Engine, HostMemory, load_engines
from edgekit.runtime.watcher import Watcher
from tests.runtime.test_criteria import (
    POLICIES,
    TEMPERED,
    for_exits,
    networks,
    policy_id,
    thresholds_of,
)

Array = npt.NDArray[Any]

EXITS = ["first", "second", "last"]
LABELS = ["north", "east", "south", "west"]


@pytest.fixture(scope="module")
def chain(bundle: Bundle) -> Chain:
    return Chain.from_bundle(bundle)


@pytest.fixture(scope="module")
def samples(bundle: Bundle) -> Array:
    data = load_test_data(bundle)
    assert data is not None
    return data[0]


def policy(*thresholds: float, criterion: str = "max_prob") -> Policy:
    return Policy(criterion, thresholds)


def walk(chain: Chain, sample: Array) -> Prediction:
    """What the policy says of a sample, by a plain loop over the logits of all exits."""
    thresholds = [*chain.spec.policy.thresholds, -inf]
    every = chain.logits(sample[None])
    for (exit, logits), threshold in zip(every.items(), thresholds, strict=True):
        with np.errstate(all="ignore"):
            confidence = float(CRITERIA[chain.spec.policy.criterion](logits[0]))
        if confidence >= threshold or exit == EXITS[-1]:
            break
    index = int(logits[0].argmax())
    return Prediction(
        index, LABELS[index], exit, confidence, "final" if exit == EXITS[-1] else "sure"
    )


def agree(found: list[Prediction], expected: list[Prediction]) -> None:
    assert [one[:3] for one in found] == [one[:3] for one in expected]
    assert [one.stop for one in found] == [one.stop for one in expected]
    np.testing.assert_allclose(
        [one.confidence for one in found], [one.confidence for one in expected], rtol=0, atol=1e-5
    )


def test_the_tiny_bundle_has_samples_for_every_exit(chain: Chain, samples: Array) -> None:
    # What the other tests rest on.
    assert {one.exit for one in chain.many(samples)} == set(EXITS)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_sample_leaves_where_a_plain_loop_leaves(
    chain: Chain, samples: Array, criterion: str
) -> None:
    thresholds = {"max_prob": (0.3, 0.29), "margin": (0.03, 0.02), "entropy": (0.005, 0.004)}
    other = chain.with_policy(policy(*thresholds[criterion], criterion=criterion))
    found = [other.one(sample) for sample in samples]
    assert found == [walk(other, sample) for sample in samples]
    assert len({one.exit for one in found}) > 1


def test_a_batch_leaves_where_a_plain_loop_leaves(chain: Chain, samples: Array) -> None:
    agree(chain.many(samples), [walk(chain, sample) for sample in samples])


def test_a_batch_of_one_is_that_sample(chain: Chain, samples: Array) -> None:
    for sample in samples:
        agree(chain.many(sample[None]), [chain.one(sample)])


@pytest.mark.parametrize("fresh", [True, False])
def test_an_empty_batch_gives_nothing(chain: Chain, samples: Array, fresh: bool) -> None:
    other = chain.with_policy(chain.spec.policy)
    if not fresh:
        other.many(samples[:2])
    assert other.many(samples[:0]) == []
    assert other(samples[:0]) == []


@pytest.mark.parametrize("fresh", [True, False])
def test_the_logits_of_an_empty_batch_are_empty(chain: Chain, samples: Array, fresh: bool) -> None:
    other = chain.with_policy(chain.spec.policy)
    if not fresh:
        other.many(samples[:2])
    found = other.logits(samples[:0])
    assert {exit: logits.shape for exit, logits in found.items()} == dict.fromkeys(EXITS, (0, 4))


def test_the_shape_says_whether_it_is_a_sample_or_a_batch(chain: Chain, samples: Array) -> None:
    assert chain(samples[0]) == chain.one(samples[0])
    agree(chain(samples[:3]), chain.many(samples[:3]))  # type: ignore[arg-type]
    agree(chain(list(samples[:3])), chain.many(samples[:3]))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_composition_of_batches_agrees_with_one_by_one(
    bundle: Bundle, chain: Chain, samples: Array, data: st.DataObject
) -> None:
    # Thresholds lie midway between two confidences, so that the last bit decides nothing.
    every = list(chain.logits(samples).values())[:-1]
    thresholds = []
    for logits in every:
        sorted_ = np.sort(CRITERIA["max_prob"](logits))
        middles = [-inf, *((sorted_[1:] + sorted_[:-1]) / 2), inf]
        thresholds.append(float(data.draw(st.sampled_from(middles))))
    other = chain.with_policy(policy(*thresholds))
    expected = [other.one(sample) for sample in samples]
    rows = data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=40))
    found: list[Prediction] = []
    while len(found) < len(rows):
        size = data.draw(st.integers(1, len(rows) - len(found)))
        found += other.many(samples[rows[len(found) : len(found) + size]])
    agree(found, [expected[row] for row in rows])


class Counting:
    """An engine that notes how many samples it computes at each run."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.memory = engine.memory
        self.version = engine.version
        self.rows: list[int] = []

    def bind(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], rows: int
    ) -> Callable[[], None]:
        run = self.engine.bind(inputs, outputs, rows)

        def call() -> None:
            self.rows.append(rows)
            run()

        return call


def test_only_the_samples_that_remain_are_computed(chain: Chain, samples: Array) -> None:
    engines = [Counting(engine) for engine in chain.engines]
    found = [EXITS.index(one.exit) for one in Chain(chain.spec, engines).many(samples)]
    reached = [sum(exit >= depth for exit in found) for depth in range(3)]
    assert reached[0] > reached[1] > reached[2] > 0
    assert [engine.rows for engine in engines] == [[rows] for rows in reached]


def test_no_segment_runs_after_everyone_has_left(chain: Chain, samples: Array) -> None:
    spec = replace(chain.spec, policy=policy(0.0, 0.0))
    engines = [Counting(engine) for engine in chain.engines]
    other = Chain(spec, engines)
    other.many(samples[:5])
    other.one(samples[0])
    assert [engine.rows for engine in engines] == [[5, 1], [], []]


def test_batches_may_grow_and_shrink(chain: Chain, samples: Array) -> None:
    other = chain.with_policy(chain.spec.policy)
    expected = [chain.one(sample) for sample in samples]
    for size in (3, 1, 24, 2, 0, 24, 7, 1, 12, 23):
        agree(other.many(samples[:size]), expected[:size])
        assert other.one(samples[0]) == expected[0]


def test_more_batch_sizes_than_are_kept_bound(chain: Chain, samples: Array) -> None:
    many = np.tile(samples, (12, 1, 1, 1))
    expected = chain.many(samples) * 12
    other = chain.with_policy(chain.spec.policy)
    for size in (288, *range(1, 288)):
        assert len(other.many(many[:size])) == size
    agree(other.many(many), expected)


def test_no_logits_of_an_earlier_batch_remain(chain: Chain, samples: Array) -> None:
    first = chain.logits(samples[:2])
    kept = copy.deepcopy(first)
    chain.logits(samples[2:4])
    for exit in EXITS:
        np.testing.assert_array_equal(first[exit], kept[exit])


def test_logits_come_in_order_of_depth(chain: Chain, samples: Array) -> None:
    found = chain.logits(samples)
    assert list(found) == EXITS
    assert {logits.shape for logits in found.values()} == {(len(samples), 4)}


def test_tensors_are_all_that_cross_and_what_comes_out(chain: Chain, samples: Array) -> None:
    found = chain.tensors(samples[:2])
    assert found.keys() == chain.spec.tensors.keys()
    for name, spec in chain.spec.tensors.items():
        assert (found[name].dtype, found[name].shape) == (spec.dtype, (2, *spec.shape[1:]))
    np.testing.assert_array_equal(found["x"], samples[:2])


def test_a_sample_need_not_be_contiguous(chain: Chain, samples: Array) -> None:
    turned = samples.transpose(0, 1, 3, 2)
    assert not turned[0].flags.c_contiguous
    assert chain.one(turned[0]) == chain.one(np.ascontiguousarray(turned[0]))
    agree(chain.many(turned[::2]), chain.many(np.ascontiguousarray(turned[::2])))


def test_the_samples_are_left_as_they_were(chain: Chain, samples: Array) -> None:
    before = samples.copy()
    chain.many(samples)
    np.testing.assert_array_equal(samples, before)


def test_golden_files_are_read_as_tensors(chain: Chain, built_tiny: Path) -> None:
    sample = chain.read(built_tiny / "golden/000.png")
    assert (sample.shape, sample.dtype) == ((1, 8, 8), np.float32)
    pixels = np.zeros((8, 8), np.uint8)
    np.testing.assert_array_equal(chain.prepare(pixels), np.full((1, 8, 8), -2, np.float32))


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 7), (3, 8, 8), (1, 1, 1, 8, 8), (), (64,)])
def test_a_sample_of_the_wrong_shape_is_refused(chain: Chain, shape: tuple[int, ...]) -> None:
    for call in (chain.one, chain.__call__):
        with pytest.raises(InputError) as caught:
            call(np.zeros(shape, np.float32))
        assert "expected float32 [1, 8, 8]" in str(caught.value)
        assert f"found float32 {list(shape)}" in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 3, 8, 8), (2, 2, 1, 8, 8), (0,), (0, 8, 8)])
@pytest.mark.parametrize("verb", ["many", "logits", "tensors", "segment_runs"])
def test_a_batch_of_the_wrong_shape_is_refused(
    chain: Chain, verb: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        getattr(chain, verb)(np.zeros(shape, np.float32))
    assert f"found float32 {list(shape)}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", "uint8", "float16", "int32", ">f4", "bool", "object"])
def test_another_dtype_is_refused(chain: Chain, dtype: str) -> None:
    for samples in (np.zeros((1, 8, 8), dtype), np.zeros((2, 1, 8, 8), dtype)):
        with pytest.raises(InputError) as caught:
            chain(samples)
        assert f"found {samples.dtype}" in str(caught.value)
        assert "chain.prepare()" in str(caught.value)


def test_samples_of_different_shapes_are_refused(chain: Chain) -> None:
    with pytest.raises(InputError):
        chain([np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 7), np.float32)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_placed(
    chain: Chain, samples: Array, value: float
) -> None:
    bad = samples[:3].copy()
    bad[2, 0, 4, 5] = value
    with pytest.raises(InputError, match=rf"not finite: it holds {value} at \[0, 4, 5\]"):
        chain.one(bad[2])
    with pytest.raises(InputError, match=rf"not finite: it holds {value} at \[2, 0, 4, 5\]"):
        chain.many(bad)


def test_infinities_that_cancel_out_are_refused(chain: Chain, samples: Array) -> None:
    bad = samples[0].copy()
    bad[0, 0, :2] = (np.inf, -np.inf)
    with pytest.raises(InputError, match="holds inf at"):
        chain.one(bad)


def test_finite_values_whose_sum_overflows_are_taken(chain: Chain) -> None:
    large = np.full((1, 8, 8), 3e38, np.float32)
    assert chain.one(large).exit in EXITS
    assert chain.one(-large).exit in EXITS
    assert len(chain.many(np.stack([large, -large]))) == 2


def test_a_nan_confidence_never_leaves_early(chain: Chain, samples: Array) -> None:
    # Finite inputs so large that the network's own sums overflow.
    large = np.random.default_rng(0).choice([-3e38, 3e38], (1, 8, 8)).astype(np.float32)
    eager = chain.with_policy(policy(-inf, -inf))
    assert isnan(CRITERIA["max_prob"](eager.logits(large[None])["first"][0]))
    assert eager.one(samples[0]).exit == "first"
    found = eager.one(large)
    assert found.exit == "last"
    assert isnan(found.confidence)
    mixed = eager.many(np.stack([samples[0], large, samples[1]]))
    assert [one.exit for one in mixed] == ["first", "last", "first"]
    assert isnan(mixed[1].confidence)


@pytest.mark.parametrize(
    ("thresholds", "exit"),
    [((inf, inf), "last"), ((0.0, inf), "first"), ((inf, 0.0), "second"), ((1.01, 1.01), "last")],
)
def test_thresholds_alone_decide_where_samples_leave(
    chain: Chain, samples: Array, thresholds: tuple[float, ...], exit: str
) -> None:
    other = chain.with_policy(policy(*thresholds))
    found = other.many(samples)
    assert {one.exit for one in found} == {exit}
    expected = other.logits(samples)[exit].argmax(axis=1)
    assert [one.class_index for one in found] == expected.tolist()
    assert {other.one(sample).exit for sample in samples} == {exit}


def test_a_confidence_on_its_threshold_leaves(chain: Chain, samples: Array) -> None:
    confidence = float(CRITERIA["max_prob"](chain.logits(samples[:1])["first"][0]))
    on, above = policy(confidence, inf), policy(float(np.nextafter(confidence, 2)), inf)
    assert chain.with_policy(on).one(samples[0]).exit == "first"
    assert chain.with_policy(above).one(samples[0]).exit == "last"


def test_the_label_is_that_of_the_class(chain: Chain, samples: Array) -> None:
    for one in chain.many(samples):
        assert one.label == LABELS[one.class_index]


def test_timings_come_only_when_asked_for(chain: Chain, samples: Array) -> None:
    assert chain.one(samples[0]).segment_latency_ms is None
    assert {one.segment_latency_ms for one in chain.many(samples)} == {None}
    assert {one.segment_latency_ms for one in chain(samples)} == {None}  # type: ignore[union-attr]


def test_timings_have_one_entry_per_segment_that_ran(chain: Chain, samples: Array) -> None:
    alone = [chain.one(sample, timings=True) for sample in samples]
    for one in (*alone, *chain.many(samples, timings=True), chain(samples[0], timings=True)):
        assert isinstance(one, Prediction)
        assert one.segment_latency_ms is not None
        assert len(one.segment_latency_ms) == EXITS.index(one.exit) + 1
        assert min(one.segment_latency_ms) > 0


def test_the_bound_runs_of_segments_compute_the_logits(chain: Chain, samples: Array) -> None:
    other = chain.with_policy(chain.spec.policy)
    runs = other.segment_runs(samples[:2])
    assert len(runs) == 3
    for run in runs:
        run()
    logits = other.spec.segments[-1].exits[-1].logits
    expected = chain.logits(samples[:2])["last"]
    np.testing.assert_array_equal(other._room.buffers[logits], expected)


def test_a_chain_called_from_several_threads_answers_as_it_does_from_one(
    chain: Chain, samples: Array
) -> None:
    shared = chain.with_policy(chain.spec.policy)
    sibling = chain.with_policy(chain.spec.policy)
    work: list[tuple[Callable[[Array], Any], Array]] = []
    for turn in range(400):
        caller = sibling if turn % 5 == 0 else shared
        size = turn % 7
        rows = samples[turn % 17 :][:size]
        work.append((caller.many, rows) if size else (caller.one, samples[turn % 24]))
    expected = [call(rows) for call, rows in work]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: job[0](job[1]), work))
    assert found == expected


def test_another_policy_shares_the_engines_and_leaves_the_first_alone(
    chain: Chain, samples: Array
) -> None:
    before = chain.many(samples)
    other = chain.with_policy(policy(inf, inf, criterion="margin"))
    other.many(samples)
    assert all(ours is theirs for ours, theirs in zip(chain.engines, other.engines, strict=True))
    assert other.spec.policy.criterion == "margin"
    assert chain.many(samples) == before


def test_thresholds_that_are_set_hold_for_every_plan_bound_before(
    chain: Chain, samples: Array
) -> None:
    changed = chain.with_policy(chain.spec.policy)
    for size in (24, 1, 7):
        changed.many(samples[:size])
    bound = {rows: [step.run for step in plan.steps] for rows, plan in changed._plans.items()}
    for thresholds in ((0.0, 0.0), (inf, inf), (0.30, 0.29), (inf, 0.29), (0.31, inf)):
        changed.set_thresholds(thresholds)
        assert changed.spec.policy == policy(*thresholds)
        fresh = chain.with_policy(changed.spec.policy)
        assert [changed.one(sample) for sample in samples] == [fresh.one(one) for one in samples]
        for size in (24, 7, 3):
            assert changed.many(samples[:size]) == fresh.many(samples[:size])
    for rows, runs in bound.items():
        assert [step.run for step in changed._plans[rows].steps] == runs, "it was bound again"
    assert chain.spec.policy != changed.spec.policy


@pytest.mark.parametrize("thresholds", [(), (0.5,), (0.5, 0.5, 0.5)])
def test_thresholds_of_another_number_of_exits_are_refused(
    chain: Chain, thresholds: tuple[float, ...]
) -> None:
    before = chain.spec
    with pytest.raises(InputError, match=f"3 exits need 2 thresholds, found {len(thresholds)}"):
        chain.set_thresholds(thresholds)
    assert chain.spec is before


class Noting(Watcher):
    """A watcher that notes what it is told, and sets thresholds when it first is."""

    def __init__(self, chain: Chain, *thresholds: float) -> None:
        self.chain, self.thresholds = chain, thresholds
        self.told: list[tuple[int, float, str]] = []

    def add(self, depth: int, confidence: float, started_ns: int, ended_ns: int, stop: str) -> None:
        assert started_ns < ended_ns
        self.told.append((depth, confidence, stop))
        if self.thresholds:
            self.chain.retune(self.thresholds)


@pytest.mark.parametrize("thresholds", ["ab", None, [[0.5], [0.5]], [0.5, float("nan")], 0.5])
def test_thresholds_that_are_no_numbers_are_refused(chain: Chain, thresholds: Any) -> None:
    before = chain.spec.policy
    with pytest.raises(InputError, match="thresholds are numbers, one per early exit"):
        chain.set_thresholds(thresholds)
    assert chain.spec.policy == before


def told(found: list[Prediction]) -> list[tuple[int, float, str]]:
    return [(EXITS.index(one.exit), one.confidence, one.stop) for one in found]


def test_watchers_are_told_of_every_sample_in_order(chain: Chain, samples: Array) -> None:
    watched = chain.with_policy(chain.spec.policy)
    watcher = Noting(watched)
    watched.watch(watcher)
    one_by_one = [watched.one(sample) for sample in samples]
    many = watched.many(np.tile(samples, (4, 1, 1, 1)))
    with watched.lock:
        watched.unwatch(watcher)
    watched.one(samples[0])
    assert watcher.told == told(one_by_one) + told(many)
    assert len({depth for depth, *_ in watcher.told}) == 3


def test_thresholds_that_a_watcher_sets_amid_a_batch_are_for_the_next(
    chain: Chain, samples: Array
) -> None:
    watched = chain.with_policy(chain.spec.policy)
    watched.watch(Noting(watched, inf, inf))
    assert watched.many(samples) == chain.many(samples)
    assert {one.exit for one in watched.many(samples)} == {"last"}


def test_two_watchers_of_a_kind_are_refused(chain: Chain) -> None:
    watched = chain.with_policy(chain.spec.policy)
    watched.watch(Noting(watched))
    with pytest.raises(InputError, match="the chain has its Noting already: close that one first"):
        watched.watch(Noting(watched))


def test_a_chain_is_loaded_from_a_path(built_tiny: Path, chain: Chain, samples: Array) -> None:
    for path in (built_tiny, str(built_tiny)):
        loaded = Chain.load(path, variant="default", threads=2)
        agree(loaded.many(samples), chain.many(samples))


def test_an_unknown_variant_is_refused(built_tiny: Path) -> None:
    with pytest.raises(BundleError, match="no variant 'wide'; it has default"):
        Chain.load(built_tiny, variant="wide")


@pytest.mark.parametrize("damage", [lambda raw: b"garbage", lambda raw: b"", lambda raw: raw[:999]])
def test_bytes_that_the_engine_refuses_are_a_device_error_naming_the_segment(
    bundle: Bundle, damage: Callable[[bytes], bytes]
) -> None:
    path = bundle.manifest.variant().segments[1].path
    damaged = {**bundle.segments, path: damage(bundle.segments[path])}
    with pytest.raises(DeviceError, match="onnxruntime refuses segment-2: "):
        Chain.from_bundle(replace(bundle, segments=damaged))


def test_an_unknown_engine_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="no engine 'abacus'; it has onnxruntime"):
        load_engines("abacus", [("segment-1", b"")], threads=1)


def changed(tiny_bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another manifest, identified and sealed anew."""
    document = json.loads((tiny_bundle / MANIFEST_NAME).read_bytes())
    del document["seal"]
    change(document)
    document["bundle_id"] = identify(document)
    (tiny_bundle / MANIFEST_NAME).write_bytes(seal(document))
    return tiny_bundle


def renamed(document: dict[str, Any]) -> None:
    document.update(json.loads(json.dumps(document).replace('"relu"', '"relax"')))


@pytest.mark.parametrize(
    "change",
    [
        renamed,
        lambda document: document["variants"][0]["tensors"]["relu"].update(shape=[None, 4, 8, 8]),
        lambda document: document["variants"][0]["tensors"]["relu"].update(shape=[None, 512]),
        lambda document: document["variants"][0]["tensors"]["relu"].update(dtype="int8"),
        lambda document: document["variants"][0]["tensors"]["relu"].update(dtype="float16"),
    ],
    ids=["name", "smaller", "rank", "int8", "float16"],
)
@pytest.mark.parametrize("verb", ["one", "many"])
def test_a_contract_that_the_segment_does_not_keep_is_a_device_error(
    tiny_bundle: Path, samples: Array, verb: str, change: Callable[[dict[str, Any]], object]
) -> None:
    chain = Chain.load(changed(tiny_bundle, change))
    with pytest.raises(DeviceError, match="onnxruntime refuses segment-1"):
        getattr(chain, verb)(samples[0] if verb == "one" else samples)


@pytest.mark.parametrize(
    ("key", "what"),
    [("criterion", "criterion"), ("combine", "combination"), ("otherwise", "otherwise")],
)
def test_what_this_edgekit_does_not_have_is_refused(tiny_bundle: Path, key: str, what: str) -> None:
    folder = changed(tiny_bundle, lambda document: document["policy"].update({key: "hunch"}))
    with pytest.raises(BundleError, match=f"no {what} 'hunch'; it has .*install the edgekit"):
        Chain.load(folder)


class Scripted:
    """An engine whose logits stand in a table; the first of its inputs says in which row."""

    memory = HostMemory()
    version = "scripted"

    def __init__(self, table: Array) -> None:
        self.table = table

    def bind(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], rows: int
    ) -> Callable[[], None]:
        (row, *_), (logits, *others) = inputs.values(), outputs.values()

        def run() -> None:
            logits[:rows] = self.table[row[:rows].ravel().astype(int)]
            for one in others:
                one[:rows] = row[:rows]

        return run


def scripted(logits: list[Array], policy: Policy) -> Chain:
    """A chain whose exits give these logits `[samples, classes]` for the inputs 0, 1, 2, ..."""
    classes = logits[0].shape[1]
    tensors = {"x": TensorSpec("float32", (None, 1))}
    segments: list[Segment] = []
    for depth in range(len(logits)):
        out = TensorSpec("float32", (None, classes))
        tensors |= {f"z{depth}": out, f"f{depth}": TensorSpec("float32", (None, 1))}
        given = f"f{depth - 1}" if depth else "x"
        exits = (Exit(f"exit{depth}", f"z{depth}"),)
        outputs = (f"z{depth}", f"f{depth}")
        segments.append(Segment("", 0, "", f"segment-{depth}", (given,), outputs, exits, 0, 0))
    labels = tuple(f"class {index}" for index in range(classes))
    spec = ChainSpec((Input("x", "float32", (1,), None),), labels, tensors, tuple(segments), policy)
    return Chain(spec, [Scripted(one) for one in logits])


def facts(found: list[Prediction]) -> Array:
    """Exit, class and confidence of each, and whether it was sure."""
    rows = [(int(p.exit[4:]), p.class_index, p.confidence, p.stop == "sure") for p in found]
    return np.array(rows, float)


@pytest.mark.parametrize("policy", POLICIES + TEMPERED, ids=policy_id)
@settings(deadline=None, max_examples=40)
@given(network=networks())
def test_one_many_and_decide_are_one_decision_whatever_the_network_says(
    policy: Policy, network: tuple[list[Array], tuple[float, ...]]
) -> None:
    logits, thresholds = network
    policy = for_exits(policy, thresholds)
    chain = scripted(logits, policy)
    samples = np.arange(len(logits[0]), dtype=np.float32)[:, None]
    decided = decide(logits, policy)
    sure = decided.depths < len(thresholds)
    expected = np.column_stack([*decided[:3], sure])
    np.testing.assert_array_equal(facts([chain.one(one) for one in samples]), expected)
    np.testing.assert_array_equal(facts(chain.many(samples)), expected)
    final = [one.stop for one in chain.many(samples)]
    assert final == ["sure" if one else "final" for one in sure]


def test_one_many_and_decide_are_one_decision_on_ten_thousand_samples() -> None:
    rng = np.random.default_rng(1)
    logits = list((3 * rng.standard_normal((4, 10_000, 6))).astype(np.float32))
    for one in logits:
        one[rng.integers(0, 10_000, 300), rng.integers(0, 6, 300)] = rng.choice(
            [np.nan, np.inf, -np.inf, 1e-45, 3e38], 300
        )
    samples = np.arange(10_000, dtype=np.float32)[:, None]
    loaded = scripted(logits, Policy("max_prob", (0.5, 0.5, 0.5)))
    for kind in POLICIES + TEMPERED:
        policy = replace(kind, thresholds=thresholds_of(kind))
        chain, decided = loaded.with_policy(policy), decide(logits, policy)
        expected = np.column_stack([*decided[:3], decided.depths < 3])
        np.testing.assert_array_equal(facts(chain.many(samples)), expected)
        few = slice(0, 10_000, 37)
        alone = [chain.one(one) for one in samples[few]]
        np.testing.assert_array_equal(facts(alone), expected[few])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thresholds": (0.5,)}, "3 exits need 2 thresholds, found 1"),
        ({"weights": (1.0, 1.0, 1.0)}, "weights need combine: sum or geometric"),
        ({"combine": "sum", "weights": (1.0, 1.0)}, "3 exits need 3 weights, found 2"),
        ({"combine": "sum", "weights": (1.0, 0.0, 1.0)}, "weights are finite and above 0"),
        ({"combine": "geometric", "weights": (1.0, inf, 1.0)}, "weights are finite and above 0"),
        ({"combine": "sum", "weights": (1.0, float("nan"), 1.0)}, "weights are finite"),
        ({"temperatures": (1.0, 1.0)}, "3 exits need 3 temperatures, found 2"),
        ({"temperatures": (1.0, 0.0, 1.0)}, "temperatures are finite and above 0"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(
    chain: Chain, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=f"policy: {words}"):
        chain.with_policy(replace(chain.spec.policy, **change))


def test_the_exit_named_is_the_one_whose_answer_it_is() -> None:
    logits = [np.array([one], np.float32) for one in ([3, 0, 0], [0, 0, 1], [0, 2, 0])]
    chain = scripted(logits, Policy("max_prob", (2.0, 2.0), otherwise="max_confidence"))
    found = chain.one(np.zeros(1, np.float32), timings=True)
    assert (found.exit, found.class_index, found.stop) == ("exit0", 0, "final")
    assert found.confidence == float(CRITERIA["max_prob"](logits[0][0]))
    assert len(found.segment_latency_ms or ()) == 3
    other = chain.with_policy(Policy(PATIENCE, (1.0, 1.0)))
    assert other.one(np.zeros(1, np.float32))[2:5] == ("exit2", 0.0, "final")
