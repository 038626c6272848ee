"""A real model behind the gRPC server, asked by unmodified clients: what comes back is what the pipeline gives."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from example_models import Residual, seeded
from grpc_serving import Serving, image, serving
from patience import PROMPT_S
from tritonclient.utils import InferenceServerException

from odin.server.config import Limits, ModelConfig
from odin.server.dataplane import DataPlane
from odin.server.repository import Repository

pytestmark = pytest.mark.ray

SIZE = 32


def residual() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The model that is served, as a configuration names it."""
    return seeded(Residual), (torch.zeros(1, 3, SIZE, SIZE),)


@pytest.fixture(scope="module")
def served(two_cores: list[str]) -> Iterator[Serving]:
    config = ModelConfig(
        name="residual",
        source="test_grpc_clients:residual",
        stages=tuple(two_cores[:1]),
        engine="torch",
        max_waiting=4096,
    )

    async def make() -> DataPlane:
        plane = DataPlane(Repository(configs=[config]), Limits())
        await plane.load("residual")
        return plane

    with serving() as first:
        plane = first.call(make())
        first.call(first.server.stop(0.0))
        first.call(first.open(plane, Limits()))
        try:
            yield first
        finally:
            first.call(plane.repository.close())


@pytest.fixture
def client(served: Serving) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as one:
        yield one


@pytest.fixture(scope="module")
def expect(served: Serving) -> Any:
    """What the pipeline itself gives for an input."""
    pipeline = served.dataplane.repository.served("residual").pipeline
    return lambda values: pipeline(torch.from_numpy(values)).numpy()


@pytest.fixture(scope="module")
def names(served: Serving) -> tuple[str, str]:
    signature = served.dataplane.repository.served("residual").signature
    return signature.inputs[0].name, signature.outputs[0].name


@pytest.fixture
def ask(client: triton.InferenceServerClient, names: tuple[str, str]) -> Any:
    def ask(values: Any, **options: Any) -> Any:
        return client.infer("residual", [named(values, names)], **options).as_numpy(names[1])

    return ask


def named(values: Any, names: tuple[str, str]) -> triton.InferInput:
    one = triton.InferInput(names[0], list(values.shape), "FP32")
    one.set_data_from_numpy(values)
    return one


def test_answers_are_the_pipeline_s(client: Any, ask: Any, expect: Any) -> None:
    assert client.is_model_ready("residual")
    metadata = client.get_model_metadata("residual")
    assert list(metadata.inputs[0].shape) == [-1, 3, SIZE, SIZE]
    for samples, id in ((1, ""), (3, "a"), (2, "odd")):  # ids move the values to any place in the message
        values = image(samples, 3, SIZE, SIZE, seed=samples)
        np.testing.assert_array_equal(ask(values, request_id=id), expect(values))


