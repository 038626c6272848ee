"""The hook that metrics, traces and the access log share."""

from __future__ import annotations

import asyncio
import logging
import threading

import numpy as np
import pytest
from fake_serving import fake_dataplane
from synthetic_run import run_started

from odin.server.answered import Answered, BackgroundObserver
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import Caller, InferRequest, Tensor

REQUEST = InferRequest("m", "", "7", {}, (Tensor("x", DATATYPES["FP32"], np.zeros((2, 3), "f4")),))


@pytest.fixture
def dataplane():
    return fake_dataplane({"m": [run_started()]})


@pytest.fixture
def told(dataplane):
    found: list[Answered] = []
    dataplane.observers.add(found.append)
    return found


def test_an_answered_request_is_told_with_its_stages_times(dataplane, told):
    caller = Caller("grpc", "10.0.0.1:55", 24)
    response = asyncio.run(dataplane.infer(REQUEST._replace(caller=caller, traceparent="00-1-2-01")))
    (answered,) = told
    assert (answered.outcome, answered.failure, answered.version) == ("answered", None, "1")
    assert answered.request == REQUEST._replace(caller=caller, traceparent="00-1-2-01", inputs=())  # no tensors kept
    assert answered.response_nbytes == response.outputs[0].array.nbytes == 80
    assert [timing.wall_s for timing in answered.timelines[0].stages] == [0.1, 0.05]
    assert answered.devices == ("cpu:0", "cpu:1")
    assert answered.waiting_s == pytest.approx(0.05)  # the fake sends 0.05 s after the request was received
    assert answered.latency_s >= 0


def test_failures_are_told_with_their_kind(dataplane, told):
    model = dataplane.repository.served("m")
    model.fails = RequestError(FailureKind.REFUSED, "too late")
    with pytest.raises(RequestError):
        asyncio.run(dataplane.infer(REQUEST))
    with pytest.raises(RequestError):
        asyncio.run(dataplane.infer(REQUEST._replace(model="none")))
    model.fails = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(dataplane.infer(REQUEST))
    assert [(one.outcome, one.message[:12]) for one in told] == [
        ("refused", "too late"), ("not_found", "there is no "), ("internal", "ZeroDivision"),
    ]  # fmt: skip
    assert dataplane.under_way == 0


def test_a_cancelled_request_is_gone(dataplane, told):
    async def cancel():
        task = asyncio.ensure_future(dataplane.infer(REQUEST))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert [one.outcome for one in told] == ["gone"]


def test_what_is_refused_at_the_door_is_told_too(dataplane, told):
    dataplane.draining = True
    with pytest.raises(RequestError):
        asyncio.run(dataplane.infer(REQUEST))
    with pytest.raises(RequestError):
        asyncio.run(dataplane.infer_image("m", "", b"", count=5, id="i", caller=Caller("http")))
    dataplane.observers.failed(REQUEST, RequestError(FailureKind.TOO_LARGE, "65 MiB"))
    assert [(one.outcome, one.request.id) for one in told] == [
        ("not_ready", "7"),
        ("not_ready", "i"),
        ("too_large", "7"),
    ]


def test_an_observer_that_raises_costs_the_request_nothing(dataplane, told, caplog):
    def broken(answered):
        raise ValueError("broken")

    dataplane.observers.add(broken)
    late: list[Answered] = []
    dataplane.observers.add(late.append)
    assert asyncio.run(dataplane.infer(REQUEST)).id == "7"
    assert len(told) == len(late) == 1
    assert "broken" in caplog.text


def test_an_observer_in_the_background_never_holds_up_requests(dataplane, caplog):
    goes_on, seen = threading.Event(), []

    def slow(answered):
        goes_on.wait(60)
        seen.append(answered.request.id)

    background = BackgroundObserver(slow, name="slow", capacity=8)
    dataplane.observers.add(background)

    async def ask():
        for number in range(50):
            await dataplane.infer(REQUEST._replace(id=str(number)))

    with caplog.at_level(logging.WARNING):
        asyncio.run(ask())  # returns, although the observer waits
        goes_on.set()
        assert background.settle()
    background.close()
    assert len(seen) + background.left_out == 50
    assert 8 <= len(seen) <= 9  # one may have been taken before the others came
    assert seen[-1] == "49"  # the oldest are left out
    assert "slow is too slow" in caplog.text


def test_what_a_background_observer_raises_is_counted(dataplane, caplog):
    def broken(answered):
        raise OSError("disk full")

    background = BackgroundObserver(broken, name="log")
    dataplane.observers.add(background)
    for _ in range(3):
        asyncio.run(dataplane.infer(REQUEST))
    assert background.settle()
    background.close()
    assert background.failures == 3
    assert caplog.text.count("disk full") == 1  # said once
