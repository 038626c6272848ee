"""One HTTP connection: uvicorn's, with a bound on what a client may send and on how long it may take.

A connection waits for its client, or its client for it. Only the former is limited::

    connected ... request whole      for the client: it has to send
    request whole ... answer begun   for us, as long as that takes
    answer written ... answer taken  for the client: it has to read
    answer taken ... next request    for the client
"""

from __future__ import annotations

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = ["HttpConnection"]

_MOST_HEAD_NBYTES = 64 * 2**10
_MOST_HEADERS = 128
_WAKE_NBYTES = 2**20
"""The application takes the body in parts of this size. uvicorn's are 64 KiB: ten wake-ups for an image."""


class HttpConnection(HttpToolsProtocol):
    """A connection; made by the event loop for each client."""

    connections_limit = 2048
    """Most connections; set in a class of its own for each server."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn itself
        """Take a client, or send it away."""
        super().connection_made(transport)
        self._head_nbytes = self._headers_count = self._silent_nbytes = 0
        self._request_begun = self._request_whole = False
        self._before: RequestResponseCycle | None = None  # the request before the one that comes, and its answer
        self._unsent_nbytes = 0
        self._since_s = self.loop.time()
        if len(self.connections) > self.connections_limit:
            self._refuse(503, f"there are {self.connections_limit} connections, which is the limit", retry_after=True)

    def is_overdue(self, now_s: float, limit_s: float) -> bool:
        """Whether its client has let it wait for too long; asked now and then.

        Parameters
        ----------
        now_s
            Time of the event loop.
        limit_s
            How long a client may take.
        """
        unsent_nbytes = self.transport.get_write_buffer_size()
        taken = unsent_nbytes < self._unsent_nbytes
        self._unsent_nbytes = unsent_nbytes
        answering = self._request_whole and not (self.cycle is None or self.cycle.response_complete)
        queued = self.flow.read_paused  # it has sent more than one request
        if taken or (not unsent_nbytes and (answering or queued)):
            self._since_s = now_s
        return now_s - self._since_s > limit_s

    def give_up(self) -> None:
        """Close it, with what its client has not taken."""
        cut = self._request_begun and not self._request_whole
        if cut and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self._refuse(408, "the request did not come whole in time")
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # -- bounds on what comes -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self.transport.is_closing():
            return
        self._silent_nbytes += len(data)
        super().data_received(data)
        # A header of any length is not told of before it is whole.
        if self._silent_nbytes > _MOST_HEAD_NBYTES and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_nbytes = self._headers_count = self._silent_nbytes = 0
        self._request_begun, self._request_whole = True, False
        self._before = self.cycle
        self._since_s = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """A part of the path has come."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one that follows the body, has come."""
        self._headers_count += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A part of the body has come; the application is woken for many of them together."""
        self._silent_nbytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > _WAKE_NBYTES:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._silent_nbytes = 0
        self._request_whole = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is written."""
        self._since_s = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Not used: see :meth:`is_overdue`."""

    def _count(self, nbytes: int) -> None:
        self._head_nbytes += nbytes
        self._silent_nbytes = 0
        if self._head_nbytes > _MOST_HEAD_NBYTES or self._headers_count > _MOST_HEADERS:
            raise ValueError("too large a head")  # the parser makes it its own error, see send_400_response

    # -- answers without the application ------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        if self._head_nbytes > _MOST_HEAD_NBYTES or self._headers_count > _MOST_HEADERS:
            self._refuse_head()
        else:
            self._refuse(400, "this is no HTTP request")

    def _unsupported_upgrade_warning(self) -> None:
        """Other protocols are not served; such a request is answered as any."""

    def _refuse_head(self) -> None:
        self._refuse(431, f"path and headers take more than {_MOST_HEAD_NBYTES} bytes, or there are too many")

    def _refuse(self, status: int, message: str, *, retry_after: bool = False) -> None:
        """Answer and close; just close where another answer is under way, into which this one would be mixed."""
        if not self._is_answering():
            body = msgspec.json.encode({"error": message})
            head = [
                STATUS_LINE[status],
                b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body),
                b"retry-after: 1\r\n" if retry_after else b"",
                b"\r\n",
            ]
            self.transport.write(b"".join([*head, body]))
        self.transport.close()

    def _is_answering(self) -> bool:
        return any(
            cycle is not None
            and not cycle.response_complete
            and (cycle is self._before or cycle.response_started or self._request_whole)
            for cycle in (self._before, self.cycle)
        )
