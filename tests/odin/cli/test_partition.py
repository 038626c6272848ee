"""``odin partition``: its report, its tables, and its errors, on a small network."""

import io
import json
import math
import os
import threading

import pytest
import torch
from rich.console import Console
from torch import nn

from odin.cli.main import main
from odin.cli.partition_report import LayerRow, PartitionReport, StageRow, render_partition
from odin.cli.partitioning import partition
from odin.control.local_profile import check_local, local_devices, pinned, type_of
from odin.partitioner.chain import build_chain
from odin.partitioner.plan import Plan
from odin.partitioner.profile import LayerTimes, Profile, ProfileCache, ProfileKey
from odin.partitioner.transfer import TransferCost
from odin.stages.device import Device, DeviceError, usable_cores

CORES = usable_cores()
FREE = TransferCost(hop_s=0.0, copy_s_per_byte=0.0)
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


def small_chain():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(4)]
    return build_chain(nn.Sequential(*blocks).eval(), (torch.zeros(1, 4, 16, 16),), name="small")


@pytest.fixture
def cache(tmp_path):
    return ProfileCache(tmp_path / "profiles")


def remember(cache, chain, device, layer_s, batch=1):
    """Put known times where the command looks for measured ones."""
    key = ProfileKey(chain.fingerprint, ((batch, 4, 16, 16),), "float32", type_of(device))
    profile = Profile(type_of(device), tuple(layer_s), (0.25,) * len(layer_s), 10, batch, "now", torch.__version__)
    cache.store(key, profile)


@two_cores
def test_report_from_known_times(cache):
    chain = small_chain()
    devices = [Device("cpu", (core,)) for core in CORES[:2]]
    remember(cache, chain, devices[0], (4.0, 2.0, 1.0, 1.0))
    report = partition(chain, devices, cache=cache, transfer=FREE)
    assert (report.plan, report.best_plan) == (Plan((1, 3)), Plan((1, 3)))
    assert (report.bottleneck_s, report.throughput_hz, report.fluid_hz) == (4.0, 0.25, 0.25)
    assert report.efficiency == 1.0
    assert report.spread == 0.25
    assert [(row.first, row.last, row.total_s) for row in report.stages] == [(0, 1, 4.0), (1, 4, 4.0)]
    assert [row.stage for row in report.layers] == [0, 1, 1, 1]
    assert [row.output_nbytes for row in report.layers] == [4 * 4 * 16 * 16] * 4
    assert report.device_types == (type_of(devices[0]),)  # two cores, one type, one profile


@two_cores
def test_a_given_plan_is_shown_beside_the_best(cache):
    chain = small_chain()
    devices = [Device("cpu", (core,)) for core in CORES[:2]]
    remember(cache, chain, devices[0], (4.0, 2.0, 1.0, 1.0))
    report = partition(chain, devices, plan=Plan((2, 2)), cache=cache, transfer=FREE)
    assert (report.plan, report.bottleneck_s) == (Plan((2, 2)), 6.0)
    assert (report.best_plan, report.best_bottleneck_s) == (Plan((1, 3)), 4.0)
    with pytest.raises(ValueError, match=r"plan 2\|1 spreads 3 layers, the model has 4"):
        partition(chain, devices, plan=Plan((2, 1)), cache=cache, transfer=FREE)
    with pytest.raises(ValueError, match=r"plan 4 has 1 stages, the pipeline has 2"):
        partition(chain, devices, plan=Plan((4,)), cache=cache, transfer=FREE)


@two_cores
def test_cores_together_are_a_device_type_of_their_own():
    one, both = Device("cpu", CORES[:1]), Device("cpu", CORES[:2])
    assert type_of(one) != type_of(both)
    assert type_of(both).startswith("cpu x2 ")


