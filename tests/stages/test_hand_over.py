"""One stage's decisions between layers, with made-up words of later stages and times given by the test."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from odin.partitioner.relay import Windows
from odin.stages.channel.readiness import BEGUN, FREE_S, IDLE_SINCE_S, SENT, SLOWDOWN, Readiness
from odin.stages.channel.shared_queue import QueueWords, StageWords
from odin.stages.company import Company
from odin.stages.device import Device
from odin.stages.hand_over import HandOver, Reach
from odin.stages.lease import Lease

LAYERS = 6
NOW_S = 1000.0


class Channel:
    """A sender to a later stage, whose words the test writes."""

    way = None

    def __init__(self) -> None:
        self.readiness = Readiness()
        self.sent = self.readiness.take_word()
        self.has_place = self.usable = True
        self.words = self.readiness.words
        self.is_free_in(math.inf)

    def is_idle(self, since_s: float = NOW_S) -> None:
        self.words[FREE_S] = self.words[IDLE_SINCE_S] = since_s

    def is_free_in(self, seconds: float, *, waiting: int = 0) -> None:
        self.words[FREE_S], self.words[IDLE_SINCE_S] = NOW_S + seconds, math.inf
        self.words[self.sent], self.words[BEGUN] = 5.0 + waiting, 5.0


class Stage:
    """Stage 0 of a relay whose layers take a second each, and twice that on the last stage."""

    def __init__(
        self, windows: str = "@0-6|@6", *channels: Channel, index: int = 0, company: Company | None = None
    ) -> None:
        parsed = Windows.parse(windows)
        self.channels = channels or tuple(Channel() for _ in parsed[index + 1 :])
        self.readiness = Readiness()
        self.words = self.readiness.words
        assert self.readiness.take_word() == SENT
        self.hand_over = HandOver(
            index,
            baseline_s=[[1.0] * LAYERS] * (len(parsed) - 1) + [[2.0] * LAYERS],
            cost_s=[0.0] * (LAYERS + 1),
            cut_nbytes=[100] * (LAYERS + 1),
            readiness=self.readiness,
            later={index + 1 + number: channel for number, channel in enumerate(self.channels)},
            company=company,
        )
        self.reach = Reach.of(parsed, index, [index + 1 + number for number in range(len(self.channels))])
        self.takers = self.hand_over.takers_of(self.reach)

    def begin(self, first: int = 0) -> None:
        self.words[SENT] += 1.0
        self.words[BEGUN] += 1.0
        self.hand_over.begin(self.takers, first, self.reach.last, NOW_S)

    def run(self, *, layer_s: float = 1.0, first: int = 0) -> int:
        """Run a request with each layer in ``layer_s``; the cut where it stopped."""
        self.begin(first)
        for number, cut in enumerate(range(first + 1, self.reach.last), 1):
            if self.hand_over.at_cut(cut, NOW_S + number * layer_s):
                return cut
        return self.reach.last


@pytest.mark.parametrize(
    ("free_in_s", "cut"), [(0.9, 1), (1.4, 1), (1.6, 2), (2.0, 2), (2.4, 2), (2.6, 3), (3.0, 3), (4.0, 4), (100.0, 6)]
)
def test_the_cut_is_taken_that_is_nearest_to_when_the_next_is_free(free_in_s: float, cut: int):
    stage = Stage()
    stage.channels[0].is_free_in(free_in_s)
    assert stage.run() == cut


def test_a_stage_that_is_long_overdue_is_left_alone():
    stage = Stage()
    stage.channels[0].is_free_in(0.0)
    assert stage.run() == 6


def test_an_idle_stage_gets_the_request_at_the_first_cut():
    stage = Stage()
    stage.channels[0].is_idle()
    assert stage.run() == 1
    assert stage.hand_over.target(1) == 1


def test_a_stage_whose_place_is_taken_gets_nothing_more():
    stage = Stage()
    stage.channels[0].is_free_in(0.0, waiting=1)
    assert stage.run() == 6


def test_without_a_free_slot_it_goes_on():
    stage = Stage()
    stage.channels[0].is_idle()
    stage.channels[0].has_place = False
    assert stage.run() == 6


def test_what_waits_here_makes_it_hand_over_to_who_is_not_yet_free():
    stage = Stage()
    stage.channels[0].is_free_in(3.0)
    stage.words[SENT] += 1.0
    assert stage.run() == 1


def test_a_slow_idle_stage_is_passed_by_where_that_would_delay_the_request():
    stage = Stage("@0-6|@0-6|@6")
    slow, last = stage.channels
    slow.is_idle()
    slow.words[SLOWDOWN] = 20.0
    last.is_idle()
    assert stage.run() == 1
    assert stage.hand_over.target(1) == 2
    slow.words[SLOWDOWN] = 1.0
    assert stage.run() == 1
    assert stage.hand_over.target(1) == 1


def test_a_slowdown_is_forgotten_while_a_stage_is_idle():
    stage = Stage("@0-6|@0-6|@6")
    slow, last = stage.channels
    slow.words[SLOWDOWN] = 20.0
    slow.is_idle(NOW_S - 60.0)  # ten times the chain
    last.is_idle()
    assert stage.run() == 1
    assert stage.hand_over.target(1) == 1


def test_where_it_must_hand_over_the_first_free_place_decides_and_else_the_next_stage():
    stage = Stage("@3|@3-6|@3-6|@6")
    near, middle, far = stage.channels
    assert [taker.stage for taker in stage.takers[3]] == [1, 2, 3]
    assert stage.run() == 3
    for channel in stage.channels:
        channel.is_free_in(5.0)
    assert stage.hand_over.target(3) == 1
    near.is_free_in(0.1, waiting=1)
    assert stage.hand_over.target(3) == 2
    middle.is_free_in(0.1, waiting=1)
    far.is_free_in(0.1, waiting=1)
    assert stage.hand_over.target(3) == 1


def test_a_plan_leaves_nothing_to_decide_and_empty_stages_out():
    stage = Stage("@2|@2|@6")
    assert (stage.reach.first, stage.reach.last, stage.reach.free) == (0, 2, False)
    stage.begin()
    assert stage.hand_over.target(2) == 2


def test_a_stage_that_is_out_of_reach_is_reached_through_the_next():
    windows = Windows.parse("@2|@2|@6")
    assert Reach.of(windows, 0, [1]).takers[2] == (1,)
    assert Reach.of(windows, 1, [2]).takers[2] == (2,)


def published(stage: Stage) -> float:
    return stage.words[FREE_S] - NOW_S


def test_it_says_when_it_will_be_free():
    stage = Stage()
    stage.channels[0].is_free_in(2.5)
    stage.begin()
    assert stage.words[IDLE_SINCE_S] == math.inf
    assert published(stage) == pytest.approx(2.5)  # when the next one takes over
    stage.channels[0].is_free_in(0.0, waiting=1)
    stage.begin()
    assert published(stage) == pytest.approx(6.0)  # the rest of the chain
    stage.hand_over.rest(NOW_S + 9.0)
    assert (published(stage), stage.words[IDLE_SINCE_S]) == (9.0, NOW_S + 9.0)


def test_a_slower_stage_expects_to_be_free_later_and_says_how_slow_it_is():
    stage = Stage()
    stage.channels[0].is_free_in(0.0, waiting=1)
    for _ in range(5):
        stage.run(layer_s=3.0)
    stage.hand_over.ran(6, NOW_S + 18.0)
    stage.begin()
    assert stage.words[SLOWDOWN] == pytest.approx(3.0, rel=0.01)
    assert published(stage) == pytest.approx(18.0, rel=0.01)


def test_the_last_stage_has_nobody_to_look_at():
    stage = Stage("@0-6|@6", index=1)
    assert not any(stage.takers)
    stage.begin(2)
    assert published(stage) == pytest.approx(8.0)


class SharingStage(Stage):
    """As :class:`Stage`, where all stages take new requests from a queue."""

    def __init__(self, windows: str = "@0-6|@6", **options: Any) -> None:
        super().__init__(windows, **options)
        self.queue = QueueWords(QueueWords.make(len(Windows.parse(windows))))
        self.hand_over.share(self.queue)

    def begin(self, first: int = 0) -> None:
        self.hand_over.begin(self.takers, first, self.reach.last, NOW_S, shares=self.reach.shares)


def test_while_all_take_new_requests_an_idle_stage_gets_none_that_is_as_soon_done_here():
    stage = SharingStage()
    stage.channels[0].is_idle()
    assert stage.run(layer_s=1.0) == 6  # there each layer takes two seconds
    assert stage.run(layer_s=2.0) == 6
    assert stage.words[FREE_S] > NOW_S


@pytest.mark.parametrize(
    ("layer_s", "free_in_s", "waiting", "cut"),
    [
        (4.0, None, 0, 3),  # idle: once it is known that a layer takes more than 8/3 s here
        (4.0, 20.0, 0, 5),  # begins with layer 5 at 20 s, when this stage is there
        (4.0, None, 1, 6),  # while others wait it must be twice as fast, as it seems, and more
        (9.0, None, 1, 2),
    ],
)
def test_a_slow_stage_hands_over_what_is_sooner_done_elsewhere(layer_s, free_in_s, waiting, cut):
    stage = SharingStage()
    channel = stage.channels[0]
    channel.is_idle() if free_in_s is None else channel.is_free_in(free_in_s)
    stage.queue.note_sent(waiting)
    assert stage.run(layer_s=layer_s) == cut


def test_windows_that_do_not_let_all_begin_are_as_without_a_queue():
    stage = SharingStage("@1-6|@6")
    stage.channels[0].is_idle()
    assert stage.run() == 1


def test_a_stage_leaves_new_requests_while_one_is_on_its_way_but_not_for_long():
    stage = SharingStage()
    stage.queue.note_sent(1)
    assert not stage.hand_over.leaves(0.0)
    stage.words[SENT] += 1.0
    assert stage.hand_over.leaves(0.0)
    assert not stage.hand_over.leaves(1.0)


def test_a_stage_leaves_a_new_request_to_an_idle_one_that_is_much_faster_but_not_for_long():
    stage = SharingStage("@0-6|@0-6|@6", index=2)  # its layers take two seconds
    now_s = time.perf_counter()
    stage.queue.note_sent(1)
    assert not stage.hand_over.leaves(0.0)
    stage.queue.tell(1, StageWords(now_s, now_s, 1.0))
    assert stage.hand_over.leaves(0.0)
    assert not stage.hand_over.leaves(1.0)  # it may hang
    stage.queue.note_sent(2)
    assert not stage.hand_over.leaves(0.0)  # there is one for each


def test_a_stage_that_counts_for_nothing_leaves_all_to_others_that_are_not_late():
    stage = SharingStage("@0-6|@0-6|@6", index=2)
    stage.queue.note_sent(1)
    stage.hand_over._slowdown = 100.0
    stage.queue.tell(0, StageWords(math.inf, time.perf_counter() + 6.0, 1.0))
    assert stage.hand_over.leaves(1.0)
    stage.queue.tell(0, StageWords(math.inf, time.perf_counter() - 1000.0, 1.0))
    assert not stage.hand_over.leaves(1.0)


def test_a_stage_gives_way_to_an_idle_one_while_another_pipelines_stage_computes_beside_it(tmp_path: Path):
    def lease() -> Lease:
        return Lease(Device("cpu", (1,)), label="a pipeline", share=True, directory=tmp_path)

    with lease() as own, lease() as other:
        stage = SharingStage("@0-6|@0-6|@6", index=1, company=own.company)
        now_s = time.perf_counter()
        stage.queue.note_sent(1)
        stage.queue.tell(0, StageWords(now_s, now_s, 1.0))
        assert not stage.hand_over.leaves(0.0)
        other.company.computes(True)
        assert stage.hand_over.leaves(0.0)
        assert not stage.hand_over.leaves(0.001)  # nobody has a core for itself
        stage.queue.tell(0, StageWords(math.inf, now_s + 1.0, 1.0))
        assert not stage.hand_over.leaves(0.0)  # nobody is idle
        stage.hand_over.begin(stage.takers, 0, 6, now_s)
        assert other.company.beside
        assert own.company.beside
        other.company.computes(False)
        assert not own.company.beside
        stage.hand_over.rest(now_s)
        assert not other.company.beside
