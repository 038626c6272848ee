"""A half of a tensor that is kept while the other half is computed does not forbid cuts.

After ``split`` or ``chunk`` the half that waits is a strided view. Such views could not cross a cut, so that a model of
cross-stage partial blocks (CSPNet) was cut into a few layers, one of them with 43% of the time.
"""

from __future__ import annotations

import pytest
import torch
from example_models import seeded
from torch import Tensor, nn

from odin.partitioner.chain import Chain, build_chain
from odin.stages.channel.slots import SlotMemory

CHANNELS = 16


def image(batch: int = 1) -> Tensor:
    return torch.rand(batch, CHANNELS, 12, 12, generator=torch.Generator().manual_seed(batch))


def convolutions(channels: int, count: int = 4) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(count)))


def shuffled(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    first, second = x.reshape(n, c // 2, 2, h, w).transpose(1, 2).unbind(1)
    return first, second


HALVES = {
    "split": lambda x: x.split(CHANNELS // 2, dim=1),
    "torch.split with sizes": lambda x: torch.split(x, [4, 12], 1)[::-1],
    "chunk": lambda x: x.chunk(2, dim=1),
    "tensor_split": lambda x: torch.tensor_split(x, 2, dim=1),
    "slices": lambda x: (x[:, : CHANNELS // 2], x[:, CHANNELS // 2 :]),
    "narrow": lambda x: (x.narrow(1, 0, 8), x.narrow(1, 8, 8)),
    "every second": lambda x: (x[:, ::2], x[:, 1::2]),
    "unbind": shuffled,
    "transposed": lambda x: (x[:, :8], x.transpose(2, 3)[:, :8]),
    "permuted": lambda x: (x[:, :8], x.permute(0, 1, 3, 2)[:, 8:]),
    "overlapping": lambda x: (x[:, :8], x[:, 4:12]),
    "expanded": lambda x: (x[:, :8], x[:, :1].expand(-1, 8, -1, -1)),
    "select": lambda x: (x[:, :8], x[:, 8].unsqueeze(1)),
    "rows": lambda x: (x[:, :8], x[:, :8, ::2].repeat_interleave(2, 2)),
    "the whole and a half": lambda x: (x[:, :8], x),
    "a view of a view": lambda x: (x[:, :8], x.flatten(2)[:, 8:].unflatten(2, (12, 12))),
}


class Partial(nn.Module):
    """One half waits while the other is computed."""

    def __init__(self, halves: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.halves = HALVES[halves]
        with torch.no_grad():
            computed, kept = self.halves(torch.zeros(1, CHANNELS, 12, 12))
        self.stem = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.body = convolutions(computed.shape[1])
        self.head = nn.Conv2d(computed.shape[1] + kept.shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        computed, kept = self.halves(torch.relu(self.stem(x)))
        return self.head(torch.cat([self.body(computed), kept], 1))


def over_the_wire(chain: Chain, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run layer by layer, with every value written into a slot and read out of it."""
    memory = SlotMemory(1, 1 << 18)
    values = chain.layout(inputs)
    for index in range(len(chain.layers)):
        values = chain.run(memory.read(0, memory.write(0, values)), index, index + 1)
        values = tuple(value.clone() for value in values)
    return values


def check(model: nn.Module, *, layers: int) -> Chain:
    chain = build_chain(model, (image(),), minimum_share=0.0)
    assert len(chain.layers) >= layers
    for x in (image(), image(3)):
        inputs = chain.layout((x,))
        whole = chain.run(inputs)
        for one, other in zip(over_the_wire(chain, x), whole, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
        values = inputs
        for index in range(len(chain.layers)):
            values = chain.run(values, index, index + 1)
            sent = [memory_strides(value) for value in values]
            assert sent == [value.stride() for value in values]  # what the next layer sees is the same in any plan
        torch.testing.assert_close(chain(x), model(x), rtol=1e-5, atol=1e-5)
    return chain


def memory_strides(value: Tensor) -> tuple[int, ...]:
    (meta,) = SlotMemory(1, 1 << 18).reserve(0, (value,))
    return meta.strides


@pytest.mark.parametrize("halves", HALVES)
def test_a_view_that_waits_crosses_cuts(halves):
    chain = check(seeded(lambda: Partial(halves)), layers=5)
    work = [layer.flops for layer in chain.layers]
    assert max(work) < 0.45 * sum(work)  # one body in one layer has far more


class Nested(nn.Module):
    """Cross-stage partial blocks, one inside another, one half taken out of the tuple late."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = convolutions(8, 2), convolutions(4, 2), convolutions(4, 2)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.sigmoid(x).chunk(2, 1)
        y = self.one(parts[0])
        inner = y.split((4, 4), 1)
        a = self.two(inner[1])
        b = self.three(a + inner[0])
        return self.head(torch.cat([a, b, parts[1]], 1))


def test_views_inside_views_taken_out_late():
    check(seeded(Nested), layers=6)


@pytest.mark.parametrize("write", ["relu_", "add_", "half of the base", "setitem"])
def test_memory_that_is_written_later_does_not_cross(write):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.end = convolutions(8, 2), convolutions(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(x)
            computed, kept = x[:, :8], x[:, 8:]
            y = self.body(computed)
            if write == "relu_":
                torch.relu_(kept.sub_(0.5))
            elif write == "add_":
                kept.add_(y)
            elif write == "half of the base":
                x.mul_(2.0)
            else:
                x[:, 9] = y[:, 0]
            return self.end(y) + kept + computed

    chain = check(seeded(Model), layers=2)
    assert "body.1" in chain.program.layers[0].source  # the body and the write after it are one layer


def test_a_step_that_looks_behind_a_tensor():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = convolutions(8)

        def forward(self, x: Tensor) -> Tensor:
            computed, kept = torch.sigmoid(x).contiguous().chunk(2, 1)
            y = self.body(computed)
            return y + torch.as_strided(kept, (1, 8, 12, 12), (2304, 144, 12, 1), 0)

    model = seeded(Model)
    chain = build_chain(model, (image(),), minimum_share=0.0)
    (split,) = over_the_wire(chain, image())
    assert torch.equal(split, chain(image()))
    torch.testing.assert_close(split, model(image()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_part_of_a_sequence_that_is_dense_only_as_it_was_traced(batch):
    """Sequences have their channels last only once their convolutions are fused."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(4, 16, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.one(x))
            y = torch.relu(self.two(y[:, :8])) + y[:, 8:]
            return (y * y.mean()).transpose(1, 2)  # over the batch too: no other batch than the example's

    model = seeded(Model)
    x = torch.rand(batch, 4, 30, generator=torch.Generator().manual_seed(0))
    chain = build_chain(model, (x,), minimum_share=0.0)
    assert len(chain.layers) > 1
    values = chain.layout((x,))
    for index in range(len(chain.layers)):
        values = chain.run(values, index, index + 1)
        assert [memory_strides(value) for value in values] == [value.stride() for value in values]
    (split,) = over_the_wire(chain, x)
    assert torch.equal(split, values[0])
    torch.testing.assert_close(split, model(x), rtol=1e-4, atol=1e-5)
