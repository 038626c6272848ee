"""Readiness between machines: the words that arrive, and what the sender learns of the way and of what is on it."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from channels import numbers, request
from loads import wait_for
from patience import PROMPT_S

from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import Receiver, Sender
from odin.stages.channel.opening import Listener, connect
from odin.stages.channel.readiness import BEGUN, FREE_S, IDLE_SINCE_S, SLOWDOWN, WORKING, Readiness
from odin.stages.channel.way import Sent, Way
from odin.stages.channel.wire import GATEWAY, Header, Kind


@contextlib.contextmanager
def far_pair(*, sender: int = 0) -> Iterator[tuple[Sender, Receiver, Readiness]]:
    """A channel over TCP from a stage (or the gateway) to another, whose words come third."""
    readiness = Readiness()
    listener = Listener("127.0.0.1", readiness)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        sending = connect(listener.address, slots=2, slot_nbytes=1024, sender=sender)
        receiving = accepting.result()
    try:
        yield sending, receiving, readiness
    finally:
        sending.close(graceful=False)
        receiving.close()


def heard(sender: Sender, **expected: float) -> None:
    position = {"begun": BEGUN, "slowdown": SLOWDOWN}
    words = sender.readiness.words
    wait_for(
        lambda: all(words[position[name]] == value for name, value in expected.items()), what=f"{expected} is told"
    )


def test_words_cross_on_the_clock_of_the_one_who_hears():
    with far_pair() as (sender, receiver, readiness):
        words = readiness.words
        words[FREE_S], words[SLOWDOWN], words[IDLE_SINCE_S] = time.perf_counter() + 1000.0, 2.5, math.inf
        Inbox([receiver]).tell_readiness()
        heard(sender, slowdown=2.5)
        assert sender.readiness.words[FREE_S] == pytest.approx(words[FREE_S], abs=PROMPT_S)
        assert sender.readiness.words[IDLE_SINCE_S] == math.inf

        words[IDLE_SINCE_S], words[SLOWDOWN] = time.perf_counter(), 1.5
        Inbox([receiver]).tell_readiness()
        heard(sender, slowdown=1.5)
        assert sender.readiness.words[IDLE_SINCE_S] < math.inf


def test_a_request_is_under_way_until_it_is_heard_to_have_begun():
    with far_pair() as (sender, receiver, readiness):
        assert sender.way is not None
        for number in range(2):
            sender.send(request(number, cut=3 + number), (numbers(number),))
        assert [(sent.cut, sent.nbytes) for sent in sender.way.underway] == [(3, 400), (4, 400)]
        inbox = Inbox([receiver])
        for number in range(2):
            message = inbox.receive()
            readiness.words[BEGUN] += 1.0
            inbox.tell_readiness()
            wait_for(lambda left=1 - number: len(sender.way.underway) == left, what="the beginning is heard")
            message.release()
        assert sender.way.transfer_s(400) >= 0.0


def test_what_is_no_request_is_not_under_way():
    with far_pair() as (sender, receiver, _):
        sender.send(Header(Kind.RETURNED, 7))
        assert receiver.receive().header.kind is Kind.RETURNED
        assert sender.way is not None
        assert sender.way.underway == ()


def test_those_who_wait_from_other_senders_are_told():
    with far_pair() as (sender, receiver, readiness):
        readiness.words[readiness.take_word()] = 1.0  # stage 1, on the receiver's machine, has sent one
        receiver.tell_readiness()
        assert sender.way is not None
        wait_for(lambda: sender.way.others == 1, what="it is told")
        sender.send(request(0), (numbers(0),))
        receiver.receive().release()
        readiness.words[BEGUN] += 1.0  # with this sender's
        receiver.tell_readiness()
        wait_for(lambda: sender.way.underway == (), what="it is told")
        assert sender.way.others == 1
        readiness.words[BEGUN] += 1.0
        receiver.tell_readiness()
        wait_for(lambda: sender.way.others == 0, what="it is told")


def test_between_layers_only_news_is_told(monkeypatch):
    with far_pair() as (sender, receiver, readiness):
        monkeypatch.setattr("odin.stages.channel.tcp._delay_s", lambda connection: 0.5)
        words, inbox = readiness.words, Inbox([receiver])
        words[IDLE_SINCE_S], words[FREE_S], words[SLOWDOWN] = math.inf, 100.0, 2.0
        inbox.tell_readiness()
        heard(sender, slowdown=2.0)
        words[SLOWDOWN], words[FREE_S] = 3.0, 100.4  # over when it gets there
        inbox.tell_news()
        words[SLOWDOWN], words[FREE_S] = 4.0, 101.0
        inbox.tell_news()
        wait_for(lambda: sender.readiness.words[SLOWDOWN] != 2.0, what="news is told")
        assert sender.readiness.words[SLOWDOWN] == 4.0


def test_the_gateway_is_told_what_is_computed_but_nothing_between_layers():
    with far_pair(sender=GATEWAY) as (sender, receiver, readiness):
        inbox, told = Inbox([receiver]), sender.readiness.words
        assert not inbox.tells
        readiness.words[WORKING], readiness.words[IDLE_SINCE_S] = 7.0, math.inf
        inbox.tell_readiness()
        wait_for(lambda: told[WORKING] == 7.0, what="it is told")
        readiness.words[IDLE_SINCE_S] = time.perf_counter()  # a GPU may not have finished, which nobody would tell
        inbox.tell_readiness()
        wait_for(lambda: told[WORKING] == -1.0, what="it is told")
    with far_pair(sender=0) as (_, receiver, _):
        assert Inbox([receiver]).tells


def test_stages_that_do_not_look_at_this_one_are_told_nothing():
    with far_pair(sender=0) as (_, receiver, _):
        inbox = Inbox([receiver])
        for stages, told in (((1,), False), ((0,), True)):
            inbox.tell_to(stages)
            assert not inbox.has_message
            assert inbox.tells is told


# -- what a sender learns, on a clock of its own ----------------------------------------------------------------------


def far_way(delay_s: float = 0.02) -> Way:
    way = Way()
    way.delay_s = delay_s
    return way


def test_bytes_take_what_they_took():
    way = far_way()
    assert way.transfer_s(1000) == 0.0  # the first one is sent, whatever it takes
    way.note_sent(1, 1000, 10.0)
    # it came at 10.07, waited for 0.1, and that was heard at 10.19
    way.note_heard(begun=1, since_s=0.1, others=0, turn_s=1.0, now_s=10.19)
    assert way.transfer_s(1000) == pytest.approx(0.05)
    assert (way.underway, way.turn_s) == ((), 1.0)


def test_what_is_sent_behind_another_is_on_the_way_from_the_end_of_that_on():
    way = far_way()
    way.note_sent(1, 1000, 10.0)
    way.note_sent(1, 1000, 10.01)
    way.note_heard(begun=1, since_s=0.0, others=0, turn_s=1.0, now_s=10.09)
    assert way.underway == (Sent(1, 1000, 10.01),)
    way.note_heard(begun=2, since_s=0.0, others=0, turn_s=1.0, now_s=10.14)
    assert way.transfer_s(1000) == pytest.approx(0.05)


def test_an_answer_that_tells_of_two_at_once_and_one_that_tells_nothing_new():
    way = far_way()
    for number in range(3):
        way.note_sent(number, 0, 10.0 + number)
    way.note_heard(begun=2, since_s=0.0, others=1, turn_s=1.0, now_s=12.0)
    way.note_heard(begun=2, since_s=0.5, others=0, turn_s=9.0, now_s=12.5)
    assert way.underway == (Sent(2, 0, 12.0),)
    assert (way.others, way.turn_s) == (0, 1.0)


def test_the_gateway_which_never_tells_costs_no_memory():
    way = far_way()
    for number in range(1000):
        way.note_sent(number, 0, float(number))
    assert len(way.underway) < 100


def test_a_message_that_is_taken_before_it_is_counted_is_not_counted_for_ever(monkeypatch):
    """A stage saw a message where there was none, and never told that it had nothing to do."""
    with far_pair() as (sender, receiver, _):
        inbox, write = Inbox([receiver]), os.eventfd_write
        late = threading.Event()

        def write_late(descriptor: int, count: int) -> None:
            late.wait(0.2)  # the reader has all the time that it wants
            write(descriptor, count)
            late.set()

        monkeypatch.setattr(os, "eventfd_write", write_late)
        sender.send(request(0), (numbers(0),))
        inbox.receive().release()
        assert late.wait(PROMPT_S)
        assert not inbox.has_message
