"""The measurements that costs need: each model alone on the devices, then all of them together on the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from msgspec import Struct

from odin_lab.cost.attempt import Part
from odin_lab.cost.outcome import Outcome
from odin_lab.cost.peak import Look, Peak, PeakSearch, Tenant, Together
from odin_lab.load.introduction import Introduction, lone_latency_s

__all__ = ["Asked", "Study"]

_BELOW_CAPACITY = 0.8


class Asked(Struct, frozen=True):
    """What is asked for.

    Attributes
    ----------
    models
        Sources, by name.
    stages
        The devices.
    price_per_hour
        Of all of them together, dollars.
    limits_ms
        By model; None: ``times``.
    times
        By model: the limit as a multiple of the latency of a request alone.
    rates_hz
        Proportion of the rates where all models share the devices; empty: that of their highest rates alone.
    seconds, seed, precision, most
        As of :class:`odin_lab.cost.peak.PeakSearch`.
    """

    models: dict[str, str]
    stages: str
    price_per_hour: float
    limits_ms: dict[str, float] | None
    times: dict[str, float]
    rates_hz: dict[str, float]
    seconds: float
    seed: int = 0
    precision: float = 0.05
    most: int = 12


class Serve(Protocol):
    """Serves models, by name and source, until the end of the block; gives what each takes."""

    def __call__(self, models: Mapping[str, str], /) -> AbstractContextManager[dict[str, Introduction]]: ...


class Study:
    """Carries the measurements out.

    Parameters
    ----------
    serve
        Serves models on the devices.
    look
        As of :class:`odin_lab.cost.peak.PeakSearch`.
    tell
        Called with a model's name, what was found of it, and its limit.
    lone
        Measures the latency of a request alone.
    run
        As of :class:`odin_lab.cost.peak.PeakSearch`.
    how
        ``measured`` or ``simulated``.

    Attributes
    ----------
    ended
        Whether the user wanted no more.
    """

    def __init__(
        self,
        asked: Asked,
        serve: Serve,
        *,
        look: Look,
        tell: Callable[[str, Part | None, float], None] = lambda name, part, limit_ms: None,
        lone: Callable[[Introduction], float] | None = None,
        run: Together | None = None,
        how: str = "measured",
    ) -> None:
        self._how = how
        self._asked, self._serve, self._look, self._tell, self._run = asked, serve, look, tell, run
        self._lone = lone or (lambda known: lone_latency_s(known, images=None, seed=asked.seed))
        self._limits_ms: dict[str, float] = {}
        self._lone_s: dict[str, float] = {}
        self._dedicated: dict[str, Peak] = {}
        self._shared: Peak | None = None
        self.ended = False

    def carry_out(self) -> None:
        """Measure all, or until the user wants no more."""
        for name, source in self._asked.models.items():
            if self.ended:
                return
            with self._serve({name: source}) as known:
                self._alone(name, known[name])
        models = self._asked.models
        if self.ended or len(models) < 2 or any(peak.best is None for peak in self._dedicated.values()):
            return
        with self._serve(models) as known:
            self._together(known)

    def outcome(self, command: str) -> Outcome:
        """What is known by now."""
        asked = self._asked
        return Outcome(
            command,
            self._how,
            asked.stages,
            asked.price_per_hour,
            dict(self._limits_ms),
            dict(self._lone_s),
            asked.rates_hz,
            dict(self._dedicated),
            self._shared,
            self.ended,
        )

    def _alone(self, name: str, known: Introduction) -> None:
        asked = self._asked
        lone_s = self._lone_s[name] = self._lone(known)
        limit_ms = asked.times[name] * lone_s * 1e3 if asked.limits_ms is None else asked.limits_ms[name]
        self._limits_ms[name] = limit_ms
        search = self._search({name: Tenant(known, limit_ms)})
        start_hz = _BELOW_CAPACITY * (search.capacity_hz(name) or 1 / lone_s)
        peak = search.find({name: 1.0}, start_hz=start_hz)
        self.ended = search.ended
        if peak.attempts:
            self._dedicated[name] = peak
        if not self.ended:
            self._tell(name, None if peak.best is None else peak.best.parts[name], limit_ms)

    def _together(self, known: dict[str, Introduction]) -> None:
        alone_hz = {name: peak.rates_hz[name] for name, peak in self._dedicated.items()}
        weights = self._asked.rates_hz or alone_hz
        # the devices' time is just enough for all, had none to wait for another
        start_hz = sum(weights.values()) / sum(weights[name] / alone_hz[name] for name in weights)
        search = self._search({name: Tenant(known[name], self._limits_ms[name]) for name in known})
        peak = search.find(weights, start_hz=_BELOW_CAPACITY * start_hz)
        self.ended = search.ended
        self._shared = peak
        for name in () if self.ended else known:
            part = None if peak.best is None else peak.best.parts[name]
            self._tell(f"{name}, together with the others", part, self._limits_ms[name])

    def _search(self, tenants: dict[str, Tenant]) -> PeakSearch:
        asked = self._asked
        return PeakSearch(
            tenants,
            seconds=asked.seconds,
            seed=asked.seed,
            precision=asked.precision,
            most=asked.most,
            look=self._look,
            run=self._run,
        )
