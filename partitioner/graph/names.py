"""Names for layers, after the modules inside them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["layer_names"]


def layer_names(layers: Sequence[Sequence[tuple[str, bool]]]) -> list[str]:
    """Name each layer after what it contains.

    A layer is called after the innermost module that holds all its heavy steps, provided that no other layer has a
    part of that module: ``"layer3.2"``, ``"conv1"``. Otherwise after the first and the last of its modules:
    ``"denseblock1.denselayer1..denselayer3"``. A name that still occurs twice (a module called twice) gets ``#2``.
    Names are shown in terminals and logs, so what is not printable in a module's name is escaped.

    Parameters
    ----------
    layers
        Per layer its steps: path of the module (or the step's own name) and whether the step is heavy.

    Returns
    -------
    list of str
        Unique names.

    Examples
    --------
    >>> layer_names([[("stem.conv", True), ("stem.pool", False)], [("body.0", True), ("body.1", True)]])
    ['stem.conv', 'body']
    """
    paths = [_telling_paths(layer) for layer in layers]
    prefixes = [_common_prefix(own) for own in paths]
    inside: dict[tuple[str, ...], set[int]] = {}
    for index, own in enumerate(paths):
        for path in own:
            for length in range(1, len(path) + 1):
                inside.setdefault(path[:length], set()).add(index)
    names = []
    taken: dict[str, int] = {}
    for index, (own, prefix) in enumerate(zip(paths, prefixes, strict=True)):
        if not own:
            name = "identity"
        elif prefix and inside[prefix] == {index}:
            name = ".".join(prefix)
        elif len(set(own)) == 1:
            name = ".".join(own[0])
        else:
            name = _range_name(own, prefix, index, inside)
        name = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return names


def _telling_paths(layer: Sequence[tuple[str, bool]]) -> list[tuple[str, ...]]:
    heavy = [tuple(path.split(".")) for path, is_heavy in layer if is_heavy]
    return heavy or [tuple(path.split(".")) for path, _ in layer]


def _common_prefix(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    prefix: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        prefix.append(parts[0])
    return tuple(prefix)


def _range_name(
    paths: Sequence[tuple[str, ...]],
    prefix: tuple[str, ...],
    index: int,
    inside: dict[tuple[str, ...], set[int]],
) -> str:
    """Name a range by its ends, each as short as it can be without naming a part of another layer."""

    def end(path: tuple[str, ...]) -> str:
        for length in range(len(prefix) + 1, len(path)):
            if inside[path[:length]] == {index}:
                return ".".join(path[len(prefix) : length])
        return ".".join(path[len(prefix) :])

    ends = f"{end(paths[0])}..{end(paths[-1])}"
    return ".".join([*prefix, ends])
