"""The shared-memory channel: no copy at the receiver, exactly so many slots, garbage refused."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import numbers, open_pair, pair, request
from loads import wait_for
from patience import PROMPT_S

from odin.stages.channel.link import ChannelClosedError, Hello
from odin.stages.channel.readiness import Readiness
from odin.stages.channel.shm import ShmReceiver, ShmSender

BLOCKED_S = 0.2


def test_the_receiver_reads_the_senders_memory():
    with pair("shm") as (sender, receiver):
        slot = sender.send(request(0), (numbers(0),))
        message = receiver.receive()
        (view,) = message.tensors
        sender.memory.read(slot, message.header.tensors)[0].fill_(5.0)
        assert view.tolist() == [5.0] * 100


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_so_many_requests_as_slots_are_under_way_and_then_the_sender_waits(slots: int):
    sent: list[int] = []
    one_more = threading.Event()
    with pair("shm", slots=slots) as (sender, receiver), ThreadPoolExecutor(1) as pool:

        def send_one_too_many() -> None:
            for number in range(slots):
                sent.append(sender.send(request(number), (numbers(number),)))
            sent.append(sender.send(request(slots), (numbers(slots),)))
            one_more.set()

        sending = pool.submit(send_one_too_many)
        messages = [receiver.receive() for _ in range(slots)]
        wait_for(lambda: len(sent) >= slots, what="the other thread notes what it has sent")
        assert not one_more.wait(BLOCKED_S)
        assert sent == list(range(slots))
        messages[-1].release()
        sending.result(PROMPT_S)
        assert sent[-1] == slots - 1  # the slot that was given back
        assert torch.equal(receiver.receive().tensors[0], numbers(slots))
        for number, message in enumerate(messages[:-1]):
            assert torch.equal(message.tensors[0], numbers(number))


def test_many_slots_given_back_at_once_do_not_block_the_receiver():
    slots = 1000
    with pair("shm", slots=slots, slot_nbytes=64) as (sender, receiver), ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [sender.send(request(n), (numbers(n, 1),)) for n in range(slots)])
        messages = [receiver.receive() for _ in range(slots)]
        sending.result(PROMPT_S)
        giving_back = pool.submit(lambda: [message.release() for message in messages])
        giving_back.result(PROMPT_S)
        # Credits that did not fit into the socket come with later ones: every slot returns.
        again: set[int] = set()
        while len(again) < slots:
            again.add(sender.send(request(0), (numbers(0, 1),)))
            receiver.receive().release()


@pytest.mark.parametrize("garbage", [b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(300)], ids=["byte", "http", "zeros"])
def test_a_sender_that_speaks_another_language_counts_as_gone(garbage: bytes):
    with pair("shm") as (sender, receiver):
        sender._connection.send(garbage)
        with pytest.raises(ChannelClosedError, match="speaks another language"):
            receiver.receive()


def test_a_receiver_that_gave_up_is_told_plainly():
    with pair("shm", slots=1) as (sender, receiver):
        sender.send(request(0), (numbers(0),))
        receiver.close()
        with pytest.raises(ChannelClosedError) as caught:
            sender.send(request(1), (numbers(1),))
        assert str(caught.value).count("the next stage is gone") == 1


def test_a_goodbye_waits_until_it_was_heard():
    sender, receiver = open_pair("shm")
    said = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(sender.close).add_done_callback(lambda _: said.set())
        assert not said.wait(BLOCKED_S)
        receiver.close()
        assert said.wait(PROMPT_S)


def test_the_handshake_refuses_another_token():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there, ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(ShmReceiver, there, b"r" * 16, Readiness())
        accepting.add_done_callback(lambda _: there.close())
        with pytest.raises(ChannelClosedError, match="its token is another"):
            ShmSender(here, Hello(b"w" * 16, 1, 64, True))
        with pytest.raises(ChannelClosedError, match="a stranger knocked: wrong token"):
            accepting.result(PROMPT_S)
