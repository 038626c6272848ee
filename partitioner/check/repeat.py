"""Whether a model answers the same whatever it was called with before; one that does not keeps state between calls."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from odin.partitioner.check.reachable import Contents, contents
from odin.partitioner.graph.capture import TraceError, first_line
from odin.partitioner.graph.values import as_bits, comparable

__all__ = ["FirstCall", "Run", "check_repeatable", "first_call", "other_contents", "own_copy", "run"]

_STATE = "the model keeps state between calls, so its results depend on earlier ones"
_SHOWN = 4  # names of attributes in a message
_READ_ALL = frozenset(
    ("__dict__", "_buffers", "_parameters", "buffers", "named_buffers", "parameters", "named_parameters", "state_dict")
)
"""Ways to read attributes of a module by other names than their own."""
_TORCH = str(Path(torch.__file__).parent)


class Run(NamedTuple):
    """A call and the leaves of what it returned."""

    args: tuple[Any, ...]
    results: list[Any]


def own_copy(args: Any) -> Any:
    """Arguments with copies of their tensors, which a model may write."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, args)


def run(function: Callable[..., Any], args: tuple[Any, ...]) -> Run:
    """Call with copies of the tensors, and with random numbers that begin anew; the process's own stay as they are."""
    with _random_numbers_anew():
        results = pytree.tree_leaves(function(*own_copy(args)))
    # copies: the model may hand out what the next call writes
    return Run(args, [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in results])


@contextlib.contextmanager
def _random_numbers_anew() -> Iterator[None]:
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torch.default_generator.manual_seed(0)  # torch.manual_seed would leave a seed for CUDA, to be used when it starts
    for device in range(len(cuda_states)):
        torch.cuda.default_generators[device].manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


class FirstCall(NamedTuple):
    """A copy of a model that was called once, with the example: what it held before, and the call."""

    function: Callable[..., Any]
    before: Contents
    made: Run


