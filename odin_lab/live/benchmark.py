"""The live benchmark: every contender in turn, each run in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from odin.stages.device import Device, DeviceError, usable_cores
from odin_lab.live.child import RunFailedError, UnfitError, run_in_process
from odin_lab.live.measure import Status, Tell
from odin_lab.live.outcome import Run
from odin_lab.live.run_record import Contender, RunRecord, Task
from odin_lab.live.script import Script, turns

__all__ = ["Listener", "choose_cores", "conduct", "make_tasks", "serve_problem"]

_WARMUP_S = 3.0
_DEFAULT_CORES = 2
_FAILED_AT_FIRST = 2


class Runs(Protocol):
    """What carries a task out: :func:`odin_lab.live.child.run_in_process`."""

    def __call__(self, task: Task, *, tell: Tell) -> RunRecord: ...


class Listener:
    """Who is told how the benchmark goes; does nothing."""

    def begins(self, task: Task, number: int) -> None:
        """Run ``number``, 0-based, begins."""

    def tells(self, status: Status) -> None:
        """It tells where it is."""

    def done(self, run: Run) -> None:
        """It is done."""

    def failed(self, task: Task, problem: str) -> None:
        """It failed."""


def choose_cores(devices: Sequence[Device] | None) -> tuple[int, ...]:
    """Cores to compare on: those named, else the first two that can be used.

    Raises
    ------
    DeviceError
        If there is only one, or one is named that is none, or twice.
    """
    usable = usable_cores()
    if devices is None:
        if len(usable) < _DEFAULT_CORES:
            raise DeviceError(
                f"only core {usable[0]} can be used here, and a pipeline whose layers move needs two: give this "
                "process more cores (taskset, the container's cpuset), or take a larger machine"
            )
        return usable[:_DEFAULT_CORES]
    for device in devices:
        if device.kind != "cpu" or len(device.indices) != 1 or device.node:
            raise DeviceError(
                f"{device}: the comparison is on single cores of this machine, each a stage, a replica or a thread; "
                "name them, such as --stages cpu:0,cpu:1"
            )
    cores = tuple(device.indices[0] for device in devices)
    if len(cores) < _DEFAULT_CORES or len(set(cores)) < len(cores):
        raise DeviceError(
            f"{len(set(cores))} cores in {', '.join(map(str, devices))}: at least two different ones are needed"
        )
    return cores


def make_tasks(
    contenders: Sequence[Contender],
    scripts: Sequence[Script],
    *,
    model: str,
    cores: tuple[int, ...],
    seed: int,
    in_flight: int | None = None,
    weights: str = "",
    plan: str = "",
    logs: Path | None = None,
    warmup_s: float = _WARMUP_S,
) -> tuple[Task, ...]:
    """All runs in their order; one script per repeat, the same for all who run in it.

    Raises
    ------
    ValueError
        If somebody is named twice, fewer than one request is to be in flight, or a log exists.
    """
    if in_flight is not None and in_flight < 1:
        raise ValueError(f"{in_flight} requests in flight; at least 1 is needed, and 2 per core keep all of them busy")
    by_title = {contender.title(len(cores)): contender for contender in contenders}
    order = turns([contender.title(len(cores)) for contender in contenders], repeats=len(scripts), seed=seed)
    tasks = []
    for repeat, title in order:
        log = "" if logs is None or by_title[title].kind != "odin" else str(logs / log_name(title, repeat))
        if log and Path(log).exists():
            raise ValueError(f"{log} is there already, and a log holds one run: name an empty folder, or delete it")
        tasks.append(
            Task(
                contender=by_title[title],
                number=list(by_title).index(title),
                repeat=repeat,
                model=model,
                weights=weights,
                plan=plan,
                cores=cores,
                script=scripts[repeat],
                in_flight=in_flight or 2 * len(cores),
                warmup_s=warmup_s,
                log=log,
            )
        )
    return tuple(tasks)


def log_name(title: str, repeat: int) -> str:
    """File name of a run's log: ``odin-alpha-10_1.jsonl``, its repeat counted from 1."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', title).strip('-')}_{repeat + 1}.jsonl"


def conduct(
    tasks: Sequence[Task], listener: Listener, *, run: Runs = run_in_process, keep: Callable[[Run], None]
) -> tuple[str, ...]:
    """Carry out all tasks in turn; a run that fails does not end the others.

    Parameters
    ----------
    keep
        Called with every run that was carried out.

    Returns
    -------
    tuple of str
        What failed, and why.

    Raises
    ------
    UnfitError
        If the very first says that it cannot be.
    RunFailedError
        If nothing but failures came of the first two.
    """
    failures: list[str] = []
    succeeded = False
    for number, task in enumerate(tasks):
        listener.begins(task, number)
        try:
            outcome = Run(task, run(task, tell=listener.tells))
        except (RunFailedError, UnfitError) as error:
            if not succeeded and (isinstance(error, UnfitError) or len(failures) + 1 >= _FAILED_AT_FIRST):
                raise
            failures.append(f"Failed: {task.title}, repeat {task.repeat + 1}: {error}")
            listener.failed(task, str(error))
            continue
        succeeded = True
        keep(outcome)
        listener.done(outcome)
    return tuple(failures)


def serve_problem() -> str:
    """Why Ray Serve cannot be imported; empty if it can. Looked at in another process, as it takes much memory."""
    found = subprocess.run(
        [sys.executable, "-c", "from ray import serve"], capture_output=True, text=True, timeout=120, check=False
    )
    if found.returncode == 0:
        return ""
    return (found.stderr.strip().splitlines() or ["no reason is told"])[-1].partition(". ")[0]
