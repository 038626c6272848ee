"""``odin cost``: dollars per million requests within a latency limit, each model on its own devices or all on the same.

Exit status: 0; 1 if a server does not start, or costs are not known; 2 for wrong usage; 130 after Ctrl-C, 143 after
SIGTERM, 129 after SIGHUP, when what is known until then has been shown and kept.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec import Struct
from rich.console import Console

from odin.cli.arguments import add_engine, positive, positive_number
from odin.process.signals import draining
from odin_lab.commands.kept import add_kept, check_kept, draw, keep
from odin_lab.cost.attempt import Part
from odin_lab.cost.limits import by_model
from odin_lab.cost.outcome import Outcome
from odin_lab.cost.rule import Machines
from odin_lab.cost.serving import names_of, serving
from odin_lab.cost.simulated import SECONDS, SimulatedDevices
from odin_lab.cost.study import Asked, Study
from odin_lab.cost.view import found_line, render
from odin_lab.load.introduction import Introduction
from odin_lab.load.loadgen import check_loadgen
from odin_lab.load.progress import trial_progress
from odin_lab.load.trial import Trial

__all__ = ["add_parser", "run"]

_SECONDS = 10.0


class Kept(Struct, frozen=True):
    """What ``--output`` keeps.

    Attributes
    ----------
    outcome
        What was measured.
    dedicated_per_million, shared_per_million
        Dollars per million requests, by model; empty if they are not known.
    work, gain
        Dedicated machines whose work one shared one does, and the part of their cost that is saved.
    machines
        For given rates.
    """

    outcome: Outcome
    dedicated_per_million: dict[str, float]
    shared_per_million: dict[str, float]
    work: float | None
    gain: float | None
    machines: Machines | None


def add_parser(subparsers: Any) -> None:
    """Add ``odin cost`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "cost",
        help="dollars per million requests within a latency limit, on dedicated or shared devices",
        description="Serve each model alone on the devices, then all together on the same, find the highest rates at "
        "which 95% of all requests are answered within the limit, and show what a million requests cost.",
        epilog="Requests arrive at random times (MLPerf LoadGen's server scenario; not an MLPerf result); latencies "
        "count from when a request is due. Cost per request: price / (3600 * rate). See docs/cost.md.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models, as for odin run")
    parser.add_argument("--stages", required=True, metavar="DEVICES", help="devices to serve on, such as cpu:0,cpu:1")
    parser.add_argument(
        "--price",
        type=positive_number,
        required=True,
        metavar="DOLLARS",
        help="price of all these devices together, per hour",
    )
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument(
        "--p95-ms", metavar="MS", help="latency limit for 95%% of the requests; NAME=MS for one model: 500,vgg16=900"
    )
    limit.add_argument(
        "--p95-times", metavar="X", help="limit as a multiple of the latency of an idle server: 3, or NAME=3"
    )
    parser.add_argument(
        "--rates",
        metavar="NAME=HZ,...",
        help="expected requests per second of each model: rates on shared devices are raised in this proportion, and "
        "the number of machines that these rates need is shown (default: the proportion of the highest rates alone)",
    )
    add_engine(parser)
    parser.add_argument("--policy", metavar="NAME", help="as for odin run (default: auto)")
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="serve nothing: simulate the trials, from the layer times that come with ODIN or a file of odin record",
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--seconds",
        type=positive_number,
        metavar="S",
        help=f"seconds per trial (default {_SECONDS:g}; simulated: {SECONDS:g})",
    )
    search.add_argument(
        "--trials", type=positive, default=12, metavar="N", help="most trials per search (default %(default)s)"
    )
    search.add_argument(
        "--time-limit-s", type=positive_number, metavar="S", help="end after S seconds, and show what is known then"
    )
    search.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of inputs and arrival times (default %(default)s)"
    )
    add_kept(parser, output="save all trials and costs", plot="draw costs per model")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    asked = _asked(arguments)
    devices = None
    if arguments.simulate:
        policy = arguments.policy if arguments.policy not in (None, "auto") else "relay"
        devices = SimulatedDevices(asked.models, arguments.stages, policy=policy)
    options = {"stages": arguments.stages}
    options |= {name: getattr(arguments, name) for name in ("engine", "policy") if getattr(arguments, name) is not None}
    end_s = math.inf if arguments.time_limit_s is None else time.monotonic() + arguments.time_limit_s
    with draining() as drain, trial_progress() as show:

        def goes_on() -> bool:
            return not drain.is_set() and time.monotonic() < end_s

        def look(title: str, trial: Trial, turn: object) -> bool:
            show(title, trial, turn=turn)
            return goes_on()

        def tell(name: str, part: Part | None, limit_ms: float) -> None:
            console.print(found_line(name, part, limit_ms), style="dim", markup=False)

        @contextmanager
        def serve(models: Mapping[str, str]) -> Iterator[dict[str, Introduction]]:
            show.wait(f"starting odin serve with {', '.join(models)}")
            with serving(models, options, look=goes_on) as known:
                yield known

        if devices is None:
            study = Study(asked, serve, look=look, tell=tell)
        else:
            study = Study(
                asked, devices.serve, look=look, tell=tell, lone=devices.lone_s, run=devices.run, how="simulated"
            )
        try:
            study.carry_out()
        except KeyboardInterrupt:
            if goes_on():
                raise
            study.ended = True  # while a server started
        except RuntimeError as error:
            print(f"odin cost: {error}", file=sys.stderr)
            return 1
    outcome = study.outcome(shlex.join(["odin", *sys.argv[1:]]))
    console.print(render(outcome))
    keep(arguments, console, _kept(outcome))
    if arguments.plot is not None and outcome.dedicated_hz:
        from odin_lab.cost.plot import cost_plot

        draw(arguments, console, cost_plot(outcome))
    known = outcome.sharing is not None or (len(asked.models) == 1 and outcome.dedicated_hz)
    return 0 if known else 1


def _asked(arguments: argparse.Namespace) -> Asked:
    """Find what cannot be before anything is started."""
    models = names_of(arguments.models)
    names = list(models)
    limits_ms = None if arguments.p95_ms is None else by_model(arguments.p95_ms, names, option="--p95-ms")
    times = {} if arguments.p95_times is None else by_model(arguments.p95_times, names, option="--p95-times")
    rates_hz = {} if arguments.rates is None else by_model(arguments.rates, names, option="--rates")
    for option in ("price", "seconds", "time_limit_s"):
        value = getattr(arguments, option)
        if value is not None and math.isinf(value):
            raise ValueError(f"--{option.replace('_', '-')} {value:g} is not a finite number")
    if not 0 <= arguments.seed < 2**63 - len(names):
        raise ValueError(f"--seed {arguments.seed} is not from 0 to 2**63 - {len(names) + 1}")
    if arguments.stages == "auto":
        raise ValueError("--stages auto: name the devices that the price is for, such as cpu:0,cpu:1")
    check_kept(arguments)
    if arguments.simulate:
        if arguments.engine is not None:
            raise ValueError("--engine means nothing with --simulate: times are as recorded; leave one of them out")
    else:
        check_loadgen()
    seconds = arguments.seconds or (SECONDS if arguments.simulate else _SECONDS)
    return Asked(
        models,
        arguments.stages,
        arguments.price,
        limits_ms,
        times,
        rates_hz,
        seconds,
        seed=arguments.seed,
        most=arguments.trials,
    )


def _kept(outcome: Outcome) -> Kept:
    sharing = outcome.sharing
    return Kept(
        outcome,
        {} if sharing is None else sharing.dedicated,
        {} if sharing is None else sharing.shared,
        None if sharing is None else sharing.work,
        None if sharing is None else sharing.gain,
        outcome.machines,
    )
