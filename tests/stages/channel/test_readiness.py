"""What a stage tells of itself, read at the other end of its channels."""

from __future__ import annotations

import math
import mmap

import pytest
import torch
from channels import numbers, pair, post, request
from descriptors import open_descriptors

from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import (
    BEGUN,
    CHANNELS,
    FINISHING,
    FREE_S,
    IDLE_SINCE_S,
    SENT,
    SLOWDOWN,
    WORKING,
    Readiness,
    waiting,
)
from odin.stages.channel.wire import Header, Kind


def test_a_new_page_says_idle_and_undisturbed():
    words = Readiness().words
    assert (words[SLOWDOWN], words[BEGUN], sum(words[SENT:])) == (1.0, 0.0, 0.0)
    assert (words[WORKING], words[FINISHING], words[CHANNELS]) == (-1.0, -1.0, 0.0)
    assert 0 < words[IDLE_SINCE_S] < math.inf


def test_the_page_is_shared_until_and_after_its_descriptor_is_closed():
    mine = Readiness()
    theirs = Readiness(mine.descriptor)
    mine.close_descriptor()
    mine.close_descriptor()
    mine.words[FREE_S], theirs.words[SENT] = 2.5, 3.0
    assert (theirs.words[FREE_S], mine.words[SENT]) == (2.5, 3.0)


def test_each_channel_has_a_word_of_its_own_and_it_is_used_again_when_the_channel_has_ended():
    readiness = Readiness()
    assert [readiness.take_word() for _ in range(3)] == [SENT, SENT + 1, SENT + 2]
    readiness.give_back_word(SENT + 1, 5.0)
    assert (readiness.words[SENT + 1], readiness.take_word(), readiness.take_word()) == (5.0, SENT + 1, SENT + 3)
    assert readiness.words[CHANNELS] == 4.0
    while readiness.words[CHANNELS] < mmap.PAGESIZE / 8 - SENT:
        readiness.take_word()
    with pytest.raises(ValueError, match="a stage has room for"):
        readiness.take_word()


def test_requests_are_counted_and_other_messages_are_not():
    mine = Readiness()
    with pair("shm", sender=1, readiness=mine) as (sender, receiver):
        assert receiver.sender == 1
        sender.send(request(0), (numbers(0),))
        sender.send(Header(Kind.RETURNED, 0))
        sender.send(request(1))
        assert waiting(mine.words) == sum(mine.words[SENT:]) == 2.0


def test_what_is_posted_is_counted():
    mine, pool = Readiness(), SlotPool(4, 1024)
    with pair("shm", readiness=mine, credits=False, pool=pool) as (sender, _):
        for number in range(3):
            post(pool, sender, request(number), (numbers(number),))
        assert waiting(mine.words) == 3.0


@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_a_sender_that_dies_after_it_has_counted_leaves_nothing_behind(kind: str):
    # Its count is one too high: nobody would ever hand over to this stage again.
    mine = Readiness()
    with pair(kind, sender=1, readiness=mine) as (sender, receiver):
        for number in range(2):
            sender.send(request(number), (numbers(number),))
            receiver.receive().release()
            mine.words[BEGUN] += 1.0
        mine.words[SENT] += 1.0
        sender.close(graceful=False)
        receiver.close()
        assert waiting(mine.words) == 0.0
    with pair(kind, sender=1, readiness=mine) as (sender, receiver):  # the next one goes on from there
        assert waiting(mine.words) == 0.0
        sender.send(request(2), (numbers(2),))
        message = receiver.receive()
        assert (waiting(mine.words), mine.words[CHANNELS]) == (1.0, 1.0)
        mine.words[BEGUN] += 1.0
        message.release()
    assert waiting(mine.words) == 0.0


@pytest.mark.parametrize("kind", ["shm", "tcp"])
def test_what_was_not_sent_is_not_counted(kind: str):
    mine = Readiness()
    with pair(kind, sender=0, slot_nbytes=64, readiness=mine) as (sender, receiver):
        with pytest.raises(ValueError, match="do not fit a slot"):
            sender.send(request(0), (torch.zeros(1000),))
        assert waiting(mine.words) == 0.0
        assert sender.has_place
        receiver.close()
        sender.close(graceful=False)
        with pytest.raises(ChannelClosedError):
            sender.send(request(1), (torch.zeros(1),))
        assert waiting(mine.words) == 0.0


def test_over_tcp_the_words_arrive_with_what_waits_there_from_others():
    mine = Readiness()
    with pair("tcp", sender=0, readiness=mine) as (sender, receiver):
        theirs = sender.readiness.words
        assert theirs[SLOWDOWN] == 1.0
        sender.send(request(0), (numbers(0),))
        receiver.receive().release()
        mine.words[SLOWDOWN], mine.words[IDLE_SINCE_S], mine.words[BEGUN] = 2.0, math.inf, 1.0
        mine.words[FREE_S] = 1e9
        mine.words[WORKING] = 0.0
        mine.words[mine.take_word()] = 2.0  # two from another stage wait
        receiver.tell_readiness()
        receiver.close()
        sender._listening.join()  # until everything was heard
        assert (theirs[SLOWDOWN], theirs[IDLE_SINCE_S], theirs[WORKING]) == (2.0, math.inf, 0.0)
        assert theirs[FREE_S] == pytest.approx(1e9, abs=60.0)
        assert sender.way is not None
        assert sender.way.others == 2  # so its place is taken


def test_handshakes_leave_only_what_is_mapped():
    before = open_descriptors()
    with pair("shm") as (sender, receiver):
        # Two sockets, and Python's own duplicates for slots and page at each end, the page of a listener of its own,
        # the slots for receivers to come, and what wakes up a sender.
        assert open_descriptors() <= before + 8
        del sender, receiver
