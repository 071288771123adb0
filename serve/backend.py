"""What the endpoint's HTTP needs of Rayscribe: a Listener and a Transcriber, wherever they run."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol, Self

from speech.listener import ListenResult
from speech.recording import Recording
from speech.transcriber import ClipTranscript


@dataclass(frozen=True, slots=True)
class ListenSummary:
    """A part of what the Listener found (``speech.listener.Listener.stream``), without its samples.

    Attributes:
        listened: the part, its clips left out.
        handle: the part, or a reference to it, for ``Backend.transcribe`` and ``Backend.stream``.
    """

    listened: ListenResult
    handle: Any

    @classmethod
    def of(cls, part: ListenResult, handle: Any) -> Self:
        return cls(replace(part, clips=[]), handle)


class Backend(Protocol):
    """Listener and Transcriber. Each method raises as the class behind it does; cancelling a call cancels its work.

    Attributes:
        local: whether the Listener is on this machine, and can listen to an upload that is arriving.
    """

    @property
    def local(self) -> bool: ...

    def listen(self, recording: Recording, audio: BinaryIO, size: int) -> AsyncGenerator[ListenSummary, None]:
        """``speech.listener.Listener.stream``. ``size``: the bytes of ``audio``, those that are to come included."""

    async def detect_language(self, recording: Recording, handle: Any, *, live: bool = False) -> Recording:
        """``speech.transcriber.Transcriber.detect_language``"""

    async def transcribe(self, recording: Recording, handle: Any) -> list[ClipTranscript]:
        """All clips of a part."""

    def stream(self, recording: Recording, handle: Any, *, live: bool = False) -> AsyncGenerator[ClipTranscript, None]:
        """``speech.transcriber.Transcriber.stream``"""
