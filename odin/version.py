"""Which version of ODIN this is."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

__all__ = ["__version__", "find_version"]

_DISTRIBUTION = "odin-pipeline"


def find_version(folder: Path = Path(__file__).parent.parent) -> str:
    """The version of the source tree that this is run from, else of the installed distribution.

    Parameters
    ----------
    folder
        What the package is in: of a source tree, it has a ``pyproject.toml``.

    Returns
    -------
    str
        ``0+unknown`` for a copy that is neither.
    """
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == _DISTRIBUTION:
            return str(project["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = find_version()
