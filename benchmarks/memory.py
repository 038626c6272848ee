"""How much memory stages take together: weights once per node, whatever the number of stages.

Proportional set size (PSS) counts a page that n processes map 1/n to each, so that sums are true. Weights lie in Ray's
object store; what it holds more than with a tiny model is divided by one copy of the model's weights. Slots of channels
and each stage's working memory (activations, scratch) are shown beside it, and the fixed cost of all processes, Ray's
own among them. Every stage has run every layer before. ``python -m benchmarks.memory``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import odin
from benchmarks.common import Environment, add_arguments, mib, process_tree, pss_nbytes, report, write_result
from odin.stages.device import usable_cores

TARGET = 1.15


class Memory(NamedTuple):
    """PSS in bytes of this process, all stages and Ray: the object store, the channels' slots, and everything."""

    store_nbytes: int
    channels_nbytes: int
    total_nbytes: int


class Row(NamedTuple):
    """A pipeline with a model, and the same with a tiny model, whose memory is the processes' fixed cost."""

    model: str
    stages: int
    weights_nbytes: int
    memory: Memory
    fixed: Memory

    @property
    def copies(self) -> float:
        """Copies of the weights: what the object store holds more than with the tiny model."""
        return (self.memory.store_nbytes - self.fixed.store_nbytes) / self.weights_nbytes

    @property
    def working_nbytes(self) -> float:
        """Working memory per stage: activations and scratch, neither weights nor slots."""
        shared = self.memory.store_nbytes + self.memory.channels_nbytes
        fixed = self.fixed.total_nbytes - self.fixed.store_nbytes - self.fixed.channels_nbytes
        return (self.memory.total_nbytes - shared - fixed) / self.stages


def family_memory(pipe: odin.Pipeline, x: torch.Tensor) -> Memory:
    """PSS of all processes under this one, the stages among them, after every stage has run every layer."""
    layers, stages = pipe.plan.layer_count, len(pipe.plan)
    home = pipe.plan
    for stage in range(stages):  # each in turn runs everything, and so touches every weight
        pipe.migrate(odin.Plan(layers if index == stage else 0 for index in range(stages)))
        pipe(x)
    pipe.migrate(home)
    for _ in pipe.map(x for _ in range(20)):
        pass
    pids = process_tree()  # this process too: the object store and the slots are mapped here as well
    by_mapping = [mapped_nbytes(pid) for pid in pids]
    store, channels = (sum(part) for part in zip(*by_mapping, strict=True))
    return Memory(store, channels, store + channels + pss_nbytes(pids[1:]) - sum(sum(part) for part in by_mapping[1:]))


def mapped_nbytes(pid: int) -> tuple[int, int]:
    """PSS of a process's mappings of Ray's object store, and of channels."""
    found = {"plasma": 0, "memfd:odin-channel": 0}
    current = ""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    for line in lines:
        if "-" in line.split(" ", 1)[0]:
            current = next((name for name in found if name in line), "")
        elif current and line.startswith("Pss:"):
            found[current] += int(line.split()[1]) * 1024
    return found["plasma"], found["memfd:odin-channel"]


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=1)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg16"])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 4])
    arguments = parser.parse_args()
    environment = Environment.collect()
    torch.set_num_threads(1)
    cores = usable_cores()
    x = torch.randn(1, 3, 224, 224)
    tiny = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)])
    rows: list[Row] = []
    for count in arguments.stages:
        stages = [f"cpu:{cores[index % len(cores)]}" for index in range(count)]
        with odin.Pipeline(tiny, stages=stages, example_input=x, share_devices=True) as pipe:
            fixed = family_memory(pipe, x)
        for model in arguments.models:
            with odin.Pipeline(model, stages=stages, share_devices=True) as pipe:
                weights_nbytes = sum(layer.parameter_nbytes for layer in pipe.chain.layers)
                rows.append(Row(model, count, weights_nbytes, family_memory(pipe, x), fixed))
    report(
        f"Memory in MiB; target: at most {TARGET} copies of the weights, whatever the number of stages",
        ["", "stages", "weights", "object store", "copies", "slots", "working, per stage", "fixed, all processes"],
        [
            [
                row.model,
                str(row.stages),
                mib(row.weights_nbytes),
                mib(row.memory.store_nbytes),
                f"{row.copies:.3f}",
                mib(row.memory.channels_nbytes),
                mib(row.working_nbytes),
                mib(row.fixed.total_nbytes),
            ]
            for row in rows
        ],
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
