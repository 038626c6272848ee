"""Bugs of the event log, each with its story: a disk that was full, a file that was moved away, hours of requests."""

from __future__ import annotations

import errno
import os
import warnings

import pytest
from synthetic_run import START_S, request, run_started

from odin.cli.replay import Player
from odin.control.supervision import EventRecorder
from odin.monitor.eventlog import EventLog, read_log
from odin.monitor.events import (
    Attributed,
    EventsMissing,
    Fault,
    LoadChanged,
    PlanChanged,
    PolicyChanged,
    RequestDone,
    RunEnded,
    RunStarted,
    SlowdownChanged,
    to_json,
)
from odin.monitor.view.builder import ViewBuilder
from odin_lab.inject.log import LoadLog


class Disk:
    """Stands before ``os.write``: how many bytes there is room for, and what is said when there is none."""

    def __init__(self, patch):
        self.room = None
        self.error = errno.ENOSPC
        self._write = os.write
        patch.setattr("odin.monitor.eventlog.os.write", self.write)

    def write(self, descriptor, data):
        if self.room is None:
            return self._write(descriptor, data)
        if self.room == 0:
            raise OSError(self.error, os.strerror(self.error))
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def make_log(path, **options):
    troubles = []
    log = EventLog(
        path,
        later=lambda flush: None,
        clock=lambda: START_S + 50,
        on_trouble=lambda kind, text: troubles.append((kind, text)),
        **options,
    )
    return log, troubles


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def requests_of(events):
    return [event.timeline.request for event in of(events, RequestDone)]


def serve(log, first, last, **options):
    for number in range(first, last):
        log.append(request(number, START_S + number / 10, (0.1, 0.1), **options))
    log.flush()


# -- a file that cannot be written for a while ---------------------------------------------------------------------
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("room", [0, 1, 700, 1500])
def test_once_the_disk_was_full_the_log_was_silent_for_ever(path, disk, error, room):
    """It closed its file at the first error. Now it goes on, and its reader is told how much is missing."""
    log, troubles = make_log(path)
    log.append(run_started())
    serve(log, 0, 5)
    disk.room, disk.error = room, error
    serve(log, 5, 8)
    log.append(PolicyChanged(START_S + 0.8, "lls"))
    for _ in range(10):
        serve(log, 8, 9)
    assert os.strerror(error) in log.error
    assert not log._waiting
    disk.room = None
    serve(log, 20, 25)
    log.close()
    assert log.error == ""
    assert [kind for kind, _ in troubles] == ["write", "again"]  # told once each
    events = list(read_log(path, on_note=pytest.fail))
    (missing,) = of(events, EventsMissing)
    written = requests_of(events)
    assert len(written) + missing.requests == 5 + 3 + 10 + 5
    assert written[:5] == [0, 1, 2, 3, 4]
    assert written[-5:] == [20, 21, 22, 23, 24]
    assert (missing.others, len(of(events, PolicyChanged))) == (1, 0)
    assert os.strerror(error) in missing.why
    builder = ViewBuilder()
    for event in events:
        builder.apply(event)
    assert builder.view(START_S + 60).completed == 23


def test_the_disk_was_full_from_the_start(path, disk):
    """A log begins with a run: it is written first when there is room."""
    disk.room = 10
    log, _ = make_log(path)
    log.append(run_started())
    serve(log, 0, 5)
    disk.room = None
    serve(log, 5, 10)
    log.close()
    events = list(read_log(path, on_note=pytest.fail))
    assert isinstance(events[0], RunStarted)
    assert requests_of(events) == [5, 6, 7, 8, 9]
    assert sum(event.requests for event in of(events, EventsMissing)) == 5


