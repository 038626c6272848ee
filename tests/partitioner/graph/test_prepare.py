"""Preparation changes how a model computes, not what; and never the user's model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from example_models import (
    FAMILIES,
    FunctionalWeights,
    InPlace,
    Residual,
    SharedModules,
    StochasticDepth,
    conv_bn,
    image,
    seeded,
)
from torch import nn

from odin.partitioner.graph.capture import TraceError, capture_export, capture_fx, private_copy
from odin.partitioner.graph.identities import is_identity
from odin.partitioner.graph.observe import observe
from odin.partitioner.graph.prepare import layout_of, prepare


def prepared(model: nn.Module, *inputs: torch.Tensor, capture=capture_fx, **options: bool):
    captured = capture(private_copy(model), inputs)
    prepare(captured, inputs, **options)
    return captured


def targets(captured) -> list[str]:
    return [str(getattr(step.target, "__name__", step.target)) for step in captured.steps]


def outputs(captured, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return observe(captured, [layout_of(x.clone()) for x in inputs]).outputs


def test_residual_is_folded_lowered_and_channels_last():
    model = seeded(Residual)
    captured = prepared(model, image())
    assert captured.modules == {}
    assert targets(captured)[:3] == ["conv2d", "relu_", "max_pool2d"]
    assert not any("batch_norm" in target for target in targets(captured))
    assert not any("bn" in name for name in captured.state)
    assert captured.state["conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs(captured, image())[0], model(image()), rtol=0, atol=1e-6)


def test_the_users_model_is_not_changed():
    model = seeded(Residual).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    prepared(model, image())
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert strides == {name: tensor.stride() for name, tensor in model.state_dict().items()}


def test_batch_norm_of_an_exported_graph_is_folded():
    model = seeded(Residual)
    captured = prepared(model, image(), capture=capture_export)
    assert not any("batch_norm" in target for target in targets(captured))
    torch.testing.assert_close(outputs(captured, image())[0], model(image()), rtol=0, atol=1e-6)


def test_functional_batch_norm_is_folded_and_standardised_weights_are_computed_once():
    captured = prepared(seeded(FunctionalWeights), image())
    assert targets(captured) == ["conv2d", "relu", "conv2d"]


def test_a_shared_convolution_is_not_folded():
    model = seeded(SharedModules)
    captured = prepared(model, image())
    assert torch.equal(captured.state["conv.weight"], model.conv.weight)
    assert targets(captured).count("batch_norm") == 2 + 4  # the block's, called twice, too
    torch.testing.assert_close(outputs(captured, image())[0], model(image()), rtol=0, atol=1e-5)


def test_a_convolution_with_two_readers_is_not_folded():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv_bn(3, 3)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    assert targets(prepared(seeded(Model), image())).count("batch_norm") == 1


def test_batch_statistics_stay():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert [step.op for step in prepared(model, image()).steps] == ["call_function", "call_module"]


def test_what_returns_its_operand_whatever_the_values_is_erased():
    """Not stochastic_depth of the tests: fx does not look into it, and it may look at values."""
    captured = prepared(seeded(StochasticDepth), image())
    assert targets(captured) == ["conv2d", "stochastic_depth", "add"] * 3


@pytest.mark.parametrize(
    ("arguments", "erased"),
    [((0.5, "row", False), True), ((0.0, "row", True), False), ((0.5, "row"), False), ((), False)],
)
def test_stochastic_depth_is_an_identity_unless_it_trains(arguments, erased):
    def function(x, p=0.5, mode="row", training=True):
        return x

    function.__module__, function.__name__ = "torchvision.ops.stochastic_depth", "stochastic_depth"
    graph = torch.fx.Graph()
    step = graph.call_function(function, (graph.placeholder("x"), *arguments))
    assert is_identity(step, {}) == erased
    given = graph.call_function(function, (graph.placeholder("y"),), {"training": False})
    assert is_identity(given, {})


def test_torchvisions_stochastic_depth_is_erased():
    ops = pytest.importorskip("torchvision.ops")
    model = nn.Sequential(nn.Conv2d(3, 3, 1), ops.StochasticDepth(0.5, "row"), nn.ReLU()).eval()
    assert targets(prepared(model, image())) == ["conv2d", "relu"]


@pytest.mark.parametrize(
    "operation",
    [
        nn.Dropout(),
        nn.Dropout2d(),
        nn.AlphaDropout(),
        nn.Identity(),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.alpha_dropout(x, 0.5, training=False),
        lambda x: x.contiguous(),
        lambda x: x.to(x.dtype),
        lambda x: x.float(),
        lambda x: x.type_as(x),
        lambda x: torch.flatten(x, 3),
        lambda x: torch.conj(x),
    ],
)
def test_pytorchs_own_identities_are_erased(operation):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = operation if isinstance(operation, nn.Module) else nn.Identity()

        def forward(self, x):
            x = torch.relu(x)
            return torch.exp(self.inside(x) if isinstance(operation, nn.Module) else operation(x))

    assert targets(prepared(Model().eval(), image())) == ["relu", "exp"]


# -- what is concluded from one example must hold for any values -------------------------------------------------------
def checked_positive(x: torch.Tensor) -> torch.Tensor:
    if float(x.min()) < 0:
        raise ValueError("a value is negative")
    return x


def small_or_halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2 if float(x.max()) > 10 else x


def mode_of(x: torch.Tensor) -> str:
    return "nearest" if float(x.max()) < 10 else "bilinear"


def labelled(x: torch.Tensor) -> tuple[torch.Tensor, str]:
    return x + 1, "small" if float(x.max()) < 10 else "large"


def found(x: torch.Tensor) -> list[torch.Tensor]:
    return [x] * (1 if float(x.max()) < 10 else 2)


for _name in ("checked_positive", "small_or_halved", "mode_of", "labelled", "found"):
    torch.fx.wrap(_name)


class Calling(nn.Module):
    """Calls a function on what a layer gives."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


