"""The timings of a request's own micro-batches, which ``asubmit`` gives to who asks for them."""

from __future__ import annotations

import asyncio

import pytest
import torch
from small_pipelines import images, small_chain

import odin

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pipe(two_cores):
    with odin.Pipeline(small_chain(), stages=two_cores, policy="static", admission="none") as pipe:
        yield pipe


def test_each_micro_batch_has_its_own(pipe):
    image = images(1)[0]
    timelines: list = []
    asyncio.run(pipe.asubmit(torch.cat([image] * 3), timelines=timelines))
    assert len(timelines) == 3
    assert len({line.request for line in timelines}) == 3
    for line in timelines:
        assert [timing.stage for timing in line.stages] == [0, 1]
        assert sum(timing.last - timing.first for timing in line.stages) == len(pipe.chain.layers)
        assert line in pipe.timelines()


def test_those_of_other_requests_stay_theirs(pipe):
    image = images(1)[0]
    lists: list[list] = [[] for _ in range(8)]

    async def ask():
        await asyncio.gather(*(pipe.asubmit(image, timelines=one) for one in lists))

    asyncio.run(ask())
    assert [len(one) for one in lists] == [1] * 8
    assert len({one[0].request for one in lists}) == 8


def test_a_request_that_is_not_answered_has_none(pipe):
    timelines: list = []
    with pytest.raises(odin.DeadlineExceededError):
        asyncio.run(pipe.asubmit(images(1)[0], timeout_s=0.0, timelines=timelines))
    assert timelines == []