def test_a_line_torn_off_beside_another_writer_spoils_no_other(path, disk):
    """It cannot be taken back once somebody has written after it; the next record went on in the same line."""
    log, _ = make_log(path)
    log.append(run_started())
    real = os.ftruncate
    disk.room = 300
    try:
        os.ftruncate = lambda *arguments: (_ for _ in ()).throw(OSError(errno.EINVAL, "not here"))
        serve(log, 0, 3)
    finally:
        os.ftruncate = real
    assert not path.read_bytes().endswith(b"\n")
    disk.room = None
    serve(log, 3, 6)
    log.close()
    notes = []
    events = list(read_log(path, on_note=notes.append))
    assert requests_of(events) == [3, 4, 5]
    assert of(events, EventsMissing)[0].requests == 3
    assert len(notes) == 1
    assert f"1 broken line left out, the first is {path}, line 2: " in notes[0]


def test_at_the_end_it_is_told_that_events_are_missing(path, disk):
    log, troubles = make_log(path)
    log.append(run_started())
    disk.room = 0
    serve(log, 0, 4)
    log.close()
    log.close()
    assert [kind for kind, _ in troubles] == ["write", "end"]
    assert troubles[-1][1].endswith("4 requests and 0 other events are missing at the end of the event log")


def test_space_that_comes_back_just_before_the_end_is_used(path, disk):
    log, _ = make_log(path)
    log.append(run_started())
    disk.room = 0
    serve(log, 0, 4)
    disk.room = None
    log.close()
    assert of(read_log(path), EventsMissing)[0].requests == 4


def test_an_error_that_only_closing_tells_is_no_exception(path, monkeypatch):
    log, troubles = make_log(path)
    log.append(run_started())
    real = os.close

    def close(descriptor):
        real(descriptor)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("odin.monitor.eventlog.os.close", close)
    log.close()
    assert troubles == [("end", f"{path}: Disk quota exceeded when the event log was closed")]


def test_the_user_is_warned_once_and_the_view_shows_it(path, disk):
    told = []
    log = EventLog(path, later=lambda flush: None, clock=lambda: START_S)
    recorder = EventRecorder(log, told.append, clock=lambda: START_S)
    recorder.emit(run_started())

    def fill_three_times():
        for number in range(30):
            disk.room = None if number % 10 == 9 else 0
            recorder.emit(request(number, START_S + number, (0.1, 0.1)))
            log.flush()

    with pytest.warns(UserWarning, match="event log: .*No space left on device.*; serving goes on") as warned:
        fill_three_times()
    assert len(warned) == 2  # that it cannot be written, and that it can be again
    lines = [line.text for line in recorder.view(START_S + 30).events]
    recorder.close()
    assert len([text for text in lines if "No space left on device" in text]) == 3
    assert len([text for text in lines if "9 requests and 1 other events are missing in it" in text]) == 3
    assert {fault.part for fault in of(told, Fault)} == {"event log"}


def test_a_thread_that_could_not_be_started_left_the_log_waiting_for_ever(path):
    def no_thread(flush):
        raise RuntimeError("can't start new thread")

    log = EventLog(path, later=no_thread)
    log.append(run_started())
    for number in range(3):
        log.append(request(number, START_S + number, (0.1, 0.1)))
        assert len(path.read_text().splitlines()) == number + 2
    log.close()


# -- a file that others touch ----------------------------------------------------------------------------------------
def test_a_file_that_was_renamed_or_deleted_beneath_it_is_followed(path, tmp_path):
    """By logrotate: the log went on in a file that nobody found again."""
    log, troubles = make_log(path)
    log.append(run_started())
    log.append(PlanChanged(START_S + 0.01, 0, 1, (9, 9), (8, 10), "move", "", 10.0, 0.01))
    serve(log, 0, 5, plan=(8, 10), epoch=1)
    away = tmp_path / "run.jsonl-20261127"
    path.rename(away)
    serve(log, 5, 10, plan=(8, 10), epoch=1)
    middle = path.read_bytes()
    path.unlink()
    serve(log, 10, 15, plan=(8, 10), epoch=1)
    log.close()
    assert troubles == []
    assert requests_of(read_log(away)) == [0, 1, 2, 3, 4]
    path_of_middle = tmp_path / "middle"
    path_of_middle.write_bytes(middle)
    assert requests_of(read_log(path_of_middle, on_note=pytest.fail)) == [5, 6, 7, 8, 9]
    events = list(read_log(path, on_note=pytest.fail))
    assert requests_of(events) == [10, 11, 12, 13, 14]
    view = Player(path)
    view.advance(100.0)
    assert (view.view().plan, view.view().epoch, view.view().completed) == ((8, 10), 1, 15)


