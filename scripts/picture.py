"""A recorded terminal as an SVG picture whose every colour is read on its white ground."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

__all__ = ["WHITE", "write_picture"]

_SIXTEEN = [
    (36, 41, 46), (179, 29, 40), (17, 99, 41), (128, 77, 0), (3, 84, 174), (130, 40, 140), (10, 98, 110), (87, 96, 106),
]  # fmt: skip
WHITE = TerminalTheme((255, 255, 255), (20, 24, 28), _SIXTEEN, _SIXTEEN)


def write_picture(console: Console, target: Path, title: str) -> None:
    """Write what a console has recorded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Spaces as they are: some renderers drop the non-breaking ones, browsers collapse others unless a style says no.
    picture = console.export_svg(title=title, theme=WHITE).replace("&#160;", " ")
    picture = picture.replace("<svg class", '<svg xml:space="preserve" class')
    picture = picture.replace("</style>", "text { white-space: pre; }\n    </style>", 1)
    target.write_text(picture.replace("rgba(255,255,255,0.35)", "#d0d7de"), encoding="utf-8")  # the window's edge
