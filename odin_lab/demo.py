"""The demonstration: a load arrives beside a stage, layers move, throughput comes back; in about a minute and a half.

::

    undisturbed | load, layers stay | undisturbed | load, layers move ......... | load gone, layers go home
    (policy)    | (static)          | (policy)    | detection, move, recovered  | detection, move, recovered
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin.monitor.events import Attributed, Event, LoadChanged, PlanChanged, RequestDone, SlowdownChanged
from odin.monitor.view.event_text import cause, figure, plan_text, seconds
from odin.monitor.window import percentiles_s
from odin.pipeline import Pipeline
from odin_lab.feeding import Feeder, KeptEvents
from odin_lab.inject.injector import Handle

__all__ = ["DemoReport", "Phase", "phases", "render_demo", "run_phases"]

_SETTLE_S = 2.0
"""Beginning of a phase that its throughput leaves out."""


_LEAST_S = 3.0
"""Seconds that a throughput must at least be of."""


class Phase(NamedTuple):
    """A stretch of the demonstration."""

    name: str
    seconds: float
    policy: str
    loaded: bool


@dataclass(frozen=True)
class PhaseResult:
    """What a phase came to.

    Attributes
    ----------
    plan
        Plan at its end.
    throughput_hz, latency_p50_s, latency_p99_s
        Of the requests that finished in it once it had settled: two seconds after its beginning, or after its last
        move if that was later.
    """

    phase: Phase
    plan: tuple[int, ...]
    throughput_hz: float
    latency_p50_s: float
    latency_p99_s: float


@dataclass(frozen=True)
class Reaction:
    """How a change of the load was answered.

    Attributes
    ----------
    detected_requests, detected_s
        Requests finished, and seconds, until it was detected; ``None`` if it was not.
    moved_requests, moved_s
        Until requests ran under another plan; ``None`` if layers stayed.
    moves
        Plans, the first one before it.
    """

    phase: Phase
    detected_requests: int | None
    detected_s: float | None
    moved_requests: int | None
    moved_s: float | None
    moves: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class DemoReport:
    """All of it."""

    phases: tuple[PhaseResult, ...]
    reactions: tuple[Reaction, ...]
    slowdown: SlowdownChanged | None
    cause: Attributed | None


def phases(policy: str, *, scale: float = 1.0) -> tuple[Phase, ...]:
    """The demonstration's phases; ``scale`` stretches them all."""
    return (
        Phase("undisturbed", 15 * scale, policy, False),
        Phase("load, layers stay", 15 * scale, "static", True),
        Phase("load gone", 8 * scale, policy, False),
        Phase("load, layers move", 25 * scale, policy, True),
        Phase("load gone, layers go home", 18 * scale, policy, False),
    )


