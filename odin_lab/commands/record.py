"""``odin record``: measure each layer's time alone and under named scenarios, and keep it as a file.

Exit status: 0 done; 1 if a model or a load broke, or the disk is full; 2 for wrong usage; 130 after Ctrl-C, 143 after
SIGTERM, 129 after SIGHUP. What was measured until then is kept, and the same command goes on there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from odin.models.model_names import check_model_name
from odin.partitioner.files import check_folder
from odin.process.signals import Stopped
from odin.stages.device import Device, usable_cores
from odin_lab.inject.load import LoadError, LoadFailedError
from odin_lab.inject.named import NAMED
from odin_lab.timings.files import file_name
from odin_lab.timings.recorder import Progress, Settings, find_recorded, partial_path, record
from odin_lab.timings.report import render_timings
from odin_lab.timings.table import TimingTable

__all__ = ["add_parser", "run"]

_ALL = "paper12"


def add_parser(subparsers: Any) -> None:
    """Add ``odin record`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "record",
        help="measure layer times with and without load, for the simulator",
        description="Measure each layer's time alone and under named scenarios on this machine, for the simulator. "
        "About five minutes per model, on a machine that does nothing else. Broken off, the same command goes on where "
        "it was.",
        epilog=f"scenarios: {', '.join(NAMED)}; {_ALL} is all of them",
    )
    parser.add_argument("model", nargs="+", metavar="MODEL", help="one or several, as for odin run")
    parser.add_argument("--scenarios", default=_ALL, metavar="NAMES", help=f"{_ALL} (the default), or NAME,NAME")
    parser.add_argument("--on", metavar="DEVICE", help="device to measure on, such as cpu:1 (default: the last core)")
    parser.add_argument("--rounds", type=int, metavar="N", help="measurements of each scenario (default 5)")
    parser.add_argument(
        "--passes", type=int, metavar="N", help="runs of the model per measurement (default: about a second's)"
    )
    parser.add_argument(
        "--fine",
        action="store_true",
        help="cut models into many small layers, for simulations of many devices; the table is called MODEL-fine",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order of scenarios (default 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("timings"),
        metavar="DIR",
        help="folder for the tables (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round, to try it; too imprecise for conclusions"
    )
    parser.add_argument("--restart", action="store_true", help="measure again even if results exist")


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns the exit status."""
    settings = _settings(arguments)
    check_folder(arguments.output, "--output")
    done: list[TimingTable] = []
    if not arguments.restart:  # all of them, before anything is measured
        done = [table for item in settings if (table := find_recorded(item, arguments.output)) is not None]
    for item in settings:
        if all(table.model != item.name for table in done):
            check_model_name(item.model)
    status = 0
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        for number, item in enumerate(settings):
            path = arguments.output / file_name(item.name)
            if already := next((table for table in done if table.model == item.name), None):
                messages.print(f"{path} is there, recorded {already.created}; --restart measures anew", markup=False)
            else:
                table = _record(item, arguments, messages, f"{number + 1}/{len(settings)} " * (len(settings) > 1))
                done.append(table)
                messages.print(f"written: {path}", markup=False)
    except KeyboardInterrupt as error:
        status = error.status if isinstance(error, Stopped) else 130
        left = partial_path(arguments.output, item.name)
        if left.exists():
            messages.print(f"broken off; the same command goes on from {left}", markup=False)
    except (LoadFailedError, OSError) as error:
        print(f"odin record: {error}", file=sys.stderr)
        status = 1
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for table in done:
        console.print(render_timings(table))
    return status


def _settings(arguments: argparse.Namespace) -> list[Settings]:
    words = [word.strip() for word in arguments.scenarios.split(",")]
    names = tuple(NAMED) if words == [_ALL] else tuple(words)
    known = [name for name in NAMED if name in names]
    if len(known) == len(names):
        names = tuple(known)  # one order, however they are asked for
    device = Device.parse(arguments.on) if arguments.on is not None else Device("cpu", usable_cores()[-1:])
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else 5
    files: dict[str, str] = {}
    for model in arguments.model:
        if (other := files.setdefault(file_name(model), model)) != model or arguments.model.count(model) > 1:
            raise LoadError(f"{other} and {model} would both be kept in {file_name(model)}; record one of them")
    return [
        Settings(
            model,
            device,
            names,
            rounds=rounds,
            passes=arguments.passes,
            quick=arguments.quick,
            seed=arguments.seed,
            fine=arguments.fine,
        )
        for model in arguments.model
    ]


def _record(settings: Settings, arguments: argparse.Namespace, messages: Console, count: str) -> TimingTable:
    """Measure one model under a bar; without a terminal, a line per round."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    name = f"{count}{settings.name}"
    # drawn seldom: drawing is a load in itself
    bar = Bar(
        *columns,
        console=messages,
        refresh_per_second=1,
        speed_estimate_period=600,
        transient=True,
        disable=not messages.is_terminal,
    )
    with bar:
        task = bar.add_task(f"{name}: starting", total=None)
        shown_round = -1

        def notify(progress: Progress) -> None:
            nonlocal task, shown_round
            step = progress.step
            what = f"{name}: round {step.round + 1} of {settings.rounds}"
            if shown_round < 0:  # begins here, so that the time left is told by what is measured now
                bar.remove_task(task)
                task = bar.add_task(what, total=progress.total, completed=progress.done)
            bar.update(task, completed=progress.done, description=f"{what}, {step.scenario:<11}")
            if shown_round != step.round and not messages.is_terminal:
                messages.print(f"{what} ({progress.done / progress.total:.0%} done)", markup=False)
            shown_round = step.round

        return record(settings, arguments.output, restart=arguments.restart, notify=notify)
