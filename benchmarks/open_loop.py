"""Requests that come when they come: arrivals from a schedule made beforehand, and what became of each.

A closed loop slows down with the server that it measures, so that overload cannot be seen in it ("coordinated
omission"). Here each request has a moment at which it is due, and everything is measured from there: also a request
that the generator itself sends late. How late it was is told, and figures are refused if it was too late::

    due ---- sent ---- refused                 (the caller knows at once)
     |         |------ answered  in time
     |         |------------- deadline ------- answered  late
     |<- late->|<--------- latency is from "due" ----->|
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from benchmarks.common import LoadResult, percentile

__all__ = [
    "DROPPED",
    "FAILED",
    "IN_TIME",
    "LATE",
    "LOST",
    "OUTCOMES",
    "REFUSED",
    "Figures",
    "Request",
    "Send",
    "begin_each",
    "closed_loop_async",
    "figures_of",
    "open_loop",
    "poisson_s",
]

IN_TIME, LATE, REFUSED, DROPPED, FAILED, LOST = OUTCOMES = ("in time", "late", "refused", "dropped", "failed", "lost")
"""Answered by its deadline, or after it; refused when it was sent; given up later; failed; never heard of again."""

_AGAIN_S = 0.001

Send = Callable[[int, float | None], Awaitable[object]]
"""Request index and the seconds that it has left (None: no deadline) -> its answer, or an error."""


class Request(NamedTuple):
    """One request: when it was due, sent and over, on one clock, and its outcome (of :data:`OUTCOMES`)."""

    due_s: float
    sent_s: float
    over_s: float
    outcome: str
    error: str = ""


class Figures(Struct, frozen=True):
    """What came of a trial.

    Attributes
    ----------
    offered, accepted
        Requests that were due, and those that were not refused.
    offered_hz, goodput_hz
        Requests that were due, and those that were answered in time, per second.
    in_time_share
        Part of the accepted that were answered in time; None if none was accepted.
    counts
        Requests by outcome.
    refusal_p50_s, refusal_p99_s
        Seconds from sending to the refusal; None without one.
    latency_p50_s, latency_p99_s
        Seconds from the moment at which it was due to the answer, of all that were answered; None without one.
    generator_p50_s, generator_p99_s, generator_max_s
        How much later than due requests were sent.
    too_late
        Why no figures are given: the generator was too late itself. Empty if it was not.
    """

    offered: int
    accepted: int
    offered_hz: float
    goodput_hz: float
    in_time_share: float | None
    counts: dict[str, int]
    refusal_p50_s: float | None
    refusal_p99_s: float | None
    latency_p50_s: float | None
    latency_p99_s: float | None
    generator_p50_s: float
    generator_p99_s: float
    generator_max_s: float
    too_late: str = ""


def poisson_s(rate_hz: float, seconds: float, *, seed: int) -> list[float]:
    """Moments of a Poisson process of ``rate_hz`` within ``seconds``, ascending; the same for the same seed.

    Raises
    ------
    ValueError
        If the rate or the duration is not above 0.
    """
    if not (0 < rate_hz < math.inf and 0 < seconds < math.inf):
        raise ValueError(f"{rate_hz} requests per second for {seconds} s: both must be above 0")
    generator = np.random.default_rng(seed)
    moments: list[float] = []
    at_s = 0.0
    while True:
        for gap_s in generator.exponential(1 / rate_hz, size=max(16, int(rate_hz * seconds))):
            at_s += float(gap_s)
            if at_s >= seconds:
                return moments
            moments.append(at_s)


async def begin_each(
    one: Callable[[int, float], Coroutine[object, object, None]],
    due_s: Iterable[float],
    *,
    begin_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[asyncio.Task[None]]:
    """Begin ``one(index, moment_s)`` as a task at each moment, whatever became of those before it.

    Parameters
    ----------
    due_s
        Seconds from ``begin_s``, ascending.
    """
    tasks = []
    for index, offset_s in enumerate(due_s):
        await asyncio.sleep(max(0.0, begin_s + offset_s - clock()))
        tasks.append(asyncio.create_task(one(index, begin_s + offset_s)))
    return tasks


async def open_loop(
    send: Send,
    due_s: Sequence[float],
    *,
    deadline_s: float,
    tell: bool,
    refusals: tuple[type[BaseException], ...],
    expiries: tuple[type[BaseException], ...],
    patience_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Request]:
    """Send each request when it is due, whatever became of those before it.

    Parameters
    ----------
    send
        See :data:`Send`. It must not block.
    due_s
        Seconds from the beginning, ascending.
    deadline_s
        From the moment at which a request is due.
    tell
        Whether ``send`` is told what is left of it; otherwise being late is only counted.
    refusals
        Errors that are a refusal whenever they come.
    expiries
        Errors that say that the deadline cannot be kept: a refusal if ``send`` raises them before it waits for
        anything, and otherwise a request that was accepted and dropped.
    patience_s
        Seconds after the last deadline: requests without an outcome are then lost if the server knew the deadline,
        late if it did not, and cancelled in any case.

    Returns
    -------
    list
        The requests in the order in which they were due.
    """
    loop = asyncio.get_running_loop()
    begin_s = clock()
    done: dict[int, Request] = {}

    async def one(index: int, moment_s: float) -> None:
        waited: list[bool] = []
        sent_s = clock()
        first_turn = loop.call_soon(waited.append, True)  # has run if anything was waited for
        left_s = moment_s + deadline_s - sent_s if tell else None
        error = ""
        try:
            await send(index, left_s)
        except asyncio.CancelledError:
            raise
        except refusals:
            outcome = REFUSED
        except expiries:
            outcome = DROPPED if waited else REFUSED
        except Exception as failure:
            outcome, error = FAILED, f"{type(failure).__name__}: {failure}"
        else:
            outcome = ""
        over_s = clock()
        first_turn.cancel()
        outcome = outcome or (IN_TIME if over_s <= moment_s + deadline_s else LATE)
        done[index] = Request(moment_s, sent_s, over_s, outcome, error)

    tasks = await begin_each(one, due_s, begin_s=begin_s, clock=clock)
    under_way = [task for task in tasks if not task.done()]
    if under_way:
        end_s = begin_s + due_s[-1] + deadline_s + (patience_s if tell else 0.0)
        await asyncio.wait(under_way, timeout=max(0.0, end_s - clock()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    over_s = clock()
    missing = LOST if tell else LATE
    return [
        done.get(index) or Request(begin_s + offset_s, math.nan, over_s, missing)
        for index, offset_s in enumerate(due_s)
    ]


def figures_of(requests: Sequence[Request], *, skip_s: float, seconds: float, late_bound_s: float) -> Figures:
    """Count what became of the requests that were due after the first ``skip_s`` of ``seconds``.

    Parameters
    ----------
    late_bound_s
        Figures are marked as void if the generator's 99th percentile is above it.

    Raises
    ------
    ValueError
        If no request was due then.
    """
    if not requests:
        raise ValueError("no requests: the schedule was empty")
    begin_s = requests[0].due_s + skip_s
    counted = [request for request in requests if request.due_s >= begin_s]
    if not counted:
        raise ValueError(f"no request was due after the first {skip_s:g} s: measure longer than {seconds:g} s")
    span_s = seconds - skip_s
    counts = Counter(request.outcome for request in counted)
    accepted = len(counted) - counts[REFUSED]
    refusal_s = [request.over_s - request.sent_s for request in counted if request.outcome == REFUSED]
    latency_s = [request.over_s - request.due_s for request in counted if request.outcome in (IN_TIME, LATE)]
    behind_s = [request.sent_s - request.due_s for request in counted if not math.isnan(request.sent_s)]
    late_s = [percentile(behind_s, share) if behind_s else math.nan for share in (0.5, 0.99, 1.0)]
    too_late = ""
    if not late_s[1] <= late_bound_s:
        too_late = f"the generator was late itself: p99 {late_s[1] * 1e3:.1f} ms, bound {late_bound_s * 1e3:.1f} ms"
    return Figures(
        offered=len(counted),
        accepted=accepted,
        offered_hz=len(counted) / span_s,
        goodput_hz=counts[IN_TIME] / span_s,
        in_time_share=counts[IN_TIME] / accepted if accepted else None,
        counts={outcome: counts[outcome] for outcome in OUTCOMES},
        refusal_p50_s=percentile(refusal_s, 0.5) if refusal_s else None,
        refusal_p99_s=percentile(refusal_s, 0.99) if refusal_s else None,
        latency_p50_s=percentile(latency_s, 0.5) if latency_s else None,
        latency_p99_s=percentile(latency_s, 0.99) if latency_s else None,
        generator_p50_s=late_s[0],
        generator_p99_s=late_s[1],
        generator_max_s=late_s[2],
        too_late=too_late,
    )


async def closed_loop_async(
    send: Send,
    *,
    in_flight: int,
    seconds: float,
    skip_s: float,
    refusals: tuple[type[BaseException], ...] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> LoadResult:
    """Keep ``in_flight`` requests under way by the same path; throughput and latencies after the first ``skip_s``.

    What is refused is sent again a millisecond later, and counts from then on.

    Raises
    ------
    ValueError
        If fewer than two requests were answered after that.
    """
    begin_s = clock()
    answers: list[tuple[float, float]] = []

    async def client(number: int) -> None:
        index = number
        while clock() < begin_s + seconds:
            sent_s = clock()
            try:
                await send(index, None)
            except refusals:
                await asyncio.sleep(_AGAIN_S)
                continue
            answers.append((sent_s, clock()))
            index += in_flight

    await asyncio.gather(*(client(number) for number in range(in_flight)))
    counted = [(sent_s, over_s) for sent_s, over_s in answers if begin_s + skip_s <= over_s <= begin_s + seconds]
    if len(counted) < 2:
        raise ValueError(f"{len(counted)} answers within {seconds - skip_s:g} s: measure longer")
    counted.sort(key=lambda answer: answer[1])
    throughput_hz = (len(counted) - 1) / (counted[-1][1] - counted[0][1])
    return LoadResult(throughput_hz, tuple(over_s - sent_s for sent_s, over_s in counted))
