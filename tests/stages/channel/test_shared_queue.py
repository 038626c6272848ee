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
from channels import numbers, open_pair, pair, post, request
from interruptions import interrupt_often
from patience import PROMPT_S

from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import BEGUN, Readiness, waiting
from odin.stages.channel.shared_queue import NewRequest, QueueEnd, SharedQueue, StageWords
from odin.stages.channel.wire import GATEWAY, Header, Kind

BLOCKED_S = 0.2


@contextlib.contextmanager
def shared(stages: int = 2, slots: int = 4) -> Iterator[tuple[SharedQueue, list[Sender], list[Inbox]]]:
    """The gateway's ends, and those of the stages."""
    pool = SlotPool(slots, 1024)
    queue = SharedQueue(stages=stages)
    QUEUES[queue] = pool
    pairs = [open_pair("shm", slots=slots, credits=False, pool=pool, queue=queue) for _ in range(stages)]
    inboxes = [Inbox([receiver]) for _, receiver in pairs]
    try:
        yield queue, [sender for sender, _ in pairs], inboxes
    finally:
        queue.close()
        for sender, _ in pairs:
            sender.close(graceful=False)
        for inbox in inboxes:
            inbox.close()
        pool.close()
        del QUEUES[queue]


QUEUES: dict[SharedQueue, SlotPool] = {}
"""With the slots of each."""


def send(queue: SharedQueue, header: Header, tensors: tuple[torch.Tensor, ...] = ()) -> int:
    """Send a request with tensors from a free slot, or one without."""
    if not tensors:
        queue.post(header)
        return 0
    return post(QUEUES[queue], queue, header, tensors)


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
                    QUEUES[queue].free.append(message.header.slot)
                free.release()

        taking = [pool.submit(take, stage) for stage in range(3)]
        for number in range(count):
            assert free.acquire(timeout=PROMPT_S)
            with lock:  # as the gateway has one
                send(queue, request(number), (numbers(number),))
        for number in range(3):
            with lock:
                send(queue, request(count + number))
        for done in taking:
            done.result(PROMPT_S)
        assert sorted(number for _, number in seen) == list(range(count))
        assert queue.words.waiting == 0


def test_what_waits_is_seen_by_all_and_stages_that_stand_still_take_nothing():
    with shared(3) as (queue, _, inboxes):
        for number in range(4):
            send(queue, request(number), (numbers(number),))
        assert [inbox.queue.words.waiting for inbox in inboxes] == [4, 4, 4]
        assert [inboxes[2].receive(stage=2).header.request for _ in range(3)] == [0, 1, 2]
        assert [inbox.queue.words.waiting for inbox in inboxes] == [1, 1, 1]
        assert inboxes[0].receive(stage=0).header.request == 3
        assert queue.words.waiting == 0


def test_a_stage_that_was_not_quick_enough_goes_on_waiting():
    with shared(2) as (queue, _, inboxes):
        send(queue, request(0))
        first, second = (inbox.queue for inbox in inboxes)
        assert first.take(0).header.request == 0
        assert second.take(1) is None
        assert not second.has_ended


def test_channels_come_before_the_queue():
    with shared(2) as (queue, (sender, _), (inbox, _)):
        send(queue, request(0))
        sender.post(request(1))
        assert [inbox.receive().header.request for _ in range(2)] == [1, 0]


def test_what_is_left_to_others_is_asked_for_again_and_other_channels_are_heard_meanwhile():
    with shared(2) as (queue, (sender, _), (inbox, _)):
        send(queue, request(0))
        waited_s: list[float] = []

        def leaves(for_s: float) -> bool:
            waited_s.append(for_s)
            if len(waited_s) == 2:
                sender.post(request(1))
            return len(waited_s) < 4

        assert inbox.receive(leaves=leaves).header.request == 1
        assert inbox.receive(leaves=leaves).header.request == 0
        assert waited_s[0] == 0.0 < waited_s[1]


