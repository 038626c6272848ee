"""Events in a few words, as the terminal shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from odin.monitor.events import (
    Attributed,
    Culprit,
    Event,
    EventsMissing,
    FamilyCounted,
    Fault,
    KnobTurned,
    LoadChanged,
    ModelEvicted,
    ModelLoaded,
    MoveFailed,
    PlanChanged,
    PlannedTogether,
    PlanVerified,
    PolicyChanged,
    RequestFailed,
    RequestsRefused,
    RunEnded,
    RunStarted,
    SlowdownChanged,
    StageBack,
    StageLost,
    TenantShare,
    VariantChosen,
    VariantCount,
)
from odin.monitor.view.pipeline_view import StageView, TunedKnob
from odin.monitor.view.windows_text import windows_text

__all__ = [
    "answered_text",
    "cause",
    "event_text",
    "factor",
    "figure",
    "plan_text",
    "planned_rate",
    "seconds",
    "stage_cause",
    "tenants_text",
    "tuned_text",
    "variant_whys",
]

_MOST_STAGES = 8
"""A plan of more stages than this is not written out."""

_MOST_CULPRITS = 4
"""Programs that are named as the cause of a slowdown; of more the number is told."""

_MOVES = {
    "move": "moved",
    "trial": "trying",
    "settle": "settled",
    "undo": "undone",
    "probe": "probing",
    "migrate": "asked to move",
}
_CHANGES = {"onset": "detected", "change": "changed", "end": "restored"}


def figure(value: float) -> str:
    """Three significant figures without an exponent; a dash for nan."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "inf"
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{value:,.{decimals}f}"


