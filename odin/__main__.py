"""The program ``odin``, as its script and as ``python -m odin``: Ctrl-C is heard before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit status, see :func:`odin.cli.main.main`."""
    # Until odin.process.signals takes over: Python itself would show where in its imports it was.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from odin.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
