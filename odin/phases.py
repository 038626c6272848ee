"""What takes long while a model becomes a chain, told while it does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

__all__ = ["tell_phases"]


@contextlib.contextmanager
def tell_phases(tell: Callable[[str], object]) -> Iterator[None]:
    """Pass on what :mod:`partitioner` logs (level INFO) inside the ``with`` block: what takes long, as it begins."""
    logger = logging.getLogger("partitioner")
    handler = _Handler(tell)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())
