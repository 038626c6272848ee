"""The gateway with a queue that stages take from: which way a request goes, slots that come back, and the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from channels import numbers, open_pair
from gateways import OnePartGateway
from interruptions import interrupt_often
from patience import PROMPT_S

from odin.errors import DeadlineExceededError, PipelineClosedError
from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.inlet import Inlet
from odin.stages.channel.link import ChannelClosedError, Message, Sender
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.shared_queue import NewRequest, SharedQueue
from odin.stages.channel.wire import Failure, Kind

STAGES = 2
PLAN = Plan((2, 4))
WHOLE = Windows.whole(stage_count=STAGES, layer_count=6)


class Stages(NamedTuple):
    """What is behind the gateway, played by the test."""

    gateway: OnePartGateway
    inboxes: list[Inbox]
    senders: list[Sender]
    gone: list[int]

    def take(self, stage: int) -> Message:
        message = self.inboxes[stage].receive(stage=stage)
        header, home = message.header, self.inboxes[stage].home
        if header.kind is Kind.REQUEST and home is not None:  # as a stage says that it has begun
            home.set_holder(header.home, header.request, header.attempt, stage)
        return message

    def answer(self, stage: int, message: Message, failure: Failure | None = None) -> None:
        header, values = message.header._replace(tensors=()), message.tensors
        if failure is None:
            self.senders[stage].send(header, values)
        else:
            self.senders[stage].send(header._replace(kind=Kind.ERROR, failure=failure))
        message.release()

    def end(self, stage: int) -> list[int]:
        """Answer until the goodbye, as a stage does; the requests."""
        seen = []
        while (message := self.take(stage)).header.kind is Kind.REQUEST:
            seen.append(message.header.request)
            self.answer(stage, message)
        self.inboxes[stage].close()
        self.senders[stage].close()
        return seen


@contextlib.contextmanager
def gateway_and_stages(windows: Windows = WHOLE, slots: int = 3, *, shares: bool = True) -> Iterator[Stages]:
    pool = SlotPool(slots, 1024)
    queue = SharedQueue(stages=STAGES) if shares else None
    pairs = [
        open_pair("shm", slots=slots, credits=False, pool=pool, queue=queue, receiver=stage) for stage in range(STAGES)
    ]
    answers = [open_pair("shm", sender=stage) for stage in range(STAGES)]
    gone: list[int] = []
    gateway = OnePartGateway(
        Inlet(pool, {stage: sender for stage, (sender, _) in enumerate(pairs)}, queue),
        Inbox([receiver for _, receiver in answers]),
        plan=PLAN,
        windows=windows,
        on_gone=gone.append,
    )
    stages = Stages(gateway, [Inbox([receiver]) for _, receiver in pairs], [sender for sender, _ in answers], gone)
    try:
        yield stages
    finally:
        for stage in range(STAGES):
            stages.inboxes[stage].close()
            stages.senders[stage].close(graceful=False)
        gateway.close(drain=False)
        assert not gateway._thread.is_alive()


def test_any_stage_takes_a_request_and_slots_come_back_whoever_answers():
    with gateway_and_stages() as stages:
        for number in range(12):
            future = stages.gateway.submit((numbers(number),))
            message = stages.take(number % STAGES)
            assert isinstance(message, NewRequest)
            stages.answer(number % STAGES, message)
            assert torch.equal(future.result(PROMPT_S)[0], numbers(number))
        assert stages.gateway._under_way.free == 3


def test_requests_go_to_the_first_stage_where_a_plan_says_so_and_back_to_all_after_it():
    with gateway_and_stages() as stages:
        futures = [stages.gateway.submit((numbers(0),))]
        for epoch, windows in enumerate([None, Windows.parse("@0-3|@6"), Windows.parse("@1-6|@6")], 1):
            stages.gateway.switch(epoch, PLAN, windows)
            futures.append(stages.gateway.enqueue((numbers(epoch),)))
            if epoch == 1:
                waiting = stages.take(0)  # the plan's: of channels and queue the channel comes first
                assert (waiting.header.request, isinstance(waiting, NewRequest)) == (1, False)
                stages.answer(0, waiting)
                first = stages.take(1)
                assert (first.header.request, first.header.epoch) == (0, 0)
                stages.answer(1, first)
            elif epoch == 2:
                message = stages.take(1)
                assert message.header.request == 2
                stages.answer(1, message)
            else:
                message = stages.take(0)
                assert not isinstance(message, NewRequest)
                stages.answer(0, message)
        for number, future in enumerate(futures):
            assert torch.equal(future.result(PROMPT_S)[0], numbers(number))
        assert stages.gateway._under_way.free == 3


def test_the_bound_holds_and_who_waits_follows_when_an_answer_is_there():
    with gateway_and_stages() as stages:
        futures = [stages.gateway.enqueue((numbers(number),)) for number in range(7)]
        assert stages.gateway._inlet.queue.words.waiting == 3
        for number in range(7):
            message = stages.take(number % STAGES)
            assert message.header.request == number
            stages.answer(number % STAGES, message)
            futures[number].result(PROMPT_S)


def test_a_request_that_is_cancelled_or_late_while_it_waits_is_not_wanted_and_its_slot_is_free_at_once():
    with gateway_and_stages() as stages:
        cancelled = stages.gateway.submit((numbers(0),))
        late = stages.gateway.submit((numbers(1),), deadline_s=0.0)
        assert isinstance(late.exception(PROMPT_S), DeadlineExceededError)
        assert cancelled.cancel()
        assert stages.gateway._under_way.free == 3
        future = stages.gateway.submit((numbers(2),))  # into the slot of the first
        message = stages.take(1)
        assert (message.header.request, message.wanted) == (0, False)
        message = stages.take(0)
        assert (message.header.request, message.wanted) == (2, True)
        stages.answer(0, message)
        assert torch.equal(future.result(PROMPT_S)[0], numbers(2))
        assert stages.gateway._under_way.free == 3


def test_closing_drains_the_queue_and_says_goodbye_to_every_stage():
    with gateway_and_stages() as stages, ThreadPoolExecutor(STAGES) as pool:
        futures = [stages.gateway.enqueue((numbers(number),)) for number in range(3)]
        ending = [pool.submit(stages.end, stage) for stage in range(STAGES)]
        stages.gateway.close()
        assert sorted(ending[0].result(PROMPT_S) + ending[1].result(PROMPT_S)) == [0, 1, 2]
        for number, future in enumerate(futures):
            assert torch.equal(future.result(0)[0], numbers(number))


def test_closing_without_drain_fails_what_nobody_has_taken():
    with gateway_and_stages() as stages:
        future = stages.gateway.submit((numbers(0),))
        stages.gateway.close(drain=False)
        assert isinstance(future.exception(PROMPT_S), PipelineClosedError)


def test_an_exception_of_a_signals_handler_costs_no_place():
    with gateway_and_stages() as stages:

        def answer(stage: int) -> None:
            with contextlib.suppress(ChannelClosedError):
                stages.end(stage)

        for stage in range(STAGES):
            threading.Thread(target=answer, args=(stage,), daemon=True).start()
        interrupt_often(lambda: stages.gateway.submit((numbers(1),)), times=60)
        for _ in range(12):
            assert torch.equal(stages.gateway.submit((numbers(7),)).result(PROMPT_S)[0], numbers(7))
