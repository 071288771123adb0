"""The llama.cpp engine on the demo model as GGUF: the text of Transformers, limits and errors."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speech.engines.base import ClipRequest, EngineConfig, start_engine
from speech.errors import EngineError, UsageError
from speech.models.checkpoint import family_of
from speech.models.families import GRANITE_4_0, GRANITE_4_1, GRANITE_4_1_PLUS
from speech.recording import Options
from testing.engines import RunningEngine

pytestmark = pytest.mark.engine

MODEL = "demo/model"
LANGUAGE_MODEL, MMPROJ = "granite-speech-demo-f32.gguf", "mmproj-model-f32.gguf"


@pytest.fixture(scope="module")
def engine(gguf_folder: Path) -> Iterator[RunningEngine]:
    running = RunningEngine(EngineConfig(model=str(gguf_folder), engine="llamacpp"))
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


def test_output_tokens_are_limited_by_the_duration_of_the_clip(engine: RunningEngine) -> None:
    noise = (np.random.default_rng(0).standard_normal(32_000) * 8000).astype(np.int16)
    [decoding] = engine.decode(ClipRequest(noise, Options(), id="noise"))
    assert len(decoding.token_ids) <= GRANITE_4_0.max_tokens(2.0)


def test_a_clip_that_is_refused_does_not_affect_the_next(
    engine: RunningEngine, sample_clips: list[ClipRequest]
) -> None:
    many = tuple(f"keyword number {number} which is much too long to fit" for number in range(199))
    too_long = replace(sample_clips[0], options=Options(keywords=many))
    too_short = replace(sample_clips[0], samples=sample_clips[0].samples[:100])
    for clip in (too_long, too_short):
        with pytest.raises(EngineError) as refused:
            engine.decode(clip)
        assert refused.value.code == "engine_refused"
    assert engine.decode(sample_clips[0])[0].text


def test_the_port_of_its_server_answers_nobody(engine: RunningEngine) -> None:
    address = engine._engine._server.listening_address  # type: ignore[attr-defined]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/v1/models")
    assert refused.value.code == 401


def test_the_family_is_known_from_the_names(gguf_folder: Path, tmp_path: Path) -> None:
    for name, family in (
        ("demo", GRANITE_4_0),
        ("granite-speech-4.1-2b-GGUF", GRANITE_4_1),
        ("granite-speech-4.1-2b-plus-GGUF", GRANITE_4_1_PLUS),
    ):
        linked = tmp_path / name
        linked.mkdir()
        for file in gguf_folder.iterdir():
            (linked / file.name).symlink_to(file)
        assert family_of(str(linked), "llamacpp").name == family.name
        with pytest.raises(UsageError, match="--engine llamacpp"):
            family_of(str(linked))


def test_what_is_no_granite_in_gguf_is_refused(gguf_folder: Path, tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(UsageError) as refused:
            family_of(str(tmp_path), "llamacpp")
        assert refused.value.code == "unknown_model"
        return refused.value.message

    assert "must have two GGUF files" in message()
    (tmp_path / LANGUAGE_MODEL).symlink_to(gguf_folder / LANGUAGE_MODEL)
    assert LANGUAGE_MODEL in message()
    (tmp_path / MMPROJ).write_bytes(b"broken")
    assert "cannot be read" in message()
    (tmp_path / MMPROJ).unlink()
    (tmp_path / MMPROJ).symlink_to(gguf_folder / LANGUAGE_MODEL)  # a GGUF without a projector
    assert "not of a Granite Speech" in message()
    (tmp_path / MMPROJ).unlink()
    (tmp_path / MMPROJ).symlink_to(gguf_folder / MMPROJ)
    (tmp_path / LANGUAGE_MODEL).unlink()
    (tmp_path / LANGUAGE_MODEL).write_bytes(b"broken")
    with pytest.raises(UsageError, match=str(tmp_path)) as refused:
        start_engine(EngineConfig(model=str(tmp_path), engine="llamacpp"), family_of(str(tmp_path), "llamacpp"))
    assert refused.value.code == "bad_model"
    with pytest.raises(UsageError, match="no folder here"):
        family_of("ibm-granite/granite-4.0-1b-speech", "llamacpp")
