"""The relay through the public face: whoever is free takes a request over, and outputs stay what they were."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import itertools
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from loads import wait_for
from losses import Losses, check_replaced
from patience import PROMPT_S
from small_pipelines import images, small_chain

import odin
from odin.monitor.events import PlanChanged, RunStarted
from odin.partitioner.relay import Windows
from odin.stages.device import usable_cores

pytestmark = pytest.mark.ray

STAGES = 3


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return small_chain()


@pytest.fixture(scope="module")
def events() -> list[odin.Event]:
    return []


@pytest.fixture(scope="module")
def stages(ray_session: None) -> list[str]:
    """Three stages on whatever cores there are."""
    return [f"cpu:{core}" for core in itertools.islice(itertools.cycle(usable_cores()), STAGES)]


@pytest.fixture(scope="module")
def pipe(stages, chain, events) -> Iterator[odin.Pipeline]:
    with odin.Pipeline(chain, stages=stages, policy="relay", share_devices=True, on_event=events.append) as pipe:
        yield pipe


def check_timelines(pipe: odin.Pipeline, layers: int) -> None:
    """One timing per stage, in order, whose layers are the chain."""
    for timeline in pipe.timelines():
        assert [timing.stage for timing in timeline.stages] == list(range(STAGES))
        cuts = [0, *(timing.last for timing in timeline.stages)]
        assert [timing.first for timing in timeline.stages] == cuts[:-1]
        assert cuts[-1] == layers
        for timing in timeline.stages:
            assert len(timing.layer_s) == timing.last - timing.first
            assert timing.first < timing.last or timing.wall_s == 0.0


def test_outputs_are_those_of_the_unsplit_model_bit_for_bit_and_in_order(pipe, chain, events):
    layers = len(chain.layers)
    assert str(pipe.windows) == f"@0-{layers}|@0-{layers}|@{layers}"
    assert pipe.policy == "relay"
    inputs = images(80)
    for x, y in zip(inputs, pipe.map(inputs), strict=True):
        assert torch.equal(y, chain(x))
    check_timelines(pipe, layers)
    (start,) = [event for event in events if isinstance(event, RunStarted)]
    assert (start.windows, start.policy) == (str(pipe.windows), "relay")


def test_not_ordinary_values_too(pipe, chain):
    bad = images(1)[0].clone()
    bad[0, 1, 5, 5] = float("nan")
    for x in (bad, images(1)[0], bad):
        y, expected = pipe(x), chain(x)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(), expected.nan_to_num())


def test_policies_plans_and_windows_change_while_requests_flow(pipe, chain, events):
    inputs, layers, chosen = images(150), len(chain.layers), random.Random(0)
    static = pipe.plan
    windows = f"@0-{layers // 2}|@{layers // 2}-{layers}|@{layers}"
    changes = {
        20: lambda: setattr(pipe, "policy", "static"),
        40: lambda: setattr(pipe, "policy", "relay"),
        60: lambda: pipe.migrate(windows),
        80: lambda: pipe.migrate(odin.Plan((layers, 0, 0))),
        100: lambda: pipe.migrate(f"@{layers}|@{layers}|@{layers}"),
        110: lambda: pipe.migrate(Windows.whole(stage_count=STAGES, layer_count=layers)),
    }
    seen, futures = [], []
    for number, x in enumerate(inputs):
        if number in changes:
            changes[number]()
            seen.append(str(pipe.windows))
        futures.append(pipe.submit(x))
        if chosen.random() < 0.1:
            futures[-1].result(PROMPT_S)  # now and then stages are idle
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(PROMPT_S), chain(x))
    whole, last = f"@0-{layers}|@0-{layers}|@{layers}", f"@{layers}|@{layers}|@{layers}"
    assert seen == [str(Windows.of_plan(static)), whole, windows, last, last, whole]
    check_timelines(pipe, layers)
    by_epoch = {timeline.epoch: timeline for timeline in pipe.timelines()}
    assert [[timing.last for timing in by_epoch[epoch].stages] for epoch in (4, 5)] == [[layers] * 3] * 2
    moves = [event for event in events if isinstance(event, PlanChanged)]
    assert [move.windows for move in moves][:3] == ["", whole, windows]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("@0-3|@3", r"windows @0-3\|@3 are for 2 stages and 3 layers; the pipeline has 3 and"),
        ("@3-1|@4|@4", r"@3-1 must not be empty"),
        ("@x|@4", r"is not windows: write where each stage may end"),
        ("@", r"is not windows"),
        ("0-3|@4", r"is not windows"),
        (None, r"None is no plan and no windows; give text such as '7\|11' or '@0-9\|@18'"),
        ([(0, 3), (4, 4)], r"is no plan and no windows"),
    ],
)
def test_windows_that_do_not_fit_change_nothing(pipe, wrong, message):
    before = pipe.windows, pipe.snapshot().epoch
    with pytest.raises(ValueError, match=message):
        pipe.migrate(wrong)
    assert (pipe.windows, pipe.snapshot().epoch) == before


def test_a_plan_ends_the_relay_and_the_policy_says_so(pipe, chain):
    pipe.policy = "relay"
    assert pipe.policy == "relay"
    pipe.migrate(f"@0-2|@2-{len(chain.layers)}|@{len(chain.layers)}")
    assert pipe.policy == "relay"
    pipe.migrate(pipe.plan)
    assert (pipe.policy, pipe.windows.plan) == ("static", pipe.plan)
    pipe.policy = "relay"
    assert (pipe.policy, pipe.windows.plan) == ("relay", None)


def test_a_request_that_fails_fails_alone(pipe, chain):
    with pytest.raises(odin.DeadlineExceededError):
        pipe(images(1)[0], timeout_s=0.0)
    assert torch.equal(pipe(images(1)[0]), chain(images(1)[0]))


def test_a_killed_stage_loses_no_request_and_is_replaced(stages, chain):
    """The first, one in between and the last, one after the other."""
    losses, inputs = Losses(), images(8)
    expected = [chain(x) for x in inputs]
    with odin.Pipeline(chain, stages=stages, policy="relay", share_devices=True, on_event=losses) as pipe:
        for lost in range(STAGES):
            for number, y in enumerate(pipe.map(inputs * 20)):
                if number == 20:
                    victim = pipe.snapshot().stages[lost].pid
                    os.kill(victim, signal.SIGKILL)
                assert torch.equal(y, expected[number % 8])
            check_replaced(pipe, losses, lost, victim)
            losses.events.clear()
            for y, after in zip(pipe.map(inputs), expected, strict=True):
                assert torch.equal(y, after)


def test_closing_with_requests_under_way_finishes_them(stages, chain):
    inputs = images(6)
    with odin.Pipeline(chain, stages=stages[:2], policy="relay", share_devices=True, transport="tcp") as pipe:
        futures = [pipe.submit(x) for x in inputs]
        pipe.migrate(odin.Plan((len(chain.layers), 0)))
        futures += [pipe.submit(x) for x in inputs]
    for x, future in zip(inputs * 2, futures, strict=True):
        assert torch.equal(future.result(0), chain(x))


def held() -> tuple[list[str], list[str]]:
    """Channels' descriptors and threads of this process."""
    gc.collect()
    files = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            files.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("odin-tcp"))
    return sorted(name for name in files if "memfd:odin" in name or "eventfd" in name), names


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("end", ["closed", "killed"])
def test_nothing_stays_open_in_this_process(stages, chain, transport, end):
    before = held()
    with odin.Pipeline(chain, stages=stages[:2], policy="relay", share_devices=True, transport=transport) as pipe:
        futures = [pipe.submit(x) for x in images(4)]
        if end == "killed":
            os.kill(pipe.snapshot().stages[1].pid, signal.SIGKILL)
        pipe.close(drain=end == "closed")
    assert all(future.done() for future in futures)
    del pipe, futures  # a future can be cancelled, so it knows the gateway

    def is_as_before() -> bool:
        files, threads = held()
        # Fewer than before: those of earlier tests, whose pipelines were collected meanwhile.
        return not Counter(files) - Counter(before[0]) and not set(threads) - set(before[1])

    wait_for(is_as_before, what="its descriptors are closed")  # who looks for causes may end a moment later


