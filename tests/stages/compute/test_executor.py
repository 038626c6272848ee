"""Executors: any range of layers, complete times, errors with the layer's name, weights left where they are."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from layers import FakeLayer, images, small_chain

from odin.stages.channel.slots import SlotMemory
from odin.stages.compute.executor import LayerError, make_executor
from odin.stages.compute.torch_cpu import CpuExecutor
from odin.stages.compute.torch_weights import load, store
from odin.stages.compute.weights import StoredTensor


def run(executor: CpuExecutor, first: int, last: int, *values: torch.Tensor):
    return executor.finish(executor.launch(first, last, values))


def test_any_ranges_one_after_the_other_give_the_chains_result_bit_for_bit():
    chain = small_chain()
    count = len(chain.layers)
    assert count >= 5
    executor = CpuExecutor(chain.program.layers, chain.state)
    (image,) = images(1)
    (expected,) = chain.run((image,))
    for cuts in itertools.combinations_with_replacement(range(count + 1), 2):
        values = (image,)
        for first, last in itertools.pairwise((0, *cuts, count)):
            executor.prepare(first, last)
            values = run(executor, first, last, *values).values
        assert torch.equal(values[0], expected)


def test_times_are_complete_and_add_up():
    chain = small_chain()
    executor = CpuExecutor(chain.program.layers, chain.state)
    result = run(executor, 0, len(chain.layers), *images(1))
    assert len(result.layer_s) == len(chain.layers)
    assert all(layer_s > 0 for layer_s in result.layer_s)
    assert sum(result.layer_s) == pytest.approx(result.wall_s, rel=1e-6)
    assert result.cpu_s > 0
    assert result.run_delay_s >= 0


def test_an_empty_range_passes_values_through_in_no_time():
    chain = small_chain()
    (image,) = images(1)
    result = run(CpuExecutor(chain.program.layers, chain.state), 2, 2, image)
    assert result.values == (image,)
    assert (result.wall_s, result.layer_s) == (0.0, ())


@pytest.mark.parametrize(("threads", "cpu_s"), [(1, 0.25), (2, 1.0)])
def test_cpu_time_is_the_threads_or_with_several_threads_the_processs(
    monkeypatch: pytest.MonkeyPatch, threads: int, cpu_s: float
):
    used_s = {"thread": 5.0, "process": 7.0}

    def work(values: torch.Tensor) -> torch.Tensor:
        used_s["thread"] += 0.25  # of this one ...
        used_s["process"] += 0.25 + 0.75  # ... and of a helper
        return values

    monkeypatch.setattr("time.thread_time", lambda: used_s["thread"])
    monkeypatch.setattr("time.process_time", lambda: used_s["process"])
    executor = CpuExecutor([FakeLayer("a", work)], {}, threads=threads)
    assert run(executor, 0, 1, torch.zeros(1)).cpu_s == cpu_s


def test_times_are_those_of_the_thread_that_runs_the_layers_now():
    # The thread that profiled is another than the one that serves, and may have ended.
    threads: list[int] = []

    def note_thread(values: torch.Tensor) -> torch.Tensor:
        threads.append(threading.get_native_id())
        return values

    executor = CpuExecutor([FakeLayer("a", note_thread)], {})
    for _ in range(2):
        thread = threading.Thread(target=run, args=(executor, 0, 1, torch.zeros(1)))
        thread.start()
        thread.join()
        assert executor._run_delay.thread == threads[-1]
    assert run(executor, 0, 1, torch.zeros(1)).run_delay_s >= 0
    assert executor._run_delay.thread == threading.get_native_id()


def test_an_exception_names_its_layer_and_the_executor_goes_on():
    def refuse_negative(values: torch.Tensor) -> torch.Tensor:
        if values.min() < 0:
            raise ArithmeticError("below zero")
        return values + 1

    layers = [
        FakeLayer("first", lambda x: x),
        FakeLayer("second", refuse_negative),
        FakeLayer("third", lambda x: 2 * x),
    ]
    executor = CpuExecutor(layers, {})
    with pytest.raises(LayerError, match="layer second raised") as caught:
        run(executor, 0, 3, -torch.ones(1))
    assert caught.value.layer == "second"
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert run(executor, 0, 3, torch.ones(1)).values[0].tolist() == [4.0]


def test_layers_run_in_inference_mode():
    modes: list[bool] = []

    def note_mode(values: torch.Tensor) -> torch.Tensor:
        modes.append(torch.is_inference_mode_enabled())
        return values

    run(CpuExecutor([FakeLayer("a", note_mode)], {}), 0, 1, torch.zeros(1))
    assert modes == [True]
    assert not torch.is_inference_mode_enabled()


def test_weights_in_memory_that_cannot_be_written_are_read_in_place(tmp_path: Path):
    # The file is mapped read-only: a write, or torch's wish to write, would end this process.
    chain = small_chain()
    path = tmp_path / "weights"
    stored, offsets = store(chain.state), {}
    with path.open("wb") as file:
        for name, entry in stored.items():
            offsets[name] = file.tell()
            file.write(entry.data.tobytes() + bytes(-entry.data.nbytes % 64))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    state = load(
        {
            name: StoredTensor(mapped[offsets[name] : offsets[name] + entry.data.size], *entry[1:])
            for name, entry in stored.items()
        }
    )
    executor = CpuExecutor(chain.program.layers, state)
    for image in images(3):
        result = run(executor, 0, len(chain.layers), image)
        assert torch.equal(result.values[0], chain.run((image,))[0])
    start = mapped.ctypes.data
    assert all(start <= tensor.data_ptr() < start + mapped.nbytes for tensor in state.values())


def test_adopting_and_retaining_change_nothing_on_a_cpu():
    chain = small_chain()
    executor = CpuExecutor(chain.program.layers, chain.state)
    executor.adopt(SlotMemory(1, 64))
    executor.retain(())
    (image,) = images(1)
    assert torch.equal(run(executor, 0, len(chain.layers), image).values[0], chain.run((image,))[0])


def test_make_executor():
    chain = small_chain()
    executor = make_executor("cpu", chain.program.layers, chain.state, threads=2, precision="float16")
    assert isinstance(executor, CpuExecutor)
    assert not executor.overlaps
    with pytest.raises(ValueError, match="precision 'int3' is unknown; choose one of float32, tf32, float16, bfloat16"):
        make_executor("cpu", chain.program.layers, chain.state, precision="int3")


def test_another_engine_than_pytorch_does_not_run_on_gpus():
    with pytest.raises(ValueError, match="engine 'onnxruntime' does not run on GPUs; take engine='torch'"):
        make_executor("gpu", "the model", "its weights", engine="onnxruntime")
