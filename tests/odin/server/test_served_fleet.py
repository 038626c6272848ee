"""Packed models over the network: named, ready, answered and measured like models with a pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from example_models import Residual, seeded
from prometheus_client.exposition import generate_latest

import odin
from odin.fleet.packing import pack_chain
from odin.partitioner.chain import build_chain
from odin.server.config import Limits
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, Tensor
from odin.server.metrics import Metrics
from odin.server.repository import Repository
from odin.server.served_fleet import FleetModel, ServedFleet

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def pack(folder: Path, name: str) -> odin.Chain:
    chain = build_chain(seeded(Residual), (X[:1],), name=name)
    pack_chain(chain, folder, name=name, baseline_s={1: 0.001}, labels=tuple("abc"))
    return chain


def request(model: str, values: np.ndarray, **fields) -> InferRequest:
    tensor = Tensor("input", DATATYPES["FP32"], values)
    return InferRequest(model, "", "", {}, (tensor,), **fields)


@pytest.mark.ray
def test_packed_models_have_the_face_of_others(two_cores, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir(mode=0o700)
    chains = {name: pack(folder, name) for name in ("one", "two")}

    async def main() -> None:
        packed = ServedFleet(folder, memory_mib=64, stages=two_cores[0])
        repository = Repository(folder, packed=packed)
        try:
            assert repository.find() == ["one", "two"]
            dataplane, metrics = DataPlane(repository, Limits()), Metrics()
            metrics.watch(dataplane)
            assert [state.state for state in dataplane.index()] == ["UNAVAILABLE"] * 2
            for name in chains:
                await dataplane.load(name)
            assert dataplane.is_ready()
            assert [state.state for state in dataplane.index()] == ["READY"] * 2
            metadata = dataplane.model_metadata("one")
            assert metadata.platform == "odin_torch"
            assert metadata.inputs[0].shape == (-1, 3, 32, 32)
            assert metadata.outputs[0].shape[0] == -1
            for name, chain in chains.items():
                answer = await dataplane.infer(request(name, X.numpy()))
                assert np.array_equal(answer.outputs[0].array, chain(X).numpy())
            ((_, totals),) = dataplane.statistics("one")
            assert (totals.succeeded, totals.samples) == (1, 2)
            with pytest.raises(RequestError) as late:
                await dataplane.infer(request("one", X.numpy(), timeout_s=1e-5))
            assert late.value.kind is FailureKind.REFUSED
            with pytest.raises(RequestError, match="at most 8") as large:
                await dataplane.infer(request("one", np.zeros((9, 3, 32, 32), np.float32)))
            assert large.value.kind is FailureKind.INVALID
            chains["three"] = pack(folder, "three")
            assert [state.name for state in dataplane.index()] == ["one", "three", "two"]
            await dataplane.load("three")
            answer = await dataplane.infer(request("three", X.numpy()))
            assert np.array_equal(answer.outputs[0].array, chains["three"](X).numpy())
            pack(folder, "idle")
            dataplane.index()
            await dataplane.load("idle")
            await dataplane.unload("two")
            with pytest.raises(RequestError, match="'two' is UNAVAILABLE"):
                await dataplane.infer(request("two", X.numpy()))
            assert dict(dataplane.views()) == {}
            text = generate_latest(metrics.registry).decode()
            assert 'model="three"' in text
            assert "idle" in [state.name for state in dataplane.index()]
            assert 'model="idle"' not in text  # nobody has asked for it
            for line in (
                'odin_fleet_requests_total{memory="cold"} 3.0',
                "odin_fleet_loads_total 3.0",
                'odin_fleet_models{state="all"} 4.0',
                'odin_requests_total{model="one",outcome="answered"} 1.0',
            ):
                assert line in text
        finally:
            await repository.close()
        assert packed.fleet is not None
        with pytest.raises(odin.PipelineClosedError):
            packed.fleet.submit("one", X)

    asyncio.run(main())


def test_one_name_for_two_models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir(mode=0o700)
    pack(folder, "one")
    (folder / "one.toml").write_text('source = "resnet18"\n')
    repository = Repository(folder, packed=ServedFleet(folder, memory_mib=64))
    with pytest.raises(ValueError, match=r"'one' has a file one.toml and is packed as one.packed: remove one"):
        repository.find()


def test_loading_many_packed_models_looks_through_the_folder_once(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir(mode=0o700)
    pack(folder, "one")
    for number in range(20):
        (folder / f"m{number}.packed").write_bytes(b"not looked at")

    async def main() -> None:
        packed = ServedFleet(folder, memory_mib=64)
        monkeypatch.setattr(packed, "model", lambda config: FleetModel.__new__(FleetModel))
        monkeypatch.setattr(FleetModel, "random_weights", False, raising=False)
        repository = Repository(folder, packed=packed)
        looks: list[None] = []
        look = packed.names
        monkeypatch.setattr(packed, "names", lambda: looks.append(None) or look())
        names = repository.find()
        assert len(names) == 21
        for name in names:
            await repository.load(name)
        assert len(looks) == 1
        (folder / "one.toml").write_text('source = "resnet18"\n')
        with pytest.raises(RequestError, match=r"'one' has a file one.toml and is packed as one.packed: remove one"):
            await repository.load("one")
        for name in ("../models/one", "m\0", ""):
            with pytest.raises(RequestError):
                await repository.load(name)

    asyncio.run(main())
