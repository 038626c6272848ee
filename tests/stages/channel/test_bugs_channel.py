"""Idle strangers at a channel's port delayed its opening by five seconds each, and four of them made it fail."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from channels import KINDS, listen, open_sender
from patience import PROMPT_S

from odin.stages.channel.link import ChannelClosedError, Hello, Receiver
from odin.stages.channel.opening import Address, Listener, connect, open_ends
from odin.stages.channel.wire import Header, Kind

both_kinds = pytest.mark.parametrize("kind", KINDS)
FOR_EVER_S = 1000.0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is hung up for lateness: who waits behind a stranger waits for ever."""
    monkeypatch.setattr("odin.stages.channel.opening._HELLO_TIMEOUT_S", FOR_EVER_S)


def knock(address: Address, data: bytes = b"") -> socket.socket:
    if address.local:
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger.settimeout(PROMPT_S)
        stranger.connect(f"\0{address.name}")
    else:
        stranger = socket.create_connection((address.host, address.port), timeout=PROMPT_S)
    if data:
        stranger.sendall(data)
    return stranger


@contextlib.contextmanager
def strangers(listener: Listener, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(knock(listener.address, data)) for _ in range(count)]


@contextlib.contextmanager
def accepting(listener: Listener) -> Iterator[list[Receiver]]:
    """The right one comes; yields the receiver, once there is one, in a list."""
    receivers: list[Receiver] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.accept, FOR_EVER_S)
        try:
            yield receivers
            sender = open_sender(listener.address)
            receivers.append(waiting.result(PROMPT_S))
            sender.send(Header(Kind.REQUEST, 5))
            assert receivers[0].receive().header.request == 5
            sender.close(graceful=False)
            receivers[0].close()
        finally:
            listener.close()


HALF = Hello(bytes(16), 2, 1024, True).pack()[:20]


@both_kinds
@pytest.mark.parametrize("data", [b"", b"hi", HALF], ids=["silent", "says a word", "half a hello"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "meanwhile"])
def test_strangers_who_stay_do_not_hold_up_the_previous_stage(patient: None, kind: str, data: bytes, early: bool):
    listener = listen(kind)
    with contextlib.ExitStack() as stack:
        if early:  # while the other stages are still being set up
            stack.enter_context(strangers(listener, 20, data))
        with accepting(listener):
            stack.enter_context(strangers(listener, 20, data))


@both_kinds
def test_a_stranger_is_hung_up_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr("odin.stages.channel.opening._HELLO_TIMEOUT_S", 0.05)
    listener = listen(kind)
    with accepting(listener), strangers(listener, 3) as those:
        assert [stranger.recv(1) for stranger in those] == [b""] * 3
        monkeypatch.setattr(
            "odin.stages.channel.opening._HELLO_TIMEOUT_S", FOR_EVER_S
        )  # the right one may be slow here


@both_kinds
def test_a_crowd_is_bounded_and_the_longest_there_go_first(patient: None, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr("odin.stages.channel.opening._MAX_KNOCKING", 3)
    listener = listen(kind)
    with accepting(listener), strangers(listener, 10) as those:
        assert [stranger.recv(1) for stranger in those[:7]] == [b""] * 7
        those[9].setblocking(False)
        with pytest.raises(BlockingIOError):
            those[9].recv(1)


@both_kinds
def test_a_stranger_says_half_and_goes(patient: None, kind: str):
    listener = listen(kind)
    with accepting(listener), strangers(listener, 5, HALF):
        pass


def test_a_hello_in_pieces_is_understood(patient: None):
    listener = listen("tcp")
    hello = Hello(listener.address.token, 2, 1024, True).pack()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(listener.accept, FOR_EVER_S)
        with knock(listener.address) as slow:
            slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(len(hello)):
                slow.sendall(hello[at : at + 1])
            assert slow.recv(1) == b"+"
            waiting.result(PROMPT_S).close()


@both_kinds
def test_closing_the_listener_ends_its_waiting(kind: str):
    listener = listen(kind)
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: begun.set() or listener.accept(FOR_EVER_S))
        begun.wait(PROMPT_S)
        listener.close()
        with pytest.raises(ChannelClosedError, match="closed before the previous stage connected"):
            waiting.result(PROMPT_S)


@both_kinds
def test_if_the_next_stage_refuses_nobody_waits_a_minute_for_the_previous_one(kind: str):
    gone = listen(kind)
    gone.close()
    listener = listen(kind)
    with pytest.raises(ChannelClosedError, match="cannot connect to the stage"):
        open_ends([(listener, 1)], [lambda: connect(gone.address, slots=1, slot_nbytes=64)])
    with pytest.raises(ChannelClosedError, match="cannot connect"):
        open_sender(listener.address)
