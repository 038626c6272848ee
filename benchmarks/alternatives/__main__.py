"""Measure ODIN and what one would use instead in turns, undisturbed and beside a load, and print one table.

Everybody as good as we know how. ODIN's row with ONNX Runtime's kernels is what the others are compared with, within
each round: ahead or behind only where the interval of the rounds says so (:mod:`odin_lab.report.medians`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.alternatives.run_process import ALTERNATIVES, REPLICAS, Figures, Settings
from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    mib,
    milliseconds,
    report,
    summarize,
    write_result,
)
from benchmarks.exported import export_apart
from benchmarks.runtimes import check_runtimes
from odin.process.groups import start_group
from odin_lab.inject.load import Load
from odin_lab.live.benchmark import serve_problem
from odin_lab.report.medians import interval_text, median_of, verdict

TITLES = {
    "odin": "ODIN, two stages, torch",
    "odin-onnxruntime": "ODIN, two stages, ONNX Runtime",
    "replicas-onnxruntime": "two pinned ONNX Runtime processes, one queue",
    "replicas-openvino": "two pinned OpenVINO processes, one queue",
    "torch-eager": "torch, 2 threads, eager",
    "torch-folded": "torch, 2 threads, folded, NHWC",
    "ray-serve": "Ray Serve, two replicas, throughput settings",
    "torch-pipelining": "torch pipelining, gloo",
}

REFERENCE = "odin-onnxruntime"
DEFAULT = tuple(name for name in ALTERNATIVES if name != "torch-eager")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, rounds=6)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--contenders", nargs="+", choices=ALTERNATIVES, default=list(DEFAULT), metavar="NAME")
    parser.add_argument("--cores", type=int, nargs=2, default=sorted(os.sched_getaffinity(0))[:2], metavar="CORE")
    parser.add_argument("--plan", default="", help="the cut (default: the one ODIN finds in the warm-up round)")
    parser.add_argument("--in-flight", type=int, default=6, help="requests under way, loaded (default %(default)s)")
    parser.add_argument("--count", type=int, default=50, help="images a round, loaded (default %(default)s)")
    parser.add_argument("--alone-count", type=int, default=10, help="images a round, one at a time")
    parser.add_argument("--load", help="what is put beside them (default: a busy program on the second core)")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one trial (default %(default)s)")
    arguments = parser.parse_args(argv)
    if len(set(arguments.cores)) != 2:
        parser.error("two different cores are needed: --cores A B")
    if arguments.in_flight < 4:
        parser.error("--in-flight must be at least 4, or the pipelines run dry")
    runtimes = [REPLICAS[name] for name in arguments.contenders if name in REPLICAS]
    if runtimes and arguments.weights:
        parser.error("the processes of ONNX Runtime and OpenVINO take no weights here: leave out --weights, or them")
    try:
        check_runtimes(runtimes)
        load = str(Load.parse(arguments.load or f"cpu@cpu:{arguments.cores[1]}"))
    except ValueError as error:
        parser.error(str(error))
    names: list[str] = arguments.contenders
    if "ray-serve" in names and (problem := serve_problem()):
        print(f"without Ray Serve, which cannot be imported ({problem}): pip install 'ray[serve]'")
        names = [name for name in names if name != "ray-serve"]
    environment = Environment.collect(("torch", "ray", "onnxruntime", "openvino"))
    settings = Settings(
        model=arguments.model,
        weights=str(arguments.weights.absolute()) if arguments.weights else "",
        cores=(arguments.cores[0], arguments.cores[1]),
        plan=arguments.plan,
        in_flight=arguments.in_flight,
        count=12 if arguments.quick else arguments.count,
        alone_count=4 if arguments.quick else arguments.alone_count,
        warmup=2 if arguments.quick else 10,
        load=load,
    )
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(settings.model, settings.weights, folder)
        if runtimes:
            export_apart(settings.model, folder, runtimes)
        if not settings.plan and {"odin", "torch-pipelining"} <= set(names):
            # The static pipeline's cut, for all rounds.
            settings = replace(settings, plan=run_alternative("odin", folder, settings, arguments.timeout_s).plan)
        candidates: dict[str, Callable[[], Figures]] = {
            name: partial(run_alternative, name, folder, settings, arguments.timeout_s) for name in names
        }
        trials = interleave(candidates, rounds=rounds, warmup=0, seed=arguments.seed)
    report(
        f"{settings.model} on cores {settings.cores[0]} and {settings.cores[1]}, {settings.in_flight} in flight; "
        f"medians ({interval_text(rounds)}); ODIN: {TITLES[REFERENCE]}",
        ["", "images/s", "ODIN / it", "ODIN is", "p50 ms", "p99 ms", "alone p50", "MiB", "without Ray's"],
        [row(name, trials, lambda figures: figures.throughput_hz, costs) for name in names],
        environment,
    )
    report(
        f"the same beside {load}",
        ["", "images/s", "ODIN / it", "ODIN is", "p99 ms"],
        [row(name, trials, lambda figures: figures.disturbed_hz, disturbed_costs) for name in names],
        environment,
    )
    parameters = {"task": settings, "rounds": rounds, "seed": arguments.seed}
    write_result(arguments.output, environment=environment, parameters=parameters, results=trials)
    return 0


def row(
    name: str,
    trials: dict[str, list[Figures]],
    rate_hz: Callable[[Figures], float],
    more: Callable[[list[Figures]], tuple[str, ...]],
) -> tuple[str, ...]:
    """One alternative's line of a table; ratios are within each round."""
    rates_hz = [rate_hz(figures) for figures in trials[name]]
    ours_hz = [] if name == REFERENCE else [rate_hz(figures) for figures in trials.get(REFERENCE, ())]
    ratios = [ours / its for ours, its in zip(ours_hz, rates_hz, strict=False)]
    told = median_of(rates_hz).told("{:.2f}".format)
    return (TITLES[name], told, median_of(ratios).told("{:.2f}".format), verdict(ratios) or "-", *more(trials[name]))


