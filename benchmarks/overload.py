"""More requests than can be served: what is still answered in time, and how soon a caller is told that it will not be.

Requests come at random (Poisson) at multiples of the capacity, whatever becomes of those before, each with a deadline
of three times the latency of one request at a time. Both are ODIN's figures from the beginning of the same run and the
same for all contenders, who get the same arrivals. Latency counts from the moment at which a request is due
(:mod:`benchmarks.open_loop`). Capacity is each contender's own: a closed loop by the same path just before and after.
The same again while a load comes to one core and goes (:mod:`benchmarks.spells`); the capacity is then that under the
same load. Each contender runs in a process of its own, which also generates the requests and so shares the cores with
what it measures. Its thread has priority over those (nice -10, where that is allowed); if it was late by more than
``--late-bound`` of the deadline (p99), no figures are given.
``python -m benchmarks.overload``
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import psutil
from msgspec.structs import replace

from benchmarks.alternatives.__main__ import write_images
from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    milliseconds,
    plain,
    report,
    summarize,
    write_result,
)
from benchmarks.open_loop import DROPPED, FAILED, LATE, LOST, REFUSED
from benchmarks.overload_contenders import CONTENDERS
from benchmarks.overload_trial import Reference, Settings, Trial, TrialResult
from benchmarks.spells import default_load
from odin.process.groups import start_group
from odin.stages.device import usable_cores

COLUMNS = (
    "", "capacity /s", "goodput / capacity", "in time of accepted", "refused", "refusal p50 ms", "refusal p99 ms",
    "late", "dropped", "failed, lost", "latency p99 ms", "generator p99 ms",
)  # fmt: skip
REFERENCE = "odin-none"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and write the file if asked to; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=3)
    cores = usable_cores()[:2]
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet50"], metavar="NAME")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--factors", nargs="+", type=float, default=[2.0, 10.0], help="of the capacity (%(default)s)")
    parser.add_argument("--deadlines", type=float, default=3.0, help="deadline / latency alone (default %(default)s)")
    parser.add_argument(
        "--loads",
        nargs="*",
        default=["none", default_load(cores[-1])],
        metavar="LOAD",
        help="loads that come and go, 'none' for none (default %(default)s)",
    )
    parser.add_argument("--on-s", type=float, default=3.0, help="mean seconds that a load stays (default %(default)s)")
    parser.add_argument("--off-s", type=float, default=3.0, help="mean seconds between them (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each trial (default %(default)s)")
    parser.add_argument(
        "--late-bound", type=float, default=0.1, help="generator's p99 / deadline (default %(default)s)"
    )
    parser.add_argument("--serve-ongoing", type=int, default=1, help="max_ongoing_requests (default %(default)s)")
    parser.add_argument("--serve-queued", type=int, default=1, help="max_queued_requests (default %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="of one process (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, min(arguments.seconds, 6.0)
    environment = Environment.collect()
    results = {}
    for model in arguments.models:
        settings = Settings(
            contender=REFERENCE,
            model=model,
            cores=tuple(cores),
            factors=tuple(arguments.factors),
            loads=tuple("" if text == "none" else text for text in arguments.loads),
            seconds=arguments.seconds,
            skip_s=min(2.0, arguments.seconds / 4),
            deadlines=arguments.deadlines,
            late_bound=arguments.late_bound,
            on_s=arguments.on_s,
            off_s=arguments.off_s,
            ongoing=arguments.serve_ongoing,
            queued=arguments.serve_queued,
            seed=arguments.seed,
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_images(model, "", folder)
            first = run_trial(settings, folder, arguments.timeout_s)
            reference = Reference(first.alone_s, first.capacity_hz[""][0])
            settings = replace(settings, reference=reference)
            turns = Turns(settings, folder, arguments.timeout_s)
            candidates = {name: partial(turns, name) for name in arguments.contenders}
            found = interleave(candidates, rounds=arguments.rounds, warmup=0, seed=arguments.seed)
        tell(settings, found, environment)
        results[model] = {"reference": reference, "settings": settings, "rounds": found}
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


class Turns:
    """Runs a contender; arrivals and loads are drawn anew for each turn, the same for all contenders."""

    def __init__(self, settings: Settings, folder: Path, timeout_s: float) -> None:
        self._settings, self._folder, self._timeout_s = settings, folder, timeout_s
        self._turns: dict[str, int] = {}

    def __call__(self, contender: str) -> TrialResult:
        """One turn."""
        turn = self._turns[contender] = self._turns.get(contender, -1) + 1
        settings = replace(self._settings, contender=contender, seed=self._settings.seed + 1000 * turn)
        return run_trial(settings, self._folder, self._timeout_s)


def run_trial(settings: Settings, folder: Path, timeout_s: float) -> TrialResult:
    """Run one contender in a fresh process; RuntimeError with its last words if it fails."""
    print(f"{settings.model}: {settings.contender} ...", file=sys.stderr, flush=True)
    (folder / "task.json").write_text(json.dumps(plain(settings)), encoding="utf-8")
    (folder / "result.json").unlink(missing_ok=True)
    log = folder / "trial.log"
    with log.open("wb") as output:
        group = start_group(
            [sys.executable, "-m", "benchmarks.overload_trial", str(folder)],
            environment={**os.environ, "OMP_NUM_THREADS": "1"},
            output=output,
        )
    try:
        status = psutil.Process(group.leader_pid).wait(timeout_s)
    except psutil.TimeoutExpired:
        status = None
    finally:
        group.end(grace_s=3.0)  # with whatever it left running, which would disturb the next
    if status != 0:
        reason = "failed" if status is not None else f"was not done within {timeout_s:.0f} s"
        raise RuntimeError(f"{settings.contender} {reason}:\n{log.read_text(errors='replace')[-5000:]}")
    return msgspec.convert(json.loads((folder / "result.json").read_bytes()), TrialResult)


def tell(settings: Settings, found: dict[str, list[TrialResult]], environment: Environment) -> None:
    """Print a table for each load and factor: the contenders beside each other."""
    assert settings.reference is not None  # it was measured first
    deadline_s = settings.deadlines * settings.reference.alone_s
    for position, trial in enumerate(next(iter(found.values()))[0].trials):
        report(
            f"{settings.model} on cores {', '.join(map(str, settings.cores))}, {trial.factor:g} x ODIN's capacity of "
            f"{settings.reference.capacity_hz:.1f}/s, deadline {milliseconds(deadline_s)} ms, "
            f"load: {trial.load or 'none'}; {len(next(iter(found.values())))} rounds, medians",
            COLUMNS,
            [[name, *cells([(one, one.trials[position]) for one in rounds])] for name, rounds in found.items()],
            environment,
        )


def cells(trials: Sequence[tuple[TrialResult, Trial]]) -> list[str]:
    """Medians over the rounds whose generator was in time, and sums of what must not be."""
    good = [(result, trial) for result, trial in trials if not trial.figures.too_late]
    late_s = max(trial.figures.generator_p99_s for _, trial in trials)
    if not good:
        return ["void", *["-"] * (len(COLUMNS) - 3), f"{milliseconds(late_s)}, too late"]

    def median(value: Callable[[TrialResult, Trial], float | None]) -> float | None:
        values = [one for result, trial in good if (one := value(result, trial)) is not None]
        return summarize(values).median if values else None

    def capacity_hz(result: TrialResult, trial: Trial) -> float:
        own_hz = result.capacity_hz[trial.load]
        return sum(own_hz) / len(own_hz)

    def share(outcome: str) -> str:
        return f"{sum(trial.figures.counts[outcome] for _, trial in good) / offered:.1%}"

    def total(outcome: str) -> str:
        return str(sum(trial.figures.counts[outcome] for _, trial in good))

    offered = sum(trial.figures.offered for _, trial in good)
    return [
        _form(median(capacity_hz), "{:.1f}".format),
        _form(median(lambda result, trial: trial.figures.goodput_hz / capacity_hz(result, trial)), "{:.3f}".format),
        _form(median(lambda _, trial: trial.figures.in_time_share), "{:.2%}".format),
        share(REFUSED),
        _form(median(lambda _, trial: trial.figures.refusal_p50_s), milliseconds),
        _form(median(lambda _, trial: trial.figures.refusal_p99_s), milliseconds),
        share(LATE),
        share(DROPPED),
        f"{total(FAILED)}, {total(LOST)}",
        _form(median(lambda _, trial: trial.figures.latency_p99_s), milliseconds),
        milliseconds(late_s) if len(good) == len(trials) else f"{milliseconds(late_s)}, {len(trials) - len(good)} void",
    ]


def _form(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


if __name__ == "__main__":
    sys.exit(main())
