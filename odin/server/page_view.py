"""Models and their pipelines as the page shows them: small enough to be sent each second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from odin.family.views import FamilyView
from odin.monitor.view.event_text import answered_text, plan_text, stage_cause, tenants_text, tuned_text
from odin.monitor.view.pipeline_view import PipelineView, StageView
from odin.monitor.view.windows_text import windows_text
from odin.server.messages import ModelState
from odin.server.served import ServedModel
from odin.server.served_family import ServedFamily
from odin.server.served_fleet import FleetModel

__all__ = ["page_models", "page_view"]

_MOST_EVENTS = 40
_MOST_CELLS = 64
_DIGITS = 4
_KEPT = (
    "engine", "policy", "batch", "uptime_s", "completed", "failed", "in_flight", "max_in_flight", "throughput_hz",
    "fluid_bound_hz", "latency_p50_s", "latency_p99_s", "event_count", "ended", "in_time", "late", "refused",
    "off_p50_s", "off_p99_s", "layer_count", "share", "samples_hz",
)  # fmt: skip
_KEPT_OF_STAGE = (
    "stage", "device", "first", "last", "state", "time_s", "reference_s", "slowdown", "queue_s", "utilisation",
)  # fmt: skip


def page_models(
    states: Sequence[ModelState], served: Mapping[str, ServedModel], views: Mapping[str, PipelineView]
) -> list[dict[str, Any]]:
    """What the page shows of all models: those with stages of their own, families and their variants, packed ones."""
    told: list[tuple[int, dict[str, Any]]] = []
    for state in states:
        model, view = served.get(state.name), views.get(state.name)
        rank = 1 if isinstance(model, ServedFamily) else 2 if isinstance(model, FleetModel) else 0
        about = _about(model) if view is None else ""
        shown = None if view is None else page_view(view)
        entries = [{**state._asdict(), "about": about, "answers": "", "view": shown}]
        if isinstance(model, ServedFamily):
            entries = _family_entries(entries[0], model.family.view(), views)
        told += [(rank, entry) for entry in entries]
    return [one for _, one in sorted(told, key=lambda one: one[0])]


def _family_entries(own: dict[str, Any], family: FamilyView, views: Mapping[str, PipelineView]) -> list[dict[str, Any]]:
    """A family with what its variants did, then each of them as a model."""
    counts = [one.counts.told(one.facts.name) for one in family.variants]
    entries = [{**own, "answers": f"{family.policy}: {answered_text(counts, family.refused)}"}]
    for one, count in zip(family.variants, counts, strict=True):
        name = f"{own['name']}/{one.facts.name}"
        state = "READY" if one.state == "loaded" else one.state.upper()
        view = page_view(views[name]) if name in views else None
        told = {
            "name": name,
            "state": state,
            "reason": "",
            "about": "",
            "answers": answered_text([count]),
            "view": view,
        }
        entries.append({**own, **told})
    return entries


def _about(model: ServedModel | None) -> str:
    """What a model is that has no stages of its own to be shown, and how its requests went."""
    if not isinstance(model, ServedFamily | FleetModel):
        return ""
    totals = model.statistics.totals()
    kind = "a family of variants" if isinstance(model, ServedFamily) else "packed"
    return f"{kind}, {totals.succeeded:,} requests answered, {totals.failed:,} not"


def page_view(view: PipelineView) -> dict[str, Any]:
    """Plain values of a view; what is nan or infinite becomes null as JSON."""
    history = msgspec.structs.asdict(view.history)
    return {
        **{name: _short(getattr(view, name)) for name in _KEPT},
        "plan": plan_text(view.plan),
        "windows": windows_text(view.windows) if view.windows else "",
        "together": tenants_text(view.together) if len(view.together) > 1 else "",
        "tuned": tuned_text(view.tuned) if view.tuned is not None else "",
        "stages": [_stage(stage) for stage in view.stages],
        "history": {name: _all_short(points) for name, points in history.items() if name != "seconds"},
        "events": [msgspec.structs.asdict(event) for event in view.events[-_MOST_EVENTS:]],
    }


def _stage(stage: StageView) -> dict[str, Any]:
    shares = stage.layer_shares
    return {
        **{name: _short(getattr(stage, name)) for name in _KEPT_OF_STAGE},
        "cause": stage_cause(stage),
        "shares": _cells(shares) if shares else None,
        "layer_count": round(sum(shares), 1) if shares and not math.isnan(sum(shares)) else 0,
    }


def _cells(shares: Sequence[float]) -> list[int]:
    """How often layers are run, in percent; neighbours together where there are many.

    Examples
    --------
    >>> _cells([1.0, 0.5, float("nan")])
    [100, 50, 0]
    """
    each = -(-len(shares) // _MOST_CELLS)
    parts = [shares[begin : begin + each] for begin in range(0, len(shares), each)]
    return [
        0 if math.isnan(mean) else round(100 * mean) for mean in (math.fsum(part) / len(part) for part in parts)
    ]  # fmt: skip


def _short(value: Any) -> Any:
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return float(f"{value:.{_DIGITS}g}")


def _all_short(values: Iterable[float]) -> list[float]:
    return [_short(value) for value in values]
