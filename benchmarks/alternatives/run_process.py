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
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load

__all__ = ["ALTERNATIVES", "REPLICAS", "Figures", "Settings", "main"]

# Name -> module and function: each run imports its own alternative only, so that memory is compared fairly.
ALTERNATIVES = {
    "odin": ("odin_lab.live.pipeline_server", "default_pipeline"),
    "odin-onnxruntime": ("odin_lab.live.pipeline_server", "onnxruntime_pipeline"),
    "replicas-onnxruntime": ("benchmarks.alternatives.replica_pair", "replica_pair"),
    "replicas-openvino": ("benchmarks.alternatives.replica_pair", "replica_pair"),
    "torch-eager": ("odin_lab.live.torch_process", "torch_eager"),
    "torch-folded": ("odin_lab.live.torch_process", "torch_folded"),
    "ray-serve": ("odin_lab.live.ray_serve", "ray_serve"),
    "torch-pipelining": ("benchmarks.alternatives.torch_pipelining", "torch_pipelining"),
}
REPLICAS = {"replicas-onnxruntime": "onnxruntime", "replicas-openvino": "openvino"}
"""Of those, which runtime: it is given the model as the benchmark has exported it."""
TOLERANCE = 1e-3  # of the largest output
_REACTION = 10
"""Requests after the load's arrival that are not measured."""


@dataclass(frozen=True)
class Settings:
    """What to measure: the model, the cores, how many images at a time, and what is put beside them in the end."""

    model: str
    weights: str
    cores: tuple[int, int]
    plan: str
    in_flight: int
    count: int
    alone_count: int
    warmup: int
    load: str


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
    disturbed_hz, disturbed_p99_s
        Images per second and latency, ``in_flight`` at a time, beside the load; from the 10th image after its arrival.
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
    disturbed_hz: float
    disturbed_p99_s: float
    memory_nbytes: int
    model_nbytes: int
    plan: str


def load_alternative(name: str, folder: Path) -> Callable[[Setup], AbstractContextManager[Alternative]]:
    """The function that starts an alternative."""
    module, function = ALTERNATIVES[name]
    start = getattr(importlib.import_module(module), function)
    if name in REPLICAS:
        start = partial(start, runtime=REPLICAS[name], folder=folder)
    return start if name == "torch-pipelining" else partial(serving, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one alternative and write its :class:`Figures`."""
    name, folder = argv or sys.argv[1:]
    directory = Path(folder)
    settings = Settings(**json.loads((directory / "task.json").read_text(encoding="utf-8")))
    images, expected = np.load(directory / "images.npy"), np.load(directory / "expected.npy")
    cores = (settings.cores[0], settings.cores[1])
    weights = Path(settings.weights) if settings.weights else None
    setup = Setup(settings.model, weights, cores, images, settings.plan, settings.in_flight)
    with load_alternative(name, directory)(setup) as alternative:
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
        memory = pss_nbytes({*here, *alternative.worker_pids}), pss_nbytes({here[0], *alternative.worker_pids})
        with Injector() as injector:
            injector.start(Load.parse(settings.load))
            disturbed = alternative.loop(
                count=settings.count, in_flight=settings.in_flight, warmup=max(_REACTION, settings.in_flight)
            )
        figures = Figures(
            throughput_hz=loaded.throughput_hz,
            loaded_p50_s=loaded.p50_s,
            loaded_p99_s=loaded.p99_s,
            alone_p50_s=alone.p50_s,
            alone_p99_s=alone.p99_s,
            disturbed_hz=disturbed.throughput_hz,
            disturbed_p99_s=disturbed.p99_s,
            memory_nbytes=memory[0],
            model_nbytes=memory[1],
            plan=alternative.plan,
        )
    (directory / f"{name}.json").write_text(json.dumps(asdict(figures)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
