"""NaN and infinities come out where the model itself has them.

A black image that the model normalises by its own range is 0/0: the original answers NaN, the chain invented numbers,
also beside a good image of the same batch. oneDNN's fused ReLU turns NaN into zero, and whether to avoid it was decided
by the inputs alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from example_models import seeded
from torch import Tensor, nn

from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.code.bounds import LIMIT, ORDINARY, within
from odin.partitioner.code.fuse import available
from odin.stages.compute.torch_cpu import CpuExecutor

NAN, INF = float("nan"), float("inf")
needs_fusing = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")


def picture(batch: int = 1, seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def body(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        activation,
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        activation,
        nn.Conv2d(8, 4, 1),
        activation,
    )


class Then(nn.Module):
    """A step that may give NaN or infinities, and convolutions with a fused activation after it."""

    def __init__(self, step, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.step = step
        self.body = body(activation or nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.step(torch.relu(self.first(x)), x))


def normalised(y: Tensor, x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


def written_part(y: Tensor, x: Tensor) -> Tensor:
    z = y * 1.0
    z[:, 0] = torch.log(x[:, 0] - 0.01)
    return z


def written_later(y: Tensor, x: Tensor) -> Tensor:
    z = y * 1.0
    w = z.view(z.shape[0], 3, 256)
    w.div_(x.mean((1, 2, 3)).reshape(-1, 1, 1))
    return z


STEPS = {
    "0/0": normalised,
    "log": lambda y, x: torch.log(x - 0.01),
    "sqrt": lambda y, x: torch.sqrt(x - 0.01) + y,
    "rsqrt": lambda y, x: y * torch.rsqrt(x.mean((2, 3), keepdim=True)),
    "reciprocal": lambda y, x: y * (1 / x.sum((1, 2, 3), keepdim=True)),
    "pow": lambda y, x: (x - 0.01) ** 0.5,
    "std": lambda y, x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3)).reshape(-1, 1, 1, 1),
    "norm": lambda y, x: F.normalize(x, dim=1, eps=0.0),
    "inf - inf": lambda y, x: torch.exp(x * 1000 + 90) - torch.exp(x * 900 + 90),
    "inf * 0": lambda y, x: torch.exp(y * 0 + 100) * x,
    "overflow": lambda y, x: (x + 1) * 1e30 * 1e9,
    "softmax of inf": lambda y, x: torch.softmax(torch.exp(x * 0 + 100), 1),
    "masked": lambda y, x: y.masked_fill(x == 0, NAN),
    "where": lambda y, x: torch.where(x == 0, torch.full_like(x, -INF), y),
    "acos": lambda y, x: torch.acos(1.5 - x),
    "written part": written_part,
    "written later": written_later,
    "max pool": lambda y, x: F.max_pool2d(normalised(y, x), 3, 1, 1),
    "average pool": lambda y, x: F.avg_pool2d(normalised(y, x), 3, 1, 1),
    "clamp": lambda y, x: normalised(y, x).clamp(0, 1),
    "residual": lambda y, x: y + normalised(y, x),
    "cat": lambda y, x: torch.cat([y[:, :1], normalised(y, x)[:, 1:]], 1),
    "interpolate": lambda y, x: F.interpolate(normalised(y, x), scale_factor=2.0, mode="bilinear"),
}


def assert_same(result: Tensor, expected: Tensor) -> None:
    finite = expected[expected.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 0.0
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def run_split(chain: Chain, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run layer by layer in executors of their own, with only tensors and the header's mark handed on."""
    packed = chain.program.pack(chain.state)
    values, keep_nan = chain.layout(inputs), False
    for index in range(len(chain.layers)):
        result = CpuExecutor(chain.program.layers, packed).launch(index, index + 1, values, keep_nan=keep_nan)
        values = tuple(torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).copy_(v) for v in result.values)
        keep_nan = result.keep_nan
    return values


def check(model: nn.Module, *requests: Tensor) -> Chain:
    chain = build_chain(model, (picture(2),), minimum_share=0.0)
    for x in requests:
        with torch.no_grad():
            expected = model(x)
        result = chain(x)
        assert_same(result, expected)
        (split,) = run_split(chain, x)
        assert torch.equal(split.nan_to_num(7.0), result.nan_to_num(7.0))
        assert torch.equal(split.isnan(), result.isnan())
    return chain