def factor(value: float) -> str:
    """A slowdown, as ``2.1x``; a dash for nan."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "inf x"
    return f"{value:.1f}x" if value < 9.95 else f"{value:,.0f}x"


def seconds(value_s: float) -> str:
    """Seconds with three figures, in ms below ten seconds; a dash for nan."""
    if math.isnan(value_s):
        return "-"
    return f"{figure(value_s)} s" if value_s >= 10 else f"{figure(value_s * 1e3)} ms"


def plan_text(plan: Sequence[int]) -> str:
    """Return the plan as ``7|11``, or only how many stages it has if that would be long."""
    return "|".join(map(str, plan)) if len(plan) <= _MOST_STAGES else f"{len(plan)} stages"


def planned_rate(rate_hz: float, *, batch: int) -> str:
    """What a plan does per second: it is made for full micro-batches of so many samples.

    Examples
    --------
    >>> planned_rate(12.0, batch=1), planned_rate(12.0, batch=8)
    ('12.0/s', '12.0 micro-batches of 8/s')
    """
    return f"{figure(rate_hz)}/s" if batch == 1 else f"{figure(rate_hz)} micro-batches of {batch}/s"


def cause(interference: str, culprits: Sequence[Culprit], note: str = "") -> str:
    """What disturbs a stage: ``CPU share, pid 4242 stress-ng 50%``; of many programs those that take the most."""
    shown = sorted(culprits, key=lambda culprit: -culprit.share if culprit.share > 0 else 0.0)[:_MOST_CULPRITS]
    parts = [interference]
    parts += [
        f"pid {culprit.pid} {culprit.name}" + ("" if math.isnan(culprit.share) else f" {culprit.share:.0%}")
        for culprit in shown
    ]
    if len(culprits) > len(shown):
        parts.append(f"{len(culprits) - len(shown)} more")
    return ", ".join(parts) + (f" ({note})" if note else "")


def stage_cause(stage: StageView) -> str:
    """Why a stage is as it is: what disturbs it, or what was seen when it was lost; empty if nothing is to be told."""
    if stage.why_lost:
        return stage.why_lost
    if stage.interference:
        return cause(stage.interference, stage.culprits, stage.note)
    return "cause not known yet" if stage.state == "disturbed" else ""


def tenants_text(tenants: Sequence[TenantShare]) -> str:
    """Pipelines that are planned together: ``resnet50 18|0 at 8.20/s, mobilenet_v2 0|19 at 61.0/s``."""
    return ", ".join(
        f"{one.name} {plan_text(one.plan)} at {figure(one.rate_hz)}/s"
        + (f" with at most {one.share:.0%}" if one.share < 1 else "")
        for one in tenants
    )


def tuned_text(tuned: TunedKnob) -> str:
    """The setting that is adjusted to a latency limit: ``batch 4, p95 limit 100 ms, changed 2 times``."""
    changes = f"changed {tuned.turns:,} time{'' if tuned.turns == 1 else 's'}"
    return f"{tuned.knob} {tuned.value}, {tuned.statistic} limit {seconds(tuned.limit_s)}, {changes}"


def event_text(event: Event, devices: Sequence[str], *, batch: int = 1) -> str:
    """Tell an event in a few words. Finished requests have none: the text is empty.

    Parameters
    ----------
    devices
        The stages'.
    batch
        Most samples of a micro-batch. Plans are made for full ones, so what is expected of them counts these.

    Raises
    ------
    ValueError
        If the event speaks of a stage that the pipeline does not have.
    """
    match event:
        case RunStarted():
            most = f", up to {event.batch} images a request" if event.batch > 1 else ""
            where = windows_text(event.windows) if event.windows else plan_text(event.plan)
            engine = f" with {event.engine}" if event.engine != "torch" else ""
            share = f", {event.share:.0%} of each device" if event.share < 1 else ""
            return f"started: {event.model}{engine} on {_stages(len(event.stages))}, {where}{most}{share}"
        case SlowdownChanged():
            text = f"{_CHANGES.get(event.state, event.state)}: stage {event.stage} {_device(event.stage, devices)}"
            return text if event.state == "end" else f"{text} {factor(event.slowdown)}"
        case Attributed():
            _device(event.stage, devices)
            return "cause: " + cause(f"{event.interference} on stage {event.stage}", event.culprits, event.note)
        case PlanChanged():
            text = _plan_change_text(event)
            if event.prepare_s >= 0:
                text += f" in {event.prepare_s * 1e3:.3g} ms" if event.prepare_s < 1 else f" in {event.prepare_s:.1f} s"
            if event.predicted_hz >= 0:
                text += f", expecting {planned_rate(event.predicted_hz, batch=batch)}"
            return text + (f" ({event.why})" if event.why else "")
        case PlanVerified():
            text = f"got {planned_rate(event.measured_hz, batch=batch)}"
            again = "/s" if batch == 1 else ""
            return text + (f" (expected {figure(event.predicted_hz)}{again})" if event.predicted_hz >= 0 else "")
        case PlannedTogether():
            if len(event.tenants) == 1:
                return f"planned alone: {tenants_text(event.tenants)}"
            return f"planned together: {tenants_text(event.tenants)}"
        case PolicyChanged():
            return f"policy: {event.policy}"
        case StageLost():
            failed = f", {event.failed} of them failed" if event.failed else ""
            had = f"; its {_requests(event.requests)} sent again{failed}" if event.requests else ""
            how = "hangs" if event.hangs else "lost"
            return f"{how}: stage {event.stage} {_device(event.stage, devices)}: {event.why}{had}"
        case StageBack():
            how = f"replaced by process {event.pid}" if event.replaced else "answers again"
            return f"back: stage {event.stage} {_device(event.stage, devices)} {how} after {seconds(event.away_s)}"
        case LoadChanged():
            return f"load: {event.name} on {event.on} " + (
                f"at {event.intensity:.0%}" if event.intensity > 0 else "ended"
            )
        case RequestFailed():
            return f"failed: request {event.request}: {event.error}"
        case RequestsRefused():
            return f"refused: {event.requests} request{'' if event.requests == 1 else 's'} that would have been late"
        case MoveFailed():
            return f"could not move {_move_text(event.plan, event.wanted)}: {event.error}"
        case Fault():
            return f"fault: {event.part}: {event.error}"
        case EventsMissing():
            return f"not recorded: {event.requests} requests, {event.others} other events: {event.why}"
        case RunEnded():
            return f"ended: {event.reason}"
        case KnobTurned():
            if event.before == event.after:
                return f"tuning: {event.knob} {event.after}, {event.statistic} limit {seconds(event.limit_s)}"
            side = "over" if event.latency_s > event.limit_s else "below"
            why = f"{event.statistic} {seconds(event.latency_s)}, {side} the limit of {seconds(event.limit_s)}"
            return f"tuning: {event.knob} {event.before} -> {event.after} ({why})"
        case ModelLoaded() | ModelEvicted():
            what = "loaded" if isinstance(event, ModelLoaded) else "evicted"
            times = f"in {seconds(event.took_s)} (predicted {seconds(event.predicted_s)})"
            there = f"{event.resident} models in memory, {event.resident_nbytes / 2**20:,.0f} MiB"
            return f"{what}: model {event.model} on {_device(event.stage, devices)} {times}; {there}"
        case VariantChosen():
            return _variant_text(event)
        case FamilyCounted():
            return answered_text(event.variants, event.refused)
    return ""


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"


def variant_whys(count: VariantCount) -> str:
    """Why a variant had its requests, such as ``"20 asked, 3 interference"``."""
    whys = {
        "asked": count.asked,
        "deadline": count.deadline,
        "interference": count.interference,
        "unloaded": count.unloaded,
    }
    return ", ".join(f"{many} {why}" for why, many in whys.items() if many)


def answered_text(counts: Sequence[VariantCount], refused: int | None = None) -> str:
    """What variants have answered, and why they were given that; how many requests none was given, if that is known."""
    told = [
        f"{one.name} {one.answered:,}" + (f" ({variant_whys(one)})" if one.answered > one.asked else "")
        for one in counts
    ]
    more = "" if refused is None else f"; {refused:,} refused"
    return f"answered: {', '.join(told)}{more}"


def _variant_text(event: VariantChosen) -> str:
    wanted = f"accuracy >= {event.accuracy:.3g}" if event.accuracy > 0 else "any accuracy"
    wanted += f" within {seconds(event.latency_s)}" if event.latency_s >= 0 else ""
    wanted += f", losing at most {event.budget:.2%}" if event.budget else ""
    if not event.variant:
        soonest = f"; the soonest would take {seconds(event.expected_s)}" if math.isfinite(event.expected_s) else ""
        return f"refused: requests for {wanted}{soonest}"
    instead = f" instead of {event.before}" if event.before else ""
    how = {"load": ", to be loaded", "reduced": ", reduced", "reduced-load": ", reduced, to be loaded"}
    text = f"variant: {event.variant}{instead}{how.get(event.step, '')} for {wanted}"
    return f"{text}, expected in {seconds(event.expected_s)}"


def _requests(count: int) -> str:
    return "request was" if count == 1 else f"{count} requests were"


def _device(stage: int, devices: Sequence[str]) -> str:
    if not 0 <= stage < len(devices):
        raise ValueError(f"an event speaks of stage {stage}; the run has {len(devices)} stages")
    return devices[stage]


def _plan_change_text(event: PlanChanged) -> str:
    how = _MOVES.get(event.decision, event.decision)
    if not event.windows and event.before != event.after:
        return f"{how} {_move_text(event.before, event.after)}"
    # Only where requests change hands is another: no layer moved, and for "migrate" the reason says who wanted it.
    begin = "from now on" if event.decision == "migrate" else f"{how}:"
    at_plan = f"requests change hands at the plan's cuts, {plan_text(event.after)}"
    where = windows_text(event.windows) if event.windows else at_plan
    return f"{begin} {where}"


def _move_text(before: Sequence[int], after: Sequence[int]) -> str:
    if len(after) <= _MOST_STAGES:
        return f"{plan_text(before)} -> {plan_text(after)}"
    changes = [
        f"stage {stage} {was} -> {now}"
        for stage, (was, now) in enumerate(zip(before, after, strict=False))
        if was != now
    ]
    more = len(changes) - 3
    return ", ".join(changes[:3]) + (f" and {more} more" if more > 0 else "")
