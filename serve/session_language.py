"""The language of a live session whose client leaves it to be detected.

It is that of the session's first speech, ``DETECTION_S`` of it, as a recording's is that of its first clips. An
utterance before that is in the language of all speech so far: of a short one alone, as "ok", no model can tell.
"""

from serve.backend import Backend
from speech.audio.clips import Clip
from speech.listener import ListenResult
from speech.recording import AUTO, Recording
from speech.transcriber import DETECTION_S


class SessionLanguage:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._speech: list[Clip] = []
        self._known: tuple[str, float] | None = None  # the language that was detected last, and its probability
        self._is_settled = False

    def hear(self, clips: list[Clip]) -> ListenResult:
        """The session's first speech up to these clips, which are complete: for ``detect``."""
        if _seconds(self._speech) < DETECTION_S:
            self._speech = self._speech + clips
        return listened(self._speech)

    async def detect(self, recording: Recording, heard: ListenResult, backend: Backend) -> Recording:
        """A recording of the session in its language; unchanged unless that is to be detected.

        Raises:
            RayscribeError: as of ``Backend.detect_language``.
        """
        if recording.options.language != AUTO or self._is_settled:
            return self.so_far(recording)
        told = await backend.detect_language(recording, heard, live=True)
        if told.language_probability is not None:
            self._known = told.options.language, told.language_probability
            self._is_settled = heard.speech_s >= DETECTION_S
        return told

    def so_far(self, recording: Recording) -> Recording:
        """A recording of the session in the language that was detected last, if it is to be detected."""
        if recording.options.language != AUTO or self._known is None:
            return recording
        return recording.in_language(*self._known)


def listened(clips: list[Clip]) -> ListenResult:
    """Clips of live audio, as a Listener's result."""
    seconds = _seconds(clips)
    return ListenResult(duration_s=seconds, speech_s=seconds, channels=1, clips=clips)


def _seconds(clips: list[Clip]) -> float:
    return sum(clip.end_s - clip.start_s for clip in clips)
