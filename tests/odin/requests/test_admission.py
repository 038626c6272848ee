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
from odin.requests.crowd import Crowd
from odin.requests.line import Line
from odin.requests.margin import Margin

NEVER = math.inf


def admission(factor: float = 1.0, *, usual: float = 1.0) -> Admission:
    """One whose predictions are usually off by a factor, and which allows for another."""
    made = Admission()
    made.margin.usual, made.margin.factor = usual, factor
    return made


def crowded(every_s: float, until_s: float, factor: float = 1.0) -> Admission:
    """One that has turned requests away at that pace."""
    made = admission(factor)
    for back in reversed(range(5)):
        made.crowd.turned_away(until_s - back * every_s)
    return made


@dataclass
class Waiting:
    number: int
    deadline_s: float
    urgent: bool = False
    samples: int = 1
    forecast: Forecast | None = None
    done_s: float = field(default=math.nan)


def test_a_request_is_taken_if_the_latest_completion_is_before_its_deadline():
    exits = SharedExits([10.0, 10.5], [2.0, 2.0], waiting=1)  # the one that waits goes to stage 0, this one to stage 1
    judged = admission(1.2, usual=1.1).judge(exits, 10.0, deadline_s=13.31, ahead=0)
    assert not judged.late
    (forecast,) = judged.forecasts
    assert (forecast.made_s, forecast.predicted_s) == (10.0, 2.5)
    assert (forecast.expected_s, forecast.latest_s, forecast.safest_s) == pytest.approx((12.75, 13.3, 18.25))
    assert admission(1.2, usual=1.1).judge(exits, 10.0, deadline_s=13.29, ahead=0).late


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
    bad = admission(2.0)
    assert bad.judge(exits, 0.0, deadline_s=1.3, ahead=0).late
    assert not bad.judge(exits, 0.0, deadline_s=1.3, ahead=0, alone=True).late
    assert bad.judge(exits, 0.0, deadline_s=1.2, ahead=0, alone=True).late
    assert [admission().judge(exits, 0.0, deadline_s=at_s, ahead=0, alone=True).late for at_s in (1.0, 0.99)] == [
        False,
        True,
    ]


def test_an_accepted_one_has_no_hope_once_it_would_usually_be_late():
    exits = SharedExits([1.0], [1.0])
    assert not admission(9.0, usual=1.5).is_hopeless(exits, 0.0, 3.1)
    assert admission(usual=1.5).is_hopeless(exits, 0.0, 2.9)
    assert not admission(usual=1.5).is_hopeless(exits, 0.0, NEVER)
    assert not Admission(refuses=False).is_hopeless(exits, 0.0, 0.1)


# -- choosing from many -----------------------------------------------------------------------------------------------


def test_where_others_will_come_only_who_need_not_wait_is_taken():
    """Refusals every 0.1 s: a place that is free in 0.3 s finds somebody."""
    for wait_s, refused in ((0.29, False), (0.31, True)):
        exits = LineExits(5.0, [5.0 + wait_s], [1.0])
        judged = crowded(0.1, 5.0).judge(exits, 5.0, deadline_s=8.0, ahead=0)
        assert (judged.late, judged.crowded) == (refused, refused)


def test_who_is_at_no_risk_is_taken_however_many_come():
    exits = LineExits(5.0, [6.0], [1.0])
    assert crowded(0.1, 5.0).judge(exits, 5.0, deadline_s=10.9, ahead=0).crowded
    assert not crowded(0.1, 5.0).judge(exits, 5.0, deadline_s=11.0, ahead=0).late


def test_who_comes_alone_is_not_chosen_from():
    exits = LineExits(5.0, [6.0], [1.0])
    assert not crowded(0.1, 5.0).judge(exits, 5.0, deadline_s=10.0, ahead=0, alone=True).late


def test_once_no_more_are_refused_all_who_would_be_in_time_are_taken():
    exits = LineExits(6.0, [7.0], [1.0])
    judged = [crowded(0.1, at_s).judge(exits, 6.0, deadline_s=11.0, ahead=0).late for at_s in (6.0, 5.7, 5.6)]
    assert judged == [True, True, False]


def test_only_who_was_refused_for_having_to_wait_could_fill_a_place():
    """A second of work, three seconds off: given two it would be in time without the wait, given half of one never."""
    exits = LineExits(0.0, [3.0], [1.0])
    for timeout_s, filled in ((2.0, True), (0.5, False)):
        judge = admission()
        for at_s in (-0.2, -0.1, 0.0):
            assert judge.judge(exits, 0.0 if at_s == 0.0 else at_s, deadline_s=at_s + timeout_s, ahead=0).late
        assert judge.crowd.fills(0.0, 1.0) == filled


_SECONDS = st.integers(0, 1_000_000).map(lambda count: count / 1024)  # whose sums are exact


