"""Stages that take requests or not, in real pipelines: as many as are asked for, also after losses."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import torch
from patience import PROMPT_S
from small_pipelines import images, small_chain

import odin
from odin.monitor.events import Event, KnobTurned, StageBack

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return small_chain()


def stages_used(pipe: odin.Pipeline, inputs: list[torch.Tensor], expected: list[torch.Tensor]) -> set[int]:
    """Who ran layers of these requests, whose answers are compared."""
    before = len(pipe.timelines())
    for answer, known in zip(pipe.map(inputs), expected, strict=True):
        assert torch.equal(answer, known)
    timelines = pipe.timelines()[before:]
    return {timing.stage for one in timelines for timing in one.stages if timing.first < timing.last}


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PROMPT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_as_many_stages_take_requests_as_are_asked_for(two_cores, chain):
    inputs = images(16)
    core = two_cores[0]
    with odin.Pipeline(chain, stages=[*two_cores, core], share_devices=True, policy="relay") as pipe:
        expected = [pipe(x) for x in inputs]
        assert pipe.instances == 3
        for count in (1, 2, 3, 1, 3):
            pipe.instances = count
            assert pipe.instances == count
            assert stages_used(pipe, inputs, expected) <= set(range(count))
        pipe.instances = 1
        assert [stage.state for stage in pipe.view().stages][1:] == ["empty", "empty"]
        pipe.migrate(pipe.plan)  # ends it: a plan is for all stages
        assert pipe.instances == 3
        with pytest.raises(ValueError, match=r"nothing under policy 'static', .* pipe.policy = 'relay'"):
            pipe.instances = 2
        pipe.policy = "relay"
        with pytest.raises(ValueError, match=r"instances=4 is not from 1 to 3"):
            pipe.instances = 4
        assert pipe.view().failed == 0


def test_a_stage_that_is_lost_is_made_up_for_and_does_not_add_to_them_when_it_is_back(two_cores, chain):
    events: list[Event] = []
    inputs = images(8)
    with odin.Pipeline(chain, stages=two_cores, share_devices=True, policy="relay", on_event=events.append) as pipe:
        expected = [pipe(x) for x in inputs]
        pipe.instances = 1
        assert stages_used(pipe, inputs, expected) == {0}
        os.kill(pipe.view().stages[0].pid, signal.SIGKILL)
        assert stages_used(pipe, inputs, expected) <= {0, 1}
        wait_until(lambda: any(isinstance(event, StageBack) for event in events))
        wait_until(lambda: stages_used(pipe, inputs, expected) == {0})
        assert pipe.instances == 1
        os.kill(pipe.view().stages[1].pid, signal.SIGKILL)  # takes no part: nothing changes
        wait_until(lambda: sum(isinstance(event, StageBack) for event in events) == 2)
        assert stages_used(pipe, inputs, expected) == {0}
        pipe.instances = 2
        assert pipe.view().failed == 0
        assert len(pipe.windows) == 2


def test_the_tuner_turns_instances_while_requests_flow(two_cores, chain):
    """No latency keeps a limit of a microsecond, and any keeps one of an hour."""
    inputs = images(8)
    with odin.Pipeline(chain, stages=two_cores, share_devices=True, policy="relay") as pipe:
        expected = [pipe(x) for x in inputs]
        with odin.Tuner(pipe, latency_s=1e-6, requests=4):
            wait_until(lambda: stages_used(pipe, inputs, expected) == {0})
        with odin.Tuner(pipe, latency_s=3600.0, requests=4):
            wait_until(lambda: bool(stages_used(pipe, inputs, expected)) and pipe.instances == 2)
        view = pipe.view()
        assert (view.tuned.knob, view.tuned.value, view.tuned.turns) == ("instances", 2, 2)
        assert [line.kind for line in view.events if line.kind == KnobTurned.kind]
        assert odin.PipelineView.from_json(view.to_json()).tuned == view.tuned
