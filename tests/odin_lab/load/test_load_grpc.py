"""``odin load`` by gRPC, beside a server of the tests' own."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from patience import PROMPT_S

from odin.cli.main import main
from odin_lab.load.client import RequestFailedError, Target, open_client
from odin_lab.load.introduction import introduce
from odin_lab.load.samples import make_samples

grpc = pytest.importorskip("grpc")
messages = pytest.importorskip("odin.server.grpc_messages").inference


class Server(grpc.GenericRpcHandler):
    def __init__(self):
        self.ready = True
        self.requests = []
        self.answer = lambda request, context: None

    def service(self, details):
        name = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: getattr(self, name)(request, context),
            getattr(messages, f"{name}Request").FromString,
            lambda answer: answer.SerializeToString(),
        )

    def ServerReady(self, request, context):  # noqa: N802
        return messages.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request, context):  # noqa: N802
        return messages.ModelReadyResponse(ready=True)

    def ServerMetadata(self, request, context):  # noqa: N802
        return messages.ServerMetadataResponse(name="fake", version="2")

    def ModelMetadata(self, request, context):  # noqa: N802
        if request.name != "net":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        answer = messages.ModelMetadataResponse(name="net")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
        return answer

    def RepositoryIndex(self, request, context):  # noqa: N802
        answer = messages.RepositoryIndexResponse()
        answer.models.add(name="net", state="State.READY")  # as MLServer writes it
        return answer

    def ModelInfer(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.answer(request, context)
        return messages.ModelInferResponse(model_name="net", raw_output_contents=[bytes(4)])


@pytest.fixture
def server():
    handler = Server()
    served = grpc.server(ThreadPoolExecutor(8), [handler])
    handler.url = f"grpc://127.0.0.1:{served.add_insecure_port('127.0.0.1:0')}"
    served.start()
    handler.stop = lambda: served.stop(None).wait()
    yield handler
    handler.stop()


def test_what_is_sent(server):
    known = introduce(Target(server.url, deadline_ms=2.5), batch=2)
    assert (known.target.model, known.face.server, known.inputs[0].shape) == ("net", "fake 2", (2, 3))
    (sample,) = make_samples(known.inputs, count=1, seed=0)
    client = open_client(known.target)
    client.connect()
    client.infer(client.prepare(sample))
    client.close()
    (request,) = server.requests
    assert request.parameters["timeout"].int64_param == 2500
    np.testing.assert_array_equal(np.frombuffer(request.raw_input_contents[0], "<f4").reshape(2, 3), sample[0].array)


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("RESOURCE_EXHAUSTED", "refused (RESOURCE_EXHAUSTED)"),
        ("UNAVAILABLE", "not ready (UNAVAILABLE)"),
        ("DEADLINE_EXCEEDED", "late (DEADLINE_EXCEEDED)"),
        ("INTERNAL", "failed (INTERNAL)"),
    ],
)
def test_failures_have_kinds(server, code, label):
    server.answer = lambda request, context: context.abort(grpc.StatusCode[code], "draining")
    client = open_client(Target(server.url, "net"))
    with pytest.raises(RequestFailedError) as failed:
        client.infer(client.prepare([]))
    assert (failed.value.label, failed.value.text) == (label, "draining")
    client.close()


def test_a_server_that_does_not_answer(server):
    end = threading.Event()
    server.answer = lambda request, context: end.wait(PROMPT_S)
    client = open_client(Target(server.url, "net", patience_s=0.05))
    with pytest.raises(RequestFailedError, match="no answer in time"):
        client.infer(client.prepare([]))
    end.set()
    client.close()


def test_nothing_listens_any_more(server, capsys):
    server.stop()
    assert main(["load", server.url]) == 1
    assert f"nothing answers at {server.url}" in capsys.readouterr().err


def test_no_such_model(server, capsys):
    assert main(["load", server.url, "--model", "nut"]) == 2
    assert "has no such model; it has 'net'" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["grpc://host", "grpc://:1", "grpc://host:1/v2", "grpc://host:99999"])
def test_no_address(url, capsys):
    assert main(["load", url]) == 2
    assert "give grpc://HOST:PORT" in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_loop(server, tmp_path):
    file = tmp_path / "o.json"
    assert main(["load", server.url, "--clients", "2", "--seconds", "0.3", "--output", str(file)]) == 0
    (trial,) = json.loads(file.read_text())["trials"]
    assert trial["figures"]["answered"] == trial["figures"]["requests"] == len(server.requests) - 5 > 2
