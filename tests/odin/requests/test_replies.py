"""Replies: what their result is made of."""

from __future__ import annotations

import threading

import pytest
from patience import PROMPT_S

from odin.requests.replies import Callbacks, Reply


def test_a_result_is_what_is_made_of_it():
    reply: Reply[int] = Reply()
    assert reply.finish_with(lambda value: {"doubled": 2 * value})
    reply.settle(4)
    assert reply.result(0) == {"doubled": 8}


def test_what_making_it_raises_is_the_outcome():
    reply: Reply[int] = Reply()
    assert reply.finish_with(lambda value: 1 // value)
    reply.settle(0)
    assert isinstance(reply.exception(0), ZeroDivisionError)


def test_of_a_failure_nothing_is_made():
    reply: Reply[int] = Reply()
    assert reply.finish_with(lambda value: pytest.fail("there is no value"))
    reply.settle(ValueError("no"))
    assert isinstance(reply.exception(0), ValueError)


def test_of_a_cancelled_request_nothing_is_made():
    reply: Reply[int] = Reply()
    assert reply.finish_with(lambda value: pytest.fail("nobody waits for it"))
    assert reply.cancel()
    reply.settle(1)
    assert reply.cancelled()


def test_it_is_too_late_once_there_is_a_result():
    reply: Reply[int] = Reply()
    reply.settle(4)
    assert not reply.finish_with(lambda value: 2 * value)
    assert reply.result(0) == 4


def test_callbacks_see_what_was_made_of_it():
    callbacks, seen, called = Callbacks(), [], threading.Event()
    reply: Reply[int] = Reply(callbacks)
    assert reply.finish_with(str)
    reply.add_done_callback(lambda done: (seen.append((done.result(), threading.current_thread().name)), called.set()))
    reply.settle(4)
    assert called.wait(PROMPT_S)
    assert seen == [("4", "odin-callbacks")]
    callbacks.close(PROMPT_S)
