"""Where a model comes from: an object, a built-in name, a library, a factory, or a file."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from odin.models.builtin import BUILTIN_MODELS
from odin.models.builtin.initialize import initialize
from odin.models.images import Preprocess
from odin.models.labels import imagenet_labels
from odin.models.model_names import LIBRARIES, WEIGHT_SUFFIXES, find_here_too, unknown_model
from odin.models.onnx_source import open_onnx
from odin.models.weight_files import file_digest, load_weights, read_weights
from odin.models.zoo import from_timm, from_torchvision, with_classes_of
from odin.partitioner.engines.onnx_file import OnnxFile
from odin.partitioner.graph.model_copy import evaluating, unwrapped

__all__ = ["Source", "load_source"]

IMAGE_SIZE = 224
# The second generation of torchvision's weights was evaluated at another resize; by SHA-256, as in their file names.
RESIZE_OF_WEIGHTS = {"11ad3fa6": 232, "cd907fc2": 232, "f82ba261": 232, "7ebf99e0": 232}
# With what torchvision's weights of these models were evaluated, where that is not resize 256, bilinear.
OWN_PREPROCESS = {
    "efficientnet_b0": Preprocess(interpolation="bicubic"),
    "convnext_tiny": Preprocess(resize=236),
}


@dataclass(frozen=True)
class Source:
    """A model, ready to be cut into a chain, and what goes into and comes out of it.

    Attributes
    ----------
    name
        Short name: ``"resnet50"``.
    model
        In eval mode, on the CPU; or a file, which engines other than PyTorch run.
    example_args
        Positional arguments of one call with batch size 1 (or as the user gave them).
    preprocess
        How image files become its input; None where that is not known.
    labels
        One name per class; None where they are not known.
    random_weights
        True if nobody gave weights: the outputs mean nothing.
    """

    name: str
    model: nn.Module | ExportedProgram | OnnxFile
    example_args: tuple[torch.Tensor, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    random_weights: bool

    @property
    def torch_model(self) -> nn.Module | ExportedProgram:
        """The model as :func:`odin.build_chain` takes it; ``ValueError`` for an ONNX file, which is not PyTorch's."""
        if isinstance(self.model, OnnxFile):
            raise ValueError(f"{self.name} is an ONNX file, which PyTorch does not run: give the model in PyTorch")
        return self.model


