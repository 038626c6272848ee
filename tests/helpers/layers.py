"""Layers for tests of executors and loops: a small real CNN as a chain, and layers that misbehave on demand."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import nn

from odin.partitioner.chain import Chain, build_chain
from odin.stages.compute.executor import Result, Values
from odin.stages.compute.torch_cpu import CpuExecutor


@functools.cache
def small_chain() -> Chain:
    torch.manual_seed(0)
    channels = (3, 8, 8, 16, 16, 8)
    convs = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in itertools.pairwise(channels)
    ]
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    return build_chain(model, (torch.zeros(1, 3, 12, 12),), name="small", minimum_share=0.0)


SLOT_NBYTES = 32 * 2**10
"""Enough for every cut of the small chain."""


def images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [small_chain().layout((torch.randn(1, 3, 12, 12, generator=generator),))[0] for _ in range(count)]


class FakeLayer(NamedTuple):
    """A layer that calls a function on its one tensor."""

    name: str
    function: Callable[[torch.Tensor], torch.Tensor]
    state_names: tuple[str, ...] = ()

    def bind(self, state: Mapping[str, torch.Tensor]) -> Callable[[Values], Values]:
        return lambda values: (self.function(values[0]),)


class OverlapExecutor(CpuExecutor):
    """As on a GPU, ``launch`` returns at once and the work is done by somebody else, in order."""

    overlaps = True
    looks_between_layers = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._worker = ThreadPoolExecutor(1)

    def launch(
        self,
        first: int,
        last: int,
        values: Values,
        *,
        keep_nan: bool = False,
        at_cut: Callable[[int, float], bool] | None = None,
    ) -> Any:
        return self._worker.submit(super().launch, first, last, values, keep_nan=keep_nan)

    def finish(self, ticket: Future[Result]) -> Result:
        return ticket.result()
