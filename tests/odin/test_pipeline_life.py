"""Starting, breaking and ending pipelines; each test has its own."""

from __future__ import annotations

import os
import signal
import threading

import operators_for_stages
import psutil
import pytest
import torch
from loads import living
from losses import Losses, check_replaced
from patience import PROMPT_S
from small_pipelines import all_plans, images, small_chain
from torch import nn

import odin
from odin.monitor.events import Event, StageBack, StageLost
from odin.stages.device import usable_cores

pytestmark = pytest.mark.ray


class Words(nn.Module):
    """Raises for an index beyond its 10 words; two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 4)

    def forward(self, words: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.first(self.embed(words)).relu()
        return {"hidden": hidden, "scores": self.second(hidden * scale)}


@pytest.fixture(scope="module")
def chain() -> odin.Chain:
    return small_chain()


def test_large_requests_are_served_in_micro_batches(two_cores, chain):
    with odin.Pipeline(chain, stages=two_cores, batch=4, plan=all_plans(len(chain.layers))[2], policy="static") as pipe:
        x = torch.cat(images(11))
        expected = torch.cat([chain(part) for part in x.split(4)])
        assert torch.equal(pipe(x), expected)
        assert pipe.snapshot().completed == 3


def test_the_default_plan_comes_from_timing_the_layers_and_a_killed_first_stage_is_replaced(two_cores, chain):
    losses, inputs = Losses(), images(100)
    with odin.Pipeline(chain, stages=two_cores, on_event=losses) as pipe:
        assert len(pipe.profiles) == 2
        assert pipe.profiles[0] == pipe.profiles[1]  # one type of device, measured once
        assert len(pipe.profiles[0].layer_s) == len(chain.layers)
        assert pipe.plan.layer_count == len(chain.layers)
        victim = pipe.snapshot().stages[0].pid
        os.kill(victim, signal.SIGKILL)
        for x, y in zip(inputs, pipe.map(inputs), strict=True):
            assert torch.equal(y, chain(x))
        check_replaced(pipe, losses, 0, victim)
        assert torch.equal(pipe(inputs[0]), chain(inputs[0]))


def test_several_inputs_and_outputs_and_an_exception_in_a_layer(two_cores):
    torch.manual_seed(0)
    model = Words().eval()
    words, scale = torch.tensor([[1, 2, 3]]), torch.full((1, 3, 1), 2.0)
    with odin.Pipeline(model, stages=two_cores, example_input=(words, scale)) as pipe:
        result = pipe(words, scale)
        assert list(result) == ["hidden", "scores"]
        assert torch.allclose(result["scores"], model(words, scale)["scores"], rtol=1e-4)
        # an exception in a layer fails that request only
        good = pipe(words, scale)
        futures = [pipe.submit(w, scale) for w in (words, words + 100, words)]
        with pytest.raises(odin.LayerFailedError, match="layer first raised IndexError"):
            futures[1].result(PROMPT_S)
        for future in (futures[0], futures[2]):
            assert torch.equal(future.result(PROMPT_S)["scores"], good["scores"])
        assert pipe.snapshot().failed == 1


def test_a_killed_stage_loses_no_request_and_the_plan_is_in_force_again_when_it_is_replaced(two_cores, chain):
    losses = Losses()
    with odin.Pipeline(chain, stages=two_cores, policy="static", on_event=losses) as pipe:
        plan = pipe.plan
        pipe(images(1)[0])
        victim = pipe.snapshot().stages[1].pid
        os.kill(victim, signal.SIGSTOP)  # requests pile up at it
        inputs = images(pipe.max_in_flight)
        futures = [pipe.submit(x) for x in inputs]
        os.kill(victim, signal.SIGKILL)
        for x, future in zip(inputs, futures, strict=True):
            assert torch.equal(future.result(PROMPT_S), chain(x))
        check_replaced(pipe, losses, 1, victim)
        lost = [event for event in losses.events if isinstance(event, StageLost)]
        assert sum(event.requests for event in lost) > 0
        while pipe.plan != plan:  # it follows the event
            assert torch.equal(pipe(inputs[0]), chain(inputs[0]))
        pipe.migrate(plan)
        assert torch.equal(pipe(inputs[0]), chain(inputs[0]))


def test_a_core_is_leased_to_one_pipeline_until_its_end_which_leaves_no_process_unless_both_share(two_cores, chain):
    with odin.Pipeline(chain, stages=two_cores) as pipe:
        with pytest.raises(odin.DeviceError, match=rf"{two_cores[0]} is in use by pid \d+, pipeline residual"):
            odin.Pipeline(chain, stages=two_cores[:1], share_devices=True)
        with pytest.raises(odin.DeviceError, match="no free core"):
            odin.Pipeline(chain)
        pids = [stage.pid for stage in pipe.snapshot().stages]
        future = pipe.submit(images(1)[0])
    assert torch.equal(future.result(0), chain(images(1)[0]))
    with pytest.raises(odin.PipelineClosedError):
        pipe.submit(images(1)[0])
    pipe.close()
    _, alive = psutil.wait_procs(living(pids), PROMPT_S)
    assert alive == []
    with (  # the cores are free again
        odin.Pipeline(chain, stages=two_cores, share_devices=True) as one,
        odin.Pipeline(chain, stages=[two_cores[1], two_cores[1]], share_devices=True) as other,
    ):
        assert torch.equal(one(images(1)[0]), other(images(1)[0]))


def test_tcp_between_stages_gives_the_same_bits_and_leaving_by_an_exception_drops_what_is_under_way(two_cores, chain):
    futures = []

    def serve():
        with odin.Pipeline(chain, stages=two_cores, transport="tcp", policy="static") as pipe:
            for number, (x, y) in enumerate(zip(images(20), pipe.map(images(20)), strict=True)):
                assert torch.equal(y, chain(x)), number
            os.kill(pipe.snapshot().stages[1].pid, signal.SIGSTOP)
            futures.extend(pipe.submit(x) for x in images(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve()
    assert len(futures) == 3
    for future in futures:
        with pytest.raises(odin.OdinError):
            future.result(PROMPT_S)


def test_one_stage_on_several_cores(two_cores, chain):
    cores = usable_cores()[:2]
    if cores[1] != cores[0] + 1:
        pytest.skip("a range needs neighbouring cores")
    with odin.Pipeline(chain, stages=f"cpu:{cores[0]}-{cores[1]}") as pipe:
        assert pipe.plan == (len(chain.layers),)
        assert torch.allclose(pipe(images(1)[0]), chain(images(1)[0]), rtol=1e-4, atol=1e-5)
        assert os.sched_getaffinity(pipe.snapshot().stages[0].pid) == set(cores)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["cpu:4000"], "no usable core 4000 .* usable cores: 0"),
        (["cpu:x"], "'cpu:x' is not a device"),
        ("cpu:0,cpu:0", "two stages are on cpu:0"),
        (["mars/cpu:0"], "'mars' names no node of the cluster"),
        (["cpu:0"] * 60, "60 stages for"),
        ([], "at least one stage"),
    ],
)
def test_devices_that_do_not_exist_are_refused_with_what_does(ray_session, chain, stages, message):
    with pytest.raises(odin.DeviceError, match=message):
        odin.Pipeline(chain, stages=stages, share_devices=len(stages) == 60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused(ray_session, chain):
    with pytest.raises(odin.DeviceError, match=r"there is no gpu:0 on this node; it has no CUDA device"):
        odin.Pipeline(chain, stages=["gpu:0"], share_devices=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "precision 'int3' is unknown"),
        ({"transport": "pigeon"}, "transport 'pigeon' is unknown"),
        ({"batch": 0}, "batch=0"),
        ({"plan": "1|2|3"}, "spreads 6 layers"),
        ({"address": "127.0.0.1:1"}, "connected to a Ray cluster already"),
    ],
)
def test_wrong_options_are_refused(ray_session, chain, options, message):
    with pytest.raises(ValueError, match=message):
        odin.Pipeline(chain, **options)


class SlowAtFirst(nn.Module):
    """As one with a layer that is compiled in each process when it is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(operators_for_stages.slow_at_first(self.first(x)).relu())


def test_stages_are_warm_before_they_take_part(two_cores):
    # A stage that loaded PyTorch's compiler for its first request was held to hang, as was the next one on the same
    # request, which failed as if it had been the cause; and so every stage that replaced them.
    torch.manual_seed(0)
    back, hung = threading.Event(), []

    def note(event: Event) -> None:
        if isinstance(event, StageLost) and event.hangs:
            hung.append(event)
        elif isinstance(event, StageBack):
            back.set()

    chain = odin.build_chain(SlowAtFirst().eval(), (torch.zeros(1, 3, 32, 32),), name="slow at first")
    with odin.Pipeline(chain, stages=two_cores, on_event=note) as pipe:
        inputs = images(20)
        expected = list(pipe.map(inputs))
        os.kill(pipe.snapshot().stages[1].pid, signal.SIGKILL)
        assert all(torch.equal(y, before) for y, before in zip(pipe.map(inputs), expected, strict=True))
        assert back.wait(PROMPT_S)
        assert all(torch.equal(y, before) for y, before in zip(pipe.map(inputs), expected, strict=True))
    assert hung == []
