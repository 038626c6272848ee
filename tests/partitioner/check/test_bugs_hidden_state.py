"""State and conditions that the first look at a model did not see, each found by somebody who tried to break it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import odin


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)


class OwnDictionary(Pair):
    def __init__(self):
        super().__init__()
        self.__dict__["n"] = 0

    def forward(self, x):
        self.__dict__["n"] += 1
        return self.c(x) * (2 if self.__dict__["n"] % 100 == 0 else 1)


class NamedBuffers(Pair):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        n = dict(self.named_buffers())["n"]
        n += 1
        return self.c(x) * (1 + (n % 50 == 0).float())


class Count(Pair):
    def __init__(self):
        super().__init__()
        self.n = itertools.count()

    def forward(self, x):
        return self.c(x) * (2 if next(self.n) % 50 == 49 else 1)


class Bytes(Pair):
    def __init__(self):
        super().__init__()
        self.n = bytearray(1)

    def forward(self, x):
        self.n[0] = (self.n[0] + 1) % 50
        return self.c(x) * (2 if self.n[0] == 49 else 1)


@pytest.mark.parametrize("kind", [OwnDictionary, NamedBuffers, Count, Bytes])
def test_state_that_is_read_by_another_name_or_held_by_no_tensor_is_refused(kind):
    with pytest.raises(odin.TraceError, match=rf"it changes {kind.__name__}\.n while it runs"):
        odin.build_chain(kind().eval(), (torch.rand(1, 3, 12, 12),))


class ManyTogether(Pair):
    def forward(self, x):
        y = self.c(x)
        return y - y.mean(0, keepdim=True) if y.shape[0] > 30 else y


class EveryEighth(Pair):
    def forward(self, x):
        y = self.c(x)
        return torch.cat([y[1:], y[:1]]) if y.shape[0] % 8 == 0 else y


class EightBack(Pair):
    def forward(self, x):
        y = self.c(x)
        return torch.cat([y[:8], y[8:] + y[: max(0, y.shape[0] - 8)]])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", [ManyTogether, EveryEighth, EightBack])
def test_code_that_does_otherwise_with_another_number_of_samples_is_served_at_its_own(kind, size):
    # Sizes up to six were tried, and torch.export's conditions on the size were dropped.
    model, x = kind().eval(), torch.rand(size, 3, 12, 12)
    chain = odin.build_chain(model, (x,))
    assert not chain.dynamic_batch
    torch.testing.assert_close(chain(x), model(x))


class LazyBuffer(Pair):
    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.zeros(0), persistent=False)

    def forward(self, x):
        if self.grid.shape[-2:] != x.shape[-2:]:
            self.grid = torch.arange(144.0).view(12, 12)
        return self.c(x + self.grid)


def test_a_grid_built_in_a_buffer_by_the_first_call_is_no_obstacle():
    model, x = LazyBuffer().eval(), torch.rand(2, 3, 12, 12)
    chain = odin.build_chain(model, (x[:1],))
    torch.testing.assert_close(chain(x), model(x))
    assert chain.dynamic_batch


class Halved(Pair):
    def forward(self, x):
        return self.d.half()(self.c.half()(x.half())).float()


def test_a_model_that_casts_its_weights_leaves_the_users_alone():
    model = Halved().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    odin.build_chain(model, (torch.rand(1, 3, 12, 12),))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, before[name])
