"""Whether samples depend on each other: requests are cut and images put together only where they do not.

Only later samples were kept from changing earlier ones. A model of frames, each depending on those before it, passed,
and its larger requests were cut into parts: up to 82% off, without a word.
"""

from __future__ import annotations

import pytest
import torch
from example_models import Dense, Pyramid, Residual, conv_bn, image, seeded
from torch import Tensor, nn

from odin.partitioner.chain import build_chain
from odin.requests.microbatch import split_inputs


class Mixed(nn.Module):
    """A convolution, one vector per image, and a function of all of them."""

    def __init__(self, mix):
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 8, 3), mix, nn.Linear(8, 5)

    def forward(self, x: Tensor):
        return self.head(self.mix(self.conv(x).relu().mean((2, 3))))


class Lstm(nn.Module):
    def __init__(self, input_size=8, **options):
        super().__init__()
        self.lstm = nn.LSTM(input_size, 8, **options)

    def forward(self, y):
        return self.lstm(y)[0][..., :8]


class CausalAttention(nn.Module):
    def forward(self, y):
        mask = torch.ones(y.shape[0], y.shape[0], dtype=torch.bool).tril()
        return (y @ y.T).masked_fill(~mask, -torch.inf).softmax(1) @ y


class TemporalShift(nn.Module):
    """Frames get a part of the channels of their neighbours, in groups (mit-han-lab/temporal-shift-module)."""

    def __init__(self, n_segment):
        super().__init__()
        self.n_segment = n_segment

    def forward(self, y):
        y = y.reshape(-1, self.n_segment, 8)
        shifted = torch.zeros_like(y)
        shifted[:, :-1, :2] = y[:, 1:, :2]
        shifted[:, 1:, 2:4] = y[:, :-1, 2:4]
        shifted[:, :, 4:] = y[:, :, 4:]
        return shifted.reshape(-1, 8)


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(32, 8))

    def forward(self, y):
        return y + self.position[: y.shape[0]]


class OverTime(nn.Module):
    def __init__(self, dilation=1):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=dilation, dilation=dilation)

    def forward(self, y):
        return self.conv(y.T[None])[0].T


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, y):
        return self.function(y)


def padded_difference(y):
    return y - torch.cat([torch.zeros_like(y[:1]), y[:-1]])


DEPENDENT = {
    "lstm over frames": Lstm,
    "lstm backwards": lambda: Lstm(bidirectional=True),
    "running sum": lambda: Function(lambda y: y.cumsum(0)),
    "running maximum": lambda: Function(lambda y: y.cummax(0).values),
    "less the first": lambda: Function(lambda y: y - y[:1]),
    "less the last": lambda: Function(lambda y: y - y[-1:]),
    "less the one before": lambda: Function(padded_difference),
    "less the mean": lambda: Function(lambda y: y - y.mean(0)),
    "rolled": lambda: Function(lambda y: y.roll(1, 0)),
    "reversed": lambda: Function(lambda y: y.flip(0)),
    "sorted": lambda: Function(lambda y: y.sort(0).values),
    "softmax over the batch": lambda: Function(lambda y: y.softmax(0)),
    "causal attention": CausalAttention,
    "positions": Positions,
    "convolution over time": OverTime,
    "dilated convolution over time": lambda: OverTime(4),
    "batch statistics": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "divided by their number": lambda: Function(lambda y: y / y.shape[0]),
    "in pairs, the last alone": lambda: Function(lambda y: torch.cat([part.cumsum(0) for part in y.split(2)])),
}


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", DEPENDENT)
def test_samples_that_depend_on_each_other_are_served_at_the_examples_size_only(name, size):
    torch.manual_seed(0)
    if size == 1 and name == "batch statistics":
        pytest.skip("there are none of one sample")
    model = Mixed(DEPENDENT[name]()).eval()
    example = image(batch=size)
    chain = build_chain(model, (example,))
    assert not chain.dynamic_batch
    torch.testing.assert_close(chain(example), model(example), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="its samples depend on each other"):
        chain(image(batch=size + 1))


@pytest.mark.parametrize("segments", [2, 4])
def test_frames_that_are_shifted_in_groups_stay_in_their_group(segments):
    """Requests of four frames are right at a batch of four and wrong at two: only the example's size is taken."""
    chain = build_chain(Mixed(TemporalShift(segments)).eval(), (image(batch=4),))
    assert not chain.dynamic_batch


@pytest.mark.parametrize(
    "results",
    [
        lambda y: y.mean(),
        lambda y: (y, y.sum()),
        lambda y: y.mean(0),
        lambda y: torch.cat([y, y]),
        lambda y: y.repeat_interleave(2, 0),
        lambda y: y.reshape(-1),
        lambda y: (y, y.shape[0]),
        lambda y: y.squeeze(),
        lambda y: y.argmax(0),
    ],
    ids=["mean", "a sum beside", "over the batch", "twice", "each twice", "flat", "size", "squeezed", "best sample"],
)
def test_results_without_an_entry_per_sample_are_not_put_together(results):
    for size in (1, 3):
        chain = build_chain(Mixed(Function(lambda y: y)).eval(), (image(batch=size),))
        assert chain.dynamic_batch
        model = nn.Sequential(nn.Conv2d(3, 8, 16), nn.Flatten(), Function(results)).eval()
        assert not build_chain(model, (image(batch=size),)).dynamic_batch


@pytest.mark.parametrize(
    "build",
    [
        Residual,
        Dense,
        Pyramid,
        lambda: nn.Sequential(*conv_bn(3, 4), nn.Dropout(0.5)),
        lambda: Mixed(Function(lambda y: y.argmax(1, keepdim=True) + y)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), Lstm(input_size=196, batch_first=True)),
    ],
)
@pytest.mark.parametrize("size", [1, 5])
def test_samples_of_their_own_are_cut_at_any_size(build, size):
    model = seeded(build)
    chain = build_chain(model, (image(batch=size, size=18 if build is Pyramid else 16),))
    assert chain.dynamic_batch
    if isinstance(model, Residual):
        request = image(batch=2 * size + 1)
        parts = [chain(part) for (part,) in split_inputs((request,), batch=size)]
        torch.testing.assert_close(torch.cat(parts), model(request), rtol=0, atol=1e-4)


def test_a_model_that_takes_only_numbers_of_the_examples_kind_is_tried_with_those():
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            check_range(x)
            return x.flatten(1).cumsum(1)

    assert build_chain(Strict(), (torch.rand(1, 3, 4, 4),)).dynamic_batch


def check_range(x: Tensor) -> None:
    if (
        not torch.jit.is_tracing()
        and not isinstance(x, torch.fx.Proxy)
        and not 0 <= float(x.min()) <= float(x.max()) <= 1
    ):
        raise ValueError("give numbers in [0, 1]")


torch.fx.wrap("check_range")
