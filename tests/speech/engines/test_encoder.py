"""The encoder engine: as Transformers decodes a clip alone, whatever is in the batch."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, GraniteSpeechForConditionalGeneration

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, EngineConfig, start_engine
from speech.errors import EngineError, UsageError
from speech.granite.frontend import FrontEnd
from speech.granite.word_times import align_words
from speech.models.checkpoint import family_of
from speech.recording import Options
from testing.encoder_checkpoints import BLANK, ENCODERS, PAD, parakeet_tdt
from testing.engines import RunningEngine
from tests.serve.direct import client_of, post

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:Using the model-agnostic default")]

MODEL = "demo/model"


@pytest.fixture(scope="module", params=ENCODERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    ENCODERS[request.param](folder)
    return folder


@pytest.fixture
def engine(checkpoint: Path) -> Iterator[RunningEngine]:
    running = RunningEngine(EngineConfig(model=str(checkpoint), engine="encoder"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def granite() -> Iterator[RunningEngine]:
    running = RunningEngine(EngineConfig(model=MODEL, engine="encoder"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def clips(sample_clips: list[ClipRequest]) -> list[ClipRequest]:
    """Speech of 0.1 s to 20 s, most not of a whole number of frames; more than one batch."""
    rng = random.Random(0)
    speech = np.concatenate([clip.samples for clip in sample_clips[:30]])
    lengths = [SAMPLE_RATE // 10, SAMPLE_RATE, 20 * SAMPLE_RATE, *(rng.randint(2000, 150_000) for _ in range(17))]
    starts = [rng.randrange(len(speech) - length) for length in lengths]
    pairs = zip(starts, lengths, strict=True)
    return [ClipRequest(speech[a : a + n], Options(), f"clip/{number}") for number, (a, n) in enumerate(pairs)]


def decoded_alone(folder: Path, clips: Sequence[ClipRequest]) -> list[tuple[str, list[int]]]:
    """Texts, and tokens or labels of frames, of Transformers' own ``generate`` for one clip after another."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for clip in clips:
        output: Any = model.generate(**processor(clip.waveform(), sampling_rate=SAMPLE_RATE, return_tensors="pt"))
        tokens = getattr(output, "sequences", output)
        [text] = processor.batch_decode(tokens, skip_special_tokens=True)
        found.append((text.strip(), tokens[0].tolist()))
    return found


def test_a_batch_has_the_tokens_that_transformers_decodes_of_each_clip_alone(
    engine: RunningEngine, checkpoint: Path, clips: list[ClipRequest]
) -> None:
    alone = decoded_alone(checkpoint, clips)
    assert len({text for text, _ in alone}) > len(clips) // 2  # or equality would prove nothing
    found = engine.decode(*clips)
    assert [each.text for each in found] == [text for text, _ in alone]
    for each, (_, labels) in zip(found, alone, strict=True):
        merged = labels if "tdt" in checkpoint.name else [label for label, _ in groupby(labels)]
        assert list(each.token_ids) == [label for label in merged if label not in (PAD, BLANK)]
        assert each.complete
        assert each.usage.output_tokens == len(each.token_ids)
        assert each.usage.audio_tokens > 0


def test_the_confidence_of_a_clip_does_not_depend_on_the_batch(engine: RunningEngine, clips: list[ClipRequest]) -> None:
    alone = [engine.decode(clip)[0] for clip in clips]
    together = engine.decode(*clips)
    for one, other in zip(alone, together, strict=True):
        assert (one.avg_logprob is None) == (not one.token_ids)
        assert one.avg_logprob is None or one.avg_logprob < 0
        assert other.avg_logprob == pytest.approx(one.avg_logprob, abs=1e-4)
        assert replace(other, avg_logprob=None) == replace(one, avg_logprob=None)


def test_a_transducer_that_never_advances_is_cut_off(tmp_path: Path, clips: list[ClipRequest]) -> None:
    parakeet_tdt(tmp_path, advances=False)
    running = RunningEngine(EngineConfig(model=str(tmp_path), engine="encoder"))
    found = running.decode(*clips[:3])
    running.stop()
    for each, (text, tokens) in zip(found, decoded_alone(tmp_path, clips[:3]), strict=True):
        assert not each.complete
        assert (each.text, list(each.token_ids)) == (text, tokens[1:])  # without the start token


