"""Many runs of many policies: one job per run, over processes, with the same noise and events for every policy."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import NamedTuple, Self, get_args

from odin.control.detectors import make_detector
from odin.partitioner.policies import make_policy
from odin_lab.inject.scenario import Scenario
from odin_lab.inject.worker import die_with_parent
from odin_lab.report.results import Cell, DetectionPoint, Timeline
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.detection import Candidate, detection_points
from odin_lab.simulator.door import Deadline, DoorName
from odin_lab.simulator.fluid import run_fluid_bound_hz
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.losses import Losses
from odin_lab.simulator.metrics import to_cell, to_timeline, with_service
from odin_lab.simulator.run import Run, simulate
from odin_lab.simulator.service import serve
from odin_lab.simulator.world import World
from odin_lab.timings import TimingTable, load_timings

__all__ = [
    "Contestant",
    "DetectionJob",
    "Outcome",
    "RunJob",
    "Setup",
    "Stretch",
    "StudyError",
    "make_run",
    "run_job",
    "run_jobs",
]

_SERIAL = " (serial)"
_ANSWERED = " (answered)"
_DOORS = {f" ({name})": name for name in get_args(DoorName) if name != "none"}
_BLIND = ("static", "oracle", "delayed-oracle")  # what a detector finds is nothing to them: a run takes half the time
_AHEAD = 2  # jobs per process that wait to be run
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class StudyError(ValueError):
    """A study cannot be made as asked."""


class Contestant(NamedTuple):
    """A policy and how it is run.

    Attributes
    ----------
    policy
        Its text form.
    serial
        Whether it explores as in the ODIN paper, one request at a time.
    answered
        Whether an oracle is told the conditions under which the request just answered was submitted, in place of those
        of the moment.
    admission
        What is done about requests that would be late: see :mod:`odin_lab.simulator.door`.
    """

    policy: str
    serial: bool = False
    answered: bool = False
    admission: str = "none"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``odin:alpha=10``, ``odin:alpha=10 (serial)``, ``delayed-oracle (answered)`` or ``relay (predict)``.

        Raises
        ------
        ValueError
            If there is no such policy.

        Examples
        --------
        >>> Contestant.parse("lls (serial)")
        Contestant(policy='lls', serial=True, answered=False, admission='none')
        """
        name, admission = text.strip(), "none"
        for suffix, door in _DOORS.items():
            if name.endswith(suffix):
                name, admission = name.removesuffix(suffix), door
        serial, answered = name.endswith(_SERIAL), name.endswith(_ANSWERED)
        return cls(make_policy(name.removesuffix(_SERIAL).removesuffix(_ANSWERED)).name, serial, answered, admission)

    def __str__(self) -> str:
        door = f" ({self.admission})" if self.admission != "none" else ""
        return self.policy + (_SERIAL if self.serial else _ANSWERED if self.answered else "") + door


