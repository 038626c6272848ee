"""What runs, in a terminal only: a line per trial that is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from odin_lab.load.trial import Trial
from odin_lab.load.view import progress_text

__all__ = ["TrialProgress", "trial_progress"]


class TrialProgress:
    """Shows trials; may be told of them by several threads."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._rows: dict[int, Any] = {}
        self._turn: object = None

    def __call__(self, title: str, trial: Trial, *, turn: object = None) -> None:
        """Show a trial; those of another ``turn`` are shown no more. Default: each is a turn of its own."""
        turn = id(trial) if turn is None else turn
        with self._lock:
            if turn != self._turn:
                self._clear()
                self._turn = turn
            row = self._rows.get(id(trial))
            if row is None:
                row = self._rows[id(trial)] = self._progress.add_task(escape(title), total=trial.task.seconds, known="")
        begun = [one.over_s for one in trial.outcomes[-1:]]
        done_s = begun[0] - trial.begin_s if begun and trial.begin_s is not None else 0.0
        self._progress.update(row, completed=min(done_s, trial.task.seconds), known=progress_text(trial))

    def wait(self, text: str) -> None:
        """Show that something else takes its time."""
        with self._lock:
            self._clear()
            self._turn = text
            self._rows[0] = self._progress.add_task(escape(text), total=None, known="")

    def _clear(self) -> None:
        for row in self._rows.values():
            self._progress.update(row, visible=False)
        self._rows.clear()


@contextmanager
def trial_progress() -> Iterator[TrialProgress]:
    """Lines at the terminal's end until the end of the block."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.fields[known]}", style="dim"),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        yield TrialProgress(progress)
