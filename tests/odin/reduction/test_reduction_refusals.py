"""What cannot be reduced is refused, with the place and the remedy; what data must be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odin
from odin.models.labelled import Labelled
from odin.reduction.answering import ReductionError, scores
from odin.reduction.exits import choose_exits, early_exits
from odin.reduction.heads import pooled_side, train_head
from odin.reduction.slimmable import corners, train_slimmable
from odin.reduction.widths import narrow, recalibrate

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def labelled(count: int, classes: int = 2) -> Labelled:
    generator = torch.Generator().manual_seed(1)
    return Labelled(torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % classes)


class Classifier(nn.Module):
    """What ``middle`` makes of eight channels is classified."""

    def __init__(self, middle: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = middle
        self.classify = nn.Linear(channels, 4)

    def forward(self, x):
        return self.classify(self.middle(self.first(x)).mean((2, 3)))


class Twice(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


class Halves(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0], 8, -1).mean(2)[:, :, None, None]


class Hard(nn.Module):
    """Its code has the number of channels in it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return torch.relu(self.conv(x)).reshape(-1, 8 * 256)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Classifier(Twice(), 16), r"cat .* put early exits into it instead"),
        (Classifier(nn.Conv2d(8, 8, 1, groups=2)), r"middle is a convolution in 2 groups"),
        (Classifier(nn.PixelShuffle(2), 2), r"middle \(PixelShuffle\)"),
        (Classifier(Halves()), r"view"),
        (nn.Sequential(nn.Conv2d(3, 8, 1)), r"does not return scores"),
        (
            nn.Sequential(Classifier(nn.Identity()).first, Hard(), nn.Linear(2048, 2)),
            r"does not run with fewer channels",
        ),
    ],
)
def test_models_that_cannot_be_narrowed(model, told):
    with pytest.raises(ReductionError, match=told):
        narrow(model.eval(), IMAGES, width=0.5)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_torch_fx_cannot_trace_is_told_where():
    with pytest.raises(odin.TraceError, match=r"cannot be traced by torch\.fx"):
        narrow(Classifier(Branch()).eval(), IMAGES, width=0.5)


@pytest.mark.parametrize("width", [0.0, -1.0, 1.5, float("nan")])
def test_widths_that_are_none(width):
    with pytest.raises(ReductionError, match="give shares of the channels"):
        narrow(Classifier(nn.Identity()).eval(), IMAGES, width=width)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_built_in_models_are_narrowed(name):
    model = odin.load_source(name, image_size=32).torch_model
    thin = narrow(model, torch.randn(1, 3, 32, 32), width=0.5)
    recalibrate(thin, torch.randn(4, 3, 32, 32))
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (thin, model)]
    assert 0.2 < sizes[0] / sizes[1] < 0.45
    assert thin(torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    assert odin.build_chain(thin, (torch.randn(1, 3, 32, 32),)).captured_with == "torch.fx"


def test_the_channels_with_the_largest_weights_stay():
    model = Classifier(nn.Conv2d(8, 8, 1, groups=8)).eval()
    with torch.no_grad():
        for channel in range(8):
            model.first.weight[channel] = 1.0 if channel in (1, 2, 5, 6) else 0.1
            model.first.bias[channel] = float(channel)
    thin = narrow(model, IMAGES, width=0.5)
    assert thin.first.bias.tolist() == [1.0, 2.0, 5.0, 6.0]
    assert torch.equal(thin.middle.weight, model.middle.weight[[1, 2, 5, 6]])
    assert torch.equal(thin.classify.weight, model.classify.weight[:, [1, 2, 5, 6]])


def test_a_flattened_channel_takes_all_its_inputs_with_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].weight[2] = 1.0
    thin = narrow(model, IMAGES, width=0.25)
    assert torch.equal(thin[3].weight, model[3].weight[:, 8:12])


def test_models_without_a_place_for_an_exit():
    one = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()).eval()
    with pytest.raises(ReductionError, match="no exit can be put into it"):
        choose_exits(odin.build_chain(one, (IMAGES[:1],), name="one"))
    with pytest.raises(ReductionError, match="0 exits"):
        choose_exits(odin.build_chain(one, (IMAGES[:1],), name="one"), count=0)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 14)

    def forward(self, x, y):
        return self.second(self.first(x + y)).flatten(1)


def test_a_model_of_two_inputs_has_no_exits():
    chain = odin.build_chain(Two().eval(), (IMAGES[:1], IMAGES[:1]), name="two")
    with pytest.raises(ReductionError, match="more than one tensor"):
        early_exits(Two().eval(), chain, labelled(64), classes=2, cuts=(1,))


def test_a_head_learns_what_can_be_learnt_and_is_as_sure_as_it_is_right():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 6, generator=generator) * torch.tensor([1.0, 1e3, 1e-3, 1.0, 1.0, 0.0]) + 5
    chances = torch.sigmoid(2 * (features[:, 0] - 5))
    labels = (torch.rand(4000, generator=generator) < chances).long()
    head = train_head(Labelled(features[:1000], labels[:1000]), classes=2, side=0)
    told = head(features[1000:]).softmax(1)
    assert (told[:, 1] - chances[1000:]).abs().mean() < 0.06
    assert (told.argmax(1) == (chances[1000:] > 0.5)).float().mean() > 0.95


@pytest.mark.parametrize(
    ("shape", "side"), [((1, 8, 16, 16), 4), ((1, 100, 8, 8), 2), ((1, 64, 7, 7), 1), ((1, 900, 8, 8), 1), ((1, 5), 0)]
)
def test_how_features_are_pooled(shape, side):
    assert pooled_side(shape) == side


def test_features_that_are_no_image():
    with pytest.raises(ReductionError, match="on images or vectors only"):
        pooled_side((1, 4, 4))


def test_only_classifiers_have_scores():
    with pytest.raises(ReductionError, match=r"returns \(2, 4, 16, 16\)"):
        scores(nn.Conv2d(3, 4, 1).eval(), IMAGES)
    with pytest.raises(ReductionError, match="returns list"):
        scores(Lists(), IMAGES)


class Lists(nn.Module):
    def forward(self, x):
        return [x]


def test_networks_that_are_no_widths_of_each_other():
    with pytest.raises(ReductionError, match=r"weight has shape \(9, 3, 1, 1\), the full one has shape \(8, 3, 1, 1\)"):
        corners(nn.Sequential(nn.Conv2d(3, 8, 1)), nn.Sequential(nn.Conv2d(3, 9, 1)))
    with pytest.raises(ReductionError, match="no such weight"):
        corners(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False)), nn.Sequential(nn.Conv2d(3, 8, 1)))
    with pytest.raises(ReductionError, match=r"the full width, 1\.0"):
        train_slimmable(lambda width: nn.Identity(), labelled(4), widths=(0.5,))
    with pytest.raises(ReductionError, match="epochs=0"):
        train_slimmable(lambda width: nn.Identity(), labelled(4), widths=(1.0,), epochs=0)
