"""The llama.cpp engine on the demo model as GGUF: the text of Transformers, limits and errors."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo.to_gguf import LANGUAGE_MODEL, MMPROJ, write
from speech.engines.base import ClipRequest, EngineConfig
from speech.errors import EngineError, UsageError
from speech.models.checkpoint import family_of
from speech.models.families import GRANITE_4_0, GRANITE_4_1, GRANITE_4_1_PLUS
from speech.recording import Options
from testing.engines import RunningEngine

pytestmark = pytest.mark.engine

MODEL = "demo/model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[RunningEngine]:
    running = RunningEngine(EngineConfig(model=str(folder), engine="llamacpp"))
    yield running
    running.stop()


def test_it_writes_what_transformers_writes(engine: RunningEngine, sample_clips: list[ClipRequest]) -> None:
    translated = Options(task="translate", target_language="de")
    biased = Options(keywords=("klyndo", "shystoomeick"))
    clips = [
        *sample_clips[:20],
        *(replace(sample_clips[0], options=each, id=str(each)) for each in (translated, biased)),
    ]
    reference = RunningEngine(EngineConfig(model=MODEL, engine="transformers", dtype="float32"))
    expected, found = reference.decode(*clips), engine.decode(*clips)
    reference.stop()
    assert [each.text for each in found] == [each.text for each in expected]
    assert len({each.text for each in found}) > 10
    for one, other in zip(found, expected, strict=True):
        assert one.complete
        assert one.usage == other.usage
        assert one.token_ids == other.token_ids
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-2)
