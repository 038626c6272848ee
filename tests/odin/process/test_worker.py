"""Worker threads: nothing that an item raises ends them, and what waits for them stays bounded."""

from __future__ import annotations

import threading

import pytest
from patience import PROMPT_S

from odin.process.worker_thread import Worker


class Gate:
    """Takes items, the first one only when it is told to go on."""

    def __init__(self, **options):
        self.taken, self.left_out, self.errors = [], [], []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.worker = Worker(
            self.take, name="test-worker", on_error=self.errors.append, on_left_out=self.left_out.append, **options
        )
        self.worker.start()

    def take(self, item):
        self.entered.set()
        assert self.go_on.wait(PROMPT_S)
        self.taken.append(item)
        if isinstance(item, BaseException):
            raise item

    def close(self):
        self.go_on.set()
        assert self.worker.close(PROMPT_S)


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
)
def test_whatever_is_raised_costs_one_item(error):
    gate = Gate()
    for item in (1, error, 2):
        gate.worker.put(item)
    gate.close()
    assert gate.taken == [1, error, 2]
    assert gate.errors == [error]


def test_an_error_while_an_error_is_told_is_none():
    def told(error):
        raise error

    taken = []
    worker = Worker(lambda item: taken.append(1 // item), name="test-worker", on_error=told)
    worker.start()
    for item in (0, 1, 0, 1):
        worker.put(item)
    assert worker.close(PROMPT_S)
    assert taken == [1, 1]


def test_the_oldest_that_can_be_spared_are_left_out_and_counted():
    gate = Gate(capacity=10, expendable=lambda item: isinstance(item, int))
    gate.worker.put(-1)
    assert gate.entered.wait(PROMPT_S)
    for number in range(1000):
        gate.worker.put(f"keep {number}" if number % 200 == 0 else number)
        assert len(gate.worker._items) <= 10
    gate.close()
    assert gate.taken == [-1, "keep 0", "keep 200", "keep 400", "keep 600", "keep 800", 995, 996, 997, 998, 999]
    assert sum(gate.left_out) == 1000 - 10
    assert len(gate.left_out) == 1  # told once it has caught up, not for each


def test_where_nothing_can_be_spared_the_queue_is_bounded_all_the_same():
    gate = Gate(capacity=10)
    gate.worker.put(-1)
    assert gate.entered.wait(PROMPT_S)
    for number in range(100):
        gate.worker.put(number)
    gate.close()
    assert gate.taken == [-1, *range(90, 100)]
    assert sum(gate.left_out) == 90


def test_while_it_cannot_keep_up_it_is_told_for_each_queue_full():
    left_out, turns, taken = [], threading.Semaphore(0), threading.Semaphore(0)

    def take(item):
        taken.release()
        assert turns.acquire(timeout=PROMPT_S)

    worker = Worker(take, name="test-worker", on_error=pytest.fail, on_left_out=left_out.append, capacity=4)
    worker.start()
    worker.put(0)
    told = []
    for number in range(20):  # three come for each that is taken
        assert taken.acquire(timeout=PROMPT_S)
        for _ in range(3):
            worker.put(number)
        turns.release()
        told.append(len(left_out))
    turns.release(100)
    assert worker.close(PROMPT_S)
    assert sum(left_out) + len(told) + 4 == 1 + 60
    assert left_out[0] in (1, 2)
    assert all(count >= 4 for count in left_out[1:-1])


def test_closing_takes_what_waits_and_nothing_after_it():
    gate = Gate()
    for number in range(5):
        gate.worker.put(number)
    gate.close()
    gate.worker.put(5)
    gate.close()
    assert gate.taken == list(range(5))
    assert not gate.worker._items


def test_closing_does_not_wait_for_ever():
    gate = Gate()
    for number in range(5):
        gate.worker.put(number)
    assert gate.entered.wait(PROMPT_S)
    assert not gate.worker.close(0.01)
    gate.close()
    assert gate.taken == [0]
    assert sum(gate.left_out) == 4


def test_closing_from_its_own_thread_returns_and_ends_it():
    taken, worker = [], None

    def take(item):
        taken.append((item, worker.close()))

    worker = Worker(take, name="test-worker", on_error=pytest.fail)
    worker.put(1)
    worker.put(2)
    worker.start()
    worker._thread.join(PROMPT_S)
    assert taken == [(1, False), (2, False)]


def test_a_queue_needs_room():
    with pytest.raises(ValueError, match="a queue of 0 items holds nothing"):
        Worker(print, name="test-worker", on_error=print, capacity=0)


class Resting:
    """A worker that rests, once it has taken an item, for longer than any test."""

    def __init__(self):
        self.taken, self.took = [], threading.Semaphore(0)
        self.worker = Worker(self.take, name="test-worker", on_error=pytest.fail, linger_s=1000 * PROMPT_S)
        self.worker.start()
        self.worker.put(0)
        self.wait_for(1)

    def take(self, item):
        self.taken.append(item)
        self.took.release()

    def wait_for(self, count):
        for _ in range(count):
            assert self.took.acquire(timeout=PROMPT_S)


def test_what_can_wait_is_taken_with_what_cannot():
    resting = Resting()
    for number in range(1, 10):
        resting.worker.put(number, at_once=False)
    assert resting.taken == [0]
    resting.worker.put(10)
    resting.wait_for(10)
    assert resting.taken == list(range(11))
    resting.worker.put(11, at_once=False)
    assert resting.worker.close(PROMPT_S)
    assert resting.taken == list(range(12))


def test_who_waits_for_all_to_be_taken_ends_the_rest():
    resting = Resting()
    resting.worker.put(1, at_once=False)
    assert resting.worker.settle(PROMPT_S)
    assert resting.taken == [0, 1]
    assert resting.worker.close(PROMPT_S)


def test_what_can_wait_is_taken_at_the_end_of_the_rest_and_at_once_after_a_pause():
    taken = threading.Semaphore(0)
    worker = Worker(lambda item: taken.release(), name="test-worker", on_error=pytest.fail, linger_s=0.001)
    worker.start()
    for _ in range(50):
        worker.put(0, at_once=False)
        assert taken.acquire(timeout=PROMPT_S)
    assert worker.close(PROMPT_S)
