"""bfloat16 on a CPU that has none in hardware: auto leaves it out, and who asks for it is warned."""

import logging

import pytest

from speech.engines import dtype
from speech.engines.base import EngineConfig
from speech.engines.dtype import Dtype, cpu_dtype, slow_dtype_warning
from speech.models.checkpoint import family_of

MODEL = "demo/model"


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "cpu_info", lambda: "flags\t\t: fpu avx2 avx512f\n")


def test_auto_is_float32(avx2: None, caplog: pytest.LogCaptureFixture) -> None:
    assert cpu_dtype("auto") == "float32"
    assert not caplog.records


def test_bfloat16_is_warned_of_and_done(avx2: None, caplog: pytest.LogCaptureFixture) -> None:
    assert cpu_dtype("bfloat16") == "bfloat16"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "leave out --dtype bfloat16" in caplog.text


@pytest.mark.parametrize("described", ["flags : avx512_bf16", "flags : amx_bf16 amx_tile", "Features : asimd bf16", ""])
def test_a_cpu_with_bfloat16_or_unknown_is_not_warned_of(monkeypatch: pytest.MonkeyPatch, described: str) -> None:
    monkeypatch.setattr(dtype, "cpu_info", lambda: described)
    assert slow_dtype_warning("bfloat16") == ""


@pytest.mark.engine
@pytest.mark.parametrize(("asked", "taken"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_every_engine_asks(avx2: None, asked: Dtype, taken: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of vLLM the arguments are enough; llama.cpp and servers compute as their files say (speech/preflight.py)."""
    import torch

    from speech.engines.encoder import EncoderEngine
    from speech.engines.transformers import TransformersEngine
    from speech.engines.vllm import VllmEngine

    if torch.cuda.is_available():
        pytest.skip("these engines would take the GPU")
    config = EngineConfig(model=MODEL, dtype=asked)
    vllm = VllmEngine.__new__(VllmEngine)
    vllm._family, vllm._method = family_of(MODEL), None
    assert vllm._arguments(config, on_cpu=True)["dtype"] == taken
    assert TransformersEngine(config, family_of(MODEL))._model.dtype == getattr(torch, taken)
    encoder = EncoderEngine(config, family_of(MODEL, "encoder"))._batching._encoder
    assert encoder._front_end._dtype == getattr(torch, taken)  # type: ignore[attr-defined]
    assert len(caplog.records) == (3 if asked == "bfloat16" else 0)
