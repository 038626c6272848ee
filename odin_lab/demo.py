"""The demonstration: a load arrives beside a stage, first with a fixed plan, then with a policy that answers it.

::

    undisturbed | load, fixed plan | load gone | load, policy .............. | load gone, policy
    (policy)    | (static)         | (policy)  | detected, answered          | detected, as before the load
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin.monitor.events import Attributed, Event, LoadChanged, PlanChanged, RequestDone, RunStarted, SlowdownChanged
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
    layers
        Layers per stage at its end, as text; ``~`` and means over its requests where each changed hands at a cut of
        its own.
    throughput_hz, latency_p50_s, latency_p99_s
        Of the requests that finished in it once it had settled: two seconds after its beginning, or after its last
        move if that was later.
    """

    phase: Phase
    layers: str
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
    shares
        Mean layers per stage before and after it, where each request changed hands at a cut of its own; only those
        after it, if a plan was in force before; else empty.
    """

    phase: Phase
    detected_requests: int | None
    detected_s: float | None
    moved_requests: int | None
    moved_s: float | None
    moves: tuple[tuple[int, ...], ...]
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class DemoReport:
    """All of it.

    Attributes
    ----------
    slowdown, cause
        The first one while the load was there; ``None`` if there was none.
    slowdown_before, cause_before
        The same before it came: something else was busy on the cores.
    """

    phases: tuple[PhaseResult, ...]
    reactions: tuple[Reaction, ...]
    slowdown: SlowdownChanged | None
    cause: Attributed | None
    slowdown_before: SlowdownChanged | None
    cause_before: Attributed | None


def phases(policy: str, *, scale: float = 1.0) -> tuple[Phase, ...]:
    """The demonstration's phases; ``scale`` stretches them all."""
    return (
        Phase("undisturbed", 15 * scale, policy, False),
        Phase("load, fixed plan", 15 * scale, "static", True),
        Phase("load gone", 8 * scale, policy, False),
        Phase(f"load, {policy}", 25 * scale, policy, True),
        Phase(f"load gone, {policy}", 18 * scale, policy, False),
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
    slowdown, found, slowdown_before, found_before = None, None, None, None
    plan: tuple[int, ...] | None = None
    loaded, windows, shares_before = False, "", ""
    for phase, begin_s, end_s in spans:
        events = recording.between(begin_s, end_s)
        changes = [event for event in events if isinstance(event, PlanChanged)]
        if plan is None:
            started = [event for event in recording.events if isinstance(event, RunStarted)]
            plan, windows = (started[0].plan, started[0].windows) if started else ((), "")
        moves = [change for change in changes if change.decision != "migrate"]  # those are changes of the policy
        plans = (plan, *(move.after for move in moves))
        plan = changes[-1].after if changes else plan
        windows = changes[-1].windows if changes else windows
        settled_s = max([begin_s, *(move.at_s for move in moves)]) + _SETTLE_S
        if end_s - settled_s < _LEAST_S:  # it moved to the last: then of the whole phase
            settled_s = begin_s + _SETTLE_S
        results.append(_result(phase, plan, windows, events, settled_s))
        layers = results[-1].layers
        if phase.loaded != loaded:
            shares = tuple(filter(None, (shares_before, layers))) if windows else ()
            reactions.append(_reaction(phase, events, plans, shares))
        loaded, shares_before = phase.loaded, layers if windows else ""
        onset = next((e for e in events if isinstance(e, SlowdownChanged) and e.state == "onset"), None)
        causes = (e for e in events if isinstance(e, Attributed) and (onset is None or e.stage == onset.stage))
        why = next(causes, None)
        if phase.loaded:
            slowdown, found = onset or slowdown, why or found
        elif len(results) == 1:
            slowdown_before, found_before = onset, why
    return DemoReport(tuple(results), tuple(reactions), slowdown, found, slowdown_before, found_before)


def _result(
    phase: Phase, plan: tuple[int, ...], windows: str, events: Sequence[Event], settled_s: float
) -> PhaseResult:
    done = [event for event in events if isinstance(event, RequestDone) and event.at_s >= settled_s]
    span_s = done[-1].at_s - done[0].at_s if len(done) > 1 else 0.0
    p50_s, p99_s = percentiles_s([event.timeline.latency_s for event in done], (50, 99))
    rate_hz = (len(done) - 1) / span_s if span_s > 0 else float("nan")
    return PhaseResult(phase, _layers(done) if windows and done else plan_text(plan), rate_hz, p50_s, p99_s)


def _layers(done: Sequence[RequestDone]) -> str:
    """Mean layers per stage of requests that changed hands each at a cut of its own.

    Not medians: many such requests change hands early or never.
    """
    cuts = np.mean([[timing.last for timing in event.timeline.stages] for event in done], axis=0)
    return "~" + plan_text(tuple(np.diff(np.rint(cuts).astype(int), prepend=0).tolist()))


def _reaction(
    phase: Phase, events: Sequence[Event], plans: tuple[tuple[int, ...], ...], shares: tuple[str, ...]
) -> Reaction:
    changed = next((e.at_s for e in events if isinstance(e, LoadChanged)), events[0].at_s if events else 0.0)
    wanted = "onset" if phase.loaded else "end"
    after = [event for event in events if event.at_s >= changed]
    detected = next((e for e in after if isinstance(e, SlowdownChanged) and e.state == wanted), None)
    moved = next((e for e in after if isinstance(e, PlanChanged) and e.decision != "migrate"), None)

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
        shares,
    )


