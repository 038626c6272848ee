"""Pairs of channel ends, and children at the other end, for tests of channels."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch
from patience import PROMPT_S

from odin.stages.channel.link import Receiver, Sender
from odin.stages.channel.opening import Address, Listener, connect
from odin.stages.channel.wire import Header, Kind

KINDS = ("shm", "tcp")

# Children that inherit none of our sockets; torch is imported once for all of them.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["odin.stages.channel.opening"])


def listen(kind: str) -> Listener:
    return Listener("" if kind == "shm" else "127.0.0.1")


def open_pair(kind: str, *, slots: int = 2, slot_nbytes: int = 1024, credits: bool = True) -> tuple[Sender, Receiver]:
    listener = listen(kind)
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, PROMPT_S)
        sender = connect(listener.address, slots=slots, slot_nbytes=slot_nbytes, credits=credits)
        return sender, accepting.result()


@contextlib.contextmanager
def pair(kind: str, **options: Any) -> Iterator[tuple[Sender, Receiver]]:
    sender, receiver = open_pair(kind, **options)
    try:
        yield sender, receiver
    finally:
        sender.close(graceful=False)
        receiver.close()


def request(number: int, **fields: Any) -> Header:
    return Header(Kind.REQUEST, number, **fields)


def numbers(number: int, count: int = 100) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32) + 1000 * number


@contextlib.contextmanager
def child(target: Callable[..., None], *args: object) -> Iterator[ForkServerProcess]:
    process = SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(PROMPT_S)
        process.close()


def open_sender(address: Address, *, slots: int = 2, slot_nbytes: int = 1024) -> Sender:
    return connect(address, slots=slots, slot_nbytes=slot_nbytes)
