"""Pipelines in int8 and bfloat16: the same bits under every plan."""

from __future__ import annotations

import logging

import pytest
import torch
from small_pipelines import all_plans, images, small_chain

import odin
from odin.partitioner.engines.processor import has_feature

pytestmark = pytest.mark.ray


def test_int8_under_every_plan(two_cores: list[str], caplog: pytest.LogCaptureFixture):
    pytest.importorskip("onnxruntime")
    chain, calibration = small_chain(), torch.cat(images(32, seed=1))
    with (
        caplog.at_level(logging.INFO, "odin.startup"),
        odin.Pipeline(
            chain, stages=two_cores, engine="onnxruntime", precision="int8", calibration=calibration, policy="static"
        ) as pipe,
    ):
        assert "int8 on onnxruntime: same top-1 as float32 for 3" in caplog.text
        given = images(3)
        wanted = [pipe(image) for image in given]
        for image, output in zip(given, wanted, strict=True):
            expected = chain(image)
            assert 0 < float((output - expected).abs().max()) < 0.1 * float(expected.abs().max())
        for plan in all_plans(len(chain.layers)):
            pipe.migrate(plan)
            for image, output in zip(given, wanted, strict=True):
                assert torch.equal(pipe(image), output)


def test_bfloat16(two_cores: list[str]):
    pytest.importorskip("openvino")
    if not has_feature("bfloat16"):
        pytest.skip("this processor has no bfloat16 instructions")
    chain = small_chain()
    with odin.Pipeline(chain, stages=two_cores, engine="openvino", precision="bfloat16") as pipe:
        (image,) = images(1)
        output, expected = pipe(image), chain(image)
        assert output.dtype == torch.float32
        assert 0 < float((output - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_what_no_stage_has_is_refused_at_once(two_cores: list[str]):
    with pytest.raises(ValueError, match="engine 'torch' does not compute in bfloat16 on CPU cores"):
        odin.Pipeline(small_chain(), stages=two_cores, precision="bfloat16")
    with pytest.raises(ValueError, match="precision 'int8' needs examples"):
        odin.Pipeline(small_chain(), stages=two_cores, precision="int8", engine="onnxruntime")
