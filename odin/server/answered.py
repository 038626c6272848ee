"""What became of a request, told once to whoever observes: metrics, traces, the access log.

::

    DataPlane --Answered--> Metrics.observe              adds up, in the event loop
                      `---> BackgroundObserver --------> Traces, AccessLog, in a thread of its own
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from odin.monitor.timing import RequestTimeline
from odin.process.worker_thread import Worker
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, InferResponse

__all__ = ["Answered", "BackgroundObserver", "Observer", "Observers"]

_log = logging.getLogger(__name__)

_LINGER_S = 0.2
"""Requests wait for each other so long, so that the thread is not woken up for each."""


class Answered(NamedTuple):
    """A request for inference that is over.

    Attributes
    ----------
    request
        As it came; a model's name may be of none that there is. Its tensors are not kept.
    version
        Which answered; the one that was asked for if none did.
    failure
        Why it was not answered; None if it was.
    message
        What its caller was told of that.
    ended_unix_s
        When it was over, in seconds since 1970.
    latency_s
        Seconds from when it had been received until its answer could be sent.
    waiting_s
        Seconds until its first micro-batch was sent to the stages; 0 if none was answered.
    timelines
        Of its micro-batches that stages have answered.
    devices
        Of the stages that these speak of.
    response_nbytes
        Bytes of the tensors of its answer.
    samples
        In it, if it was answered.
    variant
        Of a family, the one that answered it.
    """

    request: InferRequest
    version: str
    failure: FailureKind | None
    message: str
    ended_unix_s: float
    latency_s: float
    waiting_s: float = 0.0
    timelines: Sequence[RequestTimeline] = ()
    devices: Sequence[str] = ()
    response_nbytes: int = 0
    samples: int = 0
    variant: str = ""

    @property
    def outcome(self) -> str:
        """``answered``, or the kind of failure as a word."""
        return "answered" if self.failure is None else self.failure.name.lower()


Observer = Callable[[Answered], object]


class UnderWay:
    """What gathers while a request is answered.

    Attributes
    ----------
    begin_s
        When it had been received, on ``time.perf_counter``.
    timelines, devices, response, samples
        As they become known.
    """

    def __init__(self, begin_s: float) -> None:
        self.begin_s = begin_s
        self.timelines: list[RequestTimeline] = []
        self.devices: Sequence[str] = ()
        self.response: InferResponse | None = None
        self.samples = 0


class Observers:
    """Tells observers of requests; what an observer raises costs the request nothing."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._observers: list[Observer] = []
        self._clock = clock

    def add(self, observer: Observer) -> None:
        """Tell this one, too: in the event loop's thread, so it must be quick; see :class:`BackgroundObserver`."""
        self._observers.append(observer)

    @contextmanager
    def request(self, request: InferRequest) -> Iterator[UnderWay]:
        """Answer a request in this block, and tell what became of it."""
        under_way = UnderWay(self._clock())
        failure: FailureKind | None = None
        message = ""
        try:
            yield under_way
        except RequestError as error:
            failure, message = error.kind, str(error)
            raise
        except Exception as error:
            failure, message = FailureKind.INTERNAL, f"{type(error).__name__}: {error}"
            raise
        except BaseException:  # its task was cancelled
            failure, message = FailureKind.GONE, "its client does not wait any more"
            raise
        finally:
            if self._observers:
                self._tell(request, under_way, failure, message)

    def failed(self, request: InferRequest, error: RequestError) -> None:
        """Tell of a request that failed before it came to the data plane, such as one that could not be read."""
        if self._observers:
            self._tell(request, UnderWay(self._clock()), error.kind, str(error))

    def _tell(self, request: InferRequest, under_way: UnderWay, failure: FailureKind | None, message: str) -> None:
        timelines, response = tuple(under_way.timelines), under_way.response
        answered = Answered(
            request._replace(inputs=()),
            request.version if response is None else response.version,
            failure,
            message,
            time.time(),
            max(0.0, self._clock() - under_way.begin_s),
            max(0.0, min(line.submitted_s for line in timelines) - under_way.begin_s) if timelines else 0.0,
            timelines,
            under_way.devices,
            0 if response is None else sum(output.array.nbytes for output in response.outputs),
            0 if response is None else under_way.samples,
            "" if response is None else str(response.parameters.get("variant", "")),
        )
        for observer in self._observers:
            try:
                observer(answered)
            except Exception:
                _log.exception("%r failed on a request", observer)


class BackgroundObserver:
    """Hands requests to an observer in a thread of its own; never waits for it, but leaves out what is too much.

    Parameters
    ----------
    observe
        Takes one request.
    name
        Of the thread.
    capacity
        Requests that may wait for it.

    Attributes
    ----------
    left_out
        Requests that were not handed over, since too many waited.
    failures
        Requests on which it failed.
    """

    def __init__(self, observe: Observer, *, name: str, capacity: int = 4096) -> None:
        self.left_out = self.failures = 0
        self._name = name
        self._worker: Worker[Answered] = Worker(
            observe,
            name=name,
            on_error=self._failed,
            expendable=lambda answered: True,
            on_left_out=self._count,
            linger_s=_LINGER_S,
            capacity=capacity,
        )
        self._worker.start()

    def __call__(self, answered: Answered) -> None:
        """Hand a request over."""
        self._worker.put(answered, at_once=False)

    def settle(self) -> bool:
        """Wait until all that were handed over are taken; whether they are."""
        return self._worker.settle()

    def close(self) -> None:
        """Let what waits be taken, for some seconds, and end the thread."""
        self._worker.close(5.0)

    def _count(self, count: int) -> None:
        if not self.left_out:
            _log.warning(
                "%s is too slow: requests are left out, which odin_observations_dropped_total counts", self._name
            )
        self.left_out += count

    def _failed(self, error: BaseException) -> None:
        if not self.failures:
            _log.warning("%s failed on a request: %s: %s", self._name, type(error).__name__, error)
        self.failures += 1