def test_batch_scales_bytes_and_flops(cache):
    chain = small_chain()
    device = Device("cpu", CORES[:1])
    remember(cache, chain, device, (1.0,) * 4)
    remember(cache, chain, device, (3.0,) * 4, batch=3)
    single = partition(chain, [device], cache=cache, transfer=FREE)
    triple = partition(chain, [device], batch=3, cache=cache, transfer=FREE)
    assert (single.batch, triple.batch) == (1, 3)
    assert [row.output_nbytes for row in triple.layers] == [3 * row.output_nbytes for row in single.layers]
    assert [row.flops for row in triple.layers] == [3 * row.flops for row in single.layers]
    assert [row.parameter_nbytes for row in triple.layers] == [row.parameter_nbytes for row in single.layers]
    assert triple.bottleneck_s == 12.0
    with pytest.raises(ValueError, match="batch is 0; a request has at least one image"):
        partition(chain, [device], batch=0, cache=cache, transfer=FREE)


def test_transfer_is_part_of_a_stage(cache):
    chain = small_chain()
    device = Device("cpu", CORES[:1])
    remember(cache, chain, device, (1.0,) * 4)
    report = partition(chain, [device], cache=cache, transfer=TransferCost(0.5, 2.0**-12))
    # Half a hop to receive; half a hop and the copy of 4,096 bytes to send.
    assert (report.stages[0].compute_s, report.stages[0].transfer_s) == (4.0, 1.5)


def test_measured_once_then_from_the_cache(cache, monkeypatch):
    monkeypatch.setattr(LayerTimes, "suspect", property(lambda self: ""))  # else it is measured again on a busy machine
    chain = small_chain()
    device = Device("cpu", CORES[:1])
    first = partition(chain, [device], cache=cache, transfer=FREE)
    assert all(row.layer_s[0] > 0 for row in first.layers)
    assert partition(chain, [device], cache=cache, transfer=FREE) == first


def test_more_stages_than_layers(cache):
    chain = build_chain(nn.Conv2d(1, 1, 1).eval(), (torch.zeros(1, 1, 4, 4),))
    devices = [Device("cpu", (core,)) for core in CORES[:2]]
    if len(devices) == 2:
        with pytest.raises(ValueError, match="2 stages for 1 layers: use at most 1"):
            partition(chain, devices, cache=cache, transfer=FREE)


def test_binding_is_undone():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with pinned(Device("cpu", CORES[-1:])):
        assert os.sched_getaffinity(0) == {CORES[-1]}
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == before
    assert torch.get_num_threads() == threads


def test_binding_reaches_threads_that_exist_already():
    ask, told, seen = threading.Event(), threading.Event(), []

    def other():
        ask.wait()
        seen.append(os.sched_getaffinity(0))
        told.set()

    thread = threading.Thread(target=other)
    thread.start()
    with pinned(Device("cpu", CORES[:1])):
        ask.set()
        told.wait()
    thread.join()
    assert seen == [{CORES[0]}]


def test_devices_that_cannot_be_used():
    with pytest.raises(DeviceError, match=r"edge7/cpu:0 is on another node.*'odin run' profiles remote devices"):
        check_local([Device("cpu", (0,), "edge7")])
    with pytest.raises(DeviceError, match=r"no usable core 9999.*usable cores: "):
        check_local([Device("cpu", (9999,))])
    with pytest.raises(DeviceError, match=r"there is no gpu:999 (that torch can use here; there is |on this machine)"):
        check_local([Device("gpu", (999,))])
    with pytest.raises(DeviceError, match=f"two stages are on cpu:{CORES[0]}"):
        check_local([Device("cpu", CORES[:1])] * 2)


def test_auto_takes_no_more_devices_than_layers():
    assert len(local_devices(1)) == 1


XEON, GPU = "cpu x1 Intel(R) Xeon(R) Processor", "gpu NVIDIA H100"


