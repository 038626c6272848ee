"""A fork after the start: the child's use broke the parent, which may have got its answer; its end closed it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PROMPT_S

from odin.errors import ForkedProcessError
from odin.stages.device import usable_cores

pytestmark = pytest.mark.ray

DRIVER = """
import atexit, gc, multiprocessing, os, signal, sys, time
import torch
import odin
from odin.monitor.events import LoadChanged
from patience import PROMPT_S
from small_pipelines import images, small_chain


def end_of(what):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        what()
        sys.exit(5)
    end_s = time.monotonic() + PROMPT_S
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end_s:
            os.kill(pid, signal.SIGKILL)
            raise SystemExit(f"the child did not end: {what}")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def refused(use):
    def child():
        try:
            use()
        except odin.ForkedProcessError as error:
            assert error.owner_pid == os.getppid()
            os._exit(7)
        os._exit(1)
    assert end_of(child) == 7, use


def drop_everything():
    global pipe, pending
    del pipe, pending
    gc.collect()


def leave_by_an_exception():
    try:
        with pipe:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def with_every_lock_held(use):
    # as another thread of the parent may at the moment of the fork
    def child():
        for lock in (pipe._lock, pipe._arrangement._switching, pipe._gateway._lock, pipe._gateway._timers._changed):
            lock.acquire()
        use()
    return child


if __name__ == "__main__":
    chain, (x,) = small_chain(), images(1)
    pipe = odin.Pipeline(chain, stages=sys.argv[1].split(","), policy="static", log=sys.argv[2])
    home = pipe.plan
    expected = chain(x)
    done = pipe.submit(x)
    assert torch.equal(done.result(PROMPT_S), expected)
    stage = pipe.snapshot().stages[1].pid
    os.kill(stage, signal.SIGSTOP)
    pending = pipe.submit(x)
    refused(lambda: pending.result(PROMPT_S))
    refused(lambda: pending.exception(PROMPT_S))
    assert end_of(lambda: os._exit(pending.cancel())) == 0
    assert end_of(lambda: os._exit(not torch.equal(done.result(PROMPT_S), expected))) == 0
    os.kill(stage, signal.SIGCONT)
    assert torch.equal(pending.result(PROMPT_S), expected)

    async def ask():
        await pipe.asubmit(x)

    def set_policy():
        pipe.policy = "lls"

    load = LoadChanged(time.perf_counter(), "mine", "cpu@cpu:1", "cpu:1", 1.0, 7)
    uses = [
        lambda: pipe(x), lambda: pipe.submit(x), lambda: pipe.map([x]), lambda: list(pipe.map([x])),
        lambda: __import__("asyncio").run(ask()), lambda: pipe.migrate(home), lambda: pipe.snapshot(),
        lambda: pipe.view(),
        lambda: pipe.timelines(), lambda: pipe.policy, set_policy, lambda: pipe.plan, lambda: pipe.note_load(load),
        lambda: odin.Pipeline(chain, stages=sys.argv[1].split(",")),
    ]
    for use in uses:
        refused(with_every_lock_held(use))
        assert torch.equal(pipe(x), expected), use

    def exit_handler():
        print("exit handler of the child", flush=True)

    def registers():
        atexit.register(exit_handler)

    assert end_of(lambda: None) == 5
    assert end_of(registers) == 5
    assert end_of(with_every_lock_held(pipe.close)) == 5
    assert end_of(lambda: pipe.close(drain=False)) == 5
    assert end_of(leave_by_an_exception) == 5
    assert end_of(drop_everything) == 5
    assert end_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
    assert end_of(lambda: (_ for _ in ()).throw(SystemExit(6))) == 6
    child = multiprocessing.get_context("fork").Process(target=drop_everything)
    child.start()
    child.join(PROMPT_S)
    assert child.exitcode == 0
    running = multiprocessing.get_context("fork").Event()
    child = multiprocessing.get_context("fork").Process(target=lambda: (running.set(), time.sleep(600)))
    child.start()
    assert running.wait(PROMPT_S)
    child.terminate()
    child.join(PROMPT_S)
    assert child.exitcode == -signal.SIGTERM
    loader = torch.utils.data.DataLoader([x[0], x[0]], num_workers=1, multiprocessing_context="fork")
    assert [torch.equal(y, expected) for y in pipe.map(loader)] == [True, True]

    assert torch.equal(pipe(x), expected)
    assert pipe.snapshot().failed == 0
    pipe.migrate(home)
    pipe.close()
    # Ray had been here: a pipeline in a child that was forked now hung without a word.
    refused(lambda: odin.Pipeline(chain, stages=sys.argv[1].split(",")))
    print("all well", flush=True)
"""


def test_a_forked_child_is_refused_and_nothing_it_does_or_leaves_touches_the_parent(tmp_path: Path):
    cores = usable_cores()
    if len(cores) < 2:
        pytest.skip("two stages need two cores")
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    log = tmp_path / "run.jsonl"
    ended = subprocess.run(
        [sys.executable, str(script), f"cpu:{cores[0]},cpu:{cores[1]}", str(log)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "helpers")},
        capture_output=True,
        text=True,
        timeout=4 * PROMPT_S,
    )
    assert ended.stdout.endswith("all well\n"), ended.stdout + ended.stderr
    assert ended.stdout.count("exit handler of the child") == 1
    assert ended.returncode == 0
    lines = log.read_text().splitlines()
    assert len(set(lines)) == len(lines)  # none written twice
    assert sum('"event":"end"' in line for line in lines) == 1


def test_the_error_names_both_processes_and_survives_a_pickle():
    error = pickle.loads(pickle.dumps(ForkedProcessError(17, 18)))
    assert (error.owner_pid, error.pid) == (17, 18)
    assert "belongs to process 17" in str(error)
    assert "(18) is a forked child" in str(error)
