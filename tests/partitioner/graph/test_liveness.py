"""A cut is legal only where copies can take the values' place."""

from __future__ import annotations

import torch
from example_models import image
from torch import nn

from odin.partitioner.graph.capture import capture_fx
from odin.partitioner.graph.liveness import Liveness
from odin.partitioner.graph.observe import observe


def crossings(forward, *inputs: torch.Tensor, more: bool = False) -> dict[str, tuple[bool, int, int]]:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 3, 1, 1))

        def forward(self, *args):
            return forward(self, *args)

    captured = capture_fx(Model().eval(), inputs)
    observations = [observe(captured, [x.clone() for x in inputs])]
    if more:
        observations.append(observe(captured, [torch.cat([x, x]) for x in inputs]))
    liveness = Liveness(captured, observations)
    return {step.name: tuple(crossing) for step, crossing in zip(captured.steps, liveness.crossings, strict=True)}


NBYTES = 3 * 16 * 16 * 4


def test_a_line_of_steps():
    def forward(model, x):
        return torch.relu(torch.sigmoid(x))

    assert crossings(forward, image()) == {"sigmoid": (True, 1, NBYTES), "relu": (True, 1, NBYTES)}


def test_a_skip_connection_and_an_input_that_is_used_later():
    def forward(model, x):
        return torch.sigmoid(x) + x

    assert crossings(forward, image())["sigmoid"] == (True, 2, 2 * NBYTES)


def test_weights_do_not_cross():
    def forward(model, x):
        return torch.relu(x * model.weight) * model.weight

    assert crossings(forward, image())["mul"] == (True, 1, NBYTES)


def test_a_view_of_a_weight_cannot():
    def forward(model, x):
        weight = model.weight.view(3, 1, 1)
        return torch.relu(x) * weight

    assert crossings(forward, image())["relu"][0] is False


def test_a_list_of_tensors_cannot():
    def forward(model, x):
        left, right = torch.chunk(torch.relu(x), 2, dim=0)
        return left + right

    result = crossings(forward, torch.cat([image(), image()]))
    assert result["relu"][0] is True
    assert result["chunk"][0] is False
    assert result["getitem"][0] is False


def test_views_of_one_memory_may_be_copied_apart_if_nobody_writes_it_later():
    def forward(model, x):
        x = torch.relu(x)
        y = x.flatten(1)
        return torch.sigmoid(x).flatten(1) + y

    result = crossings(forward, image())
    assert result["flatten"] == (True, 2, 2 * NBYTES)
    assert result["sigmoid"][0] is True  # x itself is no longer needed


def test_views_of_one_memory_cannot_where_it_is_written_later():
    def forward(model, x):
        x = torch.relu(x)
        y = x[:, :2]
        z = torch.sigmoid(y)
        x.add_(1)
        return z + y

    result = crossings(forward, image())
    assert result["getitem"][0] is False
    assert result["sigmoid"][0] is False
    assert result["add_"][0] is True


def test_a_step_that_looks_behind_a_tensor_needs_all_of_its_memory():
    def forward(model, x):
        half = torch.relu(x)[:, 1:]
        other = torch.sigmoid(half)
        return other + half.as_strided((2, 16, 16), (256, 16, 1), 0)

    result = crossings(forward, image())
    assert result["relu"][0] is True
    assert result["getitem"][0] is False
    assert result["sigmoid"][0] is False


def test_no_cut_before_a_write_in_place():
    def forward(model, x):
        x = torch.sigmoid(x)
        x.add_(1)
        return torch.relu(x)

    result = crossings(forward, image())
    assert result["sigmoid"][0] is False
    assert result["add_"] == (True, 1, NBYTES)


def test_a_slice_that_is_dense_only_for_one_sample_can():
    def forward(model, x):
        part = torch.relu(x)[:, :2]
        return torch.sigmoid(part)

    assert crossings(forward, image())["getitem"][0] is True
    assert crossings(forward, image(), more=True)["getitem"][0] is True


def test_sizes_and_numbers_cross():
    def forward(model, x):
        size, batch = x.shape[-2:], x.size(0)
        y = torch.relu(x)
        return y.reshape(batch, -1), size

    assert crossings(forward, image())["relu"] == (True, 1, NBYTES + 16 + 8)
