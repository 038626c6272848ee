"""A server's address, from a URL."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["Address"]


class Address(NamedTuple):
    """Where a server is.

    Attributes
    ----------
    host
        Name or number, without brackets.
    port
        None: that of its protocol.
    path
        Before the protocol's own paths; empty, or beginning with a slash and not ending in one.
    secure
        Whether by TLS.
    """

    host: str
    port: int | None
    path: str
    secure: bool

    @classmethod
    def parse(cls, url: str, *, form: str) -> Address:
        """Read ``SCHEME://HOST:PORT/PATH``; ``https`` and ``grpcs`` are secure.

        Parameters
        ----------
        form
            What a URL of this kind looks like, for the error.

        Raises
        ------
        ValueError
            If there is no host, no such port, or more than a path behind it.

        Examples
        --------
        >>> Address.parse("https://[::1]:8000/odin/", form="http://HOST:PORT")
        Address(host='::1', port=8000, path='/odin', secure=True)
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, 0
        if not host or port == 0 or parts.query or parts.fragment:
            raise ValueError(f"{url} is no address of a server; give {form}")
        return cls(host, port, parts.path.rstrip("/"), parts.scheme in ("https", "grpcs"))
