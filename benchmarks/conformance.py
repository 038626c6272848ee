"""The same requests of the Open Inference Protocol to ``odin serve`` and to MLServer: do they give the same answers?

Both serve the same models, MLServer by a few lines in benchmarks/serving_mlserver.py. Compared are the HTTP status or
the gRPC code, and of an inference the id, the names of models, shapes, and values within 1e-4; output names are each
server's own. With ``--kserve`` KServe's own client asks both, too, see benchmarks/serving_kserve.py, and what it makes
of the answers is compared. No timing: what differs is listed with both answers, and is not always a fault of either.
``python -m benchmarks.conformance --python FILE --kserve FILE``: a Python that has MLServer, one that has kserve.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
import numpy as np
import torch
from PIL import Image

from benchmarks.common import Environment, pinned, report, write_result
from benchmarks.serving_servers import Served, rival_server, start
from odin.server.grpc_messages import inference
from odin.stages.device import usable_cores
from odin_lab.load.client import Input

__all__ = ["main"]

_SIZE, _TOLERANCE = 64, 1e-4
_MOST_TEXT, _FEW = 90, 4


class Answer(NamedTuple):
    """What a server says, in a form in which two can be compared."""

    status: str
    about: Mapping[str, Any] = {}
    values: Any = None

    def differs(self, other: Answer) -> bool:
        """Whether they are not the same."""
        if self.status != other.status or self.about != other.about:
            return True
        if self.values is None or other.values is None:
            return (self.values is None) != (other.values is None)
        return self.values.shape != other.values.shape or not np.allclose(
            self.values, other.values, atol=_TOLERANCE, equal_nan=True
        )

    def text(self) -> str:
        """For the table."""
        told = "" if self.values is None else f" {list(self.values.shape)}"
        if self.values is not None and self.values.size <= _FEW:
            told = f": {str(self.values.ravel().tolist())[1:-1]}"
        return f"{self.status} {dict(self.about) or ''}{told}"[:_MOST_TEXT]


Ask = Callable[[Served, str], Answer]


class _Reciprocal(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.reciprocal(values)


def reciprocal() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """1 / x of each of four numbers: a model whose answers have infinities."""
    return _Reciprocal(), (torch.ones(1, 4),)


def main() -> int:
    """Ask both and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--python", default=sys.executable, metavar="FILE", help="which has MLServer")
    parser.add_argument("--kserve", metavar="FILE", help="a Python that has kserve, whose client then asks both, too")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    arguments = parser.parse_args()
    environment = Environment.collect(("torch", "uvicorn", "grpcio", "mlserver"))
    cores, inputs = usable_cores()[:2], (Input("input", "FP32", (1, 3, _SIZE, _SIZE)),)
    with pinned(cores), tempfile.TemporaryDirectory() as scratch:
        folder, image = Path(scratch) / "models", Path(scratch) / "image.png"
        Image.fromarray((255 * _image()[0].transpose(1, 2, 0)).astype(np.uint8)).save(image)
        with start(_odin(folder, arguments.model, cores), inputs) as served:
            ours = _ask(served, arguments.kserve, image)
        with rival_server("mlserver", arguments.model, cores, inputs, python=arguments.python) as served:
            theirs = _ask(served, arguments.kserve, image)
    rows = [
        [title, answer.text(), theirs[title].text() if answer.differs(theirs[title]) else "the same"]
        for title, answer in ours.items()
    ]
    report("The same requests", ["request", "odin serve", "MLServer"], rows, environment)
    print(f"{sum(row[-1] == 'the same' for row in rows)} of {len(rows)} the same")
    results = {title: [answer.text(), theirs[title].text()] for title, answer in ours.items()}
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


def _odin(folder: Path, model: str, cores: Sequence[int]) -> list[str]:
    """How ``odin serve`` is told of both models."""
    folder.mkdir(mode=0o700)
    stages = json.dumps([f"cpu:{core}" for core in cores])
    (folder / "net.toml").write_text(f'source = "{model}"\nimage_size = {_SIZE}\nstages = {stages}\n')
    (folder / "reciprocal.toml").write_text(
        f'source = "benchmarks.conformance:reciprocal"\nstages = ["cpu:{cores[0]}"]\n'
    )
    return [sys.executable, "-m", "odin", "serve", str(folder), "--http-port", "0", "--grpc-port", "0"]


def _ask(served: Served, kserve: str | None, image: Path) -> dict[str, Answer]:
    """Send one server all requests."""
    found = {title: ask(served, "input") for title, ask in REQUESTS.items()}
    if kserve is None:
        return found
    script = Path(__file__).with_name("serving_kserve.py")
    command = [kserve, str(script), served.ways["rest"].url, urlsplit(served.ways["grpc"].url).netloc, str(image)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600).stdout)
    for title, one in told.items():
        values = np.array([float(value) for value in one["values"]]).reshape(one["shape"]) if "values" in one else None
        found[f"kserve, {title}"] = Answer(one["status"], one.get("about", {}), values)
    return found


