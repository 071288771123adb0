"""The clips of a recording that is decoded in parts: their order, errors and cancellation."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from serve.backend import ListenSummary
from serve.decoding import Decoding
from speech.errors import AudioError, EngineError
from speech.listener import ListenResult
from speech.recording import Options, Recording
from speech.transcriber import ClipTranscript
from speech.transcript import Segment, Usage

WAIT_S = 30.0
Decode = Callable[[Recording, Any], AsyncGenerator[ClipTranscript, None]]


def clip(text: str) -> ClipTranscript:
    return ClipTranscript((Segment(0, None, 0.0, 1.0, text),), Usage())


def part(number: int) -> ListenSummary:
    return ListenSummary(ListenResult(float(number), 0.0, 1, []), number)


async def german_from_second(recording: Recording, number: int) -> Recording:
    return recording.in_language("de", 0.9) if number else recording


def decoding_of(parts: AsyncGenerator[ListenSummary, None], decode: Decode, language: str = "en") -> Decoding:
    recording = Recording(id="one", audio="call.wav", options=Options(language=language))
    return Decoding(recording, parts, decode, german_from_second)


async def texts(decoding: Decoding) -> list[str]:
    return [clip.segments[0].text async for clip in decoding.clips()]


def decoded(
    parts: Callable[[], AsyncGenerator[ListenSummary, None]],
    decode: Decode,
) -> list[str]:
    async def run() -> list[str]:
        decoding = decoding_of(parts(), decode)
        try:
            async with asyncio.timeout(WAIT_S):
                return await texts(decoding)
        finally:
            await decoding.aclose()

    return asyncio.run(run())


async def three_parts() -> AsyncGenerator[ListenSummary, None]:
    for number in range(3):
        yield part(number)


def test_all_parts_are_decoded_at_once_and_answered_in_order() -> None:
    """Each part's decoding ends only after that of the next one."""
    done = [asyncio.Event() for _ in range(4)]
    done[3].set()

    async def decode(recording: Recording, number: int) -> AsyncGenerator[ClipTranscript, None]:
        await done[number + 1].wait()
        done[number].set()
        yield clip(f"{number}a")
        yield clip(f"{number}b")

    assert decoded(three_parts, decode) == ["0a", "0b", "1a", "1b", "2a", "2b"]


def test_the_first_part_is_answered_while_the_next_is_cut() -> None:
    async def run() -> None:
        cut = asyncio.Event()

        async def parts() -> AsyncGenerator[ListenSummary, None]:
            yield part(0)
            await cut.wait()
            yield part(1)

        async def decode(recording: Recording, number: int) -> AsyncGenerator[ClipTranscript, None]:
            yield clip(str(number))

        decoding = decoding_of(parts(), decode)
        clips = decoding.clips()
        assert (await asyncio.wait_for(anext(clips), WAIT_S)).segments[0].text == "0"
        cut.set()
        assert (await asyncio.wait_for(anext(clips), WAIT_S)).segments[0].text == "1"
        assert decoding.listened.duration_s == 1
        await decoding.aclose()

    asyncio.run(run())


def test_the_language_is_that_of_the_first_part_that_tells() -> None:
    async def run() -> None:
        async def decode(recording: Recording, number: int) -> AsyncGenerator[ClipTranscript, None]:
            yield clip(f"{number} {recording.options.language}")

        decoding = decoding_of(three_parts(), decode, language="auto")
        assert await texts(decoding) == ["0 auto", "1 de", "2 de"]
        assert (decoding.recording.options.language, decoding.recording.language_probability) == ("de", 0.9)
        await decoding.aclose()

    asyncio.run(run())


def test_errors_of_listening_and_of_decoding_are_raised() -> None:
    async def damaged() -> AsyncGenerator[ListenSummary, None]:
        yield part(0)
        raise AudioError("truncated", "half of it")

    async def decode(recording: Recording, number: int) -> AsyncGenerator[ClipTranscript, None]:
        yield clip(str(number))

    async def refuse(recording: Recording, number: int) -> AsyncGenerator[ClipTranscript, None]:
        raise EngineError("engine_refused", str(number))
        yield

    with pytest.raises(AudioError, match="half of it"):
        decoded(damaged, decode)
    with pytest.raises(EngineError, match="0"):
        decoded(three_parts, refuse)


def test_closing_it_ends_listening_and_decoding() -> None:
    ended: list[object] = []

    async def run() -> None:
        decoding_begun = asyncio.Event()

        async def parts() -> AsyncGenerator[ListenSummary, None]:
            try:
                yield part(0)
                await asyncio.Event().wait()
            finally:
                ended.append("listening")

        async def decode(recording: Recording, number: int) -> AsyncGenerator[ClipTranscript, None]:
            try:
                decoding_begun.set()
                await asyncio.Event().wait()
                yield clip("never")
            finally:
                ended.append("decoding")

        decoding = decoding_of(parts(), decode)
        await asyncio.wait_for(decoding_begun.wait(), WAIT_S)
        await asyncio.wait_for(decoding.aclose(), WAIT_S)

    asyncio.run(run())
    assert sorted(map(str, ended)) == ["decoding", "listening"]
