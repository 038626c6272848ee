"""What the report tells, in order: sections of text, tables and figures; what there is no data for is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from odin_lab.report.comparison import base_name, is_ours, is_yardstick, order_policies, scores
from odin_lab.report.decisions import decisions
from odin_lab.report.figures import Plot
from odin_lab.report.parts import Data, Report, Section, compare, slug, study_name
from odin_lab.report.plots import draw_cdfs, draw_heat, draw_scaling, draw_slo
from odin_lab.report.results import Cell, Results, ResultsError, merge
from odin_lab.report.sections_measured import detection, live, promises, timelines, validation
from odin_lab.report.sections_service import service
from odin_lab.report.style import looks
from odin_lab.report.summary import cells_table, costs_table, headline_table, misses_table, misses_text, scaling_table

__all__ = ["make_report"]


def make_report(results: Sequence[Results], *, title: str = "Evaluation of ODIN") -> Report:
    """Put together what there is to tell.

    Raises
    ------
    ResultsError
        If the results hold nothing, or contradict each other.
    """
    whole = merge(*results)
    told = whole.cells, whole.timelines, whole.detections, whole.validations, whole.promises, whole.decisions
    if not any(told):
        raise ResultsError("the results hold nothing to report; give files with cells, timelines, detections")
    policies = [cell.policy for cell in whole.cells] + [line.policy for line in whole.timelines]
    data = Data(whole, tuple(results), looks(policies))
    makers: tuple[Callable[[Data], Section | None], ...] = (
        _headline,
        _misses,
        service,
        timelines,
        live,
        _heat,
        _latency,
        _slo,
        _scaling,
        _costs,
        detection,
        validation,
        promises,
        decisions,
        _notes,
    )
    sections = tuple(section for make in makers if (section := make(data)) is not None)
    return Report(title, sections, tuple(results))


def _headline(data: Data) -> Section | None:
    tables = tuple(headline_table(data.cells(study), f"Summary of the {study_name(study)}") for study in data.studies)
    return Section("summary", "Summary", (), tables) if tables else None


def _misses(data: Data) -> Section | None:
    found = scores(cell for cell in data.whole.cells if not cell.study.startswith("live"))
    if not found:
        return None
    texts = []
    for study in dict.fromkeys(place.study for place in found):
        here = {place: group for place, group in found.items() if place.study == study}
        ours = [p for p in order_policies(p for group in here.values() for p in group) if is_ours(p)]
        texts += [f"In the {study_name(study)}: {misses_text(here, policy)}" for policy in ours]
    return Section("misses", "Misses", tuple(texts), (misses_table(found, "Misses of all policies"),))


def _heat(data: Data) -> Section | None:
    tables, plots = [], []
    references = (("of_delayed", "delayed oracle"), ("of_oracle", "oracle"))
    for name, reference in references:
        value = attrgetter(name)
        places = {
            place: {
                p: s
                for p, s in found.items()
                if math.isfinite(value(s)) and (name != "of_delayed" or not is_yardstick(p))
            }
            for place, found in scores(data.cells("grid")).items()
        }
        places = {
            place: {p: s for p, s in found.items() if base_name(p) != "oracle"} for place, found in places.items()
        }
        policies = order_policies(policy for found in places.values() for policy in found)
        if not policies:
            continue
        worst = [
            f"{policy} {min(value(found[policy]) for found in places.values() if policy in found):.3f}"
            for policy in policies
        ]
        caption = (
            f"Throughput / that of the {reference} over the period and the duration of the interference, in requests; "
            f"one colour scale for all. Worst cells: {', '.join(worst)}."
        )
        label = f"throughput / {reference}"
        draw = partial(draw_heat, places=places, policies=policies, value=value, looks=data.looks, label=label)
        plots.append(Plot(slug("heat", name), label.capitalize(), caption, draw, data.of("grid")))
        tables.append(cells_table(data.cells("grid"), name, f"Throughput / {reference}, cell by cell"))
    return Section("grid", "Every period and duration", (), tuple(tables), tuple(plots)) if plots else None


def _groups(data: Data, told: Callable[[Cell], Any]) -> dict[str, dict[str, list[Cell]]]:
    """Cells that tell something, by study and model; scaling is left out: its devices differ too much to be one."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for study in (study for study in data.studies if study != "scaling"):
        for cell in data.cells(study):
            if told(cell):
                found.setdefault(study, {}).setdefault(cell.model, []).append(cell)
    return found


