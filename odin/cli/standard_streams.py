"""The command's standard output and error, whatever the shell has made of them: closed, a full disk, a pipe that ends.

::

    odin ... | head -1     who reads has gone: what is left goes nowhere, and that is no failure
    odin ... > /dev/full   cannot be written: a failure, told in one line
    odin ... >&-           there is none: it goes nowhere
"""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["StandardStreams", "say"]


class StandardStreams:
    """Begins with streams that can be written to; :meth:`flush` at the end, before Python does and complains."""

    def __init__(self) -> None:
        for descriptor in (0, 1, 2):
            try:
                os.fstat(descriptor)
            except OSError:  # closed: the next file that is opened would be taken for it
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        # Python has none for what was closed when it started.
        sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
        sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
        self._output = _identity()

    def flush(self) -> str:
        """Write what is left; returns why that could not be, empty if it could or if nobody reads any more."""
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self.drop_output()
        except OSError as error:
            self.drop_output()
            return f"standard output: {error.strerror}"
        except ValueError:  # a test's, closed
            return ""
        return ""

    def drop_output(self) -> None:
        """Let what is still to be written go nowhere."""
        with contextlib.suppress(OSError, ValueError):  # no file of the system's, as in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @property
    def dropped(self) -> bool:
        """Whether standard output goes nowhere since the beginning: rich does so, too, when nobody reads."""
        return _identity() != self._output


def _identity() -> tuple[int, int] | None:
    try:
        status = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def say(text: str) -> None:
    """Print a line on standard error, if anybody is there to read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
