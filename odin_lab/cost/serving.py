"""``odin serve`` with one model, or several, on the same devices, and what each of them takes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from odin_lab.load.client import Target
from odin_lab.load.introduction import Introduction, introduce
from odin_lab.load.server_process import started_server

__all__ = ["names_of", "serving"]


def names_of(sources: Sequence[str]) -> dict[str, str]:
    """A name for each model, from its source; in their order.

    Raises
    ------
    ValueError
        If two have the same.

    Examples
    --------
    >>> names_of(["resnet50", "torchvision:vgg16", "models/net.onnx"])
    {'resnet50': 'resnet50', 'vgg16': 'torchvision:vgg16', 'net': 'models/net.onnx'}
    """
    found: dict[str, str] = {}
    for source in sources:
        name = Path(source.rpartition(":")[2]).stem
        if name in found:
            raise ValueError(f"{found[name]} and {source} are both called {name!r}; name each model once")
        found[name] = source
    return found


@contextmanager
def serving(
    models: Mapping[str, str],
    options: Mapping[str, str | int],
    *,
    look: Callable[[], bool] = lambda: True,
    command: Sequence[str] = (sys.executable, "-m", "odin", "serve"),
) -> Iterator[dict[str, Introduction]]:
    """Serve models until the end of the block; what each of them takes, by name.

    Parameters
    ----------
    models
        Sources, by name.
    options
        Fields of each model's file: ``stages``, ``engine``.
    look
        Asked while the server starts; False: the user wants no more.
    command
        What serves the folder that is put behind it.

    Raises
    ------
    RuntimeError
        If the server does not start, or does not answer; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="odin-cost-") as folder:
        for name, source in models.items():
            path = Path(source)
            fields = {"source": str(path.absolute()) if path.is_file() else source, **options}
            lines = [f"{field} = {json.dumps(value)}" for field, value in fields.items()]  # TOML's own form of both
            (Path(folder) / f"{name}.toml").write_text("\n".join(lines) + "\n", "utf-8")
        words = [*command, folder, "--http-port", "0", "--grpc-port", "0"]
        with started_server(words, name=f"odin serve with {', '.join(models)}", look=look) as started:
            url = f"http://127.0.0.1:{started.ports['http']}"
            try:
                known = {name: introduce(Target(url, name)) for name in models}
            except ValueError as error:  # it could not be loaded; the server has said why
                raise RuntimeError(str(error)) from error
            yield known
