"""Models become graphs, without being changed; those that cannot say where and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from example_models import DataDependent, Residual, ShapeDependent, TwoInputs, image, seeded
from torch import Tensor, nn

from odin.partitioner.chain import build_chain
from odin.partitioner.graph.capture import (
    Slot,
    TraceError,
    capture_export,
    capture_exported_program,
    capture_fx,
    private_copy,
)
from odin.partitioner.graph.prepare import prepare


def test_fx_gives_one_placeholder_per_tensor_and_fixes_the_rest():
    captured = capture_fx(seeded(TwoInputs), ((image(), image(channels=1)), 0.5))
    assert captured.how == "torch.fx"
    assert len(captured.placeholders) == 2
    assert captured.arguments == [Slot(0), Slot(1), 0.5]
    assert [step.args[1] for step in captured.steps if step.name == "mul"] == [0.5]


def test_outcome_has_the_models_structure():
    captured = capture_fx(seeded(TwoInputs), ((image(), image(channels=1)),))
    assert dict(captured.outcome) == {"out": Slot(0), "aux": None, "mean": Slot(1)}
    assert len(captured.outputs) == 2


def test_nodes_know_their_modules():
    captured = capture_fx(seeded(Residual), (image(),))
    paths = [step.meta["module_path"] for step in captured.steps]
    assert paths[:4] == ["conv1", "bn1", "relu", "maxpool"]
    assert "layer1.0" in paths  # the addition, in the block's own forward


def test_export_names_the_same_modules():
    captured = capture_export(seeded(Residual), (image(),))
    paths = [step.meta["module_path"] for step in captured.steps]
    assert paths[0] == "conv1"
    assert "layer1.0" in paths
    assert "_guards_fn" not in paths


def test_tied_weights_are_one_entry():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    captured = capture_fx(Tied().eval(), (image(),))
    assert set(captured.state) == {"a.weight", "a.bias", "b.bias"}
    assert captured.modules["b"].tensors == {"weight": "a.weight", "bias": "b.bias"}


def test_state_is_the_models_own_memory():
    model = seeded(Residual)
    captured = capture_fx(private_copy(model), (image(),))
    assert captured.state["fc.weight"].data_ptr() == model.fc.weight.data_ptr()


def test_private_copy_leaves_the_original_alone():
    model = seeded(Residual).train()
    copied = private_copy(model)
    assert model.training
    assert not copied.training
    assert copied.bn1.running_mean.data_ptr() != model.bn1.running_mean.data_ptr()
    assert copied.conv1.weight is not model.conv1.weight  # what casts it gives it other memory
    assert copied.conv1.weight.data_ptr() == model.conv1.weight.data_ptr()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_private_copy_bakes_parametrizations_in_and_leaves_the_original_parametrized():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    ).eval()
    expected = model(image())
    copied = private_copy(model)
    assert type(copied[0]) is nn.Conv2d
    torch.testing.assert_close(copied(image()), expected, rtol=0, atol=0)
    assert nn.utils.parametrize.is_parametrized(model[0])
    torch.testing.assert_close(model(image()), expected, rtol=0, atol=0)


def test_a_forward_of_the_instance_is_traced():
    model = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    model.forward = lambda x: x + 1
    captured = capture_fx(model, (image(),))
    assert [step.op for step in captured.steps] == ["call_function"]


def test_fx_error_says_where_and_why():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), DataDependent()).eval()
    with pytest.raises(TraceError, match=r"example_models\.py:\d+ \(if x\.sum\(\) > 0:\), in module '1'"):
        capture_fx(model, (image(),))


def test_export_error_says_where_and_nothing_reaches_the_screen(capfd):
    with pytest.raises(TraceError, match=r"torch\.export stopped at .*example_models\.py:\d+"):
        capture_export(DataDependent().eval(), (image(),))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_export_follows_control_flow_on_shapes():
    assert capture_export(seeded(ShapeDependent), (image(),)).how == "torch.export"


def test_exported_program_keeps_constant_arguments_out():
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float) -> Tensor:
            return x * scale

    exported = torch.export.export(Scaled(), (image(), 2.0))
    captured = capture_exported_program(exported, (image(), 2.0))
    assert len(captured.placeholders) == 1
    assert captured.arguments == [Slot(0), 2.0]


def test_exported_program_with_other_arguments_is_refused():
    exported = torch.export.export(seeded(Residual), (image(),))
    with pytest.raises(ValueError, match="exported program takes"):
        capture_exported_program(exported, (image(), image()))


def test_no_tensor_in_the_arguments():
    with pytest.raises(ValueError, match="hold no tensor"):
        capture_fx(seeded(Residual), (3,))


class LoopsOverBatch(nn.Module):
    """As SuperPoint of transformers does; export with a free leading size silently makes it twice the example's."""

    def __init__(self, over: Callable[[Tensor], Iterable[Tensor]]) -> None:
        super().__init__()
        self.a, self.b, self.over = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), over

    def forward(self, x: Tensor) -> Tensor:
        samples = []
        for sample in self.over(self.a(x)):
            samples.append(sample / sample.norm() if sample.shape[-1] > 3 else sample)
        return self.b(torch.stack(samples))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "over",
    [lambda y: y, torch.unbind, lambda y: [y[i] for i in range(y.shape[0])], lambda y: [p[0] for p in y.split(1)]],
    ids=["the tensor", "unbind", "range", "split"],
)
def test_a_loop_over_the_batch_was_refused_at_the_examples_own_size(over, size):
    """The doubled example was exported first, for that size alone, and the example's own was never tried."""
    model = seeded(lambda: LoopsOverBatch(over))
    chain = build_chain(model, (image(batch=size),))
    assert not chain.dynamic_batch
    torch.testing.assert_close(chain(image(batch=size)), model(image(batch=size)), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="another leading size than its example's"):
        chain(image(batch=size + 1))


def test_a_leading_size_that_the_code_fixes_is_not_called_free():
    model = seeded(lambda: LoopsOverBatch(torch.unbind))
    with pytest.raises(TraceError, match="fixes the leading size"):
        capture_export(model, (image(),), any_leading_size=True)
    assert capture_export(model, (image(),)).how == "torch.export"


def test_a_model_is_captured_once_for_all_its_preparations(monkeypatch):
    """Export took 15 s where fx took 1.7 s: it began anew for every form that was tried."""
    calls = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: calls.append(1) or export(*args, **options))
    monkeypatch.setattr("odin.partitioner.chain.deviation", lambda *_: "made up")  # the fused form is given up
    chain = build_chain(seeded(ShapeDependent), (image(),))
    assert chain.captured_with == "torch.export"
    assert len(calls) == 1


def test_a_copy_of_a_capture_is_prepared_by_itself():
    captured = capture_fx(private_copy(seeded(Residual)), (image(),))
    before = [str(node) for node in captured.graph.nodes]
    copied = captured.copy()
    assert [node.meta["module_path"] for node in copied.steps] == [node.meta["module_path"] for node in captured.steps]
    prepare(copied, [image()])
    assert [str(node) for node in captured.graph.nodes] == before
    assert "bn1.weight" in captured.state
    assert "bn1.weight" not in copied.state
