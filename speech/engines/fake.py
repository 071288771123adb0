"""An engine without a model, for tests and benchmarks of everything around the model.

Its text is a function of the request, so that a recording has the same transcript however often it is retried.
Failures are injected by a hook: ``before`` is awaited with each request and may wait, raise an error of
``speech.errors``, or end the process.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

from speech.engines.base import ClipRequest, DecodingResult, EngineConfig
from speech.models.families import Family
from speech.transcript import Usage, Word


def reply_with_length(clip: ClipRequest) -> str:
    """The recording's id and the clip's length: different for every recording."""
    return f"{clip.recording_id}: {clip.seconds:.2f} seconds"


def reply_with_options(clip: ClipRequest) -> str:
    """The language and the keywords: shows which options have reached the engine."""
    return " ".join([clip.options.language, *clip.options.keywords])


def evenly_timed_words(text: str, clip: ClipRequest) -> tuple[Word, ...]:
    """The words of a text, which divide the clip; none where they were not asked for."""
    words = text.split() if clip.options.word_timestamps else []
    length_s = clip.seconds / max(1, len(words))
    return tuple(Word(word, n * length_s, (n + 1) * length_s, 0.9, 0.8) for n, word in enumerate(words))


def english(clip: ClipRequest) -> dict[str, float]:
    """Almost certainly English."""
    return {"de": math.log(0.1), "en": math.log(0.9)}


def constant_usage(clip: ClipRequest) -> Usage:
    """A few tokens of each kind, so that sums can be checked."""
    return Usage(audio_tokens=10, prompt_tokens=20, output_tokens=2)


class FakeEngine:
    """Implements ``speech.engines.base.Engine``.

    Args:
        reply: the text of a clip.
        before: awaited with each request before it is answered.
        usage: reported for a clip.
        words: of the text of a clip.
        languages: log probabilities of a clip's languages.
        batch: no request is answered until so many are in flight; then all are, in reverse order.
        complete, avg_logprob, hypothesis: of every ``DecodingResult``.

    Attributes:
        requests: all that were received, in order.
        cancelled: those that the caller cancelled while in flight.
        in_flight, max_in_flight: requests in flight now, and at most so far.
    """

    def __init__(
        self,
        reply: Callable[[ClipRequest], str] = reply_with_length,
        *,
        before: Callable[[ClipRequest], Awaitable[None]] | None = None,
        usage: Callable[[ClipRequest], Usage] = constant_usage,
        words: Callable[[str, ClipRequest], tuple[Word, ...]] = evenly_timed_words,
        languages: Callable[[ClipRequest], dict[str, float]] = english,
        batch: int = 1,
        complete: bool = True,
        avg_logprob: float | None = -0.1,
        hypothesis: str | None = None,
    ) -> None:
        self.requests: list[ClipRequest] = []
        self.cancelled: list[ClipRequest] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self._reply, self._before, self._usage, self._words = reply, before, usage, words
        self._languages, self._batch = languages, batch
        self._complete, self._avg_logprob, self._hypothesis = complete, avg_logprob, hypothesis
        self._waiting: list[asyncio.Future[None]] = []

    async def decode(self, clip: ClipRequest) -> DecodingResult:
        self.requests.append(clip)
        if self._before is not None:
            await self._before(clip)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self._join_batch()
        except asyncio.CancelledError:
            self.cancelled.append(clip)
            raise
        finally:
            self.in_flight -= 1
        text = self._reply(clip)
        return DecodingResult(
            text=text,
            token_ids=(1, 2),
            avg_logprob=self._avg_logprob,
            complete=self._complete,
            usage=self._usage(clip),
            hypothesis=self._hypothesis,
            words=self._words(text, clip),
        )

    async def language_logprobs(self, clip: ClipRequest) -> dict[str, float]:
        self.requests.append(clip)
        if self._before is not None:
            await self._before(clip)
        return self._languages(clip)

    async def _join_batch(self) -> None:
        """Returns when the batch is full; its requests are answered in reverse order."""
        answered = asyncio.get_running_loop().create_future()
        self._waiting.append(answered)
        if len(self._waiting) >= self._batch:
            for waiting in reversed(self._waiting):
                if not waiting.done():
                    waiting.set_result(None)
            self._waiting.clear()
        await answered

    async def check_health(self) -> None:
        """Always healthy: the engine is in this process."""

    def stop(self) -> None:
        """Nothing to free."""


def start_fake(
    config: EngineConfig,
    family: Family,
    reply: Callable[[ClipRequest], str] = reply_with_length,
    before: Callable[[ClipRequest], Awaitable[None]] | None = None,
) -> FakeEngine:
    """An ``EngineStarter`` that loads nothing. Bind ``reply`` and ``before`` with ``functools.partial``."""
    return FakeEngine(reply, before=before)
