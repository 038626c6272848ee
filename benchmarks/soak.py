"""Full load for long, with stages killed and stopped and loads coming and going at random: does anything grow?

What happens when is drawn beforehand from ``--seed``. Every ten seconds it is looked at what the program, its stages
and Ray's processes hold. After a warm-up a robust line goes through the medians of each minute; the run fails, with
exit status 1, if a quantity surely grows faster than its bound (the whole 95% interval of its slope lies above), or if
an answer was lost, given twice or changed. Runs of less than ten minutes are not judged by growth. Figures of stages
are per stage that lives: a replacement begins anew, so what leaks in a stage shows in those that were not killed. The
event log is kept in small parts, so that its rotation is tried.
``python -m benchmarks.soak``
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import odin
from benchmarks.checked_load import CheckedLoad, Counts, SeenEvents, expected_outputs, small_model
from benchmarks.common import Environment, add_arguments, process_tree, report, write_result
from benchmarks.kills import stages_of
from benchmarks.resources import Sample, Slope, left_behind, medians_over, sample, shared_entries, slope_of
from benchmarks.soak_plot import plot_soak
from benchmarks.spells import default_load
from benchmarks.stage_losses import StageTaker
from odin.monitor.eventlog import EventLog
from odin.stages.device import usable_cores
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load

KINDS = ("kill", "stop", "load")
SPAN_S = 60.0
LOG_PART_NBYTES = 2 * 2**20
JUDGED_S = 600.0
"""Shorter runs say how fast things grow, but are not judged by it: what is being filled is not yet full."""


class Incident(NamedTuple):
    """What happens at a moment, and for how long (a kill has no length)."""

    at_s: float
    kind: str
    length_s: float


class Quantity(NamedTuple):
    """Something that must not grow: how it is read from a sample, its unit, and the bound per hour."""

    name: str
    unit: str
    bound: float
    read: Callable[[Sample], float]


class Verdict(NamedTuple):
    """A quantity's slope beside its bound, and where it began and ended (medians of a minute)."""

    name: str
    unit: str
    first: float
    last: float
    slope: Slope
    bound: float

    @property
    def grows(self) -> bool:
        """Whether the whole interval of the slope lies above the bound."""
        return self.slope.low > self.bound


class SoakResult(NamedTuple):
    """One run; times of samples and incidents are seconds since its begin."""

    counts: Counts
    sent_again: int | None
    seconds: float
    incidents: tuple[Incident, ...]
    skipped: int
    throughput_hz: tuple[float, ...]
    samples: tuple[Sample, ...]
    verdicts: tuple[Verdict, ...]
    events: dict[str, int]
    ended: str
    errors: dict[str, int]
    processes_left: tuple[str, ...]
    shared_left: tuple[str, ...]

    @property
    def judged(self) -> bool:
        """Whether it was long enough to tell growth from filling up."""
        return self.seconds >= JUDGED_S


def _mib(nbytes: float) -> float:
    return nbytes / 2**20


def _each(value: float, one: Sample) -> float:
    return value / max(1, one.stages)


QUANTITIES = (
    Quantity("driver, RSS", "MiB", 16.0, lambda one: _mib(one.driver_rss_nbytes)),
    Quantity("driver, PSS", "MiB", 16.0, lambda one: _mib(one.driver_pss_nbytes)),
    Quantity("driver, descriptors", "", 12.0, lambda one: one.driver_fds),
    Quantity("driver, threads", "", 6.0, lambda one: one.driver_threads),
    Quantity("stage, PSS", "MiB", 16.0, lambda one: _mib(_each(one.stages_pss_nbytes, one))),
    Quantity("stage, descriptors", "", 12.0, lambda one: _each(one.stages_fds, one)),
    Quantity("stage, threads", "", 6.0, lambda one: _each(one.stages_threads, one)),
    Quantity("Ray's processes, PSS", "MiB", 64.0, lambda one: _mib(one.others_pss_nbytes)),
    Quantity("processes", "", 6.0, lambda one: one.processes),
    Quantity("/dev/shm", "MiB", 16.0, lambda one: _mib(one.shared_nbytes)),
    Quantity("/dev/shm, entries", "", 6.0, lambda one: one.shared_entries),
    Quantity("event log", "MiB", 16.0, lambda one: _mib(one.log_nbytes)),
)
"""Bounds per hour. Nothing of ODIN's may grow at all; what noise and Ray's own logs and tables do lies below these."""


