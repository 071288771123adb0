"""OpenAI's own client, unchanged, on ``rayscribe serve`` with the demo model: the text is the batch job's."""

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pyarrow.dataset as pads
import pytest
import soundfile
from openai.types.audio import TranscriptionVerbose, TranslationVerbose

from tests.serve.collector import Collector
from tests.serve.conftest import Served, eventually

SAMPLES = Path("demo/samples")
MANIFEST = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text().splitlines()]
GOOD = [row for row in MANIFEST if row["id"] not in ("corrupt-018", "empty-019")]
SHORT = next(row for row in GOOD if row["id"] == "travel-004")
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")


@pytest.fixture(scope="module")
def batch(shell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The bulk job's rows for the samples, by id."""
    assert shell
    table = pads.dataset("out/readme/transcripts", partitioning="hive").to_table()
    return {str(row["recording_id"]): row for row in table.to_pylist()}


@pytest.fixture(scope="module")
def client(batch: dict[str, dict[str, Any]], demo: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def transcribe(client: openai.OpenAI, row: dict[str, Any], **asked: Any) -> Any:
    """Requests a manifest row with its options; those that OpenAI's client lacks go into ``extra_body``."""
    extras = {name: row[name] for name in ("language", "target_language", "keywords", "speakers") if name in row}
    create = client.audio.translations if row.get("task") == "translate" else client.audio.transcriptions
    return create.create(file=SAMPLES / row["audio"], model="whisper-1", extra_body=extras, **asked)


def test_every_sample_has_the_text_of_the_batch_job(client: openai.OpenAI, batch: dict[str, dict[str, Any]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda row: transcribe(client, row, response_format="verbose_json"), GOOD))
    for row, answer in zip(GOOD, answers, strict=True):
        expected = batch[row["id"]]
        assert isinstance(answer, TranscriptionVerbose | TranslationVerbose)
        assert answer.text == expected["text"]
        assert answer.duration == pytest.approx(expected["duration_s"])
        assert [(part.start, part.end, part.text) for part in answer.segments or []] == [
            (segment["start_s"], segment["end_s"], segment["text"]) for segment in expected["segments"]
        ]


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_in_each_format(client: openai.OpenAI, batch: dict[str, dict[str, Any]], format: str) -> None:
    row = SHORT
    expected = batch[row["id"]]
    answer = transcribe(client, row, response_format=format)
    text = answer if isinstance(answer, str) else answer.text
    if format in ("srt", "vtt"):
        shown = [line for line in text.splitlines() if not re.fullmatch(r"WEBVTT|\d*|.* --> .*", line)]
        spoken = " ".join(re.sub(r"^(<v \w+>|\w+: )", "", line) for line in shown)
        assert sorted(spoken.split()) == sorted(expected["text"].split())
        assert text.count(" --> ") >= sum(bool(segment["text"]) for segment in expected["segments"])
    else:
        assert text.strip() == expected["text"]


def test_a_stream_has_the_same_text_in_parts(client: openai.OpenAI, batch: dict[str, dict[str, Any]]) -> None:
    row = SHORT
    events = list(transcribe(client, row, stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == batch[row["id"]]["text"]
    assert events[-1].usage.total_tokens > 0


def test_a_request_is_one_trace_from_the_endpoint_to_the_engine(client: openai.OpenAI, collector: Collector) -> None:
    text = transcribe(client, SHORT).text
    calls = {"Endpoint __call__", "Listener listen", "Transcriber transcribe"}
    spans = {f"replica_handle_request {call}" for call in calls} | {"llm_request"}
    eventually(lambda: any(spans <= trace for trace in collector.traces()))
    sent = b"".join(collector.requests)
    assert SHORT["audio"].encode() not in sent
    assert text.encode() not in sent


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="whisper-1"):
        client.audio.transcriptions.create(file=SAMPLES / "billing-001.wav", model="gpt-9")
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(file=SAMPLES / "billing-001.wav", model="whisper-1", language="xx")
    assert caught.value.code == "unsupported_language"
    with pytest.raises(openai.UnprocessableEntityError) as damaged:
        client.audio.transcriptions.create(file=SAMPLES / "corrupt-018.wav", model="whisper-1")
    assert damaged.value.code == "unreadable"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo/model", "whisper-1"]
    assert client.models.retrieve("demo/model").owned_by == "rayscribe"


def test_live_audio_has_the_text_of_its_recording(demo: Served, batch: dict[str, dict[str, Any]]) -> None:
    """One channel of a call, as a telephony bridge sends it."""
    call = GOOD[0]
    said = [segment["text"] for segment in batch[call["id"]]["segments"] if segment["channel"] == 0]
    samples, _ = soundfile.read(SAMPLES / call["audio"], dtype="int16")
    raw = io.BytesIO()
    soundfile.write(raw, samples[:, 0], 8000, "ULAW", format="RAW")
    frames = [base64.b64encode(raw.getvalue()[start : start + 1600]).decode() for start in range(0, len(samples), 1600)]

    async def transcribe_live() -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none") as client,
            client.realtime.connect(model="demo/model", extra_query={"intent": "transcription"}) as connection,
        ):
            await connection.session.update(
                session={"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcmu"}}}}
            )
            for frame in frames:
                await connection.input_audio_buffer.append(audio=frame)
            await connection.input_audio_buffer.commit()
            listened: list[str] = []
            async for event in connection:
                if event.type == "conversation.item.input_audio_transcription.completed":
                    listened.append(event.transcript)
                    if set(said) <= set(listened):
                        break
            return listened

    listened = asyncio.run(asyncio.wait_for(transcribe_live(), 120))
    assert [text for text in listened if text in said] == said
