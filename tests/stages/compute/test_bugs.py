"""Bugs that were, each with its story."""

from __future__ import annotations

import pytest
import ray
import torch
from torch import nn

import odin
from odin.stages.compute import opaque
from odin.stages.compute.opaque import compute_threads
from odin.stages.compute.torch_weights import store


@pytest.fixture
def convolutions() -> odin.Chain:
    torch.manual_seed(0)
    # shapes of ResNet50's layer3 and layer4, whose form depends on the threads
    layers = [nn.Conv2d(256, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 512, 1), nn.ReLU(), nn.Conv2d(512, 64, 1)]
    return odin.build_chain(nn.Sequential(*layers), (torch.randn(1, 256, 14, 14),), name="convolutions")


def forms(chain: odin.Chain, threads: int) -> dict[str, bytes]:
    with compute_threads(threads):
        return {name: stored.form for name, stored in store(chain.program.pack(chain.state)).items()}


@pytest.mark.ray
@pytest.mark.skipif(not opaque.supported(), reason="this PyTorch cannot share packed weights")
def test_weights_were_packed_for_the_threads_of_the_wrong_process(two_cores, convolutions):
    """The form of packed weights, which oneDNN chooses, depends on the number of threads.

    They were packed with the two threads of the process that feeds the pipeline, and every stage, which has one,
    reordered them on every call: a ResNet50 was three to four times slower, with the same results. Benchmarks did not
    show it, as they set one thread; the picture for the README did.
    """
    if forms(convolutions, 2) == forms(convolutions, 1):
        pytest.skip("on this processor the form does not depend on the threads")
    plan = f"1|{len(convolutions.layers) - 1}"
    with compute_threads(2), odin.Pipeline(convolutions, stages=two_cores, plan=plan, policy="static") as pipe:
        assert pipe._assembly._deployment is not None
        weights = ray.get(pipe._assembly._deployment._opening[0][1])
        assert {name: stored.form for name, stored in weights.items()} == forms(convolutions, 1)
        assert torch.get_num_threads() == 2


def test_nan_came_out_as_a_finite_answer(convolutions):
    """The ReLU that oneDNN fuses returns zero for NaN, so an image full of NaN got an ordinary classification."""
    x = torch.full((1, 256, 14, 14), torch.nan)
    assert convolutions(x).isnan().all()
