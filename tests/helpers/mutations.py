"""Random mutations of valid requests against the eager model: each is answered right, or refused with a sentence.

A mutation changes a valid request in one to three ways: dtype, memory layout, subclass, number of samples, structure,
NaN and infinities anywhere. The model itself, run eagerly on the same request, is the judge::

    python tests/helpers/mutations.py --count 10000 --seed 0
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

import odin
from odin.stages.device import usable_cores

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / folder) for folder in ("odin", "odin_lab"))
TOLERANCE = 1e-4
NEAR_OVERFLOW = 1e37
"""Beyond this magnitude rounding decides what overflows: only that no number stands for a NaN is compared there."""


class Judgement(NamedTuple):
    """What became of one mutated request; ``fault`` is empty if it was answered right or refused well."""

    outcome: str
    fault: str = ""


# -- models ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Convolutions, batch norm, a residual, ReLU, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.m = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.f = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu(self.n(self.a(x)))
        y = nn.functional.max_pool2d(nn.functional.relu(y + self.m(self.b(y))), 2)
        return self.f(y.mean((2, 3)))


class Normalised(nn.Module):
    """Divides by what may be zero, then clipped activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        y = nn.functional.relu6(self.a((x - low) / (high - low)))
        y = nn.functional.hardswish(self.b(y))
        return self.c(nn.functional.relu(y / y.norm(dim=1, keepdim=True)))


class Roots(nn.Module):
    """Roots and logarithms between fused convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = nn.functional.relu(self.b(self.a(x).sqrt()))
        return {"map": nn.functional.leaky_relu(self.c((y - 0.1).log())), "mean": y.mean((1, 2, 3))}


class Bytes(nn.Module):
    """Pixels as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(nn.functional.relu(self.a(x.float() / 255 - 0.5)))


class Two(nn.Module):
    """Two inputs, one of them in a dict, and a fixed number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.e = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Embedding(7, 4)

    def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor], gain: float) -> tuple[torch.Tensor, torch.Tensor]:
        y = nn.functional.relu(self.a(x)) + self.e(more["kind"])[:, :, None, None]
        return self.b(y) * gain, y.amax((1, 2, 3))


class Frames(nn.Module):
    """Frames on the leading axis, each depending on those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.f = nn.Conv2d(3, 6, 3), nn.LSTM(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.r(nn.functional.relu(self.a(x)).mean((2, 3)))[0])


class Halves(nn.Module):
    """Channel halves that stay views across many layers, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, y = self.a(x).chunk(2, dim=1)
        for _ in range(3):
            y = nn.functional.silu(self.b(y))
        return self.c(torch.cat([kept, y], dim=1))


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise as an image."""
    return torch.rand(*shape, dtype=dtype)


def subjects() -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """Models with an example each."""
    torch.manual_seed(0)
    made: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
        ("residual", Residual(), (picture(2, 3, 12, 12),)),
        ("normalised", Normalised(), (picture(1, 3, 10, 10),)),
        ("roots", Roots(), (picture(1, 3, 10, 10),)),
        ("bytes", Bytes(), (torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8),)),
        ("two inputs", Two(), (picture(2, 3, 8, 8), {"kind": torch.tensor([1, 5])}, 0.5)),
        ("frames", Frames(), (picture(4, 3, 8, 8),)),
        ("halves, f64", Halves().double(), (picture(1, 3, 8, 8, dtype=torch.float64),)),
    ]
    for _, model, _ in made:
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made


# -- mutations ------------------------------------------------------------------------------------------------------


class Marked(torch.Tensor):
    """A subclass without behaviour of its own."""


DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
SPECIAL = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-42, 1e30, -1e30, 3e38]


def fresh(tensor: torch.Tensor, draw: random.Random, samples: int | None = None) -> torch.Tensor:
    """New content of the same kind."""
    shape = (samples if samples is not None else tensor.shape[0], *tensor.shape[1:])
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    if tensor.dtype.is_floating_point:
        return torch.rand(shape, generator=generator, dtype=tensor.dtype)
    high = 256 if tensor.dtype is torch.uint8 else 7
    return torch.randint(0, high, shape, generator=generator, dtype=tensor.dtype)


