"""Run a command and write what it prints, in colour, as an SVG picture for the documentation.

python scripts/terminal_svg.py docs/images/run.svg odin run resnet50 --input photographs --output results.jsonl
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from picture import write_picture
from rich.console import Console
from rich.text import Text

WIDTH = 90


def main() -> int:
    """Run and write; returns the command's exit status."""
    target, command = Path(sys.argv[1]), sys.argv[2:]
    colours = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        command, env={**os.environ, **colours}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    console = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(Text.from_ansi(f"$ {' '.join(command)}\n{done.stdout.rstrip()}"))
    write_picture(console, target, " ".join(command[:2]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
