"""One torch process with a thread for each core, as it comes and prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from odin.stages.device import bind_threads
from odin_lab.live.plain_models import eager_model, folded_model
from odin_lab.live.server import Array, Server, Setup

__all__ = ["torch_eager", "torch_folded"]


@contextmanager
def torch_eager(setup: Setup) -> Iterator[Server]:
    """The model as it comes."""
    with serving(setup, eager_model(setup.model, setup.weights)) as server:
        yield server


@contextmanager
def torch_folded(setup: Setup) -> Iterator[Server]:
    """Folded and channels last."""
    with serving(setup, folded_model(setup.model, setup.weights)) as server:
        yield server


@contextmanager
def serving(setup: Setup, infer: Callable[[Array], Array]) -> Iterator[Server]:
    """One thread that takes requests in turn, its pool with a thread for each core."""
    if torch.get_num_threads() != len(setup.cores):
        # torch.set_num_threads would hold for this thread alone, not for the one that computes.
        raise RuntimeError(
            f"torch has {torch.get_num_threads()} threads: start with OMP_NUM_THREADS={len(setup.cores)}"
        )
    with ThreadPoolExecutor(1) as executor:

        def submit(index: int) -> Future[object]:
            row = index % len(setup.images)
            return executor.submit(infer, setup.images[row : row + 1])

        submit(0).result()  # makes the pool's threads
        bind_threads(setup.cores)
        yield Server(lambda image: executor.submit(infer, image).result(), submit, ())
