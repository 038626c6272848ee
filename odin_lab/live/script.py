"""What happens in the live benchmark: who runs when, and which loads come and go meanwhile."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from odin.stages.device import Device
from odin_lab.inject.load import Load, LoadError
from odin_lab.inject.named import NAMED
from odin_lab.inject.scenario import Scenario, Step

__all__ = ["Script", "Turn", "describe", "file_script", "random_script", "turns"]

_LEAD_S, _LEAD_SHARE = 8.0, 1 / 3
_START_S = 2.5
"""Seconds ahead of a load's beginning in which its processes are started, which is a small load in itself."""


class Turn(NamedTuple):
    """One run: contender ``name`` in repeat ``repeat``, 0-based."""

    repeat: int
    name: str


def turns(names: Sequence[str], *, repeats: int, seed: int) -> tuple[Turn, ...]:
    """Everybody once per repeat, in an order drawn anew for each, so that a drift of the machine favours nobody.

    Raises
    ------
    ValueError
        If there is nothing to run, a name comes twice, or there are no repeats.
    """
    if not names or repeats < 1:
        raise ValueError(f"{len(names)} contenders, {repeats} repeats: at least one of each is needed")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is named twice; name each once, and more often by --repeats")
    order = random.Random(seed)
    # By hand: of all its methods random() alone promises the same numbers in every version of Python.
    drawn = [sorted(names, key=lambda _: order.random()) for _ in range(repeats)]
    return tuple(Turn(repeat, name) for repeat, round_ in enumerate(drawn) for name in round_)


@dataclass(frozen=True)
class Script:
    """Loads over the measured time of a run.

    Attributes
    ----------
    scenario
        Which, where, when; seconds from the beginning of the measured time.
    seconds
        Measured time.
    period_s, duration_s
        From the beginning of one event to that of the next, and how long each lasts; means where they differ.
    """

    scenario: Scenario
    seconds: float
    period_s: float
    duration_s: float

    @property
    def lead_s(self) -> float:
        """Undisturbed time at the beginning, seconds."""
        return self.scenario.steps[0].start_s

    @property
    def quiet_s(self) -> float:
        """Up to when nothing at all happens: the first load's processes are started just before it."""
        return max(self.lead_s - _START_S, self.lead_s / 2)

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        steps = [[str(s.load), s.start_s, s.end_s, s.name, s.ramp_s] for s in self.scenario.steps]
        return {
            "steps": steps,
            "seconds": self.seconds,
            "period_s": self.period_s,
            "duration_s": self.duration_s,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Undo :meth:`to_plain`."""
        steps = (Step(Load.parse(load), start, end, name, ramp) for load, start, end, name, ramp in values["steps"])
        return cls(Scenario(tuple(steps)), values["seconds"], values["period_s"], values["duration_s"])


def random_script(
    devices: Sequence[Device],
    names: Sequence[str] = tuple(NAMED),
    *,
    seconds: float,
    period_s: float,
    duration_s: float,
    seed: int,
) -> Script:
    """One event after the other, each a random load on a random device; the same seed gives the same ones.

    Raises
    ------
    LoadError
        If there is nothing to choose from, a time is not positive, or there is no room for an event.
    """
    ahead_s = max(0.0, _least_lead_s(seconds) - period_s)  # short periods begin later
    try:
        scenario = Scenario.random(
            devices,
            names,
            period_s=period_s,
            duration_s=duration_s,
            length_s=seconds - ahead_s,
            seed=seed,
        )
    except LoadError as error:
        if 0 < seconds <= period_s + ahead_s and period_s > 0 and duration_s > 0:
            raise LoadError(
                f"no event begins within {seconds:g} s, as the first comes after {period_s + ahead_s:g} s: lengthen "
                "--seconds, or shorten --period"
            ) from error
        raise
    return Script(_later(scenario, ahead_s), seconds, period_s, duration_s)


def file_script(path: str | Path, *, seconds: float, seed: int | None = None) -> Script:
    """What a TOML file says, put off until there was enough undisturbed time, and broken off in the end.

    Raises
    ------
    LoadError
        If the file is not in order, or nothing begins within the time.
    """
    if not seconds > 0:
        raise LoadError(f"{seconds:g} s leave no time to measure; give a number above 0")
    scenario = Scenario.load(path, seed=seed)
    ahead_s = max(0.0, _least_lead_s(seconds) - scenario.steps[0].start_s)
    try:
        scenario = _later(scenario, ahead_s).until(seconds)
    except LoadError as error:
        raise LoadError(f"{path}: {error}; lengthen --seconds, or let it begin earlier") from error
    starts = [step.start_s for step in scenario.steps]
    period_s = (starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else starts[0]
    duration_s = sum(step.end_s - step.start_s for step in scenario.steps) / len(starts)
    return Script(scenario, seconds, period_s, duration_s)


def describe(script: Script) -> str:
    """What happens, in a line."""
    return "; ".join(
        f"{step.name} on {step.load.on} {step.start_s:g}..{step.end_s:g} s" for step in script.scenario.steps
    )


def _least_lead_s(seconds: float) -> float:
    return min(_LEAD_S, _LEAD_SHARE * seconds)


def _later(scenario: Scenario, by_s: float) -> Scenario:
    if not by_s:
        return scenario
    return Scenario(tuple(replace(s, start_s=s.start_s + by_s, end_s=s.end_s + by_s) for s in scenario.steps))
