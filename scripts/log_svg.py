"""Draw what odin top showed at some moment of a recorded run, as an SVG picture for the documentation.

python scripts/log_svg.py run.jsonl 62 docs/images/top.svg
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from picture import write_picture
from rich.console import Console

from odin.monitor.eventlog import read_log
from odin.monitor.events import RunEnded
from odin.monitor.view.builder import ViewBuilder
from odin.monitor.view.screen import render

WIDTH, HEIGHT = 110, 32


def main() -> int:
    """Read and draw; returns the exit status."""
    log, seconds, target = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    builder, begin_s, end_s = ViewBuilder(), None, 0.0
    for event in read_log(log):
        begin_s = event.at_s if begin_s is None else begin_s
        end_s = begin_s + seconds
        if event.at_s > end_s or isinstance(event, RunEnded):
            break
        builder.apply(event)
    console = Console(
        record=True, width=WIDTH, height=HEIGHT, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    console.print(render(builder.view(end_s), width=WIDTH, height=HEIGHT, keys="q quit   p pause"))
    write_picture(console, target, "odin top")
    return 0


if __name__ == "__main__":
    sys.exit(main())
