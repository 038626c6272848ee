"""The scheduler's decisions, exactly, on a clock that stands in the test."""

from __future__ import annotations

import math

import pytest

from odin.fleet.dispatcher import refusal
from odin.fleet.estimates import Estimates, ModelFacts
from odin.fleet.on_demand import OnDemand
from odin.fleet.scheduler import LOAD, RUN, Action, Scheduler, Verdict

MIB = 2**20
LOAD_S = 0.005 + 4 * MIB / 400e6
"""Of 4 MiB, until loads were measured."""


def facts(ms: float = 10.0, mib: int = 4, code: str = "a") -> ModelFacts:
    return ModelFacts(mib * MIB, ((1, ms / 1e3),), code)


def scheduler(models: int = 4, *, executors: int = 1, mib: int = 100, **options) -> Scheduler:
    made = Scheduler([facts() for _ in range(models)], executors=executors, memory_nbytes=mib * MIB, **options)
    for executor in range(executors):
        made.regain(executor, ["a"])
    return made


def short(actions: list[Action]) -> list[str]:
    return [f"{action.kind} m{action.model} on {action.executor}" for action in actions]


def finish(made: Scheduler, action: Action, now_s: float, took_s: float, bind_s: float = 0.0) -> None:
    made.answered(action.executor, action.number, now_s, took_s=took_s, bind_s=bind_s)


def opened(made: Scheduler, *models: int, executor: int = 0) -> None:
    for model in models:
        made.residency.add(model, executor, made.models[model].nbytes)


def test_a_cold_request_is_loaded_and_run():
    made = scheduler()
    verdict = made.submit(0, 2, 1, 0.1, 0.0)
    assert not verdict.late
    assert verdict.predicted_s == pytest.approx(LOAD_S + 0.010)
    assert verdict.load_s == pytest.approx(LOAD_S)
    actions, dropped = made.decide(0.0)
    assert (short(actions), dropped) == (["load m2 on 0", "run m2 on 0"], [])
    assert [action.expected_s for action in actions] == pytest.approx([LOAD_S, 0.010])


def test_refused_if_late_with_its_load_and_taken_without():
    made = scheduler()
    assert made.submit(0, 2, 1, 0.020, 0.0).late
    assert made.waiting == 0
    opened(made, 2)
    assert not made.submit(1, 2, 1, 0.020, 0.0).late


def test_latest_start_goes_first():
    made = scheduler()
    opened(made, 0, 1, 2)
    made.submit(0, 0, 1, 0.050, 0.0)
    made.submit(1, 1, 1, 0.030, 0.0)
    made.submit(2, 2, 1, math.inf, 0.0)
    actions, _ = made.decide(0.0)
    assert short(actions) == ["run m1 on 0"]  # 10 ms are sent ahead
    finish(made, actions[0], 0.010, 0.010)
    actions, _ = made.decide(0.010)
    assert short(actions) == ["run m0 on 0"]


def test_at_most_ten_milliseconds_are_sent_ahead():
    made = Scheduler([facts(3.0)], executors=1, memory_nbytes=100 * MIB)
    made.regain(0, ["a"])
    opened(made, 0)
    for number in range(9):
        made.submit(number, 0, 1, 1.0, 0.0)
    actions, _ = made.decide(0.0)
    assert len(actions) == 4  # before 0, 3, 6 and 9 ms
    assert made.wake_s(0.0) == pytest.approx(0.002)
    assert len(made.decide(0.0021)[0]) == 1
    finish(made, actions[0], 0.0025, 0.0025)  # sooner than expected
    assert len(made.decide(0.0026)[0]) == 0
    assert len(made.decide(0.0046)[0]) == 1


def test_an_accepted_request_is_not_made_late_by_another():
    made = scheduler()
    opened(made, 0, 1)
    assert not made.submit(0, 0, 1, 0.021, 0.0).late
    actions, _ = made.decide(0.0)
    assert not made.submit(1, 0, 1, 0.0215, 0.0).late
    verdict = made.submit(2, 1, 1, 0.0205, 0.0)  # it would go before request 1
    assert verdict.late
    assert verdict.delays
    assert short(actions) == ["run m0 on 0"]


