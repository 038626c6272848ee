"""Every classification model of torchvision, where it is installed."""

from __future__ import annotations

import pytest
import torch

from odin.partitioner.chain import build_chain

torchvision = pytest.importorskip("torchvision", exc_type=ImportError)

_LARGE = ("vit_", "swin", "maxvit", "regnet_y_128gf", "convnext_large", "efficientnet_v2_l", "efficientnet_b7")
NAMES = [name for name in torchvision.models.list_models(module=torchvision.models) if not name.startswith(_LARGE)]


@pytest.mark.parametrize("name", NAMES)
def test_model(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    size = 299 if name == "inception_v3" else 128
    x = torch.randn(1, 3, size, size)
    chain = build_chain(model, (x,), name=name)
    with torch.no_grad():
        expected = model(x)
    assert (chain(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert chain.dynamic_batch
    assert 8 <= len(chain.layers) <= 90
    values = chain.layout(chain.pack((x,)))
    for index in range(len(chain.layers)):
        values = chain.run(values, index, index + 1)
    assert torch.equal(values[0], chain(x))


@pytest.mark.parametrize(("name", "layer_count"), [("resnet50", 18), ("vgg16", 15), ("mobilenet_v2", 33)])
def test_layer_counts(name, layer_count):
    torch.manual_seed(0)
    chain = build_chain(torchvision.models.get_model(name, weights=None), (torch.randn(1, 3, 224, 224),))
    assert len(chain.layers) == layer_count
