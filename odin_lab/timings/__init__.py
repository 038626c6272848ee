"""Layer times that were measured, alone and under each named scenario: what they say, and their files."""

from __future__ import annotations

from odin_lab.timings.files import TimingsError, load_timings, read_timings, shipped_timings, write_timings
from odin_lab.timings.synthetic import synthetic_timings
from odin_lab.timings.table import ALONE, Block, TimingTable

__all__ = [
    "ALONE",
    "Block",
    "TimingTable",
    "TimingsError",
    "load_timings",
    "read_timings",
    "shipped_timings",
    "synthetic_timings",
    "write_timings",
]
