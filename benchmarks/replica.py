"""One replica: a process on one core with the whole model in its own memory, which serves until its queue ends.

``python -m benchmarks.replica TASK`` with a :class:`Task` as JSON; :mod:`benchmarks.replicas` starts it. It imports
what its runtime needs and nothing else: neither torch nor ODIN, unless it serves with torch.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.runtimes import Array, ArraySpec, Bind, open_runtime

__all__ = ["ANSWER", "READY", "Task"]

ANSWER = struct.Struct("=BBd")
"""Place of the request (:data:`READY` once the model is loaded), number of the replica, seconds that it computed."""
READY = 255
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Task(NamedTuple):
    """What a replica gets to know.

    Attributes
    ----------
    runtime
        ``"torch"`` or one of :data:`benchmarks.runtimes.RUNTIMES`.
    model
        Name for :func:`odin.load_source`, which torch needs.
    folder
        Where the exported model lies.
    inputs, outputs
        What the runtime takes and gives, an :class:`benchmarks.runtimes.ArraySpec` each.
    number, core
        Of this replica.
    memory_fd, tasks_fd, answers_fd
        Descriptors of the shared memory, of the queue (one byte is one place), and of the way back.
    offsets
        For each place, where its inputs and then its outputs begin in the memory.
    parent
        Process id of who started it.
    """

    runtime: str
    model: str
    folder: str
    inputs: Sequence[Sequence[Any]]
    outputs: Sequence[Sequence[Any]]
    number: int
    core: int
    memory_fd: int
    tasks_fd: int
    answers_fd: int
    offsets: tuple[tuple[int, ...], ...]
    parent: int


def main() -> int:
    """Serve until the queue ends."""
    task = Task(*json.loads(sys.argv[1]))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != task.parent:
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the queue ends then as well
    os.sched_setaffinity(0, {task.core})
    # As every stage of ODIN does: activations are not given back to the kernel after every operation.
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)

    specs = [ArraySpec.of(values) for values in (*task.inputs, *task.outputs)]
    memory = mmap.mmap(task.memory_fd, 0)
    bind = open_chain(task.model) if task.runtime == "torch" else open_runtime(task.runtime, Path(task.folder))
    runs: list[Callable[[], None]] = []
    for offsets in task.offsets:
        arrays = [spec.view(memory, offset) for spec, offset in zip(specs, offsets, strict=True)]
        runs.append(bind(arrays[: len(task.inputs)], arrays[len(task.inputs) :]))
    for run in runs:
        run()
    gc.collect()
    libc.malloc_trim(0)
    os.write(task.answers_fd, ANSWER.pack(READY, task.number, 0.0))
    while byte := os.read(task.tasks_fd, 1):
        begin_s = time.perf_counter()
        runs[byte[0]]()
        os.write(task.answers_fd, ANSWER.pack(byte[0], task.number, time.perf_counter() - begin_s))
    return 0


def open_chain(model: str) -> Bind:
    """The chain that ODIN's stages run with torch, without their timing of each layer."""
    import torch

    import odin

    torch.set_num_threads(1)
    source = odin.load_source(model)
    chain = odin.build_chain(source.torch_model, source.example_args, name=model)
    state = chain.program.pack(chain.state, batch=1)
    functions = [layer.bind(state) for layer in chain.program.layers]

    def bind(inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        given = tuple(torch.from_numpy(array) for array in inputs)
        wanted = tuple(torch.from_numpy(array) for array in outputs)

        def run() -> None:
            values = given
            with torch.inference_mode():
                for function in functions:
                    values = function(values)
                for there, value in zip(wanted, values, strict=True):
                    there.copy_(value)

        return run

    return bind


if __name__ == "__main__":
    sys.exit(main())
