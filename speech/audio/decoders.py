"""The two decoding libraries: libsndfile for the formats that it reads exactly, FFmpeg for all others.

Each decoder gives the sample rate, the number of channels, and the samples from a given frame on. Time ranges, limits
and error codes belong to ``speech.audio.decoding``.

libsndfile is tried first, and only for files that begin with the magic bytes of one of its formats: it decodes
several times faster than FFmpeg, seeks to the exact sample and reads Sphere in every coding. MP3 is left to FFmpeg,
because libsndfile's MP3 decoder prints warnings to stderr.

FFmpeg's demuxers are limited to a whitelist. Playlists (HLS, concat) are not on it: they name other files and
addresses, and an upload may be hostile.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import av
import numpy as np
import soundfile

from speech.audio.source import Source

# Seconds decoded at a time: 500 VAD windows a call, which makes the cost of a call negligible, and one megabyte of
# samples a channel.
BLOCK_S = 16
# Bounds a block's memory for files with many channels or a high sample rate.
_MAX_BLOCK_SAMPLES = 1 << 21

# Above any real length (2,000 years at 16 kHz); libsndfile gives its largest integer for an unknown length.
_MAX_FRAMES = 1 << 50

_SNDFILE_MAGIC = re.compile(rb"RIFF|RIFX|RF64|riff|fLaC|OggS|FORM|\.snd|dns\.|NIST_1A|caff", re.DOTALL)
_FFMPEG_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flac,flv,g722,g726,g729,gsm,loas,matroska,mov,mp3,"
    "mpeg,mpegts,mpc,mpc8,nistsphere,ogg,sox,tta,voc,w64,wav,wv"
)
# Decoding from the middle of a stream needs a pre-roll: 80 ms for Opus (RFC 7845, 4.6), half a second for MP3's bit
# reservoir.
_PRE_ROLL_S = 1.0
# Timestamps may be off by a packet (Matroska's are in milliseconds). A larger gap is silence that the sender did not
# transmit (Opus DTX, a muted microphone).
_GAP_S = 0.05
# A larger jump in timestamps is a damaged file or two joined ones, not silence.
_MAX_GAP_S = 3600.0
# The share of packets that may fail to decode, as transmission errors cause; above it the file is damaged.
_MAX_BAD_SHARE = 0.05
# How many times the demuxer may lose synchronisation.
_MAX_RESYNCS = 100
# Containers that declare a duration, and by how much the audio may fall short of it.
_TIMED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_SLACK_S = 0.5


class DecodeError(Exception):
    """This library cannot read this file: the reason, and the error code for when no other library can."""

    def __init__(self, reason: str, code: str = "unreadable") -> None:
        super().__init__(reason)
        self.code = code


class Decoder(Protocol):
    """One open file. ``frames`` is its declared length in frames, None if unknown."""

    sample_rate: int
    channels: int
    frames: int | None

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        """Samples from frame ``start`` to the file's end as float32 of shape (frames, channels).

        May be called more than once. Raises DecodeError where the file is damaged.
        """
        ...


def block_frames(sample_rate: int, channels: int) -> int:
    return max(1, min(BLOCK_S * sample_rate, _MAX_BLOCK_SAMPLES // channels))


class SndfileDecoder:
    """libsndfile, through soundfile."""

    name: ClassVar[str] = "libsndfile"

    def __init__(self, file: Source) -> None:
        self._file = file
        file.seek(0)
        if not _SNDFILE_MAGIC.match(file.read(8)):
            raise DecodeError("not one of its formats")
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
        try:
            with soundfile.SoundFile(self._file if descriptor is None else descriptor, closefd=False) as sound:
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


class FFmpegDecoder:
    """FFmpeg's demuxers and decoders, through PyAV."""

    name: ClassVar[str] = "FFmpeg"

    def __init__(self, file: Source) -> None:
        self._file = file
        with self._open() as (container, stream):
            # The header is not enough: HE-AAC doubles the rate, and Parametric Stereo the channels, only in
            # the decoder. The first frame has the real values.
            first = next(_decoded(container, stream, pre_roll=0.0), None)
            if first is None:
                raise DecodeError("it finds no samples", "empty")
            self.sample_rate: int = first.sample_rate
            self.channels: int = first.layout.nb_channels
            self.frames: int | None = _declared_frames(container, stream, self.sample_rate)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        self._file.seek(0)
        try:
            options = {"format_whitelist": _FFMPEG_CONTAINERS}
            with av.open(self._file, options=options, metadata_errors="ignore") as container:
                if not container.streams.audio:
                    raise DecodeError("it finds no audio track")
                stream = container.streams.audio[0]
                if stream.codec_context is None:
                    raise DecodeError("it knows no decoder for the audio track", "unsupported_codec")
                yield container, stream
        except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError) as error:
            raise DecodeError("it has no decoder for the audio track", "unsupported_codec") from error
        except av.error.FFmpegError as error:
            raise DecodeError(error.strerror or type(error).__name__) from error

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        size = block_frames(self.sample_rate, self.channels)
        pending: list[np.ndarray] = []
        pending_frames = 0
        for samples in self._samples(start):
            pending.append(samples)
            pending_frames += len(samples)
            if pending_frames >= size:
                yield np.concatenate(pending)
                pending, pending_frames = [], 0
        if pending:
            yield np.concatenate(pending)

    def _samples(self, start: int) -> Iterator[np.ndarray]:
        """Each frame's samples from ``start`` on, with gaps in the timestamps filled with silence."""
        rate, silence = self.sample_rate, np.zeros((self.sample_rate, self.channels), np.float32)
        with self._open() as (container, stream):
            origin = float((stream.start_time or 0) * stream.time_base)
            pre_roll = start / rate - _PRE_ROLL_S
            at = 0 if pre_roll <= 0 else None  # position of the next sample in the file
            for frame in _decoded(container, stream, pre_roll + origin):
                if (frame.sample_rate, frame.layout.nb_channels) != (rate, self.channels):
                    raise DecodeError("its sample rate or channels change within the file")
                stamp = at if frame.time is None else round((frame.time - origin) * rate)
                if at is None:
                    at = stamp or 0
                elif stamp is not None and _GAP_S * rate < stamp - at <= _MAX_GAP_S * rate:
                    while at < stamp:
                        gap = silence[: stamp - at]
                        yield gap[max(0, start - at) :]
                        at += len(gap)
                samples = _as_float(frame, self.channels)
                yield samples[max(0, start - at) :]
                at += len(samples)


