"""Renders a transcript in the five formats of OpenAI's audio API, for the endpoint and for export.

    text           the text, in time order
    srt, vtt       subtitles (``speech.subtitles``); speakers by name, or by channel where there are several
    json           the text and its token counts
    verbose_json   segments with times, channels, speakers, flags and agreement with CTC; words where the model has
                   word timestamps

Sources: the WebVTT recommendation of the W3C, sections 4 and 6.3; for SubRip, which has no standard, what players
read; OpenAI's API reference for the JSON. Fields of a verbose segment that only Whisper has (``seek``, ``tokens``,
``temperature``, ``no_speech_prob``) are present, empty or zero, because clients read them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from speech.quality.flags import compression_ratio
from speech.subtitles import cues
from speech.transcript import Segment, Transcript, Usage

TranscriptFormat = Literal["json", "text", "srt", "vtt", "verbose_json"]

CONTENT_TYPES: dict[TranscriptFormat, str] = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "verbose_json": "application/json",
}


def render_transcript(transcript: Transcript, format: TranscriptFormat, warning: str = "") -> str:
    """The transcript as the content of a file or an HTTP response.

    Args:
        transcript: of one recording.
        format: one of the five.
        warning: a field of that name in the JSON formats, unless empty.
    """
    if format in _JSON_WRITERS:
        content = _JSON_WRITERS[format](transcript) | ({"warning": warning} if warning else {})
        return json.dumps(content, ensure_ascii=False)
    return _TEXT_WRITERS[format](transcript)


def token_usage(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's ``usage`` format."""
    return {
        "type": "tokens",
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "input_token_details": {
            "audio_tokens": usage.audio_tokens,
            "text_tokens": usage.prompt_tokens - usage.audio_tokens,
        },
    }


def _text(transcript: Transcript) -> str:
    return f"{transcript.text}\n"


def _srt(transcript: Transcript) -> str:
    return "\n".join(
        f"{number}\n{_timestamp(cue.start_s, ',')} --> {_timestamp(cue.end_s, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcript, speaker_in_text=True), 1)
    )


def _vtt(transcript: Transcript) -> str:
    return "WEBVTT\n" + "".join(
        f"\n{_timestamp(cue.start_s, '.')} --> {_timestamp(cue.end_s, '.')}\n"
        + (f"<v {_escaped(cue.speaker)}>" if cue.speaker else "")
        + "\n".join(map(_escaped, cue.lines))
        + "\n"
        for cue in cues(transcript, speaker_in_text=False)
    )


def _json(transcript: Transcript) -> dict[str, Any]:
    return {"text": transcript.text, "usage": token_usage(transcript.usage)}


def _verbose_json(transcript: Transcript) -> dict[str, Any]:
    options, probability = transcript.recording.options, transcript.recording.language_probability
    words = [
        {
            "word": word.text,
            "start": word.start_s,
            "end": word.end_s,
            "probability": word.probability,
            "ctc_score": word.ctc_score,
        }
        for segment in transcript.segments
        for word in segment.words
    ]
    return {
        "task": options.task,
        "language": options.target_language or options.language,
        **({"language_probability": probability} if probability is not None else {}),
        "duration": transcript.duration_s,
        "text": transcript.text,
        "segments": [_verbose_segment(number, segment) for number, segment in enumerate(transcript.segments)],
        **({"words": words} if words else {}),
        "usage": {"type": "duration", "seconds": transcript.duration_s},
        "channels": transcript.channels,
        "flags": list(transcript.flags),
    }


def _verbose_segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": round(compression_ratio(segment.text), 3),
        "no_speech_prob": 0.0,
        "channel": segment.channel,
        "speaker": segment.speaker,
        "flags": list(segment.flags),
        "agreement": segment.agreement and asdict(segment.agreement),
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _timestamp(seconds: float, separator: str) -> str:
    """``HH:MM:SS`` and milliseconds after ``separator``."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{separator}{milliseconds % 1000:03}"


_JSON_WRITERS: dict[TranscriptFormat, Callable[[Transcript], dict[str, Any]]] = {
    "json": _json,
    "verbose_json": _verbose_json,
}
_TEXT_WRITERS: dict[TranscriptFormat, Callable[[Transcript], str]] = {"text": _text, "srt": _srt, "vtt": _vtt}
