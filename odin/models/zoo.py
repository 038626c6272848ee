"""Models by name from torchvision and timm, where installed, with what they know about their images."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from odin.models.images import Preprocess
from odin.models.labels import imagenet_labels
from odin.models.state_dict import class_counts, fits
from odin.models.weight_files import file_digest, load_weights, read_weights

__all__ = ["ZooModel", "from_timm", "from_torchvision", "with_classes_of"]

# torchvision sets this on models whose published weights want [-1, 1] images, and undoes its own normalisation in them.
TRANSFORMS_INPUT = ("googlenet", "inception_v3")


class ZooModel(NamedTuple):
    """A library's model; ``preprocess`` is None where the library prepares images in a way not known here."""

    model: nn.Module
    input_shape: tuple[int, ...]
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None


def import_library(library: str) -> ModuleType:
    """Import torchvision or timm, or say how to get it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ValueError(
            f"{library}:... needs the package {library}: pip install {library} (the version made for torch "
            f"{torch.__version__.split('+')[0]})"
        ) from error
    except RuntimeError as error:  # torchvision built for another torch: "operator torchvision::nms does not exist"
        raise ValueError(f"{library} is installed but does not work with torch {torch.__version__}: {error}") from error


def unknown_name(library: str, name: str, known: list[str]) -> ValueError:
    """The error for a name that the library does not have."""
    near = get_close_matches(name, known, n=5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return ValueError(f"{library} has no model {name!r}{hint}")


def build_seeded(factory: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a factory with torch's generator seeded, so random weights repeat, and put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory(*args, **kwargs)


def with_classes_of(state: Mapping[str, Any] | None, build: Callable[..., nn.Module]) -> tuple[nn.Module, int | None]:
    """Build a model for the number of classes that a file's weights were trained for (fine-tuned heads have others).

    Parameters
    ----------
    state
        What the file holds; None is no file.
    build
        Builds the model; called with ``num_classes=`` for another number than its default.

    Returns
    -------
    (model, number)
        The number of classes if it is not the model's default; None also where the weights do not fit with any.
    """
    model = build()
    if state is None:
        return model, None
    expected = model.state_dict()
    if not fits(state, expected):
        for count in class_counts(state, expected):
            other = build(num_classes=count)
            if fits(state, other.state_dict()):
                return other, count
    return model, None


def from_torchvision(name: str, *, weights: str | Path | None, image_size: int | None) -> ZooModel:
    """``torchvision.models`` by name, with the preprocessing published for its weights.

    A checkpoint that torchvision published is recognised by its SHA-256 and gets its own preprocessing; other weights
    get that of the model's default weights.

    Raises
    ------
    ValueError
        If torchvision is not installed, has no such model, or the weights do not fit.
    """
    import_library("torchvision")
    models = importlib.import_module("torchvision.models")
    try:
        builder = models.get_model_builder(name)
    except ValueError:
        raise unknown_name("torchvision", name, models.list_models()) from None
    # both default to a download of ImageNet weights somewhere in torchvision; random weights must not need a network
    options: dict[str, Any] = {
        option: value
        for option, value in (("weights", None), ("weights_backbone", None))
        if option in inspect.signature(builder).parameters
    }
    if name in TRANSFORMS_INPUT:
        options["init_weights"] = weights is None  # unsaid, torchvision warns that it may change its mind
    published = list(models.get_model_weights(name))
    meta = models.get_model_weights(name).DEFAULT if published else None
    if weights is not None:
        digest = file_digest(weights) if Path(weights).is_file() else None
        recognised = next((entry for entry in published if f"-{digest}." in entry.url), None)
        if recognised is not None:
            meta = recognised
            if name in TRANSFORMS_INPUT:
                options["transform_input"] = True
    state = None if weights is None else read_weights(weights)
    model, classes = with_classes_of(state, lambda **classes: build_seeded(builder, **options, **classes))
    if state is not None and weights is not None:
        load_weights(model, state, source=weights)
    transforms: Any = meta.transforms() if meta is not None else None
    preprocess = None
    if hasattr(transforms, "crop_size"):  # a classifier's preset; detection and segmentation have others
        [resize], [crop] = transforms.resize_size, transforms.crop_size
        if image_size is not None:
            resize, crop = round(image_size * resize / crop), image_size
        preprocess = Preprocess(
            resize=resize,
            crop=(crop, crop),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )
    size = image_size or 224
    shape = (3, *preprocess.crop) if preprocess is not None else (3, size, size)
    named = classes is None and meta is not None and len(meta.meta.get("categories") or ()) == 1000
    classifies = preprocess is not None and named
    return ZooModel(model, shape, preprocess, imagenet_labels() if classifies else None)


def from_timm(name: str, *, weights: str | Path | None, image_size: int | None) -> ZooModel:
    """``timm.create_model`` by name, with the preprocessing of its configuration.

    Raises
    ------
    ValueError
        If timm is not installed, has no such model, or the weights do not fit.
    """
    timm = import_library("timm")
    if not timm.is_model(name):
        raise unknown_name("timm", name, timm.list_models())
    state = None if weights is None else read_weights(weights)
    model, _ = with_classes_of(
        state, lambda **classes: build_seeded(timm.create_model, name, pretrained=False, **classes)
    )
    if state is not None and weights is not None:
        load_weights(model, state, source=weights)
    config = importlib.import_module("timm.data").resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if image_size is not None:
        height = width = image_size
    classifies = getattr(model, "num_classes", None) == 1000
    return ZooModel(
        model,
        (channels, height, width),
        timm_preprocess(config, channels, height, width),
        imagenet_labels() if classifies else None,
    )


def timm_preprocess(config: dict[str, Any], channels: int, height: int, width: int) -> Preprocess | None:
    """Timm's evaluation transform; None for the few that neither crop the centre of a square nor squash."""
    resize_height, resize_width = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    resize: int | tuple[int, int]
    if config["crop_mode"] == "squash":
        resize = (resize_height, resize_width)
    elif config["crop_mode"] == "center" and height == width:
        resize = resize_height
    else:
        return None
    if channels != 3:
        return None
    return Preprocess(
        resize=resize,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
