"""``odin load`` beside a server of the tests' own: what it sends, counts, shows and keeps, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from oip_server import Close, Fault, oip_server
from patience import PROMPT_S

from odin.cli.main import main
from odin_lab.load.client import RequestFailedError, Target
from odin_lab.load.introduction import introduce
from odin_lab.load.rest import RestClient, _failure
from odin_lab.load.search import RateSearch


@pytest.fixture
def server():
    with oip_server() as served:
        yield served


def load(server, *words: str) -> int:
    return main(["load", server.url, *words])


def kept(path) -> dict:
    return json.loads(path.read_text())


# -- what is said before there is any load -----------------------------------------------------------------------------
def test_nothing_listens(capsys):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        assert main(["load", f"http://127.0.0.1:{taken.getsockname()[1]}"]) == 1
    assert "odin load: nothing answers at http://127.0.0.1:" in (said := capsys.readouterr().err)
    assert "Connection refused; start a server there, as with odin serve" in said


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8000", "give the server's address as http://HOST:PORT"),
        ("http://", "is no address of a server"),
        ("http://host:99999", "is no address of a server"),
        ("http://host:1/v2?x=1", "is no address of a server"),
    ],
)
def test_no_address(url, says, capsys):
    assert main(["load", url]) == 2
    assert says in capsys.readouterr().err


def test_a_server_that_is_not_ready(server, capsys):
    server.ready = False
    assert load(server) == 1
    assert f"the server at {server.url} is not ready: not ready (503): loading; try again" in capsys.readouterr().err


def test_a_model_that_is_not_ready(server, capsys):
    server.model_ready = False
    assert load(server, "--model", "net") == 1
    assert "model 'net' is not ready: not ready (503): net is being loaded" in capsys.readouterr().err


def test_no_such_model(server, capsys):
    assert load(server, "--model", "nut") == 2
    assert "--model nut: the server at http://127.0.0.1" in (said := capsys.readouterr().err)
    assert "has no such model; it has 'net'" in said


def test_a_server_that_does_not_tell_its_models(server, capsys):
    server.has_index = False
    assert load(server) == 2
    assert "say --model NAME" in capsys.readouterr().err


def test_a_server_of_another_kind(server, capsys):
    server.reply = lambda *_: (_ for _ in ()).throw(Fault(404, "what?"))
    assert load(server) == 1
    assert "does not speak the Open Inference Protocol" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<!DOCTYPE HTML>\n<html>\n<body>not here</body></html>", "a page of HTML"),
        (b"nothing\n\tat /v2\n", "nothing at /v2"),
        (b'{"error": "no model"}', "no model"),
        (b'{"detail": "not found"}', "not found"),
    ],
)
def test_what_a_server_says_of_a_failure_is_one_line(body, told):
    assert _failure(404, body).text == told


def test_a_request_that_the_model_refuses(server, capsys):
    def refuse(request):
        raise Fault(400, "input 'x' has shape [1, 3], and [1, 4] is wanted")

    server.answer = refuse
    assert load(server) == 1
    said = capsys.readouterr().err
    assert "model 'net' does not answer a single request: invalid (400): input 'x' has shape [1, 3], and" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--scenario clients --rate 5", "--rate means nothing with --scenario clients"),
        ("--scenario server", "say --rate HZ, or --p99-ms MS"),
        ("--rate 5 --clients 2", "--clients means nothing with --rate"),
        ("--scenario single-stream --clients 4", "--clients means nothing with --scenario single-stream"),
        ("--seconds inf", "--seconds inf is not a finite number"),
        ("--images /nowhere", "--images /nowhere: there is no such folder"),
        ("--plot x.gif", "--plot x.gif: end it in .png, .svg, .pdf"),
        ("--seed -1", "--seed -1 is not from 0"),
        ("--output x.json --plot x.json", "both name x.json"),
    ],
)
def test_wrong_usage(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["load", "http://127.0.0.1:1", *words.split()]) == 2
    assert says in capsys.readouterr().err


def test_loadgen_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert main(["load", "http://127.0.0.1:1", "--rate", "5"]) == 2
    assert "pip install 'odin-pipeline[load]'" in capsys.readouterr().err


# -- one connection ----------------------------------------------------------------------------------------------------
def test_the_only_model_is_found_and_asked_in_raw_bytes(server):
    known = introduce(Target(server.url), batch=2)
    assert (known.target.model, known.target.binary, known.inputs[0].shape) == ("net", True, (2, 3))
    assert known.face.server == "fake 1"


def test_json_where_the_server_takes_no_raw_bytes(server):
    server.binary = False
    known = introduce(Target(server.url))
    assert not known.target.binary


def test_what_is_sent(server):
    from odin_lab.load.samples import make_samples

    known = introduce(Target(server.url, deadline_ms=2.5))
    (sample,) = make_samples(known.inputs, count=1, seed=3)
    client = RestClient(known.target)
    client.infer(client.prepare(sample))
    as_json = RestClient(Target(server.url, "net", binary=False, deadline_ms=2.5))
    as_json.infer(as_json.prepare(sample))
    raw, plain = server.requests
    assert raw["parameters"] == {"binary_data_output": True, "timeout": 2500}
    assert plain["parameters"] == {"timeout": 2500}
    np.testing.assert_array_equal(raw["inputs"][0]["array"], sample[0].array)
    np.testing.assert_array_equal(np.float32(plain["inputs"][0]["data"]), sample[0].array.ravel())
    client.close()
    as_json.close()


def test_a_connection_is_kept_and_one_that_was_closed_while_idle_is_no_failure(server):
    client = RestClient(Target(server.url, "net"))
    for _ in range(3):
        client.check_ready(model=True)
    assert server.connections == 1
    server.closes_idle = True
    client.check_ready(model=True)
    client._connection.sock.recv(1)  # until the other end has closed
    client.check_ready(model=True)
    assert server.connections == 2
    client.close()


@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        (Fault(429, "busy"), "refused (429)"),
        (Fault(503, "draining"), "not ready (503)"),
        (Fault(504, "late"), "late (504)"),
        (Fault(500, "oops"), "failed (500)"),
        (Close(), "connection"),
    ],
)
def test_failures_have_kinds(server, raises, kind):
    def answer(request):
        raise raises

    server.answer = answer
    client = RestClient(Target(server.url, "net", binary=False))
    with pytest.raises(RequestFailedError) as failed:
        client.infer(client.prepare([]))
    assert failed.value.label == kind
    client.close()


def test_a_server_that_does_not_answer(server):
    end = threading.Event()
    server.answer = lambda request: end.wait(PROMPT_S)
    client = RestClient(Target(server.url, "net", patience_s=0.05))
    with pytest.raises(RequestFailedError, match="no answer in time"):
        client.infer(client.prepare([]))
    end.set()
    client.close()


# -- trials ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_closed_loop_keeps_so_many_under_way(server, tmp_path, capsys):
    most, now, seen, lock = 0, 0, 0, threading.Lock()
    together = threading.Barrier(3)

    def answer(request):
        nonlocal most, now, seen
        with lock:
            now, seen = now + 1, seen + 1
            most = max(most, now)
            first = 5 < seen <= 8  # five come one after the other, before the load
        if first:
            together.wait(PROMPT_S)
        with lock:
            now -= 1

    server.answer = answer
    file = tmp_path / "o.json"
    assert load(server, "--clients", "3", "--seconds", "0.3", "--output", str(file)) == 0
    assert most == 3
    (trial,) = kept(file)["trials"]
    assert trial["title"] == "closed loop, 3 clients"
    assert trial["figures"]["failures"] == {}
    assert trial["figures"]["requests"] == trial["figures"]["answered"] == len(trial["requests"]) > 2
    assert "closed loop, 3 clients" in capsys.readouterr().out


@pytest.mark.slow
def test_every_failure_is_counted_by_kind(server, tmp_path, capsys):
    faults = [None, Fault(429, "busy"), Fault(503, "draining"), Fault(504, "late"), Close()]

    def answer(request):
        count = len(server.requests)
        if count > 5 and (fault := faults[count % 5]) is not None:
            raise fault

    server.answer = answer
    file = tmp_path / "o.json"
    assert load(server, "--seconds", "0.3", "--deadline-ms", "10000", "--output", str(file)) == 0
    figures = kept(file)["trials"][0]["figures"]
    assert set(figures["failures"]) == {"refused (429)", "not ready (503)", "late (504)", "connection"}
    assert figures["requests"] == figures["answered"] + sum(figures["failures"].values()) == len(server.requests) - 5
    assert figures["in_time_share"] == figures["answered"] / figures["requests"] < 0.5
    assert "x connection" in capsys.readouterr().out
    assert server.requests[-1]["parameters"]["timeout"] == 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--clients 2", "--rate 200", "--p99-ms 1000"])
def test_a_server_that_has_gone_ends_the_load(server, tmp_path, capsys, words):
    """Else a closed loop would find nobody at full speed, and a search would go on at ever lower rates."""
    if words != "--clients 2":
        pytest.importorskip("mlperf_loadgen")

    def answer(request):
        if len(server.requests) > 50:
            raise Close

    server.answer = answer
    file = tmp_path / "o.json"
    assert load(server, *words.split(), "--seconds", "1000", "--output", str(file)) == 1
    assert f"odin load: nothing answers at {server.url} any more" in capsys.readouterr().err
    (trial,) = kept(file)["trials"]
    assert trial["figures"]["broken_off"]
    assert trial["figures"]["answered"] >= 1
    assert trial["figures"]["failures"]["connection"] >= 100


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_loadgens_other_scenarios(server, tmp_path, capsys, scenario):
    pytest.importorskip("mlperf_loadgen")
    file = tmp_path / "o.json"
    assert load(server, "--scenario", scenario, "--seconds", "0.3", "--output", str(file)) == 0
    trial = kept(file)["trials"][-1]
    assert trial["title"] == scenario
    assert trial["figures"]["verdict"]["result"] in ("VALID", "INVALID")
    assert trial["figures"]["requests"] == trial["figures"]["answered"] >= 1
    assert "this is no MLPerf result" in capsys.readouterr().out


@pytest.mark.slow
def test_requests_come_by_loadgens_schedule(server, tmp_path):
    pytest.importorskip("mlperf_loadgen")
    file, picture = tmp_path / "o.json", tmp_path / "o.png"
    words = ["--rate", "200", "--seconds", "0.5", "--deadline-ms", "60000"]
    assert load(server, *words, "--output", str(file), "--plot", str(picture)) == 0
    (trial,) = kept(file)["trials"]
    due_s = [request[0] for request in trial["requests"]]
    assert len(due_s) >= 100
    assert due_s[0] == 0.0
    assert due_s == sorted(due_s)
    assert all(latency_s > 0 and behind_s >= 0 for _, latency_s, behind_s, _ in trial["requests"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.json"
    assert load(server, *words, "--output", str(again)) == 0
    due_again_s = [request[0] for request in kept(again)["trials"][0]["requests"]]
    assert due_again_s == pytest.approx(due_s, abs=1e-4)  # the same seed, the same moments


@pytest.mark.slow
def test_a_search_that_nothing_passes_says_so(server, tmp_path, capsys, monkeypatch):
    pytest.importorskip("mlperf_loadgen")
    monkeypatch.setattr("odin_lab.load.campaign.RateSearch", partial(RateSearch, most=2))

    def answer(request):
        if len(server.requests) > 5:
            raise Fault(429, "busy")

    server.answer = answer
    file = tmp_path / "o.json"
    assert load(server, "--p99-ms", "1000", "--seconds", "0.1", "--output", str(file)) == 1
    result = kept(file)
    assert result["highest_hz"] is None
    assert "no rate with 99% of all requests answered within 1000 ms" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--clients 2", "--rate 50", "--scenario offline", "--p99-ms 100"])
def test_ctrl_c_shows_what_is_known(server, tmp_path, words):
    """LoadGen itself does not stop before its end; the server hangs in the middle of the trial."""
    if words != "--clients 2":
        pytest.importorskip("mlperf_loadgen")
    hangs, end = threading.Event(), threading.Event()

    def answer(request):
        if len(server.requests) >= 20:
            hangs.set()
            end.wait(PROMPT_S)

    server.answer = answer
    file = tmp_path / "o.json"
    command = [sys.executable, "-m", "odin", "load", server.url, *words.split(), "--seconds", "1000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*command, "--patience", "1000", "--output", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert hangs.wait(PROMPT_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PROMPT_S)
    end.set()
    assert (process.returncode, err) == (130, "")
    assert "ended early" in out
    figures = kept(file)["trials"][-1]["figures"]
    assert figures["broken_off"]
    assert figures["under_way"] >= 1
    assert figures["answered"] >= 1
    assert not list(tmp_path.glob("odin-load-*"))


@pytest.mark.slow
def test_the_process_that_sends_breaks(server, monkeypatch, capsys):
    import odin_lab.load.trial as trial

    monkeypatch.setattr(
        trial, "_environment", lambda: {**os.environ, "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    )
    assert load(server, "--seconds", "1") == 1
    assert "odin load: the process that sends requests broke; its last words:" in capsys.readouterr().err
