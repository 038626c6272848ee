"""Checks of a model's name and files that do not need torch."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from difflib import get_close_matches
from pathlib import Path

__all__ = [
    "BUILTIN_NAMES",
    "LIBRARIES",
    "PICKLE_SUFFIXES",
    "WEIGHT_SUFFIXES",
    "WeightsError",
    "check_model_name",
    "check_weights_file",
    "find_here_too",
    "installed",
    "unknown_model",
]

BUILTIN_NAMES = (
    "vgg16",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
)
"""Of :data:`odin.models.builtin.BUILTIN_MODELS`."""
LIBRARIES = ("torchvision", "timm")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


class WeightsError(ValueError):
    """A weight file that cannot be read or does not belong to the model."""


def check_model_name(text: str) -> None:
    """Raise ``ValueError`` if a text names no model, as far as that is known without importing anything.

    Whether a library has a model of that name, and a module that factory, is found out when it is loaded.
    """
    library, _, rest = text.partition(":")
    if text in BUILTIN_NAMES or (library in LIBRARIES and rest):
        return
    if text.endswith((".pt2", ".onnx")):
        if not Path(text).is_file():
            raise ValueError(f"model {text}: no such file")
    elif rest and not text.endswith(WEIGHT_SUFFIXES):
        _check_module(text, library)
    else:
        raise unknown_model(text)


def _check_module(spec: str, module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"model {spec}: {module!r} is not the name of a module")
    find_here_too()
    package = module.partition(".")[0]
    try:
        found = package in sys.modules or importlib.util.find_spec(package) is not None
    except ValueError:  # it is imported, and does not say from where
        return
    if not found:
        raise ValueError(f"model {spec}: no module {package!r} in {os.getcwd()} or among the installed")


def find_here_too() -> None:
    """Let modules of the current folder be imported, which a console script does not: last, so that they hide none."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def check_weights_file(path: str | os.PathLike[str]) -> None:
    """Raise :class:`WeightsError` if there is no such file, or its name is of no kind that can be read."""
    if not isinstance(path, str | os.PathLike):
        raise WeightsError(
            f"weights of type {type(path).__name__} are no file; give the path of one, as "
            'torch.save(model.state_dict(), "weights.pth") writes it'
        )
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path}: " + ("is a folder, name one file" if path.is_dir() else "no such file"))
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise WeightsError(f"weights {path}: unknown kind of file; known are {', '.join(WEIGHT_SUFFIXES)}")


def installed(library: str) -> bool:
    """Whether a library can be imported, without importing it."""
    return importlib.util.find_spec(library) is not None


def unknown_model(text: str) -> ValueError:
    """The error for a spec that names nothing, with what it may have meant."""
    if _is_torchscript(text):
        return ValueError(
            f"{text!r} is a TorchScript program (torch.jit.save), which can be neither cut nor sent to stages: give "
            "the Python module that it was made from, or export that one (torch.export.save, .pt2)"
        )
    if text.endswith(WEIGHT_SUFFIXES):
        return ValueError(
            f"{text!r} is a file of weights or of another format, not a model: name the model and give the weights "
            "beside it (--weights), or save the model by torch.export.save as .pt2 or export it as .onnx"
        )
    if os.sep in text and os.path.isdir(text):
        return ValueError(f"{text!r} is a folder, not a model: name a .pt2 or .onnx file in it")
    near = get_close_matches(text.lower(), BUILTIN_NAMES, n=3)
    message = f"unknown model {text!r}"
    if near:
        message += f" (did you mean {' or '.join(near)}?)"
    libraries = [f"{library}:{text}" for library in LIBRARIES if installed(library)]
    also = f"; perhaps {' or '.join(libraries)}" if libraries else ""
    return ValueError(
        f"{message}. Built in: {', '.join(BUILTIN_NAMES)}{also}. Otherwise: torchvision:NAME, timm:NAME, "
        "package.module:factory, or the path of a .pt2 or .onnx file"
    )


def _is_torchscript(path: str) -> bool:
    """Whether a file was written by ``torch.jit.save``: an archive with code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
