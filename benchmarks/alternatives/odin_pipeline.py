"""ODIN: two stages of one core each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.alternatives.contender import Array, Contender, Setup, from_submit

__all__ = ["odin_pipeline"]


@contextmanager
def odin_pipeline(setup: Setup) -> Iterator[Contender]:
    """A pipeline with an embedded Ray, at the plan it finds or is given."""
    import odin

    images = [torch.from_numpy(setup.images[row : row + 1]) for row in range(len(setup.images))]
    stages = [f"cpu:{core}" for core in setup.cores]
    with odin.Pipeline(
        setup.model,
        stages=stages,
        weights=setup.weights,
        plan=setup.plan or None,
        max_in_flight=setup.in_flight,
    ) as pipe:

        def submit(index: int) -> Future[object]:
            return pipe.submit(images[index % len(images)])

        def infer(image: Array) -> Array:
            return np.asarray(pipe(torch.from_numpy(image)).numpy(), dtype=np.float32)

        pids = tuple(stage.pid for stage in pipe.snapshot().stages)
        yield Contender(infer, from_submit(submit), pids, str(pipe.plan))
