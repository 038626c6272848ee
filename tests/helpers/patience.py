"""How long tests wait for what should happen at once, and how many examples they try; neither is a claim of speed."""

from __future__ import annotations

from hypothesis import settings

PROMPT_S = 120.0
"""Far above what anything takes, on a busy machine too: reached only by a hang, and below pytest's own limit."""


def examples(count: int) -> int:
    """So many examples of a property by default; in proportion under another profile (``scripts/test.sh --fast``)."""
    return max(1, count * settings().max_examples // 100)
