"""Whisper in both engines, on a checkpoint of random weights made here."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from speech.audio import SAMPLE_RATE
from speech.audio.clips import Clip
from speech.engines.base import ClipRequest, EngineConfig
from speech.listener import ListenResult
from speech.models.checkpoint import family_of
from speech.models.families import WHISPER
from speech.models.languages import most_probable
from speech.recording import Options, Recording
from testing.engines import RunningEngine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from testing.whisper_checkpoint import random_whisper

    folder = tmp_path_factory.mktemp("whisper")
    random_whisper(folder)
    return folder


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def engine(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    running = RunningEngine(EngineConfig(model=str(checkpoint), engine=request.param, kv_cache_gb=0.5))
    yield running
    running.stop()


def test_whisper_decodes_clips(engine: RunningEngine) -> None:
    rng = np.random.default_rng(0)
    clips = [
        ClipRequest((rng.standard_normal(seconds * SAMPLE_RATE) * 3000).astype(np.int16), options, f"{seconds}")
        for seconds, options in (
            (2, Options()),
            (5, Options(language="sv", task="translate")),
            (3, Options(language="de", keywords=("Kuhn", "Rayscribe"))),
        )
    ]
    for clip, decoding in zip(clips, engine.decode(*clips), strict=True):
        assert 0 < len(decoding.token_ids) <= WHISPER.max_tokens(clip.seconds)
        assert decoding.usage.output_tokens == len(decoding.token_ids)


def test_both_engines_detect_the_language_as_transformers_does(engine: RunningEngine, checkpoint: Path) -> None:
    """The probabilities of the language tokens after the first, of clips that are decoded together with others."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    processor = WhisperProcessor.from_pretrained(checkpoint)
    languages = sorted(WHISPER.languages)
    tokens = processor.tokenizer.convert_tokens_to_ids([f"<|{language}|>" for language in languages])
    rng = np.random.default_rng(1)
    clips = [
        ClipRequest((rng.standard_normal(seconds * SAMPLE_RATE) * 3000).astype(np.int16), Options(), f"{seconds}/1")
        for seconds in (1, 4, 7)
    ]
    for clip, detected in zip(clips, engine.detect_languages(*clips), strict=True):
        audio = processor(audio=clip.waveform(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(input_features=audio.input_features, decoder_input_ids=start).logits[0, -1]
        expected = dict(zip(languages, logits[tokens].log_softmax(-1).tolist(), strict=True))
        assert detected == pytest.approx(expected, abs=1e-3)
        assert most_probable([detected])[0] == max(expected, key=expected.__getitem__)


def test_the_language_of_a_recording_is_in_its_transcript(engine: RunningEngine) -> None:
    samples = (np.random.default_rng(2).standard_normal(3 * SAMPLE_RATE) * 3000).astype(np.int16)
    listened = ListenResult(3.0, 3.0, 1, [Clip(0, 0.0, 3.0, samples)])
    told = engine.transcribe(Recording(id="a", audio="a", options=Options(language="auto")), listened)
    asked = told.recording.options.language
    assert asked in WHISPER.languages
    assert 0.01 < (told.recording.language_probability or 0) <= 1
    same = engine.transcribe(Recording(id="b", audio="a", options=Options(language=asked)), listened)
    assert told.text == same.text
    assert same.recording.language_probability is None


def test_the_family_is_known_from_the_checkpoint(checkpoint: Path) -> None:
    assert family_of(str(checkpoint)) is WHISPER
