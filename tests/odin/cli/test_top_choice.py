"""Which pipeline ``odin top`` shows, where a process has several."""

from __future__ import annotations

import os

import msgspec
import pytest
from synthetic_run import START_S, run_started

from odin.cli.main import main
from odin.monitor.view.builder import ViewBuilder
from odin.status.server import StatusServer


@pytest.fixture
def _two_models():
    builder = ViewBuilder()
    builder.apply(run_started())
    view = builder.view(START_S + 1)
    servers = [StatusServer(msgspec.structs.replace(view, model=name).to_json) for name in ("cats", "dogs")]
    yield
    for server in servers:
        server.close()


@pytest.mark.usefixtures("_two_models")
@pytest.mark.parametrize("name", ["cats", "dogs"])
def test_a_model_of_a_process_is_shown(capsys, name):
    assert main(["top", str(os.getpid()), "--model", name, "--once"]) == 0
    assert capsys.readouterr().out.split()[0] == name


@pytest.mark.usefixtures("_two_models")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "several pipelines run here; name one by its process or --model; there are cats ({pid}), dogs ({pid})"),
        (["--model", "birds"], "no pipeline of birds runs here; there are cats ({pid}), dogs ({pid})"),
    ],
)
def test_of_several_one_must_be_named(capsys, options, told):
    assert main(["top", str(os.getpid()), *options, "--once"]) == 1
    assert told.format(pid=os.getpid()) in capsys.readouterr().err