def incidents(seconds: float, *, every_s: float, seed: int, kinds: Sequence[str] = KINDS) -> list[Incident]:
    """What happens in a run: some every ``every_s`` on average, of each kind as often, one to ten seconds long.

    A stopped stage stays so for half a second to four.

    Examples
    --------
    >>> [one.kind for one in incidents(60.0, every_s=10.0, seed=2)]
    ['kill', 'load', 'kill', 'stop', 'stop', 'kill']
    """
    found: list[Incident] = []
    draw, at_s = random.Random(seed), 0.0
    while True:
        at_s += draw.expovariate(1 / every_s)
        if at_s >= seconds:
            return found
        kind = draw.choice(kinds)
        length_s = {"kill": 0.0, "stop": draw.uniform(0.5, 4.0), "load": draw.uniform(1.0, 10.0)}[kind]
        found.append(Incident(at_s, kind, length_s))


def judge(samples: Sequence[Sample], *, warmup_s: float, span_s: float = SPAN_S) -> list[Verdict]:
    """A verdict on each quantity, from samples whose times count from the begin of the run."""
    verdicts = []
    at_s = [one.at_s for one in samples]
    for quantity in QUANTITIES:
        moments_s, values = medians_over(at_s, [quantity.read(one) for one in samples], span_s=span_s, since_s=warmup_s)
        slope = slope_of(moments_s, values)
        verdicts.append(Verdict(quantity.name, quantity.unit, values[0], values[-1], slope, quantity.bound))
    return verdicts


class Soak:
    """A run: carries out incidents and looks at resources, in the calling thread.

    Parameters
    ----------
    taker, load, injector
        What is done, and to whom.
    log
        The event log, for its size.
    load_texts
        Loads, of which each time one is drawn.
    """

    def __init__(
        self,
        taker: StageTaker,
        load: CheckedLoad,
        injector: Injector,
        *,
        log: Path,
        load_texts: Sequence[str],
        draw: random.Random,
    ) -> None:
        self._taker, self._load, self._injector = taker, load, injector
        self._log, self._load_texts, self._draw = log, load_texts, draw
        self.samples: list[Sample] = []
        self.throughput_hz: list[float] = []
        self.skipped = 0
        """Losses that were left out, as fewer than two stages were at work."""

    def run(self, planned: Sequence[Incident], *, seconds: float, every_s: float) -> float:
        """Carry out all of it; returns how many seconds it went on."""
        begin_s = time.perf_counter()
        order = itertools.count()  # of what is due at the same moment
        due: list[tuple[float, int, Callable[[], Callable[[], None] | None], float]] = []
        for one in planned:
            heapq.heappush(due, (one.at_s, next(order), self._starter(one), one.length_s))
        looks = [every_s * number for number in range(int(seconds / every_s) + 1)]
        for moment_s in looks:
            heapq.heappush(due, (moment_s, next(order), lambda: self._look(begin_s, every_s), 0.0))
        while due and self._load.alive:
            at_s, _, start, length_s = heapq.heappop(due)
            while self._load.alive and (left_s := begin_s + at_s - time.perf_counter()) > 0:
                time.sleep(min(left_s, 0.2))
            end = start()
            if end is not None:

                def finish(end: Callable[[], None] = end) -> None:
                    end()

                heapq.heappush(due, (time.perf_counter() - begin_s + length_s, next(order), finish, 0.0))
        return time.perf_counter() - begin_s

    def _starter(self, one: Incident) -> Callable[[], Callable[[], None] | None]:
        return {"kill": self._kill, "stop": self._stop, "load": self._begin_load}[one.kind]

    def _look(self, begin_s: float, every_s: float) -> None:
        now_s = time.perf_counter()
        at_work = self._taker.at_work()
        found = sample([stage.pid for stage in at_work], log=self._log)
        self.samples.append(found._replace(at_s=now_s - begin_s))
        self.throughput_hz.append(self._load.completions.rate_hz(max(begin_s, now_s - every_s), now_s))

    def _kill(self) -> None:
        self.skipped += self._taker.take(signal.SIGKILL) is None

    def _stop(self) -> Callable[[], None] | None:
        loss = self._taker.take(signal.SIGSTOP)
        self.skipped += loss is None
        return None if loss is None else lambda: self._taker.go_on(loss)

    def _begin_load(self) -> Callable[[], None]:
        return self._injector.start(Load.parse(self._draw.choice(self._load_texts))).stop


