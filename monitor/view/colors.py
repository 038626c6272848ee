"""Colours of the screens, read on white as on black: a terminal's own are not (yellow on white, blue on black)."""

from __future__ import annotations

__all__ = ["DISTURBED", "LATENCY", "LOAD", "LOST", "QUIET", "THROUGHPUT"]

QUIET = "green4"
DISTURBED = "dark_orange3"
LOST = "red3"
LOAD = "magenta3"
THROUGHPUT = "turquoise4"
LATENCY = "dodger_blue2"
