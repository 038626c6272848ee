"""The benchmark of computing: what is compared with what, and that the runtimes compute what torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import odin
from benchmarks.compute import (
    ENGINES,
    aligned,
    batched,
    compare,
    engine_runner,
    evaluate,
    relative_error,
    runtime_runner,
)
from benchmarks.exported import export, read_form
from benchmarks.runtimes import RUNTIMES, check_runtimes, installed_runtimes, open_runtime
from odin.partitioner.engines.runtimes import keeping_signal_stack

SMALL = "bench_models:residual"
needs_runtimes = pytest.mark.skipif(installed_runtimes() != RUNTIMES, reason="a runtime is not installed")


def test_the_fastest_engine_is_held_against_the_better_runtime_round_by_round() -> None:
    seconds = {
        "ODIN, torch": [4.0, 8.0, 4.0],
        "ODIN, other": [3.0, 6.0, 3.0],
        "torch eager": [9.0, 9.0, 9.0],
        "ONNX Runtime": [2.0, 5.0, 2.0],
        "OpenVINO": [2.5, 1.0, 2.5],
    }
    rows, comparison = evaluate("m", seconds, dict.fromkeys(seconds, 0.0))
    assert (comparison.engine, comparison.runtime) == ("other", "ONNX Runtime")
    assert comparison.ratio.median == 1.5
    assert [row.runtime for row in rows] == list(seconds)
    assert [row.to_better.median for row in rows] == [2.0, 1.5, 4.5, 1.0, 1.25]


def test_an_engine_that_odin_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no engine 'nonsense': choose from torch"):
        engine_runner("nonsense", SMALL, batch=1, threads=1)


def test_runtimes_that_are_not_installed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runtime 'tflite'"):
        check_runtimes(["torch", "tflite"])
    with pytest.raises(ValueError, match="no runtime 'tflite'"):
        open_runtime("tflite", tmp_path)


@needs_runtimes
@pytest.mark.slow
def test_one_model_with_every_runtime() -> None:
    engines = ENGINES[:2]  # torch, and one that computes in sessions
    rows, comparison = compare(SMALL, engines=engines, batch=2, threads=1, rounds=1, seed=0)
    own = [f"ODIN, {engine}" for engine in engines]
    assert [row.runtime for row in rows] == [*own, "torch eager", "ONNX Runtime", "OpenVINO"]
    assert max(row.error for row in rows) < 1e-4
    assert comparison.engine in engines


def test_weights_are_aligned_as_in_shared_memory() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    there = aligned(array)
    assert there.ctypes.data % 64 == 0
    assert np.array_equal(there, array)


@needs_runtimes
@pytest.mark.slow
def test_runtimes_read_and_write_the_arrays_that_they_are_bound_to(tmp_path: Path) -> None:
    source = odin.load_source(SMALL)
    args = batched(source.example_args, 3)
    export(source, tmp_path, RUNTIMES, args=args)
    expected = source.model(*args).detach().numpy()
    for name in RUNTIMES:
        form = read_form(tmp_path, name)
        assert [spec.shape for spec in form.inputs] == [(3, 3, 32, 32)]
        image, output = (np.zeros(spec.shape, spec.dtype) for spec in (*form.inputs, *form.outputs))
        with keeping_signal_stack():
            run = open_runtime(name, tmp_path)([image], [output])
        run()
        assert relative_error(output, expected) > 0.01
        image[:] = args[0].numpy()
        run()
        assert relative_error(output, expected) < 1e-4
        with keeping_signal_stack(), pytest.raises(ValueError, match="a runtime takes plain ones"):
            open_runtime(name, tmp_path)([image.transpose(0, 1, 3, 2)], [output])
        images = [tensor.numpy() for tensor in args]
        assert relative_error(runtime_runner(name, tmp_path, images, threads=1)(), expected) < 1e-4