def test_a_stage_that_stands_still_takes_no_new_requests(stages, chain):
    """The first, one in between and the last, one after the other."""
    inputs = images(12)
    with odin.Pipeline(chain, stages=stages, policy="relay", share_devices=True, max_in_flight=6) as pipe:
        for stopped in range(STAGES):
            assert torch.equal(pipe(inputs[0]), chain(inputs[0]))
            pid = pipe.snapshot().stages[stopped].pid
            os.kill(pid, signal.SIGSTOP)
            try:
                futures = [pipe.submit(x) for x in inputs]
                answered = itertools.islice(concurrent.futures.as_completed(futures, PROMPT_S), len(inputs) - 1)
                assert sum(1 for _ in answered) == len(inputs) - 1  # one may have been handed over to it
            finally:
                os.kill(pid, signal.SIGCONT)
            for x, future in zip(inputs, futures, strict=True):
                assert torch.equal(future.result(PROMPT_S), chain(x))


def test_requests_are_run_whole_and_by_all_stages_while_plans_send_them_from_one_to_the_next(pipe, chain):
    inputs, layers = images(200), len(chain.layers)
    pipe.policy = "relay"
    assert sum(1 for _ in pipe.map(inputs)) == len(inputs)
    by_stage = Counter(
        timing.stage for timeline in pipe.timelines()[-200:] for timing in timeline.stages if timing.layer_s
    )
    assert set(by_stage) == set(range(STAGES))
    pipe.migrate(odin.Plan((layers - 2, 1, 1)))
    assert sum(1 for _ in pipe.map(inputs[:20])) == 20
    for timeline in pipe.timelines()[-20:]:
        assert [len(timing.layer_s) for timing in timeline.stages] == [layers - 2, 1, 1]
    pipe.policy = "relay"