def test_what_cannot_be_in_time_is_dropped_before_it_is_computed():
    made = scheduler(refuses=False)
    opened(made, 0)
    for number in range(3):
        made.submit(number, 0, 1, 0.021, 0.0)
    first, _ = made.decide(0.0)
    finish(made, first[0], 0.011, 0.011)
    second, dropped = made.decide(0.0111)
    assert not second
    assert [one.request.number for one in dropped] == [1, 2]
    assert dropped[0].predicted_s == pytest.approx(0.011 / 1.1, rel=0.2)


def test_the_least_recently_used_is_evicted_and_none_in_use():
    made = scheduler(5, mib=12)  # three of 4 MiB
    opened(made, 0, 1, 2)
    made.residency.use(0)
    made.submit(0, 1, 1, 1.0, 0.0)
    run, _ = made.decide(0.0)
    assert short(run) == ["run m1 on 0"]
    finish(made, run[0], 0.010, 0.010)
    made.submit(1, 3, 1, 1.0, 0.010)
    actions, _ = made.decide(0.010)
    assert short(actions) == ["evict m2 on 0", "load m3 on 0", "run m3 on 0"]
    assert made.residency.used_nbytes == 12 * MIB
    made.submit(2, 4, 1, 1.0, 0.010)
    for action in actions:
        finish(made, action, 0.040, 0.010)
    made.submit(3, 0, 1, 1.0, 0.040)  # waited for, though used least recently: it stays
    actions, _ = made.decide(0.040)
    assert short(actions)[:1] == ["evict m1 on 0"]


def test_a_second_executor_opens_a_model_when_the_queue_is_longer_than_opening_takes():
    made = scheduler(executors=2)
    opened(made, 0, executor=0)
    made.submit(0, 0, 1, 1.0, 0.0)
    assert short(made.decide(0.0)[0]) == ["run m0 on 0"]
    made.submit(1, 0, 1, 1.0, 0.0)  # after 10 ms there, or after opening here, 5 ms: its pages are in memory
    actions, _ = made.decide(0.0)
    assert short(actions) == ["load m0 on 1", "run m0 on 1"]
    assert actions[0].expected_s == pytest.approx(0.005)
    made.submit(2, 0, 1, 1.0, 0.0)
    assert short(made.decide(0.0)[0]) == []  # both are busy: where it ends first is decided when one is free


def test_the_largest_unserved_demand_is_loaded_first():
    made = scheduler()
    made.submit(0, 0, 1, 0.500, 0.0)
    for number in range(1, 6):
        made.submit(number, 1, 1, 0.600, 0.0)
    actions, _ = made.decide(0.0)
    assert short(actions) == ["load m1 on 0", "run m1 on 0"]


def test_demand_does_not_make_an_accepted_request_late():
    made = scheduler()
    assert not made.submit(0, 0, 1, 0.050, 0.0).late  # first it takes 25.5 ms, second 51 ms
    for number in range(1, 26):
        assert not made.submit(number, 1, 1, 0.600, 0.0).late
    assert short(made.decide(0.0)[0]) == ["load m0 on 0", "run m0 on 0"]


def test_present_slowdown_is_in_the_estimates():
    made = scheduler(executors=2)
    opened(made, 0, executor=0)
    opened(made, 0, executor=1)
    for _ in range(5):
        made.estimates.ran(0, 0, made.models[0], 1, 0.030, 0.0)
        made.estimates.ran(1, 0, made.models[0], 1, 0.010, 0.0)
    assert made.estimates.slowdown(0, 0.0) == pytest.approx(3.0)
    assert made.estimates.slowdown(1, 0.0) == pytest.approx(1.0)
    assert made.estimates.typical_run_s(0, made.models[0], 1, 0.0) == pytest.approx(0.010)
    factor = made.estimates.run_factor(0.0)
    assert factor > 2.5  # that it has slowed down came as a surprise
    verdict = made.submit(50, 0, 1, 0.5, 0.0)
    assert verdict.predicted_s == pytest.approx(0.010 * factor)  # by the one that is not disturbed
    assert short(made.decide(0.0)[0]) == ["run m0 on 1"]
    assert made.submit(51, 0, 1, 0.5, 0.0).predicted_s == pytest.approx(0.020 + 0.010 * (factor - 1) * math.sqrt(2))
    assert made.estimates.slowdown(0, 10.0) == 1.0  # nothing was heard of it for long


