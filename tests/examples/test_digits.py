"""Correctness under fire: a trained model's accuracy and logits while its cores are disturbed and its layers move."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from loads import living
from patience import PROMPT_S

import odin

pytestmark = pytest.mark.ray

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.py"
WIDTH, EPOCHS, IMAGES = 16, 4, 300


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits(example, ray_session):
    """The images; from here on torch computes with one thread, which training and the logits depend on."""
    return example.load_images()


@pytest.fixture(scope="module")
def chain(example, digits) -> odin.Chain:
    model = example.train(digits, width=WIDTH, epochs=EPOCHS, seed=0)
    return odin.build_chain(model, (digits.test_images[:1],), name="digits")


@pytest.fixture(scope="module")
def images(digits) -> list[torch.Tensor]:
    return list(digits.test_images[:IMAGES].split(1))


@pytest.fixture(scope="module")
def expected(chain, images) -> list[torch.Tensor]:
    return [chain(image) for image in images]


@pytest.fixture(scope="module")
def pipe(two_cores, chain) -> Iterator[odin.Pipeline]:
    with odin.Pipeline(chain, stages=two_cores) as pipe:
        yield pipe
        pids = [stage.pid for stage in pipe.snapshot().stages]
    assert still_there(pids) == []


def still_there(pids: list[int]) -> list[int]:
    return [process.pid for process in psutil.wait_procs(living(pids), PROMPT_S)[1]]


BUSY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


class Fire:
    """Starts and ends busy processes on random cores at random images, from a seed; never none for long."""

    def __init__(self, cores: list[int], running: ExitStack, *, seed: int) -> None:
        self.pids: list[int] = []
        self.cpu_s: list[float] = []
        self._cores, self._running, self._random = cores, running, random.Random(seed)
        self._next = 0

    def __call__(self, number: int) -> None:
        if number < self._next:
            return
        self._running.close()
        for core in self._random.sample(self._cores, self._random.choice((1, 1, 2))):
            self._running.enter_context(self._busy(core))
        self._next = number + self._random.randint(20, 60)

    @contextmanager
    def _busy(self, core: int) -> Iterator[None]:
        process = subprocess.Popen([sys.executable, "-c", BUSY, str(core)], stdout=subprocess.PIPE)
        try:
            assert process.stdout.read(1)  # it is on its core now
            self.pids.append(process.pid)
            assert os.sched_getaffinity(process.pid) == {core}
            yield
            self.cpu_s.append(sum(psutil.Process(process.pid).cpu_times()[:2]))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def served_in_order(
    pipe: odin.Pipeline, images: list[torch.Tensor], before: Callable[[int], None]
) -> tuple[list[torch.Tensor], list[int]]:
    """Logits in the order of the images, and the images' numbers in the order in which they were done."""
    futures = []
    for number, image in enumerate(images):
        before(number)
        futures.append(pipe.submit(image))
    served = [future.result(PROMPT_S) for future in futures]
    requests = [timeline.request for timeline in pipe.timelines()[-len(images) :]]
    return served, [request - min(requests) for request in requests]


def check(served: list[torch.Tensor], done: list[int], expected: list[torch.Tensor]) -> None:
    # A request under the next plan may be answered by an earlier stage, before one that is still on its way.
    assert sorted(done) == list(range(len(expected)))
    differing = [number for number, pair in enumerate(zip(served, expected, strict=True)) if not same_bits(*pair)]
    assert differing == []


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def test_the_model_has_learned_and_is_worth_comparing(example, digits, chain, expected):
    assert len(chain.layers) >= 6
    outcome = example.judge("", expected, expected, digits.test_labels[:IMAGES])
    assert outcome.right >= 0.95 * IMAGES
    # Were two images' logits the same, exchanging their results could go unseen.
    assert len({logits.numpy().tobytes() for logits in expected}) == IMAGES


def test_undisturbed(pipe, images, expected):
    check(*served_in_order(pipe, images, lambda number: None), expected)


def test_under_random_interference(pipe, two_cores, images, expected):
    cores = [int(device.partition(":")[2]) for device in two_cores]
    running = ExitStack()
    fire = Fire(cores, running, seed=0)
    try:
        served, done = served_in_order(pipe, images, fire)
    finally:
        running.close()
    check(served, done, expected)
    assert len(fire.pids) == len(fire.cpu_s) >= 5
    assert sum(fire.cpu_s) > 0
    assert still_there(fire.pids) == []


def test_with_a_forced_migration_at_every_tenth_request(example, pipe, images, expected):
    before = pipe.snapshot()
    check(*served_in_order(pipe, images, example.moves(pipe, seed=0)), expected)
    after = pipe.snapshot()
    assert after.epoch - before.epoch >= IMAGES // 10
    assert (after.completed - before.completed, after.failed - before.failed, after.in_flight) == (IMAGES, 0, 0)


def test_with_interference_and_migrations_at_once(example, pipe, two_cores, images, expected):
    cores = [int(device.partition(":")[2]) for device in two_cores]
    running = ExitStack()
    fire, move = Fire(cores, running, seed=2), example.moves(pipe, seed=2)
    try:
        served, done = served_in_order(pipe, images, lambda number: (fire(number), move(number)))
    finally:
        running.close()
    check(served, done, expected)
    assert still_there(fire.pids) == []


def test_training_is_repeatable_from_its_seed(example, digits):
    few = digits._replace(train_images=digits.train_images[:128], train_labels=digits.train_labels[:128])

    def weights(seed: int) -> dict[str, torch.Tensor]:
        return example.train(few, width=8, epochs=1, seed=seed).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classify.weight"], other["classify.weight"])


def test_a_changed_bit_and_a_lost_image_are_counted(example, expected):
    labels = torch.stack([logits.argmax() for logits in expected[:4]])
    served = [logits.clone() for logits in expected[:4]]
    served[1].view(torch.int32)[0, 0] ^= 1
    served[2] = None
    outcome = example.judge("under test", served, expected[:4], labels)
    assert outcome == ("under test", 4, 3, 1, 0, 1)
    assert example.judge("", [-torch.zeros(1, 10)], [torch.zeros(1, 10)], labels[:1]).different == 1
