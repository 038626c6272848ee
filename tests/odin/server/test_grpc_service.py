"""The gRPC server on a real port, with a data plane that does as it is told, asked by unmodified clients."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_serving import FakeDataPlane, Serving, image, serving
from patience import PROMPT_S
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from odin.server.config import Limits
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind
from odin.server.grpc_answers import config_answer
from odin.server.grpc_failures import guarded
from odin.server.grpc_messages import health, inference
from odin.server.grpc_methods import InferenceService
from odin.server.grpc_service import GrpcServer
from odin.server.messages import TensorMetadata

SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving() as here:
        yield here


@pytest.fixture
def client(served: Serving) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as one:
        yield one


def input_of(array: Any, name: str = "image", datatype: str = "FP32") -> triton.InferInput:
    one = triton.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array)
    return one


def held_requests(served: Serving, count: int) -> list[str]:
    """Wait until so many requests are with the data plane; returns their ids."""

    async def take() -> list[str]:
        return [(await served.dataplane.taken.get()).id for _ in range(count)]

    return served.call(take())


def ask_for_ever(client: triton.InferenceServerClient) -> None:
    while True:
        client.get_server_metadata(client_timeout=PROMPT_S)


def let_go_on(served: Serving) -> None:
    served.loop.call_soon_threadsafe(served.dataplane.go_on.set)


# -- what the server says of itself -----------------------------------------------------------------------------------


def test_health_and_metadata(served: Serving, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    served.dataplane.ready = False
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready("echo")
    with pytest.raises(InferenceServerException, match="no model 'none'") as caught:
        client.is_model_ready("none")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    told = client.get_server_metadata()
    assert (told.name, told.version, list(told.extensions)) == ("odin", "1.2", ["statistics"])
    model = client.get_model_metadata("echo", "1")
    assert (model.name, list(model.versions), model.platform) == ("echo", ["1"], "odin_torch")
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [("image", "FP32", [-1, 3, 8, 8])]
    assert [(one.name, one.datatype, list(one.shape)) for one in model.outputs] == [("y", "BYTES", [-1, 4])]


def test_a_model_s_configuration(served: Serving, client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("echo").config
    assert (config.name, config.platform) == ("echo", "odin_torch")
    assert config.max_batch_size == 1000 * 4  # as many as may wait
    metadata, own = served.dataplane.model_metadata("echo"), served.dataplane.model_config("echo")
    small = config_answer(metadata, own, request_nbytes=10_000).config
    assert small.max_batch_size == 10_000 // (3 * 8 * 8 * 4)  # as many as fit into a message
    fixed = metadata._replace(outputs=(TensorMetadata("y", DATATYPES["BYTES"], (4,)),))
    whole = config_answer(fixed, own, request_nbytes=10_000).config
    assert (whole.max_batch_size, list(whole.input[0].dims)) == (0, [-1, 3, 8, 8])
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("image", 11, [3, 8, 8])]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [("y", 13, [4])]


def test_statistics(client: triton.InferenceServerClient) -> None:
    (told,) = client.get_inference_statistics("echo").model_stats
    assert (told.name, told.version, told.inference_count, told.execution_count) == ("echo", "1", 7, 3)
    assert told.last_inference == 1_750_000_000_000
    stats = told.inference_stats
    assert (stats.success.count, stats.success.ns, stats.fail.count, stats.fail.ns) == (3, 1.5e9, 2, 0.5e9)
    assert (stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns) == (0.25e9, 1e9, 0.25e9)
    assert len(client.get_inference_statistics().model_stats) == 1


def test_the_repository(served: Serving, client: triton.InferenceServerClient) -> None:
    told = [(one.name, one.version, one.state, one.reason) for one in client.get_model_repository_index().models]
    assert told == [("echo", "1", "READY", ""), ("other", "2", "UNAVAILABLE", "not loaded")]
    client.load_model("echo")
    client.unload_model("echo")
    assert served.dataplane.repository == ["load echo", "loaded echo", "unload echo"]
    with pytest.raises(InferenceServerException, match="no model 'none'"):
        client.load_model("none")
    request = inference.RepositoryIndexRequest(ready=True)
    with grpc.insecure_channel(served.url) as channel:
        answer = channel.unary_unary(f"{SERVICE}/RepositoryIndex")(request.SerializeToString(), timeout=PROMPT_S)
    assert [one.name for one in inference.RepositoryIndexResponse.FromString(answer).models] == ["echo"]


def test_clients_do_not_say_what_a_model_is(served: Serving, client: triton.InferenceServerClient) -> None:
    for options in ({"config": '{"name": "echo"}'}, {"config": "{}", "files": {"file:1/model.pt": b"x"}}):
        with pytest.raises(InferenceServerException, match="models are loaded as the files in the server's folder say"):
            client.load_model("echo", **options)
    assert served.dataplane.repository == []


def test_a_load_goes_on_without_its_client(served: Serving, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()  # is connected, which may take longer than what follows
    with pytest.raises(InferenceServerException):
        client.load_model("slow", client_timeout=1.0)

    async def wait_for_the_end() -> None:
        served.dataplane.go_on.set()
        while "loaded slow" not in served.dataplane.repository:
            await asyncio.sleep(0)

    served.call(asyncio.wait_for(wait_for_the_end(), PROMPT_S))


def test_what_is_not_served_is_unimplemented(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.get_trace_settings("echo")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# -- inference --------------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer(served: Serving, client: triton.InferenceServerClient) -> None:
    values = image(2, 3, 8, 8)
    texts = np.array([b"a", b"\0b"], object)
    answer = client.infer(
        "echo",
        [input_of(values), input_of(texts, "texts", "BYTES")],
        model_version="1",
        outputs=[triton.InferRequestedOutput("image", class_count=2)],
        request_id="seven",
        priority=2,
        timeout=1_500_000,
        headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        client_timeout=PROMPT_S,
        parameters={"mine": "x"},
    )
    assert answer.get_response().id == "seven"
    assert answer.get_response().model_version == "1"
    np.testing.assert_array_equal(answer.as_numpy("image"), values)
    assert answer.as_numpy("texts").tolist() == texts.tolist()
    (request,) = served.dataplane.requests
    assert request.parameters == {"priority": 2, "timeout": 1_500_000, "mine": "x"}
    assert [(one.name, one.classification) for one in request.outputs] == [("image", 2)]
    assert request.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert 0 < request.timeout_s <= 1.05 * PROMPT_S  # gRPC rounds what it sends up


def test_without_a_deadline_there_is_none(served: Serving, client: triton.InferenceServerClient) -> None:
    client.infer("echo", [input_of(image(1))])
    (request,) = served.dataplane.requests
    assert (request.timeout_s, request.traceparent, request.id) == (None, "", "")


@pytest.mark.parametrize("kind", list(FailureKind), ids=lambda kind: kind.name)
def test_failures_have_their_code_and_text(served: Serving, kind: FailureKind) -> None:
    request = inference.ModelInferRequest(model_name="echo")
    request.parameters["fail"].string_param = kind.name
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"{SERVICE}/ModelInfer")(request.SerializeToString(), timeout=PROMPT_S)
    assert caught.value.code().name == kind.grpc_code
    assert caught.value.details() == "as asked"
    trailing = dict(caught.value.trailing_metadata())
    assert trailing.get("retry-after-ms") == ("2" if kind is FailureKind.REFUSED else None)


def test_a_failure_that_nobody_expected_tells_nothing_secret(
    client: triton.InferenceServerClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("echo", [input_of(image(1))], parameters={"break": True})
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert caught.value.message() == "KeyError; the server's log says more"
    assert "a secret of the server" in caplog.text


def test_a_long_error_still_fits_into_a_header(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("echo", [input_of(image(1))], parameters={"fail": "INVALID", "text": "ä" * 100_000})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message().startswith("ää")
    assert len(caught.value.message()) < 1000


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff", b"\x0a\x02\xc3\x28", b"\x2a\x00" * 5000, b"\x0b\x0c"])
def test_bytes_that_are_no_request_are_invalid(served: Serving, message: bytes) -> None:
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"{SERVICE}/ModelInfer")(message, timeout=PROMPT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert served.dataplane.requests == []


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "RepositoryModelLoad"])
def test_bytes_that_are_no_message_are_invalid(served: Serving, method: str) -> None:
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"{SERVICE}/{method}")(b"\x0a\xff", timeout=PROMPT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_many_typed_values_are_read_beside_the_loop(served: Serving) -> None:
    request = service_pb2.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="x", datatype="INT32", shape=[300_000])
    tensor.contents.int_contents.extend(range(300_000))
    with grpc.insecure_channel(served.url) as channel:
        answer = channel.unary_unary(f"{SERVICE}/ModelInfer")(request.SerializeToString(), timeout=PROMPT_S)
    (raw,) = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents
    assert np.frombuffer(raw, "<i4").tolist() == list(range(300_000))


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_more_than_grpc_s_default_size_is_taken_and_given(client: triton.InferenceServerClient) -> None:
    values = image(32, 3, 224, 224)  # 19 MB
    np.testing.assert_array_equal(client.infer("echo", [input_of(values)]).as_numpy("image"), values)


def test_the_limit_is_the_one_that_was_given() -> None:
    with serving(limits=Limits(request_mib=1.0)) as here, triton.InferenceServerClient(here.url) as client:
        client.infer("echo", [input_of(image(250_000))])
        with pytest.raises(InferenceServerException, match="larger than max") as caught:
            client.infer("echo", [input_of(image(300_000))])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert len(here.dataplane.requests) == 1
        client.infer("echo", [input_of(image(250_000))])


def test_what_is_small_only_compressed_is_refused() -> None:
    with serving(limits=Limits(request_mib=1.0)) as here, triton.InferenceServerClient(here.url) as client:
        zeros = np.zeros(4_000_000, "f4")
        assert len(gzip.compress(zeros.tobytes())) < 2**20
        with pytest.raises(InferenceServerException) as caught:
            client.infer("echo", [input_of(zeros)], compression_algorithm="gzip")
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        small = np.zeros(200_000, "f4")
        answer = client.infer("echo", [input_of(small)], compression_algorithm="gzip")
        np.testing.assert_array_equal(answer.as_numpy("image"), small)


# -- cancelled and late -----------------------------------------------------------------------------------------------


def test_a_cancelled_call_cancels_the_inference(served: Serving, client: triton.InferenceServerClient) -> None:
    failed: Queue[Any] = Queue()
    call = client.async_infer(
        "echo",
        [input_of(image(1))],
        lambda result, error: failed.put(error),
        request_id="a",
        parameters={"hold": True},
    )
    assert held_requests(served, 1) == ["a"]
    call.cancel()
    assert served.call(served.dataplane.given_up.get()) == "a"
    assert "CANCELLED" in str(failed.get(timeout=PROMPT_S).status())


def test_a_deadline_that_passes_cancels_the_inference(served: Serving, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    with pytest.raises(InferenceServerException) as caught:
        client.infer("echo", [input_of(image(1))], request_id="a", parameters={"hold": True}, client_timeout=1.0)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert served.call(served.dataplane.given_up.get()) == "a"


KILLED = """
import signal, sys, numpy, tritonclient.grpc as triton
values = triton.InferInput("image", [600_000], "UINT8")
values.set_data_from_numpy(numpy.zeros(600_000, "u1"))
client = triton.InferenceServerClient(sys.argv[1])
if sys.argv[2] == "stream":
    client.start_stream(print)
    client.async_stream_infer("echo", [values], request_id="a", parameters={"hold": True})
    signal.pause()
