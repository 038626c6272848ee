"""What an event log tells of a run: throughput over time, what slowed stages down, and every decision."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from odin.monitor.events import (
    Attributed,
    FamilyCounted,
    KnobTurned,
    LoadChanged,
    PlanChanged,
    PlannedTogether,
    RequestDone,
    RunStarted,
    SlowdownChanged,
    TenantShare,
)
from odin.monitor.logreader import read_log
from odin.monitor.view.event_text import factor, figure, plan_text, planned_rate, seconds, variant_whys
from odin_lab.report.over_time import over_time
from odin_lab.report.promises import from_log
from odin_lab.report.results import Decision, Results, Timeline, now, read_results

__all__ = ["STUDY", "RunLog", "read_log_or_results", "read_run"]

STUDY = "log"

_Span = tuple[float, float, int, str]


class RunLog(NamedTuple):
    """A run; ``timeline`` is None if no request was done."""

    timeline: Timeline | None
    decisions: tuple[Decision, ...]


def read_log_or_results(path: Path) -> Results:
    """Read results, or what an event log, ``*.jsonl``, tells."""
    if path.suffix != ".jsonl":
        return read_results(path)
    told, run = from_log(path), read_run(path)
    return Results(
        f"odin report {path.name}",
        now(),
        timelines=() if run.timeline is None else (run.timeline,),
        promises=(told,) if told.requests or told.in_time or told.late or told.refused else (),
        decisions=run.decisions,
    )


def read_run(path: Path) -> RunLog:
    """Read an event log.

    Raises
    ------
    ValueError
        If it is no event log.
    """
    run: RunStarted | None = None
    finished_s, latency_s, counts = array("d"), array("d"), array("q")
    loads, slow = _Spans(), _Spans()
    decisions: list[Decision] = []
    tenants: dict[str, TenantShare] = {}
    counted: list[Decision] = []
    at_s = 0.0
    for event in read_log(path):
        if isinstance(event, RunStarted):
            run = event
            continue
        assert run is not None  # read_log sees to it
        at_s = max(at_s, event.at_s - run.at_s)
        match event:
            case RequestDone(timeline=timeline):
                finished_s.append(timeline.completed_s - run.at_s)
                latency_s.append(timeline.latency_s)
                counts.append(timeline.requests)
            case PlanChanged():
                decisions.append(_of_plan(path.name, at_s, run, event))
            case KnobTurned() if event.before != event.after:
                decisions.append(_of_knob(path.name, at_s, run.model, event))
            case PlannedTogether():
                now = {one.name: one for one in event.tenants}
                decisions += _of_tenants(path.name, at_s, tenants, now)
                tenants = now
            case FamilyCounted():
                counted = _of_variants(path.name, at_s, event)  # since the start: the last one says it all
            case LoadChanged():
                for stage in _stages(event.on, run):
                    loads.set((stage, event.name, event.pid), at_s, event.name if event.intensity > 0 else "")
            case SlowdownChanged():
                slow.set((event.stage,), at_s, "" if event.state == "end" else factor(event.slowdown))
            case Attributed():
                slow.rename((event.stage,), event.interference)
    assert run is not None
    decisions += counted
    if not finished_s:
        return RunLog(None, tuple(decisions))
    # Lines of a log are in order of the events' times, and these are not always exactly those of the completions.
    order = sorted(range(len(finished_s)), key=finished_s.__getitem__)
    told = over_time(
        [finished_s[at] for at in order],
        [latency_s[at] for at in order],
        seconds=max(at_s, finished_s[order[-1]]),
        counts=[counts[at] for at in order],
    )
    shown = Timeline(
        study=STUDY,
        model=run.model,
        policy=run.policy,
        title=path.name,
        at_s=tuple(round(value, 3) for value in told.at_s),
        throughput_hz=told.throughput_hz,
        latency_s=told.latency_s,
        interference=tuple((loads if loads.any else slow).closed(at_s)),
        changes=tuple((one.at_s, one.after) for one in decisions if one.what == "plan"),
        peak_hz=math.nan,
        turns=_turns(decisions),
    )
    return RunLog(shown, tuple(decisions))


class _Spans:
    """From when to when something was there, by stage first in its key."""

    def __init__(self) -> None:
        self._open: dict[tuple[int | str, ...], tuple[float, str]] = {}
        self._done: list[_Span] = []

    @property
    def any(self) -> bool:
        return bool(self._open or self._done)

    def set(self, key: tuple[int | str, ...], at_s: float, label: str) -> None:
        """It is there under a label from now on; not any more if that is empty."""
        begin_s, known = self._open.pop(key, (at_s, label))
        if label:
            self._open[key] = begin_s, known
        elif known:
            self._done.append((begin_s, at_s, int(key[0]), known))

    def rename(self, key: tuple[int | str, ...], more: str) -> None:
        """More is known of what is there."""
        if key in self._open:
            begin_s, label = self._open[key]
            self._open[key] = begin_s, f"{label.split()[0]} {more}"

    def closed(self, end_s: float) -> list[_Span]:
        """All, in order of time."""
        still = [(begin_s, end_s, int(key[0]), label) for key, (begin_s, label) in self._open.items()]
        return sorted(self._done + still)


def _stages(on: str, run: RunStarted) -> list[int]:
    return [stage for stage, described in enumerate(run.stages) if described.device == on]


def _of_plan(name: str, at_s: float, run: RunStarted, event: PlanChanged) -> Decision:
    after = event.windows or plan_text(event.after)
    expected = f"expecting {planned_rate(event.predicted_hz, batch=run.batch)}" if event.predicted_hz >= 0 else ""
    why = ", ".join(filter(None, (event.decision, event.why, expected)))
    return Decision(name, at_s, run.model, "plan", plan_text(event.before), after, why)


def _of_variants(run: str, at_s: float, event: FamilyCounted) -> list[Decision]:
    """How many requests got which variant, and why."""
    total = max(1, event.refused + sum(one.answered + one.late + one.failed for one in event.variants))
    rows = []
    for one in event.variants:
        missed = ", ".join(f"{many} {how}" for how, many in (("late", one.late), ("failed", one.failed)) if many)
        given = one.answered + one.late + one.failed
        told = f"{given} of {total} ({given / total:.0%})" + (f", {missed}" if missed else "")
        rows.append(Decision(run, at_s, one.name, "variant", "", told, variant_whys(one)))
    if event.refused:
        told = f"{event.refused} of {total} ({event.refused / total:.0%})"
        rows.append(
            Decision(run, at_s, "none", "variant", "", told, "refused: no variant would have done what was asked")
        )
    return rows


def _of_knob(run: str, at_s: float, model: str, event: KnobTurned) -> Decision:
    side = "over" if event.latency_s > event.limit_s else "room below"
    why = f"{event.statistic} {seconds(event.latency_s)}, {side} the limit of {seconds(event.limit_s)}"
    return Decision(
        run, at_s, model, event.knob, str(event.before), str(event.after), why, event.latency_s, event.limit_s
    )


def _of_tenants(run: str, at_s: float, before: dict[str, TenantShare], after: dict[str, TenantShare]) -> list[Decision]:
    """A row for each pipeline that got another plan, came or went."""
    rows = []
    for name in dict.fromkeys((*before, *after)):
        was, now = before.get(name), after.get(name)
        if was is not None and now is not None and was.plan == now.plan:
            continue
        others = ", ".join(other for other in after if other != name)
        why = f"planned with {others}" if others else "planned alone"
        if now is None:
            why = "not there any more"
        else:
            why += f" for {figure(now.rate_hz)}/s" + (f", at most {now.share:.0%}" if now.share < 1 else "")
        plan_before, plan_after = ("-" if one is None else plan_text(one.plan) for one in (was, now))
        rows.append(Decision(run, at_s, name, "together", plan_before, plan_after, why))
    return rows


def _turns(decisions: Sequence[Decision]) -> tuple[tuple[float, str], ...]:
    """Marks of what is no change of the plan; of several pipelines planned at once there is one."""
    marks: dict[tuple[float, str], str] = {}
    for one in decisions:
        if one.what == "together":
            marks[one.at_s, one.what] = "together"
        elif one.what != "plan":
            marks[one.at_s, one.what] = f"{one.what} {one.after}"
    return tuple((at_s, label) for (at_s, _), label in marks.items())
