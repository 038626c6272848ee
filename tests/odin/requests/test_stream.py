import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import torch

from odin.models.images import ImageError
from odin.requests.stream import Outcome, one_of, stream


class Doubling:
    """Doubles tensors in one thread, in order; knows how many requests were under way at a time."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)
        self.shapes, self.under_way, self.most = [], 0, 0
        self.lock = threading.Lock()

    def submit(self, value):
        with self.lock:
            self.shapes.append(tuple(value.shape))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        return self.pool.submit(self.serve, value)

    def serve(self, value):
        with self.lock:
            self.under_way -= 1
        if (value < 0).any():
            raise ArithmeticError("negative")
        return 2 * value


class Manual:
    """Futures that the test settles."""

    def __init__(self):
        self.futures = []
        self.submitted = threading.Semaphore(0)

    def submit(self, value):
        self.futures.append(Future())
        self.submitted.release()
        return self.futures[-1]


@pytest.fixture
def doubling():
    pipe = Doubling()
    yield pipe
    pipe.pool.shutdown()


def load(key):
    """A key's tensor; keys divisible by five are broken files."""
    if key % 5 == 0 and key > 0:
        raise ImageError(Path(f"{key}.jpg"), "broken")
    return torch.tensor([[float(key)]])


def simple(outcome):
    if outcome.error is not None:
        return outcome.key, type(outcome.error)
    return outcome.key, outcome.value.tolist()


@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("loaders", [1, 3])
def test_every_key_has_its_outcome_in_order(doubling, window, batch, loaders):
    outcomes = list(stream(doubling, range(12), load, window=window, batch=batch, loaders=loaders))
    assert list(map(simple, outcomes)) == [
        (key, ImageError) if key in (5, 10) else (key, [[2.0 * key]]) for key in range(12)
    ]
    assert doubling.most <= window


def test_groups_are_keys_in_a_row_less_the_broken_ones(doubling):
    list(stream(doubling, range(12), load, window=2, batch=4))
    assert doubling.shapes == [(4, 1), (3, 1), (3, 1)]


def test_a_group_that_is_all_broken_is_not_submitted(doubling):
    outcomes = list(stream(doubling, [5, 10, 1], load, window=2, batch=2))
    assert list(map(simple, outcomes)) == [(5, ImageError), (10, ImageError), (1, [[2.0]])]
    assert doubling.shapes == [(1, 1)]


def test_a_failing_request_fails_its_group_and_no_other(doubling):
    outcomes = list(stream(doubling, [1, 2, -3, 5, 4], load, window=3, batch=2))
    assert list(map(simple, outcomes)) == [
        (1, [[2.0]]),
        (2, [[4.0]]),
        (-3, ArithmeticError),
        (5, ImageError),
        (4, [[8.0]]),
    ]


def test_a_cancelled_request_is_an_outcome():
    pipe = Manual()
    outcomes = stream(pipe, [1], load, window=1)

    def cancel(value):
        future = Future()
        future.cancel()
        return future

    pipe.submit = cancel
    [outcome] = outcomes
    assert type(outcome.error) is CancelledError


def test_endless_keys_are_taken_as_there_is_room(doubling):
    taken = []
    keys = (taken.append(key) or key for key in count())
    outcomes = stream(doubling, keys, lambda key: torch.zeros(1, 1), window=3, batch=2, loaders=2)
    for _ in range(10):
        next(outcomes)
    outcomes.close()
    # at most: told, in flight, loading ahead
    assert len(taken) <= 10 + 2 * 3 + (2 + 2 * 2) + 2


def test_stop_ends_the_feeding_and_brings_in_what_is_under_way():
    pipe, stopped = Manual(), threading.Event()
    outcomes = stream(pipe, count(1), lambda key: torch.tensor([[float(key)]]), window=3, stop=stopped.is_set)
    waiter = ThreadPoolExecutor(1)
    first = waiter.submit(next, outcomes)  # fills the window, then waits for the oldest
    for _ in range(3):
        pipe.submitted.acquire()
    stopped.set()
    for number, future in enumerate(pipe.futures):
        future.set_result(torch.tensor([[10.0 * number]]))
    told = [first.result(), *waiter.submit(list, outcomes).result()]
    waiter.shutdown()
    assert list(map(simple, told)) == [(1, [[0.0]]), (2, [[10.0]]), (3, [[20.0]])]
    assert len(pipe.futures) == 3


def test_what_ends_a_stream_comes_after_the_outcomes_before_it(doubling):
    def submit(value):
        if value.item() == 3:
            raise RuntimeError("closed")
        return Doubling.submit(doubling, value)

    doubling.submit = submit
    told = []
    with pytest.raises(RuntimeError, match="closed"):
        drain_into(told, stream(doubling, [1, 2, 3, 4], load, window=5))
    assert told == [(1, [[2.0]]), (2, [[4.0]])]


def drain_into(told, outcomes):
    for outcome in outcomes:
        told.append(simple(outcome))


def test_an_error_of_the_keys_comes_after_the_outcomes_before_it(doubling):
    def keys():
        yield 1
        raise OSError("unreadable")

    told = []
    with pytest.raises(OSError, match="unreadable"):
        drain_into(told, stream(doubling, keys(), load, window=5))
    assert told == [(1, [[2.0]])]


def test_latency_runs_from_submission_to_completion():
    ticks = count()
    pipe = Manual()

    def submit(value):
        future = Future()
        future.set_result(value)
        return future

    pipe.submit = submit
    outcomes = list(stream(pipe, [1, 2], load, window=1, clock=lambda: float(next(ticks))))
    assert outcomes == [
        Outcome(1, value=outcomes[0].value, latency_s=1.0),
        Outcome(2, value=outcomes[1].value, latency_s=1.0),
    ]


@pytest.mark.parametrize("options", [{"window": 0}, {"window": 1, "batch": 0}, {"window": 1, "loaders": 0}])
def test_numbers_below_one_are_refused(doubling, options):
    with pytest.raises(ValueError, match="at least 1"):
        next(stream(doubling, [1], load, **options))


def test_one_of_a_batch_takes_rows_of_every_tensor_that_has_them():
    value = {"scores": torch.arange(6).reshape(3, 2), "scale": torch.tensor(2.0), "both": (torch.arange(3), "x")}
    row = one_of(value, 1, 3)
    assert row["scores"].tolist() == [[2, 3]]
    assert row["scale"] == 2.0
    assert (row["both"][0].tolist(), row["both"][1]) == ([1], "x")
    assert one_of(value, 0, 1) is value
