"""Clients of benchmarks/malformed.py: they send broken requests, slowly, or nothing at all, and say what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import grpc
import grpc.aio

from benchmarks.malformed_requests import HTTP2_PREFACE, broken_call, broken_http, frames, valid_call, valid_http

__all__ = ["Sent", "idle", "meaningless_frames", "send_calls", "send_http"]

_AT_ONCE, _VALID, _SETTLE_S, _PACE_S, _MOST_TOLD = 50, 10, 1.0, 0.02, 5
_SERVERS_FAULT = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
_LAST = b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n"


class Sent(NamedTuple):
    """What came of many requests: answers by status, the slowest one, and the first that were wrong."""

    requests: int
    answers: Counter[str]
    slowest_s: float
    wrong: list[str]


class _Tally:
    def __init__(self) -> None:
        self.requests, self.answers, self.slowest_s, self.wrong = 0, Counter[str](), 0.0, list[str]()

    def add(self, answer: str, took_s: float = 0.0) -> None:
        self.answers[answer] += 1
        self.slowest_s = max(self.slowest_s, took_s)

    def tell(self, wrong: str) -> None:
        self.answers["wrong"] += 1
        if len(self.wrong) < _MOST_TOLD:
            self.wrong.append(wrong)

    def sent(self) -> Sent:
        return Sent(self.requests, self.answers, self.slowest_s, self.wrong)


async def send_http(address: str, count: int, chance: random.Random, patience_s: float) -> Sent:
    """So many HTTP requests, each on a connection of its own; one in ten is valid, and has to be answered."""
    tally = _Tally()

    async def one() -> None:
        is_valid = chance.randrange(_VALID) == 0
        sent = valid_http(chance) if is_valid else broken_http(chance)
        await _ask(address, sent, tally, patience_s, is_valid=is_valid)

    await _many(one, count)
    return tally.sent()


async def send_calls(address: str, count: int, chance: random.Random, patience_s: float) -> Sent:
    """So many gRPC calls with broken messages; one in ten is valid, and has to be answered."""
    tally = _Tally()
    async with grpc.aio.insecure_channel(address) as channel:

        async def one() -> None:
            is_valid = chance.randrange(_VALID) == 0
            method, message = valid_call(chance) if is_valid else broken_call(chance)
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            begin_s, code, told = time.perf_counter(), "OK", ""
            try:
                await call(message, timeout=2 * patience_s)
            except grpc.aio.AioRpcError as error:
                code, told = error.code().name, error.details() or ""
            took_s = time.perf_counter() - begin_s
            tally.requests += 1
            tally.add(code, took_s)
            if code in _SERVERS_FAULT or (is_valid and code != "OK") or took_s > patience_s:
                tally.tell(f"{code} after {took_s:.1f} s ({told}) to {method} of {message[:300]!r}")

        await _many(one, count)
    return tally.sent()


async def meaningless_frames(address: str, count: int, chance: random.Random, patience_s: float) -> Sent:
    """So many connections with HTTP/2 that makes no sense; they are all accepted, and may be closed."""
    tally = _Tally()

    async def one() -> None:
        reader, writer = await _open(address)
        with contextlib.suppress(OSError):
            writer.write(frames(chance))
            await writer.drain()
        answered, _ = await _read(reader, _PACE_S)
        tally.requests += 1
        tally.add("closed with a word" if answered else "closed or kept silently")
        await _close(writer)

    await _many(one, count)
    return tally.sent()


async def idle(rest: str, grpc_address: str, count: int, chance: random.Random, patience_s: float) -> Sent:
    """So many connections that say nothing, or half of something, stay open while others are answered."""
    tally = _Tally()
    kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    for number in range(count):
        to_grpc = number % 4 == 3
        reader, writer = await _open(grpc_address if to_grpc else rest)
        whole = valid_http(chance)
        half = (b"", HTTP2_PREFACE)[number % 2] if to_grpc else (b"", whole[: chance.randrange(len(whole))])[number % 2]
        writer.write(half)
        kept.append((reader, writer))
    try:
        slow = [asyncio.create_task(_slowly(rest, chance, tally, patience_s)) for _ in range(count // 20)]
        closing = [asyncio.create_task(_half_closed(rest, chance, tally, patience_s)) for _ in range(count // 5)]

        async def one() -> None:
            await _ask(rest, valid_http(chance), tally, patience_s, is_valid=True)

        await _many(one, count)
        calls = await send_calls(grpc_address, count, chance, patience_s)
        await asyncio.gather(*slow, *closing)
    finally:
        await asyncio.gather(*(_close(writer) for _, writer in kept))
    tally.requests += calls.requests
    tally.answers += calls.answers
    return tally.sent()._replace(
        slowest_s=max(tally.slowest_s, calls.slowest_s), wrong=[*tally.wrong, *calls.wrong][:_MOST_TOLD]
    )


# -- one connection ----------------------------------------------------------------------------------------------------


async def _ask(address: str, sent: bytes, tally: _Tally, patience_s: float, *, is_valid: bool) -> None:
    """Send, and read until the server closes: by itself, or when it is told that nothing more will come."""
    begin_s = time.perf_counter()
    reader, writer = await _open(address)
    # What follows ends the connection, if the server still reads requests and not a body.
    writer.write(sent + (b"" if is_valid else b"\r\n\r\n") + _LAST)
    answered, is_over = await _read(reader, patience_s if is_valid else _SETTLE_S)
    if not is_over:
        with contextlib.suppress(OSError):
            writer.write_eof()
        more, is_over = await _read(reader, patience_s)
        answered += more
    took_s = time.perf_counter() - begin_s
    await _close(writer)
    statuses = [status.decode() for status in re.findall(rb"HTTP/1\.1 (\d{3})", answered)]
    tally.requests += 1
    for status in statuses or ["closed"]:
        tally.add(status, took_s)
    faults = [status for status in statuses if status >= "500" and status != "504"]
    if faults or not is_over or (is_valid and statuses != ["200", "200"]):
        tally.tell(f"{statuses} after {took_s:.1f} s, {'closed' if is_over else 'open'}, to {sent[:300]!r}")


async def _slowly(address: str, chance: random.Random, tally: _Tally, patience_s: float) -> None:
    """A valid request in small pieces."""
    reader, writer = await _open(address)
    sent = valid_http(chance)
    step = max(1, len(sent) // 100)
    for at in range(0, len(sent), step):
        writer.write(sent[at : at + step])
        await asyncio.sleep(_PACE_S)
    writer.write(_LAST)
    answered, is_over = await _read(reader, patience_s)
    await _close(writer)
    tally.requests += 1
    tally.add("slow, answered" if answered.startswith(b"HTTP/1.1 200") else "slow, not answered")
    if not is_over or not answered.startswith(b"HTTP/1.1 200"):
        tally.tell(f"{answered[:300]!r}, sent slowly: {sent[:300]!r}")


async def _half_closed(address: str, chance: random.Random, tally: _Tally, patience_s: float) -> None:
    """A request whose client sends no more: it may be dropped, but the server has to close."""
    reader, writer = await _open(address)
    writer.write(valid_http(chance))
    writer.write_eof()
    answered, is_over = await _read(reader, patience_s)
    await _close(writer)
    tally.requests += 1
    tally.add("half closed, answered" if answered else "half closed, dropped")
    if not is_over:
        tally.tell("a connection whose client has closed its half stays open")


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _read(reader: asyncio.StreamReader, patience_s: float) -> tuple[bytes, bool]:
    """What comes until the end, or for so many seconds; and whether it was the end."""
    answered = b""
    try:
        async with asyncio.timeout(patience_s):
            while data := await reader.read(2**16):
                answered += data
    except TimeoutError:
        return answered, False
    except OSError:  # reset
        pass
    return answered, True


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _many(one: Callable[[], Awaitable[None]], count: int) -> None:
    """Call it so many times, some at once."""
    left = iter(range(count))

    async def some() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
