"""Pipelines whose stages compute with ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from example_models import Residual, seeded
from random_moves import answers_while_layers_move

import odin
from odin.control.engine_choice import fastest_form
from odin.partitioner.engines.names import available_engines
from odin.partitioner.profile import Profile
from odin.stages.device import Device

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENGINES = [engine for engine in available_engines() if engine != "torch"]


def deep() -> odin.Chain:
    """Many layers, each of them short."""

    def model() -> torch.nn.Module:
        layers = [torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU()) for _ in range(6)]
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), *layers, torch.nn.Flatten(), torch.nn.Linear(8 * 196, 5))

    return odin.build_chain(seeded(model), (torch.zeros(1, 3, 16, 16),), name="deep")


def images(count: int, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 3, 16, 16, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module", params=ENGINES)
def pipe(two_cores: list[str], request: pytest.FixtureRequest) -> Iterator[odin.Pipeline]:
    with odin.Pipeline(deep(), stages=two_cores, engine=request.param, policy="static", batch=3) as pipe:
        assert pipe.engine == request.param
        yield pipe


def test_outputs_are_the_same_under_every_plan_and_while_layers_move(pipe: odin.Pipeline):
    chain = deep()
    inputs, layers = images(8), len(chain.layers)
    assert len(pipe.chain.layers) == layers
    expected = [pipe(image) for image in inputs]
    for image, output in zip(inputs, expected, strict=True):
        wanted = chain(image)
        assert (output - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    for number, answer in answers_while_layers_move(pipe, inputs, layers=layers, requests=60):
        assert torch.equal(answer, expected[number])


def test_requests_of_any_size_and_several_inputs(pipe: odin.Pipeline):
    (seven,) = images(1, batch=7)
    one_by_one = torch.cat([pipe(seven[index : index + 1]) for index in range(7)])
    assert torch.allclose(pipe(seven), one_by_one, rtol=0, atol=1e-5)
    assert torch.equal(pipe(seven.to(memory_format=torch.channels_last)), pipe(seven))


def test_stages_of_another_engine_load_no_pytorch(pipe: odin.Pipeline):
    assert pipe._assembly._deployment is not None
    for info in pipe._assembly._deployment.infos:
        with open(f"/proc/{info.pid}/maps") as maps:
            assert "libtorch" not in maps.read()


def test_auto_takes_the_engine_with_the_shortest_profile(monkeypatch: pytest.MonkeyPatch):
    taken = dict(zip(available_engines(), (0.3, 0.1, 0.2), strict=False))
    measured = []

    def profile(chain: odin.Chain, device: Device, inputs: object, *, engine: str, **options: object) -> Profile:
        measured.append(engine)
        count = len(chain.layers)
        return Profile("cpu x1", (taken[engine] / count,) * count, (0.0,) * count, 3, 1, "now", "2.0")

    monkeypatch.setattr("odin.control.engine_choice.profile_local", profile)
    form = fastest_form(deep(), Device("cpu", (0,)), batch=1)
    assert measured == list(available_engines())
    assert form.engine == min(taken, key=taken.__getitem__)


def test_an_engine_for_gpus_or_an_unknown_one_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match="engine 'onnxruntime' runs on CPU cores only, and there is gpu:0"):
        odin.Pipeline(seeded(Residual), stages="cpu:0,gpu:0", engine="onnxruntime")
    with pytest.raises(ValueError, match="unknown engine 'tvm': choose torch, onnxruntime, openvino or auto"):
        odin.Pipeline(seeded(Residual), stages="cpu:0", engine="tvm")