def test_a_file_that_was_emptied_beneath_it_begins_anew(path):
    """With copytruncate of logrotate: what followed began with no run, and could not be read."""
    log, _ = make_log(path)
    log.append(run_started())
    serve(log, 0, 50)
    os.truncate(path, 0)
    serve(log, 50, 52)
    serve(log, 52, 55)
    log.close()
    events = list(read_log(path, on_note=pytest.fail))
    assert isinstance(events[0], RunStarted)
    assert requests_of(events) == [50, 51, 52, 53, 54]
    assert of(events, EventsMissing)[0].requests == 50


def test_a_folder_that_is_gone_is_an_outage(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    log, troubles = make_log(folder / "run.jsonl")
    log.append(run_started())
    (folder / "run.jsonl").unlink()
    folder.rmdir()
    serve(log, 0, 5)
    assert [kind for kind, _ in troubles] == ["write"]
    folder.mkdir()
    serve(log, 5, 10)
    log.close()
    events = list(read_log(folder / "run.jsonl", on_note=pytest.fail))
    assert requests_of(events) == [5, 6, 7, 8, 9]
    assert {event.requests for event in of(events, EventsMissing)} == {0, 5}


# -- size ------------------------------------------------------------------------------------------------------------
def test_a_log_grew_for_ever(path):
    """400 MiB an hour at 260 requests/s. Now the oldest parts go."""
    log, troubles = make_log(path, part_nbytes=20_000, kept_parts=3)
    log.append(run_started())
    count = 0
    while not path.with_name("run.jsonl.3").exists():
        serve(log, count, count + 5)
        count += 5
    parts = [path, *(path.with_name(f"run.jsonl.{number}") for number in (1, 2, 3))]
    assert requests_of(read_log(path, on_note=pytest.fail)) == list(range(count))  # all of them, in order
    for _ in range(200):
        serve(log, count, count + 5)
        count += 5
    log.append(RunEnded(START_S + count, "done", count, 0))
    log.close()
    assert troubles == []
    assert sorted(path.parent.iterdir()) == sorted(parts)
    assert all(part.stat().st_size < 20_000 + 6_000 for part in parts)
    events = list(read_log(path, on_note=pytest.fail))
    found = requests_of(events)
    assert found == list(range(found[0], count))
    assert of(events, EventsMissing)[0].requests == found[0]
    assert len(of(events, EventsMissing)) == len(of(events, RunStarted)) == 1
    player = Player(path)
    player.advance(1e9)
    assert (player.view().completed, player.view().ended) == (count, "done")


def test_each_part_begins_with_the_state_of_its_moment(path):
    """Somebody who has only the last part sees the plan, the policy, who is disturbed and by what, and what runs."""
    log, _ = make_log(path, part_nbytes=6_000, kept_parts=2)
    log.append(run_started())
    log.append(PlanChanged(START_S + 0.01, 0, 1, (9, 9), (8, 10), "move", "", 10.0, 0.01))
    log.append(PolicyChanged(START_S + 0.02, "lls"))
    log.append(LoadChanged(START_S + 0.02, "gone", "cpu", "cpu:0", 1.0, 7))
    log.append(LoadChanged(START_S + 0.03, "gone", "cpu", "cpu:0", 0.0, 7))
    log.append(LoadChanged(START_S + 0.03, "mine", "cpu", "cpu:1", 1.0, 7))
    log.append(SlowdownChanged(START_S + 0.04, 1, 3, 3, 2.0, "onset"))
    log.append(Attributed(START_S + 0.05, 1, "memory", (), "a note"))
    log.append(SlowdownChanged(START_S + 0.06, 0, 3, 3, 2.0, "onset"))
    log.append(Attributed(START_S + 0.07, 0, "memory", (), "a note"))
    log.append(SlowdownChanged(START_S + 0.08, 0, 3, 3, 1.0, "end"))
    serve(log, 0, 1)
    while not path.with_name("run.jsonl.2").exists():
        serve(log, 1, 5, plan=(8, 10), epoch=1)
    log.close()
    path.with_name("run.jsonl.1").unlink()
    player = Player(path)
    player.advance(1e9)
    view = player.view()
    assert (view.plan, view.epoch, view.policy) == ((8, 10), 1, "lls")
    assert [stage.state for stage in view.stages] == ["quiet", "disturbed"]
    assert [stage.interference for stage in view.stages] == ["", "memory"]
    assert [load.name for load in view.loads] == ["mine"]


def test_an_injector_follows_into_the_new_part(path):
    log, _ = make_log(path, part_nbytes=5_000, kept_parts=5)
    log.append(run_started())
    with LoadLog(path) as loads:
        for number in range(30):
            loads.write(LoadChanged(START_S + number / 10, f"load{number}", "cpu", "cpu:1", 0.5, 7))
            serve(log, number, number + 1)
            assert f"load{number}" in path.read_text() or f"load{number}" in path.with_name("run.jsonl.1").read_text()
    log.close()
    assert path.with_name("run.jsonl.2").exists()
    assert len(of(read_log(path, on_note=pytest.fail), LoadChanged)) == 30


@pytest.mark.parametrize("content", [b'{"format": "odin-evaluation"}\n', b"\x89PNG\r\n", b"name,seconds\n"])
def test_an_injector_leaves_files_of_another_kind_alone(path, content):
    # Its records were appended to whatever --log named, such as the results of a benchmark.
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.jsonl is no event log; name a pipeline's, or a new file"):
        LoadLog(path)
    assert path.read_bytes() == content


def test_an_injector_adds_to_its_own_log_and_to_an_empty_file(path):
    path.touch()
    for _ in range(2):
        with LoadLog(path) as loads:
            loads.write(LoadChanged(START_S, "load", "cpu", "cpu:1", 0.5, 7))
    assert path.read_text().count("\n") == 2


def test_an_injector_on_a_full_disk_goes_on(path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    load = LoadChanged(START_S, "load", "cpu", "cpu:1", 0.5, 7)
    with LoadLog(path) as loads:
        monkeypatch.setattr("odin_lab.inject.log.os.write", full)
        with pytest.warns(UserWarning, match="No space left on device; records are left out"):
            loads.write(load)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loads.write(load)


def test_where_no_part_can_be_begun_the_log_goes_on_in_the_present_one(path, monkeypatch):
    log, troubles = make_log(path, part_nbytes=3_000)
    log.append(run_started())

    def refused(*arguments):
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("odin.monitor.eventlog.os.replace", refused)
        serve(log, 0, 20)
        serve(log, 20, 40)
    assert sorted(path.parent.iterdir()) == [path]
    assert [kind for kind, _ in troubles] == ["part"]
    serve(log, 40, 60)
    assert path.with_name("run.jsonl.1").exists()
    log.close()
    assert requests_of(read_log(path, on_note=pytest.fail)) == list(range(60))


def test_a_part_of_another_run_is_neither_read_nor_overwritten(path):
    other = path.with_name("run.jsonl.1")
    other.write_text(to_json(run_started(model="another")) + "\n")
    with pytest.raises(ValueError, match=r"run\.jsonl\.1 has \d+ bytes in it, and a log holds one run"):
        EventLog(path)
    path.write_text(to_json(run_started()) + "\n")
    assert [event.model for event in read_log(path, on_note=pytest.fail)] == ["resnet50"]


def test_what_is_no_plain_file_is_not_renamed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "run.jsonl"
    link.symlink_to(target)
    log, troubles = make_log(link, part_nbytes=2_000)
    log.append(run_started())
    serve(log, 0, 50)
    serve(log, 50, 60)
    log.close()
    assert troubles == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.jsonl", "target"]
    assert requests_of(read_log(link)) == list(range(60))


@pytest.mark.parametrize("options", [{"part_nbytes": 0}, {"kept_parts": 0}])
def test_limits_that_make_no_sense(path, options):
    with pytest.raises(ValueError, match="both must be at least 1"):
        EventLog(path, **options)
