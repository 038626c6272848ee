"""Weight files: read without running code from them, unwrapped to a plain state dict, loaded strictly."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

__all__ = ["WEIGHT_SUFFIXES", "WeightsError", "file_digest", "fit_names", "load_weights", "read_weights"]

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# Under what training scripts put the model's own state dict, most specific first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "params", "state_dict_ema", "model_ema")
# What DataParallel, torch.compile and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
# torchvision's DenseNet checkpoints predate a ban on dots in module names: "denselayer1.norm.1" is "...norm1" today.
DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


class WeightsError(ValueError):
    """A weight file that cannot be read or does not belong to the model."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dict; nothing in the file is executed.

    Parameters
    ----------
    path
        ``.safetensors``, or a ``torch.save`` file (``.pth``, ``.pt``, ``.bin``, ``.ckpt``) holding tensors only.
        Wrappers such as ``{"state_dict": ...}`` or ``{"model": ...}`` are taken off.

    Returns
    -------
    dict[str, torch.Tensor]
        CPU tensors by name, mapped from the file where its format allows, so that reading costs no second copy.

    Raises
    ------
    WeightsError
        If the file is missing, broken, of another kind, or contains pickled code; with the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path}: " + ("is a folder, name one file" if path.is_dir() else "no such file"))
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"weights {path}: not a readable safetensors file ({error})") from error
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return unwrap(read_pickle(path), path)
    raise WeightsError(f"weights {path}: unknown kind of file; known are {', '.join(WEIGHT_SUFFIXES)}")


def read_pickle(path: Path) -> Any:
    """``torch.load`` restricted to tensors and plain containers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of here ends in one of the errors below
            # files of torch before 1.6 are no zip archives and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        raise WeightsError(
            f"weights {path}: contains pickled Python objects{what} or is broken; code from a file is never run. Where "
            'you trust it, save its tensors alone: torch.save(model.state_dict(), "weights.pth")'
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights {path}: is a TorchScript program; save torch.jit.load(...).state_dict() instead"
            ) from error
        raise WeightsError(f"weights {path}: not a readable torch.save file ({first_line(error)})") from error


def unwrap(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside what a training script saved."""
    while isinstance(loaded, Mapping):
        if loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
            return {str(name): tensor for name, tensor in loaded.items()}
        wrapper = next((name for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if wrapper is None:
            raise WeightsError(
                f"weights {path}: no state dict found among its entries {few(map(str, loaded))}; save "
                "model.state_dict() alone"
            )
        loaded = loaded[wrapper]
    raise WeightsError(f"weights {path}: holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")


def fit_names(state: Mapping[str, torch.Tensor], expected: Iterable[str]) -> dict[str, torch.Tensor]:
    """Rename what wrappers (``module.``) and old torchvision versions called differently.

    A prefix goes only if all names have it and none fits with it, so a model with an own child ``module`` keeps it.
    """
    expected = set(expected)
    fitted = dict(state)
    while fitted and expected.isdisjoint(fitted):
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in fitted)), None)
        if prefix is None:
            break
        fitted = {name.removeprefix(prefix): tensor for name, tensor in fitted.items()}
    return {name if name in expected else DENSENET_NAME.sub(r"\1\2", name): tensor for name, tensor in fitted.items()}


def load_weights(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str | os.PathLike[str], assign: bool = False
) -> None:
    """Put a state dict into ``model``: every name and shape must fit.

    Parameters
    ----------
    model
        Changed in place.
    state
        As :func:`read_weights` gives it; float types are converted to the model's.
    source
        Where the state came from, for errors.
    assign
        Take over the tensors themselves instead of copying into the model's (for a model on the meta device).

    Raises
    ------
    WeightsError
        If names are missing or left over, or shapes differ; naming a few.
    """
    expected = model.state_dict()
    fitted = {
        name: tensor.to(expected[name].dtype) if name in expected else tensor
        for name, tensor in fit_names(state, expected).items()
    }
    try:
        model.load_state_dict(fitted, assign=assign)
    except RuntimeError as error:
        raise WeightsError(
            f"weights {source} do not fit {type(model).__name__}: {differences(fitted, expected) or error}"
        ) from error


def differences(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What keeps a state dict from fitting, in one line."""
    # batch norms count without it; files older than torch 0.4.1 do not have it
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} is {tuple(state[name].shape)} where the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parts = (
        f"{len(missing)} missing ({few(missing)})" if missing else "",
        f"{len(unexpected)} unexpected ({few(unexpected)})" if unexpected else "",
        f"{len(reshaped)} of other shape ({few(reshaped)})" if reshaped else "",
    )
    return "; ".join(part for part in parts if part)


def file_digest(path: str | os.PathLike[str]) -> str:
    """First 8 hex digits of the SHA-256, which torchvision writes into the names of its checkpoints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def few(names: Iterable[str], *, count: int = 4) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    rest = f", and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + rest


def first_line(error: BaseException) -> str:
    """The first line of an error's text; torch's run over many."""
    return (str(error).splitlines() or [type(error).__name__])[0]