SMALL, LARGE = torch.full((1, 3, 4, 4), 2.0), torch.arange(48.0).reshape(1, 3, 4, 4)


def test_a_check_of_values_that_the_example_passes_stays():
    captured = prepared(Calling(lambda x: torch.exp(checked_positive(x))), SMALL)
    with pytest.raises(ValueError, match="a value is negative"):
        outputs(captured, -SMALL)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.exp(small_or_halved(torch.relu(x)) / 50),
        lambda x: F.interpolate(x, scale_factor=2, mode=mode_of(x)),
    ],
)
def test_a_branch_on_values_is_taken_anew_for_each_request(call):
    captured = prepared(Calling(call), SMALL)
    for x in (SMALL, LARGE, SMALL):
        torch.testing.assert_close(outputs(captured, x)[0], call(x), rtol=0, atol=0)


def test_a_hook_that_looks_at_values_stays():
    inside = nn.Identity()
    inside.register_forward_hook(lambda module, args, result: checked_positive(result))
    captured = prepared(nn.Sequential(nn.Tanh(), inside, nn.Tanh()).eval(), SMALL)
    with pytest.raises(ValueError, match="a value is negative"):
        outputs(captured, -SMALL)


@pytest.mark.parametrize("call", [lambda x: labelled(torch.relu(x)), lambda x: found(torch.relu(x))])
def test_a_structure_that_depends_on_values_is_not_that_of_the_example(call):
    captured = prepared(Calling(call), SMALL)
    assert len(outputs(captured, SMALL)) == 1
    with pytest.raises(ValueError, match="and on the example"):
        outputs(captured, LARGE)


def test_a_text_that_depends_on_values_cannot_be_returned():
    with pytest.raises(TraceError, match="returns 'nearest' of mode_of, a function that is not looked into"):
        prepared(Calling(lambda x: (x + 1, mode_of(x))), SMALL)


def test_identities_in_a_row_are_erased():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity(), nn.Dropout(), nn.Identity(), nn.ReLU()).eval()
    assert targets(prepared(model, image())) == ["conv2d", "relu"]


def test_an_input_that_the_model_writes_is_copied_first():
    class Model(nn.Module):
        def forward(self, x):
            return x.mul_(2).add(1)

    captured = prepared(Model(), image())
    assert targets(captured) == ["clone", "mul_", "add"]
    given = image()
    observe(captured, [given])
    assert torch.equal(given, image())


