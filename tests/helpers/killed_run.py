"""``odin run`` with the chain itself in place of a pipeline's stages, also as a program to be killed."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from synthetic_run import START_S, run_started
from torch import nn

import odin.pipeline
from odin.cli.main import main
from odin.models.chains import to_chain
from odin.monitor.view.builder import ViewBuilder
from odin.options import check_batch


def tiny():
    """A classifier of 16 x 16 images into five classes, and its example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return model.eval(), (torch.zeros(1, 3, 16, 16),)


def tiny_otherwise():
    """The same with other weights."""
    model, example = tiny()
    nn.init.ones_(model[4].weight)
    return model, example


def unseeded():
    """The same with new weights each time."""
    model, example = tiny()
    nn.init.normal_(model[4].weight, generator=torch.Generator().manual_seed(random.SystemRandom().getrandbits(63)))
    return model, example


class LessTheMean(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).mean((2, 3))


def groups_of_two():
    """A model whose images depend on each other."""
    return LessTheMean().eval(), (torch.rand(2, 3, 16, 16),)


class TwoOutputs(nn.Module):
    def forward(self, x):
        return {"mean": x.mean((2, 3)), "most": x.amax((1, 2, 3))}


def no_classes():
    """A model whose outputs are no class scores."""
    return TwoOutputs().eval(), (torch.rand(1, 3, 16, 16),)


class ChainAlone:
    """A pipeline of no stages: one thread runs the chain."""

    started = 0

    def __init__(self, source, *, batch, max_in_flight, **_):
        self.chain, self.max_in_flight = to_chain(source), max_in_flight or 2
        check_batch(self.chain, batch)
        type(self).started += 1
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self, *, drain=True):
        self.pool.shutdown(wait=drain)

    def submit(self, value):
        return self.pool.submit(self.chain, value)

    def view(self):
        builder = ViewBuilder()
        builder.apply(run_started((len(self.chain.layers),)))
        return builder.view(START_S)


if __name__ == "__main__":
    odin.pipeline.Pipeline = ChainAlone
    sys.exit(main(["run", *sys.argv[1:]]))