def _pooled(cells: Mapping[str, Sequence[Cell]]) -> str:
    counts = {(cell.devices, cell.period, cell.duration) for group in cells.values() for cell in group}
    return f"all {len(counts)} settings together" if len(counts) > 1 else "one setting"


def _latency(data: Data) -> Section | None:
    plots = []
    for study, groups in _groups(data, attrgetter("latency_quantiles_s")).items():
        every = [cell for cells in groups.values() for cell in cells]
        p99 = compare(scores(every), lambda score: score.latency_p99_s * 1e3, ".0f")
        caption = f"Latency of the requests of {_pooled(groups)}, a panel per model. Mean p99, ms: {p99}."
        draw = partial(draw_cdfs, groups=groups, looks=data.seen(every))
        title = f"Latency in the {study_name(study)}"
        plots.append(Plot(slug("latency", study), title, caption, draw, data.of(study)))
    return Section("latency", "Latency distributions", plots=tuple(plots)) if plots else None


def _slo(data: Data) -> Section | None:
    plots = []
    for study, groups in _groups(data, attrgetter("below_peak")).items():
        every = [cell for cells in groups.values() for cell in cells]
        share = compare(scores(every), lambda score: 1 - score.holds, ".1%")
        caption = (
            "Share of requests whose momentary throughput is below a share of the peak (lower is better), over "
            f"{_pooled(groups)}. Below 80% of the peak: {share}."
        )
        draw = partial(draw_slo, groups=groups, looks=data.seen(every))
        title = f"Service levels in the {study_name(study)}"
        plots.append(Plot(slug("slo", study), title, caption, draw, data.of(study)))
    return Section("slo", "Service levels", plots=tuple(plots)) if plots else None


def _scaling(data: Data) -> Section | None:
    cells = data.cells("scaling")
    found = scores(cells)
    plots = []
    for model in dict.fromkeys(cell.model for cell in cells):
        places = {place: group for place, group in found.items() if place.model == model}
        own = [cell for cell in cells if cell.model == model]
        references = [
            (label, attrgetter(name), attrgetter(name))
            for name, label in (("of_oracle", "/ oracle"), ("of_delayed", "/ delayed oracle"))
            if any(math.isfinite(getattr(cell, name)) for cell in own)
        ]
        if not references:
            continue
        least, most = min(places).devices, max(place.devices for place in places)
        told = {place: group for place, group in places.items() if place.devices == most}
        repeats = len({cell.repeat for cell in own})
        bands = f", and the least and the most of {repeats} repeats as bands" if repeats > 1 else ", one repeat"
        count = len({(place.period, place.duration) for place in places})
        over = f" over {count} periods and durations of interference" if count > 1 else ""
        caption = (
            f"{model} on {least} to {most} devices: means{over}{bands}. On {most} "
            f"devices, of the oracle's throughput: {compare(told, attrgetter('of_oracle'), '.3f')}."
        )
        draw = partial(draw_scaling, places=places, cells=own, looks=data.seen(own), references=references)
        title = f"Scaling with devices: {model}"
        plots.append(Plot(slug("scaling", model), title, caption, draw, data.of("scaling")))
    if not plots:
        return None
    table = scaling_table(cells, "Throughput / oracle over devices")
    return Section("scaling", "Scaling with devices", (), (table,), tuple(plots))


def _costs(data: Data) -> Section | None:
    tables = tuple(
        costs_table(data.cells(study), f"Costs of finding plans: {study_name(study)}")
        for study in data.studies
        if not study.startswith("live")
    )
    return Section("costs", "What finding plans costs", (), tables) if tables else None


def _notes(data: Data) -> Section | None:
    return Section("notes", "Notes", data.whole.notes) if data.whole.notes else None
