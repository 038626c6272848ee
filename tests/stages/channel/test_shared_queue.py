"""One queue from which several stages take: each request to one of them, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import numbers, open_pair, request
from patience import PROMPT_S

from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Sender
from odin.stages.channel.shared_queue import NewRequest, SharedQueue, StageWords
from odin.stages.channel.shm import SlotPool
from odin.stages.channel.wire import GATEWAY, Kind

BLOCKED_S = 0.2


@contextlib.contextmanager
def shared(stages: int = 2, slots: int = 4) -> Iterator[tuple[SharedQueue, list[Sender], list[Inbox]]]:
    """The gateway's ends, and those of the stages."""
    pool = SlotPool(slots, 1024)
    queue = SharedQueue(pool.memory, pool.free, stages=stages)
    pairs = [open_pair("shm", slots=slots, credits=False, pool=pool, queue=queue) for _ in range(stages)]
    pool.close_descriptor()
    queue.close_descriptors()
    inboxes = [Inbox([receiver]) for _, receiver in pairs]
    try:
        yield queue, [sender for sender, _ in pairs], inboxes
    finally:
        queue.close(graceful=False)
        for sender, _ in pairs:
            sender.close(graceful=False)
        for inbox in inboxes:
            inbox.close()


def test_each_request_is_taken_once_with_its_tensors_and_counted():
    count = 60
    with shared(3) as (queue, _, inboxes), ThreadPoolExecutor(3) as pool:
        free, lock = threading.Semaphore(4), threading.Lock()
        seen: list[tuple[int, int]] = []

        def take(stage: int) -> None:
            while (message := inboxes[stage].receive(stage=stage)).header.request < count:
                assert isinstance(message, NewRequest)
                assert torch.equal(message.tensors[0], numbers(message.header.request))
                seen.append((stage, message.header.request))
                message.release()  # the slot is the gateway's
                with lock:
                    queue.release(message.header.slot)
                free.release()

        taking = [pool.submit(take, stage) for stage in range(3)]
        for number in range(count):
            assert free.acquire(timeout=PROMPT_S)
            with lock:  # as the gateway has one
                queue.send(request(number), (numbers(number),))
        for number in range(3):
            with lock:
                queue.send(request(count + number))
        for done in taking:
            done.result(PROMPT_S)
        assert sorted(number for _, number in seen) == list(range(count))
        assert queue.words.waiting == 0


def test_what_waits_is_seen_by_all_and_stages_that_stand_still_take_nothing():
    with shared(3) as (queue, _, inboxes):
        for number in range(4):
            queue.send(request(number), (numbers(number),))
        assert [inbox.queue.words.waiting for inbox in inboxes] == [4, 4, 4]
        assert [inboxes[2].receive(stage=2).header.request for _ in range(3)] == [0, 1, 2]
        assert [inbox.queue.words.waiting for inbox in inboxes] == [1, 1, 1]
        assert inboxes[0].receive(stage=0).header.request == 3
        assert queue.words.waiting == 0


def test_a_stage_that_was_not_quick_enough_goes_on_waiting():
    with shared(2) as (queue, _, inboxes):
        queue.send(request(0))
        first, second = (inbox.queue for inbox in inboxes)
        assert first.take(0).header.request == 0
        assert second.take(1) is None
        assert not second.has_ended


def test_channels_come_before_the_queue():
    with shared(2) as (queue, (sender, _), (inbox, _)):
        queue.send(request(0))
        sender.send(request(1))
        assert [inbox.receive().header.request for _ in range(2)] == [1, 0]


def test_what_is_left_to_others_is_asked_for_again_and_other_channels_are_heard_meanwhile():
    with shared(2) as (queue, (sender, _), (inbox, _)):
        queue.send(request(0))
        waited_s: list[float] = []

        def leaves(for_s: float) -> bool:
            waited_s.append(for_s)
            if len(waited_s) == 2:
                sender.send(request(1))
            return len(waited_s) < 4

        assert inbox.receive(leaves=leaves).header.request == 1
        assert inbox.receive(leaves=leaves).header.request == 0
        assert waited_s[0] == 0.0 < waited_s[1]


