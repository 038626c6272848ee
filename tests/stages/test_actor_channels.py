"""A stage actor's channels, without Ray: it starts, others come and are replaced, and it ends without its gateway."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from channels import post, received
from layers import FakeLayer
from patience import PROMPT_S

from odin.monitor.timing import unpack_timings
from odin.partitioner.relay import Windows
from odin.stages import actor
from odin.stages.actor import Links, StageActor
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import Sender
from odin.stages.channel.opening import Listener, connect, open_ends
from odin.stages.channel.pool import SlotPool
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.torch_cpu import CpuExecutor

NBYTES = 1024


def make(index: int) -> StageActor:
    """A stage that has opened a model of two layers."""
    stage = StageActor(index, "cpu:0", "a test", share=True, precision="float32")
    stage._executor = CpuExecutor([FakeLayer(name, lambda x: x + 1) for name in "ab"], {})
    return stage


def links(later: tuple, windows: str, stages: tuple[int, ...], epoch: int = 0) -> Links:
    return Links(later, NBYTES, ((1e-3,) * 2,) * 2, (0.0,) * 3, (64,) * 3, Windows.parse(windows), stages, epoch)


class Gateway:
    """The gateway's ends of two stages."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.executor, self.pool, self.inbox = executor, SlotPool(8, NBYTES), Inbox()
        self.ways: dict[int, Sender] = {}

    def start(self, stage: StageActor, index: int, here: int, later: tuple = (), **options: object) -> None:
        """Start a stage that so many others send to."""
        address, answers = stage.listen(here + 1, 0, "").here, Listener()
        starting = self.executor.submit(
            stage.start, links((*later, (GATEWAY, answers.address)), options.pop("windows"), **options)
        )
        (self.ways[index],), (receiver,) = open_ends(
            [(answers, 1)],
            [lambda: connect(address, slots=8, slot_nbytes=NBYTES, credits=False, receiver=index, pool=self.pool)],
        )
        self.inbox.add(receiver)
        self.starting = starting

    def send(self, number: int, **fields: int) -> Header:
        post(self.pool, self.ways[0], Header(Kind.REQUEST, number, **fields), (torch.zeros(1),))
        return received(self.inbox)[0]


def stages_of(header: Header) -> list[int]:
    return [timing.stage for timing in unpack_timings(header.timings)]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(StageActor, "_use_threads", lambda self: torch.set_num_threads(1))
    yield
    torch.set_num_threads(threads)


def test_a_later_stage_comes_and_goes_and_comes_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(actor, "end_process", lambda: None)
    with ThreadPoolExecutor(4) as executor:
        gateway = Gateway(executor)
        first = make(0)
        gateway.start(first, 0, 0, windows="@2", stages=(0,))
        gateway.starting.result(PROMPT_S)
        assert stages_of(gateway.send(0)) == [0]
        for round_ in range(1, 3):
            second = make(1)
            listening = second.listen(2, 0, "").here
            answers = Listener()
            starting = executor.submit(
                second.start, links(((GATEWAY, answers.address),), "@1|@2", (0, 1), epoch=round_)
            )
            connecting = executor.submit(first.connect_to, 1, listening)
            (gateway.ways[1],), (receiver,) = open_ends(
                [(answers, 1)],
                [lambda to=listening: connect(to, slots=8, slot_nbytes=NBYTES, credits=False, pool=gateway.pool)],
            )
            for done in (connecting, starting):
                done.result(PROMPT_S)
            gateway.inbox.add(receiver)
            first.prepare(round_, Windows.parse("@1|@2"), (0, 1))
            assert stages_of(gateway.send(round_, epoch=round_)) == [0, 1]
            second.stop()
            with pytest.raises(ConnectionError):
                gateway.inbox.receive()
            first.drop(1)
            assert gateway.send(10, epoch=round_).kind is Kind.RETURNED
            gateway.ways[1].close(graceful=False)
        first.stop()


def test_an_earlier_stage_is_admitted_while_requests_flow_and_who_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(actor, "end_process", lambda: None)
    with ThreadPoolExecutor(4) as executor:
        gateway = Gateway(executor)
        second = make(1)
        gateway.start(second, 1, 0, windows="@2", stages=(1,))
        gateway.starting.result(PROMPT_S)
        assert second.admit(1, 1, "127.0.0.1").remote is not None  # nobody comes
        first = make(0)
        admitting = second.admit(1, 0, "").here
        gateway.start(first, 0, 0, ((1, admitting),), windows="@1|@2", stages=(0, 1), epoch=1)
        gateway.starting.result(PROMPT_S)
        second.prepare(1, Windows.parse("@1|@2"), (0, 1))
        assert stages_of(gateway.send(0, epoch=1)) == [0, 1]
        for stage in (first, second):
            stage.stop()


@pytest.mark.parametrize("graceful", [True, False])
def test_a_process_ends_by_itself_once_its_gateway_has_closed_or_is_gone(
    graceful: bool, monkeypatch: pytest.MonkeyPatch
):
    ended = threading.Event()
    monkeypatch.setattr(actor, "end_process", ended.set)
    monkeypatch.setattr(actor, "time", SimpleNamespace(sleep=lambda seconds: None))
    with ThreadPoolExecutor(4) as executor:
        gateway = Gateway(executor)
        stage = make(0)
        gateway.start(stage, 0, 0, windows="@2", stages=(0,))
        gateway.starting.result(PROMPT_S)
        closing = executor.submit(gateway.ways[0].close, graceful=graceful)
        if graceful:
            assert gateway.inbox.receive().header.kind is Kind.CLOSE
        closing.result(PROMPT_S)
        assert stage._thread is not None
        stage._thread.join(PROMPT_S)
        assert ended.is_set()
        gateway.inbox.close()


def test_a_stage_without_a_gateway_ends_with_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch):
    parent, alone, ended = [1], [], threading.Event()

    def end_process() -> None:
        alone[0]._thread = threading.current_thread()  # which ends then
        ended.set()

    monkeypatch.setattr(actor, "end_process", end_process)
    monkeypatch.setattr(actor, "_PARENT_LOOK_S", 0.01)
    before, getppid = set(threading.enumerate()), os.getppid  # among them watches of other tests' stages
    monkeypatch.setattr(actor.os, "getppid", lambda: getppid() if threading.current_thread() in before else parent[0])
    with ThreadPoolExecutor(4) as executor:
        stage, gateway = make(0), Gateway(executor)
        [watch] = [thread for thread in set(threading.enumerate()) - before if thread.name == "odin-parent-watch"]
        gateway.start(stage, 0, 0, windows="@2", stages=(0,))
        gateway.starting.result(PROMPT_S)
        watch.join(PROMPT_S)
        assert not watch.is_alive()  # since it serves
        alone.append(make(1))
        assert not ended.is_set()
        parent[0] = 2
        assert ended.wait(PROMPT_S)
        stage.stop()


def test_connecting_to_nobody_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(actor, "end_process", lambda: None)
    with ThreadPoolExecutor(4) as executor:
        gateway = Gateway(executor)
        stage = make(0)
        gateway.start(stage, 0, 0, windows="@2", stages=(0,))
        gateway.starting.result(PROMPT_S)
        gone = Listener()
        gone.close()
        with pytest.raises(ConnectionError, match="cannot connect to the stage"):
            stage.connect_to(1, gone.address)
        assert stages_of(gateway.send(0)) == [0]
        stage.stop()
