"""One alternative, measured once, in a process of its own that leaves nothing behind for the next.

``python -m benchmarks.alternatives.run_process ALTERNATIVE FOLDER``: reads ``task.json`` and the images there, writes
``ALTERNATIVE.json``.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.alternatives.alternative import Alternative, Setup, serving
from benchmarks.common import process_tree, pss_nbytes, release_memory

__all__ = ["ALTERNATIVES", "Figures", "Settings", "main"]

# Name -> module and function: each run imports its own alternative only, so that memory is compared fairly.
ALTERNATIVES = {
    "odin": ("odin_lab.live.pipeline_server", "default_pipeline"),
    "torch-eager": ("odin_lab.live.torch_process", "torch_eager"),
    "torch-folded": ("odin_lab.live.torch_process", "torch_folded"),
    "ray-serve": ("odin_lab.live.ray_serve", "ray_serve"),
    "torch-pipelining": ("benchmarks.alternatives.torch_pipelining", "torch_pipelining"),
}
TOLERANCE = 1e-3  # of the largest output


@dataclass(frozen=True)
class Settings:
    """What to measure: the model, the cores, and how many images at what load."""

    model: str
    weights: str
    cores: tuple[int, int]
    plan: str
    in_flight: int
    count: int
    alone_count: int
    warmup: int


@dataclass(frozen=True)
class Figures:
    """One alternative's figures of one round.

    Attributes
    ----------
    throughput_hz
        Images per second, ``in_flight`` at a time.
    loaded_p50_s, loaded_p99_s
        Latency at that load.
    alone_p50_s, alone_p99_s
        Latency of one image at a time.
    memory_nbytes
        PSS of this process and everything it started, Ray's own processes included.
    model_nbytes
        PSS of this process and those that hold the model only.
    plan
        The cut, if it is cut.
    """

    throughput_hz: float
    loaded_p50_s: float
    loaded_p99_s: float
    alone_p50_s: float
    alone_p99_s: float
    memory_nbytes: int
    model_nbytes: int
    plan: str


def load_alternative(name: str) -> Callable[[Setup], AbstractContextManager[Alternative]]:
    """The function that starts an alternative."""
    module, function = ALTERNATIVES[name]
    start = getattr(importlib.import_module(module), function)
    return start if module.startswith("benchmarks.") else partial(serving, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one alternative and write its :class:`Figures`."""
    name, folder = argv or sys.argv[1:]
    directory = Path(folder)
    settings = Settings(**json.loads((directory / "task.json").read_text(encoding="utf-8")))
    images, expected = np.load(directory / "images.npy"), np.load(directory / "expected.npy")
    cores = (settings.cores[0], settings.cores[1])
    weights = Path(settings.weights) if settings.weights else None
    setup = Setup(settings.model, weights, cores, images, settings.plan, settings.in_flight)
    with load_alternative(name)(setup) as alternative:
        for row in range(len(images)):
            error = np.abs(alternative.infer(images[row : row + 1]) - expected[row]).max() / np.abs(expected[row]).max()
            if not error <= TOLERANCE:  # NaN is wrong as well
                raise RuntimeError(f"{name} computes something else: off by {error:.1e} of the largest output")
        loaded = alternative.loop(
            count=settings.count, in_flight=settings.in_flight, warmup=max(settings.warmup, settings.in_flight)
        )
        alone = alternative.loop(count=settings.alone_count, in_flight=1, warmup=settings.warmup)
        release_memory()
        here = process_tree()
        figures = Figures(
            throughput_hz=loaded.throughput_hz,
            loaded_p50_s=loaded.p50_s,
            loaded_p99_s=loaded.p99_s,
            alone_p50_s=alone.p50_s,
            alone_p99_s=alone.p99_s,
            memory_nbytes=pss_nbytes({*here, *alternative.worker_pids}),
            model_nbytes=pss_nbytes({here[0], *alternative.worker_pids}),
            plan=alternative.plan,
        )
    (directory / f"{name}.json").write_text(json.dumps(asdict(figures)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
