"""The benchmarks' arithmetic is exact: order, ratios, percentiles, loops; memory and pinning are read back."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.common import (
    Environment,
    Figure,
    bind_threads,
    closed_loop,
    interleave,
    milliseconds,
    paired_ratio,
    percentile,
    pinned,
    process_tree,
    pss_nbytes,
    summarize,
    timed,
    with_quartiles,
    write_result,
)
from odin.testing import FakeClock


def test_percentile_is_linear_between_neighbours() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.5, 3.25, 4.0]


@pytest.mark.parametrize(("values", "share", "match"), [([], 0.5, "no values"), ([1.0], 99, "outside 0..1")])
def test_percentile_refuses(values: list[float], share: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        percentile(values, share)


def test_summary_is_median_and_quartiles() -> None:
    figure = summarize([5.0, 1.0, 4.0, 2.0, 3.0])
    assert figure == Figure(3.0, 2.0, 4.0, 5)
    assert figure.spread == pytest.approx(2 / 3)
    assert with_quartiles(figure, "{:.0f}".format) == "3 (2..4)"


def test_ratio_pairs_rounds_so_that_drift_cancels() -> None:
    assert paired_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == Figure(2.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError, match="3 values, 2 of the reference"):
        paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def test_every_candidate_once_a_round_in_an_order_that_repeats() -> None:
    def record(log: list[str], name: str) -> Callable[[], int]:
        return lambda: log.append(name) or len(log)

    logs: list[list[str]] = []
    for _ in range(2):
        log: list[str] = []
        kept = interleave({name: record(log, name) for name in "abc"}, rounds=4, warmup=1, seed=3)
        assert [len(answers) for answers in kept.values()] == [4, 4, 4]
        assert list(kept) == ["a", "b", "c"]
        assert all(sorted(log[start : start + 3]) == ["a", "b", "c"] for start in range(0, 15, 3))
        assert min(min(answers) for answers in kept.values()) == 4, "the warm-up round's answers are dropped"
        logs.append(log)
    assert logs[0] == logs[1]
    assert len({tuple(logs[0][start : start + 3]) for start in range(0, 15, 3)}) > 1


def test_no_rounds() -> None:
    with pytest.raises(ValueError, match="rounds=0"):
        interleave({}, rounds=0)


def test_timed_reads_the_clock_around_the_call() -> None:
    clock = FakeClock()

    def call() -> None:
        clock.now_s += 2.5

    assert timed(call, clock=clock)() == 2.5


def test_closed_loop_counts_after_the_warm_up() -> None:
    clock = FakeClock()

    def submit(index: int) -> Future[int]:  # a server of 2 s per request that answers at once
        clock.now_s += 2.0
        future: Future[int] = Future()
        future.set_result(index)
        return future

    result = closed_loop(submit, count=5, in_flight=1, warmup=3, clock=clock)
    assert result.throughput_hz == 0.5
    assert result.latency_s == (2.0,) * 5
    assert (result.p50_s, result.p99_s) == (2.0, 2.0)


def test_closed_loop_keeps_the_bound() -> None:
    lock, pending, peak = threading.Lock(), [], []

    def submit(index: int) -> Future[int]:
        future: Future[int] = Future()
        with lock:
            pending.append(future)
            peak.append(len(pending))
            full = len(pending) == 3
        if full:
            for waiting in [pending.pop(0), pending.pop(0), pending.pop(0)]:
                threading.Thread(target=waiting.set_result, args=(0,)).start()
        return future

    assert len(closed_loop(submit, count=9, in_flight=3).latency_s) == 9
    assert max(peak) == 3


def test_closed_loop_raises_a_failure() -> None:
    def submit(index: int) -> Future[int]:
        future: Future[int] = Future()
        if index == 2:
            future.set_exception(KeyError("layer3.2"))
        else:
            future.set_result(0)
        return future

    with pytest.raises(KeyError, match=r"layer3\.2"):
        closed_loop(submit, count=5, in_flight=2)


@pytest.mark.parametrize(("count", "in_flight"), [(0, 1), (1, 0)])
def test_closed_loop_refuses(count: int, in_flight: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        closed_loop(lambda index: Future(), count=count, in_flight=in_flight)


def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned([max(before)]):
        assert os.sched_getaffinity(0) == {max(before)}
        bind_threads(before)
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


def test_memory_of_this_process() -> None:
    assert process_tree()[0] == os.getpid()
    assert pss_nbytes([os.getpid()]) > 2**20
    assert process_tree(2**22 + 1) == ()
    assert pss_nbytes([2**22 + 1]) == 0


@dataclass(frozen=True)
class Result:
    image_s: Figure
    paths: tuple[Path, ...]


def test_a_result_is_written_whole_with_its_units(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    environment = Environment.collect(("rich", "no-such-package"))
    write_result(path, environment=environment, parameters={"rounds": 3}, results=[Result(Figure(1, 0, 2, 3), (path,))])
    content = json.loads(path.read_text())
    assert content["results"] == [{"image_s": {"median": 1, "low": 0, "high": 2, "repeats": 3}, "paths": [str(path)]}]
    assert content["parameters"] == {"rounds": 3}
    assert list(content["environment"]["versions"]) == ["rich"]
    assert content["environment"]["command"].startswith("python ")
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(("value_s", "text"), [(0.118, "118.0"), (0.000123456, "0.123"), (0.00512, "5.12")])
def test_milliseconds(value_s: float, text: str) -> None:
    assert milliseconds(value_s) == text
