"""Stages that are lost and come back, as a pipeline's events tell it."""

from __future__ import annotations

import threading

from patience import PROMPT_S

import odin
from odin.monitor.events import StageBack, StageLost


class Losses:
    """To be given to a pipeline as ``on_event``."""

    def __init__(self) -> None:
        self.events: list[StageLost | StageBack] = []
        self._news = threading.Condition()

    def __call__(self, event: odin.Event) -> None:
        """Keep an event."""
        if isinstance(event, StageLost | StageBack):
            with self._news:
                self.events.append(event)
                self._news.notify_all()

    def replaced(self, stage: int, victim: int) -> StageBack:
        """Wait until another process has taken the place of one that was killed, and return the event."""

        def back() -> list[StageBack]:
            backs = [event for event in self.events if isinstance(event, StageBack)]
            return [event for event in backs if event.stage == stage and event.replaced]

        with self._news:
            assert self._news.wait_for(back, PROMPT_S), f"stage {stage} did not come back: {self.events}"
        lost = [event for event in self.events if isinstance(event, StageLost) and event.stage == stage]
        assert lost, self.events
        assert (lost[-1].why, lost[-1].hangs) == (f"process {victim} is gone", False), self.events
        for event in self.events:  # on a busy machine others may be taken for hung for a moment
            assert isinstance(event, StageBack) or event.stage == stage or event.hangs, self.events
            assert isinstance(event, StageBack) or event.failed == 0, self.events
        return back()[0]


def check_replaced(pipe: odin.Pipeline, losses: Losses, stage: int, victim: int) -> None:
    """Wait until a killed process was replaced, with the events and the view to tell so."""
    back = losses.replaced(stage, victim)
    view = pipe.snapshot().stages[stage]
    assert back.pid == view.pid != victim, (back, view)
    assert view.state != "lost", view
    assert pipe.snapshot().failed == 0
