"""A pipeline watched over: events, log, view, policy, and those who ask it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from patience import PROMPT_S
from small_pipelines import all_plans, images, small_chain

import odin
from odin.cli.main import main
from odin.monitor.eventlog import read_log
from odin.monitor.events import (
    LoadChanged,
    PlanChanged,
    PolicyChanged,
    RequestDone,
    RequestsRefused,
    RunEnded,
    RunStarted,
)
from odin.monitor.view.pipeline_view import PipelineView
from odin.partitioner.policies import Decision, Observation
from odin.status.server import StatusClient, local_pipelines

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return small_chain()


class MovesOnce:
    """Moves the last layer of stage 0 at a given request, or the first one after it that it is shown."""

    name = "moves-once"

    def __init__(self, request: int) -> None:
        self.request, self.moved = request, False
        self.seen: list[Observation] = []

    def start(self, setting):
        self.setting = setting

    def decide(self, observation):
        self.seen.append(observation)
        if observation.request < self.request or self.moved:
            return None
        self.moved = True
        first, last = self.setting.plan
        return Decision(odin.Plan((first - 1, last + 1)), "move", "to see it done", predicted_s=0.5)


def wait_for(condition):
    deadline_s = time.monotonic() + PROMPT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def test_everything_that_happens_is_recorded(two_cores, chain, tmp_path):
    log = tmp_path / "run.jsonl"
    told = []
    plan = odin.Plan((3, len(chain.layers) - 3))
    with odin.Pipeline(chain, stages=two_cores, plan=plan, policy="static", log=log, on_event=told.append) as pipe:
        for x in images(5):
            pipe(x)
        pipe.migrate(all_plans(len(chain.layers))[1])
        for x in images(5):
            pipe(x)
        with pytest.raises(odin.DeadlineExceededError):
            pipe(images(1)[0], timeout_s=-1.0)
        pipe.note_load(LoadChanged(time.perf_counter(), "mine", "cpu@cpu:1", "cpu:1", 1.0, 7))
        pids = [stage.pid for stage in pipe.snapshot().stages]
    events = list(read_log(log))
    assert sorted(map(str, events)) == sorted(map(str, told))
    run, end = events[0], events[-1]
    assert isinstance(run, RunStarted)
    assert (run.model, run.plan, run.policy) == ("residual", tuple(plan), "static")
    assert run.layers == tuple(layer.name for layer in chain.layers)
    assert [stage.pid for stage in run.stages] == pids
    assert all(len(stage.baseline_s) == len(chain.layers) and min(stage.baseline_s) > 0 for stage in run.stages)
    assert isinstance(end, RunEnded)
    assert (end.reason, end.completed, end.failed) == ("closed", 10, 0)
    requests = [event for event in events if isinstance(event, RequestDone)]
    assert [event.timeline.request for event in requests] == list(range(10))
    assert [event.timeline.epoch for event in requests] == [0] * 5 + [1] * 5
    (moved,) = [event for event in events if isinstance(event, PlanChanged)]
    assert (moved.decision, moved.before, moved.after) == ("migrate", tuple(plan), (1, len(chain.layers) - 1))
    assert sum(event.requests for event in events if isinstance(event, RequestsRefused)) == 1  # nothing was done for it
    assert [event.name for event in events if isinstance(event, LoadChanged)] == ["mine"]


def test_a_policys_decision_moves_layers_and_outputs_stay_the_same(two_cores, chain):
    policy, told = MovesOnce(10), []
    with odin.Pipeline(chain, stages=two_cores, policy=policy, on_event=told.append) as pipe:
        home = pipe.plan
        inputs = images(60)
        results = list(pipe.map(inputs))
        wait_for(lambda: pipe.plan != home)
        results += list(pipe.map(inputs))
        assert pipe.plan == (home[0] - 1, home[1] + 1)
        assert pipe.policy == "moves-once"
    expected = [chain(x) for x in inputs]
    assert all((y == e).all() for y, e in zip(results, expected * 2, strict=True))
    assert policy.setting.baseline_s.shape == (2, len(chain.layers))
    assert policy.setting.intensity.shape == (len(chain.layers),)
    assert (policy.setting.intensity > 0).all()
    first = policy.seen[0]
    assert first.plan == home
    assert (first.stage_s > 0).all()
    assert (first.layer_s > 0).all()
    (moved,) = [event for event in told if isinstance(event, PlanChanged)]
    assert (moved.decision, moved.why, moved.predicted_hz) == ("move", "to see it done", 2.0)
    assert moved.prepare_s > 0


def test_the_view_travels_to_those_who_ask_and_the_policy_can_be_changed_while_serving(two_cores, chain, capsys):
    assert os.getpid() not in local_pipelines()
    told = []
    with odin.Pipeline(chain, stages=two_cores, policy="static", on_event=told.append) as pipe:
        for x in images(20):
            pipe(x)
        view = wait_for(lambda: (v := pipe.view()).completed == 20 and all(s.time_s > 0 for s in v.stages) and v)
        assert (view.model, view.plan, view.policy, view.failed) == ("residual", tuple(pipe.plan), "static", 0)
        assert [stage.device for stage in view.stages] == two_cores
        with StatusClient(os.getpid()) as client:
            seen = PipelineView.from_json(client.ask())
            assert (seen.model, seen.completed, seen.plan) == (view.model, 20, view.plan)
        command = [sys.executable, "-m", "odin.cli", "top", str(os.getpid()), "--once"]  # another process
        plain = subprocess.run(command, capture_output=True, text=True, timeout=PROMPT_S, check=True).stdout
        assert "residual" in plain
        assert two_cores[1] in plain
        assert main(["top", str(os.getpid()), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["completed"] == 20

        pipe.policy = "odin:alpha=2"
        wait_for(lambda: pipe.policy == "odin:alpha=2")
        with pytest.raises(ValueError, match="there is no policy 'best'"):
            pipe.policy = "best"
        with pytest.raises(ValueError, match="only a simulation knows"):
            pipe.policy = "delayed-oracle"
        with pytest.raises(ValueError, match="11 plans, a live sweep may have 5"):
            pipe.policy = "oracle:limit=5"
        assert pipe.policy == "odin:alpha=2"
    assert [event.policy for event in told if isinstance(event, PolicyChanged)] == ["odin:alpha=2"]
    assert os.getpid() not in local_pipelines()
    assert main(["top", str(os.getpid()), "--once"]) == 1
    assert "serves no pipeline" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_told_before_anything_starts(two_cores, chain, tmp_path):
    with pytest.raises(ValueError, match="event log"):
        odin.Pipeline(chain, stages=two_cores, log=tmp_path)
    full = tmp_path / "old.jsonl"
    full.write_text("something\n")
    with pytest.raises(ValueError, match=r"old\.jsonl has 10 bytes in it"):
        odin.Pipeline(chain, stages=two_cores, log=full)


def test_a_policy_that_does_not_exist_is_told_before_anything_starts(two_cores, chain):
    with pytest.raises(ValueError, match="there is no policy 'greedy'; choose one of relay, static, lls"):
        odin.Pipeline(chain, stages=two_cores, policy="greedy")
