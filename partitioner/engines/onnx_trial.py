"""What calls of a whole ONNX file tell of it: that it can be served, and which leading sizes it takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from odin.partitioner.engines.export import ExportError
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.partitioner.engines.onnx_whole import Array, Whole, difference, open_whole

__all__ = ["try_file"]

Arrays = Sequence[Array]


def try_file(file: OnnxFile, inputs: Arrays, engines: Sequence[str]) -> tuple[Arrays, bool]:
    """Call the model some times; returns its outputs for ``inputs``, and whether any leading size will do.

    It will if the file leaves it free, and two requests put together give what each gives by itself.

    Parameters
    ----------
    engines
        The first that takes the file is used.

    Raises
    ------
    ExportError
        If no engine takes the file, results differ from call to call, or their sizes depend on the data.
    """
    run, outputs = _first_that_runs(file, inputs, engines)
    if problem := difference(run(inputs), outputs):
        raise ExportError(
            f"model {file.path}: results differ from call to call ({problem}): it draws random numbers, or keeps "
            "state; export it for inference"
        )
    # the same values in another order
    others = [np.array(np.flip(array, tuple(range(min(1, array.ndim), array.ndim)))) for array in inputs]
    try:
        apart = run(others)
    except ExportError:  # it need not take them
        return outputs, False
    for index, (output, other) in enumerate(zip(outputs, apart, strict=True)):
        if output.shape != other.shape:
            raise ExportError(
                f"model {file.path}: the size of output {file.outputs[index].name!r} depends on the data (it was "
                f"{output.shape} and {other.shape}); stages exchange tensors of sizes that are known beforehand: "
                "return a fixed number (TopK), and select from what the pipeline answers"
            )
    return outputs, _leaves_free(file, inputs) and _independent(run, (inputs, others), (outputs, apart))


def _first_that_runs(file: OnnxFile, inputs: Arrays, engines: Sequence[str]) -> tuple[Whole, Arrays]:
    refusals: list[ExportError] = []
    for engine in engines:
        try:
            run = open_whole(file, engine)
            return run, run(inputs)
        except ExportError as error:
            refusals.append(error)
    raise refusals[0]


def _leaves_free(file: OnnxFile, inputs: Arrays) -> bool:
    """Whether all inputs have a leading size, one that the file leaves free, and the same."""
    free = all(value.sizes is None or (value.sizes and isinstance(value.sizes[0], str)) for value in file.inputs)
    return free and len({array.shape[:1] for array in inputs}) == 1 and bool(inputs[0].shape)


def _independent(run: Whole, inputs: tuple[Arrays, Arrays], outputs: tuple[Arrays, Arrays]) -> bool:
    """Whether two requests put together along the leading dimension give what each gives by itself."""
    size = inputs[0][0].shape[0]
    if any(not output.ndim or output.shape[0] != size for output in outputs[0]):
        return False
    try:
        together = run([np.concatenate(pair) for pair in zip(*inputs, strict=True)])
        return not difference(together, [np.concatenate(pair) for pair in zip(*outputs, strict=True)])
    except (ExportError, ValueError):  # a size that is fixed inside; results that cannot be put together
        return False
