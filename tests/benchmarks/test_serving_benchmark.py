"""The serving benchmark's servers: started until they answer, asked, and ended with what they have started."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.serving import Turn, show_network, show_rivals
from benchmarks.serving_rival import read_binary, write_binary
from benchmarks.serving_servers import Measured, start
from odin_lab.live.machine import Environment
from odin_lab.load.client import Input, NamedArray, Target
from odin_lab.load.rest import RestClient

HELPERS = str(Path(__file__).parents[1] / "helpers")
INPUTS = (Input("x", "FP32", (1, 3)),)

SERVER = """
import json, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from oip_server import oip_server
if __name__ == "__main__":
    with oip_server() as served:
        # a child that outlives its parent unless somebody ends it
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        ready = Path(sys.argv[3])
        served.reply = lambda *_: {"outputs": []}
        ready.with_suffix(".x").write_text(json.dumps({"http": int(served.url.rpartition(":")[2])}))
        ready.with_suffix(".x").rename(ready)
        time.sleep(1000)
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code, HELPERS]


@pytest.mark.slow
def test_a_server_is_asked_and_ended_with_its_children():
    with start(command(SERVER), INPUTS) as served:
        processes = [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
        measured = served.ways["rest"].measure(INPUTS, clients=2, seconds=0.2)
        assert measured.failed == 0
        assert measured.throughput_hz > 0
        assert served.memory_nbytes() > 0
        assert served.first_answer_s > 0
    assert len(processes) == 2
    assert not any(process.is_running() for process in processes)


@pytest.mark.slow
def test_a_server_that_breaks_tells_its_last_words():
    with (
        pytest.raises(RuntimeError, match=r"odin: it ended with status 3; its last words:\nno model"),
        start(command("print('no model', flush=True); raise SystemExit(3)"), INPUTS),
    ):
        pass


def test_the_rivals_read_what_the_client_writes():
    image = np.arange(6, dtype=np.float32).reshape(1, 6)
    client = RestClient(Target("http://h:1", "net"))
    prepared = client.prepare([NamedArray("input", "FP32", image)])
    length = int(prepared.headers["Inference-Header-Content-Length"])
    np.testing.assert_array_equal(read_binary(prepared.body, length), image)
    body, header_nbytes = write_binary(image[:, ::2])
    assert body[header_nbytes:] == image[:, ::2].tobytes()


def test_ratios_are_taken_round_by_round(capsys):
    def turn(rate_hz: float) -> Turn:
        return Turn({1: Measured(rate_hz, 1 / rate_hz, 2 / rate_hz, 0)}, 2**20, 3.0, 0.0)

    turns = {"in-process": [turn(10), turn(20)], "rest": [turn(9), turn(18)]}
    show_network("net", "alone", turns, Environment.collect())
    show_rivals("net", "alone", turns, Environment.collect())
    out = capsys.readouterr().out
    assert "0.900 (0.900..0.900)" in out
    assert "3.0" in out