def test_rest_is_called_once_before_a_wait_and_not_if_a_request_waits():
    with shared(2) as (queue, _, (inbox, _)), ThreadPoolExecutor(1) as pool:
        rested: list[int] = []
        queue.send(request(0))
        inbox.receive(lambda: rested.append(0))
        assert rested == []
        resting = threading.Event()
        receiving = pool.submit(inbox.receive, resting.set)
        assert resting.wait(PROMPT_S)
        queue.send(request(1))
        assert receiving.result(PROMPT_S).header.request == 1


def test_goodbyes_come_after_all_that_waits():
    with shared(2) as (queue, senders, inboxes), ThreadPoolExecutor(2) as pool:
        for number in range(3):
            queue.send(request(number), (numbers(number),))
        queue.goodbyes = senders[1:]
        closing = pool.submit(queue.close)
        assert inboxes[1]._channels.poll(1e3 * PROMPT_S)  # it is there before what waits is taken
        seen = [inboxes[1].receive().header for _ in range(2)]
        assert [header.request for header in seen] == [0, 1]
        closing.result(PROMPT_S)  # the second stage has heard it, though a request waits
        closing = pool.submit(senders[0].close)
        assert [inboxes[0].receive().header.kind for _ in range(2)] == [Kind.REQUEST, Kind.CLOSE]
        closing.result(PROMPT_S)
        assert inboxes[1].receive().header.kind is Kind.CLOSE


def test_a_gateway_that_is_gone_is_named_and_a_waiting_stage_wakes():
    with shared(2) as (queue, senders, inboxes), ThreadPoolExecutor(2) as pool:
        receiving = [pool.submit(inbox.receive) for inbox in inboxes]
        with pytest.raises(TimeoutError):
            receiving[0].result(BLOCKED_S)
        queue.close(graceful=False)
        for sender in senders:
            sender.close(graceful=False)
        for waited in receiving:
            error = waited.exception(PROMPT_S)
            assert isinstance(error, ChannelClosedError)
            assert error.peer == GATEWAY


def test_one_stage_that_ends_does_not_end_it_for_the_others_and_the_last_does():
    with shared(2) as (queue, _, (first, second)):
        first.close()
        queue.send(request(0), (numbers(0),))
        assert second.receive().header.request == 0
        second.close()
        with pytest.raises(ChannelClosedError, match="all stages are gone"):
            queue.send(request(1), (numbers(1),))


def test_a_signal_handlers_exception_says_whether_the_request_has_left(monkeypatch: pytest.MonkeyPatch):
    with shared(1) as (queue, _, (inbox,)):
        write = queue._posting._memory.write

        def interrupted(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(queue._posting._memory, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.send(request(0), (numbers(0),))
        assert (queue.sent(0), queue.words.waiting) == (None, 0)
        monkeypatch.setattr(queue._posting._memory, "write", write)
        slot = queue.send(request(1), (numbers(1),))
        assert (queue.sent(1), queue.words.waiting) == (slot, 1)
        assert inbox.receive().header.request == 1


def test_sending_does_not_wait_however_long_nobody_takes():
    with shared(1, slots=4) as (queue, _, (inbox,)):
        count = 5000  # small headers, more than a socket holds
        for number in range(count):
            queue.send(request(number))
        assert queue.words.waiting == count
        slot = queue.send(request(count), (numbers(count),))
        seen = [inbox.receive().header.request for _ in range(10)]
        queue.release(slot)  # as with each answer: what there was no room for follows
        while len(seen) <= count:
            queue._posting.push()
            seen.append(inbox.receive().header.request)
        assert seen == list(range(count + 1))
        assert queue.words.waiting == 0


def test_words_of_stages_are_their_own():
    with shared(3) as (queue, _, inboxes):
        inboxes[1].queue.words.tell(1, StageWords(2.0, 3.0, 4.0))
        busy = StageWords(math.inf, math.inf, 1.0)
        assert queue.words.told() == [busy, StageWords(2.0, 3.0, 4.0), busy]


def open_descriptors() -> Counter[str]:
    gc.collect()
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{descriptor}").split(":")[0])
    return Counter(names)


def test_nothing_stays_open():
    with shared():
        pass
    before = open_descriptors()
    for _ in range(3):
        with shared() as (queue, senders, inboxes):
            queue.send(request(0), (numbers(0),))
            inboxes[1].receive().release()
        del queue, senders, inboxes
    assert open_descriptors() == before
