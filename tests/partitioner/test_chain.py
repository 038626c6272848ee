"""Any CNN becomes a chain: same results, same bits layer by layer, sensible layers, clear errors."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from example_models import (
    FAMILIES,
    DataDependent,
    Detections,
    Pyramid,
    Residual,
    SharedModules,
    TwoInputs,
    conv_bn,
    image,
    seeded,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odin.partitioner.chain import TraceError, ValueSpec, build_chain


def assert_same_bits(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def assert_close_to_model(result: object, expected: object) -> None:
    results, wanted = pytree.tree_leaves(result), pytree.tree_leaves(expected)
    assert len(results) == len(wanted)
    for a, b in zip(results, wanted, strict=True):
        if isinstance(b, Tensor):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()
        else:
            assert a == b


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    build, arguments = FAMILIES[family]
    model = seeded(build)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chain = build_chain(model, arguments(), name=family)

    result = chain(*arguments())
    assert_close_to_model(result, model(*arguments()))
    assert type(result) is type(model(*arguments()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    # layer by layer, from a shipped program, over copies as a wire makes them, each layer run twice
    program = pickle.loads(pickle.dumps(chain.program))
    state = {name: tensor.clone() for name, tensor in chain.state.items()}
    packed = program.pack(state)
    inputs = chain.layout(chain.pack(arguments()))
    whole = chain.run(inputs)
    values = inputs
    with torch.inference_mode():
        for layer, code in zip(chain.layers, program.layers, strict=True):
            function = code.bind(packed)
            kept = tuple(value.clone() for value in values)
            produced = function(values)
            assert_same_bits(values, kept)
            assert_same_bits(function(values), produced)
            assert [(tuple(v.shape), v.numel() * v.element_size()) for v in produced] == [
                (spec.shape, spec.nbytes) for spec in layer.output
            ]
            values = tuple(torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).copy_(v) for v in produced)
    assert_same_bits(values, whole)
    assert all(torch.equal(state[name], tensor) for name, tensor in chain.state.items())

    # the caller's tensors are not written
    given = arguments()
    chain(*given)
    leaves = zip(pytree.tree_leaves(given), pytree.tree_leaves(arguments()), strict=True)
    assert all(torch.equal(a, b) for a, b in leaves if isinstance(a, Tensor))

    assert len({layer.name for layer in chain.layers}) == len(chain.layers)
    assert build_chain(model, arguments(), name=family).fingerprint == chain.fingerprint


@pytest.mark.parametrize(
    ("family", "names"),
    [
        (
            "residual",
            "conv1 layer1.0.conv1 layer1.0.conv2 layer1.1.conv1 layer1.1.conv2 layer2.0.downsample..conv1 "
            "layer2.0.conv2 layer2.1.conv1 layer2.1.conv2 fc",
        ),
        ("two_inputs", "left right fuse"),
        ("pyramid", "down1 down2 deep.0 deep.2 boxes"),
        ("stochastic_depth", "convs.0 convs.1 convs.2"),
        ("shape_dependent", "conv1 conv2"),
        ("functional_weights", "conv2d conv2d_1"),
    ],
)
def test_layer_names(family, names):
    build, arguments = FAMILIES[family]
    assert [layer.name for layer in build_chain(seeded(build), arguments()).layers] == names.split()


def test_without_splitting_coarse_layers_residual_blocks_are_layers():
    chain = build_chain(seeded(Residual), (image(),), coarse_share=1.0)
    assert [layer.name for layer in chain.layers] == [
        "conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc",
    ]  # fmt: skip
    assert all(len(layer.output) == 1 for layer in chain.layers)
    assert chain.layers[0].output == (ValueSpec("tensor", (1, 8, 8, 8), "float32", 8 * 64 * 4),)
    assert chain.layers[0].flops == 2 * 8 * 256 * 27
    assert chain.layers[0].parameter_nbytes == 4 * (8 * 27 + 8)


@pytest.mark.parametrize("family", ["residual", "shuffle", "dense", "pyramid", "two_inputs", "shape_dependent"])
def test_any_leading_size(family):
    build, arguments = FAMILIES[family]
    model = seeded(build)
    chain = build_chain(model, arguments())
    assert chain.dynamic_batch
    more = pytree.tree_map(lambda x: torch.cat([x, x + 1, x - 1]) if isinstance(x, Tensor) else x, arguments())
    assert_close_to_model(chain(*more), model(*more))


def test_a_fixed_leading_size_is_noticed_and_held():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(1, -1)

    chain = build_chain(Fixed(), (image(),))
    assert not chain.dynamic_batch
    with pytest.raises(ValueError, match=r"expected shape \(1, 3, 16, 16\), got \(2, 3, 16, 16\)"):
        chain(image(batch=2))


def test_samples_that_depend_on_each_other_are_not_batched():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert not build_chain(model, (image(),)).dynamic_batch


def test_output_structure():
    result = build_chain(seeded(Pyramid), (image(size=18),))(image(size=18))
    assert type(result) is Detections
    assert type(result.pyramid) is list
    result = build_chain(seeded(TwoInputs), ((image(), image(channels=1)),))((image(), image(channels=1)))
    assert list(result) == ["out", "aux", "mean"]
    assert result["aux"] is None


def test_lists_numbers_and_broadcast_outputs():
    class Model(nn.Module):
        def forward(self, x):
            values, indices = torch.max(x, 1)
            return torch.max(x, 2), [values, indices], x.shape, x.shape[0], values[:, :1].expand(-1, 4, -1), None

    model = Model()
    chain = build_chain(model, (image(batch=3),))
    result, expected = chain(image(batch=3)), model(image(batch=3))
    assert not chain.dynamic_batch  # parts of a larger request would say that they are three
    assert type(result[0]) is type(expected[0])
    assert_close_to_model(result, expected)
    assert result[2] == torch.Size([3, 3, 16, 16])
    assert type(result[2]) is torch.Size
    assert result[3] == 3
    assert all(v.is_contiguous() for v in pytree.tree_leaves(result) if isinstance(v, Tensor))


def test_an_output_is_never_a_weight_itself():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = nn.Parameter(torch.ones(1, 3))

        def forward(self, x):
            return x.mean((2, 3)), self.prior

    chain = build_chain(Model(), (image(),))
    assert torch.equal(chain(image())[1], torch.ones(1, 3))
    assert all(tensor.data_ptr() != chain(image())[1].data_ptr() for tensor in chain.state.values())


def test_a_model_that_does_nothing_is_one_layer():
    chain = build_chain(nn.Identity(), (image(),))
    assert [layer.name for layer in chain.layers] == ["identity"]
    assert torch.equal(chain(image()), image())


def test_shared_modules_keep_one_copy_of_their_weights():
    chain = build_chain(seeded(SharedModules), (image(),))
    assert {name for name in chain.state if name.startswith("conv.")} == {"conv.weight", "conv.bias"}


def test_training_mode_models_are_used_as_in_eval_and_left_in_training():
    model = seeded(lambda: nn.Sequential(*conv_bn(3, 4), nn.Dropout(0.9))).train()
    chain = build_chain(model, (image(),))
    assert model.training
    assert_close_to_model(chain(image()), model.eval()(image()))


def test_nan_passes_through():
    result = build_chain(seeded(Residual), (image(),))(torch.full((1, 3, 16, 16), torch.nan))
    assert result.isnan().all()


def test_half_precision_models():
    model = seeded(Residual).bfloat16()
    chain = build_chain(model, (image().bfloat16(),))
    assert chain(image().bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
def test_exported_programs(dynamic):
    model = seeded(Residual)
    example = image(batch=2)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), file)
    file.seek(0)
    chain = build_chain(torch.export.load(file), (example,))
    assert chain.captured_with == "torch.export"
    assert chain.dynamic_batch is dynamic
    assert chain.layers[0].name == "conv1"
    assert_close_to_model(chain(example), model(example))


def test_build_inside_inference_mode():
    with torch.inference_mode():
        chain = build_chain(seeded(Residual), (image(),))
        assert_close_to_model(chain(image()), seeded(Residual)(image()))


def test_fingerprint_tells_structures_and_shapes_apart_but_not_weights():
    chains = {
        "base": build_chain(seeded(Residual), (image(),)),
        "weights": build_chain(seeded(Residual, seed=1), (image(),)),
        "size": build_chain(seeded(Residual), (image(size=20),)),
        "cuts": build_chain(seeded(Residual), (image(),), coarse_share=1.0),
    }
    prints = {name: chain.fingerprint for name, chain in chains.items()}
    assert prints["base"] == prints["weights"]
    assert len(set(prints.values())) == 3


def test_data_dependent_control_flow_names_place_and_remedy():
    with pytest.raises(TraceError) as raised:
        build_chain(nn.Sequential(DataDependent()), (image(),))
    message = str(raised.value)
    assert "example_models.py" in message
    assert "if x.sum() > 0:" in message
    assert "torch.fx.wrap" in message
    assert "ExportedProgram" in message


@pytest.fixture(scope="module")
def residual():
    return build_chain(seeded(Residual), (image(),), name="residual")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 15, 16),), r"expected shape \(any, 3, 16, 16\), got \(2, 3, 15, 16\)"),
        ((torch.zeros(3, 16, 16),), r"expected shape \(any, 3, 16, 16\), got \(3, 16, 16\)"),
        ((torch.zeros(0, 3, 16, 16),), "leading size 0"),
        ((torch.zeros(1, 3, 16, 16, dtype=torch.float64),), "expected dtype float32, got float64"),
        ((torch.zeros(1, 3, 16, 16, device="meta"),), "expected device cpu, got meta"),
        ((torch.zeros(1, 3, 16, 16), 1), r"structure \(Tensor, int\), the model takes \(Tensor,\) as in the example"),
        ((), r"structure \(\), the model takes \(Tensor,\)"),
        (([0.0] * 1000,), r"structure \(\[float, (float, )*f?l?o?a?t?,?\.\.\., the model takes \(Tensor,\)"),
        (({"x": torch.zeros(1, 3, 16, 16)},), r"structure \({'x': Tensor},\), the model"),
        (("text",), r"is of type str, the model takes a tensor there; torch\.as_tensor"),
        ((np.zeros((1, 3, 16, 16)),), r"is of type ndarray, the model takes a tensor there; torch\.as_tensor"),
    ],
)
def test_arguments_that_do_not_fit(residual, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        residual(*arguments)
    assert len(str(caught.value)) < 300
    fitting = (image(),)
    for _ in range(2):  # a first call is looked at more closely than those like it
        assert residual.pack(fitting)[0] is fitting[0]
    with pytest.raises(ValueError, match=message):
        residual.pack(arguments)


def test_arguments_like_those_before_need_one_leading_size_too():
    class Added(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    chain = build_chain(Added(), (image(), image()))
    for batch in (1, 2, 1):
        pair = (image(batch=batch), image(batch=batch))
        assert all(packed is given for packed, given in zip(chain.pack(pair), pair, strict=True))
    for pair in ((image(batch=2), image()), (image(), image(batch=2))):
        with pytest.raises(ValueError, match="common leading size"):
            chain.pack(pair)


def test_inputs_need_one_leading_size():
    chain = build_chain(seeded(TwoInputs), ((image(), image(channels=1)),))
    with pytest.raises(ValueError, match="common leading size"):
        chain((image(batch=2), image(channels=1)))


def test_fixed_arguments_must_be_the_examples():
    chain = build_chain(seeded(TwoInputs), ((image(), image(channels=1)), 0.5))
    with pytest.raises(ValueError, match=r"is 0.25, but the chain was built for 0.5"):
        chain((image(), image(channels=1)), 0.25)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Conv2d(3, 3, 1), image(), "must be the tuple"),
        (nn.Conv2d(3, 3, 1), (3,), "hold no tensor"),
        (
            nn.Conv2d(3, 3, 1),
            (image(channels=2),),
            r"fails on its example arguments \(tensor shapes \[\(1, 2, 16, 16\)\]\)",
        ),
        ("resnet50", (image(),), "expected a torch.nn.Module"),
    ],
)
def test_bad_models_and_examples(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_chain(model, arguments)


def test_shares_are_checked():
    with pytest.raises(ValueError, match="coarse_share is a share"):
        build_chain(nn.Conv2d(3, 3, 1), (image(),), coarse_share=10)
