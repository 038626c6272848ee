"""ODIN: a stage on each core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from odin.monitor.events import Event
from odin_lab.live.server import Array, Server, Setup

__all__ = ["default_pipeline", "onnxruntime_pipeline", "pipeline"]


@contextmanager
def pipeline(
    setup: Setup,
    *,
    policy: str,
    engine: str = "torch",
    log: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Iterator[Server]:
    """A pipeline with an embedded Ray, at the plan it finds or is given, under a policy."""
    import odin

    images = [torch.from_numpy(setup.images[row : row + 1]) for row in range(len(setup.images))]
    with odin.Pipeline(
        setup.model,
        stages=[f"cpu:{core}" for core in setup.cores],
        weights=setup.weights,
        plan=setup.plan or None,
        policy=policy,
        engine=engine,
        log=log,
        on_event=on_event,
        max_in_flight=setup.in_flight,
    ) as pipe:

        def submit(index: int) -> Future[object]:
            return pipe.submit(images[index % len(images)])

        def infer(image: Array) -> Array:
            return np.asarray(pipe(torch.from_numpy(image)).numpy(), dtype=np.float32)

        pids = tuple(stage.pid for stage in pipe.view().stages)
        yield Server(infer, submit, pids, str(pipe.plan), pipe.note_load)


@contextmanager
def default_pipeline(setup: Setup) -> Iterator[Server]:
    """The pipeline as it comes; the relay needs no cut."""
    with pipeline(setup._replace(plan=""), policy="relay") as server:
        yield server


@contextmanager
def onnxruntime_pipeline(setup: Setup) -> Iterator[Server]:
    """The same with ONNX Runtime's kernels."""
    with pipeline(setup._replace(plan=""), policy="relay", engine="onnxruntime") as server:
        yield server