@given(st.lists(_SECONDS, max_size=30), _SECONDS, _SECONDS)
def test_the_longer_the_wait_the_sooner_others_fill_it_and_silence_ends_that(
    times: list[float], wait_s: float, more_s: float
):
    crowd = Crowd()
    for at_s in sorted(times):
        crowd.turned_away(at_s)
    now_s = max(times, default=0.0)
    if crowd.fills(now_s, wait_s):
        assert len(times) >= 2
        assert crowd.fills(now_s, wait_s + more_s)
    assert not crowd.fills(now_s + wait_s, wait_s)


@pytest.mark.parametrize("admission", ["", "Predict", None, 1])
def test_other_words_are_refused_with_what_there_is(admission: object):
    with pytest.raises(ValueError, match="choose 'predict'"):
        check_admission(admission)


# -- what is learned --------------------------------------------------------------------------------------------------


def test_at_first_half_as_much_again_is_allowed_for():
    assert (Margin().usual, Margin().factor) == (1.0, 1.5)


def test_a_broken_promise_weighs_as_much_as_a_thousand_kept_ones():
    margin = Margin()
    margin.broken()
    assert margin.factor == pytest.approx(1.6)  # a fifth of what was above 1
    margin.kept()
    assert margin.factor == pytest.approx(1.6 - 0.2 * 0.001 * 0.6)
    for _ in range(999):
        margin.kept()
    assert margin.factor == pytest.approx(1.0 + 0.6 * (1.0 - 0.0002) ** 1000)


def test_the_factor_stays_between_a_tenth_more_and_twice():
    margin = Margin()
    for _ in range(3):
        margin.broken()
    assert 1.8 < margin.factor < 2.0
    margin.broken()
    assert margin.factor == 2.0
    for _ in range(3_466):
        margin.kept()
    assert margin.factor == pytest.approx(1.5, abs=1e-3)
    for _ in range(20_000):
        margin.kept()
    assert margin.factor == 1.1


def test_the_usual_error_is_that_of_half_of_the_requests():
    margin, draw, usual = Margin(), random.Random(0), []
    for _ in range(2_000):
        margin.learn(3.0 * draw.lognormvariate(math.log(1.4), 0.2), predicted_s=3.0)
        usual.append(margin.usual)
    assert sum(usual[1_000:]) / 1_000 == pytest.approx(1.4, rel=0.02)


def test_stalls_do_not_change_what_is_usual():
    margin = Margin()
    for number in range(1000):
        margin.learn(400.0 if number % 10 == 0 else 10.0 - 0.01 * (number % 2), predicted_s=10.0)
    assert margin.usual == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("took_s", "predicted_s"), [(-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)])
def test_what_is_no_error_teaches_nothing(took_s: float, predicted_s: float):
    margin = Margin()
    margin.learn(took_s, predicted_s)
    assert margin.usual == 1.0


@given(st.floats(1.05, 1.8), st.integers(0, 2**32))
def test_in_the_long_run_one_in_a_thousand_is_broken(noise: float, seed: int):
    """Whatever errors are like, if less than 2 is enough for them: here evenly spread from 0.5 to ``noise``."""
    margin, draw, broken = Margin(), random.Random(seed), 0
    for _ in range(20_000):
        if draw.uniform(0.5, noise) > margin.factor:
            broken += 1
            margin.broken()
        else:
            margin.kept()
    # The logarithm of what it is above 1 moves up by log(1.2) for each broken promise, down by 0.0002 for each kept.
    assert broken * math.log(1.2) <= 20_000 * 0.000201 + math.log(1.0 / 0.5)


def test_only_promises_that_were_at_risk_are_learned_from():
    exits, judge = LineExits(0.0, [0.0], [1.0]), admission(1.5)
    (forecast,) = judge.judge(exits, 0.0, deadline_s=2.0, ahead=0).forecasts
    judge.ended(forecast, 2.0, in_time=True)
    once = 1.5 - 0.0001
    assert judge.margin.factor == pytest.approx(once)
    judge.ended(forecast, 3.0, in_time=True)  # three times what was expected
    judge.ended(forecast, 1.3, in_time=False)  # taken because it was alone
    judge.ended(forecast, NEVER, in_time=True)
    assert judge.margin.factor == pytest.approx(once)
    judge.ended(forecast, 1.3, in_time=True)  # alone, and less would have been enough
    twice = once - 0.0002 * (once - 1.0)
    assert judge.margin.factor == pytest.approx(twice)
    judge.ended(forecast, 3.0, in_time=False)
    assert judge.margin.factor == pytest.approx(twice + 0.2 * (twice - 1.0))


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
            judge.ended(one.forecast, one.deadline_s, in_time=one.done_s <= one.deadline_s)
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
