"""Dynamic batching of a whole pipeline: rows of the joined batch, bit for bit, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
import torch
from example_models import seeded
from small_pipelines import images, small_chain

import odin
from odin.options import check_joins, check_options


@pytest.mark.ray
def test_each_sample_is_what_the_chain_makes_of_the_joined_batch(ray_session: None):
    chain, inputs = small_chain(), images(24)

    async def ask(pipe: odin.Pipeline) -> list[torch.Tensor]:
        return await asyncio.gather(*(pipe.asubmit(image) for image in inputs))

    events: list[odin.monitor.events.Event] = []
    with odin.Pipeline(
        chain, stages=["cpu:0", "cpu:0"], share_devices=True, batch=4, dynamic_batching=True, on_event=events.append
    ) as pipe:
        assert pipe.largest_batch == 4
        outputs = asyncio.run(ask(pipe))
        sizes = [timeline.samples for timeline in pipe.timelines()]
        assert sum(sizes) == 24
        assert max(sizes) == 4
        assert pipe.view().completed == 24
        alone = [pipe(image) for image in inputs[:2]]
        with pytest.raises(ValueError, match="largest_batch=5; it must be at least 1 and at most 4"):
            pipe.largest_batch = 5
        pipe.largest_batch = 1
        again = asyncio.run(ask(pipe))
        assert {timeline.samples for timeline in pipe.timelines()[-20:]} == {1}
        pipe.largest_batch, before = 4, len(pipe.timelines())
        mapped = list(pipe.map(inputs))  # one thread, which reads ahead as many as are joined
        assert max(timeline.samples for timeline in pipe.timelines()[before:]) == 4
    with pytest.raises(odin.PipelineClosedError):
        pipe.largest_batch = 2
    with torch.inference_mode():
        by_size = [
            [chain.run(chain.layout((torch.cat([image] * size),)))[0][:1] for size in (1, 2, 3, 4)] for image in inputs
        ]
    for output, known in zip((*outputs, *mapped), (*by_size, *by_size), strict=True):
        assert any(torch.equal(output, one) for one in known)
    for output, known in zip((*alone, *again), (*by_size[:2], *by_size), strict=True):
        assert torch.equal(output, known[0])


def test_what_cannot_be_joined_is_refused():
    class Frames(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(dim=0, keepdim=True)

    frames = odin.build_chain(seeded(Frames), (torch.zeros(4, 3, 8, 8),), name="frames")
    with pytest.raises(ValueError, match="samples of frames depend on each other"):
        check_joins(frames, 4)
    with pytest.raises(ValueError, match="batch is 1: give a larger one"):
        check_joins(small_chain(), 1)
    with pytest.raises(ValueError, match="batch is 1: give a larger one"):
        check_options(dynamic_batching=True, batch=1)


@pytest.mark.parametrize("wait_ms", [-1.0, float("nan"), float("inf"), "5", True, 10**400])
def test_a_wait_is_a_time(wait_ms: object):
    with pytest.raises(ValueError, match="give milliseconds, 0 or more"):
        check_options(dynamic_batching=True, batch=4, batch_wait_ms=wait_ms)  # type: ignore[arg-type]


def test_a_wait_without_joining_is_refused():
    with pytest.raises(ValueError, match="set dynamic_batching=True as well"):
        check_options(batch_wait_ms=5.0)


@pytest.mark.parametrize("given", ["false", None, 2, []])
def test_joining_is_on_or_off(given: object):
    with pytest.raises(ValueError, match=r"dynamic_batching=.* is neither True nor False"):
        check_options(dynamic_batching=given, batch=4)  # type: ignore[arg-type]
