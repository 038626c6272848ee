"""Stream many inputs through a pipeline: load ahead, a bounded number in flight, outcomes in order.

::

    keys --load--> (threads, a few ahead) --group, submit--> (window in flight) --wait for the oldest--> outcomes

Only the oldest request is waited for, so that order needs no sorting; the younger ones are under way meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils import _pytree as pytree

from odin.models.images import ImageError

__all__ = ["Outcome", "Submits", "stream"]

Key = TypeVar("Key")


class Submits(Protocol):
    """The methods of a pipeline that a stream uses."""

    def submit(self, *inputs: Any) -> Future[Any]:
        """Queue one request; blocks while the pipeline has no room."""
        ...


@dataclass(frozen=True)
class Outcome(Generic[Key]):
    """The outcome of one input: a value, or the error instead.

    Attributes
    ----------
    key
        What the input was loaded from.
    value
        The model's output; None if there was an error.
    error
        Why there is none: an :class:`~odin.models.images.ImageError`, or what the pipeline failed with.
    latency_s
        From submission to result; None if the input never was submitted.
    """

    key: Key
    value: Any = None
    error: Exception | None = None
    latency_s: float | None = None


@dataclass
class Flight(Generic[Key]):
    """One request in flight, and the inputs of its batch that failed to load.

    Attributes
    ----------
    members
        Keys in order; with each the error of an input that is not in the request, or None.
    future
        The request; None if no input of the group could be loaded.
    """

    members: list[tuple[Key, Exception | None]]
    future: Future[Any] | None = None
    submitted_s: float = 0.0
    finished_s: list[float] = field(default_factory=list)

    def done(self) -> bool:
        """Whether :meth:`outcomes` need not wait."""
        return self.future is None or self.future.done()

    def outcomes(self, clock: Callable[[], float]) -> Generator[Outcome[Key], None, None]:
        """Wait for the request and return the outcome of each input."""
        error, value, latency_s = None, None, None
        if self.future is not None:
            try:
                value = self.future.result()
            except (Exception, CancelledError) as failure:
                error = failure
            # a waiter may wake before the future's callbacks have run; then it is done only just now
            latency_s = (self.finished_s[0] if self.finished_s else clock()) - self.submitted_s
        size = sum(problem is None for _, problem in self.members)
        position = 0
        for key, problem in self.members:
            if problem is not None:
                yield Outcome(key, error=problem)
            elif error is not None:
                yield Outcome(key, error=error, latency_s=latency_s)
            else:
                yield Outcome(key, value=one_of(value, position, size), latency_s=latency_s)
                position += 1


def stream(
    pipe: Submits,
    keys: Iterable[Key],
    load: Callable[[Key], Any],
    *,
    window: int,
    batch: int = 1,
    loaders: int = 1,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[Outcome[Key], None, None]:
    """Load, submit and collect, lazily; outcomes come in the order of ``keys``.

    Parameters
    ----------
    pipe
        Where loaded inputs go.
    keys
        What to load; consumed as there is room, so it may be endless.
    load
        Key to model input, a tensor with leading size 1; called in ``loaders`` threads. An
        :class:`~odin.models.images.ImageError` becomes that key's outcome and the rest goes on.
    window
        Most requests in flight at a time, >= 1.
    batch
        Inputs per request, >= 1: that many keys in a row, less those that failed to load.
    stop
        Asked before every new input; once true nothing more is submitted, and what is in flight still comes out.
    clock
        Seconds, for latencies.

    Yields
    ------
    Outcome
        One per key that was submitted or failed to load.

    Raises
    ------
    Exception
        What ``pipe.submit``, ``keys`` or ``load`` (other than ImageError) raised, after all outcomes before it.
    """
    if min(window, batch, loaders) < 1:
        raise ValueError(f"window {window}, batch {batch} and loaders {loaders} must be at least 1")
    remaining = iter(keys)
    exhausted = False
    loading: deque[tuple[Key, Future[Any]]] = deque()
    flights: deque[Flight[Key]] = deque()
    fatal: Exception | None = None
    pool = ThreadPoolExecutor(loaders, thread_name_prefix="odin-load")
    try:
        while True:
            if stop():
                exhausted = True
                loading.clear()
            try:
                while not exhausted and len(loading) < batch + 2 * loaders:
                    key = next(remaining)
                    loading.append((key, pool.submit(load, key)))
            except StopIteration:
                exhausted = True
            except Exception as error:
                exhausted, fatal = True, error
            if loading and len(flights) < window:
                group = [loading.popleft() for _ in range(min(batch, len(loading)))]
                try:
                    flights.append(launch(pipe, group, clock))
                except Exception as error:  # the pipeline takes no more: tell what it finished, then why
                    exhausted, fatal = True, error
                    loading.clear()
                while flights and flights[0].done():
                    yield from flights.popleft().outcomes(clock)
            elif flights:
                yield from flights.popleft().outcomes(clock)
            elif not loading:
                break
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if fatal is not None:
        raise fatal


def launch(pipe: Submits, group: list[tuple[Key, Future[Any]]], clock: Callable[[], float]) -> Flight[Key]:
    """Submit a group of inputs as one request, without those that failed to load."""
    members: list[tuple[Key, Exception | None]] = []
    inputs: list[torch.Tensor] = []
    for key, loaded in group:
        try:
            inputs.append(loaded.result())
            members.append((key, None))
        except ImageError as error:
            members.append((key, error))
    if not inputs:
        return Flight(members)
    request = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
    submitted_s = clock()
    flight = Flight(members, pipe.submit(request), submitted_s)
    assert flight.future is not None  # given just now
    flight.future.add_done_callback(lambda _: flight.finished_s.append(clock()))
    return flight


def one_of(value: Any, position: int, size: int) -> Any:
    """One input's part of a model's output for a batch of ``size``: its row, leading size 1, of every tensor."""
    if size == 1:
        return value

    def row(leaf: Any) -> Any:
        has_rows = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        return leaf[position : position + 1] if has_rows else leaf

    return pytree.tree_map(row, value)
