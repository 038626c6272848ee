"""Built-in CNNs; parameter names and shapes are those of torchvision, so its checkpoints load as they are."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from torch import nn

from odin.models.builtin.convnext import convnext_tiny
from odin.models.builtin.densenet import densenet121
from odin.models.builtin.efficientnet import efficientnet_b0
from odin.models.builtin.mobilenet import mobilenet_v2
from odin.models.builtin.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from odin.models.builtin.vgg import vgg16

__all__ = [
    "BUILTIN_MODELS",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg16",
]

# Name -> factory; each takes ``num_classes`` (1000) and gives an image classifier.
BUILTIN_MODELS: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "vgg16": vgg16,
        "resnet18": resnet18,
        "resnet34": resnet34,
        "resnet50": resnet50,
        "resnet101": resnet101,
        "resnet152": resnet152,
        "mobilenet_v2": mobilenet_v2,
        "efficientnet_b0": efficientnet_b0,
        "densenet121": densenet121,
        "convnext_tiny": convnext_tiny,
    }
)