def test_a_request_of_20_mb(ask: Any, expect: Any) -> None:
    values = image(20_000_000 // (4 * 3 * SIZE * SIZE) + 1, 3, SIZE, SIZE)
    assert values.nbytes > 20_000_000
    answer = ask(values)
    np.testing.assert_array_equal(answer[-2:], expect(values[-2:]))
    assert len(answer) == len(values)


def test_eight_clients_at_the_same_time(served: Serving, names: tuple[str, str], expect: Any) -> None:
    def one(seed: int) -> list[tuple[Any, Any]]:
        with triton.InferenceServerClient(served.url) as client:
            inputs = [image(1, 3, SIZE, SIZE, seed=100 * seed + number) for number in range(5)]
            return [(values, client.infer("residual", [named(values, names)]).as_numpy(names[1])) for values in inputs]

    with ThreadPoolExecutor(8) as threads:
        for pairs in threads.map(one, range(8)):
            for values, answer in pairs:
                np.testing.assert_array_equal(answer, expect(values))


def test_async_infer_and_streams(client: Any, names: tuple[str, str], expect: Any) -> None:
    answers: Queue[tuple[Any, Any]] = Queue()
    inputs = [image(1, 3, SIZE, SIZE, seed=seed) for seed in range(6)]
    for number, values in enumerate(inputs):
        client.async_infer(
            "residual",
            [named(values, names)],
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    got = [answers.get(timeout=PROMPT_S) for _ in inputs]
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, values in enumerate(inputs):
        client.async_stream_infer("residual", [named(values, names)], request_id=str(number))
    streamed = [answers.get(timeout=PROMPT_S) for _ in inputs]
    client.stop_stream()
    assert [result.get_response().id for result, _ in streamed] == [str(number) for number in range(6)]
    for result, error in got + streamed:
        assert error is None
        values = inputs[int(result.get_response().id)]
        np.testing.assert_array_equal(result.as_numpy(names[1]), expect(values))


def test_the_client_for_asyncio(served: Serving, names: tuple[str, str], expect: Any) -> None:
    inputs = [image(1, 3, SIZE, SIZE, seed=seed) for seed in range(6)]

    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(served.url) as client:
            return await asyncio.gather(*(client.infer("residual", [named(values, names)]) for values in inputs))

    for values, answer in zip(inputs, served.call(ask()), strict=True):
        np.testing.assert_array_equal(answer.as_numpy(names[1]), expect(values))


OPEN_INFERENCE = """
import sys, grpc, numpy
from open_inference.grpc import protocol, service
stub = service.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
assert stub.ServerLive(protocol.ServerLiveRequest(), timeout=100).live
assert stub.ServerReady(protocol.ServerReadyRequest(), timeout=100).ready
assert stub.ModelReady(protocol.ModelReadyRequest(name="residual"), timeout=100).ready
assert stub.ServerMetadata(protocol.ServerMetadataRequest(), timeout=100).name == "odin"
known = stub.ModelMetadata(protocol.ModelMetadataRequest(name="residual"), timeout=100).inputs[0]
values = numpy.load(sys.argv[2])
request = protocol.ModelInferRequest(model_name="residual", id="seven")
request.inputs.add(name=known.name, datatype=known.datatype, shape=values.shape)
if sys.argv[4] == "typed":
    request.inputs[0].contents.fp32_contents.extend(values.ravel().tolist())
else:
    request.raw_input_contents.append(values.tobytes())
answer = stub.ModelInfer(request, timeout=100)
assert answer.id == "seven"
numpy.save(sys.argv[3], numpy.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape))
"""


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_the_specification_s_own_client(served: Serving, tmp_path: Path, expect: Any, form: str) -> None:
    values = image(2, 3, SIZE, SIZE)
    np.save(tmp_path / "in.npy", values)
    arguments = [served.url, str(tmp_path / "in.npy"), str(tmp_path / "out.npy"), form]
    subprocess.run([sys.executable, "-c", OPEN_INFERENCE, *arguments], check=True, timeout=PROMPT_S)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expect(values))


def test_failures_by_their_codes(client: Any, ask: Any, names: tuple[str, str]) -> None:
    for values, options, code in (
        (image(1, 3, SIZE, SIZE + 1), {}, "INVALID_ARGUMENT"),
        (image(1, 3, SIZE, SIZE), {"outputs": [triton.InferRequestedOutput("none")]}, "INVALID_ARGUMENT"),
        (image(1, 3, SIZE, SIZE), {"model_version": "9"}, "NOT_FOUND"),
        (image(1, 3, SIZE, SIZE), {"timeout": 1}, "DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            ask(values, **options)
        assert caught.value.status().removeprefix("StatusCode.") in code.split("|")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("none", [named(image(1), names)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_a_cancelled_call_leaves_the_others_alone(
    served: Serving, client: Any, ask: Any, names: tuple[str, str], expect: Any
) -> None:
    values = image(200, 3, SIZE, SIZE)
    calls = [client.async_infer("residual", [named(values, names)], lambda result, error: None) for _ in range(4)]
    for call in calls:
        call.cancel()
    small = image(1, 3, SIZE, SIZE)
    np.testing.assert_array_equal(ask(small), expect(small))

    async def until_none_is_left() -> None:
        while served.dataplane.under_way:
            await asyncio.sleep(0.01)

    served.call(asyncio.wait_for(until_none_is_left(), PROMPT_S))


def test_statistics_count_what_was_asked(client: Any, ask: Any) -> None:
    before = client.get_inference_statistics("residual").model_stats[0]
    ask(image(3, 3, SIZE, SIZE))
    after = client.get_inference_statistics("residual").model_stats[0]
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 3  # micro-batches of one sample
    assert [(one.batch_size, one.compute_infer.count) for one in after.batch_stats] == [(1, after.execution_count)]
    assert after.inference_stats.success.ns > before.inference_stats.success.ns


def test_a_model_is_replaced_and_unloaded_by_its_client(client: Any, ask: Any, expect: Any) -> None:
    values = image(1, 3, SIZE, SIZE)
    before = expect(values)
    client.load_model("residual")  # anew; what serves goes on until the new one takes over
    np.testing.assert_array_equal(ask(values), before)
    client.unload_model("residual")
    with pytest.raises(InferenceServerException, match="UNAVAILABLE: unloaded") as caught:
        ask(values)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert [(one.name, one.state) for one in client.get_model_repository_index().models] == [
        ("residual", "UNAVAILABLE")
    ]
