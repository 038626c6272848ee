"""The phases of starting a pipeline: logged with their durations, and passed on to progress displays."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

__all__ = ["phase", "tell_phases"]

_logger = logging.getLogger("odin.startup")
_TOLD = ("odin.partitioner", _logger.name)


@contextlib.contextmanager
def phase(name: str, *, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """Log (level INFO) what the ``with`` block took, once it is done; nothing if it fails."""
    begin_s = clock()
    yield
    _logger.info("%6.2f s  %s", clock() - begin_s, name)


@contextlib.contextmanager
def tell_phases(tell: Callable[[str], object]) -> Iterator[None]:
    """Pass on what is logged (level INFO) inside the ``with`` block: phases that are done, and what takes long.

    Phases are those of :func:`phase`. What takes long in :mod:`partitioner` is told as it begins.
    """
    handler = _Handler(tell)
    loggers = [logging.getLogger(name) for name in _TOLD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())
