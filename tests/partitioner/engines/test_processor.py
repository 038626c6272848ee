"""What a processor has, read from its flags, and what is refused where it does not."""

from __future__ import annotations

import pytest

from odin.options import check_options
from odin.partitioner.engines import processor
from odin.partitioner.engines.processor import BFLOAT16, INT8, check_processor, has_feature
from odin.stages.compute.precision import why_not_on_cpu

AVX2 = "fpu sse4_2 avx avx2 fma"
SKYLAKE = f"{AVX2} avx512f avx512bw"  # no VNNI
ALDER_LAKE = f"{AVX2} avx_vnni"
GENOA = f"{AVX2} avx512f avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = f"{AVX2} avx512f avx512_vnni amx_int8 amx_bf16"
GRAVITON = "fp asimd asimddp bf16 i8mm"


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch):
    def pretend(text: str) -> None:
        monkeypatch.setattr(processor, "_cpu_flags", lambda: frozenset(text.split()))

    return pretend


@pytest.mark.parametrize(
    ("text", "bfloat16", "int8"),
    [
        (AVX2, False, False),
        (SKYLAKE, False, False),
        (ALDER_LAKE, False, True),
        (GENOA, True, True),
        (SAPPHIRE_RAPIDS, True, True),
        (GRAVITON, False, True),
        ("", False, False),
    ],
)
def test_what_a_processor_has(flags, text: str, bfloat16: bool, int8: bool):
    flags(text)
    assert (has_feature(BFLOAT16), has_feature(INT8)) == (bfloat16, int8)


def test_flags_are_read_from_the_first_processor(monkeypatch: pytest.MonkeyPatch, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: avx2 avx512f avx512_bf16\n\nprocessor\t: 1\nflags\t\t: avx2\n")
    monkeypatch.setattr(processor, "Path", lambda _: file)
    assert has_feature(BFLOAT16)
    assert processor.processor_features() == "avx512f"
    file.unlink()
    assert processor.processor_features() == ""
    assert not has_feature(BFLOAT16)


def test_a_model_says_what_its_processor_must_have(flags):
    flags(GENOA)
    check_processor("")
    check_processor("avx512f")
    check_processor("avx512f int8")
    check_processor(BFLOAT16)
    with pytest.raises(ValueError, match="optimised for a processor with avx2, and this one has avx512f: choose"):
        check_processor("avx2 int8")
    flags(SKYLAKE)
    check_processor("avx512f")
    with pytest.raises(
        ValueError, match=r"int8 instructions \(avx512_vnni, .*this one has none: choose precision 'flo"
    ):
        check_processor("avx512f int8")
    with pytest.raises(ValueError, match="bfloat16 instructions"):
        check_processor(BFLOAT16)


def test_bfloat16_is_refused_where_it_is_emulated(flags):
    flags(AVX2)
    with pytest.raises(ValueError, match=r"no bfloat16 instructions .* 9.6 times as long as float32: choose precision"):
        check_options(stages="cpu:0", precision="bfloat16", engine="openvino")
    assert why_not_on_cpu("bfloat16", "openvino", on_this_machine=False) == ""  # the stage asks its own processor
    flags(GENOA)
    check_options(stages="cpu:0", precision="bfloat16", engine="openvino")


@pytest.mark.parametrize(
    ("precision", "engine", "problem"),
    [
        (
            "bfloat16",
            "onnxruntime",
            "'onnxruntime' does not compute in bfloat16 on CPU cores: choose engine 'openvino'",
        ),
        ("bfloat16", "torch", "'torch' does not compute in bfloat16 on CPU cores: choose engine 'openvino'"),
        ("int8", "torch", "does not compute in int8 on CPU cores: choose engine 'onnxruntime' or 'openvino'"),
        ("float16", "torch", "'float16' is one of GPU stages, and .*: choose float32, bfloat16, int8"),
        ("tf32", "auto", "'tf32' is one of GPU stages"),
    ],
)
def test_engines_without_a_precision(flags, precision: str, engine: str, problem: str):
    flags(GENOA)
    with pytest.raises(ValueError, match=problem):
        check_options(
            stages="cpu:0", precision=precision, engine=engine, calibration="images" * (precision == "int8") or None
        )


def test_int8_needs_examples_and_cores():
    with pytest.raises(ValueError, match=r"needs examples by which the model is quantised: .*--calibration FOLDER"):
        check_options(stages="cpu:0", precision="int8", engine="onnxruntime")
    with pytest.raises(ValueError, match="'int8' is one of CPU stages, and there is gpu:0"):
        check_options(stages="cpu:0,gpu:0", precision="int8", calibration="images")
    with pytest.raises(ValueError, match="calibration goes with precision 'int8' or 'bfloat16', not with 'float32'"):
        check_options(stages="cpu:0", calibration="images")
