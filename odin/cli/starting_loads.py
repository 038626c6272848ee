"""Telling of loads that were there before the first request: stages that are slower than profiled from the start."""

from __future__ import annotations

from collections.abc import Callable

from odin.monitor.events import Attributed, Event, RunStarted, SlowdownChanged
from odin.monitor.view.event_text import cause, factor

__all__ = ["StartingLoads"]

_FIRST_REQUESTS = 4


class StartingLoads:
    """Takes a run's events, and tells a line for each stage that is disturbed from the start, and one for the cause.

    Parameters
    ----------
    tell
        Takes a line of text.

    Examples
    --------
    >>> from odin.monitor.events import StageDescription
    >>> on_event = StartingLoads(print)
    >>> stages = (StageDescription("cpu:0", "", 1, (0.1,)), StageDescription("cpu:1", "", 2, (0.1,)))
    >>> on_event(RunStarted(0.0, 0.0, "small", ("a", "b"), stages, (1, 1), "filter", 4))
    >>> on_event(SlowdownChanged(0.5, stage=1, request=4, age=4, slowdown=2.1, state="onset"))
    stage 1 on cpu:1 is 2.1x as slow as when profiled
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._devices: list[str] = []
        self._told: set[int] = set()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        match event:
            case RunStarted():
                self._devices = [stage.device for stage in event.stages]
            case SlowdownChanged() if event.state == "onset" and event.request - event.age < _FIRST_REQUESTS:
                self._told.add(event.stage)
                self._tell(f"{self._name(event.stage)} is {factor(event.slowdown)} as slow as when profiled")
            case Attributed() if event.stage in self._told:
                self._told.discard(event.stage)
                self._tell(f"{self._name(event.stage)}: {cause(event.interference, event.culprits, event.note)}")

    def _name(self, stage: int) -> str:
        return f"stage {stage} on {self._devices[stage]}"
