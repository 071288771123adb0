"""Audio in, whatever its container and codec: blocks of float32 samples out, or an AudioError with its code.

``open_audio`` tries each decoder of ``speech.audio.decoders`` in turn; ``AudioFile.blocks`` reads a stretch of
the file in blocks of some seconds; ``resampled`` brings them to the 16 kHz that the VAD and every model
want. Nothing here ever holds a whole file, and no length that a header claims is believed until the
samples have come: half a file is an error (``truncated``), not half a transcript.

What it leaves to others: which channels matter (``speech.audio.channels``), and where URIs lead (the opener
that is given to ``speech.listener.Listener``).
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr

from speech.audio import SAMPLE_RATE
from speech.audio.decoders import DecodeError, Decoder, FFmpegDecoder, SndfileDecoder
from speech.audio.headers import missing_bytes
from speech.audio.source import Source
from speech.errors import AudioError

# Outside these a header is nonsense: no speech survives below, no recorder samples above.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 4_000, 192_000
MAX_CHANNELS = 32
# A working day in one file. At 16 kHz that is 0.9 GB of speech for each channel that never pauses.
MAX_DURATION_S = 8 * 3600.0
# Full scale is 1. A hot float mix may pass it a few times over; thousands mean integers stored as floats.
_MAX_SAMPLE = 32.0

_DECODERS: tuple[tuple[str, Callable[[Source], Decoder]], ...] = (
    (SndfileDecoder.name, SndfileDecoder),
    (FFmpegDecoder.name, FFmpegDecoder),
)

AudioSource = BinaryIO | str | os.PathLike[str]


class AudioFile:
    """An open audio file, of which any stretch can be read, more than once. Made by ``open_audio``."""

    def __init__(self, source: Source, decoder: Decoder, name: str, missing: int, max_duration_s: float) -> None:
        self._source = source
        self._decoder = decoder
        self._name = name
        self._missing = missing
        self._max_duration_s = max_duration_s
        self.sample_rate = decoder.sample_rate
        self.channels = decoder.channels

    def blocks(self, offset: float = 0.0, duration: float | None = None) -> Iterator[np.ndarray]:
        """Samples at the file's own rate, float32, of shape (frames, channels).

        Args:
            offset: seconds into the file.
            duration: seconds to read; None, or more than there are: to the end.

        Raises:
            AudioError: ``bad_range`` when the offset lies at or beyond the end, ``too_long``,
                ``truncated``, ``empty`` or ``unreadable``.
        """
        if duration is None and self._missing:  # say so before an hour has been decoded
            raise self._truncated()
        rate = self.sample_rate
        start = round(offset * rate)
        wanted = None if duration is None else max(1, round(duration * rate))
        delivered = 0
        damage: DecodeError | None = None
        try:
            for block in self._decoder.blocks(start):
                block = block if wanted is None else block[: wanted - delivered]
                if not len(block):
                    continue
                delivered += len(block)
                self._check(block, delivered)
                yield block
                if delivered == wanted:
                    return
        except DecodeError as error:
            damage = error
        # The file ended before the stretch did: is that the end it should have?
        self._check_source()
        frames = self._decoder.frames
        if self._missing:
            raise self._truncated() from damage
        if frames is not None and start < frames and start + delivered < frames:
            raise AudioError(
                "truncated",
                f"{self._name} is cut or damaged: {(start + delivered) / rate:.1f} s of {frames / rate:.1f} s decode",
            ) from damage
        if damage is not None:
            raise AudioError(damage.code, f"{self._name} is damaged: {damage}") from damage
        if not delivered and start:
            raise AudioError("bad_range", f"{self._name} ends before the offset of {offset:g} s")
        if not delivered:
            raise AudioError("empty", f"{self._name} holds no samples")

    def _check_source(self) -> None:
        try:
            self._source.raise_caught()
        except OSError as error:
            raise _io_error(error, self._name) from error

    def _check(self, block: np.ndarray, delivered: int) -> None:
        if not max(block.max(), -block.min()) <= _MAX_SAMPLE:  # so written, NaN fails it too
            raise AudioError("unreadable", f"{self._name} holds samples that are no sound (NaN, Inf or far beyond 1)")
        if delivered > self._max_duration_s * self.sample_rate:
            hours = self._max_duration_s / 3600
            raise AudioError(
                "too_long", f"{self._name} is longer than {hours:g} h; cut it, or give rows with offset and duration"
            )

    def _truncated(self) -> AudioError:
        return AudioError(
            "truncated", f"{self._name} was cut: {self._missing:,} bytes that its header promises are not there"
        )


@contextlib.contextmanager
def open_audio(
    source: AudioSource, name: str | None = None, *, max_duration_s: float = MAX_DURATION_S
) -> Iterator[AudioFile]:
    """Opens a path, or a seekable binary file that the caller closes.

    Args:
        source: where the audio is.
        name: what messages call it; by default the path.
        max_duration_s: a stretch longer than this is ``too_long``.

    Raises:
        AudioError: ``not_found``, ``forbidden``, ``empty``, ``unsupported_codec``, ``truncated`` or
            ``unreadable``; the message of the latter three names what each decoder said.
    """
    name = name or str(getattr(source, "name", source))
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(Path(source).open("rb", buffering=0))
            file = Source(source)
            size = file.seek(0, os.SEEK_END)
            file.raise_caught()
            if not size:
                raise AudioError("empty", f"{name} has 0 bytes")
            missing = missing_bytes(file, size)
            decoder = _first_that_reads(file, name, missing)
        except OSError as error:
            raise _io_error(error, name) from error
        _check_header(decoder, name)
        yield AudioFile(file, decoder, name, missing, max_duration_s)


def resampled(blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks of shape (frames, channels) at 16 kHz, aligned with the input's first sample."""
    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = None
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, block.shape[1], dtype="float32")
            channels = block.shape[1]
        out = stream.resample_chunk(block)
        if len(out):
            yield out
    if stream is not None:
        out = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
        if len(out):
            yield out


def _first_that_reads(file: Source, name: str, missing: int) -> Decoder:
    attempts: list[str] = []
    codes: list[str] = []
    cause: DecodeError | None = None
    for library, make in _DECODERS:
        try:
            return make(file)
        except DecodeError as error:
            attempts.append(f"{library}: {error}")
            codes.append(error.code)
            cause = error
        finally:
            file.raise_caught()
    # The last decoder knows the most formats: its code stands, unless the file was cut.
    code = "truncated" if missing else codes[-1]
    raise AudioError(code, f"{name} can't be decoded ({'; '.join(attempts)})") from cause


def _check_header(decoder: Decoder, name: str) -> None:
    if not MIN_SAMPLE_RATE <= decoder.sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            "unreadable",
            f"{name} claims {decoder.sample_rate} samples a second; "
            f"audio has {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}, so its header is not to be trusted",
        )
    if not 1 <= decoder.channels <= MAX_CHANNELS:
        raise AudioError("unreadable", f"{name} claims {decoder.channels} channels; 1 to {MAX_CHANNELS} can be")


def _io_error(error: OSError, name: str) -> AudioError:
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return AudioError("not_found", f"there is no file {name}")
    if isinstance(error, PermissionError):
        return AudioError("forbidden", f"{name} may not be read: {reason}")
    return AudioError("unreadable", f"{name} can't be read: {reason}")
