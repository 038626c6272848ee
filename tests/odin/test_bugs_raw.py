"""Models and inputs that ended in an error of PyTorch's own or in a wrong reason: served, or refused by a sentence."""

from __future__ import annotations

import collections
import copy
import dataclasses
import io
import logging
import random
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import operators_for_stages
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import odin
from odin.partitioner.code.operators import Home
from odin.partitioner.graph.capture import private_copy
from odin.partitioner.graph.values import comparable


def image(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 8, 8, generator=generator).mul(9).to(dtype)


class Model(nn.Module):
    """Two convolutions, and between and after them what a test wants."""

    def __init__(self, forward: Callable[[Any, Any], Any] | None = None, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.does = forward or (lambda self, x: self.last(F.relu(self.conv(x))))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Any) -> Any:
        return self.does(self, x)


def same(got: Any, wanted: Any) -> None:
    assert type(got) is type(wanted)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(comparable(got), comparable(wanted), rtol=0, atol=1e-4)


def check(model: nn.Module, *args: Any) -> odin.Chain:
    """Build the chain and compare it with the model."""
    chain = odin.build_chain(model, args)
    with torch.no_grad():
        same(chain(*args), model.eval()(*args))
    return chain


# --- attributes that cannot be copied ----------------------------------------------------------------------------


class Guarded:
    """A user's object that holds a lock, tensors and an activation."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen = [torch.ones(2, requires_grad=True) * 2]
        self.counts = {"calls": 0}


ATTRIBUTES: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "re-entrant lock": threading.RLock,
    "condition": threading.Condition,
    "thread": threading.Thread,
    "thread-local": threading.local,
    "file": lambda: open("/dev/null"),  # noqa: SIM115  # closed with the model
    "buffer": io.BytesIO,
    "generator": lambda: (i for i in range(3)),
    "logger": lambda: logging.getLogger("x"),
    "module": lambda: np,
    "weak reference": lambda: weakref.ref(threading.current_thread()),
    "mapping proxy": lambda: types.MappingProxyType({}),
    "lambda": lambda: lambda x: x,
    "activation": lambda: torch.ones(2, requires_grad=True) * 2,
    "several, nested": lambda: [{"a": (threading.Lock(), torch.ones(2, requires_grad=True) * 2)}, (i for i in [])],
    "object with a lock": Guarded,
}


@pytest.mark.parametrize("attribute", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_attributes_that_cannot_be_copied(attribute):
    """A lock anywhere in a model: "cannot pickle '_thread.lock' object"."""
    check(Model(extra=attribute()), image())


def test_what_can_be_copied_is_the_copys_own():
    model = Model(extra=Guarded())
    copied = private_copy(model)
    assert copied.extra.lock is model.extra.lock
    assert copied.extra.counts is not model.extra.counts
    assert copied.extra.seen[0] is not model.extra.seen[0]
    assert copied.extra.seen[0].grad_fn is None
    assert model.extra.seen[0].grad_fn is not None


def test_kept_activations():
    """A model that keeps its last features was refused after it had been run with gradients (pytorch#54580)."""

    def keep(self, x):
        y = self.conv(x)
        self.seen = [y]
        return F.relu(y)

    model = Model(keep, seen=[])
    model(image())
    assert model.seen[0].grad_fn is not None
    private_copy(model)
    assert model.seen[0].grad_fn is not None


@pytest.mark.parametrize("count", [1, 2])
def test_features_that_a_hook_keeps_are_not_frozen(count):
    """What a hook had kept of an earlier call was taken for a constant: modules of torch are not looked into."""

    def forward(self, x):
        self.conv(x)
        return self.features["conv"] + 1

    model = Model(forward, features={})
    model.conv.register_forward_hook(lambda module, args, output: model.features.update(conv=output))
    model(image(count))
    chain = odin.build_chain(model, (image(count),))
    with torch.no_grad():
        same(chain(-image(count)), model(-image(count)))


def test_a_lock_that_forward_takes():
    def locked(self, x):
        with self.lock:
            return self.last(self.conv(x))

    check(Model(locked, lock=threading.Lock()), image())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_hooks_and_weights_that_hooks_compute():
    model = Model()
    model.conv.register_forward_hook(lambda module, args, output: output * 2)
    model.register_forward_hook(lambda module, args, output: output + 1)
    model.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    check(model, image())
    check(nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.utils.weight_norm(nn.Conv2d(4, 4, 3))), image())


