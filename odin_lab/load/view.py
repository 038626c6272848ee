"""A load's trials as text: what is known while one runs, and a table of all in the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin.monitor.window import percentiles_s
from odin_lab.load.campaign import SHARE, Finished
from odin_lab.load.figures import Figures
from odin_lab.load.introduction import Introduction
from odin_lab.load.search import RateSearch
from odin_lab.load.trial import Trial

__all__ = ["headline", "milliseconds", "progress_text", "render", "verdict_line"]

_LAST = 200
"""Requests that the line of progress tells of."""
_FEW = 100


def milliseconds(value_s: float | None) -> str:
    """``"12.3"``; a dash if there is none."""
    if value_s is None:
        return "-"
    value_ms = value_s * 1e3
    return f"{value_ms:,.0f}" if value_ms >= 100 else f"{value_ms:.1f}" if value_ms >= 10 else f"{value_ms:.2f}"


def headline(known: Introduction, lone_s: float) -> str:
    """Whom requests go to, and what they are."""
    inputs = ", ".join(f"{one.name} {one.datatype} {list(one.shape)}" for one in known.inputs)
    how = "raw bytes" if known.target.binary else "JSON"
    who = f" ({known.face.server})" if known.face.server else ""
    return f"{known.target.model} at {known.target.url}{who}: {inputs}, as {how}; alone {milliseconds(lone_s)} ms"


def progress_text(trial: Trial) -> str:
    """What is known of a trial that runs: the last requests, from when they were asked for."""
    last = trial.outcomes[-_LAST:]
    failed = sum(bool(one.failure) for one in trial.outcomes)
    p50_s, p99_s = percentiles_s([one.over_s - one.asked_s for one in last if not one.failure], (50, 99))
    text = f"{len(trial.outcomes) - failed} answered"
    if p50_s == p50_s:
        text += f", p50 {milliseconds(p50_s)} ms, p99 {milliseconds(p99_s)} ms"
    return text + (f", {failed} failed" if failed else "")


def render(finished: Sequence[Finished], search: RateSearch | None, bound_ms: float | None) -> RenderableType:
    """All trials: a row each, and in lines what a row has no room for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("load", no_wrap=True)
    batched = any(one.figures.inputs_hz > one.figures.answered_hz for one in finished)
    bounded = bound_ms is not None
    columns = ["requests", "answered/s", *(["inputs/s"] if batched else []), "p50 ms", "p90 ms", "p99 ms"]
    for name in (*columns, *([f"in {bound_ms:g} ms"] if bounded else []), "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for title, figures, _ in finished:
        cells = [f"{figures.requests:,}", f"{figures.answered_hz:.1f}"]
        cells += [f"{figures.inputs_hz:.1f}"] if batched else []
        cells += [milliseconds(value) for value in (figures.p50_s, figures.p90_s, figures.p99_s)]
        kept = figures.keeps(SHARE)
        cells += [Text(_share(figures.in_time_share), "green" if kept else "red")] if bounded else []  # type: ignore[list-item]
        cells.append(_failures(figures))  # type: ignore[arg-type]
        table.add_row(Text(f"{title}, ended early" if figures.broken_off else title), *cells)
    lines = _notes(finished)
    if search is not None and bounded:
        lines.append(Text(verdict_line(search, bound_ms), "bold"))
    return Group(table, *lines)


def verdict_line(search: RateSearch, bound_ms: float | None) -> str:
    """What the search found."""
    what = f"with {SHARE:.0%} of all requests answered within {bound_ms:g} ms"
    if search.passed_hz is None:
        if search.failed_hz is None:
            return "no rate was tried to its end"
        return f"no rate {what}: not even {search.failed_hz:.3g} requests/s"
    beyond = "" if search.failed_hz is None else f", {search.failed_hz:.3g} is too much"
    return f"highest rate {what}: {search.passed_hz:.3g} requests/s{beyond}"


def _share(share: float | None) -> str:
    """Never rounded up to all."""
    return "-" if share is None else f"{int(share * 1000) / 10:.1f}%"


def _failures(figures: Figures) -> Text:
    """How many, and of which kinds."""
    told = "\n".join(f"{count:,} x {kind}" for kind, count in figures.failures.items())
    return Text(told or "0", "bold red" if told else "")


def _notes(finished: Sequence[Finished]) -> list[Text]:
    """What else has to be known of these trials."""
    notes = []
    if left := sum(one.figures.under_way for one in finished):
        notes.append(Text(f"ended early: of {left:,} requests that were under way nothing is known", "yellow"))
    if late := [behind_s for one in finished if (behind_s := _behind_s(one.figures)) is not None]:
        behind = f"this program itself sent requests late (p99 up to {milliseconds(max(late))} ms, in {len(late)} of "
        notes.append(Text(f"{behind}{len(finished)} trials), which is in these latencies", "yellow"))
    if any(one.figures.scenario == "server" and one.figures.requests < _FEW for one in finished if _whole(one)):
        notes.append(Text(f"p99 of fewer than {_FEW} requests is nearly the slowest; take more --seconds", "yellow"))
    judged = [one.figures.verdict for one in finished if one.figures.verdict is not None]
    if judged:
        invalid = [one for one in judged if one.result != "VALID"]
        unmet = ", ".join(dict.fromkeys(rule for one in invalid for rule in one.unmet))
        how = f"{len(invalid)} of {len(judged)} runs INVALID ({unmet}: no)" if invalid else "VALID"
        notes.append(Text(f"by LoadGen's own rules: {how}; this is no MLPerf result", "dim"))
    return notes


def _whole(one: Finished) -> bool:
    return not one.figures.broken_off


def _behind_s(figures: Figures) -> float | None:
    """How late the generator itself was, if a tenth of the latency or more is not the server's then."""
    behind_s, p50_s = figures.behind_p99_s, figures.p50_s
    return None if behind_s is None or p50_s is None or behind_s < 0.1 * p50_s else behind_s
