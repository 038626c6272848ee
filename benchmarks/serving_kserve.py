"""Requests by KServe's own client to a server: what the client makes of each answer, as JSON on standard output.

Run by a Python that has ``kserve``, and needs nothing of ODIN: ``python benchmarks/serving_kserve.py
http://127.0.0.1:8000 127.0.0.1:8001 image.png`` (no options: kserve reads those when it is imported). The server has
the models ``net``, of images, and ``reciprocal``, which divides 1 by each of four numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

SIZE = 64
BEYOND = (0.0, -0.0, np.nan, 4.0)
"""Whose reciprocals are infinite, infinite, NaN and 0.25."""


def given(name: str, values: Any, datatype: str = "FP32", *, binary: bool = True) -> InferInput:
    """An input as the client makes one: its bytes, or else its elements, in JSON or in gRPC's typed contents."""
    kinds: dict[str, Any] = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}
    array = np.array(values, kinds[datatype])
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


async def answer(title: str, work: Awaitable[Any]) -> dict[str, Any]:
    """What came of a request: ``status``; and of an inference ``about`` and the first output's ``values``."""
    try:
        got = await work
    except httpx.HTTPStatusError as error:
        return {"status": str(error.response.status_code)}
    except grpc.RpcError as error:
        return {"status": error.code().name}
    except Exception as error:  # the client cannot read the answer, or cannot send the request
        return {"status": f"client: {type(error).__name__}: {error}"}
    if not hasattr(got, "outputs"):
        return {"status": str(got)}
    output = got.outputs[0]
    values = output.as_numpy()
    return {
        "status": "OK",
        "about": {"model": got.model_name, "as": output.datatype, **({"id": got.id} if "id," in title else {})},
        "shape": list(values.shape),
        "values": [str(value) for value in values.ravel().astype(np.float64)],  # JSON has no infinity
    }


def requests(image: bytes) -> dict[str, tuple[str, list[InferInput], dict[str, Any]]]:
    """Inferences by title: model, inputs, and what else the request says."""
    pixels = np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)
    made: dict[str, tuple[str, list[InferInput], dict[str, Any]]] = {
        "image file as BYTES": ("net", [given("input", [image], "BYTES")], {}),
        "no such output": ("net", [given("input", pixels)], {"request_outputs": [RequestedOutput("none")]}),
        "infinities, binary answer": (
            "reciprocal",
            [given("input", [BEYOND])],
            {"parameters": {"binary_data_output": True}},
        ),
    }
    for form, binary in (("bytes", True), ("elements", False)):

        def one(values: Any, datatype: str = "FP32", binary: bool = binary) -> list[InferInput]:
            return [given("input", values, datatype, binary=binary)]

        made |= {
            f"image, {form}": ("net", one(pixels), {}),
            f"3 images, {form}": ("net", one(np.concatenate([pixels] * 3)), {}),
            f"id, {form}": ("net", one(pixels), {"request_id": "seven"}),
            f"unknown parameter, {form}": ("net", one(pixels), {"parameters": {"colour": "blue"}}),
            f"infinities in the answer, {form}": ("reciprocal", one([BEYOND]), {}),
            f"infinities in the request, {form}": ("reciprocal", one([[np.inf, -np.inf, 1, 2]]), {}),
            f"no model, {form}": ("none", one(pixels), {}),
            f"another size, {form}": ("net", one(pixels[:, :2]), {}),
            f"BYTES for FP32, {form}": ("reciprocal", one([["a", "b", "c", "d"]], "BYTES"), {}),
            f"INT64 for FP32, {form}": ("reciprocal", one([[1, 2, 3, 4]], "INT64"), {}),
        }
    return made


async def ask(rest: str, grpc_address: str, image: bytes) -> dict[str, dict[str, Any]]:
    """Send all requests."""
    found: dict[str, dict[str, Any]] = {}
    by_rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    async with InferenceGRPCClient(grpc_address, retries=0) as by_grpc, by_rest:
        states: dict[str, Callable[[], Awaitable[Any]]] = {
            "REST: live": lambda: by_rest.is_server_live(rest),
            "REST: ready": lambda: by_rest.is_server_ready(rest),
            "REST: model ready": lambda: by_rest.is_model_ready(rest, "net"),
            "REST: ready of no model": lambda: by_rest.is_model_ready(rest, "none"),
            "gRPC: live": by_grpc.is_server_live,
            "gRPC: ready": by_grpc.is_server_ready,
            "gRPC: model ready": lambda: by_grpc.is_model_ready("net"),
            "gRPC: ready of no model": lambda: by_grpc.is_model_ready("none"),
        }
        for title, state in states.items():
            found[title] = await answer(title, state())
        for title, (model, inputs, more) in requests(image).items():
            request = InferRequest(model_name=model, infer_inputs=inputs, **more)
            found[f"REST: {title}"] = await answer(title, by_rest.infer(rest, request, model_name=model))
        for title, (model, inputs, more) in requests(image).items():
            request = InferRequest(model_name=model, infer_inputs=inputs, **more)
            found[f"gRPC: {title}"] = await answer(title, by_grpc.infer(request))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rest", help="URL of the server")
    parser.add_argument("grpc", help="HOST:PORT of the server")
    parser.add_argument("image", type=Path, help="a file")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)  # the client logs each failure, with its stack
    json.dump(asyncio.run(ask(arguments.rest, arguments.grpc, arguments.image.read_bytes())), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
