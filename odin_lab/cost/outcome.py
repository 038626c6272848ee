"""All that ``odin cost`` found, as a value that is kept in a file, shown and drawn."""

from __future__ import annotations

from msgspec import Struct

from odin_lab.cost.peak import Peak
from odin_lab.cost.rule import Machines, Sharing, machines, sharing

__all__ = ["Outcome"]


class Outcome(Struct, frozen=True):
    """What was found.

    Attributes
    ----------
    command
        What was asked.
    how
        ``"measured"``, or ``"simulated"`` from recorded layer times.
    stages
        The devices.
    price_per_hour
        Of all devices together, dollars.
    limits_ms
        Of each model: within which 95% of all its requests are to be answered.
    lone_s
        Seconds of a request alone, by model.
    asked_hz
        Rates that were given; empty: none.
    dedicated
        The search for each model alone on the devices.
    shared
        The search for all of them at once; None: it was not begun, or there is one model only.
    ended
        Whether the user wanted no more before all was measured.
    """

    command: str
    how: str
    stages: str
    price_per_hour: float
    limits_ms: dict[str, float]
    lone_s: dict[str, float]
    asked_hz: dict[str, float]
    dedicated: dict[str, Peak]
    shared: Peak | None
    ended: bool

    @property
    def dedicated_hz(self) -> dict[str, float]:
        """Highest rates alone, of those that have one."""
        return {name: peak.rates_hz[name] for name, peak in self.dedicated.items() if peak.best is not None}

    @property
    def sharing(self) -> Sharing | None:
        """Costs alone and together; None if either is not known of all models."""
        if self.shared is None or not self.shared.rates_hz or self.dedicated_hz.keys() != self.shared.rates_hz.keys():
            return None
        return sharing(self.price_per_hour, dedicated_hz=self.dedicated_hz, shared_hz=self.shared.rates_hz)

    @property
    def machines(self) -> Machines | None:
        """Whole machines for the rates that were given; None: none were, or costs are not known."""
        if not self.asked_hz or self.sharing is None or self.shared is None:
            return None
        return machines(self.asked_hz, dedicated_hz=self.dedicated_hz, shared_hz=self.shared.rates_hz)