def _http(
    served: Served, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(served.ways["rest"].url).netloc, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def _get(path: str, *, keys: tuple[str, ...] = ()) -> Ask:
    """Ask for a state; of the answer only these keys are compared."""

    def ask(served: Served, name: str) -> Answer:
        status, _, data = _http(served, "GET", path)
        content = json.loads(data) if keys and data else {}
        return Answer(str(status), {key: content.get(key) for key in keys})

    return ask


def _image(batch: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(batch).random((batch, 3, _SIZE, _SIZE), np.float32)


def _infer(
    *,
    path: str = "/v2/models/net/infer",
    batch: int = 1,
    more: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, Any]], None] = lambda tensor: None,
    nested: bool = False,
    raw: bytes | None = None,
    inputs: bool = True,
) -> Ask:
    """Ask for an inference by JSON."""

    def ask(served: Served, name: str) -> Answer:
        image = _image(batch)
        data = image.tolist() if nested else image.ravel().tolist()
        tensor = {"name": name, "shape": list(image.shape), "datatype": "FP32", "data": data}
        change(tensor)
        content = {**({"inputs": [tensor]} if inputs else {}), **(more or {})}
        body = json.dumps(content).encode() if raw is None else raw
        status, _, answer = _http(served, "POST", path, body, {"Content-Type": "application/json"})
        if status != 200:
            return Answer(str(status), {"says why": _says_why(answer)})
        got = json.loads(answer)
        (output,) = got["outputs"]
        values = np.array(output["data"], np.float32).reshape(output["shape"])
        return Answer(
            str(status), {"model": got.get("model_name"), "id": _asked(got, content), "as": output["datatype"]}, values
        )

    return ask


def _says_why(answer: bytes) -> bool:
    """Whether there is an ``error``, as the protocol wants."""
    try:
        return "error" in json.loads(answer)
    except (ValueError, TypeError):
        return False


def _asked(got: Mapping[str, Any], content: Mapping[str, Any]) -> Any:
    """The id, if one was sent: who did not send one may get any."""
    return got.get("id") if "id" in content else None


def _grpc(method: str, request: Any, response: str, *keys: str) -> Ask:
    def ask(served: Served, name: str) -> Answer:
        messages: Any = inference
        with grpc.insecure_channel(urlsplit(served.ways["grpc"].url).netloc) as channel:
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            try:
                data = call(request(messages, name).SerializeToString(), timeout=60)
            except grpc.RpcError as error:
                return Answer(error.code().name)
        got = getattr(messages, response).FromString(data)
        about = {key: getattr(got, key) for key in keys}
        if method != "ModelInfer":
            return Answer("OK", about)
        (output,) = got.outputs
        raw = got.raw_output_contents
        values = np.frombuffer(raw[0], np.float32) if raw else np.array(output.contents.fp32_contents, np.float32)
        return Answer("OK", {**about, "as": output.datatype}, values.reshape(tuple(output.shape)))

    return ask


def _grpc_infer(*, model: str = "net", raw: bool = True, id: str = "", wrong: bool = False) -> Ask:
    def request(messages: Any, name: str) -> Any:
        image = _image()
        made = messages.ModelInferRequest(model_name=model, id=id)
        shape = (1, 3, _SIZE, 2 * _SIZE) if wrong else image.shape
        tensor = made.inputs.add(name=name, datatype="FP32", shape=shape)
        if raw:
            made.raw_input_contents.append(image.tobytes())
        else:
            tensor.contents.fp32_contents.extend(image.ravel().tolist())
        return made

    return _grpc("ModelInfer", request, "ModelInferResponse", "model_name", *(["id"] if id else []))


def _set(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tensor: tensor.update(fields)


REQUESTS: Mapping[str, Ask] = {
    "GET live": _get("/v2/health/live"),
    "GET ready": _get("/v2/health/ready"),
    "GET server metadata": _get("/v2"),
    "GET model ready": _get("/v2/models/net/ready"),
    "GET model metadata": _get("/v2/models/net", keys=("name",)),
    "GET metadata of no model": _get("/v2/models/none"),
    "GET ready of no model": _get("/v2/models/none/ready"),
    "POST infer": _infer(),
    "POST infer, id": _infer(more={"id": "seven"}),
    "POST infer, nested data": _infer(nested=True),
    "POST infer, 3 images": _infer(batch=3),
    "POST infer, parameters that nobody knows": _infer(more={"parameters": {"colour": "blue"}}),
    "POST infer, no model": _infer(path="/v2/models/none/infer"),
    "POST infer, no version": _infer(path="/v2/models/net/versions/99/infer"),
    "POST infer, no JSON": _infer(raw=b"{"),
    "POST infer, no inputs": _infer(inputs=False),
    "POST infer, too few data": _infer(change=_set(data=[1.0])),
    "POST infer, another shape": _infer(change=_set(shape=[1, 3, _SIZE * _SIZE])),
    "POST infer, no such datatype": _infer(change=_set(datatype="FP31")),
    "POST infer, text as data": _infer(change=_set(data=["a"] * (3 * _SIZE * _SIZE))),
    "ServerLive": _grpc("ServerLive", lambda m, n: m.ServerLiveRequest(), "ServerLiveResponse", "live"),
    "ServerReady": _grpc("ServerReady", lambda m, n: m.ServerReadyRequest(), "ServerReadyResponse", "ready"),
    "ModelReady": _grpc("ModelReady", lambda m, n: m.ModelReadyRequest(name="net"), "ModelReadyResponse", "ready"),
    "ModelReady of no model": _grpc(
        "ModelReady", lambda m, n: m.ModelReadyRequest(name="none"), "ModelReadyResponse", "ready"
    ),
    "ModelMetadata": _grpc(
        "ModelMetadata", lambda m, n: m.ModelMetadataRequest(name="net"), "ModelMetadataResponse", "name"
    ),
    "ModelInfer, raw": _grpc_infer(),
    "ModelInfer, typed": _grpc_infer(raw=False),
    "ModelInfer, id": _grpc_infer(id="seven"),
    "ModelInfer, no model": _grpc_infer(model="none"),
    "ModelInfer, another shape": _grpc_infer(wrong=True),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
