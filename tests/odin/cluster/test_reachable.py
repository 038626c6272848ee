"""Whether a Ray head answers.

What happened: ``odin top --address`` of a dead or silent head took two minutes and filled the screen with warnings.
"""

from __future__ import annotations

import socket
import threading

import pytest
import ray
from patience import PROMPT_S

from odin.cli.main import main
from odin.cluster.reachable import check_head


def test_nobody():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"nobody answers at {address}"):
            check_head(address)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_no_port(port):
    with pytest.raises(ConnectionError, match="nobody answers"):
        check_head(f"127.0.0.1:{port}")


def test_somebody_silent():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(ConnectionError, match=r"nobody answers at .* within 0\.05 s"),
    ):
        check_head(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.05)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_somebody_else(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ConnectionError, match="is no Ray head"):
            check_head(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=PROMPT_S)
        thread.join()


def test_other_forms_are_rays_own():
    check_head("auto")
    check_head("ray://127.0.0.1:1")


@pytest.mark.ray
def test_a_head(ray_session):
    check_head(ray.get_runtime_context().gcs_address, timeout_s=PROMPT_S)


def test_the_command_tells(capsys, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever tests ran before
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert main(["top", "--address", address]) == 1
    assert f"nobody answers at {address}" in capsys.readouterr().err
