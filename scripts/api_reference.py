"""The API reference by pdoc, and what is wrong with the docstrings that it is made from.

``python scripts/api_reference.py FOLDER`` writes the pages; exit status 1 and a line for each fault if a module cannot
be imported, a public name has no docstring, a reference leads nowhere, a section is not NumPy's, or a parameter is
described that there is not.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.docstrings
import pdoc.render

MODULES = (
    "odin",
    "odin.testing",
    "odin.partitioner.policies",
    "odin.partitioner.plan",
    "odin.monitor.detectors",
    "odin.monitor.events",
    "odin.monitor.eventlog",
    "odin.monitor.timing",
    "odin.monitor.view.pipeline_view",
    "odin_lab.inject",
    "odin_lab.simulator",
    "odin_lab.timings",
)
"""What programs import; a page for each."""

_ROLE = re.compile(r":(\w+):`~?([^`]+)`")
_ROLES = ("mod", "func", "data", "const", "class", "meth", "attr", "exc", "obj")
_SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Examples", "Notes", "References", "See Also")
_SECTION = re.compile(rf"^({'|'.join(_SECTIONS)})\n(?!-+$)", re.MULTILINE)
_UNDERLINED = re.compile(r"^(\S.*)\n(-{3,})$", re.MULTILINE)
_PARAMETERS = re.compile(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", re.MULTILINE | re.DOTALL)


def build(folder: Path, modules: tuple[str, ...] = MODULES) -> list[str]:
    """Write the pages of these modules; what is wrong with them, a line each."""
    for name in modules:
        module = importlib.import_module(name)
        for public in module.__all__:  # those of odin are imported when they are first used
            getattr(module, public)
    others = "|".join(map(re.escape, modules))
    pdoc.render.configure(docformat="numpy", show_source=False, include_undocumented=False)
    shutil.rmtree(folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Methods that NamedTuple and dataclass generate do not say in which module their annotations are to be read.
        warnings.filterwarnings("ignore", "Error parsing type annotation .*", UserWarning)
        pdoc.pdoc(*modules, rf"!(?!(?:{others})$).*", output_directory=folder)
    return [fault for name in modules for fault in _faults(pdoc.doc.Module.from_name(name))]


def _faults(module: pdoc.doc.Module) -> Iterator[str]:
    for documented in (module, *_public(module)):
        for fault in docstring_faults(documented):
            yield f"{documented.fullname}: {fault}"


def _public(namespace: pdoc.doc.Namespace) -> Iterator[pdoc.doc.Doc]:
    for member in namespace.own_members:
        if member.name.startswith("_") and member.name != "__init__":
            continue
        if isinstance(member, pdoc.doc.Module):
            continue
        in_module = isinstance(namespace, pdoc.doc.Module)
        # pdoc reads the text of a constant in the module that defines it, and nowhere else.
        elsewhere = isinstance(member, pdoc.doc.Variable) and not _assigned_in(namespace.modulename, member.name)
        if member.docstring or (in_module and not elsewhere):
            yield member
        if isinstance(member, pdoc.doc.Class):
            yield from _public(member)


def _assigned_in(module: str, name: str) -> bool:
    source = inspect.getsource(importlib.import_module(module))
    return re.search(rf"^{name}\b.*=", source, re.MULTILINE) is not None


def docstring_faults(documented: pdoc.doc.Doc) -> Iterator[str]:
    """What is wrong with one docstring."""
    text = documented.docstring
    if not text:
        yield "has no docstring"
        return
    for role, target in _ROLE.findall(text):
        if role not in _ROLES:
            yield f"the role :{role}: is unknown; use one of {', '.join(_ROLES)}"
        elif not any(_resolves(name) for name in _candidates(target, documented)):
            yield f"the reference to {target} leads nowhere"
    for section in _SECTION.findall(text):
        yield f"the section {section} is not underlined"
    for title, line in _UNDERLINED.findall(text):
        if title not in _SECTIONS:
            yield f"the section {title!r} is none of NumPy's: {', '.join(_SECTIONS)}"
        elif len(title) != len(line):
            yield f"the section {title} has a line of {len(line)} dashes"
    if text.count("`") % 2:
        yield "an odd number of backquotes"
    known = _parameters(documented)
    for name in _described(text):
        if known is not None and name not in known:
            yield f"describes the parameter {name}, which it does not have"
    if _ROLE.search(pdoc.docstrings.convert(text, "numpy", None)):
        yield "a reference is not rendered"


def _described(text: str) -> list[str]:
    """The names under Parameters."""
    found = _PARAMETERS.search(text)
    heads = [line for line in found[1].splitlines() if line and not line[0].isspace()] if found else []
    return [name.strip().lstrip("*") for line in heads for name in line.partition(" : ")[0].split(",")]


def _parameters(documented: pdoc.doc.Doc) -> set[str] | None:
    try:
        return set(inspect.signature(documented.obj).parameters)
    except (TypeError, ValueError):
        return None


def _candidates(target: str, documented: pdoc.doc.Doc) -> Iterator[str]:
    """What a reference may mean: something of the class, of the module, or a full name."""
    target = target.removesuffix("()")
    for module, qualname in ((documented.modulename, documented.qualname), documented.taken_from):
        parts = [module, *qualname.split(".")] if qualname else [module]
        while parts:
            yield ".".join([*parts, target])
            parts.pop() if len(parts) > 1 else parts.clear()
    yield target
    yield f"builtins.{target}"


def _resolves(name: str) -> bool:
    """Whether there is a module, or something in one, of this name."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False


def main(folder: str) -> int:
    """Build, tell what is wrong; returns the exit status."""
    faults = build(Path(folder))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(MODULES)} modules in {folder}/index.html")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
