"""A fleet's processes: answers, eviction, deadlines, and executors that die."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from loads import left_after
from patience import PROMPT_S
from torch import nn

import odin
from odin.cli.main import main
from odin.fleet.packed import PackedFolder, PackedModelError
from odin.fleet.packing import pack_chain
from odin.fleet.scheduler import EVICT, LOAD, Measured
from odin.monitor.events import (
    Fault,
    ModelEvicted,
    ModelLoaded,
    RunEnded,
    RunStarted,
    StageBack,
    StageLost,
    from_json,
)
from odin.monitor.view.fleet_view import view_from_json
from odin.partitioner.chain import build_chain

pytestmark = pytest.mark.ray

MODELS = 6
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 1024)
    ).eval()  # about 1 MiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packed")
    for number in range(MODELS):
        chain = build_chain(net(number), (X[:1],), name=f"m{number}")
        pack_chain(chain, made, name=f"m{number}", baseline_s={1: 0.0002, 8: 0.001})
    return made


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return {f"m{number}": build_chain(net(number), (X[:1],))(X) for number in range(MODELS)}


def open_files(pid: int, folder: Path) -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted({line.rpartition("/")[2] for line in lines if str(folder) in line})


def test_models_are_loaded_run_and_evicted_within_the_memory(two_cores, folder, expected):
    measured: list[tuple[str, Measured]] = []
    memory_mib = 3.5 * PackedFolder(folder).head("m0").nbytes / 2**20  # three of six
    with odin.Fleet(
        folder,
        stages=two_cores[:1],
        memory_mib=memory_mib,
        on_measured=lambda name, one: measured.append((name, one)),
    ) as fleet:
        assert fleet.models == tuple(sorted(expected))
        for name in [*expected, *reversed(expected), *expected]:
            assert torch.equal(fleet(name, X), expected[name])
            view = fleet.view()
            assert view.resident_mib <= memory_mib
            assert view.resident[-1] == name
            (executor,) = view.executors
            assert open_files(executor.pid, folder) == sorted(f"{one}.packed" for one in view.resident)
        assert [name for name, one in measured if one.kind == LOAD][:6] == list(expected)
        assert [name for name, one in measured if one.kind == EVICT][:3] == ["m0", "m1", "m2"]
        counts = fleet.counts()
        assert (counts.completed, counts.failed, counts.in_flight) == (18, 0, 0)
        assert counts.hits + counts.cold == 18
        assert counts.cold == counts.loads == 12  # of the last three each time back
        assert counts.evictions == 9
        kinds = {one.kind for one in view.predictions}
        assert kinds == {"run", "load", "evict"}
        with pytest.raises(odin.DeadlineExceededError, match="refused: ") as late:
            fleet("m0", X, timeout_s=1e-5)
        assert late.value.refused
        assert fleet.counts().refused == 1
        with pytest.raises(ValueError, match=r"no packed model 'other'.*'m0'"):
            fleet.submit("other", X)
        with pytest.raises(ValueError, match=r"9 samples in one request, at most 8"):
            fleet.submit("m0", torch.zeros(9, 3, 16, 16))

        async def several() -> list[torch.Tensor]:
            return await asyncio.gather(*(fleet.asubmit(name, X) for name in expected))

        assert all(map(torch.equal, asyncio.run(several()), expected.values()))
    with pytest.raises(odin.PipelineClosedError):
        fleet.submit("m0", X)
    assert left_after([executor.pid]) == []


@pytest.mark.slow
def test_killed_executors_lose_nothing(two_cores, folder, expected, tmp_path, capsys):
    memory_mib = 4.5 * PackedFolder(folder).head("m0").nbytes / 2**20
    log, events = tmp_path / "fleet.jsonl", []
    with odin.Fleet(folder, stages=two_cores, memory_mib=memory_mib, log=log, on_event=events.append) as fleet:
        stop, failures, answered = threading.Event(), [], [0]

        def load() -> None:
            names = list(expected)
            while not stop.is_set():
                futures = [(name, fleet.submit(name, X)) for name in names]
                for name, future in futures:
                    try:
                        if not torch.equal(future.result(PROMPT_S), expected[name]):
                            failures.append(name)
                    except Exception as error:
                        failures.append(repr(error))
                    answered[0] += 1

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for kill in range(2):
                before = answered[0]
                wait_for(lambda before=before: answered[0] > before + 20)
                pid = fleet.view().executors[kill].pid
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: is_replaced(fleet, pid))
        finally:
            stop.set()
            thread.join()
        assert failures == []
        assert fleet.counts().failed == 0
        pids = [one.pid for one in fleet.view().executors]
        assert fleet.view().resident_mib <= memory_mib
    assert left_after(pids) == []
    kinds = [type(event) for event in events]
    assert kinds[0] is RunStarted
    assert kinds[-1] is RunEnded
    assert kinds.count(StageLost) == kinds.count(StageBack) == 2
    assert {ModelLoaded, ModelEvicted} < set(kinds)
    assert Fault not in kinds
    assert [from_json(line) for line in log.read_text().splitlines()] == events
    assert main(["replay", str(log), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "fleet of 6 models" in shown
    assert "loaded: model m" in shown


def is_replaced(fleet: odin.Fleet, pid: int) -> bool:
    return all(one.state == "serving" and one.pid != pid for one in fleet.view().executors)


def wait_for(condition) -> None:
    end_s = time.monotonic() + PROMPT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_model_that_cannot_be_opened_fails_its_requests_alone(two_cores, folder, expected, tmp_path):
    made = tmp_path / "packed"
    made.mkdir(mode=0o700)
    for name in ("m0", "m1"):
        (made / f"{name}.packed").write_bytes((folder / f"{name}.packed").read_bytes())
        (made / f"{name}.packed").chmod(0o600)
    (made / "broken.packed").write_bytes(b"not a model")
    (made / "broken.packed").chmod(0o600)
    with odin.Fleet(made, stages=two_cores[:1], memory_mib=64) as fleet:
        assert fleet.models == ("m0", "m1")
        assert list(fleet.unusable) == ["broken"]
        with pytest.raises(PackedModelError, match=r"broken.packed is no packed model"):
            fleet.submit("broken", X)
        (made / "m1.packed").unlink()
        with pytest.raises(odin.LayerFailedError, match="model m1 raised FileNotFoundError"):
            fleet("m1", X)
        assert torch.equal(fleet("m0", X), expected["m0"])
        assert fleet.view().resident == ("m0",)
        # Packed anew: with other weights, and as another model.
        pack_chain(build_chain(net(1), (X[:1],), name="m0"), made, name="m0", baseline_s={1: 0.0002})
        assert torch.equal(fleet("m0", X), expected["m0"])  # it is in memory still
        assert fleet.refresh(["m0"]) == ("m0",)
        assert torch.equal(fleet("m0", X), expected["m1"])
        other = build_chain(nn.Linear(4, 3).eval(), (torch.ones(1, 4),), name="m0")
        pack_chain(other, made, name="m0", baseline_s={1: 0.0002})
        assert fleet.refresh() == ("m0",)
        assert torch.equal(fleet("m0", torch.ones(1, 4)), other(torch.ones(1, 4)))
        with pytest.raises(ValueError, match="expected shape"):
            fleet.submit("m0", X)
        assert fleet.refresh() == ()
        assert fleet.models == ("m0", "m1")
        assert fleet.view().models == 2


def test_what_a_fleet_refuses_to_start_with(folder, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere cannot be opened \(No such file or directory\): .*odin pack MODEL"):
        odin.Fleet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no packed model in .*odin pack MODEL --into"):
        odin.Fleet(tmp_path, stages=["cpu:0"])
    with pytest.raises(
        ValueError, match=r"no packed model in .* can be served: .* takes .* MiB, more than memory_mib=0.1:"
    ):
        odin.Fleet(folder, stages=["cpu:0"], memory_mib=0.1)
    with pytest.raises(ValueError, match="scheduler='best'; choose one of 'predictive', 'on-demand'"):
        odin.Fleet(folder, stages=["cpu:0"], scheduler="best")
    with pytest.raises(ValueError, match="admission="):
        odin.Fleet(folder, stages=["cpu:0"], admission="maybe")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"memory_mib": "64"}, "memory_mib='64'; give the MiB"),
        ({"memory_mib": float("nan")}, "memory_mib=nan; give the MiB"),
        ({"batch": 2.5}, r"batch=2\.5 is no whole number"),
        ({"batch": 0}, "batch=0; it must be at least 1"),
        ({"on_measured": 5}, "on_measured=5 cannot be called"),
        ({"stages": ["gpu:0"]}, "CPU cores of this machine, which gpu:0 is not"),
        ({"stages": ["cpu:4999"]}, "4999"),
        ({"stages": ["cpu:0", "cpu:0"]}, "two stages are on cpu:0"),
    ],
)
def test_nonsense_is_said_before_anything_is_started(folder, options, problem, monkeypatch):
    monkeypatch.setattr("odin.fleet.fleet.RayRuntime", lambda *args: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=problem):
        odin.Fleet(folder, **{"stages": ["cpu:0"], **options})


@pytest.mark.filterwarnings("ignore:.*on_measured")
def test_who_is_told_of_actions_may_fail_and_ask(two_cores, folder, expected, capsys):
    fleets: list[odin.Fleet] = []
    asked: list[int] = []

    def told(name: str, one: Measured) -> None:
        asked.append(fleets[0].counts().loads)
        raise RuntimeError("mine")

    events: list[object] = []
    options = {"memory_mib": 64, "on_measured": told, "on_event": events.append}
    with odin.Fleet(folder, stages=two_cores[:1], **options) as fleet:
        fleets.append(fleet)
        for name in expected:
            assert torch.equal(fleet.submit(name, X).result(PROMPT_S), expected[name])
        assert len(asked) >= 2 * len(expected) - 1  # of the last one perhaps a moment later
        with pytest.raises(odin.DeadlineExceededError):
            fleet("m0", X, timeout_s=0)
        fleet("m0", X, timeout_s=60)
        state = fleet.state()
        assert (state.models, state.resident, state.completed, state.in_time, state.refused) == (6, 6, 7, 1, 1)
        assert state.last_used[:2] == ("m0", "m5")
        capsys.readouterr()
        assert main(["top", str(os.getpid()), "--json"]) == 0
        assert view_from_json(capsys.readouterr().out).models == 6
        assert main(["top", str(os.getpid()), "--once"]) == 0
        shown = capsys.readouterr().out
        assert " in memory 6 of 6 models" in shown
        assert " deadlines 1 in time  1 refused  0 late" in shown
        assert "m0, m5" in shown
    assert "on_measured" in {event.part for event in events if isinstance(event, Fault)}


def test_thousands_at_once_cancelled_and_closed_in_the_middle(two_cores, folder, expected):
    with odin.Fleet(folder, stages=two_cores[:1], memory_mib=64) as fleet:
        futures = [fleet.submit(f"m{number % MODELS}", X) for number in range(3000)]
        cancelled = [future for future in futures[::2] if future.cancel()]
        answered = [future for future in futures if future not in set(cancelled)]
        assert len(cancelled) > 1000
        assert torch.equal(answered[0].result(PROMPT_S), expected["m0"])
        fleet.close(drain=False)
        kinds = {type(future.exception(PROMPT_S)) for future in answered}
        assert kinds == {type(None), odin.PipelineClosedError}
        assert fleet.counts().in_flight == 0
