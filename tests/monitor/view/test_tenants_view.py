"""Who is planned together, and what share a pipeline has, in the view, on the screen, the page and in metrics."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client import generate_latest
from rich.cells import cell_len
from synthetic_run import START_S, run_started

from odin.monitor.events import PlannedTogether, PolicyChanged, TenantShare
from odin.monitor.view.builder import ViewBuilder
from odin.monitor.view.event_text import event_text
from odin.monitor.view.pipeline_view import PipelineView
from odin.monitor.view.screen import plain, render
from odin.server.metric_families import ModelCounts, PipelineFamilies
from odin.server.page_view import page_view

CATS = TenantShare("resnet50", ("cpu:0", "cpu:1"), (18, 0), 8.2)
DOGS = TenantShare("mobilenet_v2", ("cpu:0", "cpu:1"), (0, 19), 61.0, 0.5)
TEXT = "resnet50 18|0 at 8.20/s, mobilenet_v2 0|19 at 61.0/s with at most 50%"


def view_of(*events, share: float = 1.0) -> PipelineView:
    builder = ViewBuilder()
    builder.apply(msgspec.structs.replace(run_started(), share=share))
    for event in events:
        builder.apply(event)
    return builder.view(START_S + 5.0)


def test_events_name_the_company():
    assert event_text(PlannedTogether(1.0, (CATS, DOGS)), ["cpu:0", "cpu:1"]) == f"planned together: {TEXT}"
    assert event_text(PlannedTogether(1.0, (CATS,)), ["cpu:0"]) == "planned alone: resnet50 18|0 at 8.20/s"
    started = msgspec.structs.replace(run_started(), share=0.3)
    assert event_text(started, ["cpu:0"]).endswith(", 30% of each device")


def test_the_view_has_the_latest_company_until_the_policy_is_another():
    view = view_of(PlannedTogether(START_S + 1, (CATS,)), PlannedTogether(START_S + 2, (CATS, DOGS)))
    assert view.together == (CATS, DOGS)
    assert PipelineView.from_json(view.to_json()).together == view.together
    assert view_of(PlannedTogether(START_S + 1, (CATS, DOGS)), PolicyChanged(START_S + 2, "relay")).together == ()


@pytest.mark.parametrize("width", [40, 60, 100, 160])
def test_the_screen_has_a_line_for_it_where_there_is_something_to_tell(width):
    view = view_of(PlannedTogether(START_S + 1, (CATS, DOGS)))
    lines = render(view, width=width, height=40).plain.splitlines()
    assert len(lines) <= 40
    assert max(map(cell_len, lines)) <= width
    assert any(line.startswith(" together resnet50 18|0 at 8.20/s"[:width]) for line in lines)
    assert f" together {TEXT}" in plain(view, width=160)
    assert " share at most 30% of each device" in plain(view_of(share=0.3))
    assert "together" not in plain(view_of(PlannedTogether(START_S + 1, (CATS,)))).replace("planned together", "")
    assert "share at most" not in plain(view_of())


def test_a_share_bounds_what_the_devices_allow():
    assert view_of(share=0.25).fluid_bound_hz == pytest.approx(0.25 * view_of().fluid_bound_hz)


def test_the_page_and_the_metrics_tell_it():
    view = view_of(PlannedTogether(START_S + 1, (CATS, DOGS)), share=0.5)
    page = page_view(view)
    assert (page["together"], page["share"]) == (TEXT, 0.5)
    assert page_view(view_of(PlannedTogether(START_S + 1, (CATS,))))["together"] == ""
    families = PipelineFamilies()
    families.add("cats", view, ModelCounts())

    class Registry:
        def collect(self):
            return families.families()

    text = generate_latest(Registry()).decode()  # type: ignore[arg-type]
    assert 'odin_share_ratio{model="cats"} 0.5' in text
    name = "odin_planned_together_requests_per_second"
    assert f'{name}{{model="cats",plan="18|0",tenant="resnet50"}} 8.2' in text
    assert f'{name}{{model="cats",plan="0|19",tenant="mobilenet_v2"}} 61.0' in text
