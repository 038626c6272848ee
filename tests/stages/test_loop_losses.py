"""Stage loops that lose one another: what they had is known, what cannot be handed on goes back, others come."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from channels import one_thread_and_no_way_out_by_time_limit, open_pair, post
from layers import FakeLayer, OverlapExecutor
from loads import wait_for
from patience import PROMPT_S
from test_loop_relay import LAYERS, WHOLE, Gates, Running, running

from odin.monitor.timing import unpack_timings
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.readiness import BEGUN, FINISHING, IDLE_SINCE_S, WORKING, Readiness, waiting
from odin.stages.channel.tcp import TcpSender
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.hand_over import HandOver
from odin.stages.loop import DEADLINE, StageLoop

PLAN = "@2|@4|@6"
FAR = pytest.mark.parametrize("kind", ["shm", "tcp"])


@pytest.fixture(autouse=True)
def _one_thread_and_no_way_out_by_time_limit() -> Iterator[None]:
    with one_thread_and_no_way_out_by_time_limit():
        yield


def between_stages(kind: str) -> Callable[[int, int], str]:
    """Channels between stages are of a kind, those from and to the gateway are within the machine."""
    return lambda sender, receiver: "shm" if GATEWAY in (sender, receiver) else kind


def losing(run: Running) -> Iterator[Header]:
    """Headers that the gateway gets, and whom it loses; those as headers of a kind of their own.

    What it is told of broken connections is left out: it sees itself who is gone.
    """
    return (header for header in heard(run) if header.kind is not Kind.UNREACHED)


def heard(run: Running) -> Iterator[Header]:
    """As :func:`losing`, with nothing left out."""
    while True:
        try:
            message = run.ring.inbox.receive()
        except ChannelClosedError as error:
            if error.peer is None:
                raise
            yield Header(Kind.CLOSE, error.peer)
            continue
        message.release()
        yield message.header


def results(run: Running, count: int) -> list[Header]:
    """So many headers, sorted by request, with those whom it loses between."""
    headers = losing(run)
    return sorted((next(headers) for _ in range(count)), key=lambda header: (header.kind, header.request))


def holders(run: Running, slot: int, number: int, attempt: int = 0) -> tuple[int, ...]:
    return run.ring.pool.memory.holders(slot, number, attempt)


# -- what is known of those that die ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_who_has_a_request_is_known_from_its_beginning_to_its_end(shared: bool):
    gates = Gates((0, 1), (1, 2), (2, 4))
    with running(gates, PLAN, shared=shared) as run:
        way = run.ring.queue if run.ring.queue is not None else run.ring.ways[0]
        slot = post(run.ring.pool, way, Header(Kind.REQUEST, 70), (torch.zeros(1),))
        first = holders(run, slot, 70)
        assert first in ((), (0,), (1,), (2,))
        if not shared:
            for stage, place in enumerate(gates.reached):
                assert gates.reached[place].wait(PROMPT_S)
                words = [one.words[WORKING] for one in run.ring.readiness]
                assert holders(run, slot, 70) == (stage,)
                assert words == [70.0 if one == stage else -1.0 for one in range(3)]
                gates.go_on[place].set()
        else:
            for gate in gates.go_on.values():
                gate.set()
        assert run.result()[0].request == 70
        wait_for(lambda: all(one.words[WORKING] == -1.0 for one in run.ring.readiness), what="they are done")
        assert holders(run, slot, 70) != ()
        assert holders(run, slot, 70, attempt=1) == ()  # it would be another one
        assert holders(run, slot, 71) == ()


def test_a_request_that_waits_to_be_handed_over_is_held_by_both():
    gates = Gates((1, 2))
    with running(gates, PLAN, slots=8) as run:
        slots = [run.send(number) for number in range(4)]
        assert gates.reached[1, 2].wait(PROMPT_S)
        # One is in stage 1, another waits there; stage 0 waits for a slot with the third.
        wait_for(lambda: holders(run, slots[2], 2) == (0, 1), what="the third is on its way")
        assert holders(run, slots[0], 0) == (1,)
        assert holders(run, slots[1], 1) == (0, 1)
        gates.go_on[1, 2].set()
        assert [run.result()[0].request for _ in range(4)] == [0, 1, 2, 3]


def test_a_late_word_of_a_stage_that_was_stopped_counts_for_nobody_else():
    memory = SlotPool(1, 64).memory
    memory.set_holder(0, 5, 1, 2)
    memory.set_holder(0, 5, 0, 1, 2)  # of the attempt before
    assert memory.holders(0, 5, 1) == ()
    assert memory.holders(0, 5, 0) == (1, 2)
    memory.set_holder(0, 6, 0, 4000, 0)
    assert memory.holders(0, 6, 0) == (4000, 0)


def test_on_a_gpu_the_one_launched_last_and_the_one_that_finishes_are_told_apart():
    finishing, go_on, launched = threading.Event(), threading.Event(), threading.Event()

    class Overlap(CpuExecutor):
        overlaps = True
        looks_between_layers = False

        def launch(self, *arguments: Any, **options: Any) -> Any:
            if finishing.is_set():
                launched.set()
                assert go_on.wait(PROMPT_S)
            return super().launch(*arguments, **options)

        def finish(self, ticket: Any) -> Any:
            finishing.set()
            assert go_on.wait(PROMPT_S)
            return ticket

    with running([Overlap([FakeLayer("a", lambda x: x + 1)], {})], "@1") as run:
        words = run.ring.readiness[0].words
        try:
            run.send(3)
            assert finishing.wait(PROMPT_S)
            assert (words[WORKING], words[FINISHING]) == (-1.0, 3.0)
            run.send(4)
            assert launched.wait(PROMPT_S)
            assert (words[WORKING], words[FINISHING]) == (4.0, 3.0)
        finally:
            go_on.set()
        assert [run.result()[0].request for _ in range(2)] == [3, 4]
        wait_for(lambda: (words[WORKING], words[FINISHING]) == (-1.0, -1.0), what="it is done")


@pytest.mark.parametrize("make", [CpuExecutor, OverlapExecutor])
def test_after_a_layer_has_raised_nothing_is_being_computed(make: type[CpuExecutor]):
    def refuse(values: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("no")

    with running([make([FakeLayer("a", refuse)], {})], "@1") as run:
        run.send(3)
        assert run.result()[0].kind is Kind.ERROR
        words = run.ring.readiness[0].words
        assert (words[WORKING], words[FINISHING]) == (-1.0, -1.0)


# -- a later stage dies or hangs --------------------------------------------------------------------------------------


@FAR
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_under_a_plan_what_a_lost_stage_does_not_take_goes_back_and_no_other_stage_ends(lost: int, kind: str):
    with running(Gates(), PLAN, kind=between_stages(kind)) as run:
        run.send(0)
        assert run.result()[0].request == 0
        run.ring.loops[lost].stop()
        run.ends[lost].result(PROMPT_S)
        assert next(losing(run)) == Header(Kind.CLOSE, lost)
        for number in range(1, 4):
            if lost:  # else nobody is there to take it
                run.send(number)
                assert next(losing(run))[:2] == (Kind.RETURNED, number)
        # The others go on by themselves, under windows of their own.
        live = [stage for stage in range(3) if stage != lost]
        for stage in live:
            run.ring.loops[stage].prepare(1, Windows.parse("@3|@6"), live)
        run.ring.send(Header(Kind.REQUEST, 9, epoch=1, attempt=1), (torch.zeros(1),), stage=live[0])
        header, values = run.result()
        assert (header.kind, header.request, header.attempt, values[0].item()) == (Kind.REQUEST, 9, 1, LAYERS)
        assert [timing[:3] for timing in unpack_timings(header.timings)] == [(live[0], 0, 3), (live[1], 3, 6)]


def test_with_a_queue_a_loss_needs_no_other_epoch():
    with running(Gates(), shared=True) as run:
        run.ring.loops[1].stop()
        assert next(losing(run)) == Header(Kind.CLOSE, 1)
        assert run.ring.queue is not None
        for number in range(20):
            post(run.ring.pool, run.ring.queue, Header(Kind.REQUEST, number), (torch.zeros(1),))
            header = next(losing(run))
            assert header[:2] == (Kind.REQUEST, number)
            assert 1 not in {timing.stage for timing in unpack_timings(header.timings)}


def test_relayed_requests_pass_by_a_stage_that_is_gone():
    with running(Gates(), WHOLE) as run:
        run.ring.loops[1].stop()
        assert next(losing(run)) == Header(Kind.CLOSE, 1)
        for number in range(5):
            run.send(number)
            header = next(losing(run))
            assert header[:2] == (Kind.REQUEST, number)
            assert 1 not in {timing.stage for timing in unpack_timings(header.timings)}


def test_a_stage_that_dies_with_requests_of_others_in_it_costs_those_only():
    """Stage 0 waits for a slot of a stage that hangs; with that one's death all slots are its own again."""
    gates = Gates((1, 2))
    with running(gates, PLAN, slots=12) as run:
        slots = [run.send(number) for number in range(6)]
        assert gates.reached[1, 2].wait(PROMPT_S)
        wait_for(lambda: holders(run, slots[2], 2) == (0, 1), what="stage 0 stands still")
        run.ring.loops[1].stop()
        headers = results(run, 5)
        assert [header.request for header in headers if header.kind is Kind.RETURNED] == [2, 3, 4, 5]
        assert [header.request for header in headers if header.kind is Kind.CLOSE] == [1]
        # The gateway knows that two were with it.
        assert [holders(run, slot, number) for number, slot in enumerate(slots[:2])] == [(1,), (0, 1)]
        gates.go_on[1, 2].set()