else:
    client.infer("echo", [values], request_id="a", parameters={"hold": True})
"""


@pytest.mark.parametrize("how", ["call", "stream"])
def test_a_killed_client_cancels_its_inference(served: Serving, how: str, caplog: pytest.LogCaptureFixture) -> None:
    program = subprocess.Popen([sys.executable, "-c", KILLED, served.url, how])
    try:
        assert held_requests(served, 1) == ["a"]
    finally:
        program.kill()
        program.wait(PROMPT_S)
    assert served.call(served.dataplane.given_up.get()) == "a"
    with triton.InferenceServerClient(served.url) as client:
        client.infer("echo", [input_of(image(1))])
    assert caplog.text == ""


# -- streams ----------------------------------------------------------------------------------------------------------


def test_answers_in_a_stream_come_in_order_and_errors_among_them(
    served: Serving, client: triton.InferenceServerClient
) -> None:
    answers: Queue[tuple[Any, Any]] = Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    held = {1: {"hold": True}, 2: {"fail": "INVALID"}, 3: {"break": True}}
    for number in range(40):
        client.async_stream_infer(
            "echo", [input_of(np.array([number], "f4"))], request_id=str(number), parameters=held.get(number)
        )
    # Those after the one that is held are served meanwhile, up to a bound, and wait for it.
    assert held_requests(served, 10) == [str(number) for number in range(10)]
    let_go_on(served)
    for number in range(40):
        result, error = answers.get(timeout=PROMPT_S)
        if number in (2, 3):
            assert result is None
            assert error.message() == ("as asked" if number == 2 else "KeyError; the server's log says more")
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert result.as_numpy("image").tolist() == [number]
    client.stop_stream()


def test_of_a_stream_only_so_many_are_under_way(served: Serving, client: triton.InferenceServerClient) -> None:
    client.start_stream(lambda result, error: None)
    for number in range(60):
        client.async_stream_infer("echo", [input_of(image(1))], request_id=str(number), parameters={"hold": True})
    held_requests(served, 17)
    assert client.is_server_live()
    assert len(served.dataplane.requests) <= 18
    let_go_on(served)
    held_requests(served, 43)
    client.stop_stream()


def test_a_cancelled_stream_cancels_what_is_under_way(
    served: Serving, client: triton.InferenceServerClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.start_stream(lambda result, error: None)
    for number in range(3):
        client.async_stream_infer("echo", [input_of(image(1))], request_id=str(number), parameters={"hold": True})
    held_requests(served, 3)
    client.stop_stream(cancel_requests=True)
    assert {served.call(served.dataplane.given_up.get()) for _ in range(3)} == {"0", "1", "2"}
    assert caplog.text == ""


class GoneClient:
    """A call whose client has gone when all messages are with the data plane and the first answer is written."""

    def __init__(self, dataplane: FakeDataPlane, *messages: Any) -> None:
        self._dataplane, self._count = dataplane, len(messages)
        self._messages = iter([message.SerializeToString() for message in messages])

    async def read(self) -> Any:
        message = next(self._messages, None)
        return await asyncio.Event().wait() if message is None else message

    async def write(self, answer: bytes) -> None:
        for _ in range(self._count):
            await self._dataplane.taken.get()
        raise grpc.aio.InternalError("nobody reads")

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


def test_a_client_that_has_gone_is_no_failure_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        dataplane: Any = FakeDataPlane()
        service = InferenceService(dataplane, Limits(), asyncio.Event())
        held = inference.ModelInferRequest(model_name="echo", id="held")
        held.parameters["hold"].bool_param = True
        call = GoneClient(dataplane, inference.ModelInferRequest(model_name="echo"), held)
        before = asyncio.all_tasks()
        with pytest.raises(grpc.aio.InternalError, match="nobody reads"):
            await guarded(service.model_stream_infer)(None, call)
        assert dataplane.cancelled == ["held"]
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(ask(), PROMPT_S))
    assert caplog.text == ""


# -- the end ----------------------------------------------------------------------------------------------------------


def test_stop_lets_requests_under_way_finish_and_takes_no_more(served: Serving) -> None:
    answers: Queue[tuple[Any, Any]] = Queue()
    streamed: Queue[tuple[Any, Any]] = Queue()
    client, streaming, late = (triton.InferenceServerClient(served.url) for _ in range(3))
    try:
        client.async_infer(
            "echo",
            [input_of(image(1))],
            lambda result, error: answers.put((result, error)),
            request_id="a",
            parameters={"hold": True},
        )
        assert late.is_server_live()
        streaming.start_stream(lambda result, error: streamed.put((result, error)))
        streaming.async_stream_infer("echo", [input_of(image(1))], request_id="b", parameters={"hold": True})
        assert sorted(held_requests(served, 2)) == ["a", "b"]
        stopping = served.start(served.server.stop(PROMPT_S))
        with pytest.raises(InferenceServerException, match="the server is ending") as caught:
            ask_for_ever(late)  # until it has begun to stop
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert late.is_server_live()
        assert not late.is_server_ready()
        assert _check(served, "") == "NOT_SERVING"
        assert not stopping.done()
        let_go_on(served)
        result, error = answers.get(timeout=PROMPT_S)
        assert error is None
        assert result.get_response().id == "a"
        result, error = streamed.get(timeout=PROMPT_S)
        assert error is None
        assert result.get_response().id == "b"
        result, error = streamed.get(timeout=PROMPT_S)  # then the stream is ended, which would last for ever
        assert error.status() == "StatusCode.UNAVAILABLE"
        stopping.result(PROMPT_S)
    finally:
        let_go_on(served)
        for one in (client, streaming, late):
            one.stop_stream(cancel_requests=True)
            one.close()


def test_stop_gives_up_what_takes_too_long(served: Serving, client: triton.InferenceServerClient) -> None:
    errors: Queue[Any] = Queue()
    client.async_infer(
        "echo",
        [input_of(image(1))],
        lambda result, error: errors.put(error),
        request_id="a",
        parameters={"hold": True},
    )
    held_requests(served, 1)
    served.call(served.server.stop(0.1))
    assert served.call(served.dataplane.given_up.get()) == "a"
    assert errors.get(timeout=PROMPT_S) is not None


def test_idle_streams_do_not_hold_up_the_end(served: Serving) -> None:
    asked = health.HealthCheckRequest().SerializeToString()
    ends: Queue[Any] = Queue()
    with grpc.insecure_channel(served.url) as channel, triton.InferenceServerClient(served.url) as client:
        watched = channel.unary_stream("/grpc.health.v1.Health/Watch")(asked, timeout=PROMPT_S)
        told = [_status(next(watched))]
        client.start_stream(lambda result, error: ends.put(error))
        client.async_stream_infer("echo", [input_of(image(1))])
        assert ends.get(timeout=PROMPT_S) is None
        served.call(served.server.stop(10 * PROMPT_S))  # fails if it takes as long
        told += map(_status, watched)
        assert told == ["SERVING", "NOT_SERVING"]
        assert ends.get(timeout=PROMPT_S).status() == "StatusCode.UNAVAILABLE"


def test_a_server_that_never_began_can_be_stopped() -> None:
    with serving() as here:
        here.call(GrpcServer(here.dataplane, port=0, limits=Limits()).stop(1.0))


def test_a_port_that_is_taken_is_refused(served: Serving) -> None:
    second = GrpcServer(served.dataplane, port=served.port, limits=Limits())
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{served.port} for gRPC"):
        served.call(second.start())


# -- who may -----------------------------------------------------------------------------------------------------------


def test_with_a_token_only_health_is_open() -> None:
    with serving(token="s3cret") as here, triton.InferenceServerClient(here.url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert _check(here, "") == "SERVING"
        right, wrong = {"authorization": "Bearer s3cret"}, {"authorization": "Bearer s3crets"}
        for headers in (None, wrong, {"authorization": "s3cret"}, {"authorization": "Bearer "}):
            for refused in (
                lambda headers=headers: client.infer("echo", [input_of(image(1))], headers=headers),
                lambda headers=headers: client.get_server_metadata(headers=headers),
                lambda headers=headers: client.is_model_ready("echo", headers=headers),
                lambda headers=headers: client.load_model("echo", headers=headers),
            ):
                with pytest.raises(InferenceServerException, match="send the server's token") as caught:
                    refused()
                assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        with pytest.raises(InferenceServerException, match="send the server's token"):
            client.infer("echo", [input_of(image(32, 3, 224, 224))])
        assert here.dataplane.requests == []
        client.infer("echo", [input_of(image(1))], headers=right)
        client.infer("echo", [input_of(image(1))], headers={"authorization": "bearer s3cret"})  # the scheme in any case

        errors: Queue[Any] = Queue()
        client.start_stream(lambda result, error: errors.put(error), headers=wrong)
        assert errors.get(timeout=PROMPT_S).status() == "StatusCode.UNAUTHENTICATED"
        client.stop_stream()
        client.start_stream(lambda result, error: errors.put(error), headers=right)
        client.async_stream_infer("echo", [input_of(image(1))])
        assert errors.get(timeout=PROMPT_S) is None
        client.stop_stream()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("openssl, which makes the test's certificate, is not here")
    return certificate, key


def test_tls(certificate: tuple[Path, Path]) -> None:
    with serving(tls=certificate) as here:
        options = {"ssl": True, "root_certificates": str(certificate[0])}
        with triton.InferenceServerClient(here.url, **options) as client:
            np.testing.assert_array_equal(client.infer("echo", [input_of(image(5))]).as_numpy("image"), image(5))
        with triton.InferenceServerClient(here.url) as client, pytest.raises(InferenceServerException):
            client.is_server_live(client_timeout=2.0)


def test_tls_files_that_are_none_are_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    with serving() as here:
        swapped = GrpcServer(here.dataplane, port=0, limits=Limits(), tls=certificate[::-1])
        with pytest.raises(ValueError, match=r"key\.pem holds no CERTIFICATE in PEM form"):
            here.call(swapped.start())
        missing = GrpcServer(here.dataplane, port=0, limits=Limits(), tls=(tmp_path / "no", certificate[1]))
        with pytest.raises(FileNotFoundError, match="no"):
            here.call(missing.start())
        broken = tmp_path / "broken.pem"
        broken.write_bytes(certificate[1].read_bytes()[:60])
        with pytest.raises((ValueError, OSError)):
            here.call(GrpcServer(here.dataplane, port=0, limits=Limits(), tls=(certificate[0], broken)).start())


# -- gRPC's health protocol -------------------------------------------------------------------------------------------


def _status(answer: bytes) -> str:
    number = health.HealthCheckResponse.FromString(answer).status
    return next(name for name, known in health.ServingStatus.items() if known == number)


def _check(served: Serving, service: str) -> str:
    asked = health.HealthCheckRequest(service=service).SerializeToString()
    with grpc.insecure_channel(served.url) as channel:
        return _status(channel.unary_unary("/grpc.health.v1.Health/Check")(asked, timeout=PROMPT_S))


def test_probes_tell_liveness_from_readiness(served: Serving) -> None:
    services = ["", "readiness", "inference.GRPCInferenceService"]
    assert [_check(served, service) for service in [*services, "liveness"]] == ["SERVING"] * 4
    served.dataplane.ready = False
    assert [_check(served, service) for service in services] == ["NOT_SERVING"] * 3
    assert _check(served, "liveness") == "SERVING"
    with pytest.raises(grpc.RpcError, match="there is no service 'none'") as caught:
        _check(served, "none")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_is_told_of_changes(served: Serving) -> None:
    with grpc.insecure_channel(served.url) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        unknown = watch(health.HealthCheckRequest(service="none").SerializeToString(), timeout=PROMPT_S)
        assert _status(next(unknown)) == "SERVICE_UNKNOWN"
        unknown.cancel()
        watched = watch(health.HealthCheckRequest().SerializeToString(), timeout=PROMPT_S)
        assert _status(next(watched)) == "SERVING"
        served.dataplane.ready = False
        assert _status(next(watched)) == "NOT_SERVING"
        served.dataplane.ready = True
        assert _status(next(watched)) == "SERVING"
        watched.cancel()


# -- many -------------------------------------------------------------------------------------------------------------


def test_clients_of_one_connection_do_not_hold_up_each_other(served: Serving) -> None:
    with triton.InferenceServerClient(served.url) as client, ThreadPoolExecutor(9) as threads:
        held = threads.submit(client.infer, "echo", [input_of(image(1))], parameters={"hold": True})
        held_requests(served, 1)
        arrays = [image(3, 224, 224, seed=seed) for seed in range(8)]
        answers = threads.map(lambda array: client.infer("echo", [input_of(array)]).as_numpy("image"), arrays)
        for array, answer in zip(arrays, answers, strict=True):
            np.testing.assert_array_equal(answer, array)
        assert not held.done()
        let_go_on(served)
        held.result(PROMPT_S)


def test_the_client_for_asyncio(served: Serving) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(served.url) as client:
            assert await client.is_server_ready()
            one = triton_aio.InferInput("image", [5], "FP32")
            one.set_data_from_numpy(image(5))
            answers = await asyncio.gather(
                *(client.infer("echo", [one], request_id=str(number)) for number in range(8))
            )
            assert [answer.get_response().id for answer in answers] == [str(number) for number in range(8)]

            async def requests() -> Any:
                for number in range(3):
                    yield {"model_name": "echo", "inputs": [one], "request_id": str(number)}

            ids = [result.get_response().id async for result, error in client.stream_infer(requests()) if not error]
            assert ids == ["0", "1", "2"]

    served.call(ask())
