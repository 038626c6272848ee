"""The event log: what is written when, what a full disk does, and reading back whatever is in the file."""

from __future__ import annotations

import errno
import math
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import synthetic_run
from loads import wait_for
from patience import PROMPT_S
from synthetic_run import START_S, interference, request, run_started

from odin.monitor.eventlog import EventLog, read_log
from odin.monitor.events import LoadChanged, PlanChanged, PolicyChanged, RunEnded, to_json


class Later:
    """Collects what is to be called later."""

    def __init__(self):
        self.calls = []

    def __call__(self, flush):
        self.calls.append(flush)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def write(path, *events):
    path.write_text("".join(to_json(event) + "\n" for event in events), encoding="utf-8")


def test_there_and_back(path):
    events = interference(seconds=(2, 2, 2))
    with EventLog(path) as log:
        for event in events:
            log.append(event)
    assert log.error == ""
    assert len(lines(path)) == len(events)
    assert list(read_log(path)) == sorted(events, key=lambda event: event.at_s)


def test_nan_there_and_back(path):
    with EventLog(path) as log:
        log.append(run_started())
        log.append(PlanChanged(START_S + 1, 5, 1, (9, 9), (8, 10), "trial", "", math.nan, 0.001))
    _, moved = read_log(path)
    assert math.isnan(moved.predicted_hz)
    assert moved.after == (8, 10)


def test_requests_wait_for_each_other_and_anything_else_takes_them_along(path):
    later = Later()
    log = EventLog(path, later=later)
    log.append(run_started())
    assert len(lines(path)) == 1
    for number in range(3):
        log.append(request(number, START_S + number, (0.1, 0.1)))
    assert len(lines(path)) == 1
    assert len(later.calls) == 1
    later.calls.pop()()
    assert len(lines(path)) == 4

    log.append(request(3, START_S + 3, (0.1, 0.1)))
    assert len(lines(path)) == 4
    assert len(later.calls) == 1
    log.append(PolicyChanged(START_S + 4, "lls"))
    assert len(lines(path)) == 6
    later.calls.pop()()  # nothing is left to be written
    assert len(lines(path)) == 6

    log.append(request(4, START_S + 5, (0.1, 0.1)))
    log.close()
    assert len(lines(path)) == 7


def test_without_further_events_requests_are_written_by_themselves(path):
    log = EventLog(path)
    log.append(request(0, START_S, (0.1, 0.1)))
    wait_for(lambda: len(lines(path)) == 1, what="the request is written")
    log.close()


def test_close_twice_and_append_after_it(path):
    log = EventLog(path)
    log.append(run_started())
    log.close()
    log.close()
    log.append(PolicyChanged(START_S, "lls"))
    log.flush()
    assert len(lines(path)) == 1


def test_a_file_with_something_in_it_is_refused_unless_told(path):
    path.write_text("diary\n")
    with pytest.raises(ValueError, match=r"run\.jsonl has 6 bytes in it.* name a new file, or delete it"):
        EventLog(path)
    assert path.read_text() == "diary\n"
    with EventLog(path, append=True) as log:
        log.append(PolicyChanged(1.0, "lls"))
    assert lines(path)[0] == "diary"
    assert len(lines(path)) == 2