def test_a_blocked_stage_goes_on_when_the_one_that_it_waits_for_is_not_live():
    gates = Gates((1, 2))
    with running(gates, PLAN, slots=40) as run:
        slots = [run.send(number) for number in range(6)]
        assert gates.reached[1, 2].wait(PROMPT_S)
        wait_for(lambda: holders(run, slots[2], 2) == (0, 1), what="stage 0 stands still")
        for stage in (0, 2):
            run.ring.loops[stage].prepare(1, Windows.parse("@3|@6"), (0, 2))
        last = run.ring.send(Header(Kind.REQUEST, 99, epoch=1), (torch.zeros(1),))
        headers = results(run, 5)
        assert [header[:2] for header in headers] == [(Kind.REQUEST, 99), *((Kind.RETURNED, n) for n in range(2, 6))]
        assert holders(run, last, 99) == (2,)
        # It wakes up: what it had comes after all, and it is given more as soon as it is live.
        gates.go_on[1, 2].set()
        assert [header[:2] for header in results(run, 2)] == [(Kind.REQUEST, 0), (Kind.REQUEST, 1)]
        for stage in range(3):
            run.ring.loops[stage].prepare(2, Windows.parse(PLAN), (0, 1, 2))
        run.send(100, epoch=2)
        assert run.ranges() == {0: (0, 2), 1: (2, 4), 2: (4, 6)}


