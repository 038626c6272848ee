"""What requests cost, as a table and in words."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odin_lab.cost.attempt import Part
from odin_lab.cost.outcome import Outcome
from odin_lab.cost.rule import cost_per_million
from odin_lab.load.view import milliseconds

__all__ = ["found_line", "render"]

_NONE = "-"


def found_line(name: str, part: Part | None, limit_ms: float) -> str:
    """What a search came to for a model."""
    if part is None:
        return f"{name}: no rate with 95% of all requests answered within {limit_ms:.4g} ms"
    return f"{name}: {part.rate_hz:.3g} requests/s with 95% answered within {limit_ms:.4g} ms"


def render(outcome: Outcome) -> RenderableType:
    """A row per model, and what sharing saves."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    columns = ["limit ms", "alone: requests/s", "p95 ms", "$/million"]
    together = outcome.shared is not None
    columns += ["together: requests/s", "p95 ms", "$/million"] if together else []
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    sharing = outcome.sharing
    for name, limit_ms in outcome.limits_ms.items():
        cells = [name, f"{limit_ms:.4g}"]
        peak = outcome.dedicated.get(name)
        alone = None if peak is None or peak.best is None else peak.best.parts[name]
        cells += _cells(alone, None if alone is None else cost_per_million(outcome.price_per_hour, alone.rate_hz))
        if outcome.shared is not None:
            best = outcome.shared.best
            cells += _cells(
                None if best is None else best.parts[name], None if sharing is None else sharing.shared[name]
            )
        table.add_row(*cells)
    return Group(table, *_lines(outcome))


def _cells(part: Part | None, cost: float | None) -> list[str]:
    if part is None:
        return [_NONE, _NONE, _NONE]
    return [f"{part.rate_hz:.3g}", milliseconds(part.p95_s), _NONE if cost is None else f"{cost:.4g}"]


def _lines(outcome: Outcome) -> list[Text]:
    lines = []
    if (sharing := outcome.sharing) is not None:
        told = "saves" if sharing.gain >= 0 else "costs"
        more = "" if sharing.gain >= 0 else " more"
        lines.append(
            Text(
                f"together they do the work of {sharing.work:.3g} dedicated machines: sharing {told} "
                f"{abs(sharing.gain):.1%}{more}",
                "bold",
            )
        )
    elif outcome.shared is not None and outcome.shared.attempts and not outcome.ended:
        least_hz = min(attempt.rate_hz for attempt in outcome.shared.attempts)
        lines.append(Text(f"together no rate kept all limits: not even {least_hz:.3g} requests/s of all", "bold"))
    if (machines := outcome.machines) is not None:
        asked = ", ".join(f"{name} {rate_hz:.3g}" for name, rate_hz in outcome.asked_hz.items())
        prices = [f"${count * outcome.price_per_hour:.4g} an hour" for count in machines]
        lines.append(
            Text(
                f"for {asked} requests/s: {machines.dedicated} dedicated machines ({prices[0]}), or {machines.shared} "
                f"shared ({prices[1]})",
                "bold",
            )
        )
    peaks = [*outcome.dedicated.values(), *([] if outcome.shared is None else [outcome.shared])]
    if any(peak.open_ended for peak in peaks) and not outcome.ended:
        lines.append(
            Text("a search ended before a rate was too much: costs may be lower; take more --trials", "yellow")
        )
    if outcome.ended:
        lines.append(Text("ended early", "yellow"))
    if outcome.how == "simulated":
        lines.append(Text("simulated from recorded layer times: no network, no server, no shared caches", "dim"))
    return lines