def other_dtype(tensor: torch.Tensor, draw: random.Random) -> Any:
    """Any dtype that torch has."""
    return tensor.to(draw.choice(DTYPES))


def other_layout(tensor: torch.Tensor, draw: random.Random) -> Any:
    """The same values at other places in memory."""
    kinds: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda: torch.stack([tensor, tensor + 1], dim=-1)[..., 0],
        lambda: torch.cat([tensor, tensor])[: len(tensor)],
        lambda: torch.cat([tensor[:1], tensor])[1:],
        lambda: tensor.repeat_interleave(2, dim=0)[::2],
        lambda: tensor.flip(0).flip(0),
        lambda: tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.t().t(),
        lambda: tensor[:1].expand_as(tensor),
        lambda: tensor[..., :1].expand_as(tensor),
        lambda: torch.empty(tensor.numel() + 3, dtype=tensor.dtype)[3:].view_as(tensor).copy_(tensor),
        lambda: torch.as_strided(tensor.contiguous(), tensor.shape, [0] * tensor.dim()),
    ]
    return draw.choice(kinds)()


def other_kind(tensor: torch.Tensor, draw: random.Random) -> Any:
    """A tensor of another class, or no tensor at all."""
    kinds: list[Callable[[], Any]] = [
        lambda: tensor.as_subclass(Marked),
        lambda: nn.Parameter(tensor, requires_grad=tensor.is_floating_point()),
        lambda: tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor,
        lambda: inference_copy(tensor),
        lambda: torch._neg_view(tensor) if tensor.is_floating_point() else tensor,
        lambda: torch.complex(tensor, tensor).conj() if tensor.dtype is torch.float32 else tensor,
        lambda: tensor.numpy(),
        lambda: tensor.tolist(),
        lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: tensor.to_mkldnn() if tensor.dtype is torch.float32 else tensor,
        lambda: torch.nested.nested_tensor(list(tensor)),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
        lambda: None,
        lambda: draw.choice([0, 1.5, "image", b"", object(), float("nan"), Path("image.png"), [tensor], {"x": tensor}]),
    ]
    return draw.choice(kinds)()