def soak(arguments: argparse.Namespace) -> SoakResult:
    """One run, from opening the pipeline to what it left behind."""
    seconds = 60.0 * arguments.minutes
    planned = incidents(seconds, every_s=arguments.incident_every, seed=arguments.seed, kinds=arguments.kinds)
    chain = odin.build_chain(small_model(), (torch.zeros(1, 3, 64, 64),), name="small")
    inputs, expected = expected_outputs(chain, arguments.inputs, seed=arguments.seed)
    stages, seen, shared_before = stages_of(arguments.stages), SeenEvents(), shared_entries()
    with tempfile.TemporaryDirectory(prefix="odin-soak-") as folder:
        path = Path(folder) / "run.jsonl"
        log = EventLog(path, part_nbytes=LOG_PART_NBYTES)
        with odin.Pipeline(chain, stages=stages, share_devices=True, on_event=seen, log=log) as pipe:
            taker = StageTaker(pipe, seen, random.Random(arguments.seed))
            in_flight = arguments.in_flight or 2 * len(stages)
            with (
                Injector(on_event=pipe.note_load) as injector,
                CheckedLoad(pipe.submit, inputs, expected, in_flight=in_flight, seen=seen) as load,
            ):
                draw = random.Random(arguments.seed)
                run = Soak(taker, load, injector, log=path, load_texts=arguments.loads, draw=draw)
                took_s = run.run(planned, seconds=seconds, every_s=arguments.sample_every)
                pids = {*taker.pids, *process_tree()[1:]}
            counts = load.counts()
    processes_left, shared_left = left_behind(pids, since=shared_before)
    span_s = min(SPAN_S, seconds / 12)
    enough = took_s >= seconds
    return SoakResult(
        counts=counts,
        sent_again=seen.sent_again,
        seconds=took_s,
        incidents=tuple(one for one in planned if one.at_s < took_s),
        skipped=run.skipped,
        throughput_hz=tuple(run.throughput_hz),
        samples=tuple(run.samples),
        verdicts=tuple(judge(run.samples, warmup_s=arguments.warmup * took_s, span_s=span_s)) if enough else (),
        events=dict(seen.counts),
        ended=load.ended,
        errors=dict(load.errors),
        processes_left=tuple(processes_left),
        shared_left=tuple(shared_left),
    )


def row(verdict: Verdict, *, judged: bool) -> list[str]:
    """One line of the table."""
    slope = verdict.slope
    return [
        f"{verdict.name}{f', {verdict.unit}' if verdict.unit else ''}",
        f"{verdict.first:.1f}",
        f"{verdict.last:.1f}",
        f"{slope.per_hour:+.1f} ({slope.low:+.1f}..{slope.high:+.1f})",
        f"{verdict.bound:g}",
        ("GROWS" if verdict.grows else "flat") if judged else "too short",
    ]


def faults(result: SoakResult) -> list[str]:
    """What must not be, one line each."""
    counts = result.counts
    found = [f"{verdict.name} grows" for verdict in result.verdicts if verdict.grows and result.judged]
    if not counts.well:
        found.append(
            f"{counts.lost} requests lost, {counts.duplicated} answered twice, {counts.changed} changed, "
            f"{counts.refused} refused"
        )
    if result.ended:
        found.append(f"the pipeline was lost: {result.ended}")
    found += [f"{count} x {text}" for text, count in result.errors.items()]
    return found + [f"left behind: {what}" for what in (*result.processes_left, *result.shared_left)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 1 if anything grows, or was lost, changed or left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=1)
    core = usable_cores()[:2][-1]
    loads = [default_load(core), f"membw@cpu:{core}", f"cpu@cpu:{core}*0.5"]
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default %(default)s)")
    parser.add_argument("--stages", type=int, default=2, help="on the first two cores in turn (default %(default)s)")
    parser.add_argument("--incident-every", type=float, default=10.0, metavar="S", help="on average (%(default)s s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what happens (%(default)s)")
    parser.add_argument("--loads", nargs="+", default=loads, metavar="LOAD", help="default: %(default)s")
    parser.add_argument("--sample-every", type=float, default=10.0, metavar="S", help="default %(default)s s")
    parser.add_argument("--warmup", type=float, default=0.2, help="part of the run that does not count (%(default)s)")
    parser.add_argument("--in-flight", type=int, default=0, help="requests under way (default: two per stage)")
    parser.add_argument("--inputs", type=int, default=64, help="different inputs, in turn (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, if matplotlib is installed")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.minutes, arguments.sample_every = min(arguments.minutes, 0.5), min(arguments.sample_every, 1.0)
    environment = Environment.collect()
    torch.set_num_threads(1)
    result = soak(arguments)
    happened = Counter(one.kind for one in result.incidents)
    report(
        f"{result.seconds / 60:.1f} minutes of full load, {arguments.stages} stages; "
        f"{', '.join(f'{happened[kind]} {kind}s' for kind in KINDS)} "
        f"({result.skipped} left out, too few stages at work); "
        f"{result.counts.submitted:,} requests, "
        f"{'-' if result.sent_again is None else result.sent_again} sent again",
        ["", "begin", "end", "per hour (95%)", "bound", ""],
        [row(verdict, judged=result.judged) for verdict in result.verdicts],
        environment,
    )
    problems = faults(result)
    for problem in problems:
        print(problem)
    if arguments.plot is not None:
        print(plot_soak(arguments.plot, result.samples, result.throughput_hz, result.incidents))
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=result)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