def test_what_an_executor_had_is_given_to_others():
    made = scheduler(executors=2)
    opened(made, 0)
    made.submit(0, 0, 1, 1.0, 0.0)
    (run,), _ = made.decide(0.0)
    lost = made.lose(0)
    assert lost.suspect is run.request
    assert lost.models == [0]
    assert made.residency.used_nbytes == 0
    actions, _ = made.decide(0.001)
    assert short(actions) == ["load m0 on 1", "run m0 on 1"]
    assert actions[1].request is run.request
    assert made.answered(0, run.number, 0.002, took_s=0.01) is None  # of the dead one


def test_without_executors_requests_wait_and_those_with_a_deadline_are_refused():
    made = scheduler()
    made.lose(0)
    assert made.submit(0, 0, 1, 1.0, 0.0).late
    assert not made.submit(1, 0, 1, math.inf, 0.0).late
    assert made.decide(0.0) == ([], [])
    made.regain(0)
    assert short(made.decide(0.0)[0]) == ["load m0 on 0", "run m0 on 0"]


def test_outliers_do_not_keep_a_model_out():
    made = scheduler()
    opened(made, 0)
    made.submit(0, 0, 1, math.inf, 0.0)
    (run,), _ = made.decide(0.0)
    finish(made, run, 0.5, 0.5)
    for _ in range(4):  # what is not slow any more
        made.estimates.ran(0, 1, made.models[1], 1, 0.010, 0.5)
    assert made.estimates.run_factor(0.5) > 10
    assert made.estimates.run_factor(11.0) == 1.0
    assert not made.submit(1, 0, 1, 0.5 + 0.012, 0.5).late  # tried: nothing else is there


def test_one_at_a_time_is_tried_that_would_typically_be_in_time():
    made = scheduler()
    for took_s in (0.003, 0.003, 0.003, 0.003, 0.080):  # one outlier
        made.estimates.loaded(0, 4 * MIB, took_s - 0.001, 0.001, 0.0, first=False)
    assert made.estimates.typical_load_s(4 * MIB, 0.0) * made.estimates.load_factor(0.0) > 0.070
    first = made.submit(0, 0, 1, 0.050, 0.0)
    assert (first.late, first.trial) == (False, True)
    assert made.submit(1, 1, 1, 0.060, 0.0).late  # until the first one is over
    load, run = made.decide(0.0)[0]
    assert (load.kind, run.kind, run.model) == (LOAD, RUN, 0)
    finish(made, load, 0.003, 0.003, 0.001)
    assert made.submit(2, 1, 1, 0.060, 0.003).late
    finish(made, run, 0.013, 0.010)
    assert made.submit(3, 1, 1, 0.060, 0.013).trial
    assert made.cancel(3)
    assert made.submit(4, 1, 1, 0.060, 0.013).trial


def test_a_trial_delays_nobody():
    made = scheduler()
    for took_s in (0.003, 0.003, 0.003, 0.003, 0.080):
        made.estimates.loaded(0, 4 * MIB, took_s - 0.001, 0.001, 0.0, first=False)
    opened(made, 0)
    assert not made.submit(0, 0, 1, 0.060, 0.0).late
    verdict = made.submit(1, 1, 1, 0.050, 0.0)
    assert (verdict.late, verdict.delays) == (True, True)


def test_predicted_loads_are_learned():
    estimates = Estimates(1)
    assert estimates.typical_load_s(4 * MIB, 0.0) == pytest.approx(LOAD_S)
    for _ in range(10):
        estimates.loaded(0, 4 * MIB, 0.004, 0.001, 0.0, first=False)
    assert estimates.typical_load_s(8 * MIB, 0.0) == pytest.approx(0.009)
    assert estimates.typical_load_s(0, 0.0) == pytest.approx(0.001)
    estimates.loaded(0, 0, 0.0, 0.200, 0.0, first=True)
    assert estimates.typical_load_s(0, 0.0, first=True) == pytest.approx(0.200)
    assert estimates.typical_load_s(0, 0.0) == pytest.approx(0.001)
    assert estimates.load_factor(0.0) == 1.0  # none took longer than predicted
    assert estimates.typical_load_s(4 * MIB, 1000.0) == pytest.approx(LOAD_S)  # too old