def test_granites_ctc_head_reads_as_in_transformers(granite: RunningEngine, sample_clips: list[ClipRequest]) -> None:
    model: Any = GraniteSpeechForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval().model
    extractor = AutoProcessor.from_pretrained(MODEL).audio_processor
    clips = sample_clips[:8]
    for clip, found in zip(clips, granite.decode(*clips), strict=True):
        features = extractor(torch.from_numpy(clip.waveform())[None])["input_features"]
        with torch.inference_mode():
            log_posteriors = model.encoder.out(model.encoder(features).last_hidden_state)[0].log_softmax(-1)
        tokens = [label for label, _ in groupby(log_posteriors.argmax(-1).tolist()) if label]
        assert list(found.token_ids) == tokens
        assert found.text == " ".join("".join(map(chr, tokens)).split())
        assert found.avg_logprob == pytest.approx(
            _log_likelihood(log_posteriors.numpy(), tokens) / len(tokens), abs=1e-4
        )
        assert found.usage.audio_tokens == len(log_posteriors)


def test_words_have_the_times_of_their_pieces(engine: RunningEngine, clips: list[ClipRequest]) -> None:
    timed = [replace(clip, options=Options(word_timestamps=True)) for clip in clips]
    for clip, found, without in zip(clips, engine.decode(*timed), engine.decode(*clips), strict=True):
        assert (without.words, without.text) == ((), found.text)
        assert [word.text for word in found.words] == found.text.split()
        times = [time for word in found.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert all(0 <= time <= clip.seconds + 1e-6 for time in times)
        assert all(0 < (word.ctc_score or 0) <= 1 for word in found.words)


def test_words_of_granites_ctc_head_are_where_forced_alignment_has_them(
    granite: RunningEngine, sample_clips: list[ClipRequest]
) -> None:
    front_end = FrontEnd.load(MODEL, torch.device("cpu"), torch.float32)
    clips = [replace(clip, options=Options(word_timestamps=True)) for clip in sample_clips[:8]]
    for clip, found in zip(clips, granite.decode(*clips), strict=True):
        [hypothesis] = front_end.hypotheses([clip.samples])
        aligned = align_words(found.text.split(), hypothesis.log_posteriors)
        differences = [abs(word.start_s - time.start_s) for word, time in zip(found.words, aligned, strict=True)]
        assert max(differences) <= 0.1
        assert sum(difference < 0.001 for difference in differences) > 0.9 * len(differences)


def _log_likelihood(log_posteriors: np.ndarray, tokens: list[int]) -> float:
    """The forward algorithm of Graves et al. 2006, section 4.1, in log space; blank is label 0."""
    labels = [0] + [label for token in tokens for label in (token, 0)]
    reached = [log_posteriors[0, 0], log_posteriors[0, labels[1]]] + [-math.inf] * (len(labels) - 2)
    for frame in log_posteriors[1:]:
        before, reached = reached, []
        for at, label in enumerate(labels):
            ways = before[max(0, at - 1) : at + 1]
            if at >= 2 and label not in (0, labels[at - 2]):
                ways = before[at - 2 : at + 1]
            reached.append(np.logaddexp.reduce(ways) + frame[label])
    return float(np.logaddexp(reached[-1], reached[-2]))


def test_a_clip_too_short_to_be_encoded_does_not_affect_the_others(
    engine: RunningEngine, clips: list[ClipRequest]
) -> None:
    with pytest.raises(EngineError) as refused:
        engine.decode(replace(clips[0], samples=clips[0].samples[:200]))
    assert refused.value.code == "engine_refused"
    assert engine.decode(clips[1])[0].complete


def test_the_error_has_the_path_of_a_checkpoint_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "parakeet_ctc"}')
    config = EngineConfig(model=str(tmp_path), engine="encoder")
    with pytest.raises(UsageError, match=str(tmp_path)) as refused:
        start_engine(config, family_of(config.model, config.engine))
    assert refused.value.code == "bad_model"


def test_the_endpoint_transcribes_with_it_and_refuses_what_an_encoder_lacks() -> None:
    engine = start_engine(EngineConfig(model=MODEL, engine="encoder"), family_of(MODEL, "encoder"))
    rows = map(json.loads, Path("demo/samples/manifest.jsonl").read_text().splitlines())
    sample = next(row for row in rows if row["id"] == "travel-004")
    audio = Path("demo/samples", sample["audio"]).read_bytes()
    with client_of(engine, engine="encoder") as client:
        answer = post(client, audio=audio, response_format="verbose_json").json()
        assert jiwer.wer(sample["text"], answer["text"]) < 0.2
        assert all(segment["avg_logprob"] < 0 for segment in answer["segments"])
        for fields in ({"keywords": "Kuhn"}, {"language": "ja"}, {"punctuation": "true"}):
            refused = post(client, audio=audio, **fields)
            assert refused.status_code == 400
            assert "Granite Speech's CTC head" in refused.json()["error"]["message"]
        assert post(client, "translations", audio=audio).status_code == 400
    engine.stop()
