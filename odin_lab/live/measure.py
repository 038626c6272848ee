"""Measures one server while a script's loads come and go beside it.

::

    warm-up | quiet lead-in | load ... | quiet | load ...     feeding all the time
            0 = beginning of the measured time          end
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Protocol

from odin.monitor.events import LoadChanged, PlanChanged, RunStarted
from odin.monitor.view.event_text import plan_text
from odin_lab.feeding import Answer, Feeder, KeptEvents
from odin_lab.inject.injector import Handle, Injector
from odin_lab.inject.play import play
from odin_lab.live.machine import StealMeter, process_tree, pss_nbytes, release_memory
from odin_lab.live.run_record import LoadSpan, Move, RunRecord, Task
from odin_lab.live.script import Script
from odin_lab.live.server import Server

__all__ = ["Status", "Tell", "explored", "load_spans", "measure", "plan_moves", "split_answers"]

_FAILURES = 20
_LAST_ANSWERS_S = 30.0
_LOOK_S = 0.1
_TELL_S = 0.5
_TRIALS = ("trial", "probe")


class Status(NamedTuple):
    """Where a run is: ``starting``, ``warming up``, ``measuring``; requests per second of late, loads at work."""

    phase: str
    at_s: float = 0.0
    throughput_hz: float = 0.0
    loads: tuple[str, ...] = ()


class Tell(Protocol):
    """Who is told where a run is."""

    def __call__(self, status: Status) -> None: ...


def measure(
    task: Task,
    server: Server,
    *,
    recorder: KeptEvents,
    tell: Tell = lambda status: None,
    clock: Callable[[], float] = time.perf_counter,
) -> RunRecord:
    """Feed a server, play the script beside it, and sum up what happened.

    Parameters
    ----------
    recorder
        Has the pipeline's events; empty for others.

    Raises
    ------
    RuntimeError
        If the server answered many requests in a row with failures, or a load ended by itself.
    """
    changes: list[LoadChanged] = []

    problems: list[BaseException] = []

    def on_load(event: LoadChanged) -> None:
        changes.append(event)
        server.note_load(event)

    def on_end(handle: Handle) -> None:
        if handle.failed:
            problems.append(ChildProcessError(f"{handle.load}: {handle.ended}"))

    feeder = Feeder(
        server.submit, in_flight=task.in_flight, failures=_FAILURES, patience_s=_LAST_ANSWERS_S, clock=clock
    )
    script = task.script
    with feeder:
        _wait_until(lambda: feeder.finished >= 2 * task.in_flight, feeder, tell, "warming up")
        warm_s = clock() + task.warmup_s
        _wait_until(lambda: clock() >= warm_s, feeder, tell, "warming up")
        with ExitStack() as stack:
            injector = stack.enter_context(Injector(on_event=on_load, on_end=on_end))
            meter = StealMeter()
            begin_s = clock()
            stack.enter_context(_playing(script, injector, problems))
            end_s = begin_s + script.seconds
            told_s, told = begin_s, feeder.finished
            while (now_s := clock()) < end_s:
                _check(feeder, problems)
                if now_s - told_s >= _TELL_S:
                    finished = feeder.finished
                    loads = tuple(
                        f"{handle.name} on {handle.load.on}" for handle in injector.handles if handle.intensity
                    )
                    tell(Status("measuring", now_s - begin_s, (finished - told) / (now_s - told_s), loads))
                    told_s, told = now_s, finished
                time.sleep(min(_LOOK_S, end_s - now_s))
            steal = meter.share()
        _check(feeder, problems)
    release_memory()
    here = process_tree()
    moves = plan_moves(recorder, begin_s, end_s)
    exploring, trials = explored(recorder, begin_s, end_s)
    answers, failed = split_answers(feeder.answers, begin_s, end_s)
    return RunRecord(
        submitted_s=tuple(answer.submitted_s - begin_s for answer in answers),
        finished_s=tuple(answer.finished_s - begin_s for answer in answers),
        lost=failed + feeder.unanswered,
        plan=server.plan,
        moves=moves,
        exploring=exploring,
        trials=trials,
        loads=load_spans(changes, begin_s, end_s),
        steal=steal,
        memory_nbytes=pss_nbytes({*here, *server.worker_pids}),
        model_nbytes=pss_nbytes({here[0], *server.worker_pids}),
    )


def split_answers(answers: Iterable[Answer], begin_s: float, end_s: float) -> tuple[list[Answer], int]:
    """Requests answered from ``begin_s`` up to ``end_s``, in order of completion, and how many failed then."""
    then = sorted((a for a in answers if begin_s <= a.finished_s < end_s), key=lambda answer: answer.finished_s)
    good = [answer for answer in then if not answer.error]
    return good, len(then) - len(good)


def load_spans(changes: Iterable[LoadChanged], begin_s: float, end_s: float) -> tuple[LoadSpan, ...]:
    """From when to when each load was at work, in order of their beginnings; seconds from ``begin_s``."""
    begun: dict[int, LoadChanged] = {}
    spans: list[LoadSpan] = []
    for change in changes:
        if change.intensity > 0:
            begun.setdefault(change.pid, change)
        elif (start := begun.pop(change.pid, None)) is not None:
            spans.append(LoadSpan(start.at_s - begin_s, min(change.at_s, end_s) - begin_s, start.on, start.name))
    spans += [LoadSpan(start.at_s - begin_s, end_s - begin_s, start.on, start.name) for start in begun.values()]
    return tuple(sorted(spans))


def plan_moves(recorder: KeptEvents, begin_s: float, end_s: float) -> tuple[Move, ...]:
    """Plan changes from ``begin_s`` up to ``end_s``; when requests ran under the new plan, seconds from ``begin_s``.

    Where only windows changed, no layer moved.
    """
    return tuple(
        Move(event.at_s + event.prepare_s - begin_s, plan_text(event.after), event.decision)
        for event in recorder.of(PlanChanged)
        if begin_s <= event.at_s < end_s and event.after != event.before
    )


def explored(recorder: KeptEvents, begin_s: float, end_s: float) -> tuple[float, int]:
    """Share of the requests of that time that ran under a plan on trial, and how many plans were tried in it.

    The way back to the plan from before the trials is none, whatever the policy calls it.
    """
    steady = next((event.plan for event in recorder.of(RunStarted)), ())
    on_trial: set[int] = set()
    trials = 0
    for event in recorder.of(PlanChanged):
        if event.decision in _TRIALS and event.after != steady:
            on_trial.add(event.epoch)
            trials += begin_s <= event.at_s < end_s
        else:
            steady = event.after
    epochs = [timeline.epoch for timeline in recorder.timelines() if begin_s <= timeline.completed_s < end_s]
    return (sum(epoch in on_trial for epoch in epochs) / len(epochs) if epochs else 0.0), trials


def _wait_until(condition: Callable[[], bool], feeder: Feeder, tell: Tell, phase: str) -> None:
    tell(Status(phase))
    while not condition():
        _check(feeder)
        time.sleep(_LOOK_S)


def _check(feeder: Feeder, problems: Sequence[BaseException] = ()) -> None:
    """Raise what went wrong."""
    if feeder.error is not None:
        raise RuntimeError(f"requests are not answered any more: {feeder.error!r}") from feeder.error
    if problems:
        if isinstance(problems[0], ValueError):  # there can be no such load here
            raise problems[0]
        raise RuntimeError(f"the loads could not be played: {problems[0]}") from problems[0]


@contextmanager
def _playing(script: Script, injector: Injector, problems: list[BaseException]) -> Iterator[None]:
    """Play a script meanwhile; what goes wrong is added to ``problems``."""
    over = threading.Event()

    def run() -> None:
        try:
            play(script.scenario, injector, stop=over)
        except BaseException as error:
            if not over.is_set():
                problems.append(error)

    player = threading.Thread(target=run, name="odin-bench-loads", daemon=True)
    player.start()
    try:
        yield
    finally:
        over.set()
        player.join(10.0)
