"""A model that an engine cannot take is refused in one way, and "auto" takes another."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odin.control import engine_choice
from odin.control.engine_choice import fastest_form, make_form
from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.engines.export import ExportError
from odin.partitioner.engines.names import TORCH, available_engines
from odin.stages.device import Device

ENGINES = [engine for engine in available_engines() if engine != TORCH]


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x)


class Bits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x ^ 5).remainder(7) << 2


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "double": (lambda: nn.Conv2d(3, 4, 3).double(), torch.zeros(1, 3, 8, 8).double()),
    "double_volume": (lambda: nn.ConvTranspose3d(3, 4, 3).double(), torch.zeros(1, 3, 8, 8, 8).double()),
    "half": (lambda: nn.Conv2d(3, 4, 3).half(), torch.zeros(1, 3, 8, 8).half()),
    "brain": (lambda: nn.Conv2d(3, 4, 3).bfloat16(), torch.zeros(1, 3, 8, 8).bfloat16()),
    "complex": (Spectrum, torch.zeros(1, 3, 8, 8)),
    "bits": (Bits, torch.zeros(1, 3, 8, 8, dtype=torch.int16)),
}


@cache
def chain_of(name: str) -> Chain:
    build, example = MODELS[name]
    return build_chain(build().eval(), (example,), name=name, keep=False)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_takes_a_model_or_says_which_one_does(name: str, engine: str):
    chain = chain_of(name)
    try:
        form = make_form(chain, engine)
    except ExportError as error:
        refusal = str(error)
    else:
        assert form.engine == engine
        return
    assert "choose engine 'torch'" in refusal
    assert "\n" not in refusal


@pytest.mark.parametrize("name", ["double", "brain"])  # which one of them does not take, and both
def test_auto_passes_over_what_cannot_take_a_model(name: str, monkeypatch: pytest.MonkeyPatch):
    def profile(*_: Any, engine: str, form: Callable[[], Any], **options: Any) -> Any:
        form()
        return SimpleNamespace(total_s=2.0 if engine == TORCH else 1.0)  # PyTorch is the last that is wanted

    monkeypatch.setattr(engine_choice, "profile_local", profile)
    assert fastest_form(chain_of(name), Device.parse("cpu:0"), batch=1).engine in available_engines()