# --- types of numbers --------------------------------------------------------------------------------------------

UNUSUAL = [
    torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.complex32, torch.complex64, torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("dtype", UNUSUAL, ids=str)
def test_unusual_types_go_in_through_and_out(dtype):
    """16-bit images were refused: "flip_cpu" not implemented for 'UInt16' (pytorch#137770)."""

    def through(self, x):
        real = x.to(torch.complex64).real if x.is_complex() else x.float()
        return self.conv(real).abs().to(dtype)

    chain = check(Model(through), image(dtype=dtype))
    assert chain.dynamic_batch
    assert chain.inputs[0].dtype == chain.layers[-1].output[0].dtype == str(dtype).removeprefix("torch.")


def test_complex_results_are_compared_as_real_ones_are():
    """Rounding made a complex result "differ", so that nothing was folded and several images refused."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model[1].running_var.fill_(3.7)
    chain = odin.build_chain(Model(lambda self, x: torch.fft.fft2(self.net(x)), net=model), (image(1),))
    assert chain.dynamic_batch
    assert not any("running_var" in name for name in chain.state)
    with torch.no_grad():
        torch.testing.assert_close(chain(image(5)), torch.fft.fft2(model(image(5))), rtol=0, atol=1e-3)


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([image()[0], image()[1]])


UNUSABLE: dict[str, tuple[Callable[[], Tensor], str]] = {
    "sparse": (lambda: image().to_sparse(), r"layout sparse_coo: convert it with \.to_dense\(\)"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), r"layout sparse_csr"),
    "oneDNN's": (lambda: image().to_mkldnn(), r"layout _mkldnn"),
    "nested": (nested, r"a nested tensor: pad it"),
    "quantized": (lambda: torch.quantize_per_tensor(image(), 0.1, 0, torch.qint8), r"quantized tensor \(qint8\)"),
    "fake": (lambda: FakeTensorMode().from_tensor(image()), r"a FakeTensor"),
    "meta": (lambda: image().to("meta"), r"on the meta device"),
    "bits": (lambda: torch.empty(2, dtype=torch.bits8), r"of dtype bits8"),
    "four bits": (lambda: torch.empty(2, dtype=torch.uint4), r"of dtype uint4"),
    "four-bit float": (lambda: torch.empty(2, dtype=torch.float4_e2m1fn_x2), r"of dtype float4_e2m1fn_x2"),
}


@pytest.mark.filterwarnings("ignore")  # that sparse rows and quantized tensors are beta, or deprecated
@pytest.mark.parametrize(("make", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_tensors_that_stages_cannot_exchange_are_named(make, message):
    with pytest.raises(ValueError, match=rf"input 0 is .*{message}"):
        odin.build_chain(Model(), (make(),))
    chain = odin.build_chain(Model(), (image(),))
    chain.pack((image(),))
    if make is not UNUSABLE["meta"][0]:  # said by the device
        with pytest.raises(ValueError, match=message):
            chain.pack((make(),))


class Photograph(Tensor):
    """A subclass with a name and nothing more, as torchvision and fastai have them."""


def test_tensors_of_other_origins():
    with torch.inference_mode():
        inferred = image()
    chain = check(Model(), image())
    wanted = chain(image())
    for x in (image().requires_grad_(), inferred, nn.Parameter(image()), image().as_subclass(Photograph)):
        got = chain(x)
        assert type(got) is Tensor
        assert torch.equal(got, wanted)
        assert torch.equal(odin.build_chain(Model(), (x,))(x), wanted)


@pytest.mark.filterwarnings("ignore")  # quantized tensors are deprecated
def test_unusual_intermediates_do_not_cross_cuts():
    def sparse(self, x):
        return self.last(self.conv(x).relu().to_sparse().to_dense())

    def quantized(self, x):
        return self.last(torch.quantize_per_tensor(self.conv(x), 0.1, 0, torch.qint8).dequantize())

    for forward in (sparse, quantized):
        chain = check(Model(forward), image())
        assert {value.kind for layer in chain.layers for value in layer.output} == {"tensor"}


def test_weights_that_stages_cannot_hold_are_named():
    def product(self, x):
        return torch.sparse.mm(self.mask, self.conv(x).mean((0, 2, 3))[:, None])

    with pytest.raises(odin.TraceError, match=r"weight 'mask' is a tensor of layout sparse_coo: .*to_dense"):
        odin.build_chain(Model(product, mask=torch.eye(4).to_sparse()), (image(),))
    with pytest.raises(odin.TraceError, match=r"weight 'conv\.weight' is on the meta device"):
        odin.build_chain(Model().to("meta"), (image(),))
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(odin.TraceError, match=r"weight '0\.weight' has no shape yet.*run the model once"):
        odin.build_chain(lazy, (image(),))
    assert isinstance(lazy[0], nn.LazyConv2d)  # not made definite by us

    def dense(self, x):
        return self.conv(x) * self.mask.to_dense().sum()

    check(Model(dense, mask=torch.eye(4).to_sparse()), image())


# --- programs ----------------------------------------------------------------------------------------------------


def test_the_module_of_an_exported_program():
    """load_source: "Calling eval() is not supported yet"."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU()).eval()
    for shapes, free in ((None, False), (({0: torch.export.Dim.AUTO},), True)):
        program = torch.export.export(model, (image(),), dynamic_shapes=shapes)
        source = odin.load_source(program.module(), example_input=image())
        chain = odin.build_chain(source.model, source.example_args)
        assert chain.dynamic_batch is free
        with torch.no_grad():
            same(chain(image()), model(image()))


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_torchscript_is_refused_by_name(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    scripted, traced = torch.jit.script(plain), torch.jit.trace(plain, image())
    for model in (scripted, traced):
        with pytest.raises(odin.TraceError, match=r"the model is a TorchScript program .* Python module"):
            odin.build_chain(odin.load_source(model, example_input=image()).model, (image(),))
    with pytest.raises(odin.TraceError, match=r"its module '1' is a TorchScript program"):
        odin.build_chain(nn.Sequential(nn.Identity(), scripted), (image(),))
    torch.jit.save(scripted, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt' is a TorchScript program"):
        odin.load_source(tmp_path / "model.pt")


def wrapped(model: nn.Module) -> dict[str, nn.Module]:
    compiled = torch.compile(copy.deepcopy(model))
    in_place, method = copy.deepcopy(model), copy.deepcopy(model)
    in_place.compile()
    method.forward = torch.compile(method.forward)
    return {
        "torch.compile": compiled,
        "module.compile": in_place,
        "compiled forward": method,
        "twice": torch.compile(nn.DataParallel(copy.deepcopy(model))),
        "inside": nn.Sequential(nn.Identity(), torch.compile(copy.deepcopy(model))),
        "DataParallel": nn.DataParallel(copy.deepcopy(model)),
        "AveragedModel": torch.optim.swa_utils.AveragedModel(copy.deepcopy(model)),
    }


@pytest.mark.parametrize("kind", list(wrapped(nn.Identity())))
def test_wrappers_are_taken_off(kind):
    """A compiled ResNet took 83 s: it was compiled, then exported, instead of being taken as what it was made from."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = Model().eval()
    source = odin.load_source(wrapped(model)[kind], example_input=image())
    chain = odin.build_chain(source.model, source.example_args)
    assert (chain.captured_with, len(chain.layers)) == ("torch.fx", 2)
    assert not counters["frames"]  # nothing was compiled
    with torch.no_grad():
        same(chain(image()), model(image()))


def test_weights_go_into_the_module_inside_a_wrapper(tmp_path):
    torch.save({name: torch.ones_like(value) for name, value in Model().state_dict().items()}, tmp_path / "w.pth")
    source = odin.load_source(torch.compile(Model()), weights=tmp_path / "w.pth", example_input=image())
    assert source.name == "model"
    assert source.model.conv.weight.eq(1).all()


# --- random numbers ----------------------------------------------------------------------------------------------

RANDOM: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout": lambda self, x: F.dropout(self.conv(x), 0.5, training=True),
    "rand": lambda self, x: self.conv(x) + torch.rand(1),
    "within the tolerance": lambda self, x: self.conv(x) + torch.rand(1) * 1e-9,
    "without influence": lambda self, x: self.conv(x) + torch.randn_like(x[:, :1, :6, :6]) * 0,
    "bernoulli": lambda self, x: self.conv(x) * torch.bernoulli(torch.full((4, 1, 1), 0.5)),
    "Gumbel": lambda self, x: F.gumbel_softmax(self.conv(x)),
    "permutation": lambda self, x: self.conv(x)[:, torch.randperm(4)],
    "in place": lambda self, x: self.conv(x) + torch.empty(1).normal_(),
    "generator": lambda self, x: self.conv(x) + torch.randn(1, generator=self.generator),
    "seeded in forward": lambda self, x: self.conv(x) + torch.randn(1, generator=torch.manual_seed(0)),
    "numpy": lambda self, x: self.conv(x) + float(np.random.rand()) * 1e-9,
    "numpy's generator": lambda self, x: self.conv(x) + float(self.numpy.random()) * 1e-9,
    "random": lambda self, x: self.conv(x) + random.random() * 1e-9,
}


@pytest.mark.parametrize("forward", RANDOM.values(), ids=RANDOM)
def test_random_numbers_are_refused_and_never_frozen(forward):
    """A number that was drawn while the model was captured became a constant of the chain, or "deviates" was said."""
    model = Model(forward, generator=torch.Generator(), numpy=np.random.default_rng())
    with pytest.raises(
        odin.TraceError, match=r"draws random numbers .* so its results vary from call to call\. Remedies"
    ):
        odin.build_chain(model, (image(),))


def test_random_numbers_of_an_exported_program():
    program = torch.export.export(Model(RANDOM["rand"]), (image(),))
    with pytest.raises(odin.TraceError, match="vary from call to call"):
        odin.build_chain(program, (image(),))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.dropout(self.conv(x), 0.0, training=True),
        lambda self, x: F.rrelu(self.conv(x)),
        lambda self, x: F.alpha_dropout(self.conv(x), 0.5),
        lambda self, x: F.scaled_dot_product_attention(self.conv(x), self.conv(x), self.conv(x), dropout_p=0.0),
    ],
)
def test_what_only_could_draw_is_served(forward):
    check(Model(forward), image())


# --- sizes that depend on the data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (lambda y: y[y > 0])(self.conv(x)),
        lambda self, x: torch.nonzero(self.conv(x) > 0),
        lambda self, x: torch.masked_select(self.conv(x), self.conv(x) > 0),
        lambda self, x: torch.unique(self.conv(x).round()),
        lambda self, x: (lambda y: y[y > 0] * 2 + 1)(self.conv(x)),
        lambda self, x: (self.conv(x), torch.nonzero(self.conv(x) > 0)[:, 0].flip(0)),
        lambda self, x: torch.repeat_interleave(self.conv(x), x[:, 0, 0, 0].long(), 0),
    ],
)
def test_outputs_whose_size_depends_on_the_data(forward):
    """They were built for the example's size, and said to be too large for a micro-batch when they were larger."""
    with pytest.raises(odin.TraceError, match=r"size of output \d .*depends on the data .*sizes that are known before"):
        odin.build_chain(Model(forward), (image(),))


def test_sizes_that_only_pass_by_a_mask_are_served():
    def assigned(self, x):
        y = self.conv(x).clone()
        y[y < 0] = 0
        return y

    for forward in (
        assigned,
        lambda self, x: self.conv(x)[:, self.mask > 0],
        lambda self, x: self.conv(x)[:, :, torch.ones(6, 6).tril() > 0],
        lambda self, x: torch.repeat_interleave(self.conv(x), torch.tensor([1, 2, 1, 0]), 1),
        lambda self, x: torch.topk(self.conv(x).flatten(1), 5).values,
    ):
        check(Model(forward, mask=torch.tensor([1.0, 0, 1, 0])), image())


def test_a_value_whose_size_depends_on_the_data_crosses_no_cut():
    """The example's size was the slot's; a request with more above zero would not have fitted."""

    def forward(self, x):
        y = self.conv(x)
        positive = y[y > 0]
        return self.last(y) + positive.mean()

    chain = check(Model(forward), image())
    assert all(len(value.shape) in (0, 4) for layer in chain.layers for value in layer.output)


# --- what models return ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Result:
    scores: Tensor
    count: int = 3
    aux: Any = None


class Attributes(dict):  # type: ignore[type-arg]  # as in transformers' ModelOutput
    def __getattr__(self, name: str) -> Any:
        return self[name]


class Ordered(collections.OrderedDict):  # type: ignore[type-arg]  # as above
    pass


def test_results_in_classes_of_ones_own():
    x, model = image(), Model()
    wanted = model.conv(x).detach()

    def result(forward: Callable[[Any, Tensor], Any]) -> Any:
        return odin.build_chain(Model(forward), (x,))(x)

    got = result(lambda self, x: Result(self.conv(x), aux=[self.conv(x), None]))
    assert isinstance(got, Result)
    assert got.count == 3
    assert got.aux[1] is None
    same(got.scores, wanted)
    got = result(lambda self, x: Attributes(a=self.conv(x), b=Result(self.conv(x))))
    assert type(got) is Attributes
    same(got.b.scores, wanted)
    got = result(lambda self, x: Ordered(b=self.conv(x), a="text"))
    assert (type(got), list(got), got["a"]) == (Ordered, ["b", "a"], "text")


class Odd:
    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: Odd(self.conv(x)), "the model returns a Odd; return tensors"),
        (lambda self, x: {self.conv(x)}, "the model returns a set; return tensors"),
        (lambda self, x: self.conv(x).detach().numpy(), "the model returns a ndarray; return tensors"),
        (lambda self, x: self.conv(x).to_sparse(), "stages cannot exchange: it is a tensor of layout sparse_coo"),
        (lambda self, x: None, "returns nothing that depends on its inputs"),
        (lambda self, x: "text", "returns nothing that depends on its inputs"),
        (lambda self, x: (), "returns nothing that depends on its inputs"),
    ],
)
def test_results_that_cannot_be_returned(forward, message):
    with pytest.raises(odin.TraceError, match=message):
        odin.build_chain(Model(forward), (image(),))