def test_one_that_was_left_out_because_it_waited_for_one_that_hangs_goes_on():
    gates = Gates((1, 2))
    with running(gates, PLAN, slots=40) as run:
        slots = [run.send(number) for number in range(4)]
        assert gates.reached[1, 2].wait(PROMPT_S)
        wait_for(lambda: holders(run, slots[2], 2) == (0, 1), what="stage 0 stands still")
        run.ring.loops[0].prepare(1, Windows.parse("@6"), (2,))
        assert [header[:2] for header in results(run, 2)] == [(Kind.RETURNED, 2), (Kind.RETURNED, 3)]
        gates.go_on[1, 2].set()


def test_a_stage_that_is_not_live_prepares_nothing():
    with running(Gates(), PLAN) as run:
        run.ring.loops[1].prepare(1, Windows.parse("@3|@6"), (0, 2))
        assert list(run.ring.loops[1]._under) == [0]
        run.ring.send(Header(Kind.REQUEST, 5, epoch=1, attempt=3), (torch.zeros(1),), stage=1)
        header = next(losing(run))
        assert (header.kind, header.request, header.attempt) == (Kind.RETURNED, 5, 3)


def test_a_hand_over_that_is_not_wanted_any_more_is_dropped():
    gates = Gates((1, 2), (0, 1))
    with running(gates, PLAN) as run:
        slots = [run.send(number) for number in range(2)]
        assert gates.reached[0, 1].wait(PROMPT_S)
        gates.go_on[0, 1].set()
        assert gates.reached[1, 2].wait(PROMPT_S)
        wait_for(lambda: holders(run, slots[1], 1) == (0, 1), what="the second waits for stage 1")
        run.ring.pool.memory.set_tag(slots[1], 1, 1)  # it is sent again
        gates.go_on[1, 2].set()
        run.send(2)
        told = {(header.kind, header.request) for header in (run.result()[0] for _ in range(3))}
        assert told == {(Kind.REQUEST, 0), (Kind.RETURNED, 1), (Kind.REQUEST, 2)}
        wait_for(lambda: all(waiting(one.words) == 0 for one in run.ring.readiness), what="all were taken")


# -- the connection between two that live ----------------------------------------------------------------------------


def cut(run: Running, sender: int, receiver: int) -> None:
    """Break a connection as the network would, with whatever is on the way."""
    way = run.ring.loops[sender]._senders[receiver]
    assert isinstance(way, TcpSender)
    way._connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("make", [CpuExecutor, OverlapExecutor])