BLACK = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("step", STEPS)
def test_nan_that_arises_inside(step):
    model = seeded(lambda: Then(STEPS[step]))
    expected = model(torch.cat([picture(), BLACK]))
    assert not expected[1].isfinite().all() or step == "where"  # where: infinities that become numbers again
    check(model, picture(), BLACK, torch.cat([picture(), BLACK]), torch.cat([BLACK, picture(seed=2)]))


ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(-2.0, 2.0),
    "Hardswish": nn.Hardswish(),
    "SiLU": nn.SiLU(),
    "GELU": nn.GELU(),
    "LeakyReLU": nn.LeakyReLU(0.1),
    "Hardsigmoid": nn.Hardsigmoid(),
    "ELU": nn.ELU(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38, 1e30])
def test_what_is_not_ordinary_in_the_input(activation, value):
    x = picture(2)
    x[1, 1, 5, 5] = value
    check(seeded(lambda: body(ACTIVATIONS[activation])), x, picture(2))


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38])
@pytest.mark.parametrize("name", ["0.weight", "2.bias", "3.running_mean", "3.running_var", "3.weight", "5.weight"])
def test_what_is_not_ordinary_in_the_weights(name, value):
    model = seeded(lambda: body(nn.ReLU()))
    with torch.no_grad():
        model.state_dict()[name].view(-1)[1] = abs(value) if name == "3.running_var" else value
    check(model, picture(2), BLACK)


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x) + x / x.amax((1, 2, 3), keepdim=True))
        z = self.b(y)
        z += y
        return self.c(z.relu_())


def test_a_sum_that_a_convolution_takes_into_itself():
    check(seeded(Added), torch.cat([picture(), BLACK]), BLACK)


class Bytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body(nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return self.body(x / x.amax((1, 2, 3), keepdim=True))


def test_images_of_bytes():
    model, images = seeded(Bytes), (picture(2) * 255).to(torch.uint8)
    chain = build_chain(model, (images,))
    images[0] = 0
    assert_same(chain(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    model = seeded(lambda: Then(normalised)).to(dtype)
    x = torch.cat([picture(), BLACK]).to(dtype)
    chain = build_chain(model, (picture(2).to(dtype),))
    assert torch.equal(chain(x).isnan(), model(x).isnan())


def test_without_convolutions():
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU6(), nn.Linear(8, 8), nn.Hardtanh()))
    x = picture(2)
    x[0, 0, 0, 0] = NAN
    x[1, 0, 0, 0] = INF
    assert_same(build_chain(model, (picture(2),))(x), model(x))


def checks(chain: Chain) -> list[str]:
    lines = [line for layer in chain.program.layers for line in layer.checked_source.splitlines()]
    return [line for line in lines if "within" in line]


@needs_fusing
def test_ordinary_requests_take_the_fused_calls():
    chain = build_chain(seeded(lambda: body(nn.ReLU())), (picture(),), minimum_share=0.0)
    assert len(checks(chain)) == 1  # the input's
    values = chain.layout((picture(),))
    assert not hasattr(chain.run(values), "keep_nan")
    values[0][0, 0, 0, 0] = NAN
    assert chain.run(values, 0, 1).keep_nan


@needs_fusing
def test_a_deep_model_is_checked_at_few_places():
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))

    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), *(block() for _ in range(40))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # the sum of magnitudes grows some tenfold with each convolution
    chain = build_chain(model, (picture(),))
    assert 2 <= len(checks(chain)) <= 4


@needs_fusing
def test_bytes_and_what_is_made_of_them_need_no_check():
    model = seeded(lambda: nn.Sequential(Scaled(), body(nn.ReLU())))
    chain = build_chain(model, ((picture() * 255).to(torch.uint8),))
    assert checks(chain) == []


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() / 255 - self.mean) / 0.2


def test_what_a_check_lets_pass():
    assert within(torch.tensor([ORDINARY, -ORDINARY]), ORDINARY)
    assert within(torch.empty(0, 3), ORDINARY)
    for value in (NAN, INF, -INF, 1.1 * ORDINARY, -1.1 * ORDINARY):
        assert not within(torch.tensor([0.0, value, 0.0]), ORDINARY)
    assert not within(torch.zeros(3), -1.0)
    assert ORDINARY < LIMIT


@needs_fusing
def test_the_fingerprint_does_not_depend_on_what_is_checked():
    def chain(factor: float) -> Chain:
        model = seeded(lambda: body(nn.ReLU()))
        with torch.no_grad():
            model[2].weight.mul_(factor)
        return build_chain(model, (picture(),), minimum_share=0.0)

    one, other = chain(1.0), chain(1e35)
    assert checks(one) != checks(other)
    assert one.fingerprint == other.fingerprint
