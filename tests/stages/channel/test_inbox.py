"""Several channels received from as one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import KINDS, numbers, open_pair, request
from descriptors import open_descriptors
from loads import wait_for
from patience import PROMPT_S

from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Sender
from odin.stages.channel.wire import GATEWAY, Kind

BLOCKED_S = 0.2
SENDERS = (("shm", "shm", "shm"), ("tcp", "tcp"), ("shm", "tcp", "shm", "tcp"))
many = pytest.mark.parametrize("kinds", SENDERS, ids="+".join)


@contextlib.contextmanager
def inbox_of(kinds: Sequence[str], **options: int) -> Iterator[tuple[list[Sender], Inbox]]:
    pairs = [open_pair(kind, sender=index, **options) for index, kind in enumerate(kinds)]
    senders, inbox = [sender for sender, _ in pairs], Inbox([receiver for _, receiver in pairs])
    try:
        yield senders, inbox
    finally:
        inbox.close()
        for sender in senders:
            sender.close(graceful=False)


@many
def test_each_senders_messages_come_in_their_order_and_none_is_lost(kinds: Sequence[str]):
    count = 40
    with inbox_of(kinds) as (senders, inbox), ThreadPoolExecutor(len(kinds)) as pool:

        def send_all(index: int) -> None:
            for number in range(count):
                senders[index].send(request(1000 * index + number), (numbers(number),))

        sending = [pool.submit(send_all, index) for index in range(len(kinds))]
        seen: dict[int, list[int]] = {index: [] for index in range(len(kinds))}
        for _ in range(count * len(kinds)):
            message = inbox.receive()
            index, number = divmod(message.header.request, 1000)
            assert torch.equal(message.tensors[0], numbers(number))
            message.release()
            seen[index].append(number)
        assert list(seen.values()) == [list(range(count))] * len(kinds)
        assert not inbox.has_message
        for sent in sending:
            sent.result(PROMPT_S)


def test_senders_take_turns():
    with inbox_of(("shm", "shm"), slots=4) as (senders, inbox):
        for number in range(4):
            for index, sender in enumerate(senders):
                sender.send(request(10 * index + number))
        order = [inbox.receive().header.request // 10 for _ in range(8)]
        assert order in ([0, 1] * 4, [1, 0] * 4)


@many
def test_at_the_gateway_a_goodbye_comes_once_all_have_said_it_and_each_is_answered_at_once(kinds: Sequence[str]):
    with inbox_of(kinds) as (senders, inbox), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(inbox.receive)
        for sender in senders[:-1]:
            sender.close()  # waits until it was heard
        assert not receiving.done()
        senders[-1].send(request(7))
        assert receiving.result(PROMPT_S).header.request == 7
        with ThreadPoolExecutor(1) as closing:
            closed = closing.submit(senders[-1].close)
            assert inbox.receive().header.kind is Kind.CLOSE
            inbox.close()
            closed.result(PROMPT_S)


@many
@pytest.mark.parametrize("lost", [0, 1])
def test_a_loss_names_who_is_gone(kinds: Sequence[str], lost: int):
    with inbox_of(kinds) as (senders, inbox):
        senders[1 - lost].send(request(3))
        assert inbox.receive().header.request == 3
        senders[lost].close(graceful=False)
        with pytest.raises(ChannelClosedError) as caught:
            inbox.receive()
        assert caught.value.peer == lost
        senders[1 - lost].send(request(4))  # nobody else is
        assert inbox.receive().header.request == 4


@many
def test_each_loss_is_told_once_and_who_is_left_says_goodbye(kinds: Sequence[str]):
    with inbox_of(kinds) as (senders, inbox), ThreadPoolExecutor(1) as pool:
        for sender in senders[:-1]:
            sender.close(graceful=False)
        lost = set()
        for _ in senders[:-1]:
            with pytest.raises(ChannelClosedError) as caught:
                inbox.receive()
            lost.add(caught.value.peer)
        assert lost == set(range(len(senders) - 1))
        closing = pool.submit(senders[-1].close)
        assert inbox.receive().header.kind is Kind.CLOSE
        closing.result(PROMPT_S)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_of_them_lost_the_gateway_waits_for_another_one(kind: str):
    with inbox_of((kind,)) as ((sender,), inbox), ThreadPoolExecutor(1) as pool:
        sender.close(graceful=False)
        with pytest.raises(ChannelClosedError):
            inbox.receive()
        receiving = pool.submit(inbox.receive)
        with pytest.raises(TimeoutError):
            receiving.result(BLOCKED_S)
        again, receiver = open_pair(kind, sender=0)
        inbox.add(receiver)
        again.send(request(5))
        assert receiving.result(PROMPT_S).header.request == 5
        again.close(graceful=False)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_stage_only_the_gateways_goodbye_counts(kind: str):
    with contextlib.ExitStack() as stack:
        (gateway, first), (stage, second) = (open_pair(kind, sender=sender) for sender in (GATEWAY, 0))
        inbox = Inbox([first, second])
        for close in (inbox.close, gateway.close, stage.close):
            stack.callback(close)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        receiving = pool.submit(inbox.receive)
        stage.close()  # is heard, and nothing more
        with pytest.raises(TimeoutError):
            receiving.result(BLOCKED_S)
        closing = pool.submit(gateway.close)
        assert receiving.result(PROMPT_S).header.kind is Kind.CLOSE
        closing.result(PROMPT_S)


def fails(sender: Sender) -> bool:
    try:
        sender.send(request(2))
    except ChannelClosedError:
        return True
    return False


@many
def test_channels_come_while_a_thread_waits(kinds: Sequence[str]):
    with inbox_of(kinds) as (_, inbox), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(inbox.receive)
        with pytest.raises(TimeoutError):
            receiving.result(BLOCKED_S)
        sender, receiver = open_pair("shm", sender=9)
        inbox.add(receiver)
        sender.send(request(9), (numbers(9),))
        assert receiving.result(PROMPT_S).header.request == 9
        sender.close(graceful=False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_dropped_is_forgotten_with_all_that_it_had_sent_and_is_no_loss(kind: str):
    with inbox_of((kind, kind)) as (senders, inbox):
        for number in range(2):
            senders[0].send(request(number), (numbers(number),))
        inbox.drop(0)
        senders[1].send(request(7))
        assert inbox.receive().header.request == 7
        wait_for(lambda: fails(senders[0]), what="it is told")


def test_what_is_added_to_a_closed_inbox_is_closed():
    with inbox_of(("shm",)) as (_, inbox):
        inbox.close()
        sender, receiver = open_pair("shm", sender=1)
        inbox.add(receiver)
        assert receiver.fileno() == -1
        sender.close(graceful=False)


@pytest.mark.parametrize("kinds", [*SENDERS, ("shm",), ("tcp",)], ids="+".join)
def test_closing_wakes_a_waiting_thread(kinds: Sequence[str]):
    with inbox_of(kinds) as (_, inbox), ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(inbox.receive)
        with pytest.raises(TimeoutError):
            receiving.result(BLOCKED_S)
        inbox.close()
        assert isinstance(receiving.exception(PROMPT_S), ChannelClosedError)
        inbox.close()


@many
def test_a_closed_inbox_does_not_wait_on_descriptors_that_are_other_files_now(kinds: Sequence[str]):
    # A stage that was stopped while it computed polled closed numbers; a pipe that was opened meanwhile had them.
    with inbox_of(kinds) as (_, inbox), ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        inbox.close()
        for _ in range(8):
            for descriptor in os.pipe():
                stack.callback(os.close, descriptor)
        assert isinstance(pool.submit(inbox.receive).exception(PROMPT_S), ChannelClosedError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_was_received_is_no_message_any_more(kind: str):
    # The thread that reads a TCP connection counted a message up after it had been taken, and it stayed counted.
    with inbox_of((kind,)) as ((sender,), inbox), ThreadPoolExecutor(1) as pool:
        for number in range(200):
            receiving = pool.submit(inbox.receive)
            sender.send(request(number))
            receiving.result(PROMPT_S)
            assert not inbox.has_message


@many
def test_nothing_stays_open(kinds: Sequence[str]):
    with inbox_of(kinds):  # what is opened once for all
        pass
    before = open_descriptors()
    for _ in range(3):
        with inbox_of(kinds) as (senders, inbox):
            senders[0].send(request(0), (numbers(0),))
            inbox.receive().release()
        del senders, inbox
    assert open_descriptors() == before