@pytest.mark.parametrize("windows", [PLAN, WHOLE])
def test_the_gateway_is_told_of_a_broken_connection_with_nothing_sent_after_it(make: type[CpuExecutor], windows: str):
    executors = [make([FakeLayer(f"l{layer}", lambda x: x + 1) for layer in range(LAYERS)], {}) for _ in range(3)]
    with running(executors, windows, kind=between_stages("tcp")) as run:
        run.send(0)
        assert run.result()[0].request == 0
        cut(run, 0, 1)
        assert next(heard(run))._replace(sent_s=0.0) == Header(Kind.UNREACHED, 0, cut=1)
        for stage, end in enumerate(run.ends):
            assert not end.done(), f"stage {stage} serves on"
        for stage in (0, 2):
            run.ring.loops[stage].prepare(1, Windows.parse("@2|@6"), (0, 2))
        run.send(1, epoch=1)
        assert next(heard(run))[:2] == (Kind.REQUEST, 1)  # told once


def test_both_ends_learn_of_a_break_that_one_of_them_sees():
    with running(Gates(), PLAN, kind=between_stages("tcp")) as run:
        way = run.ring.loops[0]._senders[1]
        assert isinstance(way, TcpSender)
        way._break("nothing was heard of its machine")
        assert next(heard(run))._replace(sent_s=0.0) == Header(Kind.UNREACHED, 0, cut=1)
        wait_for(lambda: [one.sender for one in run.ring.loops[1]._inbox.receivers] == [GATEWAY], what="1 drops it")


@pytest.mark.parametrize("closed", ["by the stage", "and replaced"])
def test_a_connection_that_is_closed_or_replaced_is_not_told_of(closed: str):
    gates = Gates((0, 0))
    with running(gates, PLAN, kind=between_stages("tcp")) as run:
        loop = run.ring.loops[0]
        if closed == "by the stage":
            gates.go_on[0, 0].set()
            loop.drop(1)
        else:  # while stage 0 is busy
            run.send(0)
            assert gates.reached[0, 0].wait(PROMPT_S)
            cut(run, 0, 1)
            wait_for(lambda: bool(loop._unreached), what="it is noted")
            way, receiver = open_pair("tcp", slot_nbytes=32 * 2**10, sender=0, receiver=1)
            loop.add_sender(1, way)
            run.ring.loops[1].add_receiver(receiver)
            gates.go_on[0, 0].set()
            assert next(heard(run))[:2] == (Kind.RETURNED, 0)  # it was to go by the old one
        run.send(1)
        assert next(heard(run))[:2] == (Kind.RETURNED if closed == "by the stage" else Kind.REQUEST, 1)


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_in_time_is_not_computed():
    ran: list[float] = []

    def note(values: torch.Tensor) -> torch.Tensor:
        ran.append(values.item())
        return values

    executors = [CpuExecutor([FakeLayer(f"l{layer}", note) for layer in range(2)], {}) for _ in range(2)]
    slow = [[1000.0, 1000.0], [1000.0, 500.0]]
    with running(executors, "@0-2|@2", baseline_s=slow) as run:
        run.send(0, left_s=1400.0)  # the second layer takes 500 s at least, on the second stage
        failure = run.result()[0].failure
        assert failure[:2] == ("stage 0", DEADLINE)
        assert "its deadline cannot be met: it is 1" in failure.message
        assert failure.message.endswith("s away, and the rest takes 1500.000 s at least")
        assert ran == []
        run.send(1, left_s=1600.0)
        assert run.result()[0].kind is Kind.REQUEST
    with running(executors, "@1|@2", baseline_s=slow) as run:  # a plan: each sees its own layers only
        run.send(2, left_s=900.0)
        assert run.result()[0].failure.message.endswith("the rest takes 1000.000 s at least")
        run.send(3, left_s=1100.0)
        assert run.result()[0].kind is Kind.REQUEST


# -- another one takes the place --------------------------------------------------------------------------------------


