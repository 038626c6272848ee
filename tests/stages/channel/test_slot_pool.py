"""Slots of one memory for several channels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import KINDS, numbers, open_pair, pair, request
from patience import PROMPT_S

from odin.stages.channel.link import ChannelClosedError, Receiver, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import GATEWAY

BLOCKED_S = 0.2


@contextlib.contextmanager
def pooled(
    slots: int, *limits: int, receivers: Sequence[int] = (1, 2)
) -> Iterator[tuple[SlotPool, list[Sender], list[Receiver]]]:
    pool = SlotPool(slots, 1024)
    pairs = [
        open_pair("shm", slots=limit, sender=0, receiver=receiver, pool=pool)
        for limit, receiver in zip(limits, receivers, strict=False)
    ]
    try:
        yield pool, [sender for sender, _ in pairs], [receiver for _, receiver in pairs]
    finally:
        for sender, receiver in pairs:
            sender.close(graceful=False)
            receiver.close()


def test_no_channel_takes_more_than_its_limit():
    with pooled(3, 2, 2) as (_, (first, second), _):
        first.send(request(0), (numbers(0),))
        first.send(request(1), (numbers(1),))
        assert (first.has_place, second.has_place) == (False, True)
        second.send(request(2), (numbers(2),))
        assert (first.has_place, second.has_place) == (False, False)  # the third slot was the last


def test_the_last_slot_is_left_for_answers():
    # Three stages that hung had all four slots of the first one, which then could not answer what it did by itself.
    with pooled(3, 2, 2, 2, receivers=(1, 2, GATEWAY)) as (_, (first, second, answers), (_, _, gateway)):
        first.send(request(0), (numbers(0),))
        assert second.has_place
        second.send(request(1), (numbers(1),))
        assert not first.has_place
        assert not second.has_place
        for number in range(2, 6):  # as often as one likes
            answers.send(request(number), (numbers(number),))
            gateway.receive().release()
        assert not first.has_place


def test_a_slot_that_an_answer_has_comes_back_and_counts_as_the_last_one():
    with pooled(3, 2, 2, receivers=(1, GATEWAY)) as (_, (first, answers), _):
        answers.send(request(0), (numbers(0),))
        first.send(request(1), (numbers(1),))
        assert first.has_place


def test_slots_that_are_given_back_are_for_any_channel():
    with pooled(2, 2, 2) as (pool, (first, second), (receiver, other)):
        for number in range(2):
            first.send(request(number), (numbers(number),))
        assert not second.has_place
        receiver.receive().release()
        assert second.has_place
        slot = second.send(request(2), (numbers(2),))
        assert torch.equal(other.receive().tensors[0], numbers(2))
        assert torch.equal(receiver.receive().tensors[0], numbers(1))  # untouched
        assert slot == 0 or slot == 1
        assert not pool.free


def test_whoever_waits_gets_a_slot_that_another_channel_gives_back():
    with pooled(2, 2, 2) as (_, (first, second), (receiver, other)), ThreadPoolExecutor(1) as thread:
        for number in range(2):
            first.send(request(number), (numbers(number),))
        waiting = thread.submit(second.send, request(2), (numbers(2),))
        with pytest.raises(TimeoutError):
            waiting.result(BLOCKED_S)
        receiver.receive().release()
        waiting.result(PROMPT_S)
        assert other.receive().header.request == 2


def test_slots_of_a_receiver_that_died_are_for_the_others():
    with pooled(2, 2, 2) as (pool, (first, second), (receiver, other)):
        for number in range(2):
            first.send(request(number), (numbers(number),))
        assert not second.has_place
        receiver.close()
        assert second.has_place
        assert (first.usable, first.owed, len(pool.free), pool.senders) == (False, set(), 2, [second])
        second.send(request(2), (numbers(2),))
        assert other.receive().header.request == 2
        with pytest.raises(ChannelClosedError, match="the next stage is gone") as caught:
            first.send(request(3), (numbers(3),))
        assert caught.value.peer == 1


def test_a_receiver_that_dies_leaves_its_slots_to_who_waits():
    with pooled(2, 2, 2) as (_, (first, second), (receiver, other)), ThreadPoolExecutor(1) as thread:
        for number in range(2):
            first.send(request(number), (numbers(number),))
        waiting = thread.submit(second.send, request(2), (numbers(2),))
        with pytest.raises(TimeoutError):
            waiting.result(BLOCKED_S)
        receiver.close()
        waiting.result(PROMPT_S)
        assert other.receive().header.request == 2


def test_who_waits_for_a_receiver_that_dies_is_woken():
    with pooled(2, 1, 1) as (_, (first, _), (receiver, _)), ThreadPoolExecutor(1) as thread:
        first.send(request(0), (numbers(0),))
        waiting = thread.submit(first.send, request(1), (numbers(1),))
        with pytest.raises(TimeoutError):
            waiting.result(BLOCKED_S)
        receiver.close()
        error = waiting.exception(PROMPT_S)
        assert isinstance(error, ChannelClosedError)
        assert error.peer == 1


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_for_a_receiver_that_hangs_is_woken_when_it_is_abandoned(kind: str):
    with pair(kind, slots=1, receiver=7) as (sender, receiver), ThreadPoolExecutor(1) as thread:
        if kind == "tcp":
            slot = sender._take_slot()
        else:
            sender.send(request(0), (numbers(0),))
        waiting = thread.submit(sender.send, request(1), (numbers(1),))
        with pytest.raises(TimeoutError):
            waiting.result(BLOCKED_S)
        sender.abandon()
        error = waiting.exception(PROMPT_S)
        assert isinstance(error, ChannelClosedError)
        assert error.peer == 7
        assert not sender.usable
        assert not sender.has_place
        with pytest.raises(ChannelClosedError, match="not to be sent to at present"):
            sender.send(request(2), (numbers(2),))
        sender.resume()
        sender._give_back(slot) if kind == "tcp" else receiver.receive().release()
        assert sender.has_place
        sender.send(request(3), (numbers(3),))
        assert receiver.receive().header.request == 3


def test_others_are_sent_to_while_one_is_abandoned_and_it_keeps_its_slots_until_it_ends():
    with pooled(3, 2, 2) as (_, (first, second), (receiver, other)):
        for number in range(2):
            first.send(request(number), (numbers(number),))
        first.abandon()
        second.send(request(2), (numbers(2),))
        assert other.receive().header.request == 2
        assert not second.has_place
        receiver.close()
        assert second.has_place
        first.resume()
        assert not first.usable


def test_a_sender_comes_later_and_closing_one_frees_its_slots_for_who_waits():
    with pooled(1, 1) as (pool, (first,), _), ThreadPoolExecutor(1) as thread:
        first.send(request(0), (numbers(0),))
        second, receiver = open_pair("shm", slots=1, sender=0, receiver=5, pool=pool)
        waiting = thread.submit(second.send, request(2), (numbers(2),))
        with pytest.raises(TimeoutError):
            waiting.result(BLOCKED_S)
        first.close(graceful=False)  # by another thread than the one that sends
        waiting.result(PROMPT_S)
        assert receiver.receive().header.request == 2
        assert first.fileno() == -1
        with pytest.raises(ChannelClosedError, match="the channel was closed"):
            first.send(request(3), (numbers(3),))
        second.close(graceful=False)
        receiver.close()


def test_a_forced_send_leaves_the_last_slot_for_answers_as_well():
    with (
        pooled(2, 2, 2, receivers=(1, GATEWAY)) as (_, (first, answers), (receiver, gateway)),
        ThreadPoolExecutor(1) as thread,
    ):
        first.send(request(0), (numbers(0),))
        waiting = thread.submit(first.send, request(1), (numbers(1),))
        with pytest.raises(TimeoutError):
            waiting.result(BLOCKED_S)
        receiver.receive().release()
        waiting.result(PROMPT_S)
        answers.send(request(2), (numbers(2),))
        assert gateway.receive().header.request == 2


def test_what_does_not_fit_gives_its_slot_back():
    with pooled(1, 1) as (_, (sender,), _):
        for _ in range(3):
            with pytest.raises(ValueError, match="do not fit a slot"):
                sender.send(request(0), (torch.zeros(10_000),))
        assert sender.has_place


def test_memory_that_cannot_be_had_is_one_error():
    with pytest.raises(MemoryError, match="cannot reserve"):
        SlotPool(2, 2**60)
