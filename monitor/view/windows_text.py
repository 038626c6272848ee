"""The text form of windows, as events have it: at which cuts each stage may end, such as ``@0-18|@18``."""

from __future__ import annotations

import re

__all__ = ["end_ranges", "windows_text"]

_ENDS = re.compile(r"@(\d+)(?:-(\d+))?")
_MOST_STAGES = 8
"""Windows of more stages than this are not written out."""


def end_ranges(windows: str) -> list[tuple[int, int]]:
    """First and last cut at which each stage may end.

    Raises
    ------
    ValueError
        If the text is not windows.

    Examples
    --------
    >>> end_ranges("@0-18|@18")
    [(0, 18), (18, 18)]
    """
    found = [_ENDS.fullmatch(part) for part in windows.split("|")]
    if any(match is None for match in found):
        raise ValueError(f"{windows!r} is not windows, such as '@0-18|@18'")
    return [(int(match[1]), int(match[2] or match[1])) for match in found if match]


def windows_text(windows: str) -> str:
    """Where requests change hands, in a few words.

    Examples
    --------
    >>> windows_text("@0-18|@0-18|@18")
    'requests may change hands at cuts 0-18'
    >>> windows_text("@4-9|@12|@18")
    'requests may change hands at cuts 4-9|12'
    """
    ranges = end_ranges(windows)[:-1]
    texts = [f"{first}-{last}" if first < last else f"{first}" for first, last in ranges]
    if len(set(texts)) > 1 and len(texts) >= _MOST_STAGES:
        cuts = f"between {min(first for first, _ in ranges)} and {max(last for _, last in ranges)}"
    else:
        cuts = texts[0] if len(set(texts)) == 1 else "|".join(texts)
    return f"requests may change hands at cuts {cuts}" if texts else "there is one stage, which runs all layers"