def test_a_load_that_fails_leaves_no_model_open():
    made = scheduler()
    made.submit(0, 0, 1, math.inf, 0.0)
    load, run = made.decide(0.0)[0]
    assert (load.kind, run.kind) == (LOAD, RUN)
    made.answered(0, load.number, 0.01, took_s=0.0, ok=False)
    assert 0 not in made.residency


def test_on_demand_takes_requests_in_their_order():
    made = OnDemand([facts() for _ in range(4)], executors=1, memory_nbytes=8 * MIB)
    made.regain(0)
    for number in range(3):
        assert not made.submit(number, number, 1, 0.001, 0.0).late
    seen = []
    for step in range(3):
        actions, dropped = made.decide(float(step))
        assert not dropped
        seen += short(actions)
        for action in actions:
            finish(made, action, step + 0.5, 0.1)
    assert seen == [
        "load m0 on 0", "run m0 on 0", "load m1 on 0", "run m1 on 0", "evict m0 on 0", "load m2 on 0", "run m2 on 0",
    ]  # fmt: skip


def test_a_refusal_names_the_prediction():
    error = refusal("cats", Verdict(True, 0.0567, 0.0312, 2), 0.05)
    assert error.refused
    assert error.predicted_s == 0.0567
    assert str(error) == (
        "refused: model 'cats' would be done in 56.7 ms, 31.2 ms of it for loading its model, its deadline is in 50.0 "
        "ms, 2 requests go before it; allow longer, send less at a time, or take all (admission='none')"
    )
    assert "an accepted request behind it would be late" in str(refusal("cats", Verdict(True, 0.01, 0.0, 2, True), 1))
    assert "no executor is there" in str(refusal("cats", Verdict(True, math.inf, 0.0, 0), 1.0))
    assert "passed 2.0 ms before" in str(refusal("cats", Verdict(True, 0.01, 0.0, 0), -0.002))


def test_by_how_much_actions_exceed_is_learned_of_all_models():
    estimates = Estimates(1)
    models = [facts(ms) for ms in (1.0, 2.0, 5.0)]
    for number in range(200):  # one in ten takes twice as long, whichever it is
        model = number % 3
        took_s = models[model].baseline_of(1) * (2.0 if number % 10 == 9 else 1.0)
        estimates.ran(0, model, models[model], 1, took_s, number * 0.01)
    assert estimates.run_factor(2.0) == pytest.approx(2.0)
    never_run = facts(20.0)
    assert estimates.typical_run_s(3, never_run, 1, 2.0) * estimates.run_factor(2.0) == pytest.approx(0.040)
    assert estimates.run_factor(12.1) == 1.0  # nothing was heard for ten seconds


def test_many_actions_hardly_ever_take_as_long_as_each_of_them():
    made = scheduler()
    opened(made, 0)
    for _ in range(10):
        made.estimates.ran(0, 1, made.models[1], 1, 0.010, 0.0)
    made.estimates.ran(0, 1, made.models[1], 1, 0.020, 0.0)
    factor = made.estimates.run_factor(0.0)
    assert 1.8 < factor <= 2.0
    for number in range(4):
        verdict = made.submit(number, 0, 1, 1.0, 0.0)
        margin_s = 0.010 * (factor - 1) * math.sqrt(number + 1)  # of all that goes before it, and its own
        assert verdict.predicted_s == pytest.approx(0.010 * (number + 1) + margin_s)
        assert verdict.ahead == number


def test_behind_many_requests_it_is_their_seconds_that_count():
    made = scheduler(executors=2)
    opened(made, 0, executor=0)
    opened(made, 0, executor=1)
    for number in range(300):
        assert made.submit(number, 0, 1, 10.0, 0.0).predicted_s == pytest.approx(0.010 * (number // 2 + 1), abs=0.006)
    assert made.submit(300, 0, 1, 10.0, 0.0).ahead == 300
    assert made.submit(301, 0, 1, 0.1, 0.0).ahead == 0  # it has less time left
    assert made.submit(302, 0, 1, 1.51, 0.0).late is False
    assert made.submit(303, 0, 1, 1.515, 0.0).ahead == 2


def test_the_suspect_is_the_request_for_which_a_model_was_loaded():
    made = scheduler(executors=2)
    made.submit(0, 0, 1, math.inf, 0.0)
    load, run = made.decide(0.0)[0]
    assert (load.kind, run.kind) == (LOAD, RUN)
    assert made.lose(load.executor).suspect is run.request
