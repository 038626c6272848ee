"""What the GPU path does on a real GPU: right answers, speed, moves of weights under load, a neighbour on the card.

A check rather than a comparison: each section runs by itself, a failure is recorded with its traceback and the next one
goes on, and the file is written anew after each, so that a machine that is lent for minutes teaches the most it can.
``scripts/gpu_check.sh`` runs the tests marked ``gpu`` first, then this. ``python -m benchmarks.gpu --output gpu.json``
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import odin
from benchmarks.common import Environment, plain
from odin.cluster.ray_runtime import RayRuntime
from odin.models.sources import load_source
from odin.monitor.events import Attributed, Event, Fault, MoveFailed, PlanChanged, SlowdownChanged
from odin.monitor.machine.nvml import gpu_processes
from odin.stages.compute.cuda import PRECISIONS as EXECUTOR_PRECISIONS
from odin.stages.compute.cuda import CudaExecutor, use_precision
from odin.stages.device import Device
from odin_lab.inject import Injector, Load

SEED = 5
PRECISIONS = ("float32", "tf32", "float16")
LAYOUTS = [
    (("gpu:0",), "float16", 1),
    (("gpu:0",), "float32", 1),
    (("cpu:0", "gpu:0", "cpu:1"), "float16", 1),
    (("gpu:0", "gpu:0"), "float16", 1),
    (("cpu:0", "gpu:0"), "float32", 1),
    (("gpu:0",), "float16", 16),
    (("gpu:0",), "float32", 16),
    (("gpu:0", "gpu:0"), "float32", 1),
    (("gpu:0", "cpu:0"), "float32", 1),
]


class Check:
    """Runs the sections within a time budget and keeps what each found."""

    def __init__(self, output: Path | None, budget_s: float) -> None:
        self.output = output
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []
        self._end_s = time.monotonic() + budget_s
        self.environment = Environment.collect()

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._end_s - time.monotonic()

    def section(self, name: str, body: Callable[[dict[str, Any]], None], *, needs_s: float) -> None:
        """Run one section, unless too little of the budget is left for it."""
        found: dict[str, Any] = {}
        self.found[name] = found
        begin_s = time.monotonic()
        if self.left_s < needs_s:
            found["skipped"] = f"needs {needs_s:.0f} s, and {self.left_s:.0f} s are left"
        else:
            try:
                body(found)
            except Exception:
                found["error"] = traceback.format_exc()
                self.failed.append(name)
        found["took_s"] = round(time.monotonic() - begin_s, 1)
        print(f"== {name}\n{json.dumps(plain(found), indent=1)}", flush=True)
        if self.output is not None:
            content = {"environment": plain(self.environment), "failed": self.failed, "found": plain(self.found)}
            self.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- helpers
def model_of(name: str) -> torch.nn.Module:
    """A built-in model with the weights that a pipeline of this name has."""
    model = load_source(name).model
    assert isinstance(model, torch.nn.Module)
    return model


def image(batch: int = 1) -> torch.Tensor:
    """Normal numbers in the shape of an image, the same each time."""
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))


def error_of(answer: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    """Largest difference over the largest magnitude, and whether the same class is first."""
    scale = float(expected.abs().max())
    return {
        "relative_error": float((answer.double() - expected.double()).abs().max()) / scale,
        "same_first": bool((answer.argmax(1) == expected.argmax(1)).all()),
        "dtype": str(answer.dtype),
    }


def median_s(call: Callable[[], object], *, count: int, warmup: int = 5) -> float:
    """Median seconds of a call that ends with the GPU idle."""
    times = []
    for number in range(-warmup, count):
        begin_s = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if number >= 0:
            times.append(time.perf_counter() - begin_s)
    return statistics.median(times)


def stage_medians(pipe: odin.Pipeline, last: int) -> list[dict[str, Any]]:
    """What the last requests took in each stage, milliseconds."""
    timelines = pipe.timelines()[-last:]
    rows = []
    for stage in range(len(pipe.devices)):
        kept = [timeline.stages[stage] for timeline in timelines]
        row: dict[str, Any] = {"device": str(pipe.devices[stage]), "layers": kept[-1].last - kept[-1].first}
        for name in ("queue_s", "wall_s", "cpu_s", "transfer_s"):
            row[name.replace("_s", "_ms")] = round(statistics.median(getattr(t, name) for t in kept) * 1e3, 3)
        rows.append(row)
    return rows


def rate(pipe: odin.Pipeline, x: torch.Tensor, count: int) -> dict[str, Any]:
    """Stream ``count`` requests: images per second, latency, the stages' own times, efficiency."""
    for _ in pipe.map(x for _ in range(max(8, count // 5))):
        pass
    for _ in pipe.map(x for _ in range(count)):
        pass
    timelines = pipe.timelines()[-(count - pipe.max_in_flight) :]
    throughput_hz = (len(timelines) - 1) / (timelines[-1].completed_s - timelines[0].completed_s)
    slowest_s = max(
        statistics.mean(timeline.stages[stage].wall_s for timeline in timelines) for stage in range(len(pipe.devices))
    )
    alone = []
    for _ in range(10):
        begin_s = time.perf_counter()
        pipe(x)
        alone.append(time.perf_counter() - begin_s)
    return {
        "images_per_s": round(throughput_hz * x.shape[0], 1),
        "efficiency": round(throughput_hz * slowest_s, 3),
        "latency_p50_ms": round(statistics.median(t.latency_s for t in timelines) * 1e3, 2),
        "alone_ms": round(statistics.median(alone) * 1e3, 2),
        "stages": stage_medians(pipe, count // 2),
    }


def used_mib() -> int:
    """MiB of the GPU that are in use by whomever."""
    free, total = torch.cuda.mem_get_info(0)
    return (total - free) // 2**20


@contextlib.contextmanager
def streaming(pipe: odin.Pipeline, x: torch.Tensor, answers: list[torch.Tensor]) -> Iterator[None]:
    """Keep requests in flight meanwhile, and collect every answer; the first failure is raised at the end."""
    stop, failures = threading.Event(), []

    def feed() -> None:
        try:
            answers.extend(pipe.map(x for _ in iter(stop.is_set, True)))
        except Exception as error:
            failures.append(error)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join(60)
    if failures:
        raise failures[0]


def told(events: Sequence[Event]) -> list[str]:
    """Events that matter here, as text."""
    kinds = (SlowdownChanged, Attributed, PlanChanged, MoveFailed, Fault)
    return [str(event) for event in events if isinstance(event, kinds)]


# ---------------------------------------------------------------- sections
def look(found: dict[str, Any]) -> None:
    """What the machine says of itself."""
    properties = torch.cuda.get_device_properties(0)
    found |= {
        "torch": torch.__version__,
        "gpu": properties.name,
        "uuid": str(properties.uuid),
        "capability": f"{properties.major}.{properties.minor}",
        "count": torch.cuda.device_count(),
        "used_mib_before_context": used_mib(),
    }
    torch.zeros(1, device="cuda")
    found["used_mib"] = used_mib()
    report = gpu_processes(f"GPU-{properties.uuid}", [os.getpid()])
    found["nvml"] = {"processes": report.processes, "note": report.note}
    found["nvml_without_own"] = gpu_processes(0, [])


def executor(found: dict[str, Any], models: Sequence[str]) -> None:
    """The chain on the GPU in this process: error against float64, beside PyTorch's own call, layer times."""
    for name in models:
        module = model_of(name)
        x = image()
        exact = copy.deepcopy(module).double()(x.double()).detach()
        chain = odin.build_chain(module, (x,))
        (on_cpu,) = chain.run((x,))
        found[name] = {"layers": len(chain.layers), "cpu": error_of(on_cpu, exact)} | {
            precision: beside_eager(module, chain, x, exact, precision) for precision in PRECISIONS
        }


def beside_eager(
    module: torch.nn.Module, chain: odin.Chain, x: torch.Tensor, exact: torch.Tensor, precision: str
) -> dict[str, Any]:
    """One precision: answers, repeatability, and times beside the eager module's."""
    use_precision(precision)
    dtype = EXECUTOR_PRECISIONS[precision]
    eager = copy.deepcopy(module).to("cuda", dtype)
    runner = CudaExecutor(chain.program.layers, chain.state, index=0, precision=precision)
    layers = len(chain.layers)
    begin_s = time.perf_counter()
    runner.prepare(0, layers)
    prepare_s = time.perf_counter() - begin_s

    def ours(x: torch.Tensor) -> Any:
        return runner.finish(runner.launch(0, layers, (x,)))

    found: dict[str, Any] = {"prepare_s": round(prepare_s, 3)}
    with torch.inference_mode():
        first = ours(x).values[0].cpu()
        with runner.calibrating():  # captures all layers
            layer_s = [ours(x).layer_s for _ in range(5)][-1]
        found["layer_ms"] = [round(t * 1e3, 3) for t in layer_s]
        answers = [ours(x).values[0].cpu() for _ in range(3)]
        found["error"] = error_of(first, exact)
        found["error_of_eager"] = error_of(eager(x.to("cuda", dtype)).float().cpu(), exact)
        found["same_bits_each_time"] = all(torch.equal(first, answer) for answer in answers)
        for batch in (1, 8, 32):
            host = image(batch)
            moved = host.to("cuda", dtype)
            times: dict[str, list[float]] = {"eager": [], "ours": [], "ours, input on the GPU": []}
            for _ in range(5):
                times["eager"].append(median_s(lambda moved=moved: eager(moved), count=10))  # type: ignore[misc]
                times["ours"].append(median_s(lambda host=host: ours(host), count=10))  # type: ignore[misc]
                times["ours, input on the GPU"].append(
                    median_s(lambda moved=moved: ours(moved), count=10)  # type: ignore[misc]
                )
            found[f"batch {batch}"] = {name: round(statistics.median(kept) * 1e3, 3) for name, kept in times.items()}
            result = ours(host)
            found[f"batch {batch}"] |= {"wall": result.wall_s * 1e3, "between events": result.cpu_s * 1e3}
        found["captured as a CUDA graph, ms"] = graph_ms(eager, x.to("cuda", dtype))
    found["peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
    found["not captured"] = runner.refused
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


def graph_ms(eager: torch.nn.Module, x: torch.Tensor) -> Any:
    """What the eager module takes as one CUDA graph, without a launch per kernel; why not, if it cannot be one."""
    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                eager(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager(x)
        return round(median_s(graph.replay, count=20) * 1e3, 3)
    except RuntimeError as error:
        return str(error)


def pipelines(found: dict[str, Any], check: Check, models: Sequence[str]) -> None:
    """Pipelines with GPU stages: answers, images/s, what each stage and hop takes."""
    for name in models:
        x = image()
        with torch.inference_mode():
            expected = model_of(name)(x)
        for stages, precision, batch in LAYOUTS:
            key = f"{name} {','.join(stages)} {precision} batch {batch}"
            here: dict[str, Any] = {}
            found[key] = here
            if check.left_s < 20:
                here["skipped"] = "too little time is left"
                continue
            try:
                begin_s = time.perf_counter()
                with odin.Pipeline(
                    name, stages=stages, batch=batch, precision=precision, share_devices=True, policy="static"
                ) as pipe:
                    here["start_s"] = round(time.perf_counter() - begin_s, 1)
                    here["plan"] = str(pipe.plan)
                    here |= error_of(pipe(x), expected)
                    here |= rate(pipe, image(batch), 200)
                    begin_s = time.perf_counter()
                here["close_s"] = round(time.perf_counter() - begin_s, 2)
            except Exception:
                here["error"] = traceback.format_exc()


def moves(found: dict[str, Any]) -> None:
    """Layers move between CPU and GPU, and between two stages of one GPU, while requests flow: nothing is lost."""
    x = image()
    with torch.inference_mode():
        expected = model_of("resnet50")(x)
    for stages in (("cpu:0", "gpu:0"), ("gpu:0", "gpu:0")):
        here: dict[str, Any] = {}
        found[",".join(stages)] = here
        answers: list[torch.Tensor] = []
        with odin.Pipeline("resnet50", stages=stages, share_devices=True, policy="static", plan="9|9") as pipe:
            pipe(x)
            took, used = [], []
            with streaming(pipe, x, answers):
                for plan in ("4|14", "14|4", "0|18", "18|0", "9|9") * 3:
                    begin_s = time.perf_counter()
                    pipe.migrate(plan)
                    took.append(time.perf_counter() - begin_s)
                    time.sleep(0.15)
                    used.append(used_mib())
            here["moves"] = len(took)
            here["migrate_ms"] = [round(t * 1e3, 1) for t in took]
            here["used_mib"] = used
            here["answers"] = len(answers)
            here["wrong"] = sum(not torch.allclose(answer, expected, atol=1e-3, rtol=1e-3) for answer in answers)
            here["worst"] = max(error_of(answer, expected)["relative_error"] for answer in answers)


def neighbour(found: dict[str, Any], kind: str, stages: tuple[str, ...]) -> None:
    """Another program computes on the card: is it seen, by what name, do layers move, does it come back."""
    x = image()
    events: list[Event] = []
    with (
        odin.Pipeline("resnet50", stages=stages, share_devices=True, on_event=events.append) as pipe,
        Injector() as injector,
    ):
        found["plan"] = str(pipe.plan)
        answers: list[torch.Tensor] = []
        with streaming(pipe, x, answers):
            for phase in ("before", "beside", "after"):
                handle = injector.start(Load(kind, Device("gpu", (0,)))) if phase == "beside" else None
                if handle is not None:
                    found["load"] = handle.description
                time.sleep(1.5)
                begin, begin_s = len(answers), time.perf_counter()
                time.sleep(4.0)
                found[phase] = {
                    "images_per_s": round((len(answers) - begin) / (time.perf_counter() - begin_s), 1),
                    "plan": str(pipe.plan),
                    "stages": stage_medians(pipe, 40),
                    "nvml": gpu_processes(0, [os.getpid()]),
                }
                if handle is not None:
                    handle.stop()
        found["events"] = told(events)


def failures(found: dict[str, Any]) -> None:
    """What users meet: no such GPU, a full one, a stage that dies, a model with a layer that raises."""
    try:
        odin.Pipeline("resnet50", stages=["gpu:7"], share_devices=True)
    except Exception as error:
        found["no such GPU"] = f"{type(error).__name__}: {error}"
    hold = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import torch, sys; free, _ = torch.cuda.mem_get_info(0); "
            "x = torch.empty(free - 900 * 2**20, dtype=torch.uint8, device='cuda'); print(free, flush=True); "
            "sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert hold.stdout is not None
    hold.stdout.readline()
    begin_s = time.perf_counter()
    try:
        with odin.Pipeline("vgg16", stages=["gpu:0"], share_devices=True, batch=32) as pipe:
            pipe(image(32))
            found["full GPU"] = "served"
    except Exception as error:
        found["full GPU"] = f"{type(error).__name__}: {str(error)[:600]}"
    found["full GPU took_s"] = round(time.perf_counter() - begin_s, 1)
    hold.kill()
    hold.wait()
    time.sleep(0.5)
    before = used_mib()
    with odin.Pipeline("resnet50", stages=["cpu:0", "gpu:0"], share_devices=True, plan="4|14") as pipe:
        pipe(image())
        found["used_mib with a stage"] = used_mib() - before
        pid = next(stage.pid for stage in pipe.view().stages if "gpu" in str(stage.device))
        os.kill(pid, signal.SIGKILL)
        begin_s = time.perf_counter()
        try:
            pipe(image(), timeout_s=30)
        except Exception as error:
            found["killed stage"] = f"{type(error).__name__}: {error}"
        found["killed stage told after_s"] = round(time.perf_counter() - begin_s, 2)
    time.sleep(1.0)
    found["used_mib after it was killed"] = used_mib() - before


def commands(found: dict[str, Any]) -> None:
    """The command line as a user types it."""
    start = [sys.executable, "-c", "import sys; from odin.cli.main import main; sys.exit(main())"]
    with tempfile.TemporaryDirectory() as folder:
        for arguments in (
            ["partition", "resnet50", "--stages", "cpu:0,gpu:0"],
            ["run", "resnet50", "--stages", "gpu:0", "--requests", "200"],
            ["run", "resnet50", "--stages", "cpu:0,gpu:0", "--precision", "float16", "--requests", "100"],
            ["inject", "gpu", "--on", "gpu:0", "--seconds", "3"],
            ["inject", "gpu", "--on", "gpu:0", "--load", "copy", "--intensity", "0.5", "--seconds", "3"],
        ):
            done = subprocess.run(
                [*start, *arguments],
                capture_output=True,
                text=True,
                timeout=120,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "140"},
            )
            found[" ".join(arguments)] = {
                "status": done.returncode,
                "output": done.stdout[-2500:].splitlines(),
                "errors": done.stderr[-1500:],
            }


def left(found: dict[str, Any]) -> None:
    """Nothing is left on the card."""
    found["used_mib"] = used_mib()
    found["processes"] = gpu_processes(0, [os.getpid()])


def main() -> int:
    """Run every section; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write what was found as JSON")
    parser.add_argument("--budget-s", type=float, default=420.0, help="seconds for all sections (default %(default)s)")
    parser.add_argument("--models", nargs="+", default=["resnet50", "resnet152"])
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections to run (default all)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "there is no CUDA device that torch can use here: run this on a machine with an NVIDIA GPU", file=sys.stderr
        )
        return 2
    check = Check(arguments.output, arguments.budget_s)
    models = arguments.models
    sections: dict[str, tuple[Callable[[dict[str, Any]], None], float]] = {
        "look": (look, 0),
        "executor": (lambda found: executor(found, models[:1]), 20),
        "moves": (moves, 30),
        "neighbour on a GPU that has all": (lambda found: neighbour(found, "gpu", ("gpu:0",)), 30),
        "neighbour on a GPU beside a core": (lambda found: neighbour(found, "gpu", ("cpu:0", "gpu:0")), 30),
        "neighbour that copies": (lambda found: neighbour(found, "gpu-copy", ("gpu:0", "gpu:0")), 30),
        "failures": (failures, 45),
        "pipelines": (lambda found: pipelines(found, check, models), 30),
        "commands": (commands, 40),
        "left": (left, 0),
    }
    runtime = None
    for name, (body, needs_s) in sections.items():
        if arguments.only and name not in arguments.only:
            continue
        if runtime is None and name not in ("look", "executor"):
            runtime = RayRuntime(weight_nbytes=2**30)  # one for all
        if name in ("commands", "left") and runtime is not None:
            runtime.close()
        check.section(name, body, needs_s=needs_s)
    print(f"failed: {', '.join(check.failed) or 'nothing'}")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
