"""Profiles: what is timed, and what a cache does with good, bad and foreign files."""

import dataclasses
import json
import math
import multiprocessing

import pytest

from odin.partitioner.profile import (
    LayerTimes,
    Profile,
    ProfileCache,
    ProfileKey,
    device_type,
    measure_undisturbed,
    profile_layers,
    warn_if_suspect,
)
from odin.testing import FakeClock

KEY = ProfileKey("abc123", ((1, 3, 224, 224),), "float32", "cpu x1 Some Processor")
PROFILE = Profile("cpu x1 Some Processor", (0.25, 0.1), (0.5, 0.0), 10, 1, "2025-01-01T00:00:00+00:00", "2.6.0")


def timed(costs, **options):
    """Profile layers whose passes cost what ``costs[pass][layer]`` says; also returns the order of the calls."""
    clock, calls = FakeClock(), []

    def run_layer(index, values):
        number = len(calls) // len(costs[0])
        calls.append((index, values))
        clock.now_s += costs[number][index]
        return values + 1

    result = profile_layers(run_layer, 0, len(costs[0]), clock=clock, **options)
    return result, calls


def test_minimum_and_spread_over_passes():
    costs = [[9.0, 9.0], [1.0, 4.0], [2.0, 2.0], [4.0, 8.0]]
    result, _ = timed(costs, repeats=3, warmup=1)
    # Medians are 2 and 4; the slow pass 0 is the warm-up.
    assert result == LayerTimes(layer_s=(1.0, 2.0), spread=(1.0, 1.0), repeats=3)


def test_passes_go_through_the_whole_chain():
    _, calls = timed([[1.0] * 3] * 3, repeats=2, warmup=1)
    assert calls == [(0, 0), (1, 1), (2, 2)] * 3


def test_budget_ends_after_three_passes_at_the_earliest():
    assert timed([[5.0]] * 12, repeats=10, warmup=2, budget_s=1.0)[0].repeats == 3
    assert timed([[5.0]] * 12, repeats=10, warmup=2, budget_s=25.0)[0].repeats == 5
    assert timed([[5.0]] * 12, repeats=2, warmup=2, budget_s=1.0)[0].repeats == 2


def test_device_is_idle_before_every_reading_of_the_clock():
    events, clock = [], FakeClock()

    def read():
        events.append("clock")
        clock.now_s += 0.5
        return clock()

    profile_layers(
        lambda index, values: events.append(f"layer {index}"),
        None,
        2,
        repeats=1,
        warmup=0,
        clock=read,
        synchronize=lambda: events.append("wait"),
    )
    assert events == ["wait", "clock", "layer 0", "wait", "clock", "layer 1", "wait", "clock"]


def test_layer_that_takes_no_time_has_no_spread():
    assert timed([[0.0], [1.0]], repeats=2, warmup=0)[0] == LayerTimes((0.0,), (0.0,), 2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="layer_count is 0"):
        profile_layers(lambda index, values: values, None, 0)
    with pytest.raises(ValueError, match="repeats is 0"):
        profile_layers(lambda index, values: values, None, 1, repeats=0)
    with pytest.raises(ValueError, match=r"passes of \[\] layers"):
        LayerTimes.of([])
    with pytest.raises(ValueError, match=r"passes of \[2, 1\] layers; time all layers"):
        LayerTimes.of([(1.0, 2.0), (1.0,)])


def test_device_type_text():
    assert device_type("cpu", " Intel(R)  Xeon(R) ", threads=4) == "cpu x4 Intel(R) Xeon(R)"
    assert device_type("gpu", "NVIDIA H100") == "gpu NVIDIA H100"


def test_profile_of_measured_times():
    profile = Profile.of(LayerTimes((0.1,) * 10, (0.0,) * 10, 5), device_type="cpu x1", batch=2, torch_version="2.6")
    assert profile.total_s == 1.0  # fsum: 0.1 ten times is one
    assert (profile.batch, profile.repeats) == (2, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_s": (), "spread": ()},
        {"spread": (0.0,)},
        {"layer_s": (math.nan, 1.0)},
        {"layer_s": (-1.0, 1.0)},
        {"layer_s": (math.inf, 1.0)},
    ],
)
def test_profile_refuses_what_was_not_measured(change):
    with pytest.raises(ValueError, match="measure it anew"):
        dataclasses.replace(PROFILE, **change)


