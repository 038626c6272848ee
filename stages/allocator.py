"""Settings of the C library's memory allocator for processes that run layers."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory", "release_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT_NBYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the kernel.

    Activations of a few megabytes are allocated and freed for every layer. Returned to the kernel each time, every
    page of them would be faulted in and zeroed again for every request. With a C library other than glibc this does
    nothing, and layers are only slower.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LIMIT_NBYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LIMIT_NBYTES)


def release_freed_memory() -> None:
    """Return freed memory to the kernel now, as far as the C library can; for after work that is not repeated."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
