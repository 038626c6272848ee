"""Which of a file's tensors are the model's: training scripts nest state dicts, and wrappers lengthen their names.

A file is searched for state dicts, however deep (``{"model": ..., "ema": {"shadow": ...}}``). In each, what stands
before the model's own names (``module.``, ``model.backbone.``) is a prefix; a state dict and a prefix fit if they have
a tensor of the right shape for every name of the model, and no other weight under that prefix. What fits is taken,
whatever the wrappers are called.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

__all__ = ["OTHER_NUMBERS", "Fit", "class_counts", "differences", "few", "fits", "nearest", "state_dicts"]

# Modules that wrap another one where it is, as segments inside of names: torch.compile, FSDP, activation checkpoints,
# DataParallel, Lightning.
WRAPPING = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module", "_forward_module", "module"}
)
# torchvision's DenseNet checkpoints predate a ban on dots in module names: "denselayer1.norm.1" is "...norm1" today.
DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
# Counters of batch norm, which older files lack and no inference reads; and what profilers leave behind.
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
DEEPEST = 8  # a mapping may hold itself
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|shadow|averaged?)(?:$|[._])")

OTHER_NUMBERS = "of another kind of numbers"

State = dict[str, torch.Tensor]


class Fit(NamedTuple):
    """A state dict inside a file and the prefix of the model's names in it.

    Attributes
    ----------
    place
        Where it is, for people: ``"'state_dict', names after 'model.'"``; empty for a plain file.
    state
        Its tensors by the model's names, and what else is under the prefix.
    """

    place: str
    state: State

    @property
    def averaged(self) -> bool:
        """Whether it is called a running average of the weights."""
        return AVERAGED.search(self.place.lower().replace("'", ".")) is not None


def state_dicts(loaded: Any, place: str = "", depth: int = 0) -> dict[str, State]:
    """Every mapping with tensors inside what a file holds, by its path."""
    if not isinstance(loaded, Mapping) or depth > DEEPEST:
        return {}
    found = {}
    own = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if own:
        found[place] = own
    for name, value in loaded.items():
        found |= state_dicts(value, f"{place}.{name}" if place else str(name), depth + 1)
    return found


def candidates(loaded: Any, expected: Mapping[str, torch.Tensor]) -> list[tuple[int, Fit]]:
    """State dicts with each of the prefixes under which they have names of the model, and how many they have."""
    foreign = WRAPPING - {segment for name in expected for segment in name.split(".")}
    old_densenet = not any(DENSENET_NAME.match(name) for name in expected)
    found = []
    for place, state in state_dicts(loaded).items():
        renamed = unwrapped(state, foreign)
        if old_densenet:
            renamed = {DENSENET_NAME.sub(r"\1\2", name): tensor for name, tensor in renamed.items()}
        votes: Counter[str] = Counter()
        for name in renamed:
            begins = [0, *(match.end() for match in re.finditer(r"\.", name))]
            votes.update(name[:begin] for begin in begins if name[begin:] in expected)
        for prefix, count in votes.items():
            under = {name.removeprefix(prefix): t for name, t in renamed.items() if name.startswith(prefix)}
            parts = (f"{place!r}" if place else "", f"names after {prefix!r}" if prefix else "")
            found.append((count, Fit(", ".join(part for part in parts if part), under)))
    return found


def unwrapped(state: State, wrapping: Iterable[str]) -> State:
    """Names without the wrappers inside them (those in front are a prefix); as they were if two would be the same."""
    wrapping = frozenset(wrapping)

    def inner(name: str) -> str:
        segments = name.split(".")
        front = list(itertools.takewhile(wrapping.__contains__, segments))
        return ".".join([*front, *(segment for segment in segments if segment not in wrapping)])

    renamed = {inner(name): tensor for name, tensor in state.items()}
    return renamed if len(renamed) == len(state) else state


def fits(loaded: Any, expected: Mapping[str, torch.Tensor]) -> list[Fit]:
    """What has all that the model needs and nothing else, reduced to that; each content once."""
    found: list[Fit] = []
    for _, fit in candidates(loaded, expected):
        if differences(fit.state, expected):
            continue
        state = {name: tensor for name, tensor in fit.state.items() if name in expected}
        if not any(same(state, other.state) for other in found):
            found.append(fit._replace(state=state))
    return found


def nearest(loaded: Any, expected: Mapping[str, torch.Tensor]) -> Fit:
    """What has the most names of the model; if nothing has any, the largest state dict."""
    found = candidates(loaded, expected)
    if found:
        return max(found, key=lambda entry: entry[0])[1]
    place, state = max(state_dicts(loaded).items(), key=lambda entry: len(entry[1]), default=("", {}))
    return Fit(f"{place!r}" if place else "", state)


def class_counts(loaded: Any, expected: Mapping[str, torch.Tensor]) -> list[int]:
    """Numbers of classes with which the file may fit: those of heads that alone differ, and only in their length."""
    counts = []
    for _, fit in candidates(loaded, expected):
        other = [(fit.state[n], t) for n, t in expected.items() if n in fit.state and fit.state[n].shape != t.shape]
        ours, theirs = {t.shape[:1] for _, t in other}, {f.shape[:1] for f, _ in other}
        if len(ours) == len(theirs) == 1 and all(f.ndim and f.shape[1:] == t.shape[1:] for f, t in other):
            counts.append(int(theirs.pop()[0]))
    return list(dict.fromkeys(counts))


def same(left: State, right: State) -> bool:
    """Whether two state dicts hold the same values."""
    return left.keys() == right.keys() and all(
        left[name] is right[name] or (left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]))
        for name in left
    )


def differences(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What keeps a state dict from fitting, in one line; empty if nothing does."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name, tensor in state.items() if name not in expected and not is_counter(name, tensor)]
    reshaped, other_numbers = [], []
    for name, tensor in expected.items():
        if name not in state or is_lazy(tensor):
            continue
        given = state[name]
        if given.shape != tensor.shape:
            reshaped.append(f"{name} is {tuple(given.shape)} where the model has {tuple(tensor.shape)}")
        elif given.ndim and kind_of(given) != kind_of(tensor):
            other_numbers.append(f"{name} is {given.dtype} where the model has {tensor.dtype}")
    parts = (
        f"{len(missing)} missing ({few(missing)})" if missing else "",
        f"{len(unexpected)} unexpected ({few(unexpected)})" if unexpected else "",
        f"{len(reshaped)} of other shape ({few(reshaped)})" if reshaped else "",
        f"{len(other_numbers)} {OTHER_NUMBERS} ({few(other_numbers)})" if other_numbers else "",
    )
    return "; ".join(part for part in parts if part)


def is_counter(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor that the model has no place for is no weight: a count (``n_averaged``), a profiler's mark."""
    return name.endswith(COUNTERS) or (tensor.ndim == 0 and kind_of(tensor) == "integer")


def kind_of(tensor: torch.Tensor) -> str:
    """Kind of numbers; only within a kind can a checkpoint's type become the model's (half to float)."""
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"


def few(names: Iterable[str], *, count: int = 4) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    rest = f", and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + rest
