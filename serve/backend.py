"""What the endpoint's HTTP needs of Rayscribe: a Listener and a Transcriber, wherever they run."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from speech.recording import Recording
from speech.transcriber import ClipTranscript
from speech.transcript import Transcript


@dataclass(frozen=True, slots=True)
class ListenSummary:
    """What the endpoint needs to know of a ``ListenResult``, without its samples.

    Attributes:
        duration_s: seconds of audio that were read.
        handle: the ``ListenResult``, or a reference to one, for ``Backend.transcribe`` and ``Backend.stream``.
    """

    duration_s: float
    handle: Any


class Backend(Protocol):
    """Listener and Transcriber. Each method raises as the class behind it does; cancelling a call cancels its work."""

    async def listen(self, recording: Recording, audio: BinaryIO) -> ListenSummary:
        """``speech.listener.Listener.listen``"""

    async def transcribe(self, recording: Recording, handle: Any) -> Transcript:
        """``speech.transcriber.Transcriber.transcribe``"""

    def stream(self, recording: Recording, handle: Any, *, live: bool = False) -> AsyncGenerator[ClipTranscript, None]:
        """``speech.transcriber.Transcriber.stream``"""
