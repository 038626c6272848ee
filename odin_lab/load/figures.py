"""What a trial came to: what was answered, what was not and why, how soon, counted from when each request was due."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from odin.monitor.window import percentiles_s
from odin_lab.load.task import Verdict
from odin_lab.load.trial import Trial

__all__ = ["Figures", "Request", "figures_of", "requests_of"]


class Request(NamedTuple):
    """One request.

    Attributes
    ----------
    due_s
        When it was due, from the first one's moment on.
    latency_s
        From then until it was over.
    behind_s
        How much later than due it was sent.
    failure
        Kind; empty if it was answered.
    """

    due_s: float
    latency_s: float
    behind_s: float
    failure: str


class Figures(Struct, frozen=True):
    """What a trial came to.

    Attributes
    ----------
    scenario, clients, rate_hz, bound_ms
        What it was; ``rate_hz`` and ``bound_ms`` are None where there was none.
    requests, answered, under_way
        Those that were over; those of them that were answered; those that were not over when it was broken off.
    failures
        Those that were not answered, by kind.
    elapsed_s
        From the first moment at which one was due to the end of the last one.
    answered_hz, inputs_hz
        Answered requests, and elements of their batches, per second of that.
    p50_s, p90_s, p99_s, max_s
        Latencies of the answered ones; None if there are none.
    in_time_share
        Part of all that were over, failed ones included, that was answered within the bound; None without a bound.
    behind_p99_s
        How much later than due requests were sent here: what the generator itself is to blame for.
    verdict
        LoadGen's own.
    broken_off
        Whether it was ended before its end.
    """

    scenario: str
    clients: int
    rate_hz: float | None
    bound_ms: float | None
    requests: int
    answered: int
    under_way: int
    failures: dict[str, int]
    elapsed_s: float
    answered_hz: float
    inputs_hz: float
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    max_s: float | None
    in_time_share: float | None
    behind_p99_s: float | None
    verdict: Verdict | None
    broken_off: bool

    @property
    def failed(self) -> int:
        """Requests that were not answered."""
        return self.requests - self.answered

    def keeps(self, share: float) -> bool:
        """Whether at least this share was answered within the bound."""
        return self.in_time_share is not None and self.in_time_share >= share


def requests_of(trial: Trial) -> list[Request]:
    """Each request that is over, in the order in which they were due."""
    outcomes = sorted(trial.outcomes)
    if not outcomes:
        return []
    begin_s = outcomes[0].asked_s
    by_number = {one.number: one for one in trial.scheduled}
    found = []
    for outcome in outcomes:
        waited_s = outcome.sent_s - outcome.asked_s
        if (known := by_number.get(outcome.number)) is not None:
            found.append(Request(known.due_s, known.latency_s, known.behind_s + waited_s, outcome.failure))
        elif trial.task.scenario == "server":  # broken off before LoadGen had written of it
            due_s, latency_s = outcome.asked_s - begin_s, outcome.over_s - outcome.asked_s
            found.append(Request(due_s, latency_s, waited_s, outcome.failure))
        else:  # nobody is late who sends when the one before is over
            due_s, latency_s = outcome.sent_s - begin_s, outcome.over_s - outcome.sent_s
            found.append(Request(due_s, latency_s, 0.0, outcome.failure))
    return sorted(found)


def figures_of(trial: Trial, requests: Sequence[Request], *, bound_ms: float | None = None) -> Figures:
    """Count a trial's requests; ``bound_ms``: within which one is in time."""
    task = trial.task
    answered = [one.latency_s for one in requests if not one.failure]
    p50_s, p90_s, p99_s, max_s = (_known(value) for value in percentiles_s(answered, (50, 90, 99, 100)))
    elapsed_s = max((one.due_s + one.latency_s for one in requests), default=0.0)
    answered_hz = len(answered) / elapsed_s if elapsed_s > 0 else 0.0
    in_time = None if bound_ms is None else sum(latency_s <= bound_ms / 1e3 for latency_s in answered)
    (behind_p99_s,) = percentiles_s([one.behind_s for one in requests], (99,))
    return Figures(
        scenario=task.scenario,
        clients=task.clients,
        rate_hz=task.rate_hz if task.scenario == "server" else None,
        bound_ms=bound_ms,
        requests=len(requests),
        answered=len(answered),
        under_way=trial.under_way,
        failures=dict(Counter(one.failure for one in requests if one.failure).most_common()),
        elapsed_s=elapsed_s,
        answered_hz=answered_hz,
        inputs_hz=answered_hz * (task.inputs[0].shape[0] if task.inputs[0].shape else 1),
        p50_s=p50_s,
        p90_s=p90_s,
        p99_s=p99_s,
        max_s=max_s,
        in_time_share=None if in_time is None or not requests else in_time / len(requests),
        behind_p99_s=_known(behind_p99_s) if task.scenario == "server" else None,
        verdict=trial.verdict,
        broken_off=trial.broken_off,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
