"""The benchmark of the relay: what is measured when a load comes and goes, the rows made of it, and the replicas."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import odin
from benchmarks.feeding import moves_in, where
from benchmarks.relay import PHASES, Stretch, replicas_bound_hz, rows_of, visit
from benchmarks.replicas import Replicas, Served
from odin.monitor.events import PlanChanged
from odin.monitor.timing import RequestTimeline, StageTiming
from odin.stages.device import usable_cores
from odin_lab.feeding import Feeder, KeptEvents


def at_once(_index: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(1)
    return future


def test_a_load_comes_and_goes_and_four_stretches_are_measured() -> None:
    story: list[str] = []

    def come():
        story.append("come")
        return lambda: story.append("gone")

    def bound(begin_s: float, end_s: float) -> tuple[float, str]:
        story.append("measured")
        return 2 / (end_s - begin_s), "1|1"

    with Feeder(at_once, in_flight=2) as feeder:
        found = visit(feeder, bound, come, count=5, rest=3, settle=4)

    assert story == ["measured", "come", "measured", "measured", "gone", "measured"]
    assert len(found) == len(PHASES)
    assert {len(one.latency_s) for one in found} == {5}
    assert [one.throughput_hz / one.fluid_bound_hz for one in found] == pytest.approx([2.5] * 4)
    assert feeder.finished >= 3 + 6 + 10 + 6 + 4 + 6 + 10 + 6


def test_the_load_goes_even_if_the_pipeline_breaks() -> None:
    story: list[str] = []

    def breaks(index: int) -> Future[int]:
        future: Future[int] = Future()
        if "come" in story:
            future.set_exception(RuntimeError("broken"))
        else:
            future.set_result(1)
        return future

    def come():
        story.append("come")
        return lambda: story.append("gone")

    with Feeder(breaks, in_flight=2) as feeder, pytest.raises(RuntimeError, match="broken"):
        visit(feeder, lambda *_: (1.0, ""), come, count=2, rest=1, settle=1)
    assert story == ["come", "gone"]


def test_rows_pair_turns_and_name_where_most_requests_changed_hands() -> None:
    def visits(*rates: float, text: str = "") -> list[tuple[Stretch, ...]]:
        return [(Stretch(rate, 20.0, (0.1, 0.3), text, 0.01),) * 4 for rate in rates]

    rows = rows_of(
        {"static": visits(10, 20, text="1|1"), "relay": visits(15, 30, text="@0-2|@2"), "replicas": visits(20, 20)}, 2
    )

    assert [row[:2] for row in rows] == [["later", "static"], ["later", "relay"], ["later", "replicas"]]
    assert rows[1][2:] == [
        "22.50",
        "1.500 (1.500..1.500)",
        "1.125 (0.938..1.312)",
        "1.125 (0.938..1.312)",
        "200",
        "300",
        "1%",
        "@0-2|@2",
    ]
    assert (rows[0][3], rows[2][4]) == ("-", "-")


def test_bound_of_replicas_is_of_the_requests_of_that_time() -> None:
    served = [Served(0, 1.0, 0.1), Served(0, 2.0, 0.3), Served(1, 2.0, 0.5), Served(1, 9.0, 7.0)]
    assert replicas_bound_hz(served, 1.0, 3.0) == pytest.approx(1 / 0.2 + 1 / 0.5)


def timeline(*lasts: int) -> RequestTimeline:
    cuts = (0, *lasts)
    stages = (StageTiming(k, cuts[k], cuts[k + 1], 0.0, 0.0, 0.0, 0.0, 0.0, ()) for k in range(len(lasts)))
    return RequestTimeline(1, 0, 0.0, 1.0, tuple(stages))


def test_where_is_the_plan_or_the_windows_with_median_cuts() -> None:
    class View:
        windows = ""

    class Pipe:
        plan = odin.Plan((4, 4))

        def view(self) -> View:
            return View()

    requests = [timeline(3, 8), timeline(5, 8), timeline(8, 8)]
    assert where(Pipe(), requests) == "4|4"
    View.windows = "@0-8|@8"
    assert where(Pipe(), requests) == "@0-8|@8, median 5|3"


def test_a_change_of_windows_is_no_move() -> None:
    recorder = KeptEvents()
    windows = PlanChanged(1.0, 5, 1, (4, 4), (4, 4), "settle", "", float("nan"), 0.0, "@0-8|@8")
    move = PlanChanged(2.0, 9, 2, (4, 4), (5, 3), "move", "", float("nan"), 0.0)
    recorder(windows)
    recorder(move)
    assert moves_in(recorder) == [move]
    assert moves_in(recorder, 2.5) == []


@pytest.mark.slow
def test_replicas_compute_what_the_chain_computes_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1] / "helpers")  # where bench_models lies
    source = odin.load_source("bench_models:residual")
    core = usable_cores()[0]
    x = source.example_args[0]
    chain = odin.build_chain(source.model, source.example_args, name="small")

    with Replicas("bench_models:residual", (core, core), in_flight=3) as replicas:
        assert len(set(replicas.pids)) == 2
        results = [future.result(60.0) for future in [replicas.submit(x) for _ in range(9)]]

    assert len(replicas.served) == 9
    assert all(len(result) == 1 and torch.equal(result[0], results[0][0]) for result in results)
    torch.testing.assert_close(chain.unpack(results[0]), source.model.eval()(x))
    assert not any(process.is_alive() for process in replicas._processes)
