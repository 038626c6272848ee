"""Weight files: read without running code from them, and loaded strictly."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.export import ExportedProgram

from odin.models.model_names import WeightsError, check_weights_file
from odin.models.state_dict import OTHER_NUMBERS, Fit, differences, few, fits, nearest, state_dicts
from odin.partitioner.engines.onnx_file import OnnxFile

__all__ = ["WeightsError", "file_digest", "load_weights", "model_digest", "read_weights"]


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of weights; nothing in the file is executed.

    Parameters
    ----------
    path
        ``.safetensors``, or a ``torch.save`` file (``.pth``, ``.pt``, ``.bin``, ``.ckpt``) holding tensors only.

    Returns
    -------
    dict
        CPU tensors by name, or what a training script put around them (``{"state_dict": ...}``); mapped from the file
        where its format allows, so that reading costs no second copy.

    Raises
    ------
    WeightsError
        If the file is missing, broken, of another kind, or contains pickled code; with the remedy.
    """
    check_weights_file(path)
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"weights {path}: not a readable safetensors file ({error})") from error
    return checked(read_pickle(path), path)


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


def checked(loaded: Any, path: Path) -> dict[str, Any]:
    """What a file holds, if there is a state dict inside."""
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"weights {path}: holds a {type(loaded).__name__}, not a state dict; save model.state_dict()"
        )
    if not state_dicts(loaded):
        raise WeightsError(
            f"weights {path}: no state dict found among its entries {few(map(str, loaded))}; save "
            "model.state_dict() alone"
        )
    return dict(loaded)


def load_weights(
    model: nn.Module, state: Mapping[str, Any], *, source: str | os.PathLike[str], assign: bool = False
) -> None:
    """Put what a file holds into ``model``: every name and shape must fit.

    Where several state dicts of the file fit and one is called a running average (EMA), that one is taken, as training
    scripts evaluate it, and a warning says so.

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
        If names are missing or left over, or shapes differ, naming a few; or if several state dicts fit, naming them.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    fit = only(fits(state, expected), source) or nearest(state, expected)
    fitted = {
        name: dense(tensor).to(expected[name].dtype) if name in expected else tensor
        for name, tensor in fit.state.items()
    }
    difference = differences(fit.state, expected)
    where = f" (in its {fit.place})" if fit.place else ""
    try:
        if OTHER_NUMBERS in difference:
            raise RuntimeError(difference)
        # Tried whatever the difference is: some modules rename what older versions of them saved.
        model.load_state_dict(fitted, assign=assign)
    except RuntimeError as error:
        raise WeightsError(
            f"weights {source} do not fit {type(model).__name__}{where}: {difference or first_line(error)}. "
            f"{remedy(difference)}"
        ) from error


def only(found: list[Fit], source: str | os.PathLike[str]) -> Fit | None:
    """The one that fits; of several the running average, which is told."""
    if len(found) < 2:
        return found[0] if found else None
    places = few(f"[{fit.place or 'the file itself'}]" for fit in found)
    averaged = [fit for fit in found if fit.averaged]
    if len(averaged) == 1:
        warnings.warn(
            f"weights {source}: {places} fit the model; taken is the running average, [{averaged[0].place}]. To use "
            "another, save it alone",
            stacklevel=3,
        )
        return averaged[0]
    raise WeightsError(
        f"weights {source}: {len(found)} sets of weights in it fit the model and differ, {places}; save the one that "
        'you want alone: torch.save(that_state_dict, "weights.pth")'
    )


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in plain form."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def remedy(difference: str) -> str:
    """What to do about a state dict that does not fit."""
    if " missing " not in difference and " of other " not in difference and " unexpected " in difference:
        return "If they are no part of the model, save the file without them; else build the model that was trained"
    return "Build the model as it was when these weights were trained, or give its own weights"


def file_digest(path: str | os.PathLike[str]) -> str:
    """First 8 hex digits of the SHA-256, which torchvision writes into the names of its checkpoints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def model_digest(model: nn.Module | ExportedProgram | OnnxFile) -> str:
    """SHA-256 of names, types, shapes and bytes of a model's parameters, buffers and constants, as hex digits."""
    if isinstance(model, OnnxFile):
        return model.digest()
    digest = hashlib.sha256()
    state = model.state_dict | model.constants if isinstance(model, ExportedProgram) else model.state_dict()
    for name, value in state.items():
        digest.update(repr((name, str(value.dtype), tuple(value.shape)) if is_plain(value) else (name, value)).encode())
        if is_plain(value):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def is_plain(value: Any) -> bool:
    """Whether a value of a state dict is a tensor whose bytes lie in one piece of memory."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def first_line(error: BaseException) -> str:
    """The first line of an error's text; torch's run over many."""
    return (str(error).splitlines() or [type(error).__name__])[0]
