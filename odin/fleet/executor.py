"""An executor: a process on its own core that opens, runs and evicts packed models, one action after the other.

It chooses nothing. Actions come by a channel in their order, and each is answered with the times that it took.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Sequence

from odin.fleet.actions import kind_of_action, with_timing
from odin.fleet.opened import OpenModel
from odin.fleet.packed import PackedFile, PackedFolder
from odin.fleet.scheduler import LOAD, RUN
from odin.monitor.timing import StageTiming
from odin.stages.channel.inbox import Inbox
from odin.stages.channel.link import ChannelClosedError, Message, Sender
from odin.stages.channel.wire import GATEWAY, Failure, Header, Kind
from odin.stages.compute.executor import RunDelay, Values
from odin.stages.loop import DEADLINE

__all__ = ["ExecutorLoop", "Models"]

_TRACEBACK_CHARS = 6_000
_WARM_SAMPLES = (1, 2)


class Models:
    """The models that a process has open.

    Parameters
    ----------
    folder
        Of the packed models.
    files
        All of them, by number.
    """

    def __init__(self, folder: PackedFolder, files: Sequence[PackedFile]) -> None:
        self.folder = folder
        self.files = list(files)
        self._open: dict[int, OpenModel] = {}
        self._warm: set[str] = set()
        self._why_not: dict[int, Exception] = {}

    def load(self, number: int) -> tuple[float, float]:
        """Open a model; seconds of reading it, and of all else.

        The first of an architecture is run once as well: what PyTorch makes then, the others share. Whether it can be
        run on zeros says nothing of requests.
        """
        begin_s = time.perf_counter()
        model = self._open.get(number)
        if model is None:
            try:
                name, code = self.files[number]
                model = self._open[number] = OpenModel(self.folder, name, code=code)
            except Exception as error:
                self._why_not[number] = error.with_traceback(None)
                raise
            self._why_not.pop(number, None)
        read_s = model.read_s
        if model.head.code not in self._warm:
            with contextlib.suppress(Exception):
                for samples in _WARM_SAMPLES if model.call.dynamic_batch else (1,):
                    for _ in range(2):
                        model.run(model.call.zeros(samples))
            self._warm.add(model.head.code)
        return read_s, max(0.0, time.perf_counter() - begin_s - read_s)

    def run(self, number: int, values: Values) -> tuple[Values, float]:
        """Run a model; the outputs, and seconds."""
        model = self._open.get(number)
        if model is None:
            raise self._why_not.get(number) or RuntimeError(f"model {self.files[number].name} is not open here")
        return model.run(values)

    def evict(self, number: int) -> None:
        """Unmap a model, and let the kernel forget its pages."""
        model = self._open.pop(number, None)
        if model is not None:
            model.close()
        self.folder.drop(self.files[number].name)

    def warm(self, numbers: Sequence[int]) -> None:
        """Run these once, one of each architecture, and close them again; one that fails is no concern of others."""
        for number in numbers:
            with contextlib.suppress(Exception):
                self.load(number)
            self.evict(number)

    def close(self) -> None:
        """Close all."""
        for number in tuple(self._open):
            self.evict(number)


class ExecutorLoop:
    """Does what it is told until whoever tells it ends.

    Parameters
    ----------
    index
        The executor's.
    models
        Its models; closed with this.
    inbox, sender
        Channels from and to who tells it; closed with this.
    """

    def __init__(self, index: int, models: Models, inbox: Inbox, sender: Sender) -> None:
        self._index, self._models, self._inbox, self._sender = index, models, inbox, sender
        self._stopped = False

    def run(self) -> None:
        """Serve."""
        self._delay = RunDelay()
        graceful = False
        try:
            while (message := self._inbox.receive()).header.kind is not Kind.CLOSE:
                self._serve(message)
            graceful = True
        except ChannelClosedError:
            pass
        finally:
            self._inbox.close()
            self._sender.close(graceful=graceful)
            self._models.close()

    @property
    def gateway_gone(self) -> bool:
        """Once it has ended: whether the other end has closed, or is gone without a goodbye; else it was stopped."""
        return not self._stopped

    def stop(self) -> None:
        """End, from another thread."""
        self._stopped = True
        self._inbox.close()
        self._sender.close(graceful=False)

    def _serve(self, message: Message) -> None:
        header, begin_s = message.header, time.perf_counter()
        try:
            delay_s, cpu_s = self._delay.read_s(), time.thread_time()
            values, parts_s = self._act(message, begin_s)
            timing = StageTiming(
                self._index,
                0,
                len(parts_s),
                max(0.0, begin_s - header.sent_s),
                time.perf_counter() - begin_s,
                time.thread_time() - cpu_s,
                self._delay.read_s() - delay_s,
                0.0,
                parts_s,
            )
            self._sender.send(with_timing(header, timing), values)
        except ChannelClosedError as error:
            error.peer = GATEWAY
            raise
        except Exception as error:
            self._sender.send(self._failed(header, error))
        finally:
            message.release()

    def _act(self, message: Message, begin_s: float) -> tuple[Values, tuple[float, ...]]:
        header = message.header
        kind, model = kind_of_action(header), header.epoch
        if kind == RUN:
            late_s = begin_s - header.sent_s - header.left_s
            if late_s > 0:
                raise _LateError(
                    f"its turn came {late_s * 1e3:.1f} ms after the last moment from which it would be in time"
                )
            values, run_s = self._models.run(model, message.tensors)
            return values, (run_s,)
        if kind == LOAD:
            return (), self._models.load(model)
        self._models.evict(model)
        return (), ()

    def _failed(self, header: Header, error: Exception) -> Header:
        name = self._models.files[header.epoch].name
        text = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARS:]
        kind = DEADLINE if isinstance(error, _LateError) else type(error).__qualname__
        return header._replace(kind=Kind.ERROR, tensors=(), failure=Failure(f"model {name}", kind, str(error), text))


class _LateError(Exception):
    """A run would not be in time any more."""
