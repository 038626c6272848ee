"""The benchmark of overload: schedules, what became of requests, and when no figures are given."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.open_loop import (
    DROPPED,
    FAILED,
    IN_TIME,
    LATE,
    LOST,
    OUTCOMES,
    REFUSED,
    Request,
    closed_loop_async,
    figures_of,
    open_loop,
    poisson_s,
)


class LateError(Exception):
    """The deadline cannot be kept."""


class FullError(Exception):
    """The queue is full."""


def test_arrivals_are_the_same_for_the_same_seed_and_as_many_as_the_rate_says() -> None:
    moments = poisson_s(200.0, 50.0, seed=3)

    assert moments == poisson_s(200.0, 50.0, seed=3) != poisson_s(200.0, 50.0, seed=4)
    assert moments == sorted(moments)
    assert moments[0] > 0.0
    assert moments[-1] < 50.0
    assert len(moments) == pytest.approx(10_000, abs=400)  # four standard deviations
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.1)  # as an exponential distribution has it


@pytest.mark.parametrize(("rate_hz", "seconds"), [(0.0, 1.0), (math.inf, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_rate_or_duration_that_cannot_be_is_refused(rate_hz: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        poisson_s(rate_hz, seconds, seed=0)


def run(send: Callable[[int, float | None], Awaitable[object]], count: int, *, tell: bool = True) -> list[Request]:
    return asyncio.run(
        open_loop(
            send,
            [0.0] * count,
            deadline_s=30.0,
            tell=tell,
            refusals=(FullError,),
            expiries=(LateError,),
            patience_s=0.0,
        )
    )


def test_what_is_raised_before_anything_is_waited_for_is_a_refusal() -> None:
    async def send(index: int, left_s: float | None) -> object:
        assert left_s is not None
        assert left_s <= 30.0
        if index == 1:
            raise LateError
        await asyncio.sleep(0)
        if index == 2:
            raise LateError
        if index == 3:
            raise FullError
        if index == 4:
            raise RuntimeError("broken")
        return index

    requests = run(send, 5)

    assert [request.outcome for request in requests] == [IN_TIME, REFUSED, DROPPED, REFUSED, FAILED]
    assert requests[4].error == "RuntimeError: broken"


def test_the_next_request_is_sent_while_others_are_under_way() -> None:
    under_way = 0
    most = 0

    async def send(index: int, left_s: float | None) -> object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        while most < 20:
            await asyncio.sleep(0)
        under_way -= 1
        return None

    assert [request.outcome for request in run(send, 20)] == [IN_TIME] * 20
    assert most == 20


@pytest.mark.parametrize(("tell", "outcome"), [(True, LOST), (False, LATE)])
def test_what_is_never_answered_is_lost_or_late_and_cancelled(tell: bool, outcome: str) -> None:
    cancelled: list[int] = []

    async def send(index: int, left_s: float | None) -> object:
        assert (left_s is None) is not tell
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return None

    requests = asyncio.run(
        open_loop(send, [0.0, 0.0], deadline_s=0.01, tell=tell, refusals=(), expiries=(), patience_s=0.0)
    )

    assert [request.outcome for request in requests] == [outcome] * 2
    assert sorted(cancelled) == [0, 1]


def request(due_s: float, outcome: str, *, sent_s: float | None = None, over_s: float = 0.0) -> Request:
    return Request(due_s, due_s if sent_s is None else sent_s, over_s or due_s + 0.1, outcome)


def test_figures_count_what_was_due_after_the_first_seconds() -> None:
    requests = [
        request(100.0, LATE),
        request(102.0, IN_TIME, over_s=102.2),
        request(103.0, IN_TIME, over_s=103.4),
        request(104.0, REFUSED, sent_s=104.001, over_s=104.002),
        request(105.0, DROPPED),
        request(106.0, LATE, over_s=107.0),
    ]

    figures = figures_of(requests, skip_s=2.0, seconds=12.0, late_bound_s=0.01)

    assert (figures.offered, figures.accepted) == (5, 4)
    assert (figures.offered_hz, figures.goodput_hz, figures.in_time_share) == (0.5, 0.2, 0.5)
    assert figures.counts == {IN_TIME: 2, LATE: 1, REFUSED: 1, DROPPED: 1, FAILED: 0, LOST: 0}
    assert set(figures.counts) == set(OUTCOMES)
    assert figures.refusal_p50_s == pytest.approx(0.001)
    assert figures.latency_p50_s == pytest.approx(0.4)
    assert figures.generator_max_s == pytest.approx(0.001)
    assert figures.too_late == ""


def test_no_figures_if_the_generator_was_late_itself() -> None:
    requests = [request(float(k), IN_TIME, sent_s=k + (0.05 if k > 90 else 0.0)) for k in range(100)]
    assert figures_of(requests, skip_s=0.0, seconds=100.0, late_bound_s=0.05).too_late == ""
    assert "p99 50.0 ms, bound 10.0 ms" in figures_of(requests, skip_s=0.0, seconds=100.0, late_bound_s=0.01).too_late


def test_no_figures_if_nothing_was_sent_at_all() -> None:
    requests = [Request(0.0, math.nan, 5.0, LATE)]
    assert figures_of(requests, skip_s=0.0, seconds=1.0, late_bound_s=1.0).too_late
    with pytest.raises(ValueError, match="empty"):
        figures_of([], skip_s=0.0, seconds=1.0, late_bound_s=1.0)
    with pytest.raises(ValueError, match="measure longer"):
        figures_of([request(0.0, IN_TIME)], skip_s=2.0, seconds=1.0, late_bound_s=1.0)


class Server:
    """Takes a hundredth of a second of its own clock per request; refuses the first few."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses, self.now_s, self.under_way, self.most = refuses, 0.0, 0, 0

    async def send(self, index: int, left_s: float | None) -> object:
        assert left_s is None
        if self.refuses:
            self.refuses -= 1
            raise FullError
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.now_s += 0.01
        self.under_way -= 1
        return None


@pytest.mark.parametrize(("in_flight", "refuses"), [(3, 0), (1, 2)])
def test_a_closed_loop_keeps_so_many_under_way_and_sends_again_what_is_refused(in_flight: int, refuses: int) -> None:
    server = Server(refuses)

    result = asyncio.run(
        closed_loop_async(
            server.send,
            in_flight=in_flight,
            seconds=1.0,
            skip_s=0.1,
            refusals=(FullError,),
            clock=lambda: server.now_s,
        )
    )

    assert (server.most, server.refuses) == (in_flight, 0)
    assert result.throughput_hz == pytest.approx(100.0)


def test_a_closed_loop_of_one_answer_is_no_measurement() -> None:
    server = Server()
    with pytest.raises(ValueError, match="measure longer"):
        asyncio.run(closed_loop_async(server.send, in_flight=1, seconds=0.02, skip_s=0.015, clock=lambda: server.now_s))