def test_a_constant_that_the_model_writes_starts_every_run_anew():
    class Adding(nn.Module):
        def forward(self, x):
            total = torch.ones(3)
            torch.add(total, x.mean((0, 2, 3)), out=total)
            return torch.mul(x.mean((2, 3)), total)

    captured = prepared(Adding(), image())
    assert targets(captured)[0] == "clone"
    expected = Adding()(image())
    for _ in range(2):
        assert torch.equal(outputs(captured, image())[0], expected)


def test_in_place_steps_without_readers_stay():
    model = seeded(InPlace)
    captured = prepared(model, image(), capture=capture_export)
    torch.testing.assert_close(outputs(captured, image())[0], model(image()), rtol=0, atol=1e-5)


def test_a_model_that_writes_its_buffers_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            return x + self.count.add_(x.mean())

    model = Counting()
    with pytest.raises(TraceError, match="writes its buffer 'count'"):
        prepared(model, image())
    assert model.count == 0


def test_view_becomes_reshape_because_channels_last_cannot_be_viewed():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            return x.view(x.size(0), -1)

    model = seeded(Model)
    captured = prepared(model, image())
    torch.testing.assert_close(outputs(captured, image())[0], model(image()), rtol=0, atol=1e-6)


def test_a_bias_from_weights_alone_is_computed_once_in_place_steps_included():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.randn(5, 2))
            self.mlp = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))

        def forward(self, x):
            return x + self.mlp(self.table).sum(0).view(3, 1, 1)

    model = seeded(Model)
    captured = prepared(model, image())
    assert targets(captured) == ["add"]
    torch.testing.assert_close(outputs(captured, image())[0], model(image()), rtol=0, atol=0)


def test_a_constant_that_is_written_later_is_not_taken_for_its_last_value():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([-1.0, 1.0]))

        def forward(self, x):
            doubled = self.weight * 2
            before = x * doubled
            doubled.relu_()
            return before + x * doubled

    model = Model().eval()
    captured = prepared(model, torch.ones(1, 2))
    for _ in range(2):
        assert outputs(captured, torch.ones(1, 2))[0].tolist() == [[-2.0, 4.0]]


def test_dtypes_and_devices_do_not_stay_values():
    class Model(nn.Module):
        def forward(self, x):
            mask = torch.ones(x.shape, dtype=x.dtype, device=x.device)
            return F.relu(x * mask)

    assert targets(prepared(Model(), image())) == ["getattr", "ones", "mul", "relu"]


def test_an_unknown_result_type_is_refused():
    class Model(nn.Module):
        def forward(self, x):
            return wrapped_result(x)

    with pytest.raises(TraceError, match="returns a object"):
        prepared(Model(), image())


def wrapped_result(x: torch.Tensor) -> object:
    return object()


torch.fx.wrap("wrapped_result")


@pytest.mark.parametrize("options", [{}, {"channels_last": False}, {"fold_batch_norm": False}])
@pytest.mark.parametrize("family", ["residual", "dense", "inverted_residual", "transposed", "volume", "sequence"])
def test_prepared_families_compute_the_same(family, options):
    build, arguments = FAMILIES[family]
    model = seeded(build)
    captured = prepared(model, *arguments(), **options)
    expected = model(*arguments())
    scale = expected.abs().max().item()
    torch.testing.assert_close(outputs(captured, *arguments())[0], expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("shape", "dtype", "memory_format"),
    [
        ((1, 3, 4, 4), torch.float32, torch.channels_last),
        ((1, 3, 4, 4), torch.uint8, torch.channels_last),
        ((1, 3, 4, 4), torch.int64, torch.contiguous_format),
        ((1, 3, 4, 4, 4), torch.float32, torch.channels_last_3d),
        ((2, 3, 4), torch.float32, torch.contiguous_format),
    ],
)
def test_layout_of(shape, dtype, memory_format):
    assert layout_of(torch.zeros(shape, dtype=dtype)).is_contiguous(memory_format=memory_format)
