"""Stage loops that take new requests by themselves: whoever is free, whole requests, and a hand-over where it helps."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from channels import one_thread_and_no_way_out_by_time_limit, post
from layers import images, small_chain
from patience import PROMPT_S
from test_loop_relay import LAYERS, Gates, Running, covers, running

from odin.monitor.timing import unpack_timings
from odin.partitioner.relay import Windows
from odin.stages.channel.readiness import FREE_S, IDLE_SINCE_S, waiting
from odin.stages.channel.shared_queue import SharedQueue
from odin.stages.channel.wire import Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.loop import DEADLINE

NO_HAND_OVER_S = 1e6


@pytest.fixture(autouse=True)
def _one_thread_and_no_way_out_by_time_limit() -> Iterator[None]:
    with one_thread_and_no_way_out_by_time_limit():
        yield


def queue_of(run: Running) -> SharedQueue:
    assert run.ring.queue is not None
    return run.ring.queue


def send(run: Running, number: int, *values: torch.Tensor, **fields: Any) -> None:
    post(run.ring.pool, queue_of(run), Header(Kind.REQUEST, number, **fields), values or (torch.zeros(1),))


def test_a_request_is_run_whole_by_whoever_takes_it():
    with running(Gates(), shared=True, cost_s=NO_HAND_OVER_S) as run:
        for number in range(20):
            send(run, number)
            (layers,) = run.ranges().values()
            assert layers == (0, LAYERS)
        assert queue_of(run).words.waiting == 0


def test_stages_that_hang_take_one_each_at_most_and_hold_nobody_up():
    gates = Gates((0, 0), (2, 0))
    with running(gates, shared=True, cost_s=NO_HAND_OVER_S) as run, ThreadPoolExecutor(1) as pool:
        try:
            for number in range(20):
                send(run, number)
            answers = pool.submit(lambda: [run.result()[0] for _ in range(18)])
            for header in answers.result(PROMPT_S):
                assert [timing.stage for timing in unpack_timings(header.timings)] == [1]
        finally:
            for gate in gates.go_on.values():
                gate.set()
        assert [run.result()[1][0].item() for _ in range(2)] == [LAYERS] * 2


def test_a_stage_that_has_become_slow_hands_over_to_one_that_is_idle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("odin.stages.hand_over._BELIEVED_S", PROMPT_S)  # however long the second one takes to wake up
    gates = Gates((0, 0), (1, 0))
    with running(gates.executors(2), "@0-6|@6", shared=True, baseline_s=[[3e-3] * LAYERS, [1e-3] * LAYERS]) as run:
        while queue_of(run).words.told()[1].idle_since_s == float("inf"):
            time.sleep(1e-3)
        send(run, 0)  # is left to the second stage, which is much faster
        for place in ((1, 0), (0, 0)):
            if place == (0, 0):
                words = run.ring.readiness[1].words
                words[FREE_S] = float("inf")  # not soon
                send(run, 1)
            assert gates.reached[place].wait(PROMPT_S)
        gates.go_on[1, 0].set()
        assert run.ranges() == {1: (0, LAYERS)}
        while words[IDLE_SINCE_S] == float("inf"):
            time.sleep(1e-3)
        gates.go_on[0, 0].set()
        assert run.ranges() == {0: (0, 1), 1: (1, LAYERS)}


def test_values_are_the_chains_bit_for_bit_while_plans_windows_and_ways_change():
    chain, rng = small_chain(), random.Random(1)
    layers, inputs = len(chain.layers), images(150)
    executors = [CpuExecutor(chain.program.layers, chain.state) for _ in range(3)]
    whole = Windows.whole(stage_count=3, layer_count=layers)
    with running(executors, str(whole), shared=True) as run, ThreadPoolExecutor(1) as pool:
        epochs, lock, pending = [0], threading.Lock(), dict[int, int]()
        ways = {"queue": 0, "first stage": 0}

        def send_all() -> None:
            windows = whole
            for number, image in enumerate(inputs):
                if rng.random() < 0.2:
                    cuts = sorted(rng.choices(range(layers + 1), k=2))
                    fixed = Windows([(cut, cut) for cut in (*cuts, layers)])
                    windows = rng.choice([whole, Windows([(0, cuts[1]), (0, layers), (layers, layers)]), fixed])
                    epochs.append(epochs[-1] + 1)
                    for loop in run.ring.loops:
                        loop.prepare(epochs[-1], windows)
                with lock:
                    pending[number] = epochs[-1]
                    oldest = min(pending.values())
                if windows.all_begin:
                    ways["queue"] += 1
                    send(run, number, image, epoch=epochs[-1], oldest=oldest)
                else:
                    ways["first stage"] += 1
                    run.send(number, image, epoch=epochs[-1], oldest=oldest)

        sending = pool.submit(send_all)
        for _ in inputs:
            header, values = run.result()
            with lock:
                del pending[header.request]
            assert (header.kind, header.failure) == (Kind.REQUEST, None)
            assert torch.equal(values[0], chain.run((inputs[header.request],))[0])
            assert covers(unpack_timings(header.timings), layers)
        sending.result(PROMPT_S)
        assert min(ways.values()) > 20
        assert queue_of(run).words.waiting == 0
        for readiness in run.ring.readiness:
            assert waiting(readiness.words) == 0


def test_late_requests_are_answered_by_whoever_takes_them():
    with running(Gates(), shared=True) as run:
        send(run, 1, left_s=-1.0)
        assert run.result()[0].failure.kind == DEADLINE
        send(run, 2, left_s=600.0)
        assert run.result()[1][0].item() == LAYERS


@pytest.mark.parametrize("sent", [0, 30])
def test_a_graceful_end(sent: int):
    with running(Gates(), shared=True) as run, ThreadPoolExecutor(1) as pool:
        for number in range(sent):
            send(run, number)
        assert sorted(run.result()[0].request for _ in range(sent)) == list(range(sent))
        closing = pool.submit(run.ring.close)
        assert run.result()[0].kind is Kind.CLOSE
        run.ring.inbox.close()
        closing.result(PROMPT_S)
        for end in run.ends:
            end.result(PROMPT_S)


def test_stages_end_by_themselves_when_the_gateway_is_gone():
    with running(Gates(), shared=True) as run:
        for sender in run.ring.ways:
            sender._connection.close()  # as when its process dies
        queue_of(run)._sending.close()
        run.ring.inbox.close()
        for end in run.ends:
            end.result(PROMPT_S)
