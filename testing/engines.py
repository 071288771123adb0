"""Real engines for synchronous tests."""

import asyncio

from speech.engines.base import ClipRequest, DecodingResult, EngineConfig, LanguageDetector, start_engine
from speech.listener import ListenResult
from speech.models.checkpoint import family_of
from speech.recording import Recording
from speech.transcriber import Transcriber
from speech.transcript import Transcript
from testing.loops import LoopThread


class RunningEngine:
    """An engine on an event loop of its own, as in the job."""

    def __init__(self, config: EngineConfig) -> None:
        self._thread = LoopThread()
        self._family = family_of(config.model, config.engine)
        self._engine = start_engine(config, self._family)

    def decode(self, *clips: ClipRequest) -> list[DecodingResult]:
        """Decodes clips concurrently."""

        async def decode_all() -> list[DecodingResult]:
            return await asyncio.gather(*(self._engine.decode(clip) for clip in clips))

        return self._thread.run(decode_all())

    def detect_languages(self, *clips: ClipRequest) -> list[dict[str, float]]:
        """The log probabilities of the languages of clips, concurrently."""
        detector = self._engine
        assert isinstance(detector, LanguageDetector)

        async def detect_all() -> list[dict[str, float]]:
            return await asyncio.gather(*(detector.language_logprobs(clip) for clip in clips))

        return self._thread.run(detect_all())

    def transcribe(self, recording: Recording, listened: ListenResult) -> Transcript:
        """Transcribes a recording."""
        transcriber = Transcriber(self._engine, self._family, "model", 64)
        return self._thread.run(transcriber.transcribe(recording, listened))

    def stop(self) -> None:
        self._engine.stop()
        self._thread.stop()
