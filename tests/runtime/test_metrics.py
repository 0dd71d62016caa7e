import gc
import json
import math
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.manifest import Policy
from edgekit.bundle.reader import Bundle
from edgekit.errors import InputError
from edgekit.runtime import Chain, Metrics
from edgekit.runtime.bench import load_test_data
from tests.conftest import ROOT

Array = npt.NDArray[Any]
Line = dict[str, Any]

EXITS = ["first", "second", "last"]
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def samples(bundle: Bundle) -> Array:
    data = load_test_data(bundle)
    assert data is not None
    return data[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "FakeTime":
    fake = FakeTime()
    monkeypatch.setattr("edgekit.runtime.metrics.time", fake)
    return fake


class FakeTime:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now_ns = 5 * SECOND

    def perf_counter_ns(self) -> int:
        return self.now_ns


def lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(line: Line) -> dict[str, int]:
    return {exit["name"]: exit["count"] for exit in line["exits"]}


def test_the_counts_are_those_of_what_the_chain_answered(
    chain: Chain, samples: Array, path: Path
) -> None:
    with Metrics(chain, path) as metrics:
        assert chain.metrics is metrics
        found = [chain.one(sample) for sample in samples]
        found += chain.many(samples)
        found.append(chain(samples[0]))  # type: ignore[arg-type]
    (line,) = lines(path)
    assert line["samples"] == len(found) == 49
    assert line["deadline_stops"] == line["lost_lines"] == 0
    assert line["bundle_id"] == chain.spec.bundle_id is not None
    for exit in line["exits"]:
        here = [one.confidence for one in found if one.exit == exit["name"]]
        assert exit["count"] == len(here) > 0
        assert exit["not_finite"] == 0
        assert exit["confidence"] == pytest.approx(
            {
                "mean": np.mean(here),
                "min": min(here),
                "p10": np.percentile(here, 10),
                "p50": np.percentile(here, 50),
            }
        )
        latency = exit["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["max"]
        assert 0 < latency["mean"] <= latency["max"]


@settings(max_examples=50)
@given(
    seen=st.lists(
        st.tuples(st.integers(0, 2), st.floats(-1, 1), st.integers(0, 10**12)), min_size=1
    )
)
def test_the_statistics_are_numpys(
    loaded: Chain, tmp_path_factory: pytest.TempPathFactory, seen: list[tuple[int, float, int]]
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    with Metrics(Chain(loaded.spec, loaded.engines), path) as metrics:
        for depth, confidence, latency_ns in seen:
            metrics.add(depth, confidence, 3, 3 + latency_ns, "sure")
    (line,) = lines(path)
    assert line["samples"] == len(seen)
    for depth, exit in enumerate(line["exits"]):
        here = [(confidence, ns / 1e6) for at, confidence, ns in seen if at == depth]
        assert exit["count"] == len(here)
        if not here:
            assert exit["confidence"] is exit["latency_ms"] is None
            continue
        confidences, latencies = np.array(here).T
        for values, found, percents in (
            (confidences, exit["confidence"], (10, 50)),
            (latencies, exit["latency_ms"], (50, 95)),
        ):
            assert found["mean"] == pytest.approx(values.mean())
            for percent in percents:
                assert found[f"p{percent}"] == pytest.approx(np.percentile(values, percent))
        assert exit["confidence"]["min"] == confidences.min()
        assert exit["latency_ms"]["max"] == latencies.max()


def test_a_confidence_that_is_no_number_is_counted_and_spoils_no_mean(
    chain: Chain, path: Path
) -> None:
    with Metrics(chain, path) as metrics:
        for confidence in (0.25, math.nan, 0.75, math.inf):
            metrics.add(0, confidence, 0, 1, "sure")
        metrics.add(2, math.nan, 0, 1, "final")
    (line,) = lines(path)
    first, _, last = line["exits"]
    assert (first["count"], first["not_finite"], first["confidence"]["mean"]) == (4, 2, 0.5)
    assert (last["count"], last["not_finite"], last["confidence"]) == (1, 1, None)


def test_an_answer_at_a_deadline_is_counted_as_one(
    chain: Chain, samples: Array, path: Path
) -> None:
    chain = chain.with_policy(Policy("max_prob", (math.inf, math.inf)))
    chain.segment_ms = (0, 0, 1e9)
    with Metrics(chain, path):
        chain.one(samples[0], deadline_ms=1e6)
        chain.one(samples[1], deadline_ms=1e6)
        chain.one(samples[2])
    (line,) = lines(path)
    assert (line["samples"], line["deadline_stops"]) == (3, 2)
    assert counts(line) == {"first": 0, "second": 2, "last": 1}


def test_a_sample_is_counted_where_it_left_whoever_answers(
    chain: Chain, samples: Array, path: Path
) -> None:
    refused = (math.inf, math.inf)
    chain = chain.with_policy(Policy("max_prob", refused, otherwise="max_confidence"))
    with Metrics(chain, path):
        answered = {chain.one(sample).exit for sample in samples}
        chain.many(samples)
    (line,) = lines(path)
    assert answered - {"last"}
    assert counts(line) == {"first": 0, "second": 0, "last": 2 * len(samples)}


def test_a_window_closes_with_its_last_sample(chain: Chain, samples: Array, path: Path) -> None:
    Metrics(chain, path, every_samples=10)
    for number, sample in enumerate([*samples, *samples], 1):
        chain.one(sample)
        written = lines(path) if path.stat().st_size else []
        assert [line["samples"] for line in written] == [10] * (number // 10)
    chain.many(samples)  # 8 wait: 2 of these close that window, then 10 and 10, and 2 wait.
    assert [line["samples"] for line in lines(path)] == [10] * 7
    assert chain.metrics is not None
    chain.metrics.close()
    assert [line["samples"] for line in lines(path)] == [10] * 7 + [2]


def test_a_window_closes_with_the_first_sample_after_its_time(
    chain: Chain, path: Path, clock: FakeTime
) -> None:
    metrics = Metrics(chain, path, every_seconds=60)
    began = clock.now_ns

    def sample_at(seconds: float) -> None:
        ended = began + int(seconds * SECOND)
        metrics.add(0, 0.5, ended - 1_000_000, ended, "sure")

    sample_at(1)
    sample_at(59.999)
    assert path.stat().st_size == 0
    sample_at(60)
    sample_at(119.999)
    sample_at(500)  # Nobody came for a while: the window is as long as that.
    sample_at(501)
    clock.now_ns = began + 503 * SECOND
    metrics.close()
    found = [(line["seconds"], line["samples"]) for line in lines(path)]
    assert found == [(60, 3), (440, 2), (3, 1)]
    assert lines(path)[0]["exits"][0]["latency_ms"]["max"] == 1


def test_the_latency_in_a_batch_is_that_of_the_batch_so_far(
    chain: Chain, samples: Array, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ticking(FakeTime):
        def perf_counter_ns(self) -> int:
            self.now_ns += 1_000_000
            return self.now_ns

    monkeypatch.setattr("edgekit.runtime.chain.time", Ticking())
    with Metrics(chain, path):
        chain.many(samples)
    # One look at the clock when the batch begins, one after each segment.
    for depth, exit in enumerate(lines(path)[0]["exits"], 1):
        assert exit["latency_ms"] == {"mean": depth, "p50": depth, "p95": depth, "max": depth}


def test_no_window_ends_before_it_began_though_a_batch_is_told_in_its_order(
    chain: Chain, samples: Array, path: Path
) -> None:
    with Metrics(chain, path, every_samples=1):
        chain.many(samples)  # A sample that left at the last exit comes before some of the first.
    assert [line["samples"] for line in lines(path)] == [1] * len(samples)
    assert min(line["seconds"] for line in lines(path)) >= 0


def test_a_line_says_when_it_was_written_and_by_whom(
    chain: Chain, samples: Array, path: Path, built_tiny: Path
) -> None:
    before = datetime.now(timezone.utc)
    with Metrics(chain, path):
        chain.one(samples[0])
    (line,) = lines(path)
    written = datetime.fromisoformat(line["time"])
    assert written.utcoffset() is not None
    assert -1 < (written - before).total_seconds() < 60
    assert 0 < line["seconds"] < 60
    subprocess.run([sys.executable, "-c", SERVE, path, built_tiny], check=True, cwd=ROOT)
    assert line["pid"] != lines(path)[1]["pid"]


SERVE = """
import sys
import numpy as np
from edgekit.runtime import Chain
chain = Chain.load(sys.argv[2], metrics=sys.argv[1])
for _ in range(3):
    chain.one(np.zeros((1, 8, 8), np.float32))
"""


def test_a_process_that_ends_without_closing_writes_what_it_has(
    built_tiny: Path, path: Path
) -> None:
    subprocess.run([sys.executable, "-c", SERVE, path, built_tiny], check=True, cwd=ROOT)
    (line,) = lines(path)
    assert line["samples"] == 3


def test_closing_twice_writes_once_and_nothing_is_counted_after(
    chain: Chain, samples: Array, path: Path
) -> None:
    metrics = Metrics(chain, path)
    chain.one(samples[0])
    metrics.close()
    assert chain.metrics is None
    chain.one(samples[1])
    metrics.close()
    metrics.flush()
    assert [line["samples"] for line in lines(path)] == [1]


def test_closing_an_old_one_leaves_the_new_one_counting(
    chain: Chain, samples: Array, path: Path
) -> None:
    old = Metrics(chain, path)
    old.close()
    with Metrics(chain, path) as new:
        old.close()
        assert chain.metrics is new
        chain.one(samples[0])
    assert [line["samples"] for line in lines(path)] == [1]


def test_a_window_without_samples_is_no_line(chain: Chain, path: Path) -> None:
    with Metrics(chain, path) as metrics:
        metrics.flush()
    assert path.read_bytes() == b""


def test_lines_are_appended(chain: Chain, samples: Array, path: Path) -> None:
    path.write_text('{"earlier": "run"}\n')
    for _ in range(2):
        with Metrics(chain, path):
            chain.one(samples[0])
    assert [line.get("samples") for line in lines(path)] == [None, 1, 1]


def test_a_refused_sample_is_not_counted(chain: Chain, samples: Array, path: Path) -> None:
    with Metrics(chain, path):
        for bad in (np.full((1, 8, 8), np.nan, np.float32), samples[0].astype(np.float64)):
            with pytest.raises(InputError):
                chain.one(bad)
        chain.one(samples[0])
    assert [line["samples"] for line in lines(path)] == [1]


def test_counting_changes_no_answer(chain: Chain, samples: Array, path: Path) -> None:
    without = [chain.one(sample) for sample in samples], chain.many(samples)
    with Metrics(chain, path):
        assert ([chain.one(sample) for sample in samples], chain.many(samples)) == without


def test_a_copy_with_another_policy_is_not_counted(
    chain: Chain, samples: Array, path: Path
) -> None:
    with Metrics(chain, path):
        other = chain.with_policy(chain.spec.policy)
        chain.measure()
        other.one(samples[0])
        chain.one(samples[0])
    assert [line["samples"] for line in lines(path)] == [1]


def test_two_files_for_one_chain_are_refused(chain: Chain, path: Path) -> None:
    with Metrics(chain, path), pytest.raises(InputError, match=r"close chain\.metrics first"):
        Metrics(chain, path)


@pytest.mark.parametrize("size", [{"every_samples": 0}, {"every_seconds": 0}])
def test_a_window_of_nothing_is_refused(chain: Chain, path: Path, size: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1 sample and more than 0 s"):
        Metrics(chain, path, **size)
    assert not path.exists()
    assert chain.metrics is None


@pytest.mark.parametrize("place", [".", "no/such/folder.jsonl"])
def test_a_file_that_cannot_be_opened_is_refused_at_the_start(
    chain: Chain, tmp_path: Path, built_tiny: Path, place: str
) -> None:
    with pytest.raises(InputError, match="metrics cannot be written there"):
        Metrics(chain, tmp_path / place)
    with pytest.raises(InputError, match="metrics cannot be written there"):
        Chain.load(built_tiny, metrics=tmp_path / place)
    assert chain.metrics is None


def test_a_full_disk_disturbs_no_inference(chain: Chain, samples: Array) -> None:
    without = [chain.one(sample) for sample in samples]
    with Metrics(chain, "/dev/full", every_samples=1):
        assert [chain.one(sample) for sample in samples] == without


def test_lost_lines_are_told_in_the_next(chain: Chain, samples: Array, tmp_path: Path) -> None:
    folder, away = tmp_path / "disk", tmp_path / "away"
    folder.mkdir()
    with Metrics(chain, folder / "metrics.jsonl", every_samples=2):
        chain.many(samples[:2])
        folder.rename(away)
        chain.many(samples[:7])  # Three lines are lost, and a sample waits.
        away.rename(folder)
        chain.many(samples[:3])
    found = [(line["lost_lines"], line["samples"]) for line in lines(folder / "metrics.jsonl")]
    assert found == [(0, 2), (3, 2), (0, 2)]


def test_a_file_that_was_moved_away_is_begun_anew(chain: Chain, samples: Array, path: Path) -> None:
    with Metrics(chain, path, every_samples=1):
        chain.one(samples[0])
        path.rename(path.with_suffix(".1"))
        chain.one(samples[1])
    assert len(lines(path)) == len(lines(path.with_suffix(".1"))) == 1


FILL = """
import resource, sys
import numpy as np
from edgekit.runtime import Chain, Metrics
chain = Chain.load(sys.argv[2])
x = np.zeros((1, 8, 8), np.float32)
with Metrics(chain, sys.argv[1], every_samples=1):
    chain.one(x)
    one = chain.metrics.path.stat().st_size
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    # Room for a line and a half, then for all again.
    resource.setrlimit(resource.RLIMIT_FSIZE, (one + one // 2, most))
    answers = {chain.one(x) for _ in range(3)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    answers |= {chain.one(x) for _ in range(2)}
assert len(answers) == 1
"""


def test_a_line_that_a_full_disk_cut_off_spoils_no_other(built_tiny: Path, path: Path) -> None:
    subprocess.run([sys.executable, "-c", FILL, path, built_tiny], check=True, cwd=ROOT)
    first, torn, after, last = path.read_text().splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)
    found = [json.loads(line)["lost_lines"] for line in (first, after, last)]
    assert found == [0, 3, 0]


def test_a_line_that_a_lost_power_cut_off_spoils_no_other(
    chain: Chain, samples: Array, path: Path
) -> None:
    path.write_text('{"time": "20')
    with Metrics(chain, path):
        chain.one(samples[0])
    torn, line = path.read_text().splitlines()
    assert torn == '{"time": "20'
    assert json.loads(line)["samples"] == 1


READ_ONLY = """
import subprocess, sys
import numpy as np
from edgekit.errors import InputError
from edgekit.runtime import Chain, Metrics
disk = sys.argv[1]
chain = Chain.load(sys.argv[2])
x = np.zeros((1, 8, 8), np.float32)
def remount(how):
    subprocess.run(["mount", "-o", "remount," + how, disk], check=True)
with Metrics(chain, disk + "/metrics.jsonl", every_samples=1):
    chain.one(x)
    remount("ro")
    chain.one(x)
    try:
        Metrics(Chain(chain.spec, chain.engines), disk + "/other.jsonl")
    except InputError as error:
        print(error)
    remount("rw")
    chain.one(x)
print(open(disk + "/metrics.jsonl").read(), end="")
"""


def test_a_disk_that_turns_read_only_disturbs_no_inference(
    built_tiny: Path, tmp_path: Path
) -> None:
    unshare = ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of one's own")
    (tmp_path / "serve.py").write_text(READ_ONLY)
    serve = f"{sys.executable} {tmp_path}/serve.py {tmp_path} {built_tiny}"
    script = f"exec 3<{tmp_path}/serve.py; mount -t tmpfs tmpfs {tmp_path} && "
    script += serve.replace(f"{tmp_path}/serve.py", "/dev/fd/3")
    ended = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    refused, *written = ended.stdout.splitlines()
    assert refused.endswith("metrics cannot be written there: Read-only file system")
    assert [json.loads(line)["lost_lines"] for line in written] == [0, 1]


def test_chains_in_several_threads_and_processes_share_a_file(
    built_tiny: Path, samples: Array, path: Path
) -> None:
    command = [sys.executable, "-c", SERVE.replace("range(3)", "range(2500)"), path, built_tiny]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    chains = [Chain.load(built_tiny) for _ in range(2)]
    every = [Metrics(chain, path, every_samples=3) for chain in chains]
    # One chain is called from two threads, and one of the files is flushed meanwhile.
    work = [(chains[turn % 2], samples[turn % 24]) for turn in range(600)]
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda job: job[0].one(job[1]), work)
        for _ in range(50):
            every[0].flush()
        found = list(answers)
    for metrics in every:
        metrics.close()
    assert [process.wait() for process in processes] == [0, 0]
    written = lines(path)
    ours = [line for line in written if line["samples"] <= 3]
    assert sum(line["samples"] for line in ours) == 600
    for exit in EXITS:
        assert sum(counts(line)[exit] for line in ours) == sum(one.exit == exit for one in found)
    assert sorted(line["samples"] for line in written if line["samples"] > 3) == (
        [500, 500, 1000, 1000, 1000, 1000]
    )


def test_processes_that_write_at_once_leave_no_empty_line_and_no_torn_one(
    built_tiny: Path, path: Path
) -> None:
    # A line a sample and no inference between them, so that writes meet, also across two pages.
    write = SERVE.replace("metrics=sys.argv[1]", "").replace("range(3)", "range(3000)")
    write = write.replace(
        "chain.one(np.zeros((1, 8, 8), np.float32))", "metrics.add(0, 0, 0, 0, '')"
    )
    write = write.replace("for _", "metrics = Metrics(chain, sys.argv[1], every_samples=1)\nfor _")
    write = write.replace("import Chain", "import Chain, Metrics")
    command = [sys.executable, "-c", write, path, built_tiny]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [line["samples"] for line in lines(path)] == [1] * 9000


def test_a_chain_is_loaded_with_metrics(built_tiny: Path, samples: Array, path: Path) -> None:
    chain = Chain.load(built_tiny, metrics=path)
    chain.one(samples[0])
    assert chain.metrics is not None
    chain.metrics.close()
    assert [line["samples"] for line in lines(path)] == [1]


def test_a_chain_that_is_dropped_is_freed_and_its_samples_are_written(
    chain: Chain, samples: Array, tmp_path: Path
) -> None:
    counted = chain.with_policy(chain.spec.policy)
    Metrics(counted, tmp_path / "metrics.jsonl")
    counted.one(samples[0])
    gone = weakref.ref(counted)
    del counted
    gc.collect()
    assert gone() is None
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["samples"] == 1
