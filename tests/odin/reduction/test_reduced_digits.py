"""Early exits and widths of a network trained on real images: how good they are, and whose weights they hold."""

from __future__ import annotations

import pickle

import pytest
import torch
from digits_model import digit_images, trained_digits

import odin
from odin.models.labelled import Labelled
from odin.reduction.answering import ReductionError
from odin.reduction.exits import choose_exits, early_exits, first_layers, possible_exits
from odin.reduction.reduced import reduce_model
from odin.reduction.widths import narrow, recalibrate


@pytest.fixture(scope="module")
def chain():
    return odin.build_chain(trained_digits()[1.0], (digit_images()[1].inputs[:1],), name="digits")


@pytest.fixture(scope="module")
def reduced():
    training, held_out = digit_images()
    networks = trained_digits()
    found = reduce_model(networks[1.0], training, held_out, exits=2, widths=(0.75,), trained_widths=networks)
    return {form.name: form for form in found.forms}


def test_accuracy_is_within_bounds(reduced, chain):
    full, *exits = (form for form in reduced.values() if form.kind != "width")
    assert full.judgement.accuracy.value > 0.95
    assert len(exits) == 2
    for form in exits:
        assert form.judgement.accuracy.value > 0.95
        assert form.judgement.lost.value < 0.03
        assert form.judgement.calibration_error < 0.05  # an exit that were as sure as it were wrong would have 0.5
        assert form.flops < 0.8 * full.flops
    assert reduced["slim-0.5"].judgement.accuracy.value > 0.9
    assert reduced["slim-0.5"].flops < 0.35 * full.flops
    assert reduced["width-0.75"].judgement.accuracy.value > 0.8
    assert full.judgement.lost.value == 0.0
    assert full.judgement.agreement == 1.0


def test_exits_hold_the_full_models_own_tensors(reduced):
    own = {tensor.data_ptr() for tensor in trained_digits()[1.0].state_dict().values() if tensor.ndim}
    for form in reduced.values():
        if form.kind == "exit":
            held = [tensor for tensor in form.model.features.state_dict().values() if tensor.ndim]
            assert held
            assert {tensor.data_ptr() for tensor in held} <= own


def test_an_exit_is_what_the_chain_hands_over_at_its_cut(chain):
    images = digit_images()[1].inputs[:5]
    for cut in possible_exits(chain):
        (part,) = first_layers(trained_digits()[1.0], chain, [cut], images[:1])
        expected = chain.run(chain.layout(chain.pack((images,))), 0, cut)[0]
        torch.testing.assert_close(part(images), expected, rtol=1e-3, atol=1e-4)


def test_exits_are_spread_over_the_operations(chain):
    possible = possible_exits(chain)
    assert list(possible.values()) == sorted(possible.values())
    assert all(0 < share < 1 for share in possible.values())
    (middle,) = choose_exits(chain, count=1)
    assert abs(possible[middle] - 0.5) == min(abs(share - 0.5) for share in possible.values())


def test_an_exported_program_has_the_same_exits(chain):
    training, held_out = digit_images()
    model = trained_digits()[1.0]
    program = torch.export.export(model, (held_out.inputs[:2],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    cut = choose_exits(chain, count=1)
    plain, exported = (
        early_exits(one, odin.build_chain(one, (held_out.inputs[:1],)), training, classes=10, cuts=cut)[0]
        for one in (model, program)
    )
    torch.testing.assert_close(plain(held_out.inputs[:9]), exported(held_out.inputs[:9]), rtol=1e-3, atol=1e-3)


def test_forms_can_be_pickled(reduced):
    images = digit_images()[1].inputs[:3]
    for form in reduced.values():
        again = pickle.loads(pickle.dumps(form.model))
        assert torch.equal(again(images), form.model(images))


def test_narrowing_changes_nothing_of_the_model(chain):
    training, held_out = digit_images()
    model = trained_digits()[1.0]
    before = model(held_out.inputs[:3])
    thin = narrow(model, held_out.inputs[:1], width=0.5)
    recalibrate(thin, training.inputs[:200])
    assert not any(module.training for module in thin.modules())
    assert thin.stem.out_channels == 6
    assert thin.classify.in_features == 24
    assert thin.classify.out_features == 10
    assert torch.equal(model(held_out.inputs[:3]), before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cuts": (99,)}, "no exit can be put at cut 99 of digits; it can at 1"),
        ({"classes": 3}, "label 9 is none of the model's 3 classes"),
        ({"training": 4}, "too few to train an exit by"),
    ],
)
def test_exits_that_cannot_be_trained(chain, change, told):
    training = digit_images()[0]
    options = {"classes": 10, "cuts": (3,), **change}
    count = options.pop("training", len(training.classes))
    with pytest.raises(ReductionError, match=told):
        early_exits(
            trained_digits()[1.0], chain, Labelled(training.inputs[:count], training.classes[:count]), **options
        )


@pytest.mark.ray
def test_a_pipeline_serves_an_exit_as_any_other_model(two_cores, reduced):
    form = reduced[min(name for name in reduced if name.startswith("exit"))]
    images = digit_images()[1].inputs[:12]
    with odin.Pipeline(form.model, stages=list(two_cores), example_input=images[:1]) as pipe:
        for image in images.split(1):
            found = pipe(image)
            assert torch.equal(found, form.chain(image))
            torch.testing.assert_close(found, form.model(image), rtol=1e-3, atol=1e-3)
