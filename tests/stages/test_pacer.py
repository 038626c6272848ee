"""A stage that may use only a share of its device, on clocks of its own; and in a loop with real channels."""

from __future__ import annotations

import math
import random
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from channels import one_thread_and_no_way_out_by_time_limit, open_ring, received
from layers import SLOT_NBYTES, FakeLayer
from patience import PROMPT_S

from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, WORKING
from odin.stages.channel.wire import Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.pacer import Pacer, check_share


def test_a_stage_that_always_has_work_uses_its_share():
    pacer, now_s, used_s = Pacer(0.25), 100.0, 0.0
    for _ in range(400):
        pacer.begin(now_s)
        now_s += 0.02
        used_s += 0.02
        now_s += pacer.done(now_s, 0.02)
    assert used_s / (now_s - 100.0) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_in_any_stretch_it_uses_at_most_the_share_of_that_and_a_window_and_one_request(seed):
    rng, share, longest_s = random.Random(seed), 0.4, 0.08
    pacer, now_s, spans = Pacer(share), 0.0, []
    for _ in range(150):
        now_s += rng.choice([0.0, 0.0, 0.01, 0.5])  # nothing to do
        used_s = rng.uniform(0.001, longest_s)
        pacer.begin(now_s)
        begin_s, now_s = now_s, now_s + used_s * rng.uniform(1.0, 3.0)  # disturbed or not
        spans.append((begin_s, now_s, used_s))
        now_s += pacer.done(now_s, used_s)
    for first in range(0, len(spans), 7):
        for last in range(first, len(spans)):
            used_s = sum(used for _, _, used in spans[first : last + 1])
            stretch_s = spans[last][1] - spans[first][0]
            assert used_s <= share * (stretch_s + 0.1) + longest_s + 1e-9


def test_a_stage_that_is_disturbed_pauses_less():
    pacer = Pacer(0.5, window_s=0.0)
    pacer.begin(0.0)
    assert pacer.owed_s(0.5, 0.5) == pytest.approx(0.5)
    assert pacer.done(0.5, 0.25) == 0.0


def test_all_of_the_device_never_pauses():
    pacer = Pacer()
    pacer.begin(0.0)
    assert (pacer.limits, pacer.done(1.0, 50.0), pacer.owed_s(1.0, 50.0)) == (False, 0.0, 0.0)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, 0.001, math.nan, "half", True, None, 10**400])
def test_a_share_that_is_none_is_refused_with_what_to_give(share):
    with pytest.raises(ValueError, match=r"share=.*give a number from 0.01 to 1, such as 0.5"):
        check_share(share)


class NotingPacer(Pacer):
    """Wants a pause after each request, and notes what the stage says meanwhile instead of pausing."""

    def __init__(self, words) -> None:
        super().__init__(0.5, window_s=0.0)
        self.words, self.said, self.used_s, self.at_s = words, [], [], 0.0

    def done(self, now_s: float, used_s: float) -> float:
        self.used_s.append(used_s)
        self.at_s = now_s
        return 0.25

    def wait(self, pause_s: float) -> None:
        self.said.append((pause_s, self.words[IDLE_SINCE_S], self.words[WORKING], self.words[FREE_S] - self.at_s))


def test_until_its_pause_ends_a_stage_says_that_it_is_busy_and_when_it_will_be_free():
    with one_thread_and_no_way_out_by_time_limit():
        executor = CpuExecutor((FakeLayer("same", lambda values: values),), {})
        ring = open_ring(
            [executor], Windows.of_plan(Plan((1,))), kind=lambda *_: "shm", slots=8, slot_nbytes=SLOT_NBYTES
        )
        (loop,) = ring.loops
        pacer = loop._pacer = NotingPacer(loop._words)
        thread = threading.Thread(target=loop.run)
        thread.start()
        for number in range(4):
            ring.send(Header(Kind.REQUEST, number), (torch.zeros(1, 3, 8, 8),))
            received(ring.inbox)
        ring.close(graceful=False)
        ring.inbox.close()
        thread.join(PROMPT_S)
    assert len(pacer.said) >= 3  # the last one may not have begun its pause yet
    assert all(used_s > 0 for used_s in pacer.used_s)
    for pause_s, idle_since_s, working, free_in_s in pacer.said:
        assert (pause_s, idle_since_s, working) == (0.25, math.inf, -1.0)
        assert free_in_s == pytest.approx(0.25, abs=1e-6)


def test_any_real_number_is_a_share():
    assert check_share(np.float32(0.5)) == check_share(Fraction(1, 2)) == 0.5
