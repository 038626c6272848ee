"""Operators of one's own, as a user's module defines them; stages must import it to have them."""

from __future__ import annotations

import os
import signal
import time

import torch


@torch.library.custom_op("odin_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """Defined by the decorator."""
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


torch.library.define("odin_tests::plus_one", "(Tensor x) -> Tensor")


@torch.library.impl("odin_tests::plus_one", "CompositeExplicitAutograd")
def plus_one(x: torch.Tensor) -> torch.Tensor:
    """Defined by name."""
    return x + 1


LIBRARY = torch.library.Library("odin_tests_library", "DEF")
LIBRARY.define("minus_three(Tensor x) -> Tensor")
LIBRARY.impl("minus_three", lambda x: x - 3, "CompositeExplicitAutograd")


@torch.library.custom_op("odin_tests::end_process", mutates_args=())
def end_process(hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Ends the process for an input that begins with 666, as a crash in native code does."""
    if x[0, 0].item() == 666.0:
        os.kill(os.getpid(), signal.SIGKILL)
    return hidden.clone()


@end_process.register_fake
def _(hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(hidden)


_called: list[bool] = []


@torch.library.custom_op("odin_tests::slow_at_first", mutates_args=())
def slow_at_first(x: torch.Tensor) -> torch.Tensor:
    """Takes three seconds in a process that has not called it before, as one that compiles does."""
    if not _called:
        _called.append(True)
        time.sleep(3.0)
    return x * 1.0


@slow_at_first.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)
