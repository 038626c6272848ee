"""What a stage tells of itself, read at the other end of its channels."""

from __future__ import annotations

import math
import os

import pytest
import torch
from channels import numbers, pair, request

from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.readiness import BEGUN, FREE_S, IDLE_SINCE_S, SENT, SLOWDOWN, Readiness
from odin.stages.channel.wire import GATEWAY, Header, Kind


def test_a_new_page_says_idle_and_undisturbed():
    words = Readiness().words
    assert (words[SLOWDOWN], words[BEGUN], sum(words[SENT:])) == (1.0, 0.0, 0.0)
    assert 0 < words[IDLE_SINCE_S] < math.inf


def test_the_page_is_shared_until_and_after_its_descriptor_is_closed():
    mine = Readiness()
    theirs = Readiness(mine.descriptor)
    mine.close_descriptor()
    mine.close_descriptor()
    mine.words[FREE_S], theirs.words[SENT] = 2.5, 3.0
    assert (theirs.words[FREE_S], mine.words[SENT]) == (2.5, 3.0)


def test_each_sender_has_a_word_of_its_own():
    assert [Readiness.word_of(sender) for sender in (GATEWAY, 0, 1)] == [SENT, SENT + 1, SENT + 2]
    for sender in (-2, 10_000):
        with pytest.raises(ValueError, match=f"sender {sender}: a stage has room for"):
            Readiness.word_of(sender)


@pytest.mark.parametrize("credits", [True, False])
def test_requests_are_counted_and_other_messages_are_not(credits: bool):
    mine = Readiness()
    with pair("shm", sender=1, readiness=mine, credits=credits) as (sender, receiver):
        assert receiver.sender == 1
        sender.send(request(0), (numbers(0),))
        sender.send(Header(Kind.LOST, 0))
        sender.send(request(1))
        assert (mine.words[Readiness.word_of(1)], sum(mine.words[SENT:])) == (2.0, 2.0)


@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_what_was_not_sent_is_not_counted(kind: str):
    with pair(kind, sender=0, slot_nbytes=64) as (sender, receiver):
        with pytest.raises(ValueError, match="do not fit a slot"):
            sender.send(request(0), (torch.zeros(1000),))
        assert sender.readiness.words[Readiness.word_of(0)] == 0.0
        assert sender.has_place
        receiver.close()
        sender.close(graceful=False)
        with pytest.raises(ChannelClosedError):
            sender.send(request(1), (torch.zeros(1),))
        assert sender.readiness.words[Readiness.word_of(0)] == 0.0


def test_over_tcp_the_words_arrive_with_what_waits_there_from_others():
    mine = Readiness()
    with pair("tcp", sender=0, readiness=mine) as (sender, receiver):
        theirs = sender.readiness.words
        assert theirs[SLOWDOWN] == 1.0
        sender.send(request(0), (numbers(0),))
        receiver.receive().release()
        mine.words[SLOWDOWN], mine.words[IDLE_SINCE_S], mine.words[BEGUN] = 2.0, math.inf, 1.0
        mine.words[FREE_S] = 1e9
        mine.words[Readiness.word_of(3)] = 2.0  # two from another stage wait
        receiver.tell_readiness()
        receiver.close()
        sender._listening.join()  # until everything was heard
        assert (theirs[SLOWDOWN], theirs[IDLE_SINCE_S]) == (2.0, math.inf)
        assert theirs[FREE_S] == pytest.approx(1e9, abs=60.0)
        assert sender.way is not None
        assert sender.way.others == 2  # so its place is taken


def test_handshakes_leave_only_what_is_mapped():
    before = len(os.listdir("/proc/self/fd"))
    with pair("shm") as (sender, receiver):
        # Two sockets, and Python's own duplicates for slots and page at each end, the page of a listener of its own.
        assert len(os.listdir("/proc/self/fd")) <= before + 6
        del sender, receiver