def inference_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor made in inference mode."""
    with torch.inference_mode():
        return tensor.clone()


def other_shape(tensor: torch.Tensor, draw: random.Random) -> Any:
    """Another number of axes, or other sizes."""
    kinds: list[Callable[[], torch.Tensor]] = [
        lambda: tensor[0],
        lambda: tensor[None],
        lambda: tensor[..., :-1] if tensor.dim() > 1 else tensor[:-1],
        lambda: torch.cat([tensor, tensor], dim=-1),
        lambda: tensor.flatten(),
        lambda: tensor.sum(),
        lambda: tensor[:, :0] if tensor.dim() > 1 else tensor[:0],
        lambda: tensor.movedim(1, -1) if tensor.dim() > 1 else tensor,
    ]
    return draw.choice(kinds)()


def special_values(tensor: torch.Tensor, draw: random.Random) -> Any:
    """NaN, infinities, zeros and extremes: at one place, in a channel, in a sample, everywhere."""
    changed = tensor.clone()
    value: Any = draw.choice(SPECIAL)
    if not tensor.is_floating_point():
        value = draw.choice([0, 6, 7, 127, 255, -1]) if tensor.dtype is not torch.uint8 else draw.choice([0, 255])
    for _ in range(draw.choice([1, 1, 2, 3])):
        place = tuple(draw.randrange(size) for size in tensor.shape)
        depth = draw.randint(0, len(place))
        changed[place[:depth]] = value
        if draw.random() < 0.5 and tensor.is_floating_point():
            value = draw.choice(SPECIAL)
    return changed


def each_tensor(
    args: tuple[Any, ...], draw: random.Random, mutate: Callable[[torch.Tensor, random.Random], Any]
) -> tuple[Any, ...]:
    """Mutate one of the tensors, if it is one still."""
    leaves, spec = pytree.tree_flatten(args)
    places = [i for i, leaf in enumerate(leaves) if type(leaf) is torch.Tensor and leaf.dim() and leaf.numel()]
    if places:
        place = draw.choice(places)
        leaves[place] = mutate(leaves[place], draw)
    return pytree.tree_unflatten(leaves, spec)


def other_samples(args: tuple[Any, ...], draw: random.Random) -> tuple[Any, ...]:
    """Another number of samples, mostly the same for all inputs."""
    samples = draw.choice([0, 1, 1, 2, 3, 4, 5, 7, 8, 9])

    def sized(leaf: Any) -> Any:
        if type(leaf) is not torch.Tensor or not leaf.dim():
            return leaf
        return fresh(leaf, draw, samples if draw.random() < 0.95 else samples + 1)

    return pytree.tree_map(sized, args)


def other_structure(args: tuple[Any, ...], draw: random.Random) -> tuple[Any, ...]:
    """One argument too many or too few, another order, another fixed value."""
    kinds: list[Callable[[], tuple[Any, ...]]] = [
        lambda: args[:-1],
        lambda: (*args, args[0]),
        lambda: args[::-1],
        lambda: (list(args),),
        lambda: (*args[:-1], 0.25),
        lambda: (args,),
    ]
    return draw.choice(kinds)()


TENSOR_MUTATIONS = (other_dtype, other_layout, other_kind, other_shape, special_values)
KINDS = ("samples", "samples", "structure", "special_values", *(mutate.__name__ for mutate in TENSOR_MUTATIONS))


def mutated(example: tuple[Any, ...], draw: random.Random) -> tuple[str, tuple[Any, ...]]:
    """Change a valid request in one to three ways; what was done, and the request."""
    args: tuple[Any, ...] = pytree.tree_map(
        lambda leaf: fresh(leaf, draw) if isinstance(leaf, torch.Tensor) else leaf, example
    )
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3])):
        kind = draw.choice(
            ["samples", "samples", "structure", "special_values", *(m.__name__ for m in TENSOR_MUTATIONS)]
        )
        try:
            if kind == "samples":
                args = other_samples(args, draw)
            elif kind == "structure" and draw.random() < 0.3:
                args = other_structure(args, draw)
            else:
                mutate = next((m for m in TENSOR_MUTATIONS if m.__name__ == kind), special_values)
                args = each_tensor(args, draw, mutate)
            done.append(kind)
        except Exception:  # torch cannot make this tensor
            continue
    return "+".join(done) or "content", args


# -- judging --------------------------------------------------------------------------------------------------------


def judge(model: nn.Module, serve: Callable[..., Any], args: tuple[Any, ...]) -> Judgement:
    """Serve a request and compare with the model's own answer."""
    wanted: Any = None
    own_error: Exception | None = None
    try:
        with torch.no_grad():
            wanted = model(*copy_of(args))
    except Exception as error:
        own_error = error
    try:
        got = serve(*args)
    except Exception as error:
        return judged_error(error, own_error)
    if own_error is not None:
        return Judgement("answered", f"the model itself fails: {type(own_error).__name__}: {str(own_error)[:150]}")
    large = any(
        isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and bool((leaf.abs() > NEAR_OVERFLOW).any())
        for leaf in pytree.tree_leaves(args)
    )
    difference = differs(got, wanted, near_overflow=large)
    return Judgement("right") if not difference else Judgement("different", difference)


def copy_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments that the model may write."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, args)


def judged_error(error: Exception, own_error: Exception | None) -> Judgement:
    """A refusal must be ours, in words; what fails in the model itself may fail with its error, told by us."""
    if isinstance(error, odin.LayerFailedError):
        if own_error is None:
            return Judgement("raw", f"a layer failed where the model does not: {str(error)[:200]}")
        return Judgement("failed as the model does")
    if own_error is not None and type(error) is type(own_error) and str(error) == str(own_error):
        return Judgement("failed as the model does")  # a chain that runs in this process
    frames = traceback.extract_tb(error.__traceback__)
    by_us = frames and frames[-1].filename.startswith(OURS)
    if not isinstance(error, (ValueError, odin.OdinError)) or not by_us or len(str(error)) < 20:
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return Judgement("raw", f"{type(error).__name__} at {where}: {str(error)[:200]}")
    return Judgement("refused")