# --- operators of one's own --------------------------------------------------------------------------------------


def own_operators(self: Any, x: Tensor) -> Any:
    y = operators_for_stages.twice(self.conv(x.float()))
    y = self.last(torch.ops.odin_tests.plus_one(y))
    return Attributes(a=torch.fft.fft2(torch.ops.odin_tests_library.minus_three(y)), n=(y * 100).abs().to(torch.uint32))


def test_where_operators_come_from_is_part_of_the_program():
    chain = odin.build_chain(Model(own_operators), (image(dtype=torch.uint16),))
    assert {home.name for layer in chain.program.layers for home in layer.imports} == {"operators_for_stages"}
    plain = odin.build_chain(Model(), (image(),))
    assert {home for layer in plain.program.layers for home in layer.imports} == set()


def test_an_operator_that_stages_cannot_have_is_named_at_build(monkeypatch):
    @torch.library.custom_op("odin_tests::inside", mutates_args=())
    def inside(x: Tensor) -> Tensor:
        return x * 2

    with pytest.raises(
        odin.TraceError, match=r"operator odin_tests::inside is defined inside of a function .* top of a"
    ):
        odin.build_chain(Model(lambda self, x: inside(self.conv(x))), (image(),))
    for module in ("__main__", "nowhere_to_be_found"):
        monkeypatch.setattr(operators_for_stages.twice._init_fn, "__module__", module)
        with pytest.raises(odin.TraceError, match=rf"operator odin_tests::twice is defined in {module}, which stages"):
            odin.build_chain(Model(own_operators), (image(dtype=torch.uint16),))


