"""``odin load``: requests to any server of the Open Inference Protocol, and how soon they are answered.

Exit status: 0; 1 if the server does not answer, or nothing was answered; 2 for wrong usage; 130 after Ctrl-C, 143 after
SIGTERM, 129 after SIGHUP, when what is known until then has been shown and kept.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from msgspec import Struct
from rich.console import Console

from odin.cli.arguments import positive, positive_number
from odin.process.signals import draining
from odin_lab.commands.kept import add_kept, check_kept, draw, keep
from odin_lab.load.campaign import Campaign, Finished, Wishes
from odin_lab.load.client import Target
from odin_lab.load.figures import Figures, Request
from odin_lab.load.introduction import Introduction, gone, introduce, lone_latency_s
from odin_lab.load.loadgen import check_loadgen
from odin_lab.load.progress import trial_progress
from odin_lab.load.samples import parse_input
from odin_lab.load.task import SCENARIOS
from odin_lab.load.trial import Trial, TrialBrokenError
from odin_lab.load.view import headline, render, verdict_line

__all__ = ["add_parser", "run"]


class Kept(Struct, frozen=True):
    """A trial in the file."""

    title: str
    figures: Figures
    requests: list[Request]


class Result(Struct, frozen=True):
    """What ``--output`` keeps.

    Attributes
    ----------
    command, url, server, model
        What was asked, and of whom.
    inputs
        Of each request: name, datatype, shape.
    binary
        Whether tensors went as raw bytes.
    lone_s
        Seconds of a request alone.
    trials
        In their order; a request is due_s, latency_s, behind_s, failure.
    highest_hz, too_much_hz
        Of the search: the highest rate that kept the bound, and the least that did not; None: none.
    words
        The same in words; empty without a search.
    """

    command: str
    url: str
    server: str
    model: str
    inputs: tuple[Any, ...]
    binary: bool
    lone_s: float
    trials: list[Kept]
    highest_hz: float | None
    too_much_hz: float | None
    words: str


def add_parser(subparsers: Any) -> None:
    """Add ``odin load`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "load",
        help="measure a server of the Open Inference Protocol: latency, throughput, highest rate within a bound",
        description="Send requests to any server of the Open Inference Protocol (ODIN, Triton, MLServer, ...), and "
        "show latencies, throughput and failures by kind.",
        epilog="single-stream, offline and server are driven by MLPerf LoadGen; the results are not MLPerf results. "
        "With server, latencies count from when a request is due, however late it is sent. See docs/load.md.",
    )
    parser.add_argument(
        "url", metavar="URL", help="the server: http://HOST:PORT or grpc://HOST:PORT; with TLS https, grpcs"
    )
    parser.add_argument("--model", default="", metavar="NAME", help="default: the server's only model")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--scenario",
        choices=SCENARIOS,
        help="clients: each sends its next request when it has its answer (default); single-stream; offline: all at "
        "once; server: at random times (default with --rate or --p99-ms)",
    )
    load.add_argument(
        "--clients",
        type=positive,
        metavar="N",
        help="requests in flight (default 1; offline: 16)",
    )
    load.add_argument("--rate", type=positive_number, metavar="HZ", help="requests per second on average")
    load.add_argument(
        "--p99-ms",
        type=positive_number,
        metavar="MS",
        help="latency bound for 99%% of all requests; without --rate: find the highest rate that keeps it",
    )
    load.add_argument(
        "--seconds",
        type=positive_number,
        default=10.0,
        metavar="S",
        help="seconds per trial (default %(default)g); with --rate or --p99-ms longer until 100 requests are sent, "
        "up to four times as long",
    )
    load.add_argument(
        "--deadline-ms", type=positive_number, metavar="MS", help="deadline of every request (its parameter timeout)"
    )
    load.add_argument(
        "--patience",
        type=positive_number,
        default=10.0,
        metavar="S",
        help="seconds without an answer after which a request has failed (default %(default)g)",
    )
    load.add_argument("--token-file", type=Path, metavar="FILE", help="file with the server's bearer token")
    what = parser.add_argument_group("requests")
    what.add_argument("--images", type=Path, metavar="FOLDER", help="photographs to send (default: random numbers)")
    what.add_argument("--batch", type=positive, default=1, metavar="N", help="inputs per request (default %(default)s)")
    what.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME:TYPE:SIZES",
        help="type and sizes of an input that the server leaves open: image:FP32:1,3,224,224; may be repeated",
    )
    what.add_argument(
        "--samples", type=positive, default=16, metavar="N", help="number of different inputs (default %(default)s)"
    )
    what.add_argument("--json", action="store_true", help="send tensors as JSON even if the server takes raw bytes")
    what.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of inputs and arrival times (default %(default)s)"
    )
    add_kept(parser, output="save all results, each request included", plot="draw latencies")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    wishes = _wishes(arguments)
    given = [parse_input(text) for text in arguments.input]
    target = Target(
        arguments.url,
        arguments.model,
        binary=not arguments.json,
        deadline_ms=arguments.deadline_ms,
        patience_s=arguments.patience,
        token="" if arguments.token_file is None else arguments.token_file.read_text("utf-8").strip(),
    )
    known = introduce(target, given=given, batch=arguments.batch)
    lone_s = lone_latency_s(known, images=wishes.images, seed=wishes.seed)
    console.print(headline(known, lone_s), markup=False)
    with draining() as drain, trial_progress() as show:

        def look(title: str, trial: Trial) -> bool:
            show(title, trial)
            return not drain.is_set()

        campaign = Campaign(known, wishes, lone_s=lone_s, look=look)
        try:
            campaign.carry_out()
        except TrialBrokenError as error:
            print(f"odin load: {error}", file=sys.stderr)
            return 1
    bound_ms = wishes.bound_ms
    console.print(render(campaign.finished, campaign.search, bound_ms))
    keep(arguments, console, _result(known, lone_s, campaign, bound_ms))
    if arguments.plot is not None and (chosen := _chosen(campaign)) is not None:
        from odin_lab.load.plot import load_plot

        model = known.target.model
        draw(arguments, console, load_plot(campaign.finished, chosen=chosen, bound_ms=bound_ms, model=model))
    if campaign.server_gone:
        print(f"odin load: {gone(known.target.url)}", file=sys.stderr)
        return 1
    return 0 if any(one.figures.answered for one in campaign.finished) else 1


def _wishes(arguments: argparse.Namespace) -> Wishes:
    """Find what cannot be before anything is asked of the server."""
    scenario = arguments.scenario or ("clients" if arguments.rate is arguments.p99_ms is None else "server")
    if scenario != "server" and arguments.rate is not None:
        raise ValueError(f"--rate means nothing with --scenario {scenario}; leave it out, or take server")
    if scenario == "server" and arguments.rate is None and arguments.p99_ms is None:
        raise ValueError("--scenario server: say --rate HZ, or --p99-ms MS to find the highest rate that keeps it")
    if scenario == "single-stream" and arguments.clients not in (None, 1):
        raise ValueError("--clients means nothing with --scenario single-stream, which has one; take clients")
    if arguments.rate is not None and arguments.clients is not None:
        raise ValueError(
            "--clients means nothing with --rate: requests come at random moments, however many are under way; leave "
            "one of them out"
        )
    for option in ("seconds", "rate", "p99_ms", "deadline_ms", "patience"):
        value = getattr(arguments, option)
        if value is not None and math.isinf(value):
            raise ValueError(f"--{option.replace('_', '-')} {value:g} is not a finite number")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed {arguments.seed} is not from 0 to 2**63 - 1")
    if arguments.images is not None and not arguments.images.is_dir():
        raise ValueError(f"--images {arguments.images}: there is no such folder")
    check_kept(arguments)
    if scenario != "clients":
        check_loadgen()
    clients = arguments.clients or (16 if scenario == "offline" else 1)
    bound_ms = arguments.p99_ms if arguments.p99_ms is not None else arguments.deadline_ms
    return Wishes(
        scenario,
        arguments.seconds,
        clients,
        arguments.rate,
        bound_ms,
        samples=arguments.samples,
        seed=arguments.seed,
        images=arguments.images,
    )


def _chosen(campaign: Campaign) -> Finished | None:
    """The trial to draw: that of the highest rate that kept the bound, otherwise the last one with an answer."""
    found = [one for one in campaign.finished if one.requests]
    if campaign.search is not None and campaign.search.passed_hz is not None:
        return next(one for one in found if one.figures.rate_hz == campaign.search.passed_hz)
    return found[-1] if found else None


def _result(known: Introduction, lone_s: float, campaign: Campaign, bound_ms: float | None) -> Result:
    search = campaign.search
    return Result(
        shlex.join(["odin", *sys.argv[1:]]),
        known.target.url,
        known.face.server,
        known.target.model,
        known.inputs,
        known.target.binary,
        lone_s,
        [Kept(*one) for one in campaign.finished],
        None if search is None else search.passed_hz,
        None if search is None else search.failed_hz,
        "" if search is None else verdict_line(search, bound_ms),
    )
