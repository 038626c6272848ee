"""Requests through the public face; all tests share one pipeline with stages in processes of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from patience import PROMPT_S
from small_pipelines import all_plans, images, small_chain

import odin

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return small_chain()


@pytest.fixture(scope="module")
def pipe(two_cores: list[str], chain: odin.Chain) -> Iterator[odin.Pipeline]:
    with odin.Pipeline(chain, stages=two_cores, policy="static") as pipe:
        yield pipe


def test_results_are_the_unsplit_models_bit_for_bit_under_every_plan(pipe, chain):
    inputs = images(4)
    expected = [chain(x) for x in inputs]
    for plan in all_plans(len(chain.layers)):
        pipe.migrate(plan)
        assert pipe.plan == plan
        for x, y in zip(inputs, expected, strict=True):
            assert torch.equal(pipe(x), y)


def test_migrations_under_load_lose_nothing_and_mix_nothing_up(pipe, chain):
    inputs, plans, before = images(120), all_plans(len(chain.layers)), pipe.snapshot()
    generator = torch.Generator().manual_seed(1)
    futures: list[Future[torch.Tensor]] = []
    for number, x in enumerate(inputs):
        if number % 3 == 2:
            pipe.migrate(plans[int(torch.randint(len(plans), (), generator=generator))])
        futures.append(pipe.submit(x))
    for x, future in zip(inputs, futures, strict=True):
        assert torch.equal(future.result(PROMPT_S), chain(x))
    after = pipe.snapshot()
    assert (after.epoch - before.epoch, after.completed - before.completed) == (40, 120)
    assert (after.failed, after.in_flight) == (before.failed, 0)


def test_map_is_in_order_lazy_and_bounded(pipe, chain):
    taken = 0

    def source() -> Iterator[torch.Tensor]:
        nonlocal taken
        for x in images(50):
            taken += 1
            yield x

    results = pipe.map(source())
    assert taken == 0
    first = next(results)
    assert 1 <= taken <= 2 * pipe.max_in_flight + 1  # as many as may be under way wait for one that they have overtaken
    assert torch.equal(first, chain(images(1)[0]))
    assert all(torch.equal(y, chain(x)) for x, y in zip(images(50)[1:], results, strict=True))
    assert taken == 50


def test_asubmit_serves_many_tasks(pipe, chain):
    inputs = images(30)

    async def serve() -> list[torch.Tensor]:
        return await asyncio.gather(*(pipe.asubmit(x) for x in inputs))

    for x, y in zip(inputs, asyncio.run(serve()), strict=True):
        assert torch.equal(y, chain(x))


def test_nan_passes_through(pipe):
    assert pipe(torch.full((1, 3, 32, 32), float("nan"))).isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_not_ordinary_comes_out_as_of_the_unsplit_chain(pipe, chain, value):
    bad = images(1)[0].clone()
    bad[0, 1, 5, 5] = value
    good = images(2)[1]
    for x in (bad, good, torch.cat([good, bad]), good):
        result = pipe(x)
        expected = torch.cat([chain(one) for one in x.split(1)])  # a request per image, as started with batch 1
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3, 32, 32), r"expected shape \(any, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 33), r"got \(1, 3, 32, 33\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "expected dtype float32, got float64"),
        (torch.zeros(0, 3, 32, 32), "leading size"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_would(pipe, wrong, message):
    with pytest.raises(ValueError, match=message):
        pipe(wrong)
    assert pipe.snapshot().in_flight == 0


def test_a_passed_deadline_fails_the_request_without_computing(pipe, chain):
    with pytest.raises(odin.DeadlineExceededError):
        pipe(images(1)[0], timeout_s=-1.0)
    assert torch.equal(pipe(images(1)[0], timeout_s=PROMPT_S), chain(images(1)[0]))


def test_plans_that_do_not_fit_change_nothing(pipe, chain):
    before, layers = pipe.snapshot(), len(chain.layers)
    for plan, message in (
        (f"{layers}", "has 1 stages, the pipeline has 2"),
        (f"{layers}|1", f"spreads {layers + 1} layers, the model has {layers}"),
        ("3;4", "not a plan"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.migrate(plan)
    after = pipe.snapshot()
    assert (after.plan, after.epoch) == (before.plan, before.epoch)


def test_every_thread_of_a_stage_is_pinned(pipe, two_cores):
    pipe(images(1)[0])
    for stage, device in zip(pipe.snapshot().stages, two_cores, strict=True):
        core = int(device.partition(":")[2])
        for task in Path(f"/proc/{stage.pid}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {core}, task
        assert os.getpriority(os.PRIO_PROCESS, stage.pid) == 0 or os.geteuid() != 0