def test_a_process_without_the_operator_says_so(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    chain = odin.build_chain(Model(own_operators), (image(dtype=torch.uint16),))
    layer = next(layer for layer in chain.program.layers if layer.imports)
    with pytest.raises(ImportError, match="cannot load nowhere_at_all, which defines what the model calls"):
        dataclasses.replace(layer, imports=(Home("nowhere_at_all", "/"),)).bind(chain.state)
    gone = dataclasses.replace(layer, functions=("torch.ops.odin_tests.not_there",) * len(layer.functions), imports=())
    with pytest.raises(ImportError, match=r"torch\.ops\.odin_tests\.not_there"):
        gone.bind(chain.state)


@pytest.mark.ray
def test_all_of_it_through_stages(two_cores):
    """Operators, 16-bit images, complex and 32-bit results and a class of one's own, through processes of their own."""
    chain = odin.build_chain(Model(own_operators, lock=threading.Lock()), (image(dtype=torch.uint16),))
    plan = odin.Plan((1, len(chain.layers) - 1))
    x = image(5, torch.uint16)
    with odin.Pipeline(chain, stages=two_cores, plan=plan, policy="static") as pipe:
        got = pipe(x)  # cut into three
        with pytest.raises(ValueError, match="nested"):
            pipe.submit(nested())
        same(pipe(image(2, torch.uint16)).n, chain(image(2, torch.uint16)).n)
    wanted = Model(own_operators).eval()(x)
    assert type(got) is Attributes
    assert got.n.dtype == torch.uint32
    torch.testing.assert_close(got.a, wanted.a.detach(), rtol=0, atol=1e-2)
    torch.testing.assert_close(got.n.long(), wanted.n.long(), rtol=0, atol=1)
