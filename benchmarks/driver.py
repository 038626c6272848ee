"""What a request costs in the process that submits it, outside of the stages: CPU time by thread and by function.

Where two stages have all cores, what this process uses is taken from them. A trial is a process of its own: a pipeline
of two stages, requests at a steady rate (``tiny``, a model of a few small layers) or a closed loop (any other model),
with and without an event log. Trials of this tree and of another checkout take turns.
``python -m benchmarks.driver --other ../before``
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    paired_ratio,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from benchmarks.startup import Tree
from odin.stages.device import usable_cores
from odin_lab.feeding import keep_in_flight

TINY = "tiny"
REST = "others"
"""Threads that are not Python's: Ray's, torch's."""
TOTAL = "all"


class Tiny(torch.nn.Sequential):
    """A millisecond or two of layers, on an image of the usual size: less, and its times would be nothing but noise."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Conv2d(3, 16, 3, stride=4),
            torch.nn.ReLU(),
            *(layer for _ in range(6) for layer in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU())),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 1000),
        )


# ---------------------------------------------------------------- one trial, in a process of its own
def trial(model: str, policy: str, count: int, rate_hz: float, *, log: bool, profile: bool) -> dict[str, Any]:
    """Serve ``count`` requests; CPU microseconds per request of each thread, and of each function if asked."""
    torch.set_num_threads(1)
    profiles: dict[str, cProfile.Profile] = {}
    with profiled_threads(profiles) if profile else nullcontext(), tempfile.TemporaryDirectory() as folder:
        stages = [f"cpu:{core}" for core in usable_cores()[:2]]
        options: dict[str, Any] = {"policy": policy, "log": Path(folder) / "run.jsonl" if log else None}
        x = torch.randn(1, 3, 224, 224)
        chain: Any = odin.build_chain(Tiny().eval(), (x,), name=TINY) if model == TINY else model
        with odin.Pipeline(chain, stages=stages, **options) as pipe:
            feed(pipe, x, count=max(64, count // 4), rate_hz=rate_hz)
            own = cProfile.Profile()
            begin_s, before = time.process_time(), thread_times_s()
            if profile:
                own.enable()
            feed(pipe, x, count=count, rate_hz=rate_hz)
            own.disable()
            total_s, after = time.process_time() - begin_s, thread_times_s()
    used_s = {name: spent_s - before.get(name, 0.0) for name, spent_s in after.items()}
    used_s[REST] = total_s - sum(used_s.values())
    used_s[TOTAL] = total_s
    outcome: dict[str, Any] = {"us": {name: 1e6 * spent_s / count for name, spent_s in used_s.items()}}
    if profile:
        profiles["MainThread"] = own
        outcome["functions"] = {name: functions_of(kept) for name, kept in profiles.items()}
    return outcome


def feed(pipe: odin.Pipeline, x: torch.Tensor, *, count: int, rate_hz: float) -> None:
    """Submit requests, at a steady rate or as many at a time as there may be, and wait for them."""
    failures: list[BaseException] = []
    begin_s = time.perf_counter()

    def submit(index: int) -> Any:
        if rate_hz > 0:
            time.sleep(max(0.0, begin_s + index / rate_hz - time.perf_counter()))
        return pipe.submit(x)

    keep_in_flight(
        submit,
        in_flight=pipe.max_in_flight,
        more=lambda index: index < count,
        on_done=lambda _, __, ___, error: failures.append(error) if error is not None else None,
    )
    if failures:
        raise failures[0]


def thread_times_s() -> dict[str, float]:
    """CPU seconds of each thread of Python's, by name."""
    spent_s: dict[str, float] = {}
    for thread in threading.enumerate():
        with suppress(OSError):  # it has ended
            assert thread.ident is not None
            used_s = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            spent_s[thread.name] = spent_s.get(thread.name, 0.0) + used_s
    return spent_s


@contextmanager
def profiled_threads(profiles: dict[str, cProfile.Profile]) -> Iterator[None]:
    """Let each thread that ODIN starts meanwhile run under a profiler."""
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        if not thread.name.startswith("odin-"):
            return run(thread)
        profile = profiles.setdefault(thread.name, cProfile.Profile())
        with suppress(ValueError):  # another of that name is running
            return profile.runcall(run, thread)
        return run(thread)

    setattr(threading.Thread, "run", profiled)  # noqa: B010
    try:
        yield
    finally:
        setattr(threading.Thread, "run", run)  # noqa: B010