def render_demo(report: DemoReport, devices: Sequence[str]) -> RenderableType:
    """Render what happened: a row per phase, then how each change of the load was answered."""
    table = Table(title="What happened", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("phase")
    for heading in ("layers", "images/s", "of undisturbed", "p50", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    undisturbed_hz = report.phases[0].throughput_hz if report.phases else float("nan")
    for result in report.phases:
        table.add_row(
            result.phase.name,
            result.layers,
            figure(result.throughput_hz),
            percent(result.throughput_hz / undisturbed_hz),
            seconds(result.latency_p50_s),
            seconds(result.latency_p99_s),
        )
    if any(result.layers.startswith("~") for result in report.phases):
        table.caption = "~: means over requests, each of which may change hands at another cut"
        table.caption_justify = "left"
    lines = Text()
    if report.slowdown_before is not None:
        lines.append_text(_slowed(report.slowdown_before, report.cause_before, devices))
        lines.append(", before the load came: shares of undisturbed say little. Try again while nothing else runs.\n")
    if report.slowdown is not None:
        lines.append_text(_slowed(report.slowdown, report.cause, devices)).append("\n")
    for reaction in report.reactions:
        lines.append(f"{reaction.phase.name}: ", style="bold")
        lines.append(_told(reaction) + "\n")
    return Group(table, lines)


def _slowed(slowdown: SlowdownChanged, found: Attributed | None, devices: Sequence[str]) -> Text:
    text = Text().append(f"stage {slowdown.stage} {devices[slowdown.stage]} {slowdown.slowdown:.1f}x", style="bold")
    return text.append(f", {cause(found.interference, found.culprits, found.note)}") if found else text


def percent(share: float) -> str:
    """A share as whole percents; a dash for nan."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def _told(reaction: Reaction) -> str:
    if reaction.detected_s is None:
        text = "not detected"
    else:
        text = f"detected after {reaction.detected_requests} requests ({reaction.detected_s:.2f} s)"
    if reaction.shares:
        return f"{text}; mean layers per request: {' -> '.join(reaction.shares)}"
    if reaction.moved_s is None:
        return f"{text}; layers stayed"
    plans = " -> ".join(plan_text(plan) for plan in reaction.moves)
    return f"{text}; new plan after {reaction.moved_requests} requests ({reaction.moved_s:.2f} s): {plans}"
