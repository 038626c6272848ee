"""``odin simulate``: policies under the same noise and interference, in simulated time; the ODIN paper's whole grid.

Exit status: 0; 2 for wrong usage; 130 after Ctrl-C, when what is done until then has been shown and kept.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from odin.partitioner.files import check_writable
from odin.stages.device import allowed_core_count, cpu_model, usable_cores
from odin_lab.report.results import Results, now
from odin_lab.simulator.batching_table import batching_rows, batching_table
from odin_lab.simulator.door import DoorName
from odin_lab.simulator.fleet_table import fleet_rows, fleet_table
from odin_lab.simulator.metrics import REFERENCES
from odin_lab.simulator.paper import DEVICES, REQUESTS, gather, paper_notes, paper_study
from odin_lab.simulator.study import Contestant, Job, Outcome, RunJob, Setup, StudyError, run_jobs
from odin_lab.simulator.summary import policy_table, render_study, service_table, validation_table
from odin_lab.simulator.tuning_table import tuning_rows, tuning_table
from odin_lab.simulator.validate import validate
from odin_lab.simulator.variants_table import variants_rows, variants_study, variants_table
from odin_lab.timings import load_timings

__all__ = ["add_parser", "run"]

_COMMON = ("output", "json", "seed")
_OPTIONS = {
    "a model": (
        *("devices", "speeds", "policy", "requests", "period", "duration", "scenario", "stages", "arrivals"),
        *("detector", "noise", "serial_trials", "repeats", "jobs", *_COMMON),
        *("lose", "deadline", "admission"),
    ),
    "paper": ("policy", "requests", "repeats", "scaling_repeats", "model", "scaling", "quick", "jobs", *_COMMON),
    "--like": ("detector", "output", "json"),
    "tune": ("repeats", "seed"),
    "batching": ("repeats", "seed"),
    "fleet": ("devices", "repeats", "seed"),
    "variants": ("repeats", "seed", "json"),
}
"""Which options mean something for what is to be done."""
_STUDIES = ("paper", "tune", "batching", "fleet", "variants")
_DEFAULT_POLICIES = ("lls", "odin:alpha=10", "filter", "relay")
_DEFAULT_SURVIVORS = ("static", "filter", "relay")


def add_parser(subparsers: Any) -> None:
    """Add ``odin simulate`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "simulate",
        help="compare policies in simulation, also on the ODIN paper's grid",
        description="Run policies, those that serve live, on the same noise and interference in a simulated pipeline "
        "with measured layer times. odin simulate paper runs the ODIN paper's whole grid; odin simulate tune the "
        "policies of odin tune, odin simulate batching dynamic batching, odin simulate fleet a thousand models, odin "
        "simulate variants the choice of a model's variants.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="MODEL|TABLE|paper|tune|batching|fleet|variants",
        help="model with shipped timings (default resnet50), a file made by odin record, paper, or one of: tune, "
        "batches and instances under a latency limit; batching, requests batched dynamically or one by one; fleet, a "
        "thousand models in little memory; variants, requests of three accuracies by four ways to choose",
    )
    parser.add_argument(
        "--like",
        nargs="+",
        metavar="LOG",
        help="simulate live runs from their event logs, and compare; loads' effects are from TABLE, else from the log",
    )
    parser.add_argument(
        "--policy",
        action="append",
        metavar="POLICY",
        help="relay, filter, static, lls, odin:alpha=2, module:Class; may be repeated",
    )
    pipeline = parser.add_argument_group("pipeline and load")
    pipeline.add_argument("--devices", type=int, metavar="N", help=f"number of devices (default {DEVICES})")
    pipeline.add_argument("--speeds", metavar="1,0.5,..", help="speed of each device relative to the recorded one")
    pipeline.add_argument("--requests", type=int, metavar="N", help=f"number of requests (default {REQUESTS})")
    pipeline.add_argument(
        "--arrivals", help="closed (default), closed:8, poisson:12.5, poisson:2x (of the peak), bursty:.., trace:FILE"
    )
    pipeline.add_argument(
        "--deadline", metavar="TIME", help="time that each request has: 250ms, or 3x the undisturbed latency"
    )
    pipeline.add_argument(
        "--admission",
        action="append",
        metavar="RULE",
        help="what is done about requests that would be late: none, expired, clockwork, predict; may be repeated "
        "(default with --deadline: all)",
    )
    pipeline.add_argument(
        "--lose",
        action="append",
        metavar="LOSS",
        help="devices lost: 3@10s (for good), 3@10s+2s, hang:3@10s+2s, random:60s+2s (each after 60 s on average, for "
        "2 s); may be repeated",
    )
    disturbed = parser.add_argument_group("interference (none unless given)")
    disturbed.add_argument(
        "--period", type=int, metavar="REQUESTS", help="one interference event begins every so many requests"
    )
    disturbed.add_argument("--duration", type=int, metavar="REQUESTS", help="requests that each event lasts")
    disturbed.add_argument(
        "--scenario", metavar="FILE", help="a scenario file as for odin inject, instead of these options"
    )
    disturbed.add_argument(
        "--stages", metavar="DEVICES", help="names of the devices in that file (default cpu:0,cpu:1,..)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--detector", help="cusum (default), threshold, module:Class, none")
    how.add_argument("--noise", help="measured (default), lognormal:CV, none")
    how.add_argument("--serial-trials", action="store_true", help="one request at a time while a policy explores")
    how.add_argument("--seed", type=int, metavar="N", help="seed of noise and events (default 0)")
    how.add_argument("--repeats", type=int, metavar="N", help="runs with seeds SEED, SEED + 1, .. (default 1; paper 3)")
    how.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core for the paper, else 1)")
    how.add_argument("--output", type=Path, metavar="FILE.json", help="keep the results, for odin report")
    how.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")
    paper = parser.add_argument_group("with paper")
    paper.add_argument("--quick", action="store_true", help="1,000 requests and one repeat, in a minute or two")
    paper.add_argument(
        "--model",
        action="append",
        metavar="NAME|FILE",
        help="timings to use instead of the paper's models; may be repeated",
    )
    paper.add_argument("--scaling", metavar="NAME|FILE", help="timings for the study on 4 to 52 devices")
    paper.add_argument("--scaling-repeats", type=int, metavar="N", help="repeats of that study (default 1)")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    mode = _check_usage(arguments)
    if arguments.output is not None:
        check_writable(arguments.output, "--output")
    for log in arguments.like or ():
        if not Path(log).is_file():
            raise StudyError(f"--like {log}: there is no such file; give event logs of odin run --log")
    if mode == "--like":
        return _like(arguments)
    if mode == "variants":
        return _variants(arguments)
    if mode in _TABLES:
        return _table(arguments, mode)
    return _paper(arguments) if mode == "paper" else _single(arguments)


def _check_usage(arguments: argparse.Namespace) -> str:
    """Return what is to be done, after a look at whether the options fit it."""
    own = arguments.what if arguments.what in _STUDIES else "a model"
    mode = "--like" if arguments.like is not None else own
    if mode == "--like" and arguments.what in _STUDIES:
        raise StudyError(f"{arguments.what} and --like are two things: leave one of them out")
    for option in sorted({option for options in _OPTIONS.values() for option in options}):
        if getattr(arguments, option) not in (None, False) and option not in _OPTIONS[mode]:
            fits = " or ".join(name for name, options in _OPTIONS.items() if option in options)
            raise StudyError(f"--{option.replace('_', '-')} means nothing with {mode}, only with {fits}; leave it out")
    for option in ("repeats", "jobs", "requests", "devices", "scaling_repeats"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise StudyError(f"--{option.replace('_', '-')} {value}: at least 1 is needed")
    if arguments.admission and not arguments.deadline:
        raise StudyError("--admission means nothing without --deadline; give one, such as --deadline 3x")
    if arguments.seed is not None and arguments.seed < 0:
        raise StudyError(f"--seed {arguments.seed}: a seed is 0 or more")
    return mode


def _single(arguments: argparse.Namespace) -> int:
    survival = bool(arguments.lose or arguments.deadline)
    asked = [
        Contestant.parse(text) for text in arguments.policy or (_DEFAULT_SURVIVORS if survival else _DEFAULT_POLICIES)
    ]
    if arguments.serial_trials:
        asked = [contestant._replace(serial=True) for contestant in asked]
    if survival or any(contestant.admission != "none" for contestant in asked):
        asked = _with_admission(arguments, asked)
    references = [] if survival else [Contestant(policy) for policy in REFERENCES.values()]
    setup = Setup(
        "single",
        arguments.what or "resnet50",
        arguments.devices or DEVICES,
        arguments.requests or REQUESTS,
        arguments.period or 0,
        arguments.duration or 0,
        scenario=arguments.scenario or "",
        stages=tuple(arguments.stages.split(",")) if arguments.stages else (),
        speeds=_speeds(arguments.speeds),
        arrivals=arguments.arrivals or "closed",
        detector=arguments.detector or "cusum",
        noise=arguments.noise or "measured",
        losses=",".join(arguments.lose or ()),
        deadline=arguments.deadline or "",
    )
    seed = arguments.seed or 0
    jobs = [
        RunJob(setup, contestant, seed + repeat, repeat)
        for repeat in range(arguments.repeats or 1)
        for contestant in dict.fromkeys((*references, *asked))
    ]
    outcomes, ended = _do(jobs, processes=arguments.jobs or 1)
    results = _results(outcomes)
    title = str(setup) + (f", {arguments.repeats} repeats" if arguments.repeats else "")
    table = service_table if survival else policy_table
    kept = _tell(arguments, results, table(title, results.cells))
    return _ended(jobs, outcomes, ended) or int(not kept)


def _with_admission(arguments: argparse.Namespace, asked: Sequence[Contestant]) -> list[Contestant]:
    """Each policy with each rule of admission."""
    rules = arguments.admission or (get_args(DoorName) if arguments.deadline else ("none",))
    for rule in rules:
        if rule not in get_args(DoorName):
            raise StudyError(f"--admission {rule}: there is none of that name; write {', '.join(get_args(DoorName))}")
    for contestant in asked:
        if contestant.serial:
            raise StudyError(
                f"{contestant} under losses or deadlines: trials are not serial there; leave --serial-trials out"
            )
        if contestant.admission != "none" and not arguments.deadline:
            raise StudyError(f"{contestant} means nothing without --deadline; give one, such as --deadline 3x")
    return [
        contestant if contestant.admission != "none" else contestant._replace(admission=rule)
        for contestant in asked
        for rule in rules
    ]


def _paper(arguments: argparse.Namespace) -> int:
    study = paper_study(
        models=arguments.model or (),
        scaling=arguments.scaling,
        extra=[Contestant.parse(text) for text in arguments.policy or ()],
        requests=arguments.requests,
        repeats=arguments.repeats,
        scaling_repeats=arguments.scaling_repeats or 1,
        seed=arguments.seed or 0,
        quick=arguments.quick,
    )
    jobs = study.jobs()
    outcomes, ended = _do(jobs, processes=arguments.jobs or allowed_core_count())
    notes = paper_notes(study)
    if len(outcomes) < len(jobs):
        notes = (f"Broken off after {len(outcomes)} of {len(jobs)} runs.", *notes)
    results = _results(outcomes, notes)
    kept = _tell(arguments, results, render_study(results.cells, study.own))
    return _ended(jobs, outcomes, ended) or int(not kept)


def _like(arguments: argparse.Namespace) -> int:
    table = None if arguments.what is None else load_timings(arguments.what)
    found = tuple(validate(path, table=table, detector=arguments.detector or "cusum") for path in arguments.like)
    results = Results(_command(), now(), _environment(), validations=found)
    return int(not _tell(arguments, results, validation_table(found)))


def _table(arguments: argparse.Namespace, mode: str) -> int:
    """Make one of the tables that are not about plans."""
    seeds = _seeds(arguments)
    rows, make = _TABLES[mode]
    options = {} if arguments.devices is None else {"executors": arguments.devices}
    with _progress(rows(), "rows") as advance:
        table = make(seeds=seeds, on_row=advance, **options)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    return 0


def _variants(arguments: argparse.Namespace) -> int:
    """Policies that choose variants, on a mixed trace."""
    seeds = _seeds(arguments)
    with _progress(variants_rows(), "rows") as advance:
        rows = variants_study(seeds=seeds, on_row=advance)
    if arguments.json:
        print(json.dumps({"seeds": list(seeds), "rows": [row._asdict() for row in rows]}, indent=1))
    else:
        table = variants_table(rows, seeds=len(seeds))
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    return 0


def _seeds(arguments: argparse.Namespace) -> range:
    seed = arguments.seed or 0
    return range(seed, seed + (arguments.repeats or 3))


_TABLES: dict[str, tuple[Callable[[], int], Callable[..., Table]]] = {
    "tune": (tuning_rows, tuning_table),
    "batching": (batching_rows, batching_table),
    "fleet": (fleet_rows, fleet_table),
}


def _speeds(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise StudyError(f"--speeds {text!r}: write one factor per device, such as 1,1,0.5,0.5") from None


def _do(jobs: Sequence[Job], *, processes: int) -> tuple[list[Outcome], BaseException | None]:
    """Do jobs with a progress bar: what is done by then, and what ended it early, Ctrl-C or a run that failed."""
    outcomes: list[Outcome] = []
    steps = run_jobs(jobs, processes=processes)
    try:
        with _progress(len(jobs)) as advance:
            for _, outcome in steps:
                outcomes.append(outcome)
                advance()
    except (KeyboardInterrupt, StudyError) as ended:
        if not outcomes:
            raise
        return outcomes, ended
    finally:
        steps.close()
    return outcomes, None


@contextmanager
def _progress(total: int, what: str = "runs") -> Iterator[Any]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _results(outcomes: Sequence[Outcome], notes: tuple[str, ...] = ()) -> Results:
    cells, timelines, detections = gather(outcomes)
    return Results(_command(), now(), _environment(), cells, timelines, detections, notes=notes)


def _command() -> str:
    return shlex.join(["odin", *sys.argv[1:]])


def _environment() -> dict[str, str]:
    return {
        "cpu": cpu_model(),
        "cores": str(len(usable_cores())),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
    }


def _tell(arguments: argparse.Namespace, results: Results, tables: RenderableType) -> bool:
    """Show results and keep them; whether that could be done, where it was asked for."""
    kept = True
    messages = Console(stderr=True, highlight=False)
    if arguments.output is not None:
        try:
            results.write(arguments.output)
        except OSError as error:
            kept = False
            problem = f"odin simulate: cannot keep the results in {arguments.output}: {error.strerror}"
            messages.print(problem, markup=False, soft_wrap=True)
        else:
            messages.print(f"kept in {arguments.output}; odin report {arguments.output} shows them", soft_wrap=True)
    if arguments.json:
        print(results.to_json())
        return kept
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(tables)
    for note in results.notes:
        console.print(Text(note, style="dim"))
    return kept


def _ended(jobs: Sequence[Job], outcomes: Sequence[Outcome], ended: BaseException | None) -> int:
    if ended is not None:
        print(f"odin simulate: broken off after {len(outcomes)} of {len(jobs)} runs", file=sys.stderr)
        raise ended
    return 0
