"""Copies by the calling thread alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from patience import PROMPT_S

from odin.partitioner.code.single import copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last, torch.preserve_format], ids=str
)
def test_copies_have_the_values_and_the_layout(dtype, memory_format):
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
    copy = copied(x, memory_format)
    assert torch.equal(copy, x)
    assert copy.data_ptr() != x.data_ptr()
    if memory_format is not torch.preserve_format:
        assert copy.is_contiguous(memory_format=memory_format)
    assert copied(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2, 8, 9])
@pytest.mark.parametrize(
    ("memory_format", "sides"), [(torch.channels_last, (4, 5)), (torch.channels_last_3d, (2, 4, 5))], ids=str
)
def test_channels_are_copied_to_where_they_belong(memory_format, sides, channels):
    sizes = (2, channels, *sides)
    x = torch.arange(torch.Size(sizes).numel(), dtype=torch.float32).reshape(sizes)
    for given in (x, x.flip(-1), x.transpose(-1, -2), x[:, :1].expand(sizes)):
        copy = copied(given, memory_format)
        assert torch.equal(copy, given)
        assert copy.is_contiguous(memory_format=memory_format)


def test_tensors_that_need_gradients_or_are_conjugated_are_copied_as_values():
    weight = torch.ones(3, requires_grad=True)
    assert not copied(weight).requires_grad
    z = torch.tensor([1 + 2j, 3 - 1j])
    assert torch.equal(copied(z.conj()), torch.tensor([1 - 2j, 3 + 1j]))


@pytest.mark.slow
def test_no_thread_is_started():
    code = """
import os, torch
from odin.partitioner.code.single import copied
torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
x = torch.randn(1, 3, 512, 512)
copied(x, torch.channels_last)
assert len(os.listdir("/proc/self/task")) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PROMPT_S)
