"""A real model behind the REST server, asked by tritonclient as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from rest_models import residual
from tritonclient.utils import InferenceServerException

from odin.server.config import Limits, parse_model
from odin.server.dataplane import DataPlane
from odin.server.http_server import HttpServer
from odin.server.repository import Repository
from odin.server.rest import make_app

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(two_cores: list[str]) -> Iterator[str]:
    """Where a server in a thread of its own is."""
    config = parse_model(
        {"source": "rest_models:residual", "stages": two_cores[:1], "policy": "static", "version": "2"},
        name="residual",
        folder=Path(),
        where="test",
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()

    async def start() -> tuple[DataPlane, HttpServer, int]:
        dataplane = DataPlane(Repository(configs=[config]), Limits())
        server = HttpServer(make_app(dataplane), limits=dataplane.limits)
        port = await server.start()
        await dataplane.load("residual")
        return dataplane, server, port

    async def stop(dataplane: DataPlane, server: HttpServer) -> None:
        await server.stop(5.0)
        await dataplane.repository.close()

    try:
        dataplane, server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(240)
        yield f"127.0.0.1:{port}"
        asyncio.run_coroutine_threadsafe(stop(dataplane, server), loop).result(120)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 32, 32), np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    model, _ = residual()
    with torch.inference_mode():
        return model(torch.from_numpy(batch)).numpy()


def given(batch: np.ndarray, *, binary: bool = True) -> list[triton.InferInput]:
    one = triton.InferInput("input", list(batch.shape), "FP32")
    one.set_data_from_numpy(batch, binary_data=binary)
    return [one]


def test_health_metadata_and_statistics(url: str) -> None:
    with triton.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("residual")
        assert client.is_model_ready("residual", "2")
        assert not client.is_model_ready("residual", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "odin"
        metadata = client.get_model_metadata("residual")
        assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
        assert client.get_model_config("residual")["max_batch_size"] > 1
        assert client.get_inference_statistics("residual")["model_stats"][0]["name"] == "residual"
        assert client.get_model_repository_index()[0]["state"] == "READY"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_inference(url: str, binary_in: bool, binary_out: bool | None) -> None:
    batch = images(2)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("output", binary_data=binary_out)]
    with triton.InferenceServerClient(url) as client:
        result = client.infer(
            "residual", given(batch, binary=binary_in), outputs=outputs, request_id="7", timeout=30_000_000
        )
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("7", "2")
    np.testing.assert_allclose(result.as_numpy("output"), expected(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(url: str, algorithm: str) -> None:
    batch = images(64)
    with triton.InferenceServerClient(url) as client:
        result = client.infer(
            "residual",
            given(batch),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    np.testing.assert_allclose(result.as_numpy("output"), expected(batch), rtol=1e-4, atol=1e-4)


def test_nan_comes_back_however_it_is_sent(url: str) -> None:
    batch = images(1)
    batch[0, 0, 0, 0] = np.nan
    batch[0, 0, 5, 5] = np.inf
    with triton.InferenceServerClient(url) as client:
        for binary in (True, False):
            output = triton.InferRequestedOutput("output", binary_data=binary)
            result = client.infer("residual", given(batch, binary=binary), outputs=[output])
            assert np.isnan(result.as_numpy("output")).all()


def test_classes(url: str) -> None:
    batch = images(3)
    wanted = triton.InferRequestedOutput("output", class_count=2)
    with triton.InferenceServerClient(url) as client:
        classes = client.infer("residual", given(batch), outputs=[wanted]).as_numpy("output")
    assert classes.shape == (3, 2)
    assert [int(row[0].split(b":")[1]) for row in classes] == expected(batch).argmax(1).tolist()


def test_failures(url: str) -> None:
    with triton.InferenceServerClient(url) as client:
        for inputs, status, told in (
            (given(images(1)[:, :2]), "400", r"\[1, 2, 32, 32\]"),
            ([triton.InferInput("input", [1, 3, 32, 32], "FP32")], "400", "neither 'data' nor"),
        ):
            with pytest.raises(InferenceServerException, match=told) as caught:
                client.infer("residual", inputs)
            assert caught.value.status() == status
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            client.infer("other", given(images(1)))
        with pytest.raises(InferenceServerException, match=r"late|deadline|expired|refused") as caught:
            client.infer("residual", given(images(1)), timeout=1)
        assert caught.value.status() in ("429", "504")


def test_many_at_once(url: str) -> None:
    with triton.InferenceServerClient(url, concurrency=8) as client:
        waiting = [(batch, client.async_infer("residual", given(batch))) for batch in map(images, range(1, 17))]
        for batch, one in waiting:
            np.testing.assert_allclose(one.get_result().as_numpy("output"), expected(batch), rtol=1e-4, atol=1e-4)


def test_the_asynchronous_client(url: str) -> None:
    async def scenario() -> None:
        async with triton_aio.InferenceServerClient(url) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("residual"))["name"] == "residual"
            batches = [images(count) for count in range(1, 9)]
            for binary in (True, False):
                output = triton.InferRequestedOutput("output", binary_data=binary)
                results = await asyncio.gather(
                    *(client.infer("residual", given(batch), outputs=[output]) for batch in batches)
                )
                for batch, result in zip(batches, results, strict=True):
                    np.testing.assert_allclose(result.as_numpy("output"), expected(batch), rtol=1e-4, atol=1e-4)
            with pytest.raises(InferenceServerException, match="no output 'z'"):
                await client.infer("residual", given(batches[0]), outputs=[triton.InferRequestedOutput("z")])

    asyncio.run(scenario())


def test_the_model_is_unloaded_and_loaded_again(url: str) -> None:
    batch = images(1)
    with triton.InferenceServerClient(url, network_timeout=240) as client:
        client.unload_model("residual")
        assert not client.is_model_ready("residual")
        with pytest.raises(InferenceServerException, match="UNAVAILABLE") as caught:
            client.infer("residual", given(batch))
        assert caught.value.status() == "503"
        client.load_model("residual")
        assert client.is_model_ready("residual")
        np.testing.assert_allclose(
            client.infer("residual", given(batch)).as_numpy("output"), expected(batch), rtol=1e-4, atol=1e-4
        )
