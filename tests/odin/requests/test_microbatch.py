"""Micro-batches: parts in order, one future for the whole, and failures that reach it once."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
import torch

from odin.requests.microbatch import join_outputs, split_inputs

Parts = list["Future[tuple[torch.Tensor, ...]]"]


def parts(count: int) -> Parts:
    return [Future() for _ in range(count)]


@pytest.mark.parametrize(
    ("size", "batch", "sizes"), [(1, 1, [1]), (4, 4, [4]), (5, 2, [2, 2, 1]), (6, 3, [3, 3]), (0, 2, [0]), (3, 8, [3])]
)
def test_parts_are_views_with_at_most_batch_rows(size: int, batch: int, sizes: list[int]):
    images, masks = torch.arange(size * 6.0).reshape(size, 2, 3), torch.arange(size)
    split = split_inputs((images, masks), batch=batch)
    assert [len(image) for image, _ in split] == sizes
    assert torch.equal(torch.cat([image for image, _ in split]), images)
    assert torch.equal(torch.cat([mask for _, mask in split]), masks)
    assert all(image.untyped_storage().data_ptr() == images.untyped_storage().data_ptr() for image, _ in split)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.tensor(1.0)], ids=["another size", "no dimension"])
def test_inputs_without_a_common_leading_size_stay_whole(other: torch.Tensor):
    values = (torch.zeros(4, 2), other)
    assert split_inputs(values, batch=2) == [values]


def test_no_inputs_are_one_part():
    assert split_inputs((), batch=2) == [()]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_outputs_are_joined_in_order_whatever_finishes_first(order: tuple[int, ...]):
    futures = parts(3)
    whole = join_outputs(futures, lambda values: {"y": values[0], "n": values[1]})
    for index in order:
        assert not whole.done()
        futures[index].set_result((torch.full((index + 1, 2), float(index)), torch.tensor(index)))
    result = whole.result(0)
    assert result["y"][:, 0].tolist() == [0, 1, 1, 2, 2, 2]
    assert result["n"].item() == 0


def test_a_single_part_is_not_copied():
    (future,) = futures = parts(1)
    whole = join_outputs(futures, lambda values: values[0])
    tensor = torch.zeros(3)
    future.set_result((tensor,))
    assert whole.result(0) is tensor


def test_parts_that_are_done_before_count():
    futures = parts(2)
    for future in futures:
        future.set_result((torch.ones(1),))
    assert join_outputs(futures, lambda values: values[0]).result(0).tolist() == [1, 1]


def test_the_first_failure_fails_the_whole_and_later_ones_change_nothing():
    futures = parts(3)
    whole = join_outputs(futures, lambda values: values)
    first = ValueError("first")
    futures[1].set_exception(first)
    assert whole.exception(0) is first
    futures[0].set_exception(ValueError("second"))
    futures[2].set_result((torch.zeros(1),))
    assert whole.exception(0) is first


def test_an_error_of_unpacking_reaches_the_caller():
    futures = parts(1)
    whole = join_outputs(futures, lambda values: values[5])
    futures[0].set_result((torch.zeros(1),))
    assert isinstance(whole.exception(0), IndexError)


def test_cancelling_the_whole_cancels_its_parts():
    futures = parts(3)
    whole = join_outputs(futures, lambda values: values)
    futures[0].set_result((torch.zeros(1),))
    assert whole.cancel()
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert whole.cancelled()
