"""Loads as values: their text, what is refused, their names, and how large their arrays are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odin.stages.device import Device
from odin_lab.inject.load import KINDS, Load, LoadError
from odin_lab.inject.named import NAMED, named_load
from odin_lab.inject.sizes import MIB, Cache, buffer_nbytes, last_level_cache

CPU1 = Device("cpu", (1,))
CPUS = Device("cpu", (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("cpu@cpu:1", Load("cpu", CPU1)),
        ("cpu@cpu:1*0.5x2", Load("cpu", CPU1, 0.5, 2)),
        ("membw@cpu:0-3", Load("membw", CPUS, 1.0, 4)),
        ("membw@cpu:0-3x1", Load("membw", CPUS, 1.0, 1)),
        ("cache@cpu:1*0.25~0.05s", Load("cache", CPU1, 0.25, 1, 0.05)),
        ("cpu@cpu:1*0", Load("cpu", CPU1, 0.0)),
        ("gpu-copy@gpu:0*0.5", Load("gpu-copy", Device("gpu", (0,)), 0.5)),
        ("cpu@box1x2/cpu:3x4", Load("cpu", Device("cpu", (3,), "box1x2"), 1.0, 4)),
        ("program@cpu:1 stress-ng --cpu 1", Load("program", CPU1, program="stress-ng --cpu 1")),
        ("program@cpu:0-3 sh -c 'a * x2; b'", Load("program", CPUS, program="sh -c 'a * x2; b'")),
    ],
)
def test_text_form(text, load):
    assert str(load) == text
    assert Load.parse(text) == load


devices = st.builds(
    Device, st.just("cpu"), st.sampled_from([(0,), (3,), (0, 1), (2, 3, 4)]), st.sampled_from(["", "n1"])
)


@given(
    st.builds(
        Load,
        st.sampled_from(["cpu", "membw", "cache"]),
        devices,
        st.floats(0.0, 1.0),
        st.integers(0, 64),
        st.floats(0.001, 10.0),
    )
)
def test_any_load_is_read_back_from_its_text(load):
    assert Load.parse(str(load)) == load


@pytest.mark.parametrize("text", ["", "cpu", "cpu@", "@cpu:1", "cpu@cpu:1*", "cpu@cpu:1*x2", "cpu@cpu:1x", "cpu cpu:1"])
def test_what_is_no_load(text):
    with pytest.raises(LoadError, match="is not a load: write KIND@DEVICE"):
        Load.parse(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Load("disk", CPU1), "there is no load 'disk'; there is cpu, membw"),
        (lambda: Load("cpu", CPU1, 1.5), "intensity 1.5 is not within 0 to 1"),
        (lambda: Load("cpu", CPU1, -0.1), "intensity -0.1 is not within"),
        (lambda: Load("cpu", CPU1, float("nan")), "intensity nan is not within"),
        (lambda: Load("cpu", CPU1, threads=-1), "-1 processes"),
        (lambda: Load("cpu", CPU1, threads=100_000), "100000 processes"),
        (lambda: Load("cpu", CPU1, period_s=0.0), "a period of 0 s"),
        (lambda: Load("cpu", Device("gpu", (0,))), "does not run on gpu:0; kind 'gpu' does"),
        (lambda: Load("gpu", CPU1), "does not run on cpu:1; kind 'cpu' does"),
        (lambda: Load("program", CPU1), "needs a command line"),
        (lambda: Load("program", CPU1, program="'"), "cannot be split"),
        (lambda: Load("program", CPU1, program="a\nb"), "not one line"),
        (lambda: Load("cpu", CPU1, program="ls"), "runs no program: leave 'ls' out"),
        (lambda: Load("program", CPU1, 0.5, program="ls"), "ls decides itself how hard it works"),
        (lambda: Load("program", CPU1, threads=2, program="ls"), "ls decides itself"),
        (lambda: Load.parse("cpu@cpu:1*1..2"), "is not a load"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(LoadError, match=message):
        make()


def test_processes_take_the_cores_in_turn():
    load = Load("cpu", Device("cpu", (2, 3)), threads=3)
    assert [load.core_of(number) for number in range(load.threads)] == [2, 3, 2]


def test_titles():
    assert Load("cpu", CPU1).title == "cpu"
    assert Load("program", CPU1, program="/usr/bin/stress-ng --cpu 1").title == "stress-ng"


# ---------------------------------------------------------------- names
def test_there_are_twelve_named_scenarios_of_two_kinds():
    assert len(NAMED) == len(set(NAMED.values())) == 12
    assert {load.kind for load in NAMED.values()} == {"cpu", "membw"} < set(KINDS)


def test_names_say_what_they_are():
    for name, load in NAMED.items():
        times = "" if load.threads == 1 else f"x{load.threads}"
        assert name == f"{load.kind}-{round(load.intensity * 100)}{times}"


def test_a_named_scenario_disturbs_every_core_of_a_device():
    assert named_load("cpu-100x2", CPUS) == Load("cpu", CPUS, 1.0, 8)


def test_a_misspelt_name_is_recognised():
    with pytest.raises(LoadError, match=r"no scenario is named 'cpu-10'; did you mean 'cpu-100'\? There is cpu-25, "):
        named_load("cpu-10", CPU1)


# ---------------------------------------------------------------- sizes
def make_caches(folder, caches):
    for core in (0, 1):
        for number, (kind, size, cores) in enumerate(caches):
            index = folder / f"cpu{core}" / "cache" / f"index{number}"
            index.mkdir(parents=True)
            (index / "type").write_text(f"{kind}\n")
            (index / "size").write_text(f"{size}\n")
            (index / "shared_cpu_list").write_text(f"{cores}\n")
    return folder


@pytest.fixture
def cpus(tmp_path):
    return make_caches(tmp_path, [("Data", "48K", "0"), ("Instruction", "640M", "0"), ("Unified", "32M", "0-2,7")])


def test_the_last_level_cache_is_the_largest_that_holds_data(cpus):
    assert last_level_cache(0, cpus=cpus) == Cache(32 * MIB, 4)
    assert last_level_cache(9, cpus=cpus) is None


@pytest.mark.parametrize(
    ("load", "free_nbytes", "nbytes"),
    [
        (Load("cpu", CPU1), 0, 0),
        (Load("cache", CPU1), 8000 * MIB, 8 * MIB),  # a fourth of a cache that four share
        (Load("membw", CPU1), 8000 * MIB, 256 * MIB),  # twice the cache would be little
        (Load("membw", CPU1, threads=8), 4000 * MIB, 125 * MIB),  # an eighth of a fourth of what is free
        (Load("membw", CPU1), 256 * MIB, 64 * MIB),
    ],
)
def test_arrays_are_as_large_as_caches_and_memory_tell(cpus, load, free_nbytes, nbytes):
    assert buffer_nbytes(load, free_nbytes=free_nbytes, cpus=cpus) == nbytes


def test_a_huge_cache_is_not_outdone(tmp_path):
    cpus = make_caches(tmp_path, [("Unified", "4G", "0-1")])
    assert buffer_nbytes(Load("membw", CPU1), free_nbytes=2**40, cpus=cpus) == 1024 * MIB


def test_an_unknown_cache_is_taken_for_an_ordinary_one(tmp_path):
    assert buffer_nbytes(Load("cache", CPU1), free_nbytes=2**40, cpus=tmp_path) == 32 * MIB


def test_too_little_memory_is_said(cpus):
    with pytest.raises(LoadError, match="each process needs 64 MiB, but only 31 MiB may be taken"):
        buffer_nbytes(Load("membw", CPU1, threads=2), free_nbytes=255 * MIB, cpus=cpus)
