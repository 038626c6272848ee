"""What a user would pick first: a pinned process with the whole model on each core, fed from one queue."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.replicas import Replicas
from odin_lab.live.server import Array, Server, Setup

__all__ = ["replica_pair"]


@contextmanager
def replica_pair(setup: Setup, *, runtime: str, folder: Path) -> Iterator[Server]:
    """Start them on the model that has been exported to ``folder``, see :mod:`benchmarks.replicas`."""
    with Replicas(setup.model, setup.cores, runtime=runtime, in_flight=setup.in_flight, folder=folder) as replicas:

        def submit(index: int) -> Future[object]:
            row = index % len(setup.images)
            return replicas.submit(setup.images[row : row + 1])  # type: ignore[return-value]

        def infer(image: Array) -> Array:
            return np.asarray(replicas.submit(image).result()[0], dtype=np.float32)

        yield Server(infer, submit, replicas.pids)