def _decoded(container: Any, stream: Any, pre_roll: float) -> Iterator[Any]:
    """Yields decoded frames, from the first packet that ends at ``pre_roll`` (seconds) or later.

    Packets before it are demuxed and not decoded: that is exact in every container, where seeking is not (MP3's table
    of contents has a resolution of a hundredth of the file). A packet that fails to decode is skipped; timestamps
    keep the later ones in place.
    """
    good = bad = lost = 0
    packets = container.demux(stream)
    tick = float(stream.time_base)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, EOFError):
            break
        except av.error.InvalidDataError:
            lost += 1
            if lost > _MAX_RESYNCS:
                raise
            continue
        if packet.pts is not None and (packet.pts + (packet.duration or 0)) * tick < pre_roll:
            continue
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            continue
        good += 1
        yield from frames
    if bad > 1 + _MAX_BAD_SHARE * good:
        raise DecodeError(f"{bad} of {bad + good} packets are damaged")


def _declared_frames(container: Any, stream: Any, sample_rate: int) -> int | None:
    """The least number of frames in a complete file, where the header declares it; None where FFmpeg estimates.

    FLAC declares samples. The others declare times, of which ``_SLACK_S`` is allowed for priming and rounding.
    """
    if container.format.name == "flac" and stream.duration:
        return int(stream.duration * stream.time_base * sample_rate)
    duration = float(stream.duration * stream.time_base) if stream.duration else None
    if duration is None and container.duration and len(container.streams) == 1:
        duration = container.duration / av.time_base
    if duration is None or container.format.name not in _TIMED_CONTAINERS:
        return None
    return max(0, int((duration - _SLACK_S) * sample_rate))


def _as_float(frame: Any, channels: int) -> np.ndarray:
    """A frame's samples as float32 of shape (frames, channels), full scale at 1."""
    samples: np.ndarray = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32, copy=False)


def _sndfile_reason(error: Exception) -> str:
    reason = str(getattr(error, "error_string", None) or error)
    return reason.rstrip(".").removeprefix("Error : ")
