"""Objects that a text names: built in, offered by an installed distribution, or any class that can be imported.

::

    TEXT     = NAME [":" SETTINGS]  |  MODULE ":" CLASS [":" SETTINGS]
    SETTINGS = PARAMETER "=" VALUE {"," PARAMETER "=" VALUE}

``odin:alpha=10``, ``mypkg.policies:Greedy``, ``mypkg.policies:Greedy:step=2,gain=0.05``. What stands before the first
colon is a NAME if it is built in or an entry point of the group, else a MODULE, found as ``import`` finds it or in the
current directory. Built-in names come before entry points, entry points before modules. Parameters with a number, a
truth value or a text as default can be set; VALUE is read as what the default is, and may hold colons but no comma.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, distributions, entry_points
from traceback import walk_tb
from typing import Any

__all__ = ["Family", "raised"]

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Family:
    """Objects of one kind that a text can name.

    Attributes
    ----------
    kind
        What they are, for messages: ``policy``.
    group
        Entry-point group in which distributions offer their own.
    builtin
        ``module:Class`` by name; imported when asked for.
    properties
        What an object must have.
    methods
        Methods that it must have, with the number of their arguments.
    given
        What every one is made from, for messages.
    replaced
        Names that there were, by those to give instead.
    """

    kind: str
    group: str
    builtin: Mapping[str, str]
    properties: tuple[str, ...]
    methods: Mapping[str, int]
    given: str = ""
    replaced: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first."""
        return (*self.builtin, *(name for name in _offers(self.group) if name not in self.builtin))

    def is_builtin(self, text: str) -> bool:
        """Whether the text names something built in."""
        return text.partition(":")[0].strip() in self.builtin

    def make(self, text: str, *arguments: Any) -> Any:
        """Make the object that a text names, from what everyone of the family is given and the text's settings.

        Raises
        ------
        ValueError
            If there is no such object or parameter, if it cannot be imported or is not of the kind; says the remedy.
        """
        make, settings = self._find(text)
        here = f"{self.kind} {text!r}"
        if not callable(make):
            raise ValueError(f"{here} is a {type(make).__name__}, not a class; name a class that makes a {self.kind}")
        signature = inspect.signature(make)
        defaults = _defaults(signature.parameters.values())
        values = {} if settings is None else _values(here, settings, defaults)
        try:
            signature.bind(*arguments, **values)
        except TypeError as error:
            raise ValueError(
                f"{here}: {error}; a {self.kind} is made from {self.given or 'nothing'}, and from settings that have "
                "a default"
            ) from error
        try:
            made = make(*arguments, **values)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{here}: {error}") from error
        except Exception as error:
            raise raised(here, error) from error
        try:
            self._check(here, made)
        except ValueError:
            raise
        except Exception as error:  # a property's
            raise raised(here, error) from error
        return made

    def _find(self, text: str) -> tuple[Any, str | None]:
        """What makes the object, and the text's settings."""
        name, colon, rest = (part.strip() for part in text.partition(":"))
        offers = _offers(self.group)
        self._tell_hidden(offers)
        if name in self.builtin:
            return _load(self.builtin[name]), rest if colon else None
        if name in offers:
            return self._load_offer(name, offers[name]), rest if colon else None
        if name in self.replaced:
            raise ValueError(f"{self.kind} {name!r} is gone; use {self.replaced[name]!r}")
        attribute, second_colon, settings = (part.strip() for part in rest.partition(":"))
        if not attribute or not _is_dotted(attribute):
            raise ValueError(
                f"there is no {self.kind} {name!r}; choose one of {', '.join(self.names())}, "
                "or name a class of your own as module:Class"
            )
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())  # a console script does not look there; last, so that nothing gets shadowed
        try:
            return _load(f"{name}:{attribute}"), settings if second_colon else None
        except ValueError as error:
            known = f"; names are {', '.join(self.names())}" if "." not in name else ""
            raise ValueError(f"{self.kind} {text!r}: {error}{known}") from error

    def _load_offer(self, name: str, offers: tuple[EntryPoint, ...]) -> Any:
        if len(offers) > 1:
            raise ValueError(
                f"{self.kind} {name!r} is offered by {' and by '.join(_distribution(offer) for offer in offers)}; "
                f"name the one you mean as {' or '.join(offer.value for offer in offers)}"
            )
        try:
            return _load(offers[0].value.partition("[")[0].strip())
        except ValueError as error:
            raise ValueError(
                f"{self.kind} {name!r} is offered by {_distribution(offers[0])} as {offers[0].value}, but {error}; "
                "repair or uninstall that distribution"
            ) from error

    def _tell_hidden(self, offers: Mapping[str, tuple[EntryPoint, ...]]) -> None:
        for name in self.builtin.keys() & offers.keys():
            offer = offers[name][0]
            warnings.warn(
                f"the {self.kind} {name!r} of {_distribution(offer)} is hidden by the built-in one of that name; name "
                f"it as {offer.value}",
                stacklevel=5,
            )

    def _check(self, here: str, made: Any) -> None:
        needed = (*self.properties, *self.methods)
        missing = [name for name in needed if not hasattr(made, name)]
        if missing:
            raise ValueError(
                f"{here} has no {', no '.join(missing)}; a {self.kind} has {', '.join(needed)}: see docs/extending.md"
            )
        for name, count in self.methods.items():
            try:
                inspect.signature(getattr(made, name)).bind(*[None] * count)
            except TypeError as error:
                raise ValueError(f"{here}: {name} does not take what it will be given: {error}") from error


