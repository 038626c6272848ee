from __future__ import annotations

import pytest

from odin.control.watchdog import Reading, Watchdog

STUCK = Reading(has_work=True, words="layer 3", expected_s=0.1)  # limit: 10 x 0.1 + 0.5


def looks(watchdog: Watchdog, readings: list[tuple[float, Reading]]) -> list[bool]:
    return [watchdog.look(reading, now_s) for now_s, reading in readings]


def test_one_that_says_nothing_new_hangs_after_many_times_what_it_should_take():
    watchdog = Watchdog(interval_s=0.5)
    assert looks(watchdog, [(0.5 * tick, STUCK) for tick in range(5)]) == [False, False, False, True, True]
    assert (watchdog.limit_s, watchdog.silent_s) == (1.5, 2.0)


@pytest.mark.parametrize("slowdown", [1, 5, 40])
def test_a_slow_one_has_as_many_times_longer(slowdown: int):
    watchdog = Watchdog(interval_s=0.5)
    slow = STUCK._replace(expected_s=0.1 * slowdown)
    hung = [tick for tick in range(1000) if watchdog.look(slow, 0.5 * tick)]
    assert hung[0] * 0.5 == pytest.approx(slowdown + 0.5, abs=0.5)


def test_one_that_gets_on_does_not_hang_however_slow():
    watchdog = Watchdog(interval_s=0.5)
    assert not any(watchdog.look(STUCK._replace(words=tick // 3), 0.5 * tick) for tick in range(100))


def test_one_that_has_nothing_to_do_does_not_hang():
    watchdog = Watchdog(interval_s=0.5)
    assert not any(watchdog.look(STUCK._replace(has_work=False), 0.5 * tick) for tick in range(100))
    assert looks(watchdog, [(50.0 + 0.5 * tick, STUCK) for tick in range(4)]) == [False, False, True, True]


def test_it_answers_again_with_its_first_new_word():
    watchdog = Watchdog(interval_s=0.5)
    assert looks(watchdog, [(0.5 * tick, STUCK) for tick in range(4)])[-1]
    assert not watchdog.look(STUCK._replace(words="layer 4"), 2.0)


def test_time_in_which_this_process_itself_stood_still_does_not_count():
    watchdog = Watchdog(interval_s=0.5)
    times = [0.0, 0.5, 100.0, 100.5, 101.0]  # stopped, with the stage, from 0.5 to 100
    assert looks(watchdog, [(now_s, STUCK) for now_s in times]) == [False, False, False, True, True]
