"""``odin tune``: batching or instances for a model on these cores, and its knob turned while it serves.

Exit status: 0 if something keeps the limit, else 1; 2 for wrong usage; 130 after Ctrl-C, 143 after SIGTERM, 129 after
SIGHUP, when what is known until then has been shown and kept.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from odin.cli.arguments import positive, positive_number
from odin.models.model_names import check_model_name
from odin.options import check_on_this_machine
from odin.process.signals import draining
from odin.stages.device import parse_devices
from odin.stages.lease import refuse_taken_devices
from odin.tuning.choice import Probe
from odin.tuning.periods import REQUESTS
from odin.tuning.policy import POLICIES
from odin.tuning.statistic import STATISTICS
from odin_lab.commands.kept import add_kept, check_kept, draw, keep
from odin_lab.inject import Load
from odin_lab.tuning.campaign import Findings, best_of_sweep, find
from odin_lab.tuning.measure import Effort
from odin_lab.tuning.modes import Mode, modes_of, options_text, toml_text
from odin_lab.tuning.serving import Serving, serve, spells_of
from odin_lab.tuning.view import probe_table, served_lines, sweep_line

__all__ = ["add_parser", "run"]


class Result(Struct, frozen=True):
    """What ``--output`` keeps; times of serving count from its beginning.

    Attributes
    ----------
    command, model, stages
        What was asked.
    limit_s, statistic, policy
        What latencies were to keep, and how.
    probes, swept
        What was measured first; every value, if it was asked for.
    knob, start, keeps, why
        The choice; no knob, and 0: it was ended before.
    serving
        What came of it; null with ``--seconds 0``.
    of_best
        Throughput with the last value as a part of the best of the sweep; null without one.
    """

    command: str
    model: str
    stages: tuple[str, ...]
    limit_s: float
    statistic: str
    policy: str
    probes: tuple[Probe, ...]
    swept: tuple[Probe, ...]
    knob: str
    start: int
    keeps: bool
    why: str
    serving: Serving | None
    of_best: float | None


def add_parser(subparsers: Any) -> None:
    """Add ``odin tune`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tune",
        help="find out whether batches or instances give more throughput within a latency limit",
        description="Measure what gives more throughput within a latency limit: one stage on all cores with larger "
        "batches, or one instance on each core. Then serve with the better one for a while, and adjust its batch size "
        "or number of instances (the knob) so that latencies stay within the limit.",
        epilog="Nothing else should run on the cores. Latencies contain no queueing: no more requests are in flight "
        "than are computed at a time. Exit status: 1 if nothing stays within the limit. See docs/tuning.md.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="as for odin run; the samples of a batch must not depend on each other"
    )
    parser.add_argument(
        "--latency-ms", type=positive_number, required=True, metavar="MS", help="latency limit, milliseconds"
    )
    parser.add_argument(
        "--stages",
        default="cpu:0",
        metavar="DEVICES",
        help="cores or GPU to use: cpu:0,cpu:1 or cpu:0-1 (the same here), gpu:0 (default %(default)s)",
    )
    knobs = parser.add_argument_group("knobs")
    knobs.add_argument(
        "--batch", type=positive, default=32, metavar="N", help="largest batch size to try (default %(default)s)"
    )
    knobs.add_argument("--instances", type=positive, metavar="N", help="most instances to try (default: one per core)")
    knobs.add_argument(
        "--policy",
        choices=POLICIES,
        default="dnnscaler",
        help="how the knob is adjusted while serving (default %(default)s)",
    )
    knobs.add_argument(
        "--statistic", choices=STATISTICS, default="p95", help="what is compared with the limit (default %(default)s)"
    )
    how = parser.add_argument_group("measuring and serving")
    how.add_argument(
        "--requests", type=positive, default=60, metavar="N", help="requests per measurement (default %(default)s)"
    )
    how.add_argument(
        "--patience",
        type=positive_number,
        default=30.0,
        metavar="S",
        help="seconds that a measurement takes at most (default %(default)g)",
    )
    how.add_argument("--sweep", action="store_true", help="measure every batch size and number of instances")
    how.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how long to serve then; 0: not at all (default %(default)g)",
    )
    how.add_argument(
        "--period",
        type=positive,
        default=REQUESTS,
        metavar="N",
        help="requests between two adjustments (default %(default)s)",
    )
    how.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="LOAD",
        help="load in the middle third of the serving time, such as cpu@cpu:1*0.5 (half of the time); may be repeated",
    )
    add_kept(
        parser,
        output="save all results, each request included",
        plot="draw latency, knob and throughput over time",
        log="event log of serving, for odin replay and odin report",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    loads = _check_usage(arguments)
    modes = modes_of(parse_devices(arguments.stages), batch=arguments.batch, instances=arguments.instances)
    refuse_taken_devices(parse_devices(arguments.stages))
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    limit_s = arguments.latency_ms / 1e3
    from odin_lab.tuning.served import Served  # imports torch and Ray

    serving: Serving | None = None
    with draining() as drain, _progress() as show:

        def look(what: str, done: float, of: float) -> bool:
            show(what, done, of)
            return drain.is_set()

        def starting(mode: Mode, log: str | None = None) -> Served:
            show(f"starting {mode.title} on {', '.join(mode.stages)}", 0, 1)
            return Served(arguments.model, mode, log=log)

        findings = find(
            modes,
            starting,
            limit_s=limit_s,
            statistic=arguments.statistic,
            effort=Effort(arguments.requests, limit_s=arguments.patience),
            sweep=arguments.sweep,
            look=look,
        )
        choice, mode = findings.choice, findings.mode
        if arguments.seconds > 0 and choice is not None and mode is not None and not drain.is_set():
            with starting(mode, arguments.log) as served:
                serving = serve(
                    served,
                    start=choice.start if mode.knob == "instances" else 1,
                    largest=findings.largest,
                    limit_s=limit_s,
                    seconds=arguments.seconds,
                    policy=arguments.policy,
                    statistic=arguments.statistic,
                    requests=arguments.period,
                    loads=loads,
                    spells=spells_of(arguments.seconds) if loads else (),
                    stop=drain.is_set,
                    look=lambda at_s, value: show(f"serving, {mode.knob} {value}", at_s, arguments.seconds),
                )
    _tell(arguments, console, findings, serving)
    return 0 if choice is not None and choice.keeps else 1


def _check_usage(arguments: argparse.Namespace) -> list[Load]:
    """Find what cannot be before anything is started; returns the loads."""
    check_model_name(arguments.model)
    for option in ("latency_ms", "patience", "seconds"):
        value = getattr(arguments, option)
        if not 0 <= value < math.inf:
            raise ValueError(f"--{option.replace('_', '-')} {value:g} is not a number of milliseconds or seconds")
    check_kept(arguments)
    if arguments.seconds == 0:
        for option in ("load", "plot", "log"):
            if getattr(arguments, option):
                raise ValueError(f"--{option} means nothing with --seconds 0, which serves nothing; leave one out")
    loads = [Load.parse(text) for text in arguments.load]
    for load in loads:
        check_on_this_machine(load.on)
    return loads


def _tell(arguments: argparse.Namespace, console: Console, findings: Findings, serving: Serving | None) -> None:
    """Show all, and keep it."""
    limit_s, statistic = arguments.latency_ms / 1e3, arguments.statistic
    choice, mode = findings.choice, findings.mode
    title = f"{arguments.model} on {arguments.stages}: {statistic} limit {arguments.latency_ms:g} ms"
    shown = findings.swept or findings.probes
    if shown or choice is not None:
        console.print(probe_table(shown, limit_s=limit_s, statistic=statistic, choice=choice, title=title))
    why = "ended before all was measured: nothing is chosen" if choice is None else choice.why
    console.print(why, markup=False, style="bold" if choice is not None else "yellow")
    value = 0 if choice is None else choice.start if serving is None else serving.value
    if serving is not None:
        console.print(served_lines(serving, limit_s=limit_s, statistic=statistic))
    found = best_of_sweep(findings, value, limit_s=limit_s, statistic=statistic)
    if found is not None:
        console.print(sweep_line(*found, value), markup=False)
    if mode is not None:
        console.print("In Python:", style="dim")
        console.print(options_text(arguments.model, mode, value, latency_s=limit_s), markup=False)
        console.print("For odin serve, as a file NAME.toml:", style="dim")
        console.print(toml_text(arguments.model, mode, value, latency_s=limit_s), markup=False)
    result = Result(
        shlex.join(["odin", *sys.argv[1:]]),
        arguments.model,
        tuple(arguments.stages.split(",")) if mode is None else mode.stages,
        limit_s,
        statistic,
        arguments.policy,
        findings.probes,
        findings.swept,
        "" if choice is None else choice.knob,
        0 if choice is None else choice.start,
        choice is not None and choice.keeps,
        why,
        serving,
        None if found is None else found[1],
    )
    keep(arguments, console, result)
    if arguments.plot is not None and serving is not None:
        from odin_lab.tuning.plot import tuning_plot

        draw(arguments, console, tuning_plot(serving, limit_s=limit_s, statistic=statistic, model=arguments.model))


@contextmanager
def _progress() -> Iterator[Any]:
    """One line, in a terminal only; yields what shows where one is."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        row = progress.add_task("", total=None)
        yield lambda what, done, of: progress.update(row, description=what, completed=done, total=of)
