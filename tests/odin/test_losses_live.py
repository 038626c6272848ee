"""Stages that die, hang, or are killed by a request, in real pipelines: nothing is lost, and they are replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import operators_for_stages
import pytest
import torch
from patience import PROMPT_S
from small_pipelines import images, small_chain
from torch import nn

import odin
from odin.monitor.events import Event, StageBack, StageLost

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return small_chain()


class Run:
    """A pipeline with its events, and requests whose answers are known."""

    def __init__(self, pipe: odin.Pipeline, events: list[Event], inputs: list[torch.Tensor]) -> None:
        self.pipe, self.events, self.inputs = pipe, events, inputs
        self.expected = [pipe(x) for x in inputs]

    def serve(self, until: Callable[[], bool]) -> int:
        """Send all inputs again and again, compare every answer, until something is so; how many were sent."""
        sent, end_s = 0, time.monotonic() + PROMPT_S
        while not until():
            assert time.monotonic() < end_s
            for answer, expected in zip(self.pipe.map(self.inputs), self.expected, strict=True):
                assert torch.equal(answer, expected)
            sent += len(self.inputs)
        return sent

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def states(self) -> list[str]:
        return [stage.state for stage in self.pipe.view().stages]

    def pid(self, stage: int) -> int:
        return self.pipe.view().stages[stage].pid


@contextmanager
def running(chain: odin.Chain, **options: object) -> Iterator[Run]:
    events: list[Event] = []
    with odin.Pipeline(chain, on_event=events.append, share_devices=True, **options) as pipe:  # type: ignore[arg-type]
        yield Run(pipe, events, images(8))


@pytest.mark.parametrize("policy", ["relay", "static"])
def test_killed_stages_are_replaced_and_nothing_is_lost(two_cores, chain, policy: str):
    with running(chain, stages=two_cores, policy=policy) as run:
        sent = len(run.inputs)
        for victim in (0, 1):
            before = run.pid(victim)
            os.kill(before, signal.SIGKILL)
            sent += run.serve(lambda victim=victim: len(run.of(StageBack)) > victim)
            assert run.pid(victim) != before
        sent += run.serve(lambda: "lost" not in run.states())
        assert [(event.stage, event.hangs) for event in run.of(StageLost)] == [(0, False), (1, False)]
        assert [(event.stage, event.replaced) for event in run.of(StageBack)] == [(0, True), (1, True)]
        view = run.pipe.view()
        assert (view.completed, view.failed) == (sent, 0)
        assert len(run.pipe.windows) == 2  # both take part


def test_a_stopped_stage_is_left_out_and_taken_back(two_cores, chain):
    with running(chain, stages=two_cores, policy="relay") as run:
        stopped = run.pid(1)
        os.kill(stopped, signal.SIGSTOP)
        try:
            run.serve(lambda: bool(run.of(StageLost)))
            assert run.states()[1] == "hung"
        finally:
            os.kill(stopped, signal.SIGCONT)
        run.serve(lambda: bool(run.of(StageBack)))
        (lost,), (back,) = run.of(StageLost), run.of(StageBack)
        assert (lost.stage, lost.hangs, back.replaced, back.pid) == (1, True, False, stopped)
        assert f"process {stopped} has said nothing for" in lost.why
        assert run.pipe.view().failed == 0


class Deadly(nn.Module):
    """Ends the process that computes it, for an input that begins with 666."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(operators_for_stages.end_process(self.first(x), x))


def test_a_request_that_kills_every_stage_fails_alone(two_cores):
    poison = torch.zeros(1, 8)
    poison[0, 0] = 666.0
    events: list[Event] = []
    model = Deadly().eval()
    with odin.Pipeline(
        model, example_input=torch.ones(1, 8), stages=two_cores, share_devices=True, on_event=events.append
    ) as pipe:
        inputs = [torch.full((1, 8), float(number)) for number in range(6)]
        expected = [pipe(x) for x in inputs]
        deadly = pipe.submit(poison)
        others = [pipe.submit(x) for x in inputs]
        with pytest.raises(odin.PoisonRequestError, match=r"stage . \(cpu:\d+, process \d+\) and stage"):
            deadly.result(PROMPT_S)
        assert all(torch.equal(other.result(PROMPT_S), y) for other, y in zip(others, expected, strict=True))
        end_s = time.monotonic() + PROMPT_S
        while sum(isinstance(event, StageBack) for event in events) < 2:
            assert time.monotonic() < end_s
            assert torch.equal(pipe(inputs[1]), expected[1])
        assert pipe.view().failed == 1
