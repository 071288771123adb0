"""Rendered transcripts: what players and parsers rely on."""

import json

import pytest

from speech.formats import render_transcript
from speech.recording import Options, Recording
from speech.transcript import Agreement, Segment, Transcript, Usage, Word


def transcript(*segments: Segment, **fields: object) -> Transcript:
    text = " ".join(segment.text for segment in segments)
    recording = Recording(id="call", audio="call.wav", options=Options(language="de"))
    return Transcript(recording, "model", text, segments, duration_s=3725.5, channels=2, **fields)  # type: ignore[arg-type]


WORDS = (Word("guten", 0.0, 0.5, 0.9, 0.8), Word("tag", 0.5, 1.0, 0.7))
CALL = transcript(
    Segment(0, "agent", 0.0, 1.25, "guten tag", -0.1, ("too_fast",), WORDS),
    Segment(
        1, "A & <B>", 3599.9996, 3602.5, "x --> y\n\n<c> & d", agreement=Agreement(0.5, ("x --> y",), 0.25, ("e f g",))
    ),
    usage=Usage(audio_tokens=10, prompt_tokens=14, output_tokens=3),
)


def test_subrip() -> None:
    assert render_transcript(CALL, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,000\nagent: guten tag\n\n"
        "2\n01:00:00,000 --> 01:00:02,500\nA & <B>: x → y <c> & d\n"
    )


def test_webvtt() -> None:
    assert render_transcript(CALL, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n<v agent>guten tag\n\n"
        "01:00:00.000 --> 01:00:02.500\n<v A &amp; &lt;B&gt;>x → y &lt;c&gt; &amp; d\n"
    )


def test_channels_are_named_only_where_there_are_several() -> None:
    first, second = Segment(0, None, 0.0, 1.0, "one"), Segment(1, None, 1.0, 2.0, "two")
    assert "\none\n" in render_transcript(transcript(first), "srt")
    both = render_transcript(transcript(first, second), "srt")
    assert "\nChannel 1: one\n" in both
    assert "\nChannel 2: two\n" in both


@pytest.mark.parametrize("format", ["srt", "vtt", "text", "json", "verbose_json"])
def test_a_transcript_without_text_is_a_valid_file(format: str) -> None:
    silent = transcript(Segment(0, None, 0.0, 1.0, ""))
    assert " --> " not in render_transcript(silent, format)  # type: ignore[arg-type]
    assert render_transcript(transcript(), "vtt") == "WEBVTT\n"


def test_text_and_json() -> None:
    assert render_transcript(CALL, "text") == CALL.text + "\n"
    content = json.loads(render_transcript(CALL, "json"))
    assert content["text"] == CALL.text
    assert content["usage"]["total_tokens"] == 17
    assert content["usage"]["input_token_details"] == {"audio_tokens": 10, "text_tokens": 4}


def test_verbose_json_has_times_channels_agreement_and_words() -> None:
    content = json.loads(render_transcript(CALL, "verbose_json"))
    assert (content["task"], content["language"], content["duration"]) == ("transcribe", "de", 3725.5)
    first, second = content["segments"]
    assert (first["id"], first["start"], first["end"], first["speaker"]) == (0, 0.0, 1.25, "agent")
    assert (second["channel"], second["flags"], first["flags"]) == (1, [], ["too_fast"])
    assert first["agreement"] is None
    assert second["agreement"] == {
        "not_heard_share": 0.5,
        "not_heard": ["x --> y"],
        "left_out_share": 0.25,
        "left_out": ["e f g"],
    }
    assert content["words"] == [
        {"word": "guten", "start": 0.0, "end": 0.5, "probability": 0.9, "ctc_score": 0.8},
        {"word": "tag", "start": 0.5, "end": 1.0, "probability": 0.7, "ctc_score": None},
    ]


def test_a_row_read_back_renders_the_same() -> None:
    again = Transcript.from_row(CALL.to_row())
    assert again.segments == CALL.segments
    for format in ("srt", "vtt", "text", "json", "verbose_json"):
        assert render_transcript(again, format) == render_transcript(CALL, format)
