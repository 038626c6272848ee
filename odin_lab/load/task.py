"""What the process that sends is told, and what it tells: one line of JSON each."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from odin_lab.load.client import Input, Target

__all__ = ["SCENARIOS", "Began", "Broken", "Done", "Outcome", "Outcomes", "Scheduled", "Task", "Verdict", "Waits"]

SCENARIOS = ("clients", "single-stream", "offline", "server")
"""Closed loop of so many clients; the others are MLPerf LoadGen's."""


class Task(Struct, frozen=True):
    """One trial.

    Attributes
    ----------
    inputs
        Of each request, without free sizes.
    scenario
        One of :data:`SCENARIOS`.
    seconds
        How long requests are sent.
    clients
        Requests under way in a closed loop, and ``offline``.
    rate_hz
        ``server``: requests per second on average. ``offline``, ``single-stream``: what is expected.
    bound_ms
        ``server``: LoadGen's bound for the 99th percentile.
    least
        ``server``: at least so many requests.
    most_connections
        Requests that can be under way at once.
    samples, seed, images
        See :func:`odin_lab.load.samples.make_samples`.
    gated
        Whether to wait, when all is prepared, until told to begin.
    """

    target: Target
    inputs: tuple[Input, ...]
    scenario: str
    seconds: float
    clients: int = 1
    rate_hz: float = 1.0
    bound_ms: float = 1000.0
    least: int = 1
    most_connections: int = 512
    samples: int = 16
    seed: int = 0
    images: str = ""
    gated: bool = False


class Outcome(NamedTuple):
    """What became of a request.

    Attributes
    ----------
    number
        In the order in which requests were asked for.
    asked_s, sent_s, over_s
        When it was to be sent, was sent and was over, on the system's monotonic clock.
    failure
        Kind of its failure; empty if it was answered.
    """

    number: int
    asked_s: float
    sent_s: float
    over_s: float
    failure: str


class Scheduled(NamedTuple):
    """What LoadGen says of a request.

    Attributes
    ----------
    number
        That of its outcome.
    due_s
        When it was due, from LoadGen's beginning.
    behind_s
        How much later it was issued.
    latency_s
        From the moment at which it was due until it was over.
    """

    number: int
    due_s: float
    behind_s: float
    latency_s: float


class Verdict(Struct, frozen=True):
    """LoadGen's own judgement: ``VALID`` or ``INVALID``, and which of its rules were not kept."""

    result: str
    unmet: tuple[str, ...] = ()


class Waits(Struct, frozen=True, tag=True):
    """All is prepared; the first request is sent when the word comes."""


class Began(Struct, frozen=True, tag=True):
    """Requests are being sent from now on."""

    at_s: float


class Outcomes(Struct, frozen=True, tag=True):
    """What became of some requests."""

    of: list[Outcome]


class Done(Struct, frozen=True, tag=True):
    """The trial is over.

    Attributes
    ----------
    asked
        Requests that were to be sent.
    scheduled, verdict
        Of LoadGen.
    """

    asked: int
    scheduled: list[Scheduled] = []
    verdict: Verdict | None = None


class Broken(Struct, frozen=True, tag=True):
    """It cannot be; why."""

    why: str