def raised(here: str, error: Exception) -> ValueError:
    """What to raise where the code of what a text names does: tells the place."""
    return ValueError(f"{here} raised {type(error).__name__}: {error}{_place(error)}")


def _place(error: Exception) -> str:
    """`` (FILE, line N)``, without the import system's; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({error.filename}, line {error.lineno})"
    places = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    told = [place for place in places if not place[0].startswith("<frozen")]
    return f" ({told[-1][0]}, line {told[-1][1]})" if told else ""


@cache
def _scan(group: str, _path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    offers: dict[str, tuple[EntryPoint, ...]] = {}
    try:
        points = list(entry_points(group=group))
    except Exception:  # somebody's metadata cannot be read, which must not hide the others'
        points = _read_one_by_one(group)
    for point in points:
        offers[point.name] = (*offers.get(point.name, ()), point)
    return offers


def _read_one_by_one(group: str) -> list[EntryPoint]:
    points: dict[str, list[EntryPoint]] = {}
    for found in distributions():
        try:
            points.setdefault(found.name, [point for point in found.entry_points if point.group == group])
        except Exception as error:
            warnings.warn(f"entry points of {found.name} {found.version} cannot be read: {error!r}", stacklevel=2)
    return [point for ours in points.values() for point in ours]


def _offers(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points of the group by name; looked up once, for that takes milliseconds, unless the path changes."""
    return _scan(group, tuple(sys.path))


def _distribution(point: EntryPoint) -> str:
    return "an installed distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _load(target: str) -> Any:
    """Import ``module:Class``; ValueError says which part is missing, and what to do."""
    module, _, attribute = target.partition(":")
    if not attribute:
        raise ValueError(f"{target!r} names no class; it is module:Class")
    if not _is_dotted(module):
        raise ValueError(f"{module!r} is not the name of a module; the file folder/file.py is called folder.file")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if not f"{module}.".startswith(f"{missing}."):
            raise ValueError(
                f"module {module!r} needs {missing!r}, which is not installed; install it for {sys.executable}"
            ) from error
        raise ValueError(
            f"there is no module {missing!r} in {os.getcwd()} or among the installed ones; go to the folder that has "
            "it, install it, or set PYTHONPATH"
        ) from error
    except Exception as error:  # whatever its code raises
        raise ValueError(
            f"module {module!r} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            file = getattr(sys.modules[module], "__file__", None) or "no file"
            raise ValueError(f"module {module!r} ({file}) has no {attribute!r}; name a class of it as {module}:Class")
        found = getattr(found, part)
    return found


def _defaults(parameters: Iterable[inspect.Parameter]) -> dict[str, Any]:
    """Parameters that text can set, with their default values."""
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float | str)}
    floats = {p.name for p in parameters if p.annotation in (float, "float")}
    return {name: float(value) if name in floats else value for name, value in defaults.items()}


def _values(here: str, settings: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    has = f"it has {', '.join(f'{key}={value}' for key, value in defaults.items())}" if defaults else "it has none"
    values: dict[str, Any] = {}
    for part in settings.split(","):
        key, equals, written = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"{here}: {part.strip()!r} is not parameter=value; {has}")
        if key not in defaults:
            raise ValueError(f"{here} has no parameter {key!r}; {has}")
        if key in values:
            raise ValueError(f"{here} sets {key!r} twice; leave one out")
        values[key] = _convert(here, key, written, defaults[key])
    return values


def _convert(here: str, key: str, written: str, default: Any) -> Any:
    """Read the value as what its default is."""
    if isinstance(default, bool):
        if written.lower() not in _TRUTH:
            raise ValueError(f"{here}: {key} is {written!r}; write true or false")
        return _TRUTH[written.lower()]
    try:
        return type(default)(written)
    except ValueError as error:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"{here}: {key} is {written!r}; write {kind}, such as {default}") from error
