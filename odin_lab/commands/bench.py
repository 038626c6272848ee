"""``odin bench live``: policies on the real pipeline, and the alternatives to ODIN, under the same interference.

Exit status: 0 if all runs were carried out; 1 if some failed (the results of the others are kept); 2 for wrong usage;
130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, with what was done until then kept. However it ends, its
processes and loads end with it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from odin.models.model_names import check_model_name, check_weights_file
from odin.monitor.view.event_text import seconds
from odin.partitioner.files import check_folder, check_writable
from odin.partitioner.plan import Plan
from odin.partitioner.policies import make_policy
from odin.stages.device import Device, parse_devices
from odin.stages.lease import refuse_taken_devices
from odin_lab.inject.injector import check_local_device
from odin_lab.inject.named import NAMED, check_name
from odin_lab.live.benchmark import Listener, choose_cores, conduct, make_tasks, serve_problem
from odin_lab.live.child import RunFailedError
from odin_lab.live.measure import Status
from odin_lab.live.outcome import Run, results, to_cell
from odin_lab.live.run_record import Contender, Task
from odin_lab.live.script import Script, describe, file_script, random_script
from odin_lab.live.table import live_table

__all__ = ["add_parser", "run"]

POLICIES = ("relay", "filter", "odin:alpha=10", "odin:alpha=2", "lls", "static")
ALSO = ("serve", "torch")
_OVERHEAD_S = 20
"""Estimated seconds to start and end a run."""


def add_parser(subparsers: Any) -> None:
    """Add ``odin bench`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure policies on the real pipeline under the same interference",
        description="Run the same interference beside the real pipeline under each policy in turn, and beside the "
        "alternatives: Ray Serve replicas, and one torch process. Nothing else should run on the machine.",
        epilog="Repeat R uses the events of seed SEED + R - 1; the order of the runs is random in each repeat. Who is "
        "compared is compared within each repeat: many short ones tell more than a few long ones.",
    )
    parser.add_argument("what", choices=("live",), metavar="live", help="the only choice: measure on the real pipeline")
    parser.add_argument("model", nargs="?", default="resnet50", metavar="MODEL", help="default: %(default)s")
    who = parser.add_argument_group("what is compared")
    who.add_argument(
        "--policy", action="append", metavar="POLICY", help=f"may be repeated; default: {', '.join(POLICIES)}"
    )
    who.add_argument(
        "--also", default=",".join(ALSO), metavar="NAMES", help="alternatives: serve, torch, none (default %(default)s)"
    )
    pipeline = parser.add_argument_group("pipeline")
    pipeline.add_argument(
        "--stages", metavar="CORES", help="such as cpu:0,cpu:1: one stage on each (default: the first two)"
    )
    pipeline.add_argument(
        "--weights", type=Path, metavar="FILE", help="file of weights (default: random ones, which are as fast)"
    )
    pipeline.add_argument(
        "--plan", default="", metavar="COUNTS", help="layers per stage to begin with (default: the fastest)"
    )
    pipeline.add_argument("--in-flight", type=int, metavar="N", help="requests in flight (default: 2 per core)")
    load = parser.add_argument_group("interference, all times in seconds")
    load.add_argument("--seconds", type=float, default=18.0, metavar="S", help="measured time (default %(default)g)")
    load.add_argument("--period", type=float, metavar="S", help="one load begins every S seconds (default 6)")
    load.add_argument("--duration", type=float, metavar="S", help="seconds that each lasts (default 5)")
    load.add_argument(
        "--load",
        action="append",
        metavar="NAME",
        help="a named load to draw from; may be repeated (default: all named loads)",
    )
    load.add_argument(
        "--scenario", type=Path, metavar="FILE.toml", help="a scenario file, instead of the three options before"
    )
    how = parser.add_argument_group("runs and results")
    how.add_argument(
        "--repeats",
        type=int,
        default=20,
        metavar="N",
        help="default %(default)s; below 6 no difference can be told with 95%%",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="seed of events and order (default %(default)s)")
    how.add_argument("--output", type=Path, metavar="FILE.json", help="keep the results, for odin report")
    how.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep each pipeline's event log, for odin simulate --like"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    _check_usage(arguments)
    cores = choose_cores(None if arguments.stages is None else parse_devices(arguments.stages))
    devices = tuple(Device("cpu", (core,)) for core in cores)
    if arguments.plan:
        Plan.parse(arguments.plan).check_fits(
            layer_count=Plan.parse(arguments.plan).layer_count, stage_count=len(devices)
        )
    refuse_taken_devices(devices)
    contenders = [Contender("odin", make_policy(text).name) for text in arguments.policy or POLICIES]
    also = _alternatives(arguments.also)
    scripts = _scripts(arguments, devices)
    missing: tuple[str, ...] = ()
    if "serve" in also and (problem := serve_problem()):
        also = tuple(name for name in also if name != "serve")
        missing = (f"Without Ray Serve, which cannot be imported: {problem}",)
        console.print(f"{missing[0]}; for that row: pip install 'ray[serve]'", style="yellow", markup=False)
    contenders += [Contender(kind) for kind in also]  # type: ignore[arg-type]
    if arguments.logs is not None:
        _make_folder(arguments.logs)
    tasks = make_tasks(
        contenders,
        scripts,
        model=arguments.model,
        cores=cores,
        seed=arguments.seed,
        in_flight=arguments.in_flight,
        weights=str(arguments.weights.absolute()) if arguments.weights else "",
        plan=arguments.plan,
        logs=None if arguments.logs is None else arguments.logs.absolute(),
    )
    minutes = len(tasks) * (arguments.seconds + _OVERHEAD_S) / 60
    console.print(
        f"{arguments.model} on {', '.join(f'cpu:{core}' for core in cores)}, {tasks[0].in_flight} in flight: "
        f"{len(tasks)} runs, about {minutes:.0f} minutes; load average {os.getloadavg()[0]:.1f}",
        markup=False,
    )
    for number, script in enumerate(scripts):
        if number == 0 or script != scripts[0]:
            console.print(f"repeat {number + 1}: {describe(script)}", style="dim", markup=False)

    runs: list[Run] = []
    failures: tuple[str, ...] = ()

    def keep(done: Run) -> None:
        runs.append(done)
        _write(arguments.output, runs, missing, planned=len(tasks))

    try:
        with _progress(console, len(tasks)) as listener:
            failures = conduct(tasks, listener, keep=keep)
    except RunFailedError as error:
        print(f"odin bench: {error}", file=sys.stderr)
        return 1
    finally:
        if runs:
            _write(arguments.output, runs, (*missing, *failures), planned=len(tasks))
            console.print(live_table(runs))
            if arguments.output is not None:
                console.print(f"kept in {arguments.output}; odin report {arguments.output} shows them", style="dim")
    return 1 if failures else 0


def _check_usage(arguments: argparse.Namespace) -> None:
    """Find what cannot be before anything is started."""
    if arguments.scenario is not None:
        for option in ("period", "duration", "load"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option} means nothing with --scenario, whose file says it; leave it out")
    if arguments.repeats < 1 or arguments.seed < 0:
        raise ValueError(
            f"--repeats {arguments.repeats} --seed {arguments.seed}: at least 1 repeat, a seed of 0 or more"
        )
    for option in ("seconds", "period", "duration"):
        value = getattr(arguments, option)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{option} {value:g} is not a positive number of seconds")
    if arguments.in_flight is not None and arguments.in_flight < 1:
        raise ValueError(f"--in-flight {arguments.in_flight}: give at least 1; 2 per core keep all cores busy")
    for name in arguments.load or ():
        check_name(name)
    check_model_name(arguments.model)
    if arguments.weights is not None:
        check_weights_file(arguments.weights)
    if arguments.output is not None:
        check_writable(arguments.output, "--output")
    if arguments.logs is not None:
        check_folder(arguments.logs, "--logs")


def _alternatives(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in (*ALSO, "none")]:
        raise ValueError(f"--also {text}: {unknown[0]!r} is unknown; there is {', '.join(ALSO)}, or none")
    if "none" in names and len(names) > 1:
        raise ValueError(f"--also {text}: none goes with no others")
    return () if names == ("none",) else names


def _scripts(arguments: argparse.Namespace, devices: tuple[Device, ...]) -> tuple[Script, ...]:
    """One per repeat: a file's is the same in all, random ones have a seed each."""
    if arguments.scenario is not None:
        scripts: tuple[Script, ...] = (file_script(arguments.scenario, seconds=arguments.seconds),) * arguments.repeats
    else:
        scripts = tuple(
            random_script(
                devices,
                tuple(arguments.load or NAMED),
                seconds=arguments.seconds,
                period_s=6.0 if arguments.period is None else arguments.period,
                duration_s=5.0 if arguments.duration is None else arguments.duration,
                seed=arguments.seed + repeat,
            )
            for repeat in range(arguments.repeats)
        )
    for device in {step.load.on for script in scripts for step in script.scenario.steps}:
        check_local_device(device)
    return scripts


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--logs {path}: {error.strerror}; name a folder that can be written") from error


def _write(path: Path | None, runs: Sequence[Run], words: Sequence[str], *, planned: int) -> None:
    """Keep what there is; serving the measurement matters more than a full disk."""
    if path is None:
        return
    try:
        results(runs, words, planned=planned).write(path)
    except OSError as error:
        print(f"odin bench: cannot keep the results in {path}: {error}", file=sys.stderr)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Listener]:
    """Show how far it is: a bar and where the present run is; without a terminal a line per run."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, refresh_per_second=2, disable=not shown) as progress:
        yield _Shown(progress, progress.add_task("", total=total))


class _Shown(Listener):
    """Tells a progress bar, and a line about each run that is over."""

    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self._progress = progress
        self._bar = bar
        self._title = ""

    def begins(self, task: Task, number: int) -> None:
        self._title = f"{escape(task.title)}, repeat {task.repeat + 1}"
        self._progress.update(self._bar, completed=number, description=self._title)

    def tells(self, status: Status) -> None:
        text = f"{self._title}: {status.phase}"
        if status.phase == "measuring":
            text = f"{self._title}: {status.at_s:.0f} s, {status.throughput_hz:.1f} images/s"
            text += "".join(f", [red]{escape(load)}[/]" for load in status.loads)
        self._progress.update(self._bar, description=text)

    def done(self, run: Run) -> None:
        cell = to_cell(run)
        self._progress.advance(self._bar)
        self._progress.console.print(
            f"{self._title}: {cell.throughput_hz:.1f} images/s, {cell.peak_hz:.1f} undisturbed, p99 "
            f"{seconds(cell.latency_p99_s)}, {cell.lost} lost, steal {run.record.steal:.1%}"
        )

    def failed(self, task: Task, problem: str) -> None:
        self._progress.advance(self._bar)
        self._progress.console.print(f"[red]{self._title} failed:[/] {escape(problem)}", soft_wrap=True)