def costs(own: list[Figures]) -> tuple[str, ...]:
    """Latencies and memory, medians of the rounds."""

    def median(value: Callable[[Figures], float]) -> float:
        return summarize([value(figures) for figures in own]).median

    return (
        milliseconds(median(lambda figures: figures.loaded_p50_s)),
        milliseconds(median(lambda figures: figures.loaded_p99_s)),
        milliseconds(median(lambda figures: figures.alone_p50_s)),
        mib(median(lambda figures: figures.memory_nbytes)),
        mib(median(lambda figures: figures.model_nbytes)),
    )


def disturbed_costs(own: list[Figures]) -> tuple[str, ...]:
    """Latency beside the load, median of the rounds."""
    return (milliseconds(summarize([figures.disturbed_p99_s for figures in own]).median),)


def run_alternative(name: str, folder: Path, settings: Settings, timeout_s: float) -> Figures:
    """Run one alternative in a fresh process; RuntimeError with its last words if it fails."""
    print(f"{TITLES[name]} ...", file=sys.stderr, flush=True)
    (folder / "task.json").write_text(json.dumps(asdict(settings)), encoding="utf-8")
    threads = len(settings.cores) if name.startswith("torch-") and name != "torch-pipelining" else 1
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        group = start_group(
            [sys.executable, "-m", "benchmarks.alternatives.run_process", name, str(folder)],
            environment={**os.environ, "OMP_NUM_THREADS": str(threads)},
            output=output,
        )
    try:
        status = psutil.Process(group.leader_pid).wait(timeout_s)
    except psutil.TimeoutExpired:
        status = None
    finally:
        group.end(grace_s=3.0)  # with whatever the alternative left running, which would disturb the next
    if status != 0:
        reason = "failed" if status is not None else f"was not done within {timeout_s:.0f} s"
        raise RuntimeError(f"{name} {reason}:\n{log.read_text(errors='replace')[-5000:]}")
    return Figures(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def write_images(model: str, weights: str, folder: Path) -> None:
    """Write the photographs as the model wants them, and what the model as it comes makes of them."""
    import sklearn
    import torch

    from odin.models.image_files import find_images
    from odin.models.images import load_image
    from odin.models.sources import load_source

    source = load_source(model, weights=weights or None)
    if source.preprocess is None or not isinstance(source.model, torch.nn.Module):
        raise ValueError(f"{model} takes no images: choose a model for them, such as resnet50")
    photographs = find_images([Path(sklearn.__file__).parent / "datasets" / "images"])
    images = [load_image(path, source.preprocess) for path in photographs]
    batch = torch.stack([image.reshape(image.shape[-3:]) for image in images])
    with torch.inference_mode():
        expected = source.model(batch)
    np.save(folder / "images.npy", batch.numpy())
    np.save(folder / "expected.npy", expected.numpy())


if __name__ == "__main__":
    sys.exit(main())