def differs(got: Any, wanted: Any, *, near_overflow: bool) -> str:
    """Say how an answer differs from the model's beyond rounding; each sample by its own magnitude."""
    ours, spec = pytree.tree_flatten(got)
    theirs, wanted_spec = pytree.tree_flatten(wanted)
    if spec != wanted_spec:
        return f"structure {spec} instead of {wanted_spec}"
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            if a != b:
                return f"{a!r} instead of {b!r}"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{tuple(a.shape)} {a.dtype} instead of {tuple(b.shape)} {b.dtype}"
        if not b.is_floating_point() and not b.is_complex():
            if not torch.equal(a, b):
                return "whole numbers differ"
            continue
        if near_overflow:
            if bool((b.isnan() & a.isfinite()).any()):
                return "numbers stand where the model has NaN"
            continue
        if not torch.equal(a.isnan(), b.isnan()):
            return f"{int(a.isnan().sum())} NaN instead of {int(b.isnan().sum())}"
        if not torch.equal(a.isinf() * a.sign(), b.isinf() * b.sign()):
            return f"{int(a.isinf().sum())} infinities instead of {int(b.isinf().sum())}"
        finite = b.isfinite()
        off, size = (a - b).abs().where(finite, 0.0), b.abs().where(finite, 0.0)
        rows = len(b) if b.dim() else 1
        off, size = off.reshape(rows, -1), size.reshape(rows, -1)
        worst = (off.amax(1) - TOLERANCE * size.amax(1)).max().item() if off.numel() else 0.0
        if worst > 1e-7:
            return f"off by {off.max().item():.3g}, at a largest magnitude of {size.max().item():.3g}"
    return ""


def describe(args: Any) -> str:
    """A request in a line."""

    def leaf(value: Any) -> str:
        if isinstance(value, torch.Tensor) and value.is_nested:
            return "nested tensor"
        if isinstance(value, torch.Tensor):
            return f"{type(value).__name__}{tuple(value.shape)} {value.dtype} {value.layout}"
        return f"{type(value).__name__}" if isinstance(value, np.ndarray | list) else repr(value)[:60]

    return ", ".join(leaf(value) for value in pytree.tree_leaves(args))


def run(
    count: int, *, seed: int, serve: Callable[[odin.Chain], Any], chosen: Sequence[str] = ()
) -> tuple[Counter[str], list[str]]:
    """Try ``count`` mutations of each model's requests.

    Parameters
    ----------
    serve
        Makes a context manager of a chain: what is called with a request.

    Returns
    -------
    Counter
        Requests by outcome.
    list of str
        The faults, each with its model, mutation and request.
    """
    outcomes: Counter[str] = Counter()
    faults = []
    for name, model, example in subjects():
        if chosen and name not in chosen:
            continue
        chain = odin.build_chain(copy.deepcopy(model), example, name=name)
        with serve(chain) as server:
            for number in range(count):
                draw = random.Random(f"{seed} {name} {number}")
                what, args = mutated(example, draw)
                judgement = judge(model, server, args)
                outcomes[judgement.outcome] += 1
                if judgement.fault:
                    faults.append(f"{name} #{number} [{what}] {describe(args)}: {judgement.outcome}: {judgement.fault}")
    return outcomes, faults


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="requests in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", action="append", default=[], help="only this one, as named in the output")
    parser.add_argument("--show", type=int, default=40, metavar="N", help="faults shown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cores = [f"cpu:{core}" for core in usable_cores()[:2]]
    models = len(arguments.model) or len(subjects())
    outcomes, faults = run(
        -(-arguments.count // models),
        seed=arguments.seed,
        serve=lambda chain: odin.Pipeline(chain, stages=cores),
        chosen=arguments.model,
    )
    print(f"{sum(outcomes.values())} requests:", ", ".join(f"{n} {what}" for what, n in outcomes.most_common()))
    for fault in faults[: arguments.show]:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
