"""The GPU executor, on a GPU: any range, moves, overlapping requests, layers as CUDA graphs, slots, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from layers import images, small_chain

from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.cuda import CudaExecutor, computing_as
from odin.stages.compute.executor import LayerError, Values, make_executor
from odin.stages.device import DeviceError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class OnGpu:
    """A layer made of a function of all values, with one weight."""

    output_bounds = ()

    def __init__(self, name: str, function: Callable[[Values, torch.Tensor], Values]) -> None:
        self.name = name
        self.state_names = (name,)
        self._function = function

    def bind(self, state, *, device=None, keep_nan=False):
        weight = state[self.name]
        return lambda values: self._function(values, weight)


def run(executor: CudaExecutor, first: int, last: int, *values: torch.Tensor) -> Values:
    return tuple(value.cpu() for value in executor.finish(executor.launch(first, last, values)).values)


def calibrate(executor: CudaExecutor, count: int, *values: torch.Tensor) -> None:
    with executor.calibrating():
        for _ in range(3):
            run(executor, 0, count, *values)


@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16"])
def test_any_range_after_any_other(precision: str):
    chain = small_chain()
    count = len(chain.layers)
    executor = make_executor("gpu", chain.program.layers, chain.state, precision=precision)
    ring = SlotMemory(2, 2**20)
    executor.adopt(ring)
    (image,) = images(1)
    tolerance = 1e-4 if precision == "float32" else 5e-2
    (expected,) = chain.run((image,))
    with computing_as(precision):
        for cut in [*range(count + 1)] * 2:  # the second time with graphs
            executor.prepare(0, count)
            if cut == count:
                calibrate(executor, count, image)
            values = ring.read(0, ring.write(0, (image,)))
            for first, last in ((0, cut), (cut, count)):
                result = executor.finish(executor.launch(first, last, values))
                assert len(result.layer_s) == last - first
                values = ring.read(1, ring.write(1, result.values))
                executor.retain(((cut, count),))
            assert values[0].dtype is torch.float32
            assert torch.allclose(values[0], expected, atol=tolerance)


def test_slots_where_others_lay_are_page_locked_anew():
    """Slots that went without being unlocked left their addresses locked: CUDA copied to and from pages long gone."""
    chain = small_chain()
    count = len(chain.layers)
    (image,) = images(1)
    (expected,) = chain.run((image,))
    addresses = []
    for _ in range(4):
        executor = make_executor("gpu", chain.program.layers, chain.state)
        executor.prepare(0, count)
        ring = SlotMemory(2, 2**20)
        addresses.append(ring.address)
        executor.adopt(ring)
        assert ring.read(0, ring.write(0, (image,)))[0].is_pinned()
        result = executor.finish(executor.launch(0, count, ring.read(0, ring.write(0, (image,)))))
        (answer,) = ring.read(1, ring.write(1, result.values))
        assert torch.allclose(answer, expected, atol=1e-2)
        del executor, ring, answer, result
    assert len(set(addresses)) < 4, "no address came again: the test shows nothing"


def test_a_layer_as_a_graph_gives_the_same_bits():
    chain = small_chain()
    count = len(chain.layers)
    executor = make_executor("gpu", chain.program.layers, chain.state)
    executor.prepare(0, count)
    inputs = [*images(5), torch.cat(images(3)), *images(2)]
    eager = run(executor, 0, count, inputs[0])[0]
    calibrate(executor, count, inputs[0])
    for _ in range(count + 1):  # one layer with each request
        run(executor, 0, count, inputs[5])
    assert not executor.refused
    assert all(len(rehearsal._captured) == 2 for rehearsal in executor._rehearsals.values())
    for image in inputs:
        (expected,) = chain.run((image,))
        assert torch.allclose(run(executor, 0, count, image)[0], expected, atol=1e-4)
    assert torch.equal(run(executor, 0, count, inputs[0])[0], eager)


def test_layers_are_captured_again_as_often_as_they_come_back():
    """The memory that graphs share was given up with the last one, and refused to those that came after."""
    chain = small_chain()
    count = len(chain.layers)
    executor = make_executor("gpu", chain.program.layers, chain.state)
    (image,) = images(1)
    (expected,) = chain.run((image,))
    for _ in range(4):
        executor.prepare(0, count)
        calibrate(executor, count, image)
        for _ in range(2):
            executor.retain(())
            executor.prepare(0, count)
            assert not executor.refused
            assert all(rehearsal._captured for rehearsal in executor._rehearsals.values())
            assert torch.allclose(run(executor, 0, count, image)[0], expected, atol=1e-4)


def test_a_request_that_is_launched_before_the_last_is_fetched_leaves_it_alone():
    chain = small_chain()
    count = len(chain.layers)
    executor = make_executor("gpu", chain.program.layers, chain.state)
    executor.prepare(0, count)
    inputs = images(8)
    calibrate(executor, count, inputs[0])
    tickets = [executor.launch(0, count, (image,)) for image in inputs]
    answers = [executor.finish(ticket).values[0].cpu() for ticket in tickets]
    for image, answer in zip(inputs, answers, strict=True):
        assert torch.allclose(answer, chain.run((image,))[0], atol=1e-4)


def several_values() -> tuple[list[OnGpu], dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Layers between which one value is computed, one passed on from far before, and they change places."""
    layers = [
        OnGpu("a", lambda v, w: (v[0] * w, v[0])),
        OnGpu("b", lambda v, w: (v[0] + w, v[1])),
        OnGpu("c", lambda v, w: (v[1], (v[0] * w).relu())),
        OnGpu("d", lambda v, w: (v[1] - w, v[0], v[0])),
        OnGpu("e", lambda v, w: (v[0] + v[1] * v[2] + w,)),
    ]
    for layer, values in zip(layers, (2, 2, 2, 3, 1), strict=True):
        layer.output_bounds = (float("inf"),) * values
    state = {layer.name: torch.tensor(0.5 + number) for number, layer in enumerate(layers)}

    def expected(x: torch.Tensor) -> torch.Tensor:
        values: Values = (x,)
        for layer in layers:
            values = layer._function(values, state[layer.name])
        return values[0]

    return layers, state, expected


