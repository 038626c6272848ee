"""The access log: its lines, and the file under it."""

from __future__ import annotations

import json
import math

import pytest

from odin.server.access_log import AccessLog
from odin.server.answered import Answered
from odin.server.failures import FailureKind
from odin.server.messages import Caller, InferRequest
from odin.testing import timeline

DONE = Answered(
    InferRequest("m", "", "7", {}, (), traceparent="00-a-b-01", caller=Caller("http", "127.0.0.1:5000", 600)),
    "3",
    None,
    "",
    1.7e9 + 0.25,
    0.3004,
    0.1,
    (timeline(5, 1000.0, (0.1, 0.05), plan=(2, 1)), timeline(6, 1000.1, (0.15, 0.0), plan=(3, 0))),
    ("cpu:0", "cpu:1"),
    40,
)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_where_the_time_went(tmp_path):
    log = AccessLog(tmp_path / "log")
    log(DONE)
    log.close()
    (line,) = lines_of(tmp_path / "log")
    stages = line.pop("stages")
    assert line == {
        "time": "2023-11-14T22:13:20.250+00:00", "protocol": "http", "peer": "127.0.0.1:5000", "model": "m",
        "version": "3", "id": "7", "outcome": "answered", "status": 200, "message": "", "latency_s": 0.3004,
        "waiting_s": 0.1, "request_nbytes": 600, "response_nbytes": 40, "traceparent": "00-a-b-01",
    }  # fmt: skip
    assert stages[0][1] == {
        "stage": 1, "device": "cpu:1", "first": 2, "last": 3, "queue_s": 0.004, "compute_s": 0.05, "run_delay_s": 0.0,
    }  # fmt: skip
    assert [[stage["stage"] for stage in batch] for batch in stages] == [[0, 1], [0]]  # the second passed stage 1 by


@pytest.mark.parametrize(
    ("protocol", "failure", "status"),
    [("grpc", None, "OK"), ("grpc", FailureKind.BUSY, "RESOURCE_EXHAUSTED"), ("http", FailureKind.BUSY, 429)],
)
def test_the_status_is_the_protocols_own(tmp_path, protocol, failure, status):
    log = AccessLog(tmp_path / "log")
    log(DONE._replace(failure=failure, request=DONE.request._replace(caller=Caller(protocol))))
    assert lines_of(tmp_path / "log")[0]["status"] == status
    log.close()


def test_what_clients_choose_stays_in_its_line_and_short(tmp_path):
    hostile = DONE.request._replace(id='x"\n{"id":"forged"}\n' + "y" * 5000, model="a\u2028b\udce9")
    log = AccessLog(tmp_path / "log")
    log(DONE._replace(request=hostile, latency_s=math.nan))
    log.close()
    (line,) = lines_of(tmp_path / "log")
    assert line["id"].startswith('x"\n{"id"')
    assert len(line["id"]) == 256
    assert line["latency_s"] is None


def test_a_renamed_or_deleted_file_is_made_anew(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(path)
    log(DONE)
    path.rename(tmp_path / "log.1")
    log(DONE)
    path.unlink()
    log(DONE)
    log.close()
    assert [len(lines_of(tmp_path / name)) for name in ("log", "log.1")] == [1, 1]


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path):
    with pytest.raises(OSError, match="missing"):
        AccessLog(tmp_path / "missing" / "log")


def test_standard_error(capfdbinary):
    AccessLog(None)(DONE)
    assert json.loads(capfdbinary.readouterr().err)["id"] == "7"