def load_source(
    spec: str | Path | nn.Module | ExportedProgram,
    *,
    weights: str | Path | None = None,
    example_input: Any = None,
    image_size: int | None = None,
) -> Source:
    """Get a model from whatever names it.

    A factory is a program, and so is a ``.pt2`` file, which also holds pickled objects: load only what you trust.

    Parameters
    ----------
    spec
        An ``nn.Module`` (put into eval mode in place) or ``ExportedProgram``; the name of a built-in model;
        ``"torchvision:NAME"`` or ``"timm:NAME"``; ``"package.module:factory"``, called without arguments, giving a
        module or ``(module, example_args)``; or the path of a ``.pt2`` file saved by ``torch.export.save``, or of an
        ``.onnx`` file.
    weights
        A ``.safetensors`` or ``.pth`` file for the model, loaded strictly; wrappers around its state dict and before
        its names are taken off, and named models take the number of classes from it. Without it a built-in or library
        model gets random weights, the same in every run.
    example_input
        A tensor, an ndarray or a tuple of them; by default one random image of the model's size.
    image_size
        Height and width of the images in pixels, where not the model's default (224 if it has none).

    Raises
    ------
    ValueError
        If the spec names nothing known (listing what there is), or the weights or the example do not fit.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image size {image_size} must be a positive number of pixels")
    if image_size is not None and example_input is not None:
        raise ValueError("give either an example input or an image size: the example fixes the size")
    example = None if example_input is None else as_tensors(example_input)
    if isinstance(spec, nn.Module):
        spec = unwrapped(spec)
        return from_module(type(spec).__name__.lower(), spec, weights=weights, example=example, image_size=image_size)
    if isinstance(spec, ExportedProgram):
        return from_program("exported", spec, weights=weights, example=example, image_size=image_size)
    if not isinstance(spec, (str, Path)):
        raise ValueError(f"a model is a name, a path, an nn.Module or an ExportedProgram, not {type(spec).__name__}")
    text = str(spec)
    library, _, rest = text.partition(":")
    if text in BUILTIN_MODELS:
        return from_builtin(text, weights=weights, example=example, image_size=image_size)
    if text.endswith(".pt2"):
        program = load_program(Path(text))
        return from_program(Path(text).stem, program, weights=weights, example=example, image_size=image_size)
    if text.endswith(".onnx"):
        return from_onnx(Path(text), weights=weights, example=example, image_size=image_size)
    if library in LIBRARIES and rest:
        zoo = {"torchvision": from_torchvision, "timm": from_timm}[library]
        found = zoo(rest, weights=weights, image_size=image_size)
        preprocess = found.preprocess
        if example is not None:  # the example fixes the image size, so it decides
            preprocess = preprocess if is_image(example, preprocess) else None
        return Source(
            name=rest,
            model=found.model.eval(),
            example_args=example or (random_images(found.input_shape),),
            preprocess=preprocess,
            labels=found.labels,
            random_weights=weights is None,
        )
    if rest and not text.endswith(WEIGHT_SUFFIXES):
        model, factory_example = call_factory(text)
        if isinstance(model, ExportedProgram):
            return from_program(rest, model, weights=weights, example=example, image_size=image_size)
        if example is None and image_size is None:
            example = factory_example
        return from_module(rest, model, weights=weights, example=example, image_size=image_size)
    raise unknown_model(text)


def from_builtin(
    name: str, *, weights: str | Path | None, example: tuple[torch.Tensor, ...] | None, image_size: int | None
) -> Source:
    """One of :data:`odin.models.builtin.BUILTIN_MODELS`, its number of classes taken from the weights."""
    state = None if weights is None else read_weights(weights)
    with torch.device("meta"):  # no storage yet: torch's own initialisation would cost VGG16 a second for nothing
        model, classes = with_classes_of(state, BUILTIN_MODELS[name])
    if state is not None and weights is not None:
        load_weights(model, state, source=weights, assign=True)
    else:
        # Not by to_empty, for which PyTorch imports sympy: 0.4 s and 30 MiB that nothing else here takes.
        empty = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in model.state_dict().items()}
        model.load_state_dict(empty, assign=True)
        initialize(model)
    model.requires_grad_(False)
    if example is None:
        size = image_size or IMAGE_SIZE
        example = (random_images((3, size, size)),)
    preprocess = image_preprocess(example)
    if example[0].shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE):
        preprocess = OWN_PREPROCESS.get(name, preprocess)
    # only models that have a second generation, at its own size, are worth a look through the whole file
    if weights is not None and example[0].shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE) and name in SECOND_GENERATION:
        resize = RESIZE_OF_WEIGHTS.get(file_digest(weights))
        preprocess = preprocess if resize is None else Preprocess(resize=resize)
    return Source(
        name=name,
        model=model.eval(),
        example_args=example,
        preprocess=preprocess,
        labels=imagenet_labels() if classes is None else None,
        random_weights=weights is None,
    )


SECOND_GENERATION = ("resnet50", "resnet101", "resnet152", "mobilenet_v2")


def from_module(
    name: str,
    model: nn.Module,
    *,
    weights: str | Path | None,
    example: tuple[torch.Tensor, ...] | None,
    image_size: int | None,
) -> Source:
    """A module that exists; images of 224 x 224 unless said otherwise."""
    model = unwrapped(model)
    tensors = (*model.named_parameters(), *model.named_buffers())
    elsewhere = next(((name, tensor.device) for name, tensor in tensors if tensor.device.type != "cpu"), None)
    if elsewhere is not None:
        raise ValueError(f"{name}: {elsewhere[0]} is on {elsewhere[1]}; hand the model over on the CPU (model.cpu())")
    if weights is not None:
        load_weights(model, read_weights(weights), source=weights)
    if example is None:
        size = image_size or IMAGE_SIZE
        example = (random_images((image_channels(model), size, size)),)
    return Source(name, evaluating(model), example, image_preprocess(example), None, random_weights=False)


def from_program(
    name: str,
    program: ExportedProgram,
    *,
    weights: str | Path | None,
    example: tuple[torch.Tensor, ...] | None,
    image_size: int | None,
) -> Source:
    """A program that exists; its weights and input shapes are its own."""
    if weights is not None:
        raise ValueError(f"{name}: an exported program carries its weights; load {weights} before torch.export.export")
    if image_size is not None:
        raise ValueError(f"{name}: an exported program has a fixed input size; export it at {image_size}")
    if example is None:
        if program.example_inputs is None:
            raise ValueError(f"{name}: the program was saved without example inputs; give example_input=")
        args, kwargs = program.example_inputs
        if kwargs:
            raise ValueError(f"{name}: exported with keyword inputs {', '.join(kwargs)}; export it with args only")
        example = as_tensors(args)
    return Source(name, program, example, image_preprocess(example), None, random_weights=False)


def from_onnx(
    path: Path, *, weights: str | Path | None, example: tuple[torch.Tensor, ...] | None, image_size: int | None
) -> Source:
    """An ONNX file; its weights are its own, and its input sizes as far as it says them."""
    if weights is not None:
        raise ValueError(f"{path.name}: an ONNX file carries its weights; load {weights} before it is exported")
    file, example = open_onnx(path, example=example, image_size=image_size)
    preprocess = image_preprocess(example) if example[0].dtype == torch.float32 else None
    return Source(path.stem, file, example, preprocess, None, random_weights=False)


def load_program(path: Path) -> ExportedProgram:
    """Read a ``.pt2`` file."""
    if not path.is_file():
        raise ValueError(f"model {path}: no such file")
    log = logging.getLogger("torch.export")  # it shows tracebacks, of older files that it can read as well
    log.disabled = True
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises a different kind for every way in which a file can be broken
        raise ValueError(f"model {path}: not a program saved by torch.export.save ({error})") from error
    finally:
        log.disabled = False


def call_factory(spec: str) -> tuple[nn.Module | ExportedProgram, tuple[torch.Tensor, ...] | None]:
    """Import ``package.module:factory`` and call it."""
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"model {spec}: {module_name!r} is not the name of a module")
    find_here_too()
    try:
        factory: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, something that it imports does not
        raise ValueError(f"model {spec}: no module {module_name!r} in {os.getcwd()} or among the installed") from error
    for part in attribute.split("."):
        if not hasattr(factory, part):
            raise ValueError(f"model {spec}: {module_name} has no {attribute!r}")
        factory = getattr(factory, part)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ValueError(f"model {spec}: name a function or class that makes the model when called without arguments")
    made = factory()
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise ValueError(
            f"model {spec}: gave a {type(made).__name__}, expected an nn.Module or (nn.Module, example_args)"
        )
    return model, None if example is None else as_tensors(example)


def as_tensors(example: Any) -> tuple[torch.Tensor, ...]:
    """A tensor, an ndarray or a sequence of them as a tuple of tensors."""
    if isinstance(example, (torch.Tensor, np.ndarray)):
        example = (example,)
    if not isinstance(example, Iterable) or isinstance(example, (str, bytes, Mapping)):
        raise ValueError(f"example input must be a tensor, an ndarray or a tuple of them, not {type(example).__name__}")
    tensors = []
    for index, value in enumerate(example):
        if isinstance(value, np.ndarray):
            # torch wants memory that it may write to, in the machine's byte order, with positive strides
            writable = np.require(value, dtype=value.dtype.newbyteorder("="), requirements=["C", "W"])
            value = torch.from_numpy(writable)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"example input {index} is of type {type(value).__name__}; give tensors or ndarrays")
        if value.shape[:1] == (0,):
            raise ValueError(f"example input {index} of shape {tuple(value.shape)} has no sample; give at least one")
        tensors.append(value.detach())
    if not tensors:
        raise ValueError("example input is empty; give at least one tensor")
    return tuple(tensors)


def random_images(shape: tuple[int, ...]) -> torch.Tensor:
    """One image ``(1, *shape)`` of seeded noise, distributed like a normalised photograph (mean 0, std 1)."""
    try:
        return torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    except RuntimeError as error:  # torch has no kind of its own for memory of the processor
        gibibytes = 4 * math.prod(shape) / 2**30
        raise MemoryError(
            f"an input of {'x'.join(map(str, shape))} takes {gibibytes:.3g} GiB: give a smaller one"
        ) from error


def image_channels(model: nn.Module) -> int:
    """Channels that the first convolution reads; 3 if there is none."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def is_image(example: tuple[torch.Tensor, ...], preprocess: Preprocess | None) -> bool:
    """Whether the example is what ``preprocess`` makes of an image, apart from the number of images."""
    return preprocess is not None and len(example) == 1 and example[0].shape[1:] == (3, *preprocess.crop)


def image_preprocess(example: tuple[torch.Tensor, ...]) -> Preprocess | None:
    """ImageNet's preprocessing at the example's size, where the example is one float RGB image."""
    if len(example) != 1 or example[0].ndim != 4 or example[0].shape[1] != 3 or not example[0].is_floating_point():
        return None
    return Preprocess.for_size(example[0].shape[2], example[0].shape[3])
