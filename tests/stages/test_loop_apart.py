"""Stages that take no new requests for a while, beside others that share the gateway's queue."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from channels import one_thread_and_no_way_out_by_time_limit
from patience import PROMPT_S
from test_loop_relay import LAYERS, Gates, Running, running
from test_loop_shared_queue import NO_HAND_OVER_S, queue_of, send

from odin.monitor.timing import unpack_timings
from odin.partitioner.relay import Windows
from odin.stages.channel.wire import Kind


@pytest.fixture(autouse=True)
def _one_thread_and_no_way_out_by_time_limit() -> Iterator[None]:
    with one_thread_and_no_way_out_by_time_limit():
        yield


def prepare(run: Running, epoch: int, *stages: int) -> None:
    """Have only these take new requests, as the arrangement does."""
    windows = Windows([*[(0, LAYERS)] * (len(stages) - 1), (LAYERS, LAYERS)])
    for loop in run.ring.loops:
        loop.prepare(epoch, windows, stages)


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PROMPT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(1e-3)


def stages_of(run: Running, count: int) -> set[int]:
    """Who ran the next so many requests."""
    found = set()
    for _ in range(count):
        header = run.result()[0]
        assert (header.kind, header.failure) == (Kind.REQUEST, None)
        found |= {timing.stage for timing in unpack_timings(header.timings)}
    return found


def serve(run: Running, numbers: range, **fields: int) -> set[int]:
    for number in numbers:
        send(run, number, **fields)
    return stages_of(run, len(numbers))


def test_a_stage_that_takes_no_part_takes_nothing_from_the_queue():
    with running(Gates(), shared=True, cost_s=NO_HAND_OVER_S) as run:
        prepare(run, 1, 1, 2)
        assert 0 not in serve(run, range(40), epoch=1)
        prepare(run, 2, 0, 1)
        assert 2 not in serve(run, range(40, 80), epoch=2)


def test_nothing_is_left_to_it_because_it_is_idle():
    with running(Gates(), shared=True) as run:
        words = queue_of(run).words
        prepare(run, 1, 0)
        wait_until(lambda: [stage.idle_since_s for stage in words.told()[1:]] == [math.inf, math.inf])
        prepare(run, 2, 0, 1, 2)
        wait_until(lambda: all(stage.idle_since_s < math.inf for stage in words.told()))


def test_what_waited_in_the_queue_goes_before_what_comes_by_the_channel():
    """One stage alone gets new requests by its channel; under steady load those in the queue would wait for ever."""
    gates = Gates((0, 0))
    with running(gates.executors(2), "@0-6|@6", shared=True, cost_s=NO_HAND_OVER_S) as run:
        prepare(run, 1, 0)
        send(run, 0, epoch=1)
        assert gates.reached[0, 0].wait(PROMPT_S)
        send(run, 1, epoch=0)  # in the queue, from before
        for number in range(2, 5):
            run.send(number, torch.zeros(1), epoch=1)
        gates.go_on[0, 0].set()
        assert [run.result()[0].request for _ in range(5)] == [0, 1, 2, 3, 4]


def test_one_that_takes_part_again_runs_what_waits_from_before():
    """It was not told of the epoch between; nothing goes back to the gateway."""
    gates = Gates((0, 0))
    with running(gates.executors(2), "@0-6|@6", shared=True, cost_s=NO_HAND_OVER_S) as run:
        prepare(run, 1, 0)
        send(run, 0, epoch=1)
        assert gates.reached[0, 0].wait(PROMPT_S)
        for number in range(1, 5):
            send(run, number, epoch=1)
        prepare(run, 2, 0, 1)
        assert stages_of(run, 4) == {1}
        gates.go_on[0, 0].set()
        assert stages_of(run, 1) == {0}


def test_a_graceful_end_does_not_wait_for_it():
    with running(Gates(), shared=True) as run, ThreadPoolExecutor(1) as pool:
        prepare(run, 1, 1)
        closing = pool.submit(run.ring.close)
        assert run.result()[0].kind is Kind.CLOSE
        run.ring.inbox.close()
        closing.result(PROMPT_S)
        for end in run.ends:
            end.result(PROMPT_S)