def report_of_two_types(name="layer"):
    layers = tuple(
        LayerRow(i, f"{name}{i}", (0.010 * (i + 1), 0.001), 3_210_000, 462_000_000, 300_000, 0 if i < 2 else 2)
        for i in range(4)
    )
    stages = (
        StageRow(0, "cpu:0", XEON, 0, 2, 0.030, 0.0005),
        StageRow(1, "cpu:10-13", XEON, 2, 2, 0.0, 0.0005),
        StageRow(2, "gpu:0", GPU, 2, 4, 0.002, 0.0005),
    )
    plan = Plan((2, 0, 2))
    return PartitionReport(
        "net", 4, (XEON, GPU), layers, stages, plan, Plan((1, 0, 3)), 0.0305, 0.0105, 270.0, 0.04
    )  # fmt: skip


def rendered(report, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_partition(report))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_tables():
    assert (
        rendered(report_of_two_types(), 80)
        == """\
#  layer     ms A  ms B  share       out MB  MFLOP  par MB  stage
──────────────────────────────────────────────────────────────────
0  layer0   10.00  1.00  █▋   10.0%    3.21    462    0.30      0
1  layer1   20.00  1.00  ███▎ 20.0%    3.21    462    0.30      0

2  layer2   30.00  1.00  ████ 25.0%    3.21    462    0.30      2
3  layer3   40.00  1.00  ████ 25.0%    3.21    462    0.30      2

   total   100.00  4.00                       1848    1.20

stage  device     layers  first   last    run ms  hop ms  total ms
───────────────────────────────────────────────────────────────────────────
    0  cpu:0           2  layer0  layer1   30.00    0.50     30.50  ██████
    1  cpu:10-13       0  -       -         0.00    0.50      0.50  ▏
    2  gpu:0           2  layer2  layer3    2.00    0.50      2.50  ▌

plan 2|0|2: bottleneck 30.50 ms, predicted 131.15 images/s
fluid bound 1080.00 images/s, efficiency 12.1%; noise while profiling 4%
best plan 1|0|3: bottleneck 10.50 ms
A = cpu x1 Intel(R) Xeon(R) Processor
B = gpu NVIDIA H100
engine torch""".splitlines()
    )


def test_long_names_do_not_cost_numbers_at_80_columns():
    lines = rendered(report_of_two_types("features.denseblock1.denselayer16.conv"), 80)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for number in ("10.00", "3.21", "462", "30.50", "run ms", "stage", "cpu:10-13"):
        assert number in text


def test_markup_in_names_is_text():
    assert any("[bold]0" in line for line in rendered(report_of_two_types("[bold]"), 100))


def test_json_is_plain_and_complete():
    content = json.loads(json.dumps(report_of_two_types().to_json(), allow_nan=False))
    assert content["plan"] == "2|0|2"
    assert content["best_plan"] == "1|0|3"
    assert content["stages"][1]["total_s"] == 0.0005
    assert content["layers"][3]["layer_s"] == [0.04, 0.001]


FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "odin_partition_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return "odin_partition_factory:make"


def test_command(factory, capsys, tmp_path):
    command = ["partition", factory, "--stages", f"cpu:{CORES[0]}", "--image-size", "16"]
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["plan"] == str(len(content["layers"]))
    assert math.isclose(content["efficiency"], content["throughput_hz"] / content["fluid_hz"])
    assert len(list((tmp_path / "cache" / "profiles").iterdir())) == 1
    assert main(command) == 0
    assert f"plan {content['plan']}: bottleneck" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "cpu:9999"], "no usable core 9999"),
        (["--stages", "node/cpu:0"], "is on another node"),
        (["--stages", "disk:0"], "is not a device"),
        (["--stages", f"cpu:{CORES[0]}", "--plan", "a|b"], "is not a plan"),
        (["--stages", f"cpu:{CORES[0]}", "--plan", "1|1"], "has 2 stages, the pipeline has 1"),
    ],
)
def test_command_errors(factory, capsys, options, message):
    assert main(["partition", factory, "--image-size", "16", *options]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("odin partition: ")
    assert message in error
