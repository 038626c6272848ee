"""One run of the live benchmark: the task, and the record of it; both as JSON between two processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, Self

from odin_lab.live.script import Script

__all__ = ["KINDS", "Contender", "LoadSpan", "Move", "RunRecord", "Task"]

Kind = Literal["odin", "serve", "torch"]
KINDS: tuple[Kind, ...] = ("odin", "serve", "torch")


@dataclass(frozen=True)
class Contender:
    """Who runs: a pipeline under a policy, or one of the alternatives.

    Attributes
    ----------
    kind
        ``odin``; ``serve``: a Ray Serve replica per core; ``torch``: one process with a thread per core.
    policy
        Text of the pipeline's policy.
    """

    kind: Kind
    policy: str = ""

    def title(self, cores: int) -> str:
        """What tables call it."""
        if self.kind == "odin":
            return self.policy
        return f"Ray Serve, {cores} replicas" if self.kind == "serve" else f"torch, {cores} threads"


@dataclass(frozen=True)
class Task:
    """A run.

    Attributes
    ----------
    contender, number, repeat
        Who, the how manieth that was named, and in which repeat; both 0-based.
    model, weights, plan
        What it serves; the last two may be empty.
    cores
        On what; one stage, replica or thread on each.
    script
        What disturbs it.
    in_flight
        Requests under way at a time.
    warmup_s
        Seconds of feeding before the measured time.
    log
        File for the pipeline's events; may be empty.
    """

    contender: Contender
    number: int
    repeat: int
    model: str
    weights: str
    plan: str
    cores: tuple[int, ...]
    script: Script
    in_flight: int
    warmup_s: float
    log: str = ""

    @property
    def title(self) -> str:
        """The contender's name in tables."""
        return self.contender.title(len(self.cores))

    def to_json(self) -> str:
        """Write it."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return json.dumps({**values, "contender": asdict(self.contender), "script": self.script.to_plain()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["contender"] = Contender(**values["contender"])
        values["script"] = Script.from_plain(values["script"])
        values["cores"] = tuple(values["cores"])
        return cls(**values)


class LoadSpan(NamedTuple):
    """A load that was there, at whatever intensity above 0; ``on`` is its device's text."""

    start_s: float
    end_s: float
    on: str
    name: str


class Move(NamedTuple):
    """A plan change: when, to which plan, and the kind of decision."""

    at_s: float
    plan: str
    decision: str


@dataclass(frozen=True)
class RunRecord:
    """What a run came to; seconds count from the beginning of the measured time.

    Attributes
    ----------
    submitted_s, finished_s
        Of the requests that were answered in the measured time, in order of their completion.
    lost
        Requests that failed in that time, or had no answer in the end.
    plan
        The cut in the beginning; empty if it is not cut.
    moves
        Plan changes in that time.
    exploring
        Share of the requests that ran under a plan on trial.
    trials
        Plans that were tried out.
    loads
        The loads as they really began and ended.
    steal
        Share of the cores' time that a virtual machine's host gave to others.
    memory_nbytes
        PSS of the run's process and everything it started, Ray's own processes included, the loads left out.
    model_nbytes
        PSS of its process and those that hold the model.
    """

    submitted_s: tuple[float, ...]
    finished_s: tuple[float, ...]
    lost: int
    plan: str
    moves: tuple[Move, ...]
    exploring: float
    trials: int
    loads: tuple[LoadSpan, ...]
    steal: float
    memory_nbytes: int
    model_nbytes: int

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Undo :meth:`to_plain`."""
        values = dict(values)
        values["submitted_s"] = tuple(values["submitted_s"])
        values["finished_s"] = tuple(values["finished_s"])
        values["moves"] = tuple(Move(*move) for move in values["moves"])
        values["loads"] = tuple(LoadSpan(*span) for span in values["loads"])
        return cls(**values)