def test_values_that_pass_layers_by_stay_right_in_any_order_of_captures():
    layers, state, expected = several_values()
    executor = CudaExecutor(layers, state, index=0)
    generator = torch.Generator().manual_seed(0)
    executor.prepare(0, 5)
    calibrate(executor, 5, torch.randn(3, 5))
    cuts = [*itertools.combinations_with_replacement(range(6), 2)]
    for turn in range(4):
        for number in torch.randperm(len(cuts), generator=generator).tolist():
            x = torch.randn(4 if turn % 2 else 3, 5, generator=generator)
            values: Values = (x,)
            ranges = list(itertools.pairwise((0, *cuts[number], 5)))
            for first, last in ranges:
                executor.prepare(first, last)
                values = run(executor, first, last, *values)
            assert torch.equal(values[0], expected(x))
            executor.retain(ranges[number % 3 : number % 3 + 1])


def test_a_layer_that_cannot_be_captured_runs_as_it_is():
    def waits(values: Values, weight: torch.Tensor) -> Values:
        return (values[0] * (2.0 if float(values[0].sum()) > 0 else weight),)

    layers = [OnGpu("a", lambda v, w: (v[0] + w,)), OnGpu("b", waits), OnGpu("c", lambda v, w: (v[0] + w,))]
    for layer in layers:
        layer.output_bounds = (float("inf"),)
    state = {name: torch.tensor(3.0) for name in "abc"}
    executor = CudaExecutor(layers, state, index=0)
    executor.prepare(0, 3)
    calibrate(executor, 3, torch.ones(4))
    for _ in range(6):
        assert run(executor, 0, 3, torch.ones(4))[0].tolist() == [11.0] * 4
        assert run(executor, 0, 3, -4 * torch.ones(4))[0].tolist() == [0.0] * 4
    assert list(executor.refused) == ["b"]
    assert executor._rehearsals[2]._captured
    assert not executor._graph_memory.failed


def test_a_layer_that_raises_is_named_and_the_next_request_is_served():
    def picky(values: Values, weight: torch.Tensor) -> Values:
        if values[0].shape[0] > 4:
            raise ArithmeticError("too many")
        return (values[0] + weight,)

    layer = OnGpu("picky", picky)
    layer.output_bounds = (float("inf"),)
    executor = CudaExecutor([layer], {"picky": torch.tensor(1.0)}, index=0)
    executor.prepare(0, 1)
    calibrate(executor, 1, torch.zeros(2))
    for _ in range(3):
        assert run(executor, 0, 1, torch.zeros(2))[0].tolist() == [1.0, 1.0]
        with pytest.raises(LayerError, match="layer picky raised"):
            run(executor, 0, 1, torch.zeros(5))


def test_moves_to_and_fro_keep_no_memory():
    """Each move copied on a stream of its own, and what PyTorch keeps for reuse is kept for each stream."""
    chain = small_chain()
    count = len(chain.layers)
    executor = make_executor("gpu", chain.program.layers, chain.state)
    (image,) = images(1)
    executor.prepare(0, count)
    calibrate(executor, count, image)

    def move() -> None:
        executor.prepare(0, count)
        for _ in range(3):
            run(executor, 0, count, image)
        executor.retain(((0, 1),))

    for _ in range(5):
        move()
    before = torch.cuda.memory_reserved()
    for _ in range(60):
        move()
    assert torch.cuda.memory_reserved() <= before + 16 * 2**20  # a stream each would have kept some 100 MiB


def test_a_full_gpu_is_told_with_the_remedy_and_what_was_there_stays():
    state = {"small": torch.ones(4), "large": torch.ones(2**26)}
    layers = [OnGpu("small", lambda v, w: (v[0] + w,)), OnGpu("large", lambda v, w: (v[0] + w[:4],))]
    for layer in layers:
        layer.output_bounds = (float("inf"),)
    executor = CudaExecutor(layers, state, index=0)
    executor.prepare(0, 1)
    torch.cuda.empty_cache()
    hold = torch.empty(torch.cuda.mem_get_info(0)[0] - 100 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(
            DeviceError, match=r"gpu:0 has no room for layers 0 to 1: .* take 256 MiB, .* MiB are free; "
        ):
            executor.prepare(0, 2)
        assert run(executor, 0, 1, torch.zeros(4))[0].tolist() == [1.0] * 4
    finally:
        del hold
        torch.cuda.empty_cache()
    executor.prepare(0, 2)
    assert run(executor, 0, 2, torch.zeros(4))[0].tolist() == [2.0] * 4
