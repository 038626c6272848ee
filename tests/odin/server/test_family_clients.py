"""A family of variants by HTTP and by gRPC, asked by tritonclient: what requests ask for, and what answers say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from grpc_serving import ServingLoop
from tritonclient.utils import InferenceServerException
from variant_models import large, small

from odin.server.config import Limits, parse_model
from odin.server.dataplane import DataPlane
from odin.server.grpc_service import GrpcServer
from odin.server.http_server import HttpServer
from odin.server.repository import Repository
from odin.server.rest import make_app

pytestmark = [pytest.mark.ray, pytest.mark.slow]

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()
START_S = 400.0  # variants are profiled: each is opened twice


class Answered(NamedTuple):
    """An answer, whichever protocol it came by."""

    output: np.ndarray
    told: dict[str, Any]


@pytest.fixture(scope="module")
def ports(two_cores: list[str]) -> Iterator[dict[str, int]]:
    variants = [
        {"name": "small", "source": "variant_models:small", "accuracy": 0.7},
        {"name": "large", "source": "variant_models:large", "accuracy": 0.9},
        {"name": "cut", "source": "variant_models:small", "accuracy": 0.95, "form": "exit-1", "accuracy_lost": 0.01},
    ]
    config = parse_model({"stages": two_cores[:1], "variants": variants}, name="digits", folder=Path(), where="test")

    async def start() -> tuple[DataPlane, HttpServer, GrpcServer, dict[str, int]]:
        dataplane = DataPlane(Repository(configs=[config]), Limits())
        await dataplane.load("digits")
        http = HttpServer(make_app(dataplane), limits=dataplane.limits)
        grpc = GrpcServer(dataplane, limits=dataplane.limits)
        return dataplane, http, grpc, {"http": await http.start(), "grpc": await grpc.start()}

    with closing(ServingLoop()) as loop:
        dataplane, http, grpc, ports = loop.start(start()).result(START_S)
        try:
            yield ports
        finally:
            loop.call(http.stop(5.0))
            loop.call(grpc.stop(5.0))
            loop.call(dataplane.repository.close())


@contextmanager
def by_http(port: int) -> Iterator[Callable[..., Answered]]:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:

        def ask(values: np.ndarray, *, binary: bool = True, **options: Any) -> Answered:
            given = tritonclient.http.InferInput("input", list(values.shape), "FP32")
            given.set_data_from_numpy(values, binary_data=binary)
            wanted = [tritonclient.http.InferRequestedOutput("output", binary_data=binary)]
            result = client.infer("digits", [given], outputs=wanted, **options)
            return Answered(result.as_numpy("output"), result.get_response()["parameters"])

        yield ask


@contextmanager
def by_grpc(port: int) -> Iterator[Callable[..., Answered]]:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:

        def ask(values: np.ndarray, *, binary: bool = True, **options: Any) -> Answered:
            given = tritonclient.grpc.InferInput("input", list(values.shape), "FP32")
            given.set_data_from_numpy(values)
            result = client.infer("digits", [given], **options)
            told = result.get_response().parameters
            kinds = {name: value.WhichOneof("parameter_choice") for name, value in told.items()}
            return Answered(result.as_numpy("output"), {name: getattr(told[name], kinds[name]) for name in kinds})

        yield ask


@pytest.fixture(params=["http", "http in JSON", "grpc"])
def ask(ports: dict[str, int], request: pytest.FixtureRequest) -> Iterator[Callable[..., Answered]]:
    protocol, *more = request.param.split(" in ")
    with {"http": by_http, "grpc": by_grpc}[protocol](ports[protocol]) as ask:
        yield lambda values, **options: ask(values, binary=not more, **options)


def expected(name: str, values: np.ndarray) -> np.ndarray:
    model, _ = {"small": small, "large": large, "cut": small}[name]()
    with torch.inference_mode():
        return model(torch.from_numpy(values)).numpy()


@pytest.mark.parametrize(
    ("parameters", "variant", "accuracy"),
    [
        (None, "small", 0.7),
        ({"accuracy": 0.5}, "small", 0.7),
        ({"accuracy": 0.8}, "large", 0.9),
        ({"accuracy": "0.8"}, "large", 0.9),
        ({"accuracy": 0}, "small", 0.7),
        ({"accuracy": 0.9, "latency": 60_000_000}, "large", 0.9),
        ({"accuracy": 0.95, "accuracy_budget": 0.01}, "cut", 0.95),
        ({"accuracy": 0.95, "accuracy_budget": "0.02", "latency": "60000000"}, "cut", 0.95),
    ],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_the_answer_is_the_variants_and_says_so(
    ask: Callable[..., Answered], parameters: dict[str, Any] | None, variant: str, accuracy: float, samples: int
) -> None:
    output, told = ask(X[:samples], parameters=parameters, timeout=120_000_000)
    assert set(told) == {"variant", "form", "accuracy_lost", "step", "predicted_us", "actual_us", "accuracy"}
    form, lost = ("exit-1", 0.01) if variant == "cut" else ("full", 0.0)
    assert (told["variant"], told["accuracy"]) == (variant, accuracy)
    assert (told["form"], told["accuracy_lost"]) == (form, lost)
    for name in ("predicted_us", "actual_us"):
        assert type(told[name]) is int
        assert 0 < told[name] < 120_000_000
    np.testing.assert_allclose(output, expected(variant, X[:samples]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "http_status", "grpc_code", "told"),
    [
        ({"accuracy": 0.8, "latency": 1}, "429", "RESOURCE_EXHAUSTED", "the soonest is"),
        ({"accuracy": 0.92}, "400", "INVALID_ARGUMENT", "0.9"),
        ({"accuracy": 0.99, "accuracy_budget": 0.01}, "400", "INVALID_ARGUMENT", "0.95"),
        ({"accuracy": 1.5}, "400", "INVALID_ARGUMENT", "no share from 0 to 1"),
        ({"latency": -1}, "400", "INVALID_ARGUMENT", "no whole number"),
        ({"latency": 0.5}, "400", "INVALID_ARGUMENT", "no whole number"),
        ({"accuracy_budget": 2}, "400", "INVALID_ARGUMENT", "no share from 0 to 1"),
    ],
)
def test_what_no_variant_can_do_is_refused(
    ask: Callable[..., Answered], parameters: dict[str, Any], http_status: str, grpc_code: str, told: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ask(X[:1], parameters=parameters)
    assert caught.value.status() in (http_status, f"StatusCode.{grpc_code}")
    assert told in caught.value.message()


def test_metadata_is_the_familys(ports: dict[str, int]) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{ports['http']}") as client:
        by_http = client.get_model_metadata("digits")
        assert client.get_model_config("digits")["name"] == "digits"
        (counted,) = client.get_inference_statistics("digits")["model_stats"]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports['grpc']}") as client:
        by_grpc = client.get_model_metadata("digits", as_json=True)
    assert by_http["platform"] == by_grpc["platform"] == "odin_family"
    assert by_http["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert by_grpc["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}]
    assert counted["name"] == "digits"
