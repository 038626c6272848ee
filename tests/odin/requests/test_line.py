"""The line: urgent ones, earliest deadlines, and those without one, which do not starve."""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from odin.requests.line import Line

NEVER = math.inf


class One(NamedTuple):
    number: int
    deadline_s: float = NEVER
    urgent: bool = False
    samples: int = 1


def line_of(*ones: One) -> Line[One]:
    line: Line[One] = Line()
    for one in ones:
        line.add(one)
    return line


def taken(line: Line[One]) -> list[int]:
    return [line.take().number for _ in range(len(line))]


def test_without_deadlines_it_is_first_come_first_served():
    assert taken(line_of(*(One(number) for number in range(5)))) == [0, 1, 2, 3, 4]


def test_the_earliest_deadline_goes_first_and_equal_ones_as_they_came():
    assert taken(line_of(One(0, 9.0), One(1, 5.0), One(2, 7.0), One(3, 5.0))) == [1, 3, 2, 0]


def test_urgent_ones_go_before_all_in_their_order():
    assert taken(line_of(One(0, 1.0), One(1), One(2, urgent=True), One(3, 0.5, urgent=True))) == [2, 3, 0, 1]


def test_every_eighth_place_is_one_without_a_deadline():
    line = line_of(One(100), One(101), *(One(number, 1.0 + number) for number in range(16)))
    assert taken(line) == [0, 1, 2, 3, 4, 5, 6, 100, 7, 8, 9, 10, 11, 12, 13, 101, 14, 15]


def test_one_without_a_deadline_waits_for_seven_others_at_most_however_many_come():
    line = line_of(One(0))
    for number in range(1, 8):
        line.add(One(number, float(number)))
        line.add(One(100 + number, 100.0 + number))
        assert line.take().number == number
    assert line.take().number == 0


def test_places_are_not_saved_up_while_nobody_without_a_deadline_waits():
    line = line_of(*(One(number, float(number)) for number in range(9)))
    for _ in range(8):
        line.take()
    line.add(One(100))
    line.add(One(9, 9.0))
    assert taken(line) == [8, 9, 100]


def test_who_leaves_is_gone_once():
    ones = [One(0, 3.0), One(1), One(2, urgent=True)]
    line = line_of(*ones, One(3, 3.0))
    for one in ones:
        assert line.remove(one)
        assert not line.remove(one)
    assert taken(line) == [3]
    assert line.head() is None


def test_the_order_has_changed_when_somebody_went_before_others():
    line = line_of(One(0, 5.0), One(1, 6.0), One(2))
    assert line.overtakings == 0
    line.add(One(3, 5.5))
    line.add(One(4, urgent=True))
    assert line.overtakings == 2


WHO = st.tuples(st.one_of(st.just(NEVER), st.integers(0, 9).map(float)), st.integers(0, 19).map(lambda n: n == 0))
STEPS = st.lists(st.one_of(WHO, st.sampled_from(["take", "leave"])), max_size=60)


def line_after(steps: list) -> tuple[Line[One], list[One]]:
    line: Line[One] = Line()
    there: list[One] = []
    for number, step in enumerate(steps):
        if step == "take":
            if there:
                there.remove(line.take())
        elif step == "leave":
            if there:
                assert line.remove(there.pop(number % len(there)))
        else:
            there.append(One(number, *step))
            line.add(there[-1])
    return line, there


@given(STEPS)
def test_nobody_is_lost_or_taken_twice_and_the_order_is_as_told(steps: list):
    line, there = line_after(steps)
    told = list(line)
    order = []
    while (head := line.head()) is not None:
        assert line.take() is head
        order.append(head)
    assert order == told
    assert sorted(order) == sorted(there)
    kinds = [[one for one in order if kind(one)] for kind in (lambda o: o.urgent, lambda o: not o.urgent)]
    assert order == [*kinds[0], *kinds[1]]
    deadlines = [one.deadline_s for one in kinds[1] if one.deadline_s < NEVER]
    assert deadlines == sorted(deadlines)
    others = [one.number for one in kinds[1] if one.deadline_s == NEVER]
    assert others == sorted(others)


@given(STEPS, st.one_of(st.just(NEVER), st.integers(0, 9).map(float)))
def test_who_would_enter_knows_how_many_are_taken_before(steps: list, deadline_s: float):
    line, _ = line_after(steps)
    order = list(line)
    for one, before in line.behind(deadline_s):
        assert order[before] is one
        assert one.deadline_s > deadline_s
    ahead = line.ahead(deadline_s)
    newcomer = One(999, deadline_s)
    line.add(newcomer)
    assert list(line)[ahead] is newcomer
