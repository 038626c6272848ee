"""The benchmark of the relay: what is measured when a load comes and goes, the rows made of it, and the replicas."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

import odin
from benchmarks.common import cpu_seconds
from benchmarks.exported import export
from benchmarks.feeding import moves_in, where
from benchmarks.relay import pipeline_options, replicas_bound_hz
from benchmarks.replicas import Replicas, Served
from benchmarks.runtimes import RUNTIMES, installed_runtimes
from benchmarks.visits import COST_COLUMNS, PHASES, RATE_COLUMNS, Stretch, cost_rows, rate_rows, stretch, visit
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


def visits(*rates: float, text: str = "") -> list[tuple[Stretch, ...]]:
    return [(Stretch(rate, 20.0, (0.1, 0.3), text, 0.01, 1 / rate, 0.004),) * 4 for rate in rates]


def test_rows_pair_turns_and_name_where_most_requests_changed_hands() -> None:
    found = {
        "static": visits(10, 20, text="1|1"),
        "relay": visits(15, 30, text="@0-2|@2"),
        "replicas:torch": visits(10, 10),
        "replicas:openvino": visits(20, 20),
    }

    rows = rate_rows(found, 2)

    assert [row[:2] for row in rows] == [["later", name] for name in found]
    assert {len(row) for row in rows} == {len(RATE_COLUMNS)}
    assert rows[1][2:] == [
        "22.50",
        "1.500 (1.500..1.500)",
        "1.125 (0.938..1.312)",
        "1.125 (0.938..1.312)",
        "1%",
        "@0-2|@2",
    ]
    assert rows[0][3] == "-"
    assert [row[4] for row in rows][2:] == ["0.500 (0.500..0.500)", "-"]


def test_rows_without_replicas_compare_with_none() -> None:
    assert rate_rows({"static": visits(10)}, 0)[0][4] == "-"


def test_costs_are_latencies_of_all_requests_and_cpu_time_of_each_turn() -> None:
    (row,) = cost_rows({"relay": visits(10, 20)}, 1)
    assert len(row) == len(COST_COLUMNS)
    assert row == ["arrived", "relay", "200.0", "300.0", "300.0", "75.0 (62.5..87.5)", "4 (4..4)"]


def test_cpu_time_is_that_of_all_who_serve_and_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    own, stage, ended = os.getpid(), 7, 8
    clocks = iter([{own: 1.0, stage: 10.0, ended: 5.0}, {own: 3.0, stage: 18.0}])
    monkeypatch.setattr("benchmarks.visits.cpu_seconds", lambda pids: next(clocks))
    with Feeder(at_once, in_flight=1) as feeder:
        found = stretch(feeder, lambda *_: (1.0, ""), [stage, ended], 20)
    assert found.cpu_s == pytest.approx(5 * found.driver_cpu_s)


def test_cpu_seconds_are_the_process_clock() -> None:
    before = time.process_time()
    found = cpu_seconds([os.getpid(), 2**22 + 1])
    assert list(found) == [os.getpid()]
    assert before <= found[os.getpid()] <= time.process_time()


def test_another_engine_than_torch_is_refused_where_odin_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odin, "Pipeline", lambda model: None)
    assert pipeline_options("torch") == {}
    with pytest.raises(ValueError, match="'openvino'"):
        pipeline_options("openvino")
    monkeypatch.setattr(odin, "Pipeline", lambda model, engine: None)
    assert pipeline_options("openvino") == {"engine": "openvino"}


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


SMALL = "bench_models:residual"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the small model in every form."""
    folder = tmp_path_factory.mktemp("exported")
    export(odin.load_source(SMALL), folder, ["torch", *installed_runtimes()])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", *RUNTIMES])
def test_replicas_compute_what_the_model_computes_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, exported: Path, runtime: str
) -> None:
    if runtime not in ("torch", *installed_runtimes()):
        pytest.skip(f"{runtime} is not installed")
    monkeypatch.chdir(Path(__file__).parents[1] / "helpers")  # where bench_models lies
    source = odin.load_source(SMALL)
    core = usable_cores()[0]
    x = torch.randn_like(source.example_args[0])

    with Replicas(SMALL, (core, core), runtime=runtime, in_flight=3, folder=exported) as replicas:
        assert len(set(replicas.pids)) == 2
        maps = [Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in replicas.pids]
        results = [future.result(60.0) for future in [replicas.submit(x) for _ in range(9)]]

    assert len(replicas.served) == 9
    assert all(len(result) == 1 and np.array_equal(result[0], results[0][0]) for result in results)
    torch.testing.assert_close(torch.from_numpy(results[0][0]), source.model.eval()(x), rtol=1e-4, atol=1e-5)
    assert all(("libtorch" in mapped) == (runtime == "torch") for mapped in maps)
    assert not any(Path(f"/proc/{pid}").exists() for pid in replicas.pids)


@pytest.mark.slow
def test_requests_fail_when_a_replica_ends_and_say_so(exported: Path) -> None:
    runtime = (*installed_runtimes(), "torch")[0]
    with Replicas(SMALL, usable_cores()[:1], runtime=runtime, in_flight=2, folder=exported) as replicas:
        os.kill(replicas.pids[0], signal.SIGSTOP)
        future = replicas.submit(odin.load_source(SMALL).example_args[0])
        os.kill(replicas.pids[0], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="replica 0 has ended, exit status -9"):
            future.result(60.0)


@pytest.mark.slow
def test_a_replica_that_does_not_start_says_why(tmp_path: Path) -> None:
    form = [[[[1, 3], [12, 4], "float32", 12]], [[[1, 3], [12, 4], "float32", 12]]]
    (tmp_path / "torch.json").write_text(json.dumps(form), encoding="utf-8")
    with pytest.raises(RuntimeError, match="unknown model 'nonsense'"):
        Replicas("nonsense", usable_cores()[:1], in_flight=1, folder=tmp_path)


def test_replicas_of_what_is_not_installed_are_refused() -> None:
    with pytest.raises(ValueError, match="no runtime 'tflite' here: choose from torch"):
        Replicas("resnet18", (0,), runtime="tflite", in_flight=1)
