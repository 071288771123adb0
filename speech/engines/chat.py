"""OpenAI's chat with audio, as llama.cpp's server speaks it: a clip as a request, an answer as a result.

The audio comes before the instruction, as in Granite's training. (The server's own route for transcriptions sends the
instruction first, which the model answers otherwise.)
"""

import base64
import io
import wave
from typing import Any

from speech.audio import SAMPLE_RATE
from speech.engines.base import ClipRequest, DecodingResult
from speech.models.families import Granite
from speech.transcript import Usage

CHAT_PATH = "/v1/chat/completions"


def chat_request(family: Granite, clip: ClipRequest) -> dict[str, Any]:
    """The request for the text of a clip."""
    system = [{"role": "system", "content": family.system}] if family.system is not None else []
    content = [
        {"type": "input_audio", "input_audio": {"data": wav_base64(clip), "format": "wav"}},
        {"type": "text", "text": family.separator + family.instruction(clip.options)},
    ]
    return {
        "messages": [*system, {"role": "user", "content": content}],
        "max_tokens": family.max_tokens(clip.seconds),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
        "cache_prompt": False,  # no two clips share a prefix worth caching: the audio comes first
    }


def chat_result(answer: dict[str, Any], audio_tokens: int = 0) -> DecodingResult:
    """What an answer says.

    Args:
        answer: of the server.
        audio_tokens: of the clip, which the server counts among those of the prompt.

    Raises:
        KeyError, TypeError, ValueError: it is no such answer.
    """
    [choice] = answer["choices"]
    tokens = (choice.get("logprobs") or {}).get("content") or []
    logprobs = [token["logprob"] for token in tokens]
    usage = answer["usage"]
    return DecodingResult(
        text=choice["message"]["content"].strip(),
        token_ids=tuple(token["id"] for token in tokens),
        avg_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        complete=choice["finish_reason"] == "stop",
        usage=Usage(
            audio_tokens=audio_tokens,
            prompt_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
        ),
    )


def wav_base64(clip: ClipRequest) -> str:
    """A clip as a WAV file, in base64."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(clip.samples.tobytes())
    return base64.b64encode(file.getvalue()).decode()