def replace(run: Running, stage: int, kind: str = "shm", **options: Any) -> StageLoop:
    """Put a new stage, on a machine of its own or not, in the place of one that has ended, as the gateway does."""
    ring, count = run.ring, len(run.ring.loops)
    readiness = Readiness()
    ring.readiness[stage] = readiness
    receivers, pool = [], SlotPool(4, 32 * 2**10)
    for sender in range(stage):
        ring.loops[sender].drop(stage)
    for target in range(stage + 1, count):
        ring.loops[target].drop(stage)
    way, receiver = open_pair(
        "shm",
        slots=200,
        credits=False,
        readiness=readiness,
        receiver=stage,
        pool=ring.pool,
        queue=ring.queue,
    )
    ring.ways[stage] = way
    receivers.append(receiver)
    for sender in range(stage):
        way, receiver = open_pair(kind, slot_nbytes=32 * 2**10, sender=sender, receiver=stage, readiness=readiness)
        receivers.append(receiver)
        ring.loops[sender].add_sender(stage, way)
    senders = {}
    for target in (*range(stage + 1, count), GATEWAY):
        local = target == GATEWAY or kind == "shm"
        senders[target], receiver = open_pair(
            "shm" if local else "tcp",
            slot_nbytes=32 * 2**10,
            sender=stage,
            receiver=target,
            pool=pool if local else None,
            readiness=None if target == GATEWAY else ring.readiness[target],
        )
        ring.inbox.add(receiver) if target == GATEWAY else ring.loops[target].add_receiver(receiver)
    loop = StageLoop(
        stage,
        Gates().executors(1)[0],
        Inbox(receivers),
        senders,
        readiness=readiness,
        hand_over=HandOver(
            stage,
            baseline_s=[[1e-3] * LAYERS] * count,
            cost_s=[0.0] * (LAYERS + 1),
            cut_nbytes=[1024] * (LAYERS + 1),
            readiness=readiness,
            later={target: one for target, one in senders.items() if target != GATEWAY},
        ),
        **options,
    )
    ring.loops[stage] = loop
    return loop


@FAR
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_another_stage_takes_the_place_of_a_lost_one_while_requests_flow(lost: int, kind: str):
    with running(Gates(), PLAN, kind=between_stages(kind)) as run, ThreadPoolExecutor(3) as pool:
        for round_ in range(3):
            run.ring.loops[lost].stop()
            assert next(losing(run)) == Header(Kind.CLOSE, lost)
            epoch = round_ + 1
            loop = replace(run, lost, kind, epoch=epoch, windows=Windows.parse(PLAN), stages=(0, 1, 2))
            run.ends.append(pool.submit(loop.run))
            for stage, other in enumerate(run.ring.loops):
                if stage != lost:
                    other.prepare(epoch, Windows.parse(PLAN), (0, 1, 2))
            for number in range(10):
                run.send(100 * epoch + number, epoch=epoch, oldest=epoch)
                timings = unpack_timings(next(losing(run)).timings)
                assert [timing[:3] for timing in timings] == [(0, 0, 2), (1, 2, 4), (2, 4, 6)]
        for readiness in run.ring.readiness:
            wait_for(lambda one=readiness: waiting(one.words) == 0, what="nothing is counted that was never sent")
            assert readiness.words[BEGUN] > 0
        run.ring.loops[lost].stop()


def test_a_request_of_the_time_before_goes_back_from_a_stage_that_has_just_come():
    with running(Gates(), PLAN) as run, ThreadPoolExecutor(1) as pool:
        run.ring.loops[1].stop()
        assert next(losing(run)) == Header(Kind.CLOSE, 1)
        loop = replace(run, 1, epoch=4, windows=Windows.parse(PLAN), stages=(0, 1, 2))
        run.ends.append(pool.submit(loop.run))
        run.send(5, attempt=2)  # of epoch 0
        header = next(losing(run))
        assert (header.kind, header.request, header.attempt) == (Kind.RETURNED, 5, 2)
        loop.stop()


def test_a_channel_to_a_stage_that_is_not_live_yet_is_not_used():
    with running(Gates(), WHOLE) as run:
        run.ring.loops[1].stop()
        assert next(losing(run)) == Header(Kind.CLOSE, 1)
        run.ring.loops[0].prepare(1, Windows.parse("@0-6|@6"), (0, 2))
        sender, receiver = open_pair("shm", slot_nbytes=1024, sender=0, receiver=1)
        run.ring.loops[0].add_sender(1, sender)
        assert not sender.usable
        sender.readiness.words[IDLE_SINCE_S] = math.inf
        run.send(0)  # of the epoch in which it was live
        assert run.result()[0].request == 0
        run.ring.loops[0].prepare(2, Windows.parse(WHOLE), (0, 1, 2))
        assert sender.usable
        receiver.close()


def test_a_loop_that_has_ended_takes_no_channel():
    with running(Gates(), PLAN) as run:
        run.ring.loops[0].stop()
        run.ends[0].result(PROMPT_S)
        sender, receiver = open_pair("shm", sender=0, receiver=1)
        run.ring.loops[0].add_sender(1, sender)
        assert not sender.usable
        other, incoming = open_pair("shm", sender=0)
        run.ring.loops[0].add_receiver(incoming)
        assert incoming.fileno() == -1
        receiver.close()
        other.close(graceful=False)
