"""Ray and the stages start beside the chain: nothing is left of what nobody takes over, and nothing is disturbed."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import ray._private.node
import torch
from channels import PROMPT_S
from example_models import Residual, image, seeded

import odin
from odin.cluster import startup
from odin.cluster.placement import check_stage_count
from odin.cluster.ray_random import own_random_numbers
from odin.cluster.startup import Startup
from odin.models.chains import to_chain, weight_nbytes
from odin.stages.device import Device, DeviceError, usable_cores


class FakeRay:
    """In the place of RayRuntime and Deployment: starts when it is let, and knows whether it was closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starting, self.may_start = threading.Event(), threading.Event()
        self.closed: list[str] = []
        self.stages: list[Any] = []
        monkeypatch.setattr(startup, "RayRuntime", self._start)
        monkeypatch.setattr(startup, "place", lambda *_, **__: [(Device("cpu", (core,)), "n") for core in range(12)])
        monkeypatch.setattr(startup, "Deployment", self._deploy)

    def _start(self, **_: Any) -> Any:
        self.starting.set()
        assert self.may_start.wait(PROMPT_S)
        return Closing(self.closed, "Ray")

    def _deploy(self, placed: Any, **_: Any) -> Any:
        self.stages += placed
        return Closing(self.closed, "stages")


class Closing:
    embedded = True

    def __init__(self, closed: list[str], name: str) -> None:
        self._closed, self._name = closed, name

    def close(self) -> None:
        if self._name not in self._closed:
            self._closed.append(self._name)


def starting(devices: list[Device] | None = None) -> Startup:
    started = Startup(
        devices,
        address=None,
        weight_nbytes=0,
        on_trouble=lambda why: None,
        label="test",
        share=False,
        precision="float32",
        engine="torch",
    )
    started.start()
    return started


def test_what_is_being_started_when_the_model_turns_out_wrong_is_ended(monkeypatch):
    """The chain fails while Ray starts: closing waits for Ray, starts no stage any more, and ends it."""
    fake = FakeRay(monkeypatch)
    started = starting()
    assert fake.starting.wait(PROMPT_S)
    closer = threading.Thread(target=started.close)
    closer.start()
    assert started._given_up.wait(PROMPT_S)
    assert fake.closed == []
    fake.may_start.set()
    closer.join(PROMPT_S)
    assert (fake.closed, fake.stages) == (["Ray"], [])


