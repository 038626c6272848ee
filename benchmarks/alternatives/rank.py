"""One rank of the static pipeline: a process pinned to its core, with its part of the chain."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from benchmarks.alternatives.alternative import Setup
from benchmarks.alternatives.torch_pipelining import Answer, Steps
from benchmarks.common import release_memory
from odin.models.sources import load_source
from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.plan import Plan

__all__ = ["Stage", "run_rank"]


def run_rank(rank: int, setup: Setup, port: int, connection: Connection) -> None:
    """One rank's process: build its stage, then carry out tasks until the pipe closes."""
    os.sched_setaffinity(0, {setup.cores[rank]})
    torch.set_num_threads(1)
    with torch.inference_mode():
        module, example_input, example_output = build_stage(rank, setup)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(setup.cores))
        stage = PipelineStage(
            module, rank, len(setup.cores), torch.device("cpu"), input_args=example_input, output_args=example_output
        )
        schedule = ScheduleGPipe(stage, n_microbatches=1)
        release_memory()
        token = torch.zeros(1)
        while True:
            try:
                task: Steps = connection.recv()
            except EOFError:
                break
            images = [torch.from_numpy(task.images[row : row + 1]) for row in range(len(task.images))]
            times_s, output, works = [], None, []
            for index in range(task.steps):
                if rank == 0:
                    if index >= task.in_flight:  # wait until the one before as many is done
                        dist.recv(token, src=1)
                    times_s.append(time.perf_counter())
                    schedule.eval(images[index % len(images)])
                else:
                    output = schedule.eval()
                    times_s.append(time.perf_counter())
                    if index + task.in_flight < task.steps:
                        works.append(dist.isend(token, dst=0))
            for work in works:
                if work is not None:  # torch's type allows a rank outside the group
                    work.wait()
            connection.send(Answer(times_s, None if output is None else np.asarray(output.numpy())))
        dist.destroy_process_group()


class Stage(torch.nn.Module):
    """A range of the chain's layers; the first stage prepares the image, all but the last pack for the wire."""

    def __init__(self, chain: Chain, first: int, last: int) -> None:
        super().__init__()
        layers = chain.program.layers[first:last]
        packed = chain.program.pack(chain.state)
        state = {name: packed[name] for layer in layers for name in layer.state_names}
        self.steps = [layer.bind(state) for layer in layers]
        self.is_first = first == 0
        self.is_last = last == len(chain.layers)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Run the layers on one value."""
        # As Chain.layout does; holding on to that method would hold on to the whole chain's weights.
        values: tuple[torch.Tensor, ...] = (
            value.contiguous(memory_format=torch.channels_last) if self.is_first else from_wire(value),
        )
        for step in self.steps:
            values = step(values)
        return values[0] if self.is_last else to_wire(values[0])


def build_stage(rank: int, setup: Setup) -> tuple[Stage, torch.Tensor, torch.Tensor]:
    """Cut the model as ODIN does; returns the rank's part with an example of its input and output."""
    source = load_source(setup.model, weights=setup.weights)
    chain = build_chain(source.torch_model, source.example_args, name=source.name)
    ranges = Plan.parse(setup.plan).ranges
    if any(len(chain.layers[last - 1].output) != 1 for _, last in ranges):
        raise ValueError(f"a cut of plan {setup.plan} carries several tensors; this pipeline sends one")
    first, last = ranges[rank]
    example = torch.from_numpy(setup.images[:1])
    stage = Stage(chain, first, last)
    example_input = example if rank == 0 else to_wire(chain.run(chain.layout((example,)), 0, first)[0])
    return stage, example_input, stage(example_input)


def to_wire(value: torch.Tensor) -> torch.Tensor:
    """Channels last seen as ``(batch, height, width, channels)``: contiguous, as gloo wants it, without a copy."""
    return value.permute(0, 2, 3, 1).contiguous() if value.ndim == 4 else value.contiguous()


def from_wire(value: torch.Tensor) -> torch.Tensor:
    """Undo :func:`to_wire`, without a copy."""
    return value.permute(0, 3, 1, 2) if value.ndim == 4 else value