def functions_of(profile: cProfile.Profile, most: int = 40) -> list[tuple[str, int, float, float]]:
    """Name, calls, seconds within, and seconds with what it calls, most seconds within first."""
    profile.create_stats()
    table: Mapping[Any, Any] = getattr(pstats.Stats(profile), "stats")  # noqa: B009
    rows = [
        (f"{Path(file).name}:{line} {name}", calls, within_s, in_all_s)
        for (file, line, name), (_, calls, within_s, in_all_s, _) in table.items()
    ]
    return sorted(rows, key=lambda row: -row[2])[:most]


# ---------------------------------------------------------------- trials of several trees
def run_trial(tree: Tree, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run a trial in a process of its own.

    Raises
    ------
    RuntimeError
        If it fails, with what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree.folder)}
    command = [str(tree.python), __file__, "--trial", json.dumps(options)]
    done = subprocess.run(
        command, cwd=tree.folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a trial in {tree.folder} failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def used_us(tree: Tree, options: Mapping[str, Any]) -> dict[str, float]:
    """CPU microseconds per request of each thread, in a trial."""
    used: dict[str, float] = run_trial(tree, options)["us"]
    return used


def print_functions(name: str, functions: Mapping[str, Iterable[tuple[str, int, float, float]]], count: int) -> None:
    """Print where each thread's time goes, waiting included."""
    for thread, rows in functions.items():
        print(f"\n{name}, {thread}: microseconds per request, waiting included, under a profiler")
        for place, calls, within_s, in_all_s in rows:
            if calls * 8 >= count:
                print(f"{1e6 * within_s / count:9.1f} {1e6 * in_all_s / count:9.1f} {calls / count:7.2f}x  {place}")


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--other", type=Path, metavar="DIR", help="another checkout to measure beside this one")
    parser.add_argument("--models", nargs="+", default=[TINY], help="default: %(default)s")
    parser.add_argument("--policies", nargs="+", default=["relay", "static"], help="default: %(default)s")
    parser.add_argument("--count", type=int, default=2000, help="requests per trial (default %(default)s)")
    parser.add_argument("--rate-hz", type=float, default=250.0, help="of the tiny model's requests; 0: a closed loop")
    parser.add_argument("--log", action="store_true", help="with an event log")
    parser.add_argument("--profile", action="store_true", help="tell what each function takes, in this tree")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trial is not None:
        print(json.dumps(trial(**json.loads(arguments.trial))))
        return 0
    if arguments.quick:
        arguments.rounds, arguments.count = 1, 200
    environment = Environment.collect()
    trees = {"this": Tree.at(Path(__file__).parents[1])}
    if arguments.other is not None:
        trees["other"] = Tree.at(arguments.other)
    rows, results = [], {}
    for model in arguments.models:
        for policy in arguments.policies:
            options = {
                "model": model,
                "policy": policy,
                "count": arguments.count,
                "rate_hz": arguments.rate_hz if model == TINY else 0.0,
                "log": arguments.log,
                "profile": arguments.profile,
            }
            if arguments.profile:
                print_functions(f"{model}, {policy}", run_trial(trees["this"], options)["functions"], arguments.count)
                continue
            candidates = {name: partial(used_us, tree, options) for name, tree in trees.items()}
            kept = interleave(candidates, rounds=arguments.rounds, warmup=0, seed=arguments.seed)
            results[f"{model}, {policy}"] = kept
            rows += rows_of(f"{model}, {policy}", kept)
    if rows:
        title = "CPU microseconds per request in the process that submits, by thread"
        report(title, ["", "thread", "this", "other", "this / other"], rows, environment)
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


def rows_of(name: str, kept: Mapping[str, list[dict[str, float]]]) -> list[list[str]]:
    """A row for each thread, that which takes most first; at the end all of them."""
    threads = {thread for trials in kept.values() for used in trials for thread in used} - {TOTAL}
    figures = {
        thread: {tree: [used.get(thread, 0.0) for used in trials] for tree, trials in kept.items()}
        for thread in (*threads, TOTAL)
    }
    ordered = sorted(threads, key=lambda thread: -max(map(max, figures[thread].values())))
    rows = []
    for thread in (*ordered, TOTAL):
        this, other = figures[thread]["this"], figures[thread].get("other")
        if max(map(max, figures[thread].values())) < 1.0:
            continue
        beside = ["", ""]
        if other is not None:
            ratio = with_quartiles(paired_ratio(this, other), "{:.2f}".format) if min(other) > 0 else ""
            beside = [with_quartiles(summarize(other), "{:.0f}".format), ratio]
        rows.append([name, thread, with_quartiles(summarize(this), "{:.0f}".format), *beside])
    return rows


if __name__ == "__main__":
    sys.exit(main())
