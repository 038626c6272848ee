"""How much memory stages take together: weights once per node, whatever the number of stages.

Proportional set size (PSS) counts a page that n processes map 1/n to each, so that sums are true. What k stages hold
of a model, beyond what k stages of a tiny model hold, is divided by one copy of the model's weights; Ray's own
processes, which map the object store too, are counted in. ``python -m benchmarks.memory``
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import torch
from torch import nn

import odin
from benchmarks.common import Environment, add_arguments, mib, process_tree, pss_nbytes, report, write_result
from stages.device import usable_cores

TARGET = 1.15


class Row(NamedTuple):
    """Bytes: PSS of stages and of Ray's processes with the model, and the same with a tiny model."""

    model: str
    stages: int
    weights_nbytes: int
    pss_nbytes: int
    fixed_nbytes: int

    @property
    def copies(self) -> float:
        """What the stages hold beyond their fixed cost, in copies of the weights."""
        return (self.pss_nbytes - self.fixed_nbytes) / self.weights_nbytes


def family_pss_nbytes(pipe: odin.Pipeline, x: torch.Tensor) -> int:
    """PSS of all processes under this one, the stages among them, after every stage has run every layer."""
    layers, stages = pipe.plan.layer_count, len(pipe.plan)
    home = pipe.plan
    for stage in range(stages):  # each in turn runs everything, and so touches every weight
        pipe.migrate(odin.Plan(layers if index == stage else 0 for index in range(stages)))
        pipe(x)
    pipe.migrate(home)
    for _ in pipe.map(x for _ in range(20)):
        pass
    return pss_nbytes(pid for pid in process_tree() if pid != process_tree()[0])


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
            fixed_nbytes = family_pss_nbytes(pipe, x)
        for model in arguments.models:
            with odin.Pipeline(model, stages=stages, share_devices=True) as pipe:
                weights_nbytes = sum(layer.parameter_nbytes for layer in pipe.chain.layers)
                rows.append(Row(model, count, weights_nbytes, family_pss_nbytes(pipe, x), fixed_nbytes))
    report(
        f"Memory of all stages and Ray's processes, MiB; target: at most {TARGET} copies",
        ["", "stages", "one copy", "PSS", "PSS with a tiny model", "copies"],
        [
            [
                row.model,
                str(row.stages),
                mib(row.weights_nbytes),
                mib(row.pss_nbytes),
                mib(row.fixed_nbytes),
                f"{row.copies:.3f}",
            ]
            for row in rows
        ],
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
