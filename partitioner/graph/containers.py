"""Dataclasses and dicts of one's own, in which models return tensors, made known to PyTorch's trees."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["known_containers"]


def known_containers(value: Any) -> None:
    """Register the classes of containers that trees do not know, so that tracing looks inside and puts them together.

    Dataclasses and subclasses of dict: what models are wont to return (``ModelOutput``). Registration is for the whole
    process, as ``torch.export.register_dataclass`` does it.
    """
    for leaf in pytree.tree_leaves(value):
        kind = type(leaf)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            pytree.register_pytree_node(kind, _attributes, functools.partial(_object, kind))
        elif isinstance(leaf, dict):
            pytree.register_pytree_node(kind, _items, functools.partial(_mapping, kind))
        else:
            continue
        known_containers(value)  # anew: now what is inside shows
        return


def _attributes(value: Any) -> tuple[list[Any], tuple[str, ...]]:
    return [getattr(value, f.name) for f in dataclasses.fields(value)], tuple(f.name for f in dataclasses.fields(value))


def _object(kind: Any, parts: Iterable[Any], names: Iterable[str]) -> Any:
    made: Any = object.__new__(kind)  # not by its __init__, which may compute
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(made, name, part)
    return made


def _items(value: dict[Any, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    plain = _plain(type(value))
    return list(plain.values(value)), tuple(plain.keys(value))


def _mapping(kind: Any, parts: Iterable[Any], keys: Iterable[Any]) -> Any:
    made = kind.__new__(kind)
    for key, part in zip(keys, parts, strict=True):
        _plain(kind).__setitem__(made, key, part)
    return made


def _plain(kind: type) -> Any:
    """What keeps the items: a subclass may do otherwise with them (``__getitem__`` by position, computed values)."""
    return collections.OrderedDict if issubclass(kind, collections.OrderedDict) else dict
