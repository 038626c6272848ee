"""Detects, while a model runs, random numbers that it draws and sizes that depend on the data."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Draws", "Sizes", "without_compiler"]

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parents[1])
_Mode = TypeVar("_Mode", bound=type)


def without_compiler(mode: _Mode) -> _Mode:
    """Let the first operator under a dispatch mode not import the compiler (dynamo), which takes a second.

    Torch imports it to keep it out of the mode's code. Where nobody has imported it nothing is compiled; where somebody
    does later, it is kept out as ever. A torch that does otherwise is left to it.
    """
    dispatch: Any = getattr(mode.__dict__.get("__torch_dispatch__"), "__wrapped__", None)
    if isinstance(dispatch, FunctionType) and not hasattr(dispatch, _KEPT_OUT):

        def call(*args: Any, **kwargs: Any) -> Any:
            compiler = sys.modules.get("torch._dynamo")
            return (compiler.disable(dispatch) if compiler else dispatch)(*args, **kwargs)

        setattr(dispatch, _KEPT_OUT, call)
    return mode


_KEPT_OUT = "__dynamo_disable"
"""Attribute in which torch keeps the function that is to be called in the place of a mode's own."""


@without_compiler
class Draws(TorchDispatchMode):
    """While it is entered, notices random numbers: torch's, whatever generator draws them, numpy's and Python's.

    Attributes
    ----------
    found
        What drew them and where; empty if nothing did.
    """

    supports_higher_order_operators = True

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's modes are untyped
        self.found = ""
        self._generators = _own_generators(model) if isinstance(model, nn.Module) else []
        self._before: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and look what it is."""
        keywords = kwargs or {}
        if self.found or torch.Tag.nondeterministic_seeded not in _tags(func):
            return func(*args, **keywords)
        # Many are marked that draw nothing in the way they are called: attention without dropout, RReLU in eval mode.
        given = (value for value in (*args, *keywords.values()) if isinstance(value, torch.Generator))
        generator = next(given, torch.default_generator)
        before = generator.get_state()
        result = func(*args, **keywords)
        if not torch.equal(before, generator.get_state()):
            self.found = f"{str(func).removesuffix('.default')}{_caller()}"
        return result

    def __enter__(self) -> Self:
        self._before = self._states()
        super().__enter__()  # type: ignore[no-untyped-call]  # as above
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]  # as above
        names = ("torch's generator", "numpy.random", "random", *(type(g).__name__ for g in self._generators))
        changed = [n for n, a, b in zip(names, self._before, self._states(), strict=True) if a != b]
        self.found = self.found or ", ".join(changed)

    def _states(self) -> list[Any]:
        # read whole: a comparison of arrays would not be one truth
        own = [repr(g.getstate() if isinstance(g, random.Random) else g.bit_generator.state) for g in self._generators]
        legacy = np.random.get_state(legacy=False)
        return [torch.random.get_rng_state().numpy().tobytes(), repr(legacy), random.getstate(), *own]


def _own_generators(model: nn.Module) -> list[Any]:
    values = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, (random.Random, np.random.Generator))]


def _caller() -> str:
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith((_TORCH, _OWN, "<"))]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""


@without_compiler
class Sizes(TorchDispatchMode):
    """While it is entered, notices results whose size depends on values that differ from request to request.

    Parameters
    ----------
    is_fixed
        Whether a tensor has the same values in every request.
    """

    supports_higher_order_operators = True

    def __init__(self, is_fixed: Callable[[Tensor], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._is_fixed = is_fixed
        self._by_data = self._numbers = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and look what it is."""
        tags = _tags(func)
        if torch.Tag.dynamic_output_shape in tags or str(func).split(".")[1:2] == [
            "nms"
        ]:  # torchvision's is not marked
            self._by_data = self._by_data or not all(map(self._is_fixed, _deciding(func, args)))
        elif torch.Tag.data_dependent_output in tags:
            self._numbers = self._numbers or not self._is_fixed(args[0])
        return func(*args, **(kwargs or {}))

    def take(self) -> tuple[bool, bool]:
        """Whether there were any since this was last asked; and whether numbers were read out of such tensors."""
        seen, self._by_data, self._numbers = (self._by_data, self._numbers), False, False
        return seen


def _deciding(function: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Tensors whose values decide on the size of the result."""
    if function is torch.ops.aten.index.Tensor:  # numbers select as many as they are, a mask as many as are true
        return [index for index in args[1] if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)]
    if function is torch.ops.aten.masked_select.default:
        return [args[1]]
    return [argument for argument in args if isinstance(argument, Tensor)]


def _tags(function: Any) -> Any:
    return getattr(function, "tags", ())  # torch.cond and its like have none
