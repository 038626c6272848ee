"""What seeing everything costs: the stages' own timings, and controller, view and event log in the gateway's process.

Stages: a stage's executor, its record and the record's decoding, against a bare loop over the same layers. Gateway:
throughput with and without controller (``filter``), view and log, in turns within one pipeline; and the CPU time
of the controller's thread, which includes view and log. ``python -m benchmarks.telemetry``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    paired_ratio,
    pinned,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from benchmarks.feeding import Feeder, KeptEvents
from odin.monitor.events import RequestDone
from odin.monitor.timing import RequestTimeline, StageTiming, unpack_timings
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.device import usable_cores

MODELS = ("resnet50", "mobilenet_v2")


class Gateway(NamedTuple):
    """A stretch of a live pipeline."""

    throughput_hz: float
    controller_share: float


def stage_side(model: str, rounds: int, count: int, seed: int) -> dict[str, list[float]]:
    """Seconds per request of one stage that has the whole chain, with and without telemetry."""
    source = odin.load_source(model)
    chain = odin.build_chain(source.torch_model, source.example_args, name=model)
    state = chain.program.pack(chain.state, batch=1)
    layers: Any = chain.program.layers
    functions = [layer.bind(state) for layer in layers]
    executor = CpuExecutor(layers, state)
    values = chain.layout(chain.pack(source.example_args))
    last = len(functions)

    def bare() -> None:
        current = values
        with torch.inference_mode():
            for function in functions:
                current = function(current)

    def timed() -> None:
        result = executor.finish(executor.launch(0, last, values))
        record = StageTiming(0, 0, last, 0.0, result.wall_s, result.cpu_s, result.run_delay_s, 0.0, result.layer_s)
        unpack_timings(record.pack())

    def mean_s(call: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            begin_s = time.perf_counter()
            for _ in range(count):
                call()
            return (time.perf_counter() - begin_s) / count

        return measure

    with pinned(usable_cores()[:1]):
        return interleave({"bare": mean_s(bare), "timed": mean_s(timed)}, rounds=rounds, seed=seed)


def gateway_side(model: str, rounds: int, seconds: float, seed: int, folder: Path) -> dict[str, list[Gateway]]:
    """Throughput of a pipeline with and without everything that looks at its requests."""
    recorder = KeptEvents()
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    with odin.Pipeline(model, stages=stages, log=folder / f"{model}.jsonl") as pipe:
        gateway = pipe._gateway
        assert gateway is not None
        seen = gateway._outcomes.on_result
        assert seen is not None
        (thread,) = [t for t in threading.enumerate() if t.name == "odin-controller"]

        def stretch(watched: bool) -> Gateway:
            # What is left of the pipeline without a controller: the gateway, and a count of requests.
            gateway._outcomes.on_result = seen_and_counted if watched else count
            feeder.wait(8)
            begin, begin_s, cpu_s = recorder.finished, time.perf_counter(), thread_cpu_s(thread)
            feeder.wait_until(lambda: time.perf_counter() - begin_s >= seconds)
            share = (thread_cpu_s(thread) - cpu_s) / (time.perf_counter() - begin_s)
            return Gateway(recorder.throughput_hz(begin), share)

        def count(timeline: RequestTimeline) -> None:
            recorder(RequestDone(timeline.completed_s, timeline))

        def seen_and_counted(timeline: RequestTimeline) -> None:
            seen(timeline)
            count(timeline)

        gateway._outcomes.on_result = count
        with Feeder(pipe, torch.randn(1, 3, 224, 224), recorder) as feeder:
            candidates = {"without": lambda: stretch(False), "with": lambda: stretch(True)}
            kept = interleave(candidates, rounds=rounds, seed=seed)
        gateway._outcomes.on_result = seen
    return kept


def thread_cpu_s(thread: threading.Thread) -> float:
    """CPU seconds that a thread of this process has used (Linux ``schedstat``)."""
    text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
    return int(text.split()[0]) * 1e-9


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=9)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--count", type=int, default=20, help="requests per round and side (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each live stretch (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.count, arguments.seconds = 2, 4, 2.0
    environment = Environment.collect()
    torch.set_num_threads(1)
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            stage = stage_side(model, arguments.rounds, arguments.count, arguments.seed)
            live = gateway_side(model, arguments.rounds, arguments.seconds, arguments.seed, Path(folder))
            results[model] = {"stage_s": stage, "gateway": live}
            with_hz, without_hz = ([g.throughput_hz for g in live[name]] for name in ("with", "without"))
            rows.append(
                [
                    model,
                    f"{summarize(stage['bare']).median * 1e3:.2f}",
                    with_quartiles(paired_ratio(stage["timed"], stage["bare"]), lambda value: f"{value:.4f}"),
                    with_quartiles(summarize(without_hz), lambda value: f"{value:.2f}"),
                    with_quartiles(paired_ratio(with_hz, without_hz), lambda value: f"{value:.4f}"),
                    with_quartiles(summarize([g.controller_share for g in live["with"]]), lambda v: f"{v:.2%}"),
                ]
            )
    report(
        "What telemetry costs; target: below 1% of throughput, and below 1% of a core for the controller",
        ["", "bare stage ms", "timed / bare", "images/s without", "with / without", "controller, of a core"],
        rows,
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