def test_a_second_ctrl_c_while_closing_waits_leaves_nothing_behind(monkeypatch):
    """Whoever waits is interrupted: the thread that starts Ray ends it on its own, and the program's end waits."""
    fake = FakeRay(monkeypatch)
    started = starting()
    assert fake.starting.wait(PROMPT_S)
    real_wait = started._over.wait

    def interrupted(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(started._over, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        started.close()
    fake.may_start.set()
    assert real_wait(PROMPT_S)
    assert fake.closed == ["Ray"]
    assert not started._thread.daemon


def test_a_signal_while_ray_starts_leaves_nothing_behind(monkeypatch):
    """SIGTERM came while the main thread waited: it then took the thread that started Ray for ended, and went.

    Ray's two agents stayed for a minute. In Python 3.11 a join() that a signal interrupts marks its thread as ended.
    """
    fake = FakeRay(monkeypatch)
    started = starting()
    assert fake.starting.wait(PROMPT_S)
    main = threading.get_ident()

    def interrupt_again() -> None:
        while not interrupted.wait(0.01):  # until the main thread waits, which nothing tells
            signal.pthread_kill(main, signal.SIGUSR1)

    def on_signal(number: int, frame: Any) -> None:
        if not interrupted.is_set() and frame.f_code.co_filename.endswith("threading.py"):  # within a wait
            interrupted.set()
            raise KeyboardInterrupt

    interrupted = threading.Event()
    before = signal.signal(signal.SIGUSR1, on_signal)
    sender = threading.Thread(target=interrupt_again)
    try:
        sender.start()
        with pytest.raises(KeyboardInterrupt):
            started.join()
        sender.join()
        threading.Timer(0.05, fake.may_start.set).start()
        started.close()
        assert fake.closed == ["Ray"]
    finally:
        interrupted.set()
        fake.may_start.set()
        signal.signal(signal.SIGUSR1, before)


def test_what_fails_beside_the_chain_is_raised_where_it_is_waited_for(monkeypatch):
    fake = FakeRay(monkeypatch)
    fake.may_start.set()

    def nowhere(*_: Any, **__: Any) -> Any:
        raise DeviceError("there is no usable core 99")

    monkeypatch.setattr(startup, "place", nowhere)
    started = starting()
    with pytest.raises(DeviceError, match="core 99"):
        started.join()
    started.close()
    assert fake.closed == ["Ray"]


def test_not_all_free_cores_start_before_the_number_of_layers_is_known(monkeypatch):
    fake = FakeRay(monkeypatch)
    fake.may_start.set()
    _, placed, _ = starting().join()
    assert (len(placed), len(fake.stages)) == (12, 8)
    fake.stages.clear()
    starting([Device("cpu", (core,)) for core in range(12)]).join()
    assert len(fake.stages) == 12


def test_at_most_a_stage_per_layer():
    check_stage_count(3, layer_count=3)
    with pytest.raises(DeviceError, match="3 stages for 2 layers: use at most 2 stages"):
        check_stage_count(3, layer_count=2)


def test_the_object_store_is_sized_before_there_is_a_chain():
    """Counted: parameters, buffers, and tensors that a module merely holds; those of a chain are about as many."""
    model = seeded(Residual)
    model.table = torch.zeros(1000)
    nbytes = weight_nbytes(odin.load_source(model, example_input=image()))
    parameters = sum(value.numel() * value.element_size() for value in (*model.parameters(), *model.buffers()))
    assert nbytes == parameters + 4000
    chain = odin.build_chain(seeded(Residual), (image(),))
    assert 0 < weight_nbytes(chain) <= nbytes


def test_ray_draws_no_random_numbers_of_the_programs():
    """While Ray started beside, a model "drew random numbers", and was refused: they were Ray's, for a port."""
    ours = random.getstate()
    with own_random_numbers():
        ray._private.node.random.randint(1, 2**30)
        assert random.getstate() == ours
    assert ray._private.node.random is random


def test_neither_the_compiler_nor_sympy_is_imported_for_a_chain():
    """A second and a third of one for nothing, the latter in every stage."""
    code = """
import sys
import torch
import odin.stages.actor, odin.partitioner.code.program
assert "sympy" not in sys.modules, "stages"
from odin.partitioner.chain import build_chain
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)).eval()
chain = build_chain(model, (torch.ones(1, 3, 8, 8),))
assert sum(layer.flops for layer in chain.layers) > 0
from odin.models.sources import load_source
load_source("mobilenet_v2")
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=4 * PROMPT_S)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.ray
@pytest.mark.parametrize("early", [1, 8], ids=["more stages than started early", "fewer layers than started early"])
def test_a_source_is_served_by_as_many_stages_as_it_has_layers(monkeypatch, two_cores, early):
    monkeypatch.setattr(startup, "_EARLY_STAGES", early)
    model = seeded(Residual) if early == 1 else torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval()
    source = odin.load_source(model, example_input=image())
    with odin.Pipeline(source, stages="auto", policy="static") as pipe:
        layers = len(pipe.chain.layers)
        assert len(pipe.devices) == min(layers, len(usable_cores()))
        assert torch.allclose(pipe(image()), model(image()), atol=1e-4)
        assert pipe.chain.released


@pytest.mark.ray
def test_the_models_own_weights_are_gone_once_it_serves(monkeypatch, two_cores):
    # What traces a model leaves cycles that hold it: 80 MiB of a ResNet50 stayed until the collector happened to run.
    weights: list[weakref.ref[torch.Tensor]] = []

    def build(source: odin.Source, **options: Any) -> odin.Chain:
        weights.extend(weakref.ref(parameter) for parameter in source.model.parameters())
        return to_chain(source, **options)

    monkeypatch.setattr("odin.pipeline.to_chain", build)
    gc.disable()
    try:
        with odin.Pipeline("bench_models:residual", stages=two_cores, plan="5|5", policy="static"):
            assert [weight() is None for weight in weights] == [True] * len(weights)
            assert weights
    finally:
        gc.enable()


def test_options_that_a_source_has_already_are_refused():
    source = odin.load_source(seeded(Residual), example_input=image())
    with pytest.raises(ValueError, match=r"example_input does not go with a source.*give it to load_source"):
        odin.Pipeline(source, example_input=image())