def test_json_reads_back():
    assert Profile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE


def test_cache_round_trip(tmp_path):
    cache = ProfileCache(tmp_path / "new" / "folder")
    assert cache.load(KEY) is None
    assert cache.store(KEY, PROFILE)
    assert cache.load(KEY) == PROFILE
    assert [path.name for path in cache.directory.iterdir()] == [cache.path(KEY).name]  # no temporary files


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(fingerprint="abc124"),
        KEY._replace(shapes=((2, 3, 224, 224),)),
        KEY._replace(dtype="float16"),
        KEY._replace(device_type="cpu x2 Some Processor"),
    ],
)
def test_every_part_of_the_key_counts(tmp_path, other):
    cache = ProfileCache(tmp_path)
    cache.store(KEY, PROFILE)
    assert cache.load(other) is None


def damaged(content):
    whole = json.loads(content)
    yield b""
    yield content[: len(content) // 2]
    yield b"\xff\xfe\x00 not text"
    yield b"[]"
    yield b"null"
    yield b"[" * 100_000
    for name, value in [
        ("format", "other"),
        ("version", 999),
        ("key", ["abc123"]),
        ("profile", None),
        ("profile", {"layer_s": "no"}),
        ("profile", {**whole["profile"], "layer_s": [None, 1.0]}),
        ("profile", {**whole["profile"], "layer_s": [math.nan, 1.0]}),
        ("profile", {**whole["profile"], "layer_s": [1.0]}),
    ]:
        yield json.dumps({**whole, name: value}).encode()
        yield json.dumps({key: entry for key, entry in whole.items() if key != name}).encode()


def test_damaged_or_foreign_file_is_a_miss_and_gets_replaced(tmp_path):
    cache = ProfileCache(tmp_path)
    cache.store(KEY, PROFILE)
    path = cache.path(KEY)
    cases = list(damaged(path.read_bytes()))
    assert len(cases) > 15
    for content in cases:
        path.write_bytes(content)
        assert cache.load(KEY) is None, content[:80]
        assert cache.get(KEY, lambda: PROFILE) == PROFILE
        assert cache.load(KEY) == PROFILE


def test_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = ProfileCache(tmp_path / "file" / "below")
    assert not cache.store(KEY, PROFILE)
    assert cache.load(KEY) is None
    assert cache.get(KEY, lambda: PROFILE) == PROFILE
    occupied = ProfileCache(tmp_path)
    occupied.path(KEY).mkdir()  # a folder where the file belongs
    assert not occupied.store(KEY, PROFILE)
    assert not list(tmp_path.glob(".writing-*"))


def test_get_measures_once_and_again_on_refresh(tmp_path):
    cache, measured = ProfileCache(tmp_path), []

    def measure():
        measured.append(len(measured))
        return dataclasses.replace(PROFILE, repeats=len(measured))

    assert [cache.get(KEY, measure).repeats for _ in range(3)] == [1, 1, 1]
    assert cache.get(KEY, measure, refresh=True).repeats == 2
    assert cache.get(KEY, measure).repeats == 2


QUIET = LayerTimes((1.0, 2.0), (0.1, 0.1), 7, 0.01)
SHARED = LayerTimes((1.1, 3.9), (0.8, 0.1), 7, 0.5)
BURSTS = LayerTimes((1.5, 2.5), (1.0, 1.0), 7, 0.0)


def profile_of(times):
    return Profile.of(times, device_type=KEY.device_type, batch=1, torch_version="2.6.0")


def test_waiting_for_the_core_while_timing_is_told():
    clock, waited = FakeClock(), iter([5.0, 5.5, 7.0, 7.0])  # before and after each pass that counts

    def run_layer(index, values):
        clock.now_s += 1.0
        return values

    result = profile_layers(run_layer, 0, 2, repeats=2, warmup=0, clock=clock, run_delay=lambda: next(waited))
    assert result.waited == pytest.approx(0.5 / 4.0)
    assert result.suspect == "other programs had the core for 12% of the time"


def test_what_is_suspect():
    """A baseline measured beside a load was kept for ever: slowdowns told too small, layers divided less well."""
    assert QUIET.suspect == ""
    assert "core for 50%" in SHARED.suspect
    assert "2.0 times as long as the fastest" in BURSTS.suspect
    assert LayerTimes((0.0,), (0.0,), 3).suspect == ""


@pytest.mark.parametrize(
    ("answers", "attempts", "pauses"),
    [([QUIET], 1, 0), ([SHARED, QUIET], 2, 1), ([SHARED, BURSTS, SHARED], 3, 2)],
)
def test_a_suspect_measurement_is_made_again_but_not_for_ever(answers, attempts, pauses):
    asked, slept = [], []

    def measure(attempt):
        asked.append(attempt)
        return answers[attempt]

    times = measure_undisturbed(measure, sleep=slept.append)
    assert (asked, len(slept)) == (list(range(attempts)), pauses)
    if attempts < 3:
        assert times == QUIET
    else:
        assert (times.layer_s, times.waited, times.repeats) == ((1.1, 2.5), 0.0, 21)
        assert times.spread == pytest.approx(((1.98 - 1.1) / 1.1, (4.29 - 2.5) / 2.5))
        assert times.suspect


def test_a_suspect_profile_is_used_told_and_measured_again_at_the_next_start(tmp_path):
    cache, measured = ProfileCache(tmp_path), []

    def measure(*answers):
        def once():
            measured.append(len(measured))
            return profile_of(answers[0])

        return once

    first = cache.get(KEY, measure(SHARED))
    with pytest.warns(
        UserWarning, match=r"may be too long: other programs.*50% .*\(pid 7 stress-ng\).*refresh_profile"
    ):
        warn_if_suspect(first, who="pid 7 stress-ng")
    assert cache.load(KEY) == first
    second = cache.get(KEY, measure(BURSTS))  # suspect too: together they are less so
    assert second.layer_s == (1.1, 2.5)
    assert cache.load(KEY).suspect
    third = cache.get(KEY, measure(QUIET))
    assert (third.layer_s, third.suspect) == ((1.0, 2.0), "")
    assert cache.get(KEY, measure(SHARED)) == third
    assert len(measured) == 3


def test_a_profile_may_be_doubted_later(tmp_path):
    cache = ProfileCache(tmp_path)
    cache.doubt(KEY, "nothing is there")
    assert cache.load(KEY) is None
    cache.store(KEY, profile_of(QUIET))
    cache.doubt(KEY, "in serving, stage 1 took 0.52 times as long")
    assert cache.load(KEY).suspect == "in serving, stage 1 took 0.52 times as long"
    assert cache.get(KEY, lambda: profile_of(QUIET)) == cache.load(KEY)
    assert cache.load(KEY).suspect == ""


def test_files_that_do_not_tell_whether_it_was_quiet_are_measured_anew(tmp_path):
    cache = ProfileCache(tmp_path)
    cache.store(KEY, PROFILE)
    content = json.loads(cache.path(KEY).read_bytes())
    content["version"] = 1
    del content["profile"]["waited"], content["profile"]["suspect"]
    cache.path(KEY).write_text(json.dumps(content))
    assert cache.load(KEY) is None
    assert cache.get(KEY, lambda: profile_of(QUIET)).layer_s == (1.0, 2.0)


def test_failed_measurement_leaves_the_cache_as_it_was(tmp_path):
    cache = ProfileCache(tmp_path)
    cache.store(KEY, PROFILE)

    def measure():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.get(KEY, measure, refresh=True)
    assert cache.load(KEY) == PROFILE


def _write_often(directory, number):
    cache = ProfileCache(directory)
    profile = dataclasses.replace(PROFILE, layer_s=(float(number),) * 2000, spread=(0.0,) * 2000)
    for _ in range(30):
        assert cache.store(KEY, profile)
        read = cache.load(KEY)
        assert read is not None
        assert len(set(read.layer_s)) == 1  # one writer's file, never a mixture


@pytest.mark.slow
def test_concurrent_writers(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(tmp_path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_default_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path))
    assert ProfileCache().directory == tmp_path / "profiles"
    monkeypatch.delenv("ODIN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ProfileCache().directory == tmp_path / "xdg" / "odin" / "profiles"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ProfileCache().directory == tmp_path / "home" / ".cache" / "odin" / "profiles"
