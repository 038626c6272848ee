"""Deadlines and room of a pipeline that serves: what is refused, what is expected, and where it can be read."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest
import torch
from patience import PROMPT_S
from small_pipelines import images, small_chain

import odin
from odin.monitor.events import RequestDone, RequestsRefused
from odin.monitor.logreader import read_log
from odin.monitor.view.builder import ViewBuilder

pytestmark = pytest.mark.ray

HOUR_S = 3600.0


@pytest.fixture(scope="module")
def chain():
    return small_chain()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("admission") / "run.jsonl"


@pytest.fixture(scope="module")
def pipe(two_cores, chain, log):
    with odin.Pipeline(chain, stages=two_cores, log=log, max_waiting=1, batch=2) as pipe:
        yield pipe


def test_in_time_expected_and_the_same_bits(pipe, chain):
    (image,) = images(1)
    before_s = time.perf_counter()  # what is expected is predicted before ``submitted_s``, so may be earlier
    assert torch.equal(pipe(image, timeout_s=HOUR_S), chain(image))
    timeline = pipe.timelines()[-1]
    assert timeline.in_time
    assert before_s < timeline.expected_s < before_s + HOUR_S
    pipe(image)
    timeline = pipe.timelines()[-1]
    assert not timeline.in_time
    assert math.isfinite(timeline.expected_s)


def test_what_cannot_be_in_time_is_refused_by_every_way_in(pipe):
    (image,) = images(1)
    before = pipe.view()
    tight_s = 1e-5  # less than any request takes
    future = pipe.submit(image, timeout_s=tight_s)
    errors = [future.exception(PROMPT_S)]
    for way_in in (
        lambda: asyncio.run(pipe.asubmit(image, timeout_s=tight_s)),
        lambda: list(pipe.map([image], timeout_s=tight_s)),
        lambda: pipe(torch.cat([image] * 5), timeout_s=tight_s),
    ):
        with pytest.raises(odin.DeadlineExceededError) as caught:
            way_in()
        errors.append(caught.value)
    after = pipe.view()
    assert all(error.refused for error in errors)
    assert after.refused - before.refused == 1 + 1 + 1 + 3
    assert after.failed == before.failed


def test_callers_that_do_not_wait_are_told_of_the_bound(pipe):
    (image,) = images(1)
    many = torch.cat([image] * 2 * (pipe.max_in_flight + 1))
    with pytest.raises(odin.QueueFullError, match=r"max_in_flight is \d"):
        pipe.submit(many, wait=False)

    async def flood() -> list:
        return await asyncio.gather(*(pipe.asubmit(many) for _ in range(8)), return_exceptions=True)

    outcomes = asyncio.run(flood())
    assert any(isinstance(outcome, odin.QueueFullError) for outcome in outcomes)
    assert all(isinstance(outcome, odin.QueueFullError | torch.Tensor) for outcome in outcomes)
    assert pipe(image) is not None


def test_under_a_flood_what_is_accepted_is_served_and_all_is_accounted_for(pipe):
    """Whatever the machine's speed: nothing is lost, and each is in time, late or refused."""
    before, done = pipe.view(), threading.Barrier(9)
    outcomes: list[list[BaseException | None]] = [[] for _ in range(8)]

    def feed(own: list, seed: int) -> None:
        for image in images(30, seed):
            own.append(pipe.submit(image, timeout_s=0.02).exception(PROMPT_S))
        done.wait(PROMPT_S)

    for seed, own in enumerate(outcomes):
        threading.Thread(target=feed, args=(own, seed), daemon=True).start()
    done.wait(PROMPT_S)
    flat = [outcome for own in outcomes for outcome in own]
    assert len(flat) == 240
    late = [error for error in flat if error is not None]
    assert all(isinstance(error, odin.DeadlineExceededError) for error in late)
    after = pipe.view()
    assert after.refused - before.refused == sum(error.refused for error in late)


def test_the_log_tells_it_all_again(pipe, log):
    """The last test of this pipeline."""
    pipe.close()
    live = pipe.view()
    events = list(read_log(log))
    refused = sum(event.requests for event in events if isinstance(event, RequestsRefused))
    assert refused == live.refused > 0
    builder = ViewBuilder()
    for event in events:
        builder.apply(event)
    view = builder.view(events[-1].at_s)
    assert (view.in_time, view.late, view.refused) == (live.in_time, live.late, live.refused)
    assert view.in_time >= 1
    assert math.isfinite(view.off_p99_s)
    timelines = [event.timeline for event in events if isinstance(event, RequestDone)]
    assert all(math.isfinite(timeline.expected_s) for timeline in timelines)
    requests = [line for line in log.read_text().splitlines() if line.startswith('{"event":"request"')]
    assert len(requests) == len(timelines)
    assert not any("null" in line for line in requests)  # which takes far longer to read


def test_admission_none_tries_all(two_cores, chain):
    (image,) = images(1)
    with odin.Pipeline(chain, stages=two_cores[:1], admission="none") as pipe:
        errors = [pipe.submit(image, timeout_s=1e-4).exception(PROMPT_S) for _ in range(3)]
        assert not any(getattr(error, "refused", False) for error in errors)
        assert pipe.view().refused == 0