def run_phases(
    pipe: Pipeline,
    inputs: Sequence[Any],
    load: Handle,
    recording: KeptEvents,
    script: Iterable[Phase],
    *,
    on_phase: Callable[[Phase], None] = lambda phase: None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> DemoReport:
    """Stream ``inputs`` round and round through the pipeline, go through the phases, and tell what happened.

    Parameters
    ----------
    load
        Started with intensity 0.
    recording
        Takes the pipeline's events.
    stop
        Once true, the phase is the last one, what is under way is finished, and the report is of what happened.

    Raises
    ------
    OdinError
        If the pipeline broke.
    """
    feeder = Feeder(lambda index: submit(pipe, inputs[index % len(inputs)]), in_flight=pipe.max_in_flight)
    spans: list[tuple[Phase, float, float]] = []
    with feeder, ExitStack() as stack:
        stack.callback(load.set_intensity, 0.0)
        for phase in script:
            on_phase(phase)
            begin_s = clock()
            if pipe.policy != phase.policy:
                pipe.policy = phase.policy
            load.set_intensity(1.0 if phase.loaded else 0.0)
            while clock() - begin_s < phase.seconds and feeder.alive and not stop():
                sleep(min(0.2, phase.seconds))
            spans.append((phase, begin_s, clock()))
            if load.ended:
                raise ChildProcessError(f"the load ended by itself: {load.ended}")
            if feeder.error is not None or stop():
                break
    if feeder.error is not None:
        raise feeder.error
    return _report(recording, spans)


def submit(pipe: Pipeline, item: Any) -> Future[Any]:
    """Submit one input: a tensor, or a tuple of several."""
    return pipe.submit(*item) if isinstance(item, tuple) else pipe.submit(item)


def _report(recording: KeptEvents, spans: Sequence[tuple[Phase, float, float]]) -> DemoReport:
    results, reactions = [], []
    slowdown: SlowdownChanged | None = None
    found: Attributed | None = None
    plan: tuple[int, ...] | None = None
    loaded = False
    for phase, begin_s, end_s in spans:
        events = recording.between(begin_s, end_s)
        moves = [event for event in events if isinstance(event, PlanChanged)]
        if plan is None:
            started = [event for event in recording.events if event.kind == "run"]
            plan = started[0].plan if started else ()  # type: ignore[union-attr]
        plans = (plan, *(move.after for move in moves))
        plan = plans[-1]
        settled_s = max([begin_s, *(move.at_s for move in moves)]) + _SETTLE_S
        if end_s - settled_s < _LEAST_S:  # it moved to the last: then of the whole phase
            settled_s = begin_s + _SETTLE_S
        results.append(_result(phase, plan, events, settled_s))
        if phase.loaded != loaded:
            reactions.append(_reaction(phase, events, plans))
        loaded = phase.loaded
        if phase.loaded:
            onsets = [e for e in events if isinstance(e, SlowdownChanged) and e.state == "onset"]
            slowdown = onsets[0] if onsets else slowdown
            causes = [e for e in events if isinstance(e, Attributed)]
            found = causes[0] if causes else found
    return DemoReport(tuple(results), tuple(reactions), slowdown, found)


def _result(phase: Phase, plan: tuple[int, ...], events: Sequence[Event], settled_s: float) -> PhaseResult:
    done = [event for event in events if isinstance(event, RequestDone) and event.at_s >= settled_s]
    span_s = done[-1].at_s - done[0].at_s if len(done) > 1 else 0.0
    p50_s, p99_s = percentiles_s([event.timeline.latency_s for event in done], (50, 99))
    return PhaseResult(phase, plan, (len(done) - 1) / span_s if span_s > 0 else float("nan"), p50_s, p99_s)


def _reaction(phase: Phase, events: Sequence[Event], plans: tuple[tuple[int, ...], ...]) -> Reaction:
    changed = next((e.at_s for e in events if isinstance(e, LoadChanged)), events[0].at_s if events else 0.0)
    wanted = "onset" if phase.loaded else "end"
    after = [event for event in events if event.at_s >= changed]
    detected = next((e for e in after if isinstance(e, SlowdownChanged) and e.state == wanted), None)
    moved = next((e for e in after if isinstance(e, PlanChanged)), None)

    def requests_until(event: Event | None) -> int | None:
        if event is None:
            return None
        return sum(isinstance(e, RequestDone) and e.at_s <= event.at_s for e in after)

    return Reaction(
        phase,
        requests_until(detected),
        None if detected is None else detected.at_s - changed,
        requests_until(moved),
        None if moved is None else moved.at_s + moved.prepare_s - changed,
        plans,
    )


def render_demo(report: DemoReport, devices: Sequence[str]) -> RenderableType:
    """Render what happened: a row per phase, then how each change of the load was answered."""
    table = Table(title="What happened", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("phase")
    for heading in ("plan", "images/s", "of undisturbed", "p50", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    undisturbed_hz = report.phases[0].throughput_hz if report.phases else float("nan")
    for result in report.phases:
        table.add_row(
            result.phase.name,
            plan_text(result.plan),
            figure(result.throughput_hz),
            percent(result.throughput_hz / undisturbed_hz),
            seconds(result.latency_p50_s),
            seconds(result.latency_p99_s),
        )
    lines = Text()
    if report.slowdown is not None:
        stage = report.slowdown.stage
        lines.append(f"stage {stage} {devices[stage]} {report.slowdown.slowdown:.1f}x", style="bold")
        if report.cause is not None:
            lines.append(f", {cause(report.cause.interference, report.cause.culprits, report.cause.note)}")
        lines.append("\n")
    for reaction in report.reactions:
        lines.append(f"{reaction.phase.name}: ", style="bold")
        lines.append(_told(reaction) + "\n")
    return Group(table, lines)


def percent(share: float) -> str:
    """A share as whole percents; a dash for nan."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def _told(reaction: Reaction) -> str:
    if reaction.detected_s is None:
        text = "not detected"
    else:
        text = f"detected after {reaction.detected_requests} requests ({reaction.detected_s:.2f} s)"
    if reaction.moved_s is None:
        return f"{text}; layers stayed"
    plans = " -> ".join(plan_text(plan) for plan in reaction.moves)
    return f"{text}; new plan after {reaction.moved_requests} requests ({reaction.moved_s:.2f} s): {plans}"
