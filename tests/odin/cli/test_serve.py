"""``odin serve`` as its users have it: what wrong usage says, and a server from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from patience import PROMPT_S
from rich.console import Console

from odin.cli.main import main
from odin.cli.serve import _Telling
from odin.server.life import Ports

TINY = """
import torch

def tiny():
    torch.manual_seed(0)
    body = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU()]
    head = [torch.nn.Flatten(), torch.nn.Linear(64, 2)]
    return torch.nn.Sequential(*body, *head), (torch.zeros(1, 3, 8, 8),)

def broken():
    raise RuntimeError("no such weights")
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such_model"], "no_such_model"),
        (["resnet18", "--http-port", "70000"], "'70000' is no port: 0 to 65535"),
        (["resnet18", "--port", "8000"], "there is no --port: say --http-port for REST, and --grpc-port for gRPC"),
        (["resnet18", "--tls-cert", "c.pem"], "give --tls-cert and --tls-key together"),
        (["resnet18", "--drain-s", "-1"], "'-1' is no time of 0 s or more"),
        (["resnet18", "--max-waiting", "-1"], "max_waiting = -1: "),
        (["resnet18", "--name", "a/b"], "name = 'a/b': "),
        (["resnet18", "--labels", "gone"], "--labels gone: no such file; name one with a line per class"),
        (["resnet18", "--log", "gone/x"], "--log gone/x: there is no folder gone; make it first"),
        (["resnet18", "--ready-file", "gone/x"], "--ready-file gone/x: there is no folder gone"),
        (["resnet18", "--access-log", "."], "--access-log . is a folder"),
        ([".", "--stages", "cpu:0", "--name", "x"], "--name, --stages with a folder: each model's file says it"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["serve", *words]))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_token_is_one_word(tmp_path, capsys):
    (tmp_path / "token").write_text("two words\n")
    assert main(["serve", "resnet18", "--token-file", str(tmp_path / "token")]) == 2
    assert "a token is one word of ASCII characters" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "told"), [("127.0.0.1", "127.0.0.1:5"), ("::1", "[::1]:5")])
def test_addresses_are_told_as_clients_write_them(host, told, capsys):
    _Telling(Console(stderr=True), host, None, tls=False).opened(Ports(5, 5))
    rest, grpc = capsys.readouterr().err.splitlines()
    assert rest.startswith(f"REST  http://{told} ")
    assert grpc == f"gRPC  {told}"


class Served:
    """A running ``odin serve``."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self._folder, self.ports = process, folder, {"http": 0, "grpc": 0}

    def wait_until_ready(self) -> None:
        ready, end_s = self._folder / "ready.json", time.monotonic() + PROMPT_S
        while not ready.exists():
            assert self.process.poll() is None, (self._folder / "told").read_text()
            assert time.monotonic() < end_s
            time.sleep(0.05)
        self.ports = json.loads(ready.read_text())

    def ask(self, path: str, body: Any = None, *, method: str | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['http']}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PROMPT_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    @property
    def told(self) -> str:
        return (self._folder / "told").read_text()


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Served]:
    (folder / "tiny.py").write_text(TINY)
    command = [sys.executable, "-m", "odin", "serve", *words, "--http-port", "0", "--grpc-port", "0"]
    with (folder / "told").open("w") as told:
        process = subprocess.Popen(
            [*command, "--ready-file", "ready.json"], cwd=folder, stdout=told, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield Served(process, folder)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PROMPT_S)


def request(value: float = 0.0) -> dict[str, Any]:
    data = [value] * (3 * 8 * 8)
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": data}]}


@pytest.mark.ray
def test_a_folder_from_its_start_to_its_end(tmp_path, two_cores):
    models = tmp_path / "models"
    models.mkdir()
    (models / "small.toml").write_text(f'source = "tiny:tiny"\nstages = {two_cores}\n')
    (models / "bad.toml").write_text('source = "tiny:broken"\n')
    with serving(tmp_path, "models", "--drain-s", "60") as served:
        served.wait_until_ready()
        assert "RuntimeError: no such weights" in served.told
        assert served.ask("/v2/health/live")[0] == served.ask("/v2/health/ready")[0] == 200
        _, index = served.ask("/v2/repository/index", {})
        assert [(model["name"], model["state"]) for model in index] == [("bad", "UNAVAILABLE"), ("small", "READY")]
        status, answer = served.ask("/v2/models/bad/infer", request())
        assert (status, "no such weights" in answer["error"]) == (503, True)
        _, expected = served.ask("/v2/models/small/infer", request())
        assert expected["outputs"][0]["shape"] == [1, 2]

        # a model that comes later
        (models / "later.toml").write_text(f'source = "tiny:tiny"\nstages = ["{two_cores[0]}"]\n')
        assert served.ask("/v2/repository/models/later/load", {})[0] == 200
        assert served.ask("/v2/models/later/infer", request())[1]["outputs"] == expected["outputs"]

        # asked to end while requests come: each is answered, or refused at once, and nothing is left behind
        outcomes: list[Any] = []
        asking = [threading.Thread(target=lambda: ask_until_refused(served, outcomes)) for _ in range(4)]
        for thread in asking:
            thread.start()
        while len(outcomes) < 8:
            time.sleep(0.01)
        children = psutil.Process(served.process.pid).children(recursive=True)
        served.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join(PROMPT_S)
        assert served.process.wait(PROMPT_S) == 143
        for outcome in outcomes:
            assert outcome in ("refused", expected["outputs"])
        _, left = psutil.wait_procs(children, PROMPT_S)
        assert left == []
        assert not (tmp_path / "ready.json").exists()


def ask_until_refused(served: Served, outcomes: list[Any]) -> None:
    while True:
        try:
            status, answer = served.ask("/v2/models/small/infer", request())
        except ConnectionRefusedError:
            return outcomes.append("refused")
        except (urllib.error.URLError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            refused = isinstance(reason, ConnectionRefusedError | ConnectionResetError)
            return outcomes.append("refused" if refused else error)
        if status == 503:
            return outcomes.append("refused")
        outcomes.append(answer.get("outputs", answer))


@pytest.mark.ray
def test_nothing_that_can_be_served_ends_it(tmp_path, two_cores):
    with serving(tmp_path, "tiny:broken") as served:
        assert served.process.wait(PROMPT_S) == 1
        assert "not served: model 'broken' cannot be served: RuntimeError: no such weights" in " ".join(
            served.told.split()
        )


@pytest.mark.ray
def test_a_port_that_is_taken_ends_it(tmp_path):
    (tmp_path / "models").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = subprocess.run(
            [sys.executable, "-m", "odin", "serve", "models", "--http-port", port, "--grpc-port", "0"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PROMPT_S,
            env={**os.environ},
        )
    assert process.returncode == 1
    assert port in process.stderr
    assert "Traceback" not in process.stderr
