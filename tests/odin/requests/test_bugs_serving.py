"""Faults of serving found by somebody who tried to break it, each with its story."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from channels import numbers
from interruptions import interrupt_often
from loads import wait_for
from patience import PROMPT_S
from test_gateway import check_every_permit_is_back, gateway_and_stage

from odin.monitor.eventlog import EventLog
from odin.monitor.events import PolicyChanged
from odin.process.worker_thread import Worker
from odin.requests.replies import Callbacks, Reply
from odin.stages.channel.link import ChannelClosedError


def test_the_garbage_collector_may_cancel_while_the_gateways_lock_is_held():
    """A future in a reference cycle, cancelled inside ``submit``, waited for its own thread."""
    with gateway_and_stage(max_in_flight=1) as stage:
        first = stage.gateway.submit((numbers(1),))
        message = stage.take()
        second = stage.gateway.enqueue((numbers(2),))
        with stage.gateway._lock:
            assert second.cancel()
        # Another thread takes it out of the line; if the place is free before, it is sent, and is to be taken too.
        wait_for(lambda: not stage.gateway._waiting.line, what="the cancelled request leaves the line")
        stage.answer(message)
        first.result(PROMPT_S)
        check_every_permit_is_back(stage, 1)


@pytest.mark.slow
@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals are the main thread's")
def test_an_exception_of_a_signals_handler_costs_no_place():
    """Ctrl-C in a notebook, or a time limit by SIGALRM: after some of them ``submit`` waited for ever, or raised
    IndexError.
    """
    with gateway_and_stage(max_in_flight=3) as stage:

        def answer() -> None:
            with contextlib.suppress(ChannelClosedError):
                stage.answer_until_closed()

        threading.Thread(target=answer, daemon=True).start()
        interrupt_often(lambda: stage.gateway.submit((numbers(1),)), times=300)
        for _ in range(12):
            assert torch.equal(stage.gateway.submit((numbers(7),)).result(PROMPT_S)[0], numbers(7))


@pytest.mark.slow
def test_a_child_forked_in_a_callback_ends_where_it_would_come_back():
    """It took part in its parent's loop of callbacks, with its parent's sockets, for ever."""
    reading, writing = os.pipe()
    children: list[int] = []

    def fork(code: int | None) -> None:
        child = os.fork()
        if child == 0:
            os.write(writing, b"c")
            if code is not None:
                sys.exit(code)
            return
        children.append(child)

    callbacks, reply = Callbacks(), Reply()
    worker: Worker[int | None] = Worker(fork, name="test", on_error=lambda error: None)
    worker.start()
    callbacks.call_later(lambda _: fork(5), reply)
    callbacks.call_later(lambda _: fork(None), reply)
    callbacks.close(PROMPT_S)
    worker.put(6)
    assert worker.settle(PROMPT_S)
    worker.close()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [5, 0, 6]
    assert os.read(reading, 10) == b"ccc"
    os.close(reading)
    os.close(writing)


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path):
    """The thread that wrote into a full pipe never came back, and with it the controller and ``close``."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    said: list[str] = []
    with EventLog(path, on_trouble=lambda kind, text: said.append(kind)) as log:
        for number in range(3_000):
            log.append(PolicyChanged(float(number), "static " * 20))
        assert log.error
    assert "write" in said
    os.close(reading)


def test_a_future_that_its_user_declares_running_is_resolved_and_one_that_is_pickled_says_why_not():
    reply: Reply[int] = Reply()
    reply.set_running_or_notify_cancel()
    reply.settle(3)
    assert reply.result(0) == 3
    with pytest.raises(TypeError, match=r"send its result\(\) instead"):
        pickle.dumps(reply)


TWO = """
import threading, torch, odin
from torch import nn

x = torch.randn(1, 3, 16, 16)
chain = odin.build_chain(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3)).eval(), (x,))
wanted, answers, failed = chain(x), [], []

def start():
    return odin.Pipeline(chain, stages=[stage], policy="static", share_devices=True)

def serve():
    try:
        with start() as pipe:
            answers.append(torch.equal(pipe(x), wanted))
    except BaseException as error:
        failed.append(repr(error))

import os
stage = f"cpu:{min(os.sched_getaffinity(0))}"
threads = [threading.Thread(target=serve) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
first, second = start(), start()
first.close()
answers.append(torch.equal(second(x), wanted))
second.close()
import ray
print(answers, failed, ray.is_initialized())
"""


@pytest.mark.ray
def test_pipelines_of_one_process_share_ray_and_the_last_one_stops_it(tmp_path):
    """The first to close stopped Ray for all; two that started at once called ``ray.init`` twice."""
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=4 * PROMPT_S, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["[True, True, True] [] False"], done.stdout + done.stderr
    assert done.returncode == 0