def test_an_empty_file_is_taken(path):
    path.touch()
    EventLog(path).close()


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Is a directory; name a file"):
        EventLog(tmp_path)
    with pytest.raises(ValueError, match="No such file or directory; name a file"):
        EventLog(tmp_path / "no" / "run.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied; name a file"):
        EventLog(tmp_path / "run.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_and_ends_nothing():
    troubles = []
    log = EventLog("/dev/full", on_trouble=lambda kind, text: troubles.append(kind))
    log.append(run_started())
    assert log.error == "/dev/full: No space left on device"
    log.append(PolicyChanged(START_S, "lls"))
    log.flush()
    log.close()
    assert troubles == ["write", "end"]


@pytest.mark.slow
def test_a_line_that_only_half_fits_is_taken_back(tmp_path):
    """A limit of the file's size stands for the full disk; the next writer's line must begin a line."""
    path = tmp_path / "run.jsonl"
    script = (
        "import resource, signal, sys\n"
        "from synthetic_run import run_started, request, START_S\n"
        "from odin.monitor.eventlog import EventLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = EventLog(sys.argv[1], later=lambda flush: None)\n"
        "log.append(run_started())\n"
        "size = log.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1500, size + 1500))\n"
        "for number in range(4):\n"
        "    log.append(request(number, START_S + number, (0.1, 0.1)))\n"
        "log.flush()\n"
        "print(log.error)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), os.getcwd()]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, timeout=PROMPT_S
    )
    assert os.strerror(errno.EFBIG) in done.stdout, done.stderr
    assert path.read_text().endswith("}\n")
    events = list(read_log(path, on_note=pytest.fail))
    assert 2 <= len(events) < 5
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # that of this process is untouched


@pytest.mark.slow
def test_two_writers_keep_whole_lines(path):
    log = EventLog(path, later=lambda flush: None)
    log.append(run_started())
    script = (
        "import sys\n"
        "from odin.monitor.eventlog import EventLog\n"
        "from odin.monitor.events import LoadChanged\n"
        "log = EventLog(sys.argv[1], append=True)\n"
        "for number in range(300):\n"
        "    log.append(LoadChanged(1000.0 + number / 100, 'load', 'cpu', 'cpu:1', 0.5, 1))\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    threads = [
        threading.Thread(
            target=lambda part=part: [
                log.append(request(n, START_S + n / 200, (0.1, 0.1))) for n in range(part, 600, 2)
            ]
        )
        for part in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(PROMPT_S) == 0
    log.close()
    events = list(read_log(path))
    assert sum(isinstance(event, LoadChanged) for event in events) == 300
    assert sorted(event.timeline.request for event in events if event.kind == "request") == list(range(600))


def test_records_come_in_the_order_of_their_times(path):
    load = LoadChanged(START_S + 1.5, "cpu", "cpu", "cpu:1", 1.0)
    requests = [request(n, START_S + n, (0.1, 0.1)) for n in range(1, 30)]
    write(path, run_started(), *requests[:4], load, *requests[4:])
    events = list(read_log(path))
    times = [event.at_s for event in events]
    assert times == sorted(times)
    assert events.index(load) == 2


def test_reading_needs_only_a_few_seconds_ahead(path):
    """The first events are there although the file's end is broken."""
    write(path, run_started(), *(request(n, START_S + n, (0.1, 0.1)) for n in range(1, 20)))
    with path.open("a") as file:
        file.write("broken\nbroken\n")
    reading = read_log(path)
    assert [next(reading).at_s for _ in range(10)] == [START_S + n for n in range(10)]
    with pytest.raises(ValueError, match=rf"{path}, line 21: not an event"):
        list(reading)


def test_a_record_far_too_late_is_not_lost(path):
    late = PolicyChanged(START_S + 1, "lls")
    write(path, run_started(), *(request(n, START_S + n, (0.1, 0.1)) for n in range(1, 20)), late)
    events = list(read_log(path))
    assert len(events) == 21
    assert late in events


def test_a_cut_off_last_line_is_left_out_and_told(path):
    write(path, run_started(), PolicyChanged(START_S + 1, "lls"))
    whole = path.read_bytes()
    notes = []
    for size in range(len(whole) - 20, len(whole) - 2):
        path.write_bytes(whole[:size])
        assert len(list(read_log(path, on_note=notes.append))) == 1
    assert set(notes) == {f"{path}: the last line (2) is cut off and left out; the run was killed, or goes on"}
    path.write_bytes(whole[:-1])  # only the line end is missing
    assert len(list(read_log(path, on_note=pytest.fail))) == 2


def test_cut_within_a_character(path):
    write(path, run_started())
    with path.open("ab") as file:
        file.write('{"event":"policy","at_s":1001.0,"policy":"é'.encode()[:-1])
    with pytest.warns(UserWarning, match="cut off"):
        assert len(list(read_log(path))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty; a log begins with a run"),
        (b"\n", r"line 1: not an event"),
        (b"\x7fELF\xff\xfe\x00", r"line 1: not an event of an ODIN log, nor text"),
        (b"# README", r"line 1: not an event"),
        (b'{"event":"policy","at_s":1.0,"policy":"lls"}\n', r"line 1: a log begins with a run, not policy"),
        (b'{"event":"policy","at_s":null,"policy":"lls"}\n', r"line 1: its time is nan"),
        (b'{"event":"policy","at_s":"soon","policy":"lls"}\n', r"line 1: "),
    ],
)
def test_what_is_no_log_is_refused_with_file_and_line(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_log(path))
    assert str(path) in str(caught.value)


def test_a_log_holds_one_run(path):
    write(path, run_started(), RunEnded(START_S + 1, "done", 0, 0), synthetic_run.shifted(run_started(), 10))
    with pytest.raises(ValueError, match="line 3: another run begins; a log holds one"):
        list(read_log(path))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="No such file or directory; name a log"):
        list(read_log(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="Is a directory; name a log"):
        list(read_log(tmp_path))
