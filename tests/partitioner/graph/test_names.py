"""Layers are named after their modules."""

from __future__ import annotations

from odin.partitioner.graph.names import layer_names


def heavy(*paths: str) -> list[tuple[str, bool]]:
    return [(path, True) for path in paths]


def test_one_module():
    assert layer_names([[*heavy("conv1"), ("maxpool", False)], heavy("fc")]) == ["conv1", "fc"]


def test_common_module():
    assert layer_names([heavy("layer1.0.conv1", "layer1.0.conv2"), heavy("layer1.1.conv1", "layer1.1.conv2")]) == [
        "layer1.0",
        "layer1.1",
    ]


def test_a_module_that_also_lies_in_another_layer_does_not_lend_its_name():
    assert layer_names([heavy("b.l1.c1", "b.l1.c2", "b.l2.c1"), heavy("b.l2.c2", "b.l3.c1")]) == [
        "b.l1..l2.c1",
        "b.l2.c2..l3",
    ]


def test_no_common_module():
    assert layer_names([heavy("conv1", "layer1.0.conv1"), heavy("layer1.0.conv2")]) == [
        "conv1..layer1.0.conv1",
        "layer1.0.conv2",
    ]


def test_a_module_called_twice():
    assert layer_names([heavy("conv"), heavy("conv"), heavy("conv")]) == ["conv", "conv#2", "conv#3"]


def test_without_heavy_steps_all_count():
    assert layer_names([[("a.x", False), ("a.y", False)]]) == ["a"]
    assert layer_names([[]]) == ["identity"]