@dataclass(frozen=True)
class Setup:
    """What a policy is put into.

    Attributes
    ----------
    study
        Name of the study that the result belongs to.
    table
        A shipped timing table by name, or the path of one.
    devices
        How many.
    requests
        How many are submitted.
    period, duration
        Every ``period`` requests one of the table's scenarios on one of the devices for ``duration`` requests; 0, 0
        for none.
    scenario
        Path of a scenario file, in place of period and duration.
    stages
        What the scenario file calls the devices, in order; empty for ``cpu:0``, ``cpu:1``, ...
    speeds
        Speed of each device, 1 being the recorded one's; empty for equal ones.
    arrivals, detector, noise, losses, deadline
        As :func:`odin_lab.simulator.simulate` and :meth:`odin_lab.simulator.World.from_timings` have them.
    """

    study: str
    table: str
    devices: int
    requests: int
    period: int = 0
    duration: int = 0
    scenario: str = ""
    stages: tuple[str, ...] = ()
    speeds: tuple[float, ...] = ()
    arrivals: str = "closed"
    detector: str = "cusum"
    noise: str = "measured"
    losses: str = ""
    deadline: str = ""

    def __post_init__(self) -> None:
        for name in ("devices", "requests"):
            if getattr(self, name) < 1:
                raise StudyError(f"{getattr(self, name)} {name}: a run has at least 1")
        if self.scenario and (self.period or self.duration):
            raise StudyError(f"interference from {self.scenario} and by period and duration: leave one of them out")
        if min(self.period, self.duration) < 0 or (self.period > 0) != (self.duration > 0):
            raise StudyError(
                f"period {self.period}, duration {self.duration}: give both, of at least 1 request, or none of them "
                "for no interference"
            )
        if self.stages and len(self.stages) != self.devices:
            raise StudyError(f"{len(self.stages)} names of stages for {self.devices} devices; give one per device")
        if self.detector != "none":
            make_detector(self.detector, self.devices)
        if self.speeds and len(self.speeds) != self.devices:
            raise StudyError(f"{len(self.speeds)} speeds for {self.devices} devices; give one per device")
        try:
            if self.losses:
                Losses.parse(self.losses).check_fits(self.devices)
            if self.deadline:
                Deadline.parse(self.deadline)
            Arrivals.parse(self.arrivals)
        except ValueError as error:
            raise StudyError(str(error)) from error

    def __str__(self) -> str:
        what = f"period {self.period}, duration {self.duration}" if self.period else self.scenario or "undisturbed"
        arrivals = "" if self.arrivals == "closed" else f", {self.arrivals}"
        deadline = f", deadline {self.deadline}" if self.deadline else ""
        lost = f", lost {self.losses}" if self.losses else ""
        return f"{self.table} on {self.devices} devices, {what}{arrivals}{deadline}{lost}"


class Stretch(NamedTuple):
    """A part of a run that is kept over time: requests ``[first, last)`` by index, under a title."""

    title: str
    first: int = 0
    last: int | None = None


class RunJob(NamedTuple):
    """One run."""

    setup: Setup
    contestant: Contestant
    seed: int
    repeat: int = 0
    stretch: Stretch | None = None


class DetectionJob(NamedTuple):
    """Delays of one detector under one noise."""

    detector: str
    noise_cv: float
    seed: int
    streams: int = 100
    quiet: int = 2_000