def test_rest_is_called_once_before_a_wait_and_not_if_a_request_waits():
    with shared(2) as (queue, _, (inbox, _)), ThreadPoolExecutor(1) as pool:
        rested: list[int] = []
        send(queue, request(0))
        inbox.receive(lambda: rested.append(0))
        assert rested == []
        resting = threading.Event()
        receiving = pool.submit(inbox.receive, resting.set)
        assert resting.wait(PROMPT_S)
        send(queue, request(1))
        assert receiving.result(PROMPT_S).header.request == 1


def test_goodbyes_come_after_all_that_waits():
    with shared(2) as (queue, senders, inboxes), ThreadPoolExecutor(2) as pool:
        for number in range(3):
            send(queue, request(number), (numbers(number),))
        closing = pool.submit(lambda: (queue.close(), senders[1].close()))
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
        queue.close()
        for sender in senders:
            sender.close(graceful=False)
        for waited in receiving:
            error = waited.exception(PROMPT_S)
            assert isinstance(error, ChannelClosedError)
            assert error.peer == GATEWAY


def test_stages_may_all_end_and_one_that_comes_later_takes_what_waits():
    with shared(2) as (queue, _, (first, second)):
        first.close()
        send(queue, request(0), (numbers(0),))
        assert second.receive(stage=1).header.request == 0
        second.close()
        send(queue, request(1), (numbers(1),))
        sender, receiver = open_pair("shm", slots=4, credits=False, pool=QUEUES[queue], queue=queue)
        inbox = Inbox([receiver])
        assert torch.equal(inbox.receive(stage=0).tensors[0], numbers(1))
        assert queue.words.waiting == 0
        sender.close(graceful=False)
        inbox.close()
        queue.close()
        with pytest.raises(ChannelClosedError, match="the queue was closed"):
            send(queue, request(2), (numbers(2),))


def test_a_stage_that_dies_before_it_has_counted_what_it_took_leaves_no_trace():
    with shared(2) as (queue, _, (first, second)):
        for number in range(3):
            send(queue, request(number))
        assert first.queue._connection.recv(1000)  # and it dies
        assert queue.words.waiting == 3
        assert second.receive(stage=1).header.request == 1
        assert queue.words.waiting == 1


def test_a_stage_that_is_gone_or_hangs_is_left_nothing():
    with shared(2) as (queue, _, (first, _)):
        first.queue.words.tell(0, StageWords(2.0, 3.0, 4.0))
        queue.forget(0)
        assert queue.words.told() == [StageWords(math.inf, math.inf, 1.0)] * 2


@pytest.mark.parametrize("by_queue", [True, False], ids=["queue", "channel"])
def test_counts_are_right_whatever_a_signals_handler_interrupts(by_queue: bool):
    readiness = Readiness()
    with pair("shm", credits=False, readiness=readiness, pool=SlotPool(2, 64)) as (sender, receiver):
        queue = SharedQueue(stages=1)
        way, inbox = queue if by_queue else sender, Inbox([receiver])
        end = QueueEnd(sender.memory, *map(os.dup, queue.descriptors))
        seen = 0

        def take_all() -> None:
            nonlocal seen
            taken = end.take(0) if by_queue else inbox.receive() if inbox.has_message else None
            while taken is not None:
                seen += 1
                if not by_queue:
                    readiness.words[BEGUN] += 1.0
                taken = end.take(0) if by_queue else inbox.receive() if inbox.has_message else None
                way.push()

        for _ in range(20):
            interrupt_often(lambda: way.post(request(0)), times=5)
            way.push()
            take_all()
            assert (queue.words.waiting if by_queue else waiting(readiness.words)) == 0
        assert seen > 0
        end.close()
        queue.close()


def test_sending_does_not_wait_however_long_nobody_takes():
    with shared(1, slots=4) as (queue, _, (inbox,)):
        count = 5000  # small headers, more than a socket holds
        for number in range(count):
            send(queue, request(number))
        assert queue.words.waiting == count
        send(queue, request(count), (numbers(count),))
        seen = [inbox.receive().header.request for _ in range(10)]
        while len(seen) <= count:
            queue.push()  # as with each answer: what there was no room for follows
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
            send(queue, request(0), (numbers(0),))
            inboxes[1].receive().release()
        del queue, senders, inboxes
    assert open_descriptors() == before
