"""What came of one trial: every model's load at once, and whether each kept its limit."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from odin.monitor.window import percentiles_s
from odin_lab.load.figures import Request, requests_of
from odin_lab.load.trial import Trial

__all__ = ["SHARE", "Attempt", "Part", "attempt_of", "while_all"]

SHARE = 0.95
"""Of all requests of a model, that must be answered within its limit."""


class Part(Struct, frozen=True):
    """A model's part in a trial; requests that were due while all models' were sent.

    Attributes
    ----------
    rate_hz, limit_ms
        What was asked.
    requests, answered
        Those that were over, and those of them that were answered.
    in_time
        Those that were answered within the limit.
    p50_s, p95_s
        Latencies of the answered ones, from when each was due; None: none was answered.
    """

    rate_hz: float
    limit_ms: float
    requests: int
    answered: int
    in_time: int
    p50_s: float | None
    p95_s: float | None

    @property
    def kept(self) -> bool:
        """Whether enough were answered within the limit; what failed or was refused never is."""
        return self.requests > 0 and self.in_time >= SHARE * self.requests


class Attempt(Struct, frozen=True):
    """A trial.

    Attributes
    ----------
    rate_hz
        Of all models together.
    parts
        By model.
    hopeless
        Whether it was ended early, since a model could not keep its limit any more.
    """

    rate_hz: float
    parts: dict[str, Part]
    hopeless: bool

    @property
    def kept(self) -> bool:
        """Whether every model kept its limit."""
        return not self.hopeless and all(part.kept for part in self.parts.values())


def attempt_of(trials: dict[str, Trial], limits_ms: dict[str, float]) -> Attempt:
    """Count the trials of models that were under load at once."""
    requests = dict(zip(trials, while_all(list(trials.values())), strict=True))
    parts = {name: _part(trials[name], requests[name], limits_ms[name]) for name in trials}
    hopeless = any(trial.broken_off for trial in trials.values())
    return Attempt(sum(part.rate_hz for part in parts.values()), parts, hopeless)


def while_all(trials: Sequence[Trial]) -> list[list[Request]]:
    """Each trial's requests that were due after all had begun and before the first had sent its last."""
    begins_s = [min((one.asked_s for one in trial.outcomes), default=0.0) for trial in trials]
    found = [requests_of(trial) for trial in trials]
    if not all(found):
        return found
    first_s = max(begins_s)
    last_s = min(begin_s + requests[-1].due_s for begin_s, requests in zip(begins_s, found, strict=True))
    return [
        [one for one in requests if first_s <= begin_s + one.due_s <= last_s]
        for begin_s, requests in zip(begins_s, found, strict=True)
    ]


def _part(trial: Trial, requests: Sequence[Request], limit_ms: float) -> Part:
    latencies_s = [one.latency_s for one in requests if not one.failure]
    p50_s, p95_s = (None, None) if not latencies_s else percentiles_s(latencies_s, (50, 95))
    in_time = sum(latency_s <= limit_ms / 1e3 for latency_s in latencies_s)
    return Part(trial.task.rate_hz, limit_ms, len(requests), len(latencies_s), in_time, p50_s, p95_s)