class Outcome(NamedTuple):
    """What a job gave."""

    cells: tuple[Cell, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    detections: tuple[DetectionPoint, ...] = ()


Job = RunJob | DetectionJob


@functools.lru_cache(maxsize=8)
def _table(name: str) -> TimingTable:
    return load_timings(name)


def _interference(setup: Setup, table: TimingTable, seed: int) -> Interference | None:
    if setup.scenario:
        stages = setup.stages or tuple(f"cpu:{index}" for index in range(setup.devices))
        return Interference.from_scenario(Scenario.load(setup.scenario), stages)
    if not setup.period:
        return None
    return Interference.periodic(
        devices=setup.devices,
        scenarios=table.scenarios,
        period=setup.period,
        duration=setup.duration,
        length=setup.requests,
        seed=seed,
    )


def make_run(
    job: RunJob,
    *,
    requests: int = 0,
    arrivals: str = "",
    losses: str | Losses | None = "",
    quiet: bool = False,
) -> Run:
    """Simulate: the same noise and events for every contestant of a setup and seed.

    Parameters
    ----------
    requests, arrivals, losses
        In place of the setup's, unless they are 0 or empty; with other arrivals there are no deadlines.
    quiet
        Without noise.

    Raises
    ------
    StudyError
        If the policy fails; names it, the setup and the seed.
    """
    setup = job.setup
    table = _table(setup.table)
    world = World.from_timings(
        table, devices=setup.devices, speeds=setup.speeds or None, noise="none" if quiet else setup.noise
    )
    interference = _interference(setup, table, job.seed)
    policy = make_policy(job.contestant.policy)
    deadline = None if arrivals else setup.deadline or None
    try:
        with warnings.catch_warnings():
            # The controller goes on with static then, and so does the simulator: that would be another policy's result.
            warnings.filterwarnings("error", message="policy .* raised")
            return simulate(
                world,
                policy,
                requests=requests or setup.requests,
                interference=interference,
                arrivals=arrivals or setup.arrivals,
                detector="none" if job.contestant.policy in _BLIND else setup.detector,
                serial_trials=job.contestant.serial,
                truth="finished" if job.contestant.answered else "now",
                losses=(setup.losses or None) if losses == "" else losses,
                deadline=deadline,
                admission=job.contestant.admission if deadline else "none",
                seed=job.seed,
            )
    except (ValueError, UserWarning) as error:
        raise StudyError(f"{job.contestant} on {setup}, seed {job.seed}: {error}") from error


def _fluid_bound_hz(job: RunJob, run: Run) -> float:
    """Of the conditions that a run had."""
    setup = job.setup
    world = World.from_timings(
        _table(setup.table), devices=setup.devices, speeds=setup.speeds or None, noise=setup.noise
    )
    return run_fluid_bound_hz(world, run.interference, run.finished_s, seed=job.seed)


def run_job(job: Job) -> Outcome:
    """Do one job."""
    if isinstance(job, DetectionJob):
        candidate = Candidate(functools.partial(make_detector, job.detector), job.streams)
        return Outcome(
            detections=detection_points(job.detector, candidate, noise_cv=job.noise_cv, seed=job.seed, quiet=job.quiet)
        )
    run, setup, policy = make_run(job), job.setup, str(job.contestant)
    model = _table(setup.table).model
    cell = to_cell(
        run,
        study=setup.study,
        model=model,
        policy=policy,
        devices=setup.devices,
        period=setup.period,
        duration=setup.duration,
        repeat=job.repeat,
    )
    if run.outcome is None:
        cell = replace(cell, fluid_bound_hz=_fluid_bound_hz(job, run))
    else:

        def again(requests: int, losses: Losses | None, *, arrivals: str = "", quiet: bool = False) -> Run:
            return make_run(job, requests=requests, arrivals=arrivals, losses=losses, quiet=quiet)

        cell = with_service(cell, serve(run, again, devices=setup.devices))
    if job.stretch is None:
        return Outcome((cell,))
    title, first, last = job.stretch
    line = to_timeline(run, study=setup.study, model=model, policy=policy, title=title, first=first, last=last)
    return Outcome((cell,), (line,))


def run_jobs(jobs: Sequence[Job], *, processes: int) -> Generator[tuple[Job, Outcome], None, None]:
    """Do jobs in as many processes, and yield each as it is done.

    However the iteration ends - by its end, an exception such as Ctrl-C, or ``close`` - the processes end with it.
    With one process the jobs are done in this one.

    Raises
    ------
    StudyError
        From a job, or if a process was killed.
    """
    if processes < 1:
        raise StudyError(f"{processes} processes: at least 1 is needed")
    if processes == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, run_job(job)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(),),
    )
    try:
        yield from _through(pool, jobs, ahead=_AHEAD * processes)
    except BrokenProcessPool as error:
        raise StudyError(
            "a process of the study was killed, perhaps for want of memory; take fewer by --jobs"
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)  # its own thread waits for them


def _through(
    pool: ProcessPoolExecutor, jobs: Sequence[Job], *, ahead: int
) -> Generator[tuple[Job, Outcome], None, None]:
    waiting: dict[Future[Outcome], Job] = {}
    rest = iter(jobs)
    while True:
        with _no_signals():  # which the processes that start here inherit: they are for this one to see
            while len(waiting) < ahead and (job := next(rest, None)) is not None:
                waiting[pool.submit(run_job, job)] = job
        if not waiting:
            return
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield waiting.pop(future), future.result()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Put Ctrl-C and its like off until the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # else its start, in the block, lets them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int) -> None:
    """Begin a process: it ends with its parent, however that ends."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    if sys.platform == "linux":
        die_with_parent(parent)
