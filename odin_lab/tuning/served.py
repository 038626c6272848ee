"""A pipeline in one of the modes, with its knob and requests of the size that this makes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import torch

import odin
from odin.models.sources import Source, load_source
from odin.monitor.events import KnobTurned, LoadChanged
from odin.monitor.timing import RequestTimeline
from odin_lab.tuning.modes import Mode

__all__ = ["Served"]


class Served:
    """A model's pipeline in a mode; use it as a context manager.

    It is what :class:`odin.Tuner` turns, too. A request has as many samples as the batch is large, so that each is a
    micro-batch of its own, without a pipeline that joins samples.

    Parameters
    ----------
    model
        As for :class:`odin.Pipeline`.
    mode
        The way to use the devices.
    log
        Event log.
    options
        More options of the pipeline.
    """

    def __init__(self, model: str | Source, mode: Mode, *, log: str | None = None, **options: Any) -> None:
        self.mode = mode
        source = load_source(model) if isinstance(model, str) else model
        if len(source.example_args) != 1 or not isinstance(source.example_args[0], torch.Tensor):
            raise ValueError(
                f"{source.name} takes {len(source.example_args)} arguments, and what is tuned is the number of samples "
                "in one tensor: wrap it in a module that takes one"
            )
        (example,) = source.example_args
        self._inputs = example[:1].repeat(mode.batch, *[1] * (example.ndim - 1))
        self.pipeline = odin.Pipeline(
            source,
            stages=list(mode.stages),
            batch=mode.batch,
            share_devices=len(set(mode.stages)) < len(mode.stages),
            log=log,
            policy="relay" if mode.knob == "instances" else "auto",
            **options,
        )
        self.batch, self.devices = mode.batch, self.pipeline.devices
        self.dynamic_batching = mode.knob == "batch"
        self._value = mode.largest

    @property
    def value(self) -> int:
        """The knob's value."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        if self.mode.knob == "instances":
            self.pipeline.instances = value
        self._value = value

    largest_batch = instances = value

    def submit(self, samples: int) -> Future[Any]:
        """Send a request of so many samples."""
        return self.pipeline.submit(self._inputs[:samples])

    def follow(self, on_result: Callable[[RequestTimeline], None]) -> Callable[[], None]:
        """See :meth:`odin.Pipeline.follow`."""
        return self.pipeline.follow(on_result)

    def note_turn(self, event: KnobTurned) -> None:
        """See :meth:`odin.Pipeline.note_turn`."""
        self.pipeline.note_turn(event)

    def note_load(self, event: LoadChanged) -> None:
        """See :meth:`odin.Pipeline.note_load`."""
        self.pipeline.note_load(event)

    def __enter__(self) -> Self:
        with torch.inference_mode():
            self.submit(1).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipeline.close(drain=kind is None)
