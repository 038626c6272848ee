"""Which models are in memory and where they are open; the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator

__all__ = ["Residency"]


class Residency:
    """Models in memory: each counts once, however many executors have it open, for they share its pages.

    Parameters
    ----------
    nbytes
        Of each model.
    memory_nbytes
        That all together may take.

    Attributes
    ----------
    used_nbytes
        That those in memory take.
    """

    def __init__(self, memory_nbytes: int) -> None:
        self.memory_nbytes = memory_nbytes
        self.used_nbytes = 0
        self._open: OrderedDict[int, set[int]] = OrderedDict()  # the least recently used first
        self._nbytes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, model: int) -> bool:
        return model in self._open

    def __iter__(self) -> Iterator[int]:
        return iter(self._open)

    def is_open(self, model: int, executor: int) -> bool:
        """Whether an executor has it open, or is to open it before what is sent to it next."""
        return executor in self._open.get(model, ())

    def executors(self, model: int) -> tuple[int, ...]:
        """Those that have it open."""
        return tuple(sorted(self._open.get(model, ())))

    def use(self, model: int) -> None:
        """It is used now."""
        self._open.move_to_end(model)

    def add(self, model: int, executor: int, nbytes: int) -> None:
        """An executor opens it."""
        if model not in self._open:
            self._open[model] = set()
            self._nbytes[model] = nbytes
            self.used_nbytes += nbytes
        self._open[model].add(executor)
        self.use(model)

    def remove(self, model: int, executor: int | None = None) -> bool:
        """An executor closes it, or all do; whether it is in memory no more."""
        executors = self._open.get(model)
        if executors is None:
            return False
        if executor is not None:
            executors.discard(executor)
            if executors:
                return False
        del self._open[model]
        self.used_nbytes -= self._nbytes.pop(model)
        return True

    def lose(self, executor: int) -> list[int]:
        """An executor is gone; those that are in memory no more."""
        return [model for model in tuple(self._open) if executor in self._open[model] and self.remove(model, executor)]

    def to_evict(self, nbytes: int, *, kept: Collection[int], wanted: Collection[int]) -> list[int] | None:
        """Whom to evict so that so many bytes more find room; None if that is not possible at present.

        Parameters
        ----------
        kept
            Those that must stay.
        wanted
            Those that are waited for: they go last.
        """
        room = self.memory_nbytes - self.used_nbytes
        chosen: list[int] = []
        for last in (False, True):
            for model in self._open:
                if room >= nbytes:
                    return chosen
                if model not in kept and (model in wanted) is last:
                    chosen.append(model)
                    room += self._nbytes[model]
        return chosen if room >= nbytes else None
