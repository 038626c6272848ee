"""Who is taken and who is refused: exact numbers, what is learned, and that promises are kept where conditions stay."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.partitioner.exits import LineExits, SharedExits
from odin.partitioner.relay import is_expected_at
from odin.requests.admission import Admission, Forecast, check_admission
from odin.requests.line import Line
from odin.requests.spread import Spread

NEVER = math.inf


def admission(error: float = 1.0) -> Admission:
    """One that has seen errors of that factor only."""
    made = Admission()
    for _ in range(200):
        made.spread.add(error, predicted_s=1.0, now_s=0.0)
    return made


@dataclass
class Waiting:
    number: int
    deadline_s: float
    urgent: bool = False
    forecast: Forecast | None = None
    done_s: float = field(default=math.nan)


def test_a_request_is_taken_if_the_latest_completion_is_before_its_deadline():
    exits = SharedExits([10.0, 10.5], [2.0, 2.0], waiting=1)  # the one that waits goes to stage 0, this one to stage 1
    judged = admission(1.2).judge(exits, 10.0, deadline_s=13.0, ahead=0)
    assert not judged.late
    (forecast,) = judged.forecasts
    assert (forecast.made_s, forecast.predicted_s) == (10.0, 2.5)
    assert (forecast.expected_s, forecast.latest_s) == pytest.approx((13.0, 13.0))
    assert admission(1.2).judge(exits, 10.0, deadline_s=12.99, ahead=0).late


def test_what_is_ahead_in_the_line_counts():
    exits = LineExits(0.0, [0.0, 0.0], [1.0, 2.0])  # 3 s, and 2 s more for each ahead
    judged = [admission().judge(exits, 0.0, deadline_s=7.5, ahead=ahead).late for ahead in range(4)]
    assert judged == [False, False, False, True]


def test_without_a_deadline_nothing_is_refused_and_all_is_predicted():
    judged = admission().judge(LineExits(0.0, [50.0], [1.0]), 0.0, deadline_s=NEVER, ahead=9)
    assert (judged.late, judged.forecasts[0].expected_s) == (False, 60.0)


def test_without_admission_nothing_is_refused_and_all_is_predicted():
    judged = Admission(refuses=False).judge(LineExits(0.0, [50.0], [1.0]), 0.0, deadline_s=1.0, ahead=9)
    assert (judged.late, judged.forecasts[0].expected_s) == (False, 60.0)


def test_of_several_parts_the_last_one_counts_and_all_are_refused():
    exits = LineExits(0.0, [0.0], [1.0])
    assert not admission().judge(exits, 0.0, deadline_s=4.0, ahead=0, parts=4).late
    judged = admission().judge(exits, 0.0, deadline_s=4.0, ahead=0, parts=5)
    assert judged.late
    assert [forecast.expected_s for forecast in judged.forecasts] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_who_would_push_an_accepted_one_over_its_deadline_is_refused():
    exits = LineExits(0.0, [0.0], [1.0])
    for deadline_s, late in ((3.0, False), (2.9, True)):
        behind = Waiting(0, deadline_s, forecast=Forecast(0.0, 2.0, 2.0, 2.0))
        judged = admission().judge(exits, 0.0, deadline_s=1.5, ahead=0, behind=[(behind, 1)])
        assert (judged.late, judged.delays) == (late, late)
        assert behind.forecast.expected_s == (2.0 if late else 3.0)


def test_who_is_late_anyway_keeps_nobody_out():
    behind = Waiting(0, 1.8)
    judged = admission().judge(LineExits(0.0, [0.0], [1.0]), 0.0, deadline_s=1.5, ahead=0, behind=[(behind, 1)])
    assert not judged.late


def test_who_comes_alone_is_let_in_however_bad_times_have_been():
    exits = LineExits(0.0, [0.0], [1.0])
    judged = [(admission(), 1.25), (admission(), 1.0), (admission(), 0.99)]
    bad = Admission()
    for number in range(200):
        bad.spread.add(5.0 if number % 10 == 0 else 1.0, predicted_s=1.0, now_s=0.0)
    assert bad.spread.high == 9.0
    assert bad.judge(exits, 0.0, deadline_s=1.3, ahead=0).late
    assert not bad.judge(exits, 0.0, deadline_s=1.3, ahead=0, alone=True).late
    assert bad.judge(exits, 0.0, deadline_s=1.2, ahead=0, alone=True).late
    assert [one.judge(exits, 0.0, deadline_s=at_s, ahead=0).late for one, at_s in judged] == [False, False, True]


def test_an_accepted_one_has_no_hope_once_it_would_usually_be_late():
    exits = SharedExits([1.0], [1.0])
    assert not admission(1.5).is_hopeless(exits, 0.0, 3.1)
    assert admission(1.5).is_hopeless(exits, 0.0, 2.9)
    assert not admission(1.5).is_hopeless(exits, 0.0, NEVER)
    assert not Admission(refuses=False).is_hopeless(exits, 0.0, 0.1)


@pytest.mark.parametrize("admission", ["", "Predict", None, 1])
def test_other_words_are_refused_with_what_there_is(admission: object):
    with pytest.raises(ValueError, match="choose 'predict'"):
        check_admission(admission)


# -- what is learned --------------------------------------------------------------------------------------------------


def test_nothing_known_is_half_as_much_again():
    assert (Spread().usual, Spread().high) == (1.0, 1.5)


def test_usual_and_high_are_those_of_the_last_two_hundred():
    spread = Spread()
    for error in [9.0] * 200 + [1.0] * 189 + [1.2] * 11:  # 95% of 201 is the 191st: the second of 1.2
        spread.add(error, predicted_s=1.0, now_s=0.0)
    assert (len(spread), spread.usual, spread.high) == (200, 1.0, pytest.approx(1.4))


def test_a_few_stalls_are_no_reason_to_keep_others_out():
    spread = Spread()
    for error in [1.0] * 195 + [40.0] * 5:
        spread.add(error, predicted_s=1.0, now_s=0.0)
    assert spread.high == 1.0


def test_what_is_old_is_forgotten_after_a_hundred_times_its_own_time():
    spread = Spread()
    spread.add(0.3, predicted_s=0.1, now_s=5.0)
    spread.forget(14.9)
    assert spread.usual == pytest.approx(3.0)
    spread.forget(15.1)
    assert (len(spread), spread.usual, spread.high) == (0, 1.0, 1.5)


@pytest.mark.parametrize(("took_s", "predicted_s"), [(-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)])
def test_what_is_no_error_teaches_nothing(took_s: float, predicted_s: float):
    spread = Spread()
    spread.add(took_s, predicted_s=predicted_s, now_s=0.0)
    assert len(spread) == 0


# -- promises --------------------------------------------------------------------------------------------------------


def serve(requests: list[tuple[float, float]], chain_s: list[float], judge: Admission) -> list[Waiting]:
    """Submit (time, timeout) in order; stages take from the line as they are free, for exactly their time."""
    line: Line[Waiting] = Line()
    free_s = [0.0] * len(chain_s)
    accepted = []

    def take_until(now_s: float) -> None:
        """Whoever is free first takes the next one, the fastest of several."""
        while len(line):
            begin_s, takes_s, stage = min(
                (max(free_s[stage], came_s), chain_s[stage], stage) for stage in range(len(chain_s))
            )
            if begin_s > now_s:
                return
            one = line.take()
            one.done_s = free_s[stage] = begin_s + takes_s

    came_s = 0.0
    for number, (now_s, timeout_s) in enumerate(requests):
        take_until(now_s)
        came_s = now_s
        one = Waiting(number, now_s + timeout_s)
        verdict = judge.judge(
            SharedExits([max(now_s, at_s) for at_s in free_s], chain_s),
            now_s,
            deadline_s=one.deadline_s,
            ahead=line.ahead(one.deadline_s),
            behind=line.behind(one.deadline_s),
        )
        if not verdict.late:
            (one.forecast,) = verdict.forecasts
            line.add(one)
            accepted.append(one)
            take_until(now_s)
    take_until(NEVER)
    return accepted


ARRIVALS = st.lists(st.tuples(st.integers(0, 8), st.integers(2, 60)), max_size=40)


@given(ARRIVALS, st.lists(st.integers(4, 20), min_size=1, max_size=3))
def test_where_times_are_as_predicted_every_promise_is_kept(arrivals: list[tuple[int, int]], chain: list[int]):
    """In units of 1/8 s, so that sums are exact."""
    times = itertools.accumulate(after for after, _ in arrivals)
    requests = [(at / 8, timeout / 8) for at, (_, timeout) in zip(times, arrivals, strict=True)]
    accepted = serve(requests, [takes / 8 for takes in chain], admission())
    assert all(one.done_s <= one.deadline_s for one in accepted)
    if len(set(chain)) == 1:
        assert all(one.done_s == one.forecast.expected_s for one in accepted)


@pytest.mark.parametrize("overload", [2, 10])
def test_under_overload_the_stages_are_kept_busy(overload: int):
    draw = random.Random(0)
    chain_s, times = [0.1, 0.1], itertools.accumulate(draw.expovariate(overload * 20.0) for _ in range(2_000))
    accepted = serve([(at_s, 0.3) for at_s in times], chain_s, admission())
    assert all(one.done_s <= one.deadline_s + 1e-9 for one in accepted)
    assert len(accepted) / (20.0 * max(one.done_s for one in accepted)) > 0.98


@pytest.mark.parametrize("overload", [2, 10])
def test_under_overload_and_noise_almost_all_that_is_accepted_is_in_time(overload: int):
    """As docs/deadlines.md tells. Stages say when they will be free by their usual times; what they take varies."""
    draw, judge, chain_s = random.Random(1), Admission(), 0.1
    line: Line[Waiting] = Line()
    free_s, told_s, accepted = [0.0, 0.0], [0.0, 0.0], []

    def take_until(now_s: float) -> None:
        while len(line):
            begin_s, stage = min((max(at_s, came_s), stage) for stage, at_s in enumerate(free_s))
            if begin_s > now_s:
                return
            one = line.take()
            one.done_s = free_s[stage] = begin_s + chain_s * draw.lognormvariate(-0.005, 0.1)
            told_s[stage] = begin_s + chain_s
            under_way.append(one)

    came_s = now_s = 0.0
    under_way: list[Waiting] = []
    for number in range(10_000 * overload):
        now_s += draw.expovariate(overload * 20.0)
        take_until(now_s)
        came_s = now_s
        for one in [one for one in under_way if one.done_s <= now_s]:
            judge.learn(one.forecast, one.done_s)
            under_way.remove(one)
        expected_s = [
            now_s if at_s <= now_s else is_expected_at(told, now_s) for at_s, told in zip(free_s, told_s, strict=True)
        ]
        verdict = judge.judge(
            SharedExits(expected_s, [chain_s] * 2),
            now_s,
            deadline_s=now_s + 0.3,
            ahead=line.ahead(now_s + 0.3),
            alone=not (under_way or len(line)),
        )
        if not verdict.late:
            accepted.append(Waiting(number, now_s + 0.3, forecast=verdict.forecasts[0]))
            line.add(accepted[-1])
            take_until(now_s)
    take_until(NEVER)
    in_time = sum(one.done_s <= one.deadline_s for one in accepted)
    assert in_time >= 0.999 * len(accepted)
    assert in_time >= 0.97 * 20.0 * now_s
