"""What a stage makes of a later one, on a clock of its own: on the same machine, and on another."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from odin.monitor.samples import StageRow
from odin.partitioner.relay import Windows, is_better
from odin.stages.channel.readiness import BEGUN, FREE_S, IDLE_SINCE_S, SENT, SLOWDOWN, Readiness
from odin.stages.channel.way import Way
from odin.stages.hand_over import HandOver, Reach
from odin.stages.takers import Taker, make_taker

DELAY_S = 20.0
LAYERS = 10
"""Of one second each."""
ROW = StageRow.of([1.0] * LAYERS)


def link_to(way: Way | None) -> Any:
    """A sender to a stage that one other sends to."""
    readiness = Readiness()
    assert readiness.take_word() == SENT
    return SimpleNamespace(way=way, readiness=readiness, has_place=True, usable=True)


def far(*, delay_s: float = DELAY_S, byte_s: float = 0.0) -> tuple[Taker, memoryview[float], Way]:
    way = Way()
    way.delay_s = delay_s
    if byte_s:
        way.note_sent(0, 1, 0.0)
        way.note_heard(begun=1, since_s=0.0, others=0, turn_s=math.inf, now_s=2 * delay_s + byte_s)
    link = link_to(way)
    taker = make_taker(1, link, ROW)
    words = link.readiness.words
    words[IDLE_SINCE_S] = math.inf
    return taker, words, way


def better(taker: Taker, now_s: float, *, busy: bool, layer_s: float = 1.0, cut: int = 5, nbytes: int = 1) -> bool:
    """Decision of a stage as fast as the taker with request at a cut, as :class:`HandOver` asks for it."""
    idle, free_s, takes_s = taker.seen(cut, nbytes, now_s, busy=busy, row=ROW)
    rest_s = layer_s * (LAYERS - cut)
    return not taker.waits(now_s) and is_better(now_s, idle, free_s, takes_s, busy, layer_s, rest_s, 0.0)


def test_on_this_machine_the_words_are_what_counts():
    link = link_to(None)
    taker = make_taker(1, link, ROW)
    words = link.readiness.words
    words[IDLE_SINCE_S], words[FREE_S], words[SLOWDOWN] = math.inf, 105.0, 2.0
    assert taker.seen(3, 1, 100.0, busy=True, row=ROW) == (False, 105.0, 2.0)
    assert not taker.waits(100.0)
    words[SENT] = 1.0
    assert taker.waits(100.0)
    words[BEGUN] = 1.0
    assert not taker.waits(100.0)


def test_it_is_sent_when_it_will_be_there_as_the_stage_gets_free():
    taker, words, _ = far(byte_s=3.0)
    words[FREE_S] = 130.0
    assert taker.free_s(1, 100.0) == 107.0
    assert taker.free_s(1, 108.0) == 108.0  # at once: neither late nor never


def test_a_stage_is_late_only_if_the_answer_is():
    taker, words, _ = far()
    words[FREE_S] = 100.0
    assert taker.free_s(0, 119.0) == 119.0  # that it has begun with another would be heard at 120
    assert taker.free_s(0, 150.0) == 150.0
    assert taker.free_s(0, 175.0) == 190.0  # 55 late as it was at 155: free at 210, if at all


def test_the_next_leaves_before_the_answer_to_the_one_before_is_back():
    """Without that a stage 20 s away would have one request of 5 s in 40 s."""
    taker, words, way = far()
    words[IDLE_SINCE_S] = 0.0
    way.note_sent(5, 0, 100.0)
    assert not taker.waits(100.1)  # it begins at once when it arrives
    assert taker.free_s(0, 100.1) == pytest.approx(105.0)
    way.note_sent(5, 0, 104.0)  # arrives at 124, begins at 125
    assert taker.waits(104.1)
    assert not taker.waits(105.1)
    assert taker.free_s(0, 105.1) == pytest.approx(110.0)


def test_one_place_there_and_one_at_a_time_on_the_way():
    taker, words, way = far(byte_s=8.0)
    words[IDLE_SINCE_S] = 0.0
    way.note_sent(9, 1, 100.0)
    assert taker.waits(107.0)  # its bytes are on the way until 108
    assert not taker.waits(108.1)


def test_requests_that_wait_from_others_take_the_place():
    taker, _, way = far()
    way.others = 1
    assert taker.waits(100.0)
    assert taker.free_s(0, 100.0) == math.inf


def test_one_that_hangs_gets_no_more():
    taker, words, way = far()
    words[IDLE_SINCE_S] = 0.0
    now_s, sent = 100.0, 0
    while now_s < 1000.0:
        if better(taker, now_s, busy=True):
            way.note_sent(5, 0, now_s)
            sent += 1
        now_s += 1.0
    assert sent <= 2 * DELAY_S / 5 + 2  # what it would have begun with before that could be heard


def test_the_delay_is_no_matter_where_others_wait_but_alone_is_better_where_nobody_does():
    taker, words, _ = far()
    words[IDLE_SINCE_S] = 0.0
    assert better(taker, 0.0, busy=True)
    assert not better(taker, 0.0, busy=False)
    near, words, _ = far(delay_s=0.5)
    words[IDLE_SINCE_S] = 0.0
    assert not better(near, 0.0, busy=False)  # as fast there, and later
    assert better(near, 0.0, busy=False, layer_s=2.0)  # a slow stage here: sooner there


def test_a_way_that_takes_longer_than_the_rest_here_is_left_alone_and_tried_again():
    taker, words, _ = far(byte_s=30.0)
    words[IDLE_SINCE_S] = 100.0
    assert not better(taker, 100.0, busy=True)
    assert better(taker, 100.0 + 4 * LAYERS, busy=True)


def test_hand_over_at_a_cut_over_a_way():
    """The other stage begins with what waits there at 2.5, and is one second away: at 2 it can be sent another one."""
    taker, words, way = far(delay_s=1.0)
    words[FREE_S] = 2.5
    readiness = Readiness()
    assert readiness.take_word() == SENT
    hand_over = HandOver(
        0,
        baseline_s=[[1.0] * LAYERS] * 2,
        cost_s=[0.0] * (LAYERS + 1),
        cut_nbytes=[0] * (LAYERS + 1),
        readiness=readiness,
        later={1: taker.link},
    )
    reach = Reach.of(Windows.whole(stage_count=2, layer_count=LAYERS), 0, [1])
    readiness.words[SENT] = 2.0  # one that is begun with, one that waits
    readiness.words[BEGUN] = 1.0
    hand_over.begin(hand_over.takers_of(reach), 0, LAYERS, 0.0)
    way.note_sent(8, 0, 0.0)  # there at 1, begins at 2.5
    assert not hand_over.at_cut(1, 1.0)
    assert readiness.words[FREE_S] == 10.0  # as if it had to do it all
    assert hand_over.at_cut(2, 2.0)
    assert hand_over.target(2) == 1


def test_a_very_slow_stage_passes_a_request_on_as_it_is():
    link = link_to(None)
    readiness, words = Readiness(), link.readiness.words
    hand_over = HandOver(
        0,
        baseline_s=[[4.0] * LAYERS, [1.0] * LAYERS],
        cost_s=[0.0] * (LAYERS + 1),
        cut_nbytes=[0] * (LAYERS + 1),
        readiness=readiness,
        later={1: link},
    )
    takers = hand_over.takers_of(Reach.of(Windows.whole(stage_count=2, layer_count=LAYERS), 0, [1]))
    hand_over.begin(takers, 0, LAYERS, 0.0)
    assert hand_over.passes_on(0, 0.0)  # it is idle
    assert hand_over.target(0) == 1
    words[IDLE_SINCE_S], words[FREE_S] = math.inf, 100.0
    hand_over.begin(takers, 0, LAYERS, 0.0)
    assert not hand_over.passes_on(0, 0.0)  # it is busy for long
    words[FREE_S], words[SENT] = 0.5, 1.0
    assert not hand_over.passes_on(0, 0.0)  # another one waits there
    words[BEGUN] = 1.0
    assert hand_over.passes_on(0, 0.0)


@pytest.mark.parametrize("on_another_machine", [False, True])
def test_one_that_was_slow_is_passed_by_and_given_a_request_again_after_a_while(on_another_machine: bool):
    if on_another_machine:
        taker, words, _ = far(delay_s=0.1)
    else:
        link = link_to(None)
        taker, words = make_taker(1, link, ROW), link.readiness.words
    words[SLOWDOWN], words[IDLE_SINCE_S] = 30.0, 100.0
    tried_s = [now_s for now_s in range(100, 200) if better(taker, float(now_s), busy=True)]
    # five seconds are left here, and a layer there took 30: half of what is off 1 is forgotten in the time of the chain
    assert tried_s[0] == 100 + 29
    words[SLOWDOWN] = 1.0  # it has recovered
    words[IDLE_SINCE_S] = 130.0
    assert better(taker, 130.0, busy=True)
