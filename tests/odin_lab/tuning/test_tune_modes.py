"""The two ways to use cores, what they print, and which devices they refuse."""

from __future__ import annotations

import doctest
import tomllib

import pytest

from odin.stages.device import DeviceError, parse_devices
from odin_lab.tuning import campaign, modes, serving
from odin_lab.tuning.modes import Mode, modes_of, options_text, toml_text


@pytest.mark.parametrize("module", [modes, campaign, serving], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)


def of(stages: str, **options: int) -> list[tuple[str, tuple[str, ...], int]]:
    return [tuple(mode) for mode in modes_of(parse_devices(stages), **{"batch": 8, **options})]


def test_one_stage_with_batches_and_an_instance_on_each_core():
    batch, instances = ("batch", ("cpu:2-3",), 8), ("instances", ("cpu:2", "cpu:3"), 2)
    assert of("cpu:2-3") == of("cpu:3,cpu:2") == [batch, instances]


def test_more_instances_than_cores_share_them():
    assert of("cpu:0,cpu:1", instances=3)[1] == ("instances", ("cpu:0", "cpu:1", "cpu:0"), 3)


def test_one_core_has_one_mode_unless_instances_are_to_share_it():
    assert of("cpu:1") == [("batch", ("cpu:1",), 8)]
    assert of("cpu:1", instances=2) == [("batch", ("cpu:1",), 8), ("instances", ("cpu:1", "cpu:1"), 2)]


def test_either_can_be_left_out():
    assert [mode[0] for mode in of("cpu:0-1", batch=1)] == ["instances"]
    assert [mode[0] for mode in of("cpu:0-1", instances=1)] == ["batch"]
    assert of("cpu:0", batch=1) == [("batch", ("cpu:0",), 1)]


def test_a_gpu_has_batches():
    assert of("gpu:0") == [("batch", ("gpu:0",), 8)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("cpu:0,gpu:0", "give cores of one machine, or one GPU"),
        ("gpu:0,gpu:1", "give one GPU"),
        ("cpu:0,cpu:2", "cores 0, 2 are not one range"),
        ("cpu:0-1,cpu:1", "name each core once"),
    ],
)
def test_devices_that_no_mode_fits(stages, message):
    with pytest.raises(DeviceError, match=message):
        of(stages)


def test_as_much_is_under_way_as_is_computed_at_a_time():
    batch, instances = modes_of(parse_devices("cpu:0-1"), batch=8)
    assert (batch.clients(5), batch.samples(5), instances.clients(2), instances.samples(2)) == (1, 5, 2, 1)


@pytest.mark.parametrize(
    ("mode", "value", "fields"),
    [
        (Mode("batch", ("cpu:0-1",), 16), 4, {"stages": ["cpu:0-1"], "batch": 4, "dynamic_batching": True}),
        (Mode("batch", ("cpu:0-1",), 16), 1, {"stages": ["cpu:0-1"]}),
        (Mode("instances", ("cpu:0", "cpu:1", "cpu:0"), 3), 1, {"stages": ["cpu:0", "cpu:1"]}),
        (Mode("instances", ("cpu:0", "cpu:1", "cpu:0"), 3), 3, {"stages": ["cpu:0", "cpu:1", "cpu:0"]}),
    ],
)
def test_what_to_write_in_a_models_file_is_toml(mode, value, fields):
    text = toml_text("resnet50", mode, value, latency_s=0.25)
    assert tomllib.loads(text) == {"source": "resnet50", "latency_ms": 250, **fields}


def test_what_to_write_in_a_program_shares_devices_where_it_must():
    shared = options_text("m", Mode("instances", ("cpu:0", "cpu:0"), 2), 2, latency_s=0.1)
    assert "stages=['cpu:0', 'cpu:0'], share_devices=True)" in shared
    assert "share_devices" not in options_text("m", Mode("batch", ("cpu:0",), 8), 4, latency_s=0.1)