def first_call(
    fresh: Callable[[], Callable[..., Any]],
    args: tuple[Any, ...],
    *,
    watched: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> FirstCall:
    """Call a model with the example.

    Parameters
    ----------
    fresh
        Gives a new copy of the model, as a function.
    args
        The example's arguments.
    watched
        Makes of a function one that does the same and looks at it. A :class:`TraceError` from there comes through.

    Raises
    ------
    ValueError
        If the model fails on the example.
    """
    function = fresh()
    before = contents(function)
    try:
        made = run(function if watched is None else watched(function), args)
    except TraceError:
        raise
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        raise ValueError(
            f"the model fails on its example arguments (tensor shapes {shapes}): {type(error).__name__}: {error}"
        ) from error
    return FirstCall(function, before, made)


def check_repeatable(fresh: Callable[[], Callable[..., Any]], called: FirstCall) -> tuple[Run, ...]:
    """Call a model again and again, with the example and with other contents, and see whether its past shows.

    ::

        one copy      x   x   y   z   x     results of x equal, what it keeps after x equal
        another       y                     result and what is kept as after x x y above

    A model may keep what it only writes, or writes before it reads it (attention maps to look at), and what it builds
    on its first call whatever the input (grids of positions): neither changes a result. Whatever else it changes in
    itself and reads again makes a result depend on earlier calls, in these calls or in others, so it is refused by
    name: counters, hidden state, queues, averages.

    Parameters
    ----------
    fresh
        Gives a new copy of the model, as a function.
    called
        The first call, with the example. Nothing else has called that copy.

    Returns
    -------
    tuple of Run
        The call with the example, then those with other contents that the model took, if any.

    Raises
    ------
    TraceError
        If results depend on earlier calls.
    """
    function, before, first = called
    args, after_first = first.args, contents(called.function)

    def call(arguments: tuple[Any, ...]) -> tuple[Run, Contents]:
        for generator in before.generators:
            generator.restore()
        return run(function, arguments), contents(function)

    def call_again() -> tuple[Run, Contents]:
        try:
            return call(args)
        except Exception as error:
            raise TraceError(f"{_STATE}: called again on the same input it fails with {first_line(error)}") from error

    second, after_second = call_again()
    others: list[tuple[Run, Contents]] = []
    for other in other_contents(args):
        with contextlib.suppress(Exception):  # it need not take them
            others.append(call(other))
        if len(others) == 2:
            break
    last, end = call_again()

    runs = (first, *(made for made, _ in others))
    changed = [path for moment in (after_first, *(kept for _, kept in others)) for path in moment.changed(before)]
    suspects = [*after_second.changed(after_first), *end.changed(after_first)]
    differ = _differ(second.results, first.results) or _differ(last.results, first.results)
    if changed and others and not suspects and not differ:
        made, kept = others[0]
        function = fresh()
        alone, kept_alone = call(made.args)
        suspects = kept_alone.changed(kept)
        differ = _differ(alone.results, made.results)
    if not differ:
        of_the_last_call = [path for _, kept in others for path in kept.changed_itself(after_first, _owners(function))]
        suspects = _read_before_written(function, list(dict.fromkeys([*suspects, *of_the_last_call])), runs)
    if suspects or differ:
        raise _keeps_state(list(dict.fromkeys(suspects or changed)))
    return runs


def other_contents(args: tuple[Any, ...]) -> Sequence[tuple[Any, ...]]:
    """Arguments like the example's with other numbers: noise that is larger than they are, its negative, their own."""
    noise = torch.Generator().manual_seed(0)

    def other(leaf: Any, sign: int) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not sign or not leaf.is_floating_point():  # a number may be an index: only those that are there
            return as_bits(leaf).flip(tuple(range(leaf.ndim))).view(leaf.dtype)
        numbers = comparable(leaf)
        finite = numbers[numbers.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        values = torch.rand(leaf.shape, generator=noise) + 0.5
        return (values * (sign * (largest or 1.0))).to(leaf)

    try:
        return [pytree.tree_map(lambda leaf, sign=sign: other(leaf, sign), args) for sign in (1, -1, 0)]
    except Exception:  # tensors of a kind that lacks one of these operations
        return []


def _differ(results: list[Any], expected: list[Any]) -> bool:
    """Whether results differ by more than the order of additions may make."""
    if len(results) != len(expected):
        return True
    for result, wanted in zip(results, expected, strict=True):
        if not isinstance(result, Tensor) or not isinstance(wanted, Tensor):
            if type(result) is not type(wanted) or repr(result) != repr(wanted):
                return True
            continue
        try:
            if result.shape != wanted.shape or result.dtype != wanted.dtype:
                return True
            if torch.equal(result, wanted):
                continue
            if not wanted.is_floating_point():
                return True
            finite = wanted[wanted.isfinite()]
            scale = float(finite.abs().max()) if finite.numel() else 0.0
            tolerance = 4 * torch.finfo(wanted.dtype).eps * scale
            if not torch.allclose(result, wanted, rtol=0.0, atol=tolerance, equal_nan=True):
                return True
        except (RuntimeError, NotImplementedError):  # sparse and the like, which are refused elsewhere
            continue
    return False


def _read_before_written(function: Callable[..., Any], paths: list[str], runs: Sequence[Run]) -> list[str]:
    """Leave out attributes of modules that calls write before they read them, or never read (the time it took)."""
    if not paths or not isinstance(function, nn.Module):
        return paths
    watch = _Watch()
    kinds: dict[nn.Module, type[nn.Module]] = {}
    for owner, module in _owners(function).items():
        names = {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == owner}
        if names:
            kinds[module] = type(module)
            module.__class__ = watch.over(type(module), names)
    try:
        for made in runs:
            watch.written.clear()
            run(function, made.args)
    except Exception:  # a class that cannot be replaced: do not judge by this call
        return paths
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
    return [path for path in paths if path not in watch.paths or path in watch.read]


def _owners(function: Callable[..., Any]) -> dict[str, nn.Module]:
    """The model and its submodules by the paths that their attributes begin with."""
    modules = function.named_modules() if isinstance(function, nn.Module) else ()
    return {path or type(function).__name__: module for path, module in modules}


class _Watch:
    """Which of some attributes are read before they are written."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.written: set[str] = set()
        self.read: set[str] = set()

    def over(self, kind: type[nn.Module], names: dict[str, str]) -> type[nn.Module]:
        """Return a class like ``kind`` that notes accesses to attributes, given with their paths."""
        self.paths.update(names.values())

        def look_up(module: nn.Module, name: str) -> Any:
            if name in names and names[name] not in self.written:
                self.read.add(names[name])
            elif name in _READ_ALL and not sys._getframe(1).f_code.co_filename.startswith(_TORCH):
                self.read.update(set(names.values()) - self.written)
            return kind.__getattribute__(module, name)

        def write(module: nn.Module, name: str, value: Any) -> None:
            if name in names:
                self.written.add(names[name])
            kind.__setattr__(module, name, value)

        own = {"__getattribute__": look_up, "__setattr__": write, "__module__": kind.__module__}
        return type(kind.__name__, (kind,), own)


def _keeps_state(paths: list[str]) -> TraceError:
    names = ", ".join(dict.fromkeys(paths[:_SHOWN])) + (", ..." if len(paths) > _SHOWN else "")
    where = (
        f"it changes {names} while it runs"
        if paths
        else "called again on the same input it returns something else, though none of its attributes has changed: "
        "it keeps something elsewhere (a global variable, a closure)"
    )
    return TraceError(
        f"{_STATE}: {where}. Requests may be served in parts, beside each other and again, each as if it were the "
        "first. Remedies: make the state an input and return its new value, or set it once in __init__ and only read "
        "it in forward; take out what only counts or collects"
    )
