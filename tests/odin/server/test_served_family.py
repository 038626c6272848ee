"""A family of variants over the network: profiled by the command, chosen by parameters, counted."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import PROMPT_S
from prometheus_client.exposition import generate_latest
from variant_models import large, small

from odin.cli.main import main
from odin.server.config import Limits, parse_model, read_model
from odin.server.dataplane import DataPlane
from odin.server.datatypes import DATATYPES
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import InferRequest, Tensor
from odin.server.metrics import Metrics
from odin.server.page import Feed
from odin.server.repository import Repository

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def write_family(folder: Path, stages: list[str]) -> Path:
    path = folder / "digits.toml"
    path.write_text(
        f"""stages = {json.dumps(stages)}

[[variants]]
name = "small"
source = "variant_models:small"

[[variants]]
name = "large"
source = "variant_models:large"

[[variants]]
name = "cut"
source = "variant_models:small"
accuracy = 0.3
form = "exit-1"
accuracy_lost = 0.002
"""
    )
    return path


def write_data(folder: Path) -> Path:
    """Classes that the large model is always right about."""
    classes = large()[0](X).argmax(dim=1)
    path = folder / "data.npz"
    np.savez(path, inputs=X.numpy(), classes=classes.numpy())
    return path


def stage_requests(text: str, model: str) -> float:
    """Micro-batches that the stages of a model have computed."""
    line = rf'odin_stage_compute_seconds_count{{[^}}]*model="{model}"[^}}]*}} ([0-9.]+)'
    return sum(float(count) for count in re.findall(line, text))


def request(parameters: dict[str, object]) -> InferRequest:
    return InferRequest("digits", "", "", parameters, (Tensor("input", DATATYPES["FP32"], X[:1].numpy()),))


@pytest.mark.ray
def test_profiled_then_served_by_what_requests_ask_for(two_cores, tmp_path, capsys):
    folder = tmp_path / "models"
    folder.mkdir()
    path, data = write_family(folder, two_cores), write_data(tmp_path)
    assert main(["profile", str(path), "--labelled", str(data), "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)["variants"]}
    right = (small()[0](X).argmax(dim=1) == large()[0](X).argmax(dim=1)).float().mean().item()
    assert told["large"]["accuracy"] == 1.0
    assert told["small"]["accuracy"] == pytest.approx(right, abs=0.05)
    assert told["cut"]["accuracy"] == 0.3
    assert main(["profile", str(path), "--labelled", str(data)]) == 0  # of what is kept
    out = capsys.readouterr().out
    assert "100.00%" in out
    assert "exit-1" in out

    async def serve() -> None:
        metrics = Metrics()
        repository = Repository(folder, on_event=metrics.on_event)
        try:
            assert repository.find() == ["digits"]
            dataplane = DataPlane(repository, Limits())
            metrics.watch(dataplane)
            await dataplane.load("digits")
            metadata = dataplane.model_metadata("digits")
            assert metadata.platform == "odin_family"
            assert metadata.inputs[0].shape == (-1, 1, 8, 8)

            answer = await dataplane.infer(request({"accuracy": 1.0}))
            assert answer.parameters["variant"] == "large"
            assert answer.parameters["form"] == "full"
            assert answer.parameters["accuracy_lost"] == 0.0
            assert answer.parameters["accuracy"] == 1.0
            assert answer.parameters["predicted_us"] > 0
            assert answer.parameters["actual_us"] > 0
            assert np.allclose(answer.outputs[0].array, large()[0](X[:1]).detach().numpy(), atol=1e-4)
            assert (await dataplane.infer(request({}))).parameters["variant"] == "small"
            assert (await dataplane.infer(request({"accuracy": "0.01"}))).parameters["variant"] == "small"

            with pytest.raises(RequestError, match="the soonest is") as late:
                await dataplane.infer(request({"latency": 1}))
            assert late.value.kind is FailureKind.REFUSED
            assert "parameter 'accuracy_budget'" in str(late.value)
            for wrong in (
                *({"accuracy": value} for value in (2, True, math.nan, "NaN", "x", 10**400, "1" * 5000)),
                *({"latency": value} for value in (-1, 0.5, 2**63, 10**400, "1" * 400, "1" * 5000)),
                *({"accuracy_budget": value} for value in (2, True, -0.1, "x", "", "1" * 5000)),
            ):
                with pytest.raises(RequestError, match=next(iter(wrong))) as caught:
                    await dataplane.infer(request(wrong))
                assert caught.value.kind is FailureKind.INVALID

            assert set(dataplane.views()) == {"digits/small", "digits/large", "digits/cut"}
            text = generate_latest(metrics.registry).decode()
            labels = 'model="digits",outcome="answered",reduced="false"'
            assert f'odin_variant_requests_total{{{labels},variant="large"}} 1.0' in text
            assert 'odin_variant_choices_total{model="digits",variant="large",why="asked"} 1.0' in text
            assert 'odin_family_refusals_total{model="digits"} 1.0' in text
            assert 'odin_variant_loaded{model="digits",variant="cut"} 1.0' in text
            assert 'odin_model_info{engine="family",model="digits",policy="odin",version="1"} 1.0' in text
            assert stage_requests(text, "digits/large") >= 1

            named = await dataplane.infer(request({"variant": "large"}))
            pipeline = repository.all_served()["digits"].family.pipeline("large")
            assert np.array_equal(named.outputs[0].array, pipeline(X[:1]).numpy())
            with pytest.raises(RequestError, match="'variant' is 'huge'; there are 'small', 'large', 'cut'"):
                await dataplane.infer(request({"variant": "huge"}))

            models = json.loads(await Feed(dataplane, every_s=0.0).next())["models"]
            assert [(one["name"], one["state"]) for one in models] == [
                ("digits", "READY"),
                ("digits/small", "READY"),
                ("digits/large", "READY"),
                ("digits/cut", "READY"),
            ]
            assert models[0]["view"] is None
            assert models[0]["answers"].startswith("odin: answered: small 2, large 2, cut 0; 1 refused")
            assert models[2]["answers"] == "answered: large 2"
            assert [stage["device"] for stage in models[2]["view"]["stages"]] == two_cores
            assert pipeline.view().model == "digits/large"

            (_, pid), *_ = pipeline.stage_names()
            os.kill(pid, signal.SIGKILL)
            lost = 'odin_stage_losses_total{how="lost",model="digits/large"} 1.0'
            deadline_s = time.monotonic() + PROMPT_S
            while lost not in generate_latest(metrics.registry).decode():
                assert time.monotonic() < deadline_s
                assert (await dataplane.infer(request({"variant": "large"}))).parameters["variant"] == "large"
                await asyncio.sleep(0.05)
        finally:
            await repository.close()

    asyncio.run(serve())


def test_a_familys_file_is_checked(tmp_path):
    config = read_model(write_family(tmp_path, ["cpu:0"]))
    assert [one.name for one in config.variants] == ["small", "large", "cut"]
    for fields, message in (
        ({"variants": []}, "at least one"),
        ({"variants": [{"name": "a"}]}, "variant 0: 'source' is missing"),
        (
            {"variants": [{"name": "a", "source": "m", "wieghts": "x"}]},
            "variant 0: there is no field 'wieghts' \\(did you mean weights\\?\\)",
        ),
        ({"variants": [{"name": "a", "source": "m"}], "policy": "relay"}, "policy beside"),
        ({"variants": [{"name": "a", "source": "m"}], "source": "m"}, "source beside"),
        ({"variants": [{"name": "a", "source": "m", "accuracy": 3}]}, "accuracy = 3"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_model(fields, name="family", folder=tmp_path, where="here")


def test_files_lie_beside_the_familys(tmp_path):
    fields = {
        "labelled": "photos",
        "variants": [{"name": "a", "source": "a.onnx", "weights": "a.pth"}, {"name": "b", "source": "resnet18"}],
    }
    config = parse_model(fields, name="family", folder=tmp_path, where="here")
    assert config.labelled == tmp_path / "photos"
    assert config.variants[0].source == str(tmp_path / "a.onnx")
    assert config.variants[0].weights == tmp_path / "a.pth"
    assert config.variants[1].source == "resnet18"


def test_one_model_is_no_family(tmp_path, capsys):
    path = tmp_path / "one.toml"
    path.write_text('source = "resnet18"\n')
    assert main(["profile", str(path)]) == 2
    assert "no [[variants]]" in capsys.readouterr().err
