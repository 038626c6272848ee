"""Measures one value of a knob: a closed loop in this process, until so many requests are answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from odin.tuning.choice import Probe
from odin.tuning.statistic import statistic_of
from odin_lab.feeding import keep_in_flight
from odin_lab.tuning.modes import Mode

__all__ = ["Effort", "probe"]


class Effort(NamedTuple):
    """How long a value is measured.

    Attributes
    ----------
    requests
        So many answers count, beside the first ones.
    warm
        Answers for each client that do not count: the first ones under a new value.
    limit_s
        After so long it ends with what there is.
    """

    requests: int = 60
    warm: int = 3
    limit_s: float = 30.0


def probe(
    mode: Mode,
    value: int,
    submit: Callable[[int], Future[Any]],
    *,
    effort: Effort,
    stop: Callable[[], bool] = lambda: False,
    look: Callable[[int], None] = lambda answered: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Probe | None:
    """Keep as many requests under way as are computed at a time, and measure; None if it was ended before all were.

    Parameters
    ----------
    submit
        Samples in a request -> future of its answer.
    stop
        Whether to end early.
    look
        Told how many were answered.

    Raises
    ------
    Exception
        What a request failed with; the first one.
    """
    clients, samples = mode.clients(value), mode.samples(value)
    warm = effort.warm * clients
    answers: list[tuple[float, float]] = []
    failures: list[BaseException] = []
    begin_s = clock()

    def more(index: int) -> bool:
        in_time = clock() - begin_s < effort.limit_s or len(answers) <= warm
        return not failures and not stop() and in_time and index < warm + effort.requests

    def on_done(index: int, submitted_s: float, finished_s: float, error: BaseException | None) -> None:
        if error is not None:
            failures.append(error)
            return
        answers.append((submitted_s, finished_s))
        look(len(answers))

    keep_in_flight(lambda index: submit(samples), in_flight=clients, more=more, on_done=on_done, clock=clock)
    if failures:
        raise failures[0]
    counted = answers[warm:]
    if stop() and len(counted) < effort.requests:
        return None
    latencies_s = [finished_s - submitted_s for submitted_s, finished_s in counted]
    span_s = counted[-1][1] - (answers[warm - 1][1] if warm else begin_s)
    return Probe(
        mode.knob,
        value,
        statistic_of(latencies_s, "p95"),
        statistic_of(latencies_s, "mean"),
        samples * len(counted) / max(span_s, 1e-9),
        len(counted),
    )
