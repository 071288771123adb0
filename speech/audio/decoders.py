"""What a decoder is, the decoder for libsndfile's formats, and the one for files made of several.

Each decoder gives the sample rate, the number of channels, and the samples from a given frame on. Time ranges, limits
and error codes belong to ``speech.audio.decoding``; FFmpeg's decoder is ``speech.audio.ffmpeg``.

libsndfile is used where it can be: it decodes G.711 many times faster than FFmpeg, seeks to the exact sample and reads
Sphere in every coding.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import soundfile
import soxr

from speech.audio.source import Source

# Seconds decoded at a time: 125 VAD windows a call, which makes the cost of a call small, and arrays of at most half a
# megabyte, which stay in a core's cache and in memory that the allocator keeps. Blocks of 16 s take a quarter longer.
BLOCK_S = 4
# Bounds a block's memory for files with many channels or a high sample rate.
_MAX_BLOCK_SAMPLES = 1 << 21

# Above any real length (2,000 years at 16 kHz); libsndfile gives its largest integer for an unknown length.
_MAX_FRAMES = 1 << 50


class DecodeError(Exception):
    """This library cannot read this file: the reason, and the error code for when no other library can."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code


class FormatChanged(Exception):  # noqa: N818 - not a failure: the caller starts again
    """Audio with more channels, or at a higher rate, than the file began with. The decoder's are now as many.

    What was decoded before lacks the new channels, so the caller must read from the start again.
    """


class Piece(NamedTuple):
    """Consecutive samples of one format.

    Attributes:
        rate: Hz.
        samples: float32, (frames, channels).
        time_s: of the first sample, None if unknown.
    """

    rate: int
    samples: np.ndarray
    time_s: float | None = None


class Decoder(Protocol):
    """One open file.

    Attributes:
        frames: its declared length, None if unknown.
        skipped_tracks: how many audio tracks have no decoder and are left out.
    """

    sample_rate: int
    channels: int
    frames: int | None
    skipped_tracks: int

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        """Samples from frame ``start`` to the file's end as float32 of shape (frames, channels).

        May be called more than once. Raises DecodeError where the file is damaged, FormatChanged where
        ``sample_rate`` or ``channels`` had to grow.
        """
        ...


def block_frames(sample_rate: int, channels: int) -> int:
    return max(1, min(BLOCK_S * sample_rate, _MAX_BLOCK_SAMPLES // channels))


class SndfileDecoder:
    """libsndfile, through soundfile.

    Args:
        file: what to decode.
        raw: soundfile's arguments for a file without a header.
    """

    name: ClassVar[str] = "libsndfile"
    skipped_tracks: int = 0

    def __init__(self, file: Source, **raw: Any) -> None:
        self._file = file
        self._raw = raw
        with self._open() as sound:
            self.sample_rate: int = sound.samplerate
            self.channels: int = sound.channels
            self.frames: int | None = sound.frames
        if not self.frames or self.frames > _MAX_FRAMES:
            # Written to a pipe, so the length is unknown. FFmpeg reads to the end of the file.
            raise DecodeError("its header gives no length")

    @contextlib.contextmanager
    def _open(self) -> Iterator[soundfile.SoundFile]:
        self._file.seek(0)
        descriptor = self._file.descriptor()
        file = self._file if descriptor is None else descriptor
        try:
            with soundfile.SoundFile(file, closefd=False, **self._raw) as sound:
                yield sound
        except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
            raise DecodeError(_sndfile_reason(error)) from error

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        size = block_frames(self.sample_rate, self.channels)
        with self._open() as sound:
            if sound.seekable():
                sound.seek(min(start, sound.frames))
            else:  # GSM 6.10: read and discard
                while start > 0 and (skipped := len(sound.read(min(size, start)))):
                    start -= skipped
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                yield block


class ChainDecoder:
    """Several files one after the other, each with its own rate and channels.

    The rate is the highest, the number of channels the largest; a file with fewer channels has the first ones.
    """

    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders
        self._update_format()
        self.skipped_tracks = sum(decoder.skipped_tracks for decoder in decoders)
        lengths_s = [decoder.frames / decoder.sample_rate for decoder in decoders if decoder.frames is not None]
        complete = len(lengths_s) == len(decoders)
        # Resampling may round each part down.
        self.frames: int | None = int(sum(lengths_s) * self.sample_rate) - len(decoders) if complete else None

    def _update_format(self) -> None:
        self.sample_rate = max(decoder.sample_rate for decoder in self._decoders)
        self.channels = max(decoder.channels for decoder in self._decoders)

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        pieces = (Piece(decoder.sample_rate, block) for decoder in self._decoders for block in decoder.blocks(0))
        position = 0
        try:
            for block in in_format(pieces, self.sample_rate, self.channels):
                if position + len(block) > start:
                    yield block[max(0, start - position) :]
                position += len(block)
        except FormatChanged:
            self._update_format()
            raise


def in_format(pieces: Iterable[Piece], sample_rate: int, channels: int) -> Iterator[np.ndarray]:
    """Audio whose rate and channels may change, at one rate and with one number of channels.

    Fewer channels become the first ones, and the others are silent: a copy on each would be transcribed on each.

    Args:
        pieces: in order; none with more channels than ``channels``.
    """
    stream: soxr.ResampleStream | None = None
    stream_format = (0, 0)  # rate and channels
    for piece in pieces:
        rate, samples = piece.rate, piece.samples
        if stream is not None and stream_format != (rate, samples.shape[1]):
            yield _with_channels(_resampler_rest(stream, stream_format[1]), channels)
            stream = None
        if rate != sample_rate:
            if stream is None:
                stream_format = (rate, samples.shape[1])
                stream = soxr.ResampleStream(rate, sample_rate, samples.shape[1], dtype="float32")
            samples = stream.resample_chunk(samples)
        yield samples if samples.shape[1] == channels else _with_channels(samples, channels)
    if stream is not None:
        yield _with_channels(_resampler_rest(stream, stream_format[1]), channels)


def _resampler_rest(stream: soxr.ResampleStream, channels: int) -> np.ndarray:
    return stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)


def _with_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    return np.pad(samples, ((0, 0), (0, channels - samples.shape[1])))


def _sndfile_reason(error: Exception) -> str:
    reason = str(getattr(error, "error_string", None) or error)
    return reason.rstrip(".").removeprefix("Error : ")
